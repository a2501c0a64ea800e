//! Gossip over the mesh: whom a datagram is from, whom it goes to, and what comes of it.
//!
//! A peer is told apart by its mesh address, which WireGuard lets nobody else send from. The address follows from the
//! peer's key, so no other node can claim it; where two derive the same one, it is the lower key's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Command, Mesh};
use crate::config::Settings;
use crate::dandelion;
use crate::gossip::{Company, Context, Gossip, Output, Refused, SILENCE_TO_ASK};
use crate::key::PublicKey;
use crate::plan;
use crate::record::{InvalidRecord, Record, SignedRecord};
use crate::standing::Deed;
use crate::status::{Source as SourceStatus, SourceState};
use crate::store::Source;
use crate::sync::RecordView;
use crate::time::{Monotonic, Now};

/// For this long after a start peers are met on links, which is quicker: whom gossip tells of is at no link of ours.
const LAN_GRACE: Duration = Duration::from_secs(1);

/// Gossip, and which peer has which mesh address.
pub(super) struct Talk {
    gossip: Gossip,
    /// At most two for each peer of the store.
    owners: BTreeMap<IpAddr, PublicKey>,
    /// At most one for each peer of the store.
    said: BTreeMap<PublicKey, Said>,
}

/// What was gossiped to a peer.
struct Said {
    /// The most that WireGuard may have sent for it since the last reading.
    bytes: u64,
    last: Monotonic,
}

/// The most that a datagram costs besides its own bytes: headers of IPv6 and UDP, WireGuard's padding, head and tag.
const TUNNEL_BYTES: u64 = 40 + 8 + 15 + 32;

/// For this long after a datagram of gossip, word of packets that stay unanswered may be of that one.
const WORD_DELAY: Duration = Duration::from_millis(100);

impl Talk {
    pub(super) fn new(settings: &Settings, seed: [u8; 32], now: Monotonic) -> Self {
        let begin = if settings.lan { now + LAN_GRACE } else { now };
        Self { gossip: Gossip::new(seed, begin, now), owners: BTreeMap::new(), said: BTreeMap::new() }
    }

    pub(super) fn poll_timeout(&self) -> Monotonic {
        self.gossip.poll_timeout()
    }
}

impl Mesh {
    /// Follows a datagram that came to this node's mesh address.
    pub(super) fn on_gossip(&mut self, from: SocketAddr, bytes: &[u8], now: Now) {
        let is_gossip_port = from.port() == self.keys.gossip_port();
        let Some(key) = self.owner_of(from.ip()).filter(|_| is_gossip_port) else {
            return self.drop_input("gossip of a stranger", from);
        };
        if self.book.is_shut_out(key, now.wall) {
            return self.drop_input("gossip of one shut out", from);
        }
        if let Some(Err(refused)) =
            self.with_gossip(now, |gossip, context| gossip.handle(key, bytes, context))
        {
            tracing::debug!(peer = %key, %refused, "dropped gossip");
            self.drop_input(refused.name(), from);
            if refused == Refused::Record(InvalidRecord::Signature) {
                // Nobody passes on what they have not verified, and the tunnel proves who has said it.
                self.book.note_seen(key, now.wall);
                self.judge(key, Deed::BadRecord, now);
            }
        }
    }

    /// Does what is due in gossip, and what follows from it.
    pub(super) fn drive_gossip(&mut self, now: Now) {
        let Some(talk) = &self.talk else { return };
        if talk.gossip.wants_turn(now.monotonic) {
            let company = self.company(now);
            self.with_gossip(now, |gossip, context| gossip.handle_timeout(&company, context));
        }
        self.follow_gossip(now);
    }

    /// Tells some peers of a record.
    pub(super) fn gossip_about(&mut self, record: &SignedRecord, from: Option<PublicKey>, now: Now) {
        if let Some(talk) = &mut self.talk {
            talk.gossip.push(record, from, now.monotonic);
        }
    }

    /// Begins with a peer to which a tunnel has come up.
    pub(super) fn gossip_with(&mut self, key: PublicKey, now: Now) {
        if let Some(talk) = &mut self.talk {
            talk.gossip.meet(key, now.monotonic);
        }
    }

    /// Says something of records that are to be published.
    pub(super) fn gossip_stem(&mut self, output: dandelion::Output) {
        let Some(talk) = &mut self.talk else { return };
        match output {
            dandelion::Output::Stem { to, record, hops } => talk.gossip.send_stem(to, &record, hops),
            dandelion::Output::Done { to, entry } => talk.gossip.send_done(to, entry),
        }
    }

    /// Sends what waits for more to come, because nothing will.
    pub(super) fn gossip_at_once(&mut self, now: Now) {
        let company = self.company(now);
        self.with_gossip(now, |gossip, context| gossip.flush(&company, context));
        self.follow_gossip(now);
    }

    /// Learns which addresses are a peer's.
    pub(super) fn note_addresses(&mut self, record: &Record) {
        let (network_id, subnets) = (self.keys.network_id(), self.subnets);
        let (v4, v6) = plan::addresses_of(record, network_id, subnets);
        let Some(talk) = &mut self.talk else { return };
        for address in v4.map(|both| IpAddr::from(both.v4)).into_iter().chain([v6]) {
            let owner = talk.owners.entry(address).or_insert(record.key);
            let is_in_vain = |key| {
                self.store.get(key).is_none_or(|peer| {
                    let (v4, v6) = plan::addresses_of(peer.record().record(), network_id, subnets);
                    v6 != address && v4.is_none_or(|both| IpAddr::from(both.v4) != address)
                })
            };
            if record.key < *owner || is_in_vain(*owner) {
                *owner = record.key;
            }
        }
    }

    /// Lets go of what gossip keeps for a peer.
    pub(super) fn forget_gossip(&mut self, key: PublicKey) {
        if let Some(talk) = &mut self.talk {
            talk.gossip.forget(key);
            talk.said.remove(&key);
        }
        self.forget_addresses(key);
    }

    /// Forgets which addresses a peer had.
    pub(super) fn forget_addresses(&mut self, key: PublicKey) {
        if let Some(talk) = &mut self.talk {
            talk.owners.retain(|_, owner| *owner != key);
        }
    }

    /// Returns the state of gossip for `status`.
    pub(super) fn gossip_status(&self, now: Now) -> Option<SourceStatus> {
        let last = self.talk.as_ref()?.gossip.last_heard();
        let state = if last.is_some() { SourceState::Running } else { SourceState::Starting };
        let last_ok_s = last.map(|at| now.monotonic.since(at).as_secs());
        Some(SourceStatus {
            name: Source::Gossip.name().to_owned(),
            state,
            last_ok_s,
            error: None,
            dht: None,
        })
    }

    /// Returns how much of what WireGuard has sent a peer since this was last asked may be gossip.
    pub(super) fn take_gossiped(&mut self, key: PublicKey) -> u64 {
        let said = self.talk.as_mut().and_then(|talk| talk.said.get_mut(&key));
        said.map_or(0, |said| std::mem::take(&mut said.bytes))
    }

    /// Whether the last packet to a peer may have been gossip, which need not be answered.
    pub(super) fn just_gossiped(&self, key: PublicKey, now: Now) -> bool {
        let said = self.talk.as_ref().and_then(|talk| talk.said.get(&key));
        said.is_some_and(|said| now.monotonic.since(said.last) < WORD_DELAY)
    }

    fn owner_of(&self, address: IpAddr) -> Option<PublicKey> {
        let key = *self.talk.as_ref()?.owners.get(&address)?;
        let record = self.store.get(key)?.record().record();
        let (v4, v6) = plan::addresses_of(record, self.keys.network_id(), self.subnets);
        (v6 == address || v4.is_some_and(|both| IpAddr::from(both.v4) == address)).then_some(key)
    }

    /// Returns the peers that gossip can go to.
    pub(super) fn reached_by_gossip(&self, now: Now) -> Vec<PublicKey> {
        let observed = self.observed.iter().flat_map(|observed| observed.peers.keys().copied());
        let known = observed.filter(|key| self.store.get(*key).is_some());
        known.filter(|key| self.live_endpoint(*key, now).is_some()).collect()
    }

    fn company(&self, now: Now) -> Company {
        let silent = self
            .store
            .iter()
            .filter(|(_, peer)| peer.silence(now.monotonic) >= SILENCE_TO_ASK)
            .map(|(key, _)| key);
        Company { reached: self.reached_by_gossip(now), silent: silent.collect() }
    }

    fn with_gossip<T>(
        &mut self,
        now: Now,
        act: impl FnOnce(&mut Gossip, &Context<'_, RecordView<'_>>) -> T,
    ) -> Option<T> {
        let Self { talk: Some(talk), keys, state, record, store, .. } = self else { return None };
        let records = RecordView { own: record, peers: store, now: now.monotonic };
        let (network_id, own) = (keys.network_id(), state.wg_pubkey);
        let context = Context { network_id, own, records: &records, now: now.monotonic };
        Some(act(&mut talk.gossip, &context))
    }

    fn follow_gossip(&mut self, now: Now) {
        while let Some(outputs) = self.talk.as_mut().map(|talk| talk.gossip.take_outputs()) {
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.follow_gossip_output(output, now);
            }
        }
    }

    pub(super) fn follow_gossip_output(&mut self, output: Output, now: Now) {
        match output {
            Output::Send { to, bytes } => {
                let Some(ip) = self.inner_ip(to) else { return };
                let address = SocketAddr::new(ip, self.keys.gossip_port());
                if let Some(talk) = &mut self.talk {
                    let said = talk.said.entry(to).or_insert(Said { bytes: 0, last: now.monotonic });
                    said.bytes += bytes.len() as u64 + TUNNEL_BYTES;
                    said.last = now.monotonic;
                }
                self.commands.push_back(Command::Gossip { to: address, bytes });
            }
            Output::Record { record, from, heard_at } => {
                let key = record.record().key;
                let source = if key == from { Source::Gossip } else { Source::GossipTransitive };
                tracing::debug!(peer = %key, %from, source = source.name(), "a record came by gossip");
                self.on_told(record, source, heard_at, now);
            }
            Output::Heard { key, at } => self.store.note_heard(key, at, now.monotonic),
            Output::Stem { record, from, hops } => self.on_stem(from, record, hops, now),
            Output::Done { entry, from } => self.on_done(from, entry),
        }
    }
}
