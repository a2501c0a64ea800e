//! When the pings to a candidate are due: all of an attempt, or the few that compare it with the path in use, now or later.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Candidate, Paths};
use crate::time::Monotonic;

/// When the pings of an attempt go to a candidate, in milliseconds from its begin: dense where both sides are
/// likely to begin, sparse until [`super::ATTEMPT`] is over (seed 000, W-X23).
const SCHEDULE_MS: [u64; 12] = [0, 60, 160, 300, 450, 700, 1000, 1400, 1900, 2500, 3200, 3900];

/// How many pings an attempt sends to one candidate.
pub const PINGS_PER_CANDIDATE: usize = SCHEDULE_MS.len();

/// Once another path works, so many pings are enough to compare a candidate with it.
pub(super) const PINGS_TO_COMPARE: usize = 6;

/// How often a candidate that should be better is compared once more, and is not.
pub(super) const LOOKS: u32 = 3;

/// When the first time is; the next ones come after rests thrice as long each.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// The pings that are still to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) begun: Monotonic,
    step: usize,
}

impl Schedule {
    /// Returns all pings of an attempt.
    pub(super) const fn at(begun: Monotonic) -> Self {
        Self { begun, step: 0 }
    }

    /// Returns one ping at `at`, and nothing after it.
    fn only(at: Monotonic) -> Self {
        let step = PINGS_PER_CANDIDATE - 1;
        Self { begun: at - Duration::from_millis(SCHEDULE_MS[step]), step }
    }

    pub(super) fn due(self) -> Option<Monotonic> {
        SCHEDULE_MS.get(self.step).map(|&millis| self.begun + Duration::from_millis(millis))
    }
}

impl Candidate {
    /// Whether pings to it are under way; those of a later look are not.
    pub(super) fn is_pinged(&self, now: Monotonic) -> bool {
        self.schedule.is_some_and(|schedule| schedule.begun <= now)
    }

    /// Has it compared with the path in use once more, unless that was in vain often enough.
    pub(super) fn look_again(&mut self, now: Monotonic) {
        if self.looks < LOOKS {
            self.schedule = Some(Schedule::at(now + FIRST_LOOK * 3_u32.pow(self.looks)));
            self.looks += 1;
        }
    }
}

impl Paths {
    /// Pings one address beside the path in use, to see whether it is better.
    pub fn compare(&mut self, address: SocketAddr, now: Monotonic) {
        let current = self.current.map(|current| current.address);
        for address in current.into_iter().chain([address]) {
            if let Some(candidate) = self.candidates.get_mut(&address)
                && !candidate.is_pinged(now)
            {
                candidate.schedule = Some(Schedule::at(now));
            }
        }
    }

    /// Pings the path in use at once, and everything else that is known where there is none.
    pub fn ping_now(&mut self, now: Monotonic) {
        let current = self.current.filter(|current| !current.lost).map(|current| current.address);
        for (address, candidate) in &mut self.candidates {
            if current.is_none_or(|current| current == *address) && !candidate.is_pinged(now) {
                candidate.schedule = Some(Schedule::only(now));
            }
        }
    }

    /// Returns an address to which a ping of its schedule is due, and notes it as sent.
    pub(super) fn scheduled_due(&mut self, now: Monotonic) -> Option<SocketAddr> {
        let works_by = self.current_kind().filter(|_| self.works_directly());
        let pings = if works_by.is_some() { PINGS_TO_COMPARE } else { PINGS_PER_CANDIDATE };
        let due =
            |candidate: &Candidate| candidate.schedule.and_then(Schedule::due).is_some_and(|at| at <= now);
        let (&address, candidate) = self.candidates.iter_mut().find(|(_, candidate)| due(candidate))?;
        let schedule = candidate.schedule.as_mut()?;
        let is_look = schedule.step == 0 && candidate.looks > 0;
        schedule.step += 1;
        if schedule.step >= pings {
            candidate.schedule = None;
            if works_by.is_some_and(|kind| candidate.kind < kind) {
                candidate.look_again(now);
            }
        }
        if is_look {
            // What it is compared with is to be as fresh.
            self.compare(address, now);
        }
        Some(address)
    }
}
