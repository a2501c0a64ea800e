//! What several runs of the same thing amount to.

use std::time::Duration;

/// Durations in rising order; at least one.
pub(super) struct Sample(Vec<Duration>);

impl Sample {
    pub(super) fn new(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut durations: Vec<_> = durations.into_iter().collect();
        assert!(!durations.is_empty(), "nothing was measured");
        durations.sort_unstable();
        Self(durations)
    }

    /// Returns the middle one; of two, the mean.
    pub(super) fn median(&self) -> Duration {
        let upper = self.0.len() / 2;
        let lower = (self.0.len() - 1) / 2;
        (self.0[lower] + self.0[upper]) / 2
    }

    /// Returns the longest.
    pub(super) fn max(&self) -> Duration {
        self.0[self.0.len() - 1]
    }

    /// Returns the smallest one that is not below 95 % of all.
    fn p95(&self) -> Duration {
        self.0[(self.0.len() * 95).div_ceil(100) - 1]
    }

    /// Prints the head of a table of [`Sample::print`]'s lines.
    pub(super) fn print_head(title: &str) {
        println!("{title:<40} {:>7} {:>7} {:>7} {:>7} {:>8}", "median", "p95", "min", "max", "by hand");
    }

    /// Prints the figures in seconds, and the ratio to the same thing made by hand.
    pub(super) fn print(&self, name: &str, by_hand: Option<&Self>) {
        let seconds = |duration: Duration| format!("{:.3}", duration.as_secs_f64());
        let (min, max) = (self.0[0], self.max());
        let [median, p95, min, max] = [self.median(), self.p95(), min, max].map(seconds);
        let ratio = by_hand.map(|other| self.median().as_secs_f64() / other.median().as_secs_f64());
        let ratio = ratio.map_or_else(String::new, |ratio| format!("× {ratio:.2}"));
        println!("{name:<40} {median:>7} {p95:>7} {min:>7} {max:>7} {ratio:>8}");
    }

    /// Prints whether the goals for median and p95 are met.
    pub(super) fn print_goals(&self, median: Duration, p95: Duration) {
        for (name, is, goal) in [("median", self.median(), median), ("p95", self.p95(), p95)] {
            let verdict = if is <= goal { "met" } else { "MISSED" };
            println!("  goal: {name} ≤ {:.3} s: {verdict}", goal.as_secs_f64());
        }
    }

    /// Prints whether the median is no more than this share of what the same thing made by hand took in the same run, which
    /// is the goal on a machine of any speed.
    pub(super) fn print_share_goal(&self, by_hand: &Self, goal: f64) {
        let share = self.median().as_secs_f64() / by_hand.median().as_secs_f64();
        let verdict = if share <= goal { "met" } else { "MISSED" };
        println!("  goal: median ≤ {goal:.2} of that made by hand: {verdict} ({share:.2})");
    }
}
