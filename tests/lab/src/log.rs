//! When a daemon logged what, and figures of tests that pass.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Returns when a log says for the first time since `start` what is looked for: a line that holds every needle.
pub fn first_logged(log: &str, start: Instant, needles: &[&str]) -> Option<Instant> {
    let start_of_day = (SystemTime::now() - start.elapsed()).duration_since(UNIX_EPOCH).ok()?;
    let start_of_day = Duration::from_nanos((start_of_day.as_nanos() % DAY.as_nanos()).try_into().ok()?);
    let lines = log.lines().filter(|line| needles.iter().all(|needle| line.contains(needle)));
    let since_start = |line| time_of_day(line)?.checked_sub(start_of_day);
    lines.filter_map(since_start).next().map(|since_start| start + since_start)
}

/// Prints a figure, also where the test passes: the runner only keeps back what `println!` prints.
pub fn show(line: &str) {
    // Without a reader there is nobody who misses it.
    drop(std::io::stdout().write_all(format!("{line}\n").as_bytes()));
}

/// Reads `2026-01-31T12:34:56.789012Z` at a line's start.
fn time_of_day(line: &str) -> Option<Duration> {
    let (_, rest) = line.split_once('T')?;
    let mut parts = rest.split_once('Z')?.0.split(':');
    let (hours, minutes) = (parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<u64>().ok()?);
    let seconds = parts.next()?.parse::<f64>().ok()?;
    Some(Duration::from_secs(hours * 3600 + minutes * 60) + Duration::from_secs_f64(seconds))
}
