//! What is remembered of one peer that gossips: how much it may say, and whether synchronising with it leads to anything.

use std::time::Duration;

use crate::bucket::TokenBucket;
use crate::sync::{LONGEST_WAIT, Pace};
use crate::time::Monotonic;

/// Datagrams that a peer may send at once; a first synchronisation with a thousand nodes takes about six hundred.
const BURST: u32 = 1024;
/// How often it may send one for ever.
const INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Partner {
    datagrams: TokenBucket,
    pub(super) sync: Pace,
}

impl Partner {
    pub(super) fn new(now: Monotonic) -> Self {
        Self { datagrams: TokenBucket::new(BURST, INTERVAL, now), sync: Pace::new(LONGEST_WAIT, now) }
    }

    /// Whether it may send another datagram.
    pub(super) fn may_speak(&mut self, now: Monotonic) -> bool {
        self.datagrams.take(now)
    }

    /// Whether a new one would do as well.
    pub(super) fn is_forgettable(&self, now: Monotonic) -> bool {
        self.datagrams.is_full(now) && self.sync.is_forgettable(now)
    }
}
