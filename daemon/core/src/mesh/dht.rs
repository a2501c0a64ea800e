//! The DHT as a source of peers: what its answers mean for the mesh, and what of the mesh is told there.
//!
//! Records of a board are claims, addresses of a swarm are leads for the exchange. The other end may not know of this node yet
//! and would drop its pings: so an attempt to reach a peer that only the DHT has told of begins with hellos that carry
//! the own record ([`Mesh::introduce_myself`]). Behind NATs both ends read the board and ping each other.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::{Command, Mesh, random};
use crate::contact::{Contact, HelloPlan, Place, Via};
use crate::dandelion::Dandelion;
use crate::dht::board::Slot;
use crate::dht::{Dht, DhtEvent, Found, Freshness, Health, MAX_ITEM_BYTES, Notice, Publication};
use crate::exchange::Target;
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::message::Phase;
use crate::record::{InvalidRecord, SignedRecord};
use crate::seal::{Kind, OVERHEAD_BYTES, Unopened, seal};
use crate::status::{DhtStatus, Source as SourceStatus, SourceState};
use crate::store::{Claim, Source};
use crate::time::{Monotonic, Now};

/// How far clocks may differ before a record from the DHT looks expired: as far as its names allow.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

/// How often it is looked whether this node reaches anybody.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A node that reaches nobody signs its record anew this often: those who have forgotten it take only what is newer.
const ALONE_REFRESH: Duration = Duration::from_secs(5 * 60);

/// The most records that are read of one notice; more do not fit.
const MAX_RECORDS: usize = 16;

/// The DHT, and what is known of this node for it.
pub(super) struct DhtSource {
    dht: Dht,
    /// Whom this node publishes, and who publishes it.
    pub(super) dandelion: Dandelion,
    alone: bool,
    looked_at: Option<Monotonic>,
}

impl DhtSource {
    pub(super) fn new(own: PublicKey, seed: [u8; 32], now: Now) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let dandelion = Dandelion::new(own, random(&mut rng));
        Self { dht: Dht::new(own, seed, now.monotonic), dandelion, alone: true, looked_at: None }
    }

    /// Whether this node reaches nobody.
    pub(super) const fn is_alone(&self) -> bool {
        self.alone
    }

    pub(super) fn poll_timeout(&self) -> Option<Monotonic> {
        self.dht.poll_timeout()
    }
}

impl Mesh {
    /// Follows what the shell tells of the DHT.
    pub(super) fn on_dht(&mut self, event: DhtEvent, now: Now) {
        let Some(source) = &mut self.dht else { return };
        match source.dht.handle(event, now.monotonic) {
            Some(Found::Addresses(addresses)) => self.on_swarm(addresses, now.monotonic),
            Some(Found::Item { slot, sequence, value }) => self.on_item(slot, sequence, &value, now),
            Some(Found::Nodes(nodes)) if !nodes.is_empty() => {
                self.commands.push_back(Command::SaveDhtNodes(nodes));
            }
            Some(Found::Nodes(_)) | None => {}
        }
    }

    /// Asks the DHT again soon: the host's links have changed.
    pub(super) fn hurry_dht(&mut self, now: Now) {
        if let Some(source) = &mut self.dht {
            source.dht.hurry(now.monotonic);
        }
    }

    /// Does what is due: rounds, notices.
    pub(super) fn drive_dht(&mut self, now: Now) {
        self.look_whether_alone(now);
        let sequence = self.publication(now).sequence;
        let Some(source) = &mut self.dht else { return };
        source.dht.note(source.alone, sequence, now.monotonic);
        source.dht.handle_timeout(&self.keys, now);
        if source.dht.is_ready_to_write() {
            self.write_to_dht(now);
        }
        while let Some(order) = self.dht.as_mut().and_then(|source| source.dht.poll_order()) {
            self.commands.push_back(Command::Dht(order));
        }
    }

    /// Returns the nodes that swarms have told of.
    pub(super) fn dht_leads(&self) -> impl Iterator<Item = Target> {
        let leads = self.dht.iter().flat_map(|source| source.dht.leads());
        leads.map(|address| Target { address, expected: None })
    }

    /// Sends a peer that only the DHT has told of this node's record, to wherever it may be.
    pub(super) fn introduce_myself(&mut self, key: PublicKey, now: Now) {
        let is_met = self.contacts.get(&key).and_then(Contact::proved_place).is_some();
        let Some(peer) = self.store.get(key).filter(|_| !is_met) else { return };
        let of_dht = |source: &Source| matches!(source, Source::Dht | Source::DhtTransitive);
        if !peer.sources.keys().any(of_dht) {
            return;
        }
        let (pair, known) = (peer.pair.clone(), peer.record().record().sequence);
        let paths = self.reach.paths.get(&key);
        let addresses: Vec<_> =
            paths.into_iter().flat_map(|paths| paths.candidates()).map(|(address, _)| address).collect();
        for address in addresses {
            let plan = HelloPlan {
                place: Place { via: Via::WireGuard, address },
                echo: None,
                phase: Phase::Heard,
                seen: None,
                ask: true,
                with_record: true,
            };
            self.send_hello(key, &pair, Some(known), plan, now);
        }
    }

    /// Returns how the source does, for `wgmesh status`.
    pub(super) fn dht_status(&self, now: Now) -> Option<SourceStatus> {
        let Health { last_ok, stored, nodes, error } = self.dht.as_ref()?.dht.health();
        let state = match (last_ok, &error) {
            (_, Some(_)) => SourceState::Failing,
            (None, None) => SourceState::Starting,
            (Some(_), None) => SourceState::Running,
        };
        let age_s = |at: Option<Monotonic>| at.map(|at| now.monotonic.since(at).as_secs());
        let dht = DhtStatus { nodes, last_stored_s: age_s(stored) };
        let name = Source::Dht.name().to_owned();
        Some(SourceStatus { name, state, last_ok_s: age_s(last_ok), error, dht: Some(dht) })
    }

    fn look_whether_alone(&mut self, now: Now) {
        let Some(source) = &self.dht else { return };
        if source.looked_at.is_some_and(|at| now.monotonic.since(at) < LOOK_INTERVAL) {
            return;
        }
        let alone = !self.store.iter().any(|(key, _)| self.is_reached(key, now));
        let Some(source) = &mut self.dht else { return };
        source.looked_at = Some(now.monotonic);
        let was_alone = std::mem::replace(&mut source.alone, alone);
        let is_old = now.monotonic.since(self.signed_at) >= ALONE_REFRESH;
        if alone && (!was_alone || is_old) {
            self.renew_record(now);
        }
    }

    fn write_to_dht(&mut self, now: Now) {
        let own = self.publication(now);
        let reached: Vec<_> =
            self.store.iter().map(|(key, _)| key).filter(|&key| self.is_reached(key, now)).collect();
        // Those whom anyone reaches are the most use to whoever reads it.
        let mut others: Vec<_> =
            reached.iter().filter_map(|&key| Some(self.store.get(key)?.record())).collect();
        others.sort_by_key(|record| !record.record().introducer);
        let published: Vec<_> =
            self.dht.iter().flat_map(|source| source.dandelion.published(now.wall)).collect();
        others.retain(|other| published.iter().all(|one| one.record().key != other.record().key));
        let records: Vec<_> = match self.is_private() {
            // Nobody may see that this node and those whom it reaches belong together.
            true => published,
            false => [&self.record].into_iter().chain(published).chain(others).collect(),
        };
        let notice = records.split_first().map_or_else(Vec::new, |(first, others)| {
            Notice::write(first, others.iter().copied(), MAX_ITEM_BYTES - OVERHEAD_BYTES)
        });
        let Self { dht: Some(source), keys, rng, .. } = self else { return };
        let reaches = |key: PublicKey| reached.binary_search(&key).is_ok();
        source.dht.write(own, keys, reaches, || seal(keys, Kind::Notice, &notice, now, rng), now);
    }

    /// Returns what this node writes.
    fn publication(&self, now: Now) -> Publication {
        let is_private = self.is_private();
        let own = (!is_private).then_some(&self.record);
        let published = self.dht.iter().flat_map(|source| source.dandelion.published(now.wall));
        let records: Vec<_> = own.into_iter().chain(published).map(|record| record.record()).collect();
        // Any change in any of them changes the sum.
        let sum = records.iter().fold(0, |sum: u64, record| sum.wrapping_add(record.sequence.0));
        let port = self.exchange_port.filter(|_| !is_private);
        Publication { sequence: Sequence(sum), is_empty: records.is_empty(), port }
    }

    /// Takes addresses for leads, but those of nodes that are known already.
    fn on_swarm(&mut self, addresses: Vec<SocketAddr>, now: Monotonic) {
        let own = self.mapped();
        let known = |address: &SocketAddr| {
            let is_same = |other: &SocketAddr| other.ip() == address.ip();
            own.iter().any(is_same)
                || self.store.iter().any(|(_, peer)| {
                    peer.record().record().candidates.iter().chain(peer.candidates.keys()).any(is_same)
                })
        };
        let fresh: Vec<_> =
            addresses.into_iter().filter(|address| self.is_candidate(*address) && !known(address)).collect();
        let Some(source) = &mut self.dht else { return };
        for address in fresh {
            self.targets_stale |= source.dht.note_lead(address, now);
        }
    }

    /// Reads what a slot holds. Nothing but its key's signature is checked before.
    fn on_item(&mut self, slot: Slot, sequence: i64, value: &[u8], now: Now) {
        let records = self.open_notice(value, now);
        let writer = match &records {
            Ok(records) => records.first().map(|record| record.record().key),
            Err(reason) => {
                self.drop_from_dht(reason);
                None
            }
        };
        if let Some(source) = &mut self.dht {
            source.dht.note_occupant(slot, writer, sequence);
        }
        for record in records.unwrap_or_default() {
            let is_writer = Some(record.record().key) == writer;
            self.take_from_dht(record, if is_writer { Source::Dht } else { Source::DhtTransitive }, now);
        }
    }

    fn open_notice(&mut self, value: &[u8], now: Now) -> Result<Vec<SignedRecord>, &'static str> {
        if value.len() > MAX_ITEM_BYTES {
            return Err("dht oversized");
        }
        let (kind, content) = self.opener.open(&self.keys, value, now).map_err(|error| match error {
            Unopened::Size => "dht size",
            Unopened::Version | Unopened::Tag => "dht unknown",
            Unopened::Seal => "dht forged",
        })?;
        let notice = Notice::decode(&content).filter(|_| kind == Kind::Notice).ok_or("dht unknown")?;
        let verify = |bytes: &[u8]| {
            SignedRecord::verify(bytes, self.keys.network_id()).map_err(|error| match error {
                InvalidRecord::TooLong | InvalidRecord::Malformed => "dht malformed",
                InvalidRecord::Signature => "dht forged",
                InvalidRecord::Meaning(_) => "dht meaning",
            })
        };
        notice.records.iter().take(MAX_RECORDS).map(|bytes| verify(bytes)).collect()
    }

    fn take_from_dht(&mut self, record: SignedRecord, source: Source, now: Now) {
        let (key, sequence) = (record.record().key, record.record().sequence);
        let Some(dht) = self.dht.as_mut().map(|source| &mut source.dht) else { return };
        if key == self.state.wg_pubkey {
            return;
        }
        if record.record().is_expired(now.wall, CLOCK_TOLERANCE) {
            return self.drop_from_dht("dht expired");
        }
        match dht.freshness(key, sequence, now.monotonic) {
            Freshness::New => {
                tracing::debug!(peer = %key, source = source.name(), "a record came from the DHT");
                let nowhere = Place { via: Via::WireGuard, address: SocketAddr::from(([0; 4], 0)) };
                self.claim(Claim { record, source, endpoint: None, fresh: false }, nowhere, now);
            }
            Freshness::Known => {}
            Freshness::Old => self.drop_from_dht("dht replayed"),
        }
    }

    pub(super) fn drop_from_dht(&mut self, reason: &'static str) {
        *self.drops.entry(reason).or_default() += 1;
        tracing::debug!(reason, "dropped a notice of the DHT");
    }
}
