//! How often two nodes whose stores differ look again: they may well disagree for long about who is alive.

use std::time::Duration;

use crate::time::Monotonic;

/// The pause after a difference, doubled while that leads to nothing.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// When summaries of one other node deserve an answer again.
#[derive(Debug)]
pub struct Pace {
    at: Monotonic,
    wait: Duration,
}

impl Pace {
    /// Begins without a pause.
    pub const fn new(now: Monotonic) -> Self {
        Self { at: now, wait: FIRST_WAIT }
    }

    /// Whether a summary deserves an answer now.
    pub fn may_sync(&self, now: Monotonic) -> bool {
        self.at <= now
    }

    /// Notes that a summary differed.
    pub fn on_difference(&mut self, now: Monotonic) {
        self.at = now + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    /// Notes that a record moves, in either direction.
    pub const fn on_progress(&mut self) {
        self.wait = FIRST_WAIT;
    }

    /// Whether a new one would do as well.
    pub fn is_forgettable(&self, now: Monotonic) -> bool {
        self.at + LONGEST_WAIT <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn pauses_grow_while_looking_leads_to_nothing() {
        let mut pace = Pace::new(at(0));
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
}
