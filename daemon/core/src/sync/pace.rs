//! How often two nodes whose stores differ look again: they may well disagree for long about who is alive.

use std::time::Duration;

use crate::time::Monotonic;

/// The pause after a difference, doubled while that leads to nothing.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// The longest one, where nobody wants another.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// When summaries of one other node deserve an answer again.
#[derive(Debug)]
pub struct Pace {
    at: Monotonic,
    wait: Duration,
    longest: Duration,
}

impl Pace {
    /// Begins without a pause; the longest one will be this long.
    pub fn new(longest: Duration, now: Monotonic) -> Self {
        Self { at: now, wait: FIRST_WAIT.min(longest), longest }
    }

    /// Whether a summary deserves an answer now.
    pub fn may_sync(&self, now: Monotonic) -> bool {
        self.at <= now
    }

    /// Notes that a summary differed.
    pub fn on_difference(&mut self, now: Monotonic) {
        self.at = now + self.wait;
        self.wait = (self.wait * 2).min(self.longest);
    }

    /// Notes that a record moves, in either direction.
    pub fn on_progress(&mut self) {
        self.wait = FIRST_WAIT.min(self.longest);
    }

    /// Whether a new one would do as well.
    pub fn is_forgettable(&self, now: Monotonic) -> bool {
        self.at + self.longest <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn pauses_grow_while_looking_leads_to_nothing() {
        let mut pace = Pace::new(LONGEST_WAIT, at(0));
        assert!(pace.may_sync(at(0)));
        pace.on_difference(at(0));
        assert_eq!([4, 5].map(|now| pace.may_sync(at(now))), [false, true]);
        pace.on_difference(at(5));
        assert_eq!([14, 15].map(|now| pace.may_sync(at(now))), [false, true]);
        pace.on_progress();
        pace.on_difference(at(15));
        assert!(pace.may_sync(at(20)));
        (0..10).for_each(|_| pace.on_difference(at(20)));
        assert_eq!([319, 320].map(|now| pace.may_sync(at(now))), [false, true]);
        assert_eq!([619, 620].map(|now| pace.is_forgettable(at(now))), [false, true]);
    }

    #[test]
    fn the_longest_pause_may_be_chosen() {
        for (longest, pauses) in [(2, [2, 2, 2]), (7, [5, 7, 7])] {
            let mut pace = Pace::new(Duration::from_secs(longest), at(0));
            let mut now = 0;
            for pause in pauses {
                pace.on_difference(at(now));
                assert!(!pace.may_sync(at(now + pause - 1)) && pace.may_sync(at(now + pause)));
                now += pause;
            }
        }
    }
}
