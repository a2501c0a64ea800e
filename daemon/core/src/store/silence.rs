//! For how long a peer was not heard, by anybody of whom this node knows, and what follows when that is too long.
//!
//! Invariant: nobody's word makes a peer younger than somebody has really heard it, and what a cache or another node says is
//! kept to the second, so that nodes that tell each other do not keep a dead one alive.

use std::time::Duration;

use super::{Peer, PeerStore, REMOVED_AFTER, SILENT_FOR, Tombstone, bury_in};
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::time::Monotonic;

impl Peer {
    /// Returns for how long nobody is known to have heard it.
    pub const fn silence(&self, now: Monotonic) -> Duration {
        now.since(self.last_seen).saturating_add(self.silent_before)
    }

    pub(super) fn note_proof(&mut self, at: Monotonic, now: Monotonic) {
        self.note_heard(at, now);
        self.is_proved = true;
    }

    fn note_heard(&mut self, at: Monotonic, now: Monotonic) {
        if now.since(at) <= self.silence(now) {
            self.last_seen = self.last_seen.max(at.min(now));
            self.silent_before = self.last_seen.since(at);
        }
    }
}

impl PeerStore {
    /// Notes that the kernel heard from a peer at some time until now.
    pub fn touch(&mut self, key: PublicKey, at: Monotonic, now: Monotonic) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.note_proof(at, now);
            self.release(key);
        }
    }

    /// Notes that somebody else heard from a peer at some time until now.
    pub fn note_heard(&mut self, key: PublicKey, at: Monotonic, now: Monotonic) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.note_heard(at, now);
        }
    }

    /// Notes for how long an earlier run had not heard a peer. That counts for others; this node looks for it all the same.
    pub fn note_silence(&mut self, key: PublicKey, silence: Duration, now: Monotonic) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.silent_before = silence.saturating_sub(now.since(peer.last_seen));
        }
    }

    /// Counts no time for a while in which nothing could be heard.
    pub fn skip(&mut self, span: Duration) {
        for peer in self.peers.values_mut() {
            peer.last_seen = peer.last_seen + span;
            peer.candidates
                .values_mut()
                .for_each(|candidate| candidate.last_seen = candidate.last_seen + span);
        }
        self.next_removal = self.first_removal();
    }

    /// Forgets peers without news for [`REMOVED_AFTER`] and returns them.
    pub fn remove_stale(&mut self, now: Monotonic) -> Vec<PublicKey> {
        if self.next_removal.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let stale = |(key, peer): &(&PublicKey, &Peer)| {
            now.since(peer.last_seen) >= REMOVED_AFTER && !self.pinned.contains(*key)
        };
        let keys: Vec<_> = self.peers.iter().filter(stale).map(|(&key, _)| key).collect();
        self.silent.retain(|_, tombstone| now.since(tombstone.since) < SILENT_FOR);
        for key in &keys {
            let Some(peer) = self.peers.remove(key) else { continue };
            self.withheld.remove(key);
            self.hashes.forget(*key);
            // Of one that never was heard itself, only its own silence towards others could tell.
            if peer.sources.keys().any(|source| source.is_direct()) {
                let sequence = peer.record.record().sequence;
                bury_in(&mut self.silent, *key, Tombstone { sequence, since: now });
            }
        }
        self.next_removal = self.first_removal();
        keys
    }

    /// Returns when [`PeerStore::remove_stale`] or [`PeerStore::pass_on_withheld`] may have something to do, and no earlier
    /// has.
    pub fn next_removal(&self) -> Option<Monotonic> {
        self.next_removal.into_iter().chain(self.withheld.values().copied()).min()
    }

    pub(super) fn first_removal(&self) -> Option<Monotonic> {
        let mortal = self.peers.iter().filter(|(key, _)| !self.pinned.contains(*key));
        mortal.map(|(_, peer)| peer.last_seen + REMOVED_AFTER).min()
    }

    /// Whether a peer was forgotten for its silence just now and this record is no sign of life.
    pub(super) fn fell_silent(&self, key: PublicKey, sequence: Sequence, now: Monotonic) -> bool {
        self.silent.get(&key).is_some_and(|tombstone| {
            sequence <= tombstone.sequence && now.since(tombstone.since) < SILENT_FOR
        })
    }
}
