//! The memory that tells a copy from a new message.

use std::time::Duration;

use crate::message::Stamp;
use crate::time::Monotonic;

/// For how long a message may have been on its way when later ones have come before it.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// Which stamps of one sender were seen: everything above the highest is new, and of the 64 below it what was not
/// seen yet (as RFC 6479 does for packets).
///
/// What was never taken, since it came before the sender's record or did not come at all, could be played back later
/// by whoever saw it pass. So nothing is new any more that is below what was the highest [`ON_THE_WAY`] ago.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReplayWindow(Option<Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    highest: Stamp,
    /// Which of the 64 up to the highest were taken.
    taken: u64,
    /// Up to here everything is too late.
    floor: Option<Stamp>,
    /// The next floor, and since when it waits.
    next_floor: (Stamp, Monotonic),
    /// When the last one was taken.
    last: Monotonic,
}

impl ReplayWindow {
    /// Whether it was not seen before. Takes note of it.
    pub(super) fn take(&mut self, stamp: Stamp, now: Monotonic) -> bool {
        let Some(seen) = &mut self.0 else {
            let next_floor = (stamp, now);
            self.0 = Some(Seen { highest: stamp, taken: 1, floor: None, next_floor, last: now });
            return true;
        };
        seen.raise_floor(now);
        let is_new = seen.floor.is_none_or(|floor| stamp > floor) && seen.take(stamp);
        if is_new {
            seen.last = now;
        }
        is_new
    }
}

impl Seen {
    fn raise_floor(&mut self, now: Monotonic) {
        if now.since(self.last) >= ON_THE_WAY {
            self.floor = Some(self.highest);
        } else if now.since(self.next_floor.1) >= ON_THE_WAY {
            self.floor = Some(self.next_floor.0);
            self.next_floor = (self.highest, now);
        }
    }

    fn take(&mut self, stamp: Stamp) -> bool {
        if stamp > self.highest {
            let gap = stamp.counter.saturating_sub(self.highest.counter);
            let shifted = if gap < 64 { self.taken << gap } else { 0 };
            let kept = if stamp.sequence == self.highest.sequence { shifted } else { 0 };
            (self.highest, self.taken) = (stamp, kept | 1);
            return true;
        }
        let age = self.highest.counter.saturating_sub(stamp.counter);
        if stamp.sequence != self.highest.sequence || age >= 64 || self.taken & (1 << age) != 0 {
            return false;
        }
        self.taken |= 1 << age;
        true
    }
}
