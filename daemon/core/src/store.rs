//! The peer store: every verified claim about another node, merged.
//!
//! Invariants:
//! - A record only ever gives way to one with a higher sequence, whatever arrives when and from where.
//! - At most `capacity` peers are held; at the cap a known peer is still updated, a stranger that proves to be there takes
//!   the place of a peer that only others told of, and one that others tell of the place of one that had [`MIN_AGE`] to prove
//!   to be there. So a member that invents nodes keeps no honest one out for long.
//! - What only others told of is passed on at once as long as it comes at the pace of a fleet that starts; beyond
//!   [`NEWCOMER_BURST`] it waits for [`MIN_AGE`], or until it proves to be there. So inventions spread slowly.
//! - Only direct evidence (a fresh hello, the kernel's own counters) keeps a peer alive, our own or that of a third
//!   node, which counts from the time that it was had. A claim from a cache does not: the dead stay dead.
//! - What left by its own goodbye comes back only with a newer record ([`Tombstone`]s, at most
//!   [`MAX_TOMBSTONES`], the oldest forgotten first).
//! - What fell silent comes back only by itself or with a newer record, for [`SILENT_FOR`]: nodes that still believe in
//!   it, each for a while longer than the last, would otherwise tell each other of it without end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bucket::TokenBucket;
use crate::derive::PairKeys;
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::time::Monotonic;

mod hashes;
mod room;
mod silence;

use hashes::BucketHashes;
pub use room::{MIN_AGE, NEWCOMER_BURST};

/// A peer without news for this long counts as dead (seed 003, W-D18).
pub const DEAD_AFTER: Duration = Duration::from_secs(5 * 60);

/// A peer without news for this long is forgotten; twice [`DEAD_AFTER`], so that a dead one is shown for a while.
pub const REMOVED_AFTER: Duration = Duration::from_secs(10 * 60);

/// For this long a third node's word does not bring back a peer that fell silent: somewhat longer than any node holds
/// one that it was only told of, which is [`REMOVED_AFTER`].
pub const SILENT_FOR: Duration = Duration::from_secs(11 * 60);

/// The most addresses remembered for one peer; the one longest unheard makes room.
pub const MAX_CANDIDATES: usize = 8;

/// The most departed nodes remembered; the one that left longest ago makes room.
pub const MAX_TOMBSTONES: usize = 4096;

/// Who told us of a peer. The declared order is the order of trust in its addresses, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Our own file from an earlier run.
    Cache,
    /// Another node's exchange, about a third.
    #[serde(rename = "exchange-transitive")]
    ExchangeTransitive,
    /// Another node's notice in the DHT, about a third.
    #[serde(rename = "dht-transitive")]
    DhtTransitive,
    /// Another node's gossip, about a third.
    #[serde(rename = "gossip-transitive")]
    GossipTransitive,
    /// The node itself, in an exchange.
    Exchange,
    /// The node itself, by gossip from its own mesh address.
    Gossip,
    /// The node itself, by its notice in the DHT.
    Dht,
    /// The node itself, by what came to WireGuard's port.
    Incoming,
    /// The node itself, after both were introduced and WireGuard shook hands.
    #[serde(rename = "dht-rendezvous")]
    Rendezvous,
    /// The node itself, heard on a common link.
    Lan,
    /// The operator.
    Static,
}

impl Source {
    /// Returns the name that configuration and `status` use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::ExchangeTransitive => "exchange-transitive",
            Self::DhtTransitive => "dht-transitive",
            Self::GossipTransitive => "gossip-transitive",
            Self::Exchange => "exchange",
            Self::Gossip => "gossip",
            Self::Dht => "dht",
            Self::Incoming => "incoming",
            Self::Rendezvous => "dht-rendezvous",
            Self::Lan => "lan",
            Self::Static => "static",
        }
    }

    /// Returns how much an address from this source is worth beside others (REQUIREMENTS X-18).
    pub const fn rank(self) -> u8 {
        match self {
            Self::Static => 110,
            Self::Lan => 100,
            Self::Rendezvous => 90,
            Self::Incoming => 80,
            Self::Dht => 70,
            Self::Gossip => 65,
            Self::Exchange => 62,
            Self::DhtTransitive | Self::GossipTransitive => 40,
            Self::ExchangeTransitive => 35,
            Self::Cache => 20,
        }
    }

    /// Whether it speaks for the node's being alive now.
    const fn is_direct(self) -> bool {
        match self {
            Self::Lan | Self::Rendezvous | Self::Incoming | Self::Exchange | Self::Gossip => true,
            // A notice may outlive its writer by an hour.
            Self::Dht
            | Self::Cache
            | Self::ExchangeTransitive
            | Self::DhtTransitive
            | Self::GossipTransitive
            | Self::Static => false,
        }
    }
}

/// A verified record, where it came from, and the address that came with it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The record, its signature already checked.
    pub record: SignedRecord,
    /// Who told us.
    pub source: Source,
    /// Where the peer's WireGuard should answer, if the source knows.
    pub endpoint: Option<SocketAddr>,
    /// Whether the claim proves that the node is alive now: a fresh hello does, a replayable announce does not.
    pub fresh: bool,
}

/// What a claim did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer is new.
    New,
    /// Its record was replaced.
    Updated,
    /// Nothing changed but times and addresses.
    Refreshed,
    /// It said goodbye and is gone.
    Departed,
    /// The claim was refused.
    Refused(Refused),
}

/// Why a claim was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A newer record is known.
    #[error("an old record")]
    Stale,
    /// The node has left and this record is from before.
    #[error("a record of a node that left")]
    Departed,
    /// The store is full.
    #[error("the peer limit")]
    Full,
    /// The operator wants it gone.
    #[error("a record of a node that was removed")]
    Unwanted,
}

/// An address at which a peer may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who told us.
    pub source: Source,
    /// When it was last claimed.
    pub last_seen: Monotonic,
}

/// Everything known of one peer.
#[derive(Clone)]
pub struct Peer {
    record: SignedRecord,
    /// The pair's keys, computed once.
    pub pair: PairKeys,
    /// Every source that ever told of it, with the last time.
    pub sources: BTreeMap<Source, Monotonic>,
    /// Where its WireGuard may answer.
    pub candidates: BTreeMap<SocketAddr, Candidate>,
    /// When it was first heard of in this run.
    pub first_seen: Monotonic,
    /// When it last proved to be alive, or was first heard of.
    pub last_seen: Monotonic,
    /// For how much longer than since then an earlier run had not heard it, until it is heard of.
    silent_before: Duration,
    /// Whether it ever proved to be there in this run.
    is_proved: bool,
}

impl Peer {
    /// Returns its newest record.
    pub const fn record(&self) -> &SignedRecord {
        &self.record
    }

    /// Returns the address to try first: by rank of source, then IPv6 first, then the latest, then the lowest.
    /// An address unheard for [`DEAD_AFTER`] ranks with the cache: no rank outlives its reason.
    pub fn best_candidate(&self, now: Monotonic) -> Option<SocketAddr> {
        let rank = |candidate: &Candidate| match now.since(candidate.last_seen) < DEAD_AFTER {
            true => candidate.source.rank(),
            false => Source::Cache.rank(),
        };
        self.candidates
            .iter()
            .max_by_key(|(address, candidate)| {
                (rank(candidate), address.is_ipv6(), candidate.last_seen, std::cmp::Reverse(**address))
            })
            .map(|(&address, _)| address)
    }

    fn note(&mut self, source: Source, endpoint: Option<SocketAddr>, is_proof: bool, now: Monotonic) {
        self.sources.insert(source, now);
        if is_proof {
            self.note_proof(now, now);
        }
        if let Some(endpoint) = endpoint {
            self.add_candidate(endpoint, source, now);
        }
    }

    fn add_candidate(&mut self, address: SocketAddr, source: Source, now: Monotonic) {
        let candidate = self.candidates.entry(address).or_insert(Candidate { source, last_seen: now });
        candidate.source = candidate.source.max(source);
        candidate.last_seen = now;
        while self.candidates.len() > MAX_CANDIDATES {
            let oldest = self.candidates.iter().min_by_key(|(_, candidate)| candidate.last_seen);
            let oldest = *oldest.expect("there are more than MAX_CANDIDATES").0;
            self.candidates.remove(&oldest);
        }
    }
}

/// A node that is gone.
#[derive(Clone, Copy, Debug)]
struct Tombstone {
    sequence: Sequence,
    since: Monotonic,
}

/// All known peers.
pub struct PeerStore {
    capacity: usize,
    peers: BTreeMap<PublicKey, Peer>,
    departed: BTreeMap<PublicKey, Tombstone>,
    silent: BTreeMap<PublicKey, Tombstone>,
    /// What the operator named: exempt from the limit, and never forgotten (P-9, W-D19).
    pinned: BTreeSet<PublicKey>,
    /// What the operator wants gone.
    unwanted: BTreeSet<PublicKey>,
    /// What is not passed on before then.
    withheld: BTreeMap<PublicKey, Monotonic>,
    newcomers: TokenBucket,
    min_age: Duration,
    /// What has had [`MIN_AGE`] to prove to be there, where there is no room.
    unproved: BTreeSet<PublicKey>,
    /// What has made room since this was last asked.
    evicted: Vec<PublicKey>,
    hashes: BucketHashes,
    /// Not after the first peer is stale. Peers that are heard meanwhile only make that later.
    next_removal: Option<Monotonic>,
}

impl PeerStore {
    /// Makes an empty store for at most `capacity` peers, in which hearsay waits for `min_age`, usually [`MIN_AGE`].
    pub const fn new(capacity: usize, min_age: Duration) -> Self {
        Self {
            capacity,
            peers: BTreeMap::new(),
            departed: BTreeMap::new(),
            silent: BTreeMap::new(),
            pinned: BTreeSet::new(),
            unwanted: BTreeSet::new(),
            withheld: BTreeMap::new(),
            newcomers: room::newcomers(),
            min_age,
            unproved: BTreeSet::new(),
            evicted: Vec::new(),
            hashes: BucketHashes::new(),
            next_removal: None,
        }
    }

    /// Takes in a claim; `pair` computes the pair's keys if the peer is new.
    pub fn claim(&mut self, claim: Claim, pair: impl FnOnce() -> PairKeys, now: Monotonic) -> Outcome {
        self.claim_heard(claim, now, pair, now)
    }

    /// Takes in a claim of a third node, to whose knowledge the peer was last heard by anybody at `heard_at`.
    pub fn claim_heard(
        &mut self,
        claim: Claim,
        heard_at: Monotonic,
        pair: impl FnOnce() -> PairKeys,
        now: Monotonic,
    ) -> Outcome {
        let key = claim.record.record().key;
        let sequence = claim.record.record().sequence;
        if let Some(refused) = self.refusal(key, sequence) {
            return Outcome::Refused(refused);
        }
        if !claim.source.is_direct() && self.fell_silent(key, sequence, now) {
            return Outcome::Refused(Refused::Departed);
        }
        if claim.record.record().is_goodbye() {
            return self.bury(key, sequence, now);
        }
        let is_proof = claim.fresh && claim.source.is_direct();
        if !self.holds_place_for(key) && !self.evict(is_proof, now) {
            return Outcome::Refused(Refused::Full);
        }
        let (outcome, peer) = match self.peers.entry(key) {
            std::collections::btree_map::Entry::Occupied(entry) => {
                let peer = entry.into_mut();
                let newer = sequence > peer.record.record().sequence;
                if newer {
                    peer.record = claim.record;
                    self.hashes.forget(key);
                }
                (if newer { Outcome::Updated } else { Outcome::Refreshed }, peer)
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                self.departed.remove(&key);
                self.silent.remove(&key);
                self.hashes.forget(key);
                self.next_removal = earliest(self.next_removal, heard_at.min(now) + REMOVED_AFTER);
                (Outcome::New, entry.insert(Peer::new(claim.record, pair(), heard_at.min(now), now)))
            }
        };
        peer.note(claim.source, claim.endpoint, is_proof, now);
        self.withhold(key, outcome, claim.source, now);
        outcome
    }

    /// Says why a record of this sequence would be refused, before its signature is even checked.
    pub fn refusal(&self, key: PublicKey, sequence: Sequence) -> Option<Refused> {
        if self.unwanted.contains(&key) {
            return Some(Refused::Unwanted);
        }
        if self.departed.get(&key).is_some_and(|tombstone| sequence <= tombstone.sequence) {
            return Some(Refused::Departed);
        }
        match self.peers.get(&key) {
            Some(peer) if sequence < peer.record.record().sequence => Some(Refused::Stale),
            None if !self.holds_place_for(key) && self.peers.values().all(|peer| peer.is_proved) => {
                Some(Refused::Full)
            }
            Some(_) | None => None,
        }
    }

    /// Exempts a peer from the limit and from being forgotten.
    pub fn pin(&mut self, key: PublicKey) {
        self.pinned.insert(key);
        self.next_removal = self.first_removal();
    }

    /// Takes an exemption back.
    pub fn unpin(&mut self, key: PublicKey) {
        self.pinned.remove(&key);
        self.next_removal = self.first_removal();
    }

    /// Takes no record of a node any more.
    pub fn refuse(&mut self, key: PublicKey) {
        self.unwanted.insert(key);
    }

    /// Takes records of a node again, also the one that was held when it was removed.
    pub fn readmit(&mut self, key: PublicKey) {
        self.unwanted.remove(&key);
        self.departed.remove(&key);
    }

    /// Forgets a peer until it tells of itself with a newer record. Returns whether it was known.
    pub fn remove(&mut self, key: PublicKey, now: Monotonic) -> bool {
        self.pinned.remove(&key);
        let Some(peer) = self.peers.get(&key) else { return false };
        let sequence = peer.record.record().sequence;
        self.bury(key, sequence, now) == Outcome::Departed
    }

    /// Returns one peer.
    pub fn get(&self, key: PublicKey) -> Option<&Peer> {
        self.peers.get(&key)
    }

    /// Goes through all peers in rising order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (PublicKey, &Peer)> {
        self.peers.iter().map(|(&key, peer)| (key, peer))
    }

    /// Returns how many peers there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    fn bury(&mut self, key: PublicKey, sequence: Sequence, now: Monotonic) -> Outcome {
        bury_in(&mut self.departed, key, Tombstone { sequence, since: now });
        self.withheld.remove(&key);
        self.hashes.forget(key);
        match self.peers.remove(&key) {
            Some(_) => Outcome::Departed,
            None => Outcome::Refused(Refused::Departed),
        }
    }
}

fn earliest(one: Option<Monotonic>, other: Monotonic) -> Option<Monotonic> {
    Some(one.map_or(other, |one| one.min(other)))
}

fn bury_in(tombstones: &mut BTreeMap<PublicKey, Tombstone>, key: PublicKey, tombstone: Tombstone) {
    tombstones.insert(key, tombstone);
    while tombstones.len() > MAX_TOMBSTONES {
        let oldest = tombstones.iter().min_by_key(|(_, tombstone)| tombstone.since);
        let oldest = *oldest.expect("there are more than MAX_TOMBSTONES").0;
        tombstones.remove(&oldest);
    }
}

impl Peer {
    const fn new(record: SignedRecord, pair: PairKeys, last_seen: Monotonic, now: Monotonic) -> Self {
        Self {
            record,
            pair,
            sources: BTreeMap::new(),
            candidates: BTreeMap::new(),
            first_seen: now,
            last_seen,
            silent_before: Duration::ZERO,
            is_proved: false,
        }
    }
}

#[cfg(test)]
mod tests;
