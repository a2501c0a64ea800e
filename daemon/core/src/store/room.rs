//! Who gets a place where there are few, and what is passed on to others: both so that a member that invents nodes keeps no
//! honest one out and spreads its inventions slowly.

use std::time::Duration;

use super::{Outcome, Peer, PeerStore, Source, Tombstone, bury_in};
use crate::bucket::TokenBucket;
use crate::key::PublicKey;
use crate::time::Monotonic;

/// So long a peer that only others told of may have to wait until it is passed on (P-12), where nobody wants another span.
pub const MIN_AGE: Duration = Duration::from_secs(60);

/// So many peers that only others told of are passed on at once, and one more each [`NEWCOMER_INTERVAL`].
pub const NEWCOMER_BURST: u32 = 512;
const NEWCOMER_INTERVAL: Duration = Duration::from_millis(125);

pub(super) const fn newcomers() -> TokenBucket {
    TokenBucket::new(NEWCOMER_BURST, NEWCOMER_INTERVAL, Monotonic::from_nanos(0))
}

impl PeerStore {
    /// Decides whether what came from `source` is passed on yet.
    pub(super) fn withhold(&mut self, key: PublicKey, outcome: Outcome, source: Source, now: Monotonic) {
        if source.is_direct() {
            self.release(key);
        } else if outcome == Outcome::New && source != Source::Cache && !self.newcomers.take(now) {
            self.withheld.insert(key, now + self.min_age);
            self.hashes.forget(key);
        }
    }

    /// Whether a peer is held, or would be taken on the word of others.
    pub fn has_room_for(&self, key: PublicKey) -> bool {
        self.holds_place_for(key) || !self.unproved.is_empty()
    }

    pub(super) fn holds_place_for(&self, key: PublicKey) -> bool {
        self.peers.len() < self.capacity || self.peers.contains_key(&key) || self.pinned.contains(&key)
    }

    /// Makes room for one more, which proved to be there or is only told of. Returns whether that is possible.
    pub(super) fn evict(&mut self, for_proof: bool, now: Monotonic) -> bool {
        let is_hearsay = |(key, peer): &(&PublicKey, &Peer)| !peer.is_proved && !self.pinned.contains(*key);
        let had_its_time =
            |one: &(&PublicKey, &Peer)| for_proof || now.since(one.1.first_seen) >= self.min_age;
        let hearsay = self.peers.iter().filter(is_hearsay).filter(had_its_time);
        let Some((&oldest, _)) = hearsay.min_by_key(|(key, peer)| (peer.first_seen, **key)) else {
            return false;
        };
        let Some(peer) = self.peers.remove(&oldest) else { return false };
        let sequence = peer.record.record().sequence;
        // Whoever has it still would only tell of it again.
        bury_in(&mut self.silent, oldest, Tombstone { sequence, since: now });
        self.withheld.remove(&oldest);
        self.hashes.forget(oldest);
        self.unproved.remove(&oldest);
        self.evicted.push(oldest);
        true
    }

    /// Returns the peers that had to make room for others since this was last asked.
    pub fn take_evicted(&mut self) -> Vec<PublicKey> {
        std::mem::take(&mut self.evicted)
    }

    /// Whether other nodes may be told of a peer.
    pub fn may_pass_on(&self, key: PublicKey) -> bool {
        !self.withheld.contains_key(&key)
    }

    /// Lets other nodes be told of a peer.
    pub(super) fn release(&mut self, key: PublicKey) {
        if self.withheld.remove(&key).is_some() {
            self.hashes.forget(key);
        }
    }

    /// Lets go of what was withheld for long enough, and finds out what may make room for others.
    pub fn pass_on_withheld(&mut self, now: Monotonic) {
        let over = self.withheld.iter().filter(|(_, until)| **until <= now);
        for key in over.map(|(&key, _)| key).collect::<Vec<_>>() {
            self.release(key);
        }
        self.unproved.clear();
        if self.peers.len() >= self.capacity {
            let is_over = |peer: &Peer| !peer.is_proved && now.since(peer.first_seen) >= self.min_age;
            let over = self.peers.iter().filter(|(key, peer)| is_over(peer) && !self.pinned.contains(*key));
            self.unproved.extend(over.map(|(&key, _)| key));
        }
    }
}
