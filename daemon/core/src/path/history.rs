//! What was tried to find a path to a peer: the last attempts, when each began and what it found how soon, and what stands in
//! the way. It is for those who ask why; nothing is decided by it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Effort, LastAnswer, Paths};
use crate::time::Monotonic;

/// How many attempts are remembered for each peer; the oldest makes room.
const REMEMBERED: usize = 8;

/// An attempt to find a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastAttempt {
    /// When it began.
    pub begun: Monotonic,
    /// The first path that it found, and how long that took.
    pub found: Option<(SocketAddr, Duration)>,
}

/// The attempts of late, the newest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History(VecDeque<PastAttempt>);

impl Paths {
    /// Goes through the attempts of late, the newest first.
    pub fn attempts(&self) -> impl Iterator<Item = &PastAttempt> {
        self.history.iter()
    }

    /// Returns when the next attempt begins, if one is still to begin.
    pub const fn next_attempt(&self) -> Option<Monotonic> {
        match self.effort {
            Effort::Rest { until } => Some(until),
            Effort::None | Effort::Attempt { .. } => None,
        }
    }

    /// Whether the last attempt found nobody to introduce the two.
    pub const fn lacks_introducer(&self) -> bool {
        self.without_introducer
    }

    /// Whether an introducer had a part in this.
    pub const fn was_introduced(&self) -> bool {
        self.introduced
    }

    /// Returns the last ping that was answered.
    pub const fn last_answer(&self) -> Option<LastAnswer> {
        self.last_answer
    }

    /// Returns how many attempts in a row have failed.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

impl History {
    pub(super) fn begin(&mut self, now: Monotonic) {
        self.0.push_front(PastAttempt { begun: now, found: None });
        self.0.truncate(REMEMBERED);
    }

    /// Notes what the attempt that is under way has found, if it is the first.
    pub(super) fn find(&mut self, address: SocketAddr, now: Monotonic) {
        if let Some(attempt) = self.0.front_mut() {
            attempt.found.get_or_insert((address, now.since(attempt.begun)));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PastAttempt> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Peer, address, at};
    use super::super::{Kind, Origin};
    use super::*;

    /// P-2: what was tried, when, and how long it took.
    #[test]
    fn attempts_are_remembered_with_what_they_found_and_how_soon() {
        let mut peer = Peer::new(&[(1, Kind::Ipv4, None)]);
        peer.paths.begin(at(0));
        peer.run(0, 100_000);
        let attempts: Vec<_> = peer.paths.attempts().copied().collect();
        let begun = |attempt: &PastAttempt| attempt.begun.since(at(0)).as_secs();
        assert_eq!(attempts.iter().map(begun).collect::<Vec<_>>(), [95, 61, 33, 17, 7, 0]);
        assert!(attempts.iter().all(|attempt| attempt.found.is_none()));

        peer.paths.add(address(2), Origin::Offer, Kind::Ipv4, at(100_000));
        peer.rtt.insert(address(2), 40);
        peer.paths.begin(at(100_000));
        peer.run(100_000, 110_000);
        let last = *peer.paths.attempts().next().unwrap();
        assert_eq!(
            last,
            PastAttempt { begun: at(100_000), found: Some((address(2), Duration::from_millis(40))) }
        );

        for attempt in 0..20 {
            peer.paths.begin(at(200_000 + attempt * 10_000));
            peer.run(200_000 + attempt * 10_000, 205_000 + attempt * 10_000);
        }
        assert_eq!(peer.paths.attempts().count(), REMEMBERED);
    }
}
