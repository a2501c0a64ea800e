//! Waiting for what must become true.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::log::show;

/// How long to wait between two looks: short beside what is measured, long beside what a look costs.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits until the condition holds, and returns how long that took.
///
/// # Panics
/// Where it does not hold in time.
#[track_caller]
pub fn eventually(timeout: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    wait_for(timeout, || condition().then_some(()));
    started.elapsed()
}

/// Counts what an action costs, such as lost packets, and tries up to three times: a busy machine may lose one by itself,
/// but a fault shows every time. Returns the least, and shows the others.
pub fn least_of_three<T: Default + Ord + Display>(mut attempt: impl FnMut() -> T) -> T {
    let mut least = attempt();
    for number in 1..3 {
        if least == T::default() {
            break;
        }
        show(&format!("attempt {number} of at most three cost {least}"));
        least = least.min(attempt());
    }
    least
}

/// Waits until there is a value, and returns it.
///
/// # Panics
/// Where there is none in time.
#[track_caller]
pub fn wait_for<T>(timeout: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        // The last look begins after the time is over, so that a slow one cannot be the only one.
        let over = started.elapsed() >= timeout;
        match look() {
            Some(value) => return value,
            None if over => panic!("still not so after {:.1} s", timeout.as_secs_f64()),
            None => std::thread::sleep(PAUSE),
        }
    }
}
