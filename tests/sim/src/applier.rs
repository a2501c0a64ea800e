//! Keeps one kernel as its node wants it: a model of the daemon's applier, around the core's own `reconcile`.
//!
//! Like the real one it knows the kernel from its last reading and its own writes since (the mirror), compares a new
//! goal with that, and reports. The newest goal wins. It reads again some milliseconds after Linux gave notice of a
//! change, and at the latest after [`INTERVAL`]; of such a reading it reports what is new, or that nothing is each
//! [`REPORT_INTERVAL`].

use std::sync::Arc;
use std::time::Duration;

use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{Desired, LITTLE_TRAFFIC, Observed, OwnerMark, Write};
use wgmesh_core::mesh::{KernelReport, KernelTrouble, REPORT_INTERVAL};
use wgmesh_core::reconcile;
use wgmesh_core::time::{Monotonic, Now};

use crate::kernel::Kernel;

/// The longest time between two readings (seed 003, W-D8).
pub const INTERVAL: Duration = Duration::from_secs(5);

/// How long notices are gathered before the kernel is read; doubled with each reading in a row that had to write.
const SETTLE: Duration = Duration::from_millis(10);

/// The pause after a failure; doubled each time.
const RETRY: Duration = Duration::from_millis(100);

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
    has_new_goal: bool,
    has_notice: bool,
    mirror: Option<Arc<Observed>>,
    due: Monotonic,
    contested: u32,
    failed: u32,
    turn: Turn,
    /// What was reported last, when, and how many readings were kept back since.
    reported: Option<(Arc<Observed>, Monotonic, u32)>,
    /// Whether the next reading is due for no other reason than that the last one is old.
    is_regular: bool,
    readings: u64,
    overtaken: u64,
}

#[derive(Debug)]
enum Turn {
    Resting,
    Reading { until: Monotonic },
    Writing { until: Monotonic, generation: u64, writes: Vec<Write>, was_read: bool },
}

impl Applier {
    /// Makes an applier without a goal; `owner` marks what it may take back.
    pub fn new(pace: Pace, owner: OwnerMark, now: Monotonic) -> Self {
        Self {
            pace,
            owner,
            generation: 0,
            goal: None,
            has_new_goal: false,
            has_notice: false,
            mirror: None,
            due: now + INTERVAL,
            contested: 0,
            failed: 0,
            turn: Turn::Resting,
            reported: None,
            is_regular: false,
            readings: 0,
            overtaken: 0,
        }
    }

    /// Takes a new goal in place of the old.
    pub fn set_goal(&mut self, generation: u64, desired: Option<Arc<Desired>>) {
        self.overtaken += u64::from(self.has_new_goal);
        self.generation = generation;
        self.goal = Some(desired);
        self.has_new_goal = true;
    }

    /// Hears that the kernel has changed.
    pub fn notice(&mut self, now: Monotonic) {
        match self.turn {
            Turn::Resting if self.mirror.is_some() => {
                let settle = SETTLE.saturating_mul(1 << self.contested.min(16)).min(INTERVAL);
                self.due = self.due.min(now + settle);
                self.is_regular = false;
            }
            Turn::Resting => {}
            Turn::Reading { .. } | Turn::Writing { .. } => self.has_notice = true,
        }
    }

    /// Returns how often the kernel was read.
    pub const fn readings(&self) -> u64 {
        self.readings
    }

    /// Returns how many goals gave way to the next before they were ever looked at: plans made in vain.
    pub const fn overtaken(&self) -> u64 {
        self.overtaken
    }

    /// Returns when [`Applier::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Monotonic {
        match self.turn {
            Turn::Resting if self.has_new_goal => Monotonic::default(),
            Turn::Resting => self.due,
            Turn::Reading { until } | Turn::Writing { until, .. } => until,
        }
    }

    /// Goes a step on and returns what is to be reported.
    pub fn handle_timeout(&mut self, kernel: &mut Kernel, now: Now) -> Option<KernelReport> {
        if self.poll_timeout() > now.monotonic {
            return None;
        }
        match std::mem::replace(&mut self.turn, Turn::Resting) {
            Turn::Resting => {
                if !self.has_new_goal {
                    self.mirror = None;
                }
                self.begin_turn(kernel, now)
            }
            Turn::Reading { .. } => {
                self.readings += 1;
                let observed = kernel.observe();
                if self.may_keep_back(&observed, now) {
                    self.due = now.monotonic + INTERVAL;
                    self.mirror = self.reported.as_ref().map(|(earlier, ..)| Arc::clone(earlier));
                    return None;
                }
                self.mirror = Some(Arc::new(observed));
                self.compare(true, kernel, now)
            }
            Turn::Writing { generation, writes, was_read, .. } => {
                let outcome = self.write(&writes, kernel, now);
                self.contested = if was_read { self.contested + 1 } else { self.contested };
                Some(self.finish(generation, outcome, was_read, now.monotonic))
            }
        }
    }

    /// Withdraws at once what the owner's mark is on; for a process that waits for it before it ends.
    pub fn withdraw(&self, kernel: &mut Kernel, now: Now) {
        kernel.set_forwarding(Forwarding::default());
        for write in reconcile::withdraw(&kernel.observe(), &self.owner) {
            kernel.apply(&write, now).expect("what was just read can be deleted");
        }
    }

    /// Whether nothing is to be told of a reading: as the daemon's netlink thread decides.
    fn may_keep_back(&mut self, observed: &Observed, now: Now) -> bool {
        let Some((earlier, at, kept_back)) = &mut self.reported else { return false };
        // eBPF tells of packets that are not answered.
        let is_quiet = observed.may_be_kept_back(earlier, LITTLE_TRAFFIC, *kept_back == 0, now.wall)
            && now.monotonic.since(*at) < REPORT_INTERVAL;
        *kept_back += 1;
        self.is_regular && !self.has_new_goal && !self.has_notice && is_quiet
    }

    fn begin_turn(&mut self, kernel: &mut Kernel, now: Now) -> Option<KernelReport> {
        if self.mirror.is_some() {
            return self.compare(false, kernel, now);
        }
        self.turn = Turn::Reading { until: now.monotonic + self.pace.read };
        None
    }

    /// Compares the goal with the mirror, then writes or is done.
    fn compare(&mut self, was_read: bool, kernel: &mut Kernel, now: Now) -> Option<KernelReport> {
        let mirror = Arc::clone(self.mirror.as_ref().expect("it was read"));
        let generation = self.generation;
        self.has_new_goal = false;
        if let Some(Some(desired)) = &self.goal {
            kernel.set_forwarding(desired.forwarding.clone());
        }
        let writes = match &self.goal {
            None => Ok(Vec::new()),
            Some(None) => Ok(reconcile::withdraw(&mirror, &self.owner)),
            Some(Some(desired)) => reconcile::diff(desired, &mirror),
        };
        match writes {
            Ok(writes) if writes.is_empty() => {
                self.contested = 0;
                Some(self.finish(generation, Ok(mirror), was_read, now.monotonic))
            }
            Ok(writes) => {
                let until = now.monotonic + self.pace.write;
                self.turn = Turn::Writing { until, generation, writes, was_read };
                None
            }
            Err(refusal) => {
                let trouble = KernelTrouble::Refused(refusal.to_string());
                Some(self.finish(generation, Err(trouble), was_read, now.monotonic))
            }
        }
    }

    /// Writes, and says what that left behind as the daemon reckons it, without reading it back.
    fn write(
        &mut self,
        writes: &[Write],
        kernel: &mut Kernel,
        now: Now,
    ) -> Result<Arc<Observed>, KernelTrouble> {
        writes.iter().try_for_each(|write| kernel.apply(write, now))?;
        let mirror = self.mirror.as_mut().expect("it was read before it was written");
        match writes {
            [Write::CreateLink { .. }, ..] => *mirror = Arc::new(kernel.observe()),
            _ => reconcile::apply_to(Arc::make_mut(mirror), writes),
        }
        Ok(Arc::clone(mirror))
    }

    fn finish(
        &mut self,
        generation: u64,
        outcome: Result<Arc<Observed>, KernelTrouble>,
        was_read: bool,
        now: Monotonic,
    ) -> KernelReport {
        if outcome.is_err() {
            self.mirror = None;
            self.due = now + RETRY.saturating_mul(1 << self.failed.min(16)).min(INTERVAL);
            self.failed += 1;
        } else {
            self.failed = 0;
            if was_read {
                self.due = now + INTERVAL;
                self.is_regular = true;
            }
        }
        self.reported = outcome.as_ref().ok().map(|observed| (Arc::clone(observed), now, 0));
        if std::mem::take(&mut self.has_notice) {
            self.notice(now);
        }
        KernelReport { generation, outcome, fresh: was_read }
    }
}
