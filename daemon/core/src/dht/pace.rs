//! When the next round is due.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::bucket::TokenBucket;
use crate::identity::Sequence;
use crate::time::Monotonic;

/// The pause between rounds of a node that has reached somebody for a while (W-X29).
pub const QUERY_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The longest pause between rounds of a node that reaches nobody.
pub const ALONE_INTERVAL: Duration = Duration::from_secs(30);

/// The first pause of a node that reaches nobody; doubled after each round. Two hosts that start together have
/// written by the end of their first round, and read each other in the second.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The first pause of a node that has just come to reach somebody; doubled after each round up to [`QUERY_INTERVAL`]. Hosts
/// that start together may find each other in groups of which none knows of another.
pub const SETTLING_PAUSE: Duration = Duration::from_secs(30);

/// The first pause after a round without any answer, of a node that reaches somebody.
const RETRY: Duration = Duration::from_secs(30);

/// How long changes of the own record are gathered.
const NEWS_DELAY: Duration = Duration::from_millis(100);

/// Rounds for the sake of changes: four at once, then one a minute.
const NEWS_BURST: u32 = 4;
const NEWS_INTERVAL: Duration = Duration::from_secs(60);

/// The clock of the rounds.
pub(super) struct Pace {
    next: Option<Monotonic>,
    alone: bool,
    sequence: Option<Sequence>,
    /// The next pause while the node reaches nobody.
    pause: Duration,
    /// The next pause once it reaches somebody.
    settling: Duration,
    failures: u32,
    news: TokenBucket,
    rng: ChaCha8Rng,
}

impl Pace {
    /// Waits for [`Pace::open`].
    pub(super) fn new(seed: [u8; 32], now: Monotonic) -> Self {
        Self {
            next: None,
            alone: true,
            sequence: None,
            pause: FIRST_PAUSE,
            settling: SETTLING_PAUSE,
            failures: 0,
            news: TokenBucket::new(NEWS_BURST, NEWS_INTERVAL, now),
            rng: ChaCha8Rng::from_seed(seed),
        }
    }

    /// Begins, and begins anew where nobody has answered so far.
    pub(super) fn open(&mut self, now: Monotonic) {
        if self.next.is_none() || self.failures > 0 {
            self.next = Some(now);
        }
    }

    /// Goes round soon, if it goes round at all.
    pub(super) fn hurry(&mut self, now: Monotonic) {
        self.pause = FIRST_PAUSE;
        if self.next.is_some() && self.news.take(now) {
            self.bring_forward(now);
        }
    }

    /// Follows whether the node reaches anybody, and its record.
    pub(super) fn note(&mut self, alone: bool, sequence: Sequence, now: Monotonic) {
        let is_left_alone = alone && !self.alone;
        self.alone = alone;
        if is_left_alone {
            (self.pause, self.settling) = (FIRST_PAUSE, SETTLING_PAUSE);
            self.bring_forward(now);
        }
        let is_news = self.sequence.replace(sequence).is_some_and(|before| before != sequence);
        let is_near = self.next.is_none_or(|at| at <= now + NEWS_DELAY);
        if is_news && !is_near && self.news.take(now) {
            self.bring_forward(now + NEWS_DELAY);
        }
    }

    pub(super) fn is_due(&self, now: Monotonic) -> bool {
        self.next.is_some_and(|at| at <= now)
    }

    /// Notes that all of a round is read.
    pub(super) fn end_round(&mut self, answered: bool, now: Monotonic) {
        self.failures = if answered { 0 } else { self.failures.saturating_add(1) };
        let pause = match (self.alone, answered) {
            (true, _) => doubled(&mut self.pause, ALONE_INTERVAL),
            (false, true) => doubled(&mut self.settling, QUERY_INTERVAL),
            (false, false) => RETRY.saturating_mul(1 << self.failures.min(5)).min(QUERY_INTERVAL),
        };
        // A fleet that was started as one must not ask as one for ever.
        let spread = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        self.next = Some(now + pause.mul_f64(0.9 + 0.2 * spread));
    }

    pub(super) const fn next(&self) -> Option<Monotonic> {
        self.next
    }

    fn bring_forward(&mut self, to: Monotonic) {
        self.next = self.next.map(|at| at.min(to));
    }
}

/// Returns a pause and has the next one be twice as long, up to the longest.
fn doubled(pause: &mut Duration, longest: Duration) -> Duration {
    std::mem::replace(pause, (*pause * 2).min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses of a node between its rounds, in seconds.
    fn pauses(pace: &mut Pace, alone: bool, rounds: usize) -> Vec<u64> {
        let mut now = Monotonic::default();
        let mut pause = || {
            pace.note(alone, Sequence(1), now);
            pace.end_round(true, now);
            let next = pace.next().expect("it goes round");
            let pause = next.since(now);
            now = next;
            pause.as_secs_f64().round() as u64
        };
        (0..rounds).map(|_| pause()).collect()
    }

    /// W-X29: groups that do not know of each other are one within a minute, not five.
    #[test]
    fn who_has_just_found_somebody_looks_again_soon_and_then_ever_more_slowly() {
        let mut pace = Pace::new([1; 32], Monotonic::default());
        pace.open(Monotonic::default());
        pauses(&mut pace, true, 3);
        for round in 0..2 {
            let found = pauses(&mut pace, false, 6);
            for (found, expected) in found.iter().zip([30, 60, 120, 240, 300, 300]) {
                assert!(found.abs_diff(expected) <= expected / 10, "{found} for {expected} in round {round}");
            }
            pauses(&mut pace, true, 1);
        }
    }
}
