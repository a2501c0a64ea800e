//! What a node remembers of its peers, and when it lets go.

use std::time::Duration;

use super::{Command, Mesh};
use crate::cache::{CacheEntry, MAX_AGE};
use crate::standing::Book;
use crate::store::{Claim, DEAD_AFTER, Outcome, Source};
use crate::time::{Now, WallClock};

/// How often the peer cache is written anyway (seed 003, W-D34).
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// How soon the peer cache is written after a change: late enough to take in a whole fleet's start at once.
const SAVE_AFTER_CHANGE: Duration = Duration::from_secs(2);

/// For this long after a start, peers from the cache are not contacted where they may be met on a LAN: the hello
/// exchange there is quicker than an initiation that comes too early.
pub(super) const CACHE_GRACE: Duration = Duration::from_secs(1);

impl Mesh {
    /// Takes up what an earlier run remembered. Call it before the first event. Returns how many entries were
    /// still good.
    pub fn restore(&mut self, entries: &[CacheEntry], now: Now) -> usize {
        self.restored = entries.iter().filter(|entry| self.restore_entry(entry, now)).count();
        self.restored
    }

    /// Takes up what an earlier run made of others. Call it before [`Mesh::restore`].
    pub fn take_book(&mut self, mut book: Book, now: Now) {
        book.prune(now.wall);
        book.removed().for_each(|key| self.store.refuse(key));
        self.book = book;
    }

    /// Returns what this node makes of others.
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// Has what this node makes of others written soon.
    pub(super) fn save_book_soon(&mut self, now: Now) {
        self.save_cache_at = self.save_cache_at.min(now.monotonic + SAVE_AFTER_CHANGE);
    }

    pub(super) fn on_peers_changed(&mut self, now: Now) {
        self.dirty = true;
        self.targets_stale = true;
        self.save_cache_at = self.save_cache_at.min(now.monotonic + SAVE_AFTER_CHANGE);
    }

    pub(super) fn remove_stale(&mut self, now: Now) {
        self.store.pass_on_withheld(now.monotonic);
        for key in self.store.remove_stale(now.monotonic) {
            tracing::info!(peer = %key, "forgot a peer that has been silent for ten minutes");
            self.forget(key);
            self.on_peers_changed(now);
        }
    }

    pub(super) fn save_cache(&mut self, now: Now) {
        self.save_cache_at = now.monotonic + SAVE_INTERVAL;
        if self.book.take_change() {
            self.commands.push_back(Command::SaveBook(self.book.clone()));
        }
        let observed = self.observed.as_ref();
        let entries = self.store.iter().map(|(key, peer)| {
            let silence = peer.silence(now.monotonic);
            let kernel =
                observed.and_then(|observed| observed.peers.get(&key)).and_then(|peer| peer.endpoint);
            let kernel = kernel.filter(|endpoint| self.relay_at(key, *endpoint).is_none());
            let remembered = peer.best_candidate(now.monotonic);
            CacheEntry {
                record: peer.record().into(),
                endpoint: kernel.or(remembered),
                last_seen: WallClock::from_millis(
                    now.wall
                        .as_millis()
                        .saturating_sub(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)),
                ),
            }
        });
        self.commands.push_back(Command::SaveCache(entries.collect()));
    }

    fn restore_entry(&mut self, entry: &CacheEntry, now: Now) -> bool {
        let silence = now.wall.since(entry.last_seen);
        if silence > MAX_AGE {
            return false;
        }
        let Some(record) = entry.record.verify(self.keys.network_id()) else { return false };
        let key = record.record().key;
        if key == self.state.wg_pubkey {
            return false;
        }
        let said = record.record().clone();
        let claim = Claim { record, source: Source::Cache, endpoint: entry.endpoint, fresh: false };
        let Self { store, keys, state, .. } = self;
        let pair = || keys.pair(&state.wg_private_key, state.wg_pubkey, key);
        // However long it was silent there is time to look for it: perhaps it was this node that was away.
        let heard_at = now.monotonic - silence.min(DEAD_AFTER);
        match store.claim_heard(claim, heard_at, pair, now.monotonic) {
            outcome @ (Outcome::New | Outcome::Updated | Outcome::Refreshed) => {
                if outcome == Outcome::New {
                    store.note_silence(key, silence, now.monotonic);
                }
                self.note_addresses(&said);
                true
            }
            Outcome::Departed | Outcome::Refused(_) => false,
        }
    }
}
