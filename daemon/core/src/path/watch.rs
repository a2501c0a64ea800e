//! The watch over the path in use: whether it still works, while anything depends on it.

use std::net::SocketAddr;
use std::time::Duration;

use super::Paths;
use crate::time::Monotonic;

/// How often a path is pinged while it is used.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// For how long a path counts as used after traffic was seen on it: three readings of the kernel's counters.
pub const USED_FOR: Duration = Duration::from_secs(15);

/// After so many pings in a row without an answer a path counts as lost. At a loss of 30 % each way that happens
/// by chance to one in fifteen: it costs an attempt, not the path.
const MISSES: u32 = 4;

/// The path in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) address: SocketAddr,
    pub(super) next_ping: Option<Monotonic>,
    /// Whether the last ping of the watch is unanswered.
    pub(super) asked: bool,
    /// Pings in a row without an answer.
    pub(super) misses: u32,
    pub(super) lost: bool,
}

impl Current {
    pub(super) const fn new(address: SocketAddr, next_ping: Option<Monotonic>) -> Self {
        Self { address, next_ping, asked: false, misses: 0, lost: false }
    }
}

impl Paths {
    /// Makes sure soon that the path in use still works.
    pub fn verify(&mut self, now: Monotonic) {
        if let Some(current) = &mut self.current {
            let at = current.next_ping.map_or(now, |at| at.min(now));
            current.next_ping = Some(at);
        }
    }

    /// Takes note of traffic with the peer: for a while, the path in use is watched.
    pub fn note_traffic(&mut self, now: Monotonic) {
        self.used_until = Some(now + USED_FOR);
        if let Some(current) = &mut self.current
            && current.next_ping.is_none()
            && !current.lost
        {
            current.next_ping = Some(now);
        }
        if std::mem::take(&mut self.look_when_used) {
            self.begin(now);
        }
    }

    /// Whether traffic was seen lately.
    pub fn is_used(&self, now: Monotonic) -> bool {
        self.used_until.is_some_and(|until| now < until)
    }

    /// Whether the path in use was lost since this was last asked.
    pub const fn take_loss(&mut self) -> bool {
        std::mem::replace(&mut self.was_lost, false)
    }

    /// Returns the path in use if it is due for a ping, and judges it if the last was not answered in time.
    pub(super) fn watched_due(&mut self, now: Monotonic) -> Option<SocketAddr> {
        let current = self.current.as_mut()?;
        current.next_ping.filter(|&at| at <= now)?;
        let patience = self.candidates.get(&current.address)?.patience();
        if std::mem::replace(&mut current.asked, true) {
            current.misses += 1;
        }
        if current.misses >= MISSES {
            current.next_ping = None;
            if !std::mem::replace(&mut current.lost, true) {
                self.was_lost = true;
                self.attempt(now);
            }
            return None;
        }
        current.next_ping = Some(now + patience);
        Some(current.address)
    }

    pub(super) fn follow_answer_of_current(&mut self, now: Monotonic) {
        let is_used = self.is_used(now);
        if let Some(current) = &mut self.current {
            *current = Current::new(current.address, is_used.then_some(now + WATCH_INTERVAL));
        }
    }
}
