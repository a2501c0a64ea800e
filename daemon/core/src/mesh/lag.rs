//! How late this node comes to do what is due. That tells that its host is busy: then it waits longer for answers and asks
//! more seldom, since where many are busy at once each question makes all of them busier.

use std::time::Duration;

use crate::time::Monotonic;

/// The most that counts: whoever comes later than that has stood still, which says nothing of the next second.
const LONGEST: Duration = Duration::from_secs(2);

/// How late it came, lately: what was seen counts half after each second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lag {
    seen: Duration,
    at: Monotonic,
}

impl Lag {
    /// Notes that something was due and is done now.
    pub(super) fn note(&mut self, due: Monotonic, now: Monotonic) {
        let late = now.since(due).min(LONGEST);
        if late >= self.now(now) {
            *self = Self { seen: late, at: now };
        }
    }

    /// Returns how late the node is to be expected to come.
    pub(super) fn now(self, now: Monotonic) -> Duration {
        let halvings = u32::try_from(now.since(self.at).as_secs()).unwrap_or(u32::MAX);
        1_u32.checked_shl(halvings).map_or(Duration::ZERO, |parts| self.seen / parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn what_came_late_counts_less_and_less() {
        let mut lag = Lag::default();
        assert_eq!(lag.now(at(5000)), Duration::ZERO);
        lag.note(at(5000), at(5400));
        let expected = [0, 999, 1000, 2500, 40_000].map(|later| lag.now(at(5400 + later)).as_millis());
        assert_eq!(expected, [400, 400, 200, 100, 0]);
        lag.note(at(6400), at(6450));
        assert_eq!(lag.now(at(6450)).as_millis(), 200, "one that came in time does not undo it");
        lag.note(at(6500), at(6800));
        assert_eq!(lag.now(at(6800)).as_millis(), 300);
    }

    #[test]
    fn a_standstill_counts_little() {
        let mut lag = Lag::default();
        lag.note(at(0), at(60_000));
        assert_eq!(lag.now(at(60_000)), LONGEST);
        assert_eq!(lag.now(at(64_000)), LONGEST / 16);
    }
}
