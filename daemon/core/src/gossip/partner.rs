//! What is remembered of one peer that gossips: how much it may say, and whether synchronising with it leads to anything.

use std::time::Duration;

use crate::bucket::TokenBucket;
use crate::time::Monotonic;

/// Datagrams that a peer may send at once; a first synchronisation with a thousand nodes takes about six hundred.
const BURST: u32 = 1024;
/// How often it may send one for ever.
const INTERVAL: Duration = Duration::from_millis(10);

/// Two that differ look again after this long, doubled while that leads to nothing: they may well disagree for long
/// about who is alive.
const FIRST_SYNC_WAIT: Duration = Duration::from_secs(5);
const LONGEST_SYNC_WAIT: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Partner {
    datagrams: TokenBucket,
    sync_at: Monotonic,
    sync_wait: Duration,
}

impl Partner {
    pub(super) const fn new(now: Monotonic) -> Self {
        Self { datagrams: TokenBucket::new(BURST, INTERVAL, now), sync_at: now, sync_wait: FIRST_SYNC_WAIT }
    }

    /// Whether it may send another datagram.
    pub(super) fn may_speak(&mut self, now: Monotonic) -> bool {
        self.datagrams.take(now)
    }

    /// Whether a summary of it deserves an answer now.
    pub(super) fn may_sync(&self, now: Monotonic) -> bool {
        self.sync_at <= now
    }

    /// Notes that a summary differed.
    pub(super) fn on_difference(&mut self, now: Monotonic) {
        self.sync_at = now + self.sync_wait;
        self.sync_wait = (self.sync_wait * 2).min(LONGEST_SYNC_WAIT);
    }

    /// Notes that a record moves, in either direction.
    pub(super) const fn on_progress(&mut self) {
        self.sync_wait = FIRST_SYNC_WAIT;
    }

    /// Whether a new one would do as well.
    pub(super) fn is_forgettable(&self, now: Monotonic) -> bool {
        self.datagrams.is_full(now) && self.sync_at + LONGEST_SYNC_WAIT <= now
    }
}
