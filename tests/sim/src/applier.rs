//! Keeps one kernel as its node wants it: a model of the daemon's applier, around the core's own `reconcile`.
//!
//! It reads, compares, writes and reports. The newest goal wins: one that arrives during a round makes another round
//! follow. Between rounds it wakes for changes that Linux tells of, for handshakes that eBPF sees, and every
//! [`SAFETY_INTERVAL`].

use std::sync::Arc;
use std::time::Duration;

use wgmesh_core::kernel::{Desired, Observed, OwnerMark, Write};
use wgmesh_core::mesh::{KernelReport, KernelTrouble};
use wgmesh_core::reconcile;
use wgmesh_core::time::{Monotonic, Now};

use crate::kernel::Kernel;

/// The kernel is read this often whatever happens (seed 003, W-D8).
pub const SAFETY_INTERVAL: Duration = Duration::from_secs(5);

/// How long a real kernel takes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// To be read.
    pub read: Duration,
    /// To be written.
    pub write: Duration,
}

impl Pace {
    /// About what the lab's kernel takes.
    pub const USUAL: Self = Self { read: Duration::from_millis(1), write: Duration::from_millis(2) };
}

/// One host's applier.
#[derive(Debug)]
pub struct Applier {
    pace: Pace,
    owner: OwnerMark,
    generation: u64,
    goal: Option<Option<Arc<Desired>>>,
    round: Round,
    is_wanted: bool,
    safety_at: Monotonic,
    readings: u64,
}

#[derive(Debug)]
enum Round {
    Resting,
    Reading { until: Monotonic },
    Writing { until: Monotonic, generation: u64, writes: Vec<Write>, observed: Box<Observed> },
}

impl Applier {
    /// Makes an applier without a goal; `owner` marks what it may take back.
    pub fn new(pace: Pace, owner: OwnerMark, now: Monotonic) -> Self {
        Self {
            pace,
            owner,
            generation: 0,
            goal: None,
            round: Round::Resting,
            is_wanted: false,
            safety_at: now + SAFETY_INTERVAL,
            readings: 0,
        }
    }

    /// Takes a new goal in place of the old.
    pub fn set_goal(&mut self, generation: u64, desired: Option<Arc<Desired>>, now: Monotonic) {
        self.generation = generation;
        self.goal = Some(desired);
        self.wake(now);
    }

    /// Has the kernel read soon.
    pub fn wake(&mut self, now: Monotonic) {
        match self.round {
            Round::Resting => self.round = Round::Reading { until: now + self.pace.read },
            Round::Reading { .. } | Round::Writing { .. } => self.is_wanted = true,
        }
    }

    /// Returns how often the kernel was read.
    pub const fn readings(&self) -> u64 {
        self.readings
    }

    /// Returns when [`Applier::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Monotonic {
        match self.round {
            Round::Resting => self.safety_at,
            Round::Reading { until } | Round::Writing { until, .. } => until,
        }
    }

    /// Goes a step on and returns what is to be reported.
    pub fn handle_timeout(&mut self, kernel: &mut Kernel, now: Now) -> Option<KernelReport> {
        if self.poll_timeout() > now.monotonic {
            return None;
        }
        match std::mem::replace(&mut self.round, Round::Resting) {
            Round::Resting => {
                self.wake(now.monotonic);
                None
            }
            Round::Reading { .. } => self.on_read(kernel, now.monotonic),
            Round::Writing { generation, writes, observed, .. } => {
                let outcome = write_all(&writes, *observed, kernel, now);
                Some(self.finish(generation, outcome, now.monotonic))
            }
        }
    }

    /// Withdraws at once what the owner's mark is on; for a process that waits for it before it ends.
    pub fn withdraw(&self, kernel: &mut Kernel, now: Now) {
        for write in reconcile::withdraw(&kernel.observe(), &self.owner) {
            kernel.apply(&write, now).expect("what was just read can be deleted");
        }
    }

    fn on_read(&mut self, kernel: &Kernel, now: Monotonic) -> Option<KernelReport> {
        self.readings += 1;
        let observed = kernel.observe();
        let generation = self.generation;
        let writes = match &self.goal {
            None => Vec::new(),
            Some(None) => reconcile::withdraw(&observed, &self.owner),
            Some(Some(desired)) => match reconcile::diff(desired, &observed) {
                Ok(writes) => writes,
                Err(refusal) => {
                    let trouble = KernelTrouble::Other(refusal.to_string());
                    return Some(self.finish(generation, Err(trouble), now));
                }
            },
        };
        if writes.is_empty() {
            return Some(self.finish(generation, Ok(Arc::new(observed)), now));
        }
        let until = now + self.pace.write;
        self.round = Round::Writing { until, generation, writes, observed: Box::new(observed) };
        None
    }

    fn finish(
        &mut self,
        generation: u64,
        outcome: Result<Arc<Observed>, KernelTrouble>,
        now: Monotonic,
    ) -> KernelReport {
        self.safety_at = now + SAFETY_INTERVAL;
        if std::mem::take(&mut self.is_wanted) {
            self.wake(now);
        }
        KernelReport { generation, outcome }
    }
}

/// Writes, and says what that left behind as the daemon reckons it, without reading it back.
fn write_all(
    writes: &[Write],
    mut observed: Observed,
    kernel: &mut Kernel,
    now: Now,
) -> Result<Arc<Observed>, KernelTrouble> {
    writes.iter().try_for_each(|write| kernel.apply(write, now))?;
    reconcile::apply_to(&mut observed, writes);
    Ok(Arc::new(observed))
}
