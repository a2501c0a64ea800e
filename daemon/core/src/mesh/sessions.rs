//! Sessions with other nodes: with whom to have them, and what comes of them.
//!
//! Sessions are dialled to the bootstrap nodes, and by a node that knows of anyone beyond its own links also to the next
//! [`RING`] peers in the order of keys, through the mesh itself. So records reach every node of the mesh over few
//! sessions, behind whatever NAT; and a mesh that lives on one link has no session at all.

use std::net::SocketAddr;

use super::lan::CLOCK_TOLERANCE;
use super::{Command, Mesh};
use crate::contact::{Place, Via};
use crate::exchange::{Context, Exchange, Forward, Output, SessionEvent, Target};
use crate::key::PublicKey;
use crate::path::Origin;
use crate::plan;
use crate::record::SignedRecord;
use crate::store::{Claim, Peer, Source};
use crate::sync::RecordView;
use crate::time::Now;

/// With how many of its successors a node holds sessions.
const RING: usize = 2;

impl Mesh {
    /// Follows what the shell tells of a session.
    pub(super) fn on_session(&mut self, event: SessionEvent, now: Now) {
        self.with_exchange(now, |exchange, context| exchange.handle(event, context));
    }

    /// Takes the addresses of the bootstrap nodes.
    pub(super) fn on_bootstrap(&mut self, targets: Vec<Target>) {
        self.bootstrap = targets;
        self.targets_stale = true;
    }

    /// Takes the port that the exchange really listens on; `None` if it listens nowhere.
    pub(super) fn on_exchange_port(&mut self, port: Option<u16>, now: Now) {
        if self.exchange_port != port {
            self.exchange_port = port;
            self.renew_record(now);
        }
    }

    /// Does what is due in the exchange, and what follows from it.
    pub(super) fn drive_exchange(&mut self, now: Now) {
        if self.exchange.is_none() {
            return;
        }
        if std::mem::take(&mut self.targets_stale) {
            let targets = self.session_targets(now);
            self.with_exchange(now, |exchange, context| exchange.want(targets, context.now));
        }
        if self.exchange.as_ref().and_then(Exchange::poll_timeout).is_some_and(|at| at <= now.monotonic) {
            self.with_exchange(now, |exchange, context| exchange.handle_timeout(context));
        }
        while let Some(output) = self.exchange.as_mut().and_then(Exchange::poll_output) {
            self.follow_output(output, now);
        }
    }

    /// Tells everyone that there is a session with of a record.
    pub(super) fn tell(&mut self, record: &SignedRecord, from: Option<PublicKey>, now: Now) {
        if let Some(exchange) = &mut self.exchange {
            exchange.push(record, from, now.monotonic);
        }
    }

    /// Sends what waits for more to come, because nothing will.
    pub(super) fn tell_at_once(&mut self, now: Now) {
        let later = Now { monotonic: now.monotonic + crate::exchange::NEWS_DELAY, ..now };
        self.with_exchange(later, |exchange, context| exchange.handle_timeout(context));
        while let Some(output) = self.exchange.as_mut().and_then(Exchange::poll_output) {
            if let Output::Send { id, bytes } = output {
                self.commands.push_back(Command::SendFrame { id, bytes });
            }
        }
    }

    /// Hands an offer to a peer that there is a session with. Returns whether there is.
    pub(super) fn forward(
        &mut self,
        next: PublicKey,
        from: PublicKey,
        to: PublicKey,
        offer: Vec<u8>,
    ) -> bool {
        let forward = Forward { from, to, body: offer.into() };
        self.exchange.as_mut().is_some_and(|exchange| exchange.forward(next, forward))
    }

    /// Whether there is a session with a peer.
    pub(super) fn has_session(&self, key: PublicKey) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.is_connected(key))
    }

    fn with_exchange(&mut self, now: Now, act: impl FnOnce(&mut Exchange, &Context<'_, RecordView<'_>>)) {
        let Self { exchange: Some(exchange), keys, state, record, store, .. } = self else { return };
        let records = RecordView { own: record, peers: store };
        let secret = &state.wg_private_key;
        act(exchange, &Context { keys, secret, own: record, records: &records, now: now.monotonic });
    }

    fn follow_output(&mut self, output: Output, now: Now) {
        match output {
            Output::Dial(target) => self.commands.push_back(Command::Dial(target)),
            Output::Send { id, bytes } => self.commands.push_back(Command::SendFrame { id, bytes }),
            Output::Close { id, reason } => {
                tracing::debug!(session = id.0, %reason, "closing a session");
                self.commands.push_back(Command::CloseSession(id));
            }
            Output::Up { key, remote } => self.on_session_up(key, remote, now),
            Output::Down { key, reason } => tracing::info!(peer = %key, %reason, "a session is gone"),
            Output::Record { record, from, direct } => self.on_exchanged(record, from, direct, now),
            Output::Forwarded { by, forward } => self.on_forwarded(by, forward, now),
            Output::Misbehaved { key, reason } => {
                *self.drops.entry("misbehaved").or_default() += 1;
                tracing::warn!(peer = %key, %reason, "shut out a peer");
            }
        }
    }

    fn on_session_up(&mut self, key: PublicKey, remote: SocketAddr, now: Now) {
        tracing::info!(peer = %key, %remote, "a session is up");
        if let Some(peer) = self.store.get(key) {
            let port = peer.record().record().listen_port;
            self.add_candidate(key, SocketAddr::new(remote.ip(), port), Origin::Offer, now.monotonic);
        }
        self.targets_stale = true;
    }

    fn on_exchanged(&mut self, record: SignedRecord, from: PublicKey, direct: bool, now: Now) {
        let source = if direct { Source::Exchange } else { Source::ExchangeTransitive };
        // Nobody's address: what is refused is not the doing of the node that passed it on.
        let nowhere = Place { via: Via::WireGuard, address: SocketAddr::from(([0; 4], 0)) };
        if record.record().is_expired(now.wall, CLOCK_TOLERANCE) {
            return self.drop_input("expired", nowhere.address);
        }
        tracing::debug!(peer = %record.record().key, %from, direct, "a record came in an exchange");
        self.claim(Claim { record, source, endpoint: None, fresh: direct }, nowhere, now);
    }

    fn on_forwarded(&mut self, by: PublicKey, forward: Forward, now: Now) {
        let Forward { from, to, body } = forward;
        let nowhere = SocketAddr::from(([0; 4], 0));
        if to == self.state.wg_pubkey {
            return self.on_offer(by, from, &body, nowhere, now);
        }
        self.carry(from, to, body.to_vec(), nowhere, now);
    }

    /// Returns whom to hold sessions with.
    fn session_targets(&self, now: Now) -> Vec<Target> {
        let mut targets = self.bootstrap.clone();
        // Whoever was met on a link has announced itself there, however else it was heard of since.
        let is_beyond = |peer: &Peer| {
            let sources = || peer.sources.keys();
            !sources().any(|source| *source == Source::Lan)
                && sources().any(|source| *source != Source::Cache)
        };
        let reaches_out = !targets.is_empty() || self.store.iter().any(|(_, peer)| is_beyond(peer));
        if !reaches_out {
            return targets;
        }
        let own = self.state.wg_pubkey;
        let after = self.store.iter().filter(|(key, _)| *key > own);
        let ring = after.chain(self.store.iter().filter(|(key, _)| *key < own));
        let through_mesh =
            ring.filter(|(key, _)| self.live_endpoint(*key, now).is_some()).filter_map(|(key, peer)| {
                let record = peer.record().record();
                let (v4, v6) = plan::addresses_of(record, self.keys.network_id(), self.subnets);
                let ip = v4.map_or(v6, |addresses| addresses.v4.into());
                Some(Target { address: SocketAddr::new(ip, record.exchange_port?), expected: Some(key) })
            });
        targets.extend(through_mesh.take(RING));
        targets
    }
}
