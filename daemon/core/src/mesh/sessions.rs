//! Sessions with other nodes: with whom to have them, and what comes of them.
//!
//! Sessions are dialled to the bootstrap nodes, and by a node that knows of anyone beyond its own links also to the next
//! [`RING`] peers in the order of keys, through the mesh itself. So records reach every node of the mesh over few
//! sessions, behind whatever NAT; and a mesh that lives on one link has no session at all. What is left of
//! [`Places::target`](crate::pool::Places) goes to the peers that [`pool::choose`] prefers.
//!
//! The key that answers first behind a bootstrap node's name is held for that name: from then on only that node will do
//! . An operator who replaced the node says so by naming the new key, or forgets the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::lan::CLOCK_TOLERANCE;
use super::{Command, Mesh, Seed};
use crate::contact::{Place, Via};
use crate::exchange::{Context, Exchange, Forward, Misbehaviour, Output, SessionEvent, Target};
use crate::key::PublicKey;
use crate::path::Origin;
use crate::pool::{self, Network, Places, Prospect};
use crate::record::{InvalidRecord, SignedRecord};
use crate::standing::Deed;
use crate::store::{Claim, Peer, REMOVED_AFTER, Source};
use crate::sync::RecordView;
use crate::time::{Monotonic, Now};

/// With how many of its successors a node holds sessions.
const RING: usize = 2;

impl Mesh {
    /// Follows what the shell tells of a session.
    pub(super) fn on_session(&mut self, event: SessionEvent, now: Now) {
        self.with_exchange(now, |exchange, context| exchange.handle(event, context));
    }

    /// Takes the addresses of the bootstrap nodes.
    pub(super) fn on_bootstrap(&mut self, seeds: Vec<Seed>) {
        for Seed { name, target } in &seeds {
            if let (Some(name), Some(key)) = (name, target.expected) {
                self.book.pin(name, key);
            }
        }
        self.bootstrap = seeds;
        self.targets_stale = true;
    }

    /// Holds no key any more for a host, whatever its port and addresses.
    pub(super) fn forget_name(&mut self, host: &str) {
        self.book.unpin(|name| {
            name.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ':']))
        });
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
            let (named, learned) = (self.bootstrap_targets(), self.learned_targets(now));
            self.with_exchange(now, |exchange, context| exchange.want(named, learned, context.now));
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
        let may = record.record().is_goodbye() || self.store.may_pass_on(record.record().key);
        if let Some(exchange) = self.exchange.as_mut().filter(|_| may) {
            exchange.push(record, from, now.monotonic);
        }
        self.gossip_about(record, from, now);
    }

    /// Tells others of a record that its node has only signed anew. Gossip tells all whom it reaches for the least, and the next
    /// heartbeat finds whoever else lacks it: nothing depends on it sooner.
    pub(super) fn tell_of_renewal(&mut self, record: &SignedRecord, now: Now) {
        match self.talk {
            Some(_) => self.gossip_about(record, None, now),
            None => self.tell(record, None, now),
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
        let Self { exchange: Some(exchange), keys, state, record, store, book, .. } = self else { return };
        let records = RecordView { own: record, peers: store, now: now.monotonic };
        let (secret, Now { monotonic: now, wall }) = (&state.wg_private_key, now);
        act(exchange, &Context { keys, secret, own: record, records: &records, book, now, wall });
    }

    fn follow_output(&mut self, output: Output, now: Now) {
        match output {
            Output::Dial(target) => self.commands.push_back(Command::Dial(target)),
            Output::Send { id, bytes } => self.commands.push_back(Command::SendFrame { id, bytes }),
            Output::Close { id, reason } => {
                tracing::debug!(session = id.0, %reason, "closing a session");
                if let Some(refusal) = reason.refusal() {
                    *self.drops.entry(refusal).or_default() += 1;
                }
                self.commands.push_back(Command::CloseSession(id));
            }
            Output::Up { key, remote } => self.on_session_up(key, remote, now),
            Output::Down { key, reason } => {
                tracing::info!(peer = %key, %reason, "a session is gone");
                self.targets_stale = true;
            }
            Output::Met { address, key } => self.on_met(address, key),
            Output::Deed { key, deed } => self.judge(key, deed, now),
            Output::Record { record, from, direct, heard_at } => {
                let source = if direct { Source::Exchange } else { Source::ExchangeTransitive };
                tracing::debug!(peer = %record.record().key, %from, direct, "a record came in an exchange");
                self.on_told(record, source, heard_at, now);
            }
            Output::Forwarded { by, forward } => self.on_forwarded(by, forward, now),
            Output::Misbehaved { key, reason } => self.shut_out(key, reason, now),
        }
    }

    fn shut_out(&mut self, key: PublicKey, reason: Misbehaviour, now: Now) {
        if self.book.is_shut_out(key, now.wall) {
            return;
        }
        *self.drops.entry("misbehaved").or_default() += 1;
        tracing::warn!(peer = %key, %reason, "shut out a peer for a day");
        self.book.ban(key, now.wall);
        self.targets_stale = true;
        self.save_book_soon(now);
    }

    fn on_session_up(&mut self, key: PublicKey, remote: SocketAddr, now: Now) {
        tracing::info!(peer = %key, %remote, "a session is up");
        self.book.note_seen(key, now.wall);
        self.last_session = Some(now.monotonic);
        if let Some(peer) = self.store.get(key) {
            let port = peer.record().record().listen_port;
            self.add_candidate(key, SocketAddr::new(remote.ip(), port), Origin::Offer, now.monotonic);
        }
        self.targets_stale = true;
    }

    /// Takes a record that a peer has told, its own or another's that anybody has last heard at `heard_at`.
    pub(super) fn on_told(&mut self, record: SignedRecord, source: Source, heard_at: Monotonic, now: Now) {
        // Nobody's address: what is refused is not the doing of the node that passed it on.
        let nowhere = Place { via: Via::WireGuard, address: SocketAddr::from(([0; 4], 0)) };
        if record.record().is_expired(now.wall, CLOCK_TOLERANCE) {
            return self.drop_input("expired", nowhere.address);
        }
        if now.monotonic.since(heard_at) >= REMOVED_AFTER {
            return self.drop_input("dead", nowhere.address);
        }
        let key = record.record().key;
        self.claim_heard(Claim { record, source, endpoint: None, fresh: true }, heard_at, nowhere, now);
        self.store.note_heard(key, heard_at, now.monotonic);
    }

    fn on_forwarded(&mut self, by: PublicKey, forward: Forward, now: Now) {
        let Forward { from, to, body } = forward;
        let nowhere = SocketAddr::from(([0; 4], 0));
        if to == self.state.wg_pubkey {
            return self.on_offer(by, from, &body, nowhere, now);
        }
        self.carry(from, to, body.to_vec(), nowhere, now);
    }

    /// Holds a bootstrap node to the key that it has shown first.
    fn on_met(&mut self, address: SocketAddr, key: PublicKey) {
        let names = self.bootstrap.iter().filter(|seed| seed.target.address == address);
        for name in names.filter_map(|seed| seed.name.as_ref()) {
            if self.book.key_behind(name).is_none() {
                tracing::info!(name, peer = %key, "holding a bootstrap node to its key from now on");
                self.book.pin(name, key);
                self.targets_stale = true;
            }
        }
    }

    /// Holds a deed against a node, or for it, and shuts it out for the worst.
    pub(super) fn judge(&mut self, key: PublicKey, deed: Deed, now: Now) {
        if deed == Deed::Served {
            self.last_session = Some(now.monotonic);
        }
        let before = self.book.reputation(key).class();
        if self.book.judge(key, deed) {
            let reason = Misbehaviour::Record(InvalidRecord::Signature);
            match &mut self.exchange {
                // Its sessions end, and then it says so.
                Some(exchange) => exchange.shut_out(key, reason, now.monotonic),
                None => self.shut_out(key, reason, now),
            }
        }
        self.targets_stale |= self.book.reputation(key).class() != before;
    }

    /// Returns whom to hold sessions with besides the bootstrap nodes.
    fn learned_targets(&self, now: Now) -> Vec<Target> {
        // Whoever was met on a link has announced itself there, however else it was heard of since.
        let is_beyond = |peer: &Peer| {
            let sources = || peer.sources.keys();
            !sources().any(|source| *source == Source::Lan)
                && sources().any(|source| *source != Source::Cache)
        };
        let reaches_out = !self.bootstrap.is_empty() || self.store.iter().any(|(_, peer)| is_beyond(peer));
        if !reaches_out {
            return self.dht_leads().collect();
        }
        let Places { target, max } = self.settings.sessions;
        let failing = self.failing_targets();
        let (tried, through_mesh): (Vec<_>, Vec<_>) =
            self.prospects(now).into_iter().partition(|one| failing.contains(&one.key));
        let ring: Vec<PublicKey> = through_mesh.iter().take(RING.min(target)).map(|one| one.key).collect();
        let staying = self.staying_sessions();
        let rest =
            through_mesh.iter().filter(|one| !ring.contains(&one.key) && !staying.contains_key(&one.key));
        let held = ring.len() + staying.keys().filter(|key| !ring.contains(key)).count();
        let chosen =
            pool::choose(rest.copied().collect(), target.saturating_sub(held), staying.into_values());
        // Who fails takes nobody's place, but is tried again now and then.
        let tried = tried.into_iter().map(|one| one.key).take(target);
        let targets =
            ring.into_iter().chain(chosen).chain(tried).filter_map(|key| self.target_through_mesh(key));
        targets.take(max.saturating_sub(self.bootstrap.len())).chain(self.dht_leads()).collect()
    }

    /// Returns the nodes with which a session was wanted, and has failed.
    fn failing_targets(&self) -> BTreeSet<PublicKey> {
        let targets = self.exchange.iter().flat_map(Exchange::targets);
        let failing =
            targets.filter(|(_, target)| target.is_failing()).filter_map(|(_, target)| target.node());
        failing.filter(|key| !self.has_session(*key)).collect()
    }

    /// Returns the bootstrap nodes, each with the key that it is held to.
    fn bootstrap_targets(&self) -> Vec<Target> {
        let held = |seed: &Seed| {
            let pinned = seed.name.as_ref().and_then(|name| self.book.key_behind(name));
            Target { expected: pinned.or(seed.target.expected), ..seed.target }
        };
        self.bootstrap.iter().map(held).collect()
    }

    /// Returns the peers that a session could be had with through the mesh, in the order of keys from this node's on.
    fn prospects(&self, now: Now) -> Vec<Prospect> {
        let own = self.state.wg_pubkey;
        let after = self.store.iter().filter(|(key, _)| *key > own);
        let ring = after.chain(self.store.iter().filter(|(key, _)| *key < own));
        ring.filter(|(key, peer)| {
            peer.record().record().exchange_port.is_some() && !self.book.is_shut_out(*key, now.wall)
        })
        .filter_map(|(key, peer)| {
            let network = Network::of(self.live_endpoint(key, now)?.ip());
            let class = self.book.reputation(key).class();
            let is_limited =
                !peer.sources.keys().any(|source| matches!(source, Source::Lan | Source::Static));
            Some(Prospect { key, network, class, is_held: self.has_session(key), is_limited })
        })
        .collect()
    }

    /// Returns the nodes whose sessions stay whatever this node chooses: they dialed, or they are bootstrap nodes.
    fn staying_sessions(&self) -> BTreeMap<PublicKey, Network> {
        let is_seed = |remote: SocketAddr| self.bootstrap.iter().any(|seed| seed.target.address == remote);
        let sessions = self.exchange.iter().flat_map(Exchange::sessions);
        let staying = sessions.filter(|session| !session.dialed || is_seed(session.remote));
        staying.map(|session| (session.key, Network::of(session.remote.ip()))).collect()
    }

    fn target_through_mesh(&self, key: PublicKey) -> Option<Target> {
        let record = self.store.get(key)?.record().record();
        let address = SocketAddr::new(self.inner_ip(key)?, record.exchange_port?);
        Some(Target { address, expected: Some(key) })
    }
}
