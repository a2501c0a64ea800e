//! Doing many things a few at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Does the work for each of the jobs, so many at once, and returns the results in the order of the jobs.
///
/// # Panics
/// Where the work does.
pub fn in_parallel<Job: Sync, Outcome: Send>(
    jobs: &[Job],
    at_once: usize,
    work: impl Fn(usize, &Job) -> Outcome + Sync,
) -> Vec<Outcome> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { return };
            let outcome = work(index, job);
            done.lock().expect("nobody panics while holding it").push((index, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(worker);
        }
    });
    let mut done = done.into_inner().expect("nobody panicked while holding it");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::in_parallel;

    #[test]
    fn results_keep_the_order_of_the_jobs() {
        let jobs: Vec<u64> = (0..20).collect();
        let outcome = in_parallel(&jobs, 3, |index, job| {
            std::thread::sleep(std::time::Duration::from_micros(20 - job));
            (index as u64, *job)
        });
        assert!(
            outcome.iter().zip(&jobs).all(|((index, job), expected)| index == expected && job == expected)
        );
        assert_eq!(outcome.len(), jobs.len());
    }
}
