//! The memory that tells a copy from a new message.

use crate::message::Stamp;

/// Which stamps of one sender were seen: everything above the highest is new, and of the 64 below it what was not
/// seen yet (as RFC 6479 does for packets).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReplayWindow {
    highest: Option<Stamp>,
    seen: u64,
}

impl ReplayWindow {
    /// Whether it was not seen before. Takes note of it.
    pub(super) fn take(&mut self, stamp: Stamp) -> bool {
        let Some(highest) = self.highest else {
            *self = Self { highest: Some(stamp), seen: 1 };
            return true;
        };
        if stamp > highest {
            let gap = stamp.counter.saturating_sub(highest.counter);
            let shifted = if gap < 64 { self.seen << gap } else { 0 };
            let kept = if stamp.sequence == highest.sequence { shifted } else { 0 };
            *self = Self { highest: Some(stamp), seen: kept | 1 };
            return true;
        }
        let age = highest.counter.saturating_sub(stamp.counter);
        if stamp.sequence != highest.sequence || age >= 64 || self.seen & (1 << age) != 0 {
            return false;
        }
        self.seen |= 1 << age;
        true
    }
}
