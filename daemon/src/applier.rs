//! The one task that writes to the kernel: it holds the kernel at the newest [`Goal`], level-triggered.
//!
//! It acts when a goal arrives, when the kernel gives notice that something changed, when somebody asks for a [`Look`],
//! and every [`INTERVAL`] as a safety net. Each turn compares the goal with the kernel and writes the difference; a
//! converged node writes nothing.
//!
//! What it knows of the kernel is a mirror: the last reading, plus its own writes that were acknowledged since. A
//! new goal is compared with the mirror, so that a newcomer's peer is set without reading a thousand others first,
//! and the report goes out right after the acknowledgement. A notice throws the mirror away. Our own writes cause
//! notices too; those are gathered for [`SETTLE`] and cost one reading in all. The interval reads only what gives no
//! notice, the WireGuard device, and wakes nobody where that shows nothing new; each [`REPORT_INTERVAL`] everything is read.
//!
//! Goals and reports travel in `watch` channels: the newest value replaces the one that nobody took yet. That loses
//! nothing, because each goal is the whole plan and each report the whole state, with the generation it follows.
//!
//! Cancel-safe: dropped at any point it leaves the kernel between two writes, each of which is whole in itself. The
//! next applier adopts what is there and writes what is missing.

mod net;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{Desired, Link, Observed, OwnerMark, Write};
use wgmesh_core::mesh::REPORT_INTERVAL;
use wgmesh_core::reconcile::{Refusal, apply_to, diff, withdraw};

use crate::kernel::{KernelError, Passage, Reading};
use crate::notify::Progress;

pub use net::Net;

/// The longest time between two readings of the kernel. WireGuard gives no notice of a peer that somebody removed.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// The longest time between two readings of everything while the host passes packets on: of what others do to the rules for
/// that there is no notice either.
const PASSING_INTERVAL: Duration = Duration::from_secs(10);

/// How long notices are gathered before the kernel is read: a change of a link comes as several, and healing must
/// begin within 50 ms. It doubles with each turn in a row that found something to write, so that a contest with
/// another program over the same state ends in a reading every [`INTERVAL`], not in a busy loop.
const SETTLE: Duration = Duration::from_millis(10);

/// The pause after a failure; it doubles up to [`INTERVAL`].
const RETRY: Duration = Duration::from_millis(100);

/// So many failures are logged before the kernel holds the plan again.
const MAX_TOLD: usize = 64;

/// What the kernel should hold.
#[derive(Clone, Debug)]
pub struct Goal {
    /// Rises with every goal; reports name the one that they follow.
    pub generation: u64,
    /// What is wanted.
    pub want: Want,
}

/// What is wanted of the kernel.
#[derive(Clone, Debug)]
pub enum Want {
    /// Nothing: the kernel is neither read nor written. So it is before the first plan, and after a handover.
    Nothing,
    /// All of this.
    Present(Arc<Desired>),
    /// That nothing of ours is left.
    Withdrawn,
}

/// What came of a goal.
#[derive(Clone, Debug)]
pub struct Report {
    /// The goal's generation.
    pub generation: u64,
    /// The kernel as it is now, or why it is not as it should be.
    pub result: Result<Outcome, ApplyFailure>,
}

impl Report {
    /// Whether nothing is left to be tried again.
    pub fn is_all_done(&self) -> bool {
        self.result.as_ref().is_ok_and(|outcome| outcome.failures.is_empty())
    }
}

/// A turn that was carried out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The kernel after the writes. Counters and handshakes are as of the last reading.
    pub observed: Arc<Observed>,
    /// Whether the kernel was read in this turn.
    pub fresh: bool,
    /// How many writes were done.
    pub writes: usize,
    /// The writes that failed alone; they are tried again.
    pub failures: Vec<KernelError>,
    /// What has come of passing packets on, when it was last looked at.
    pub passage: Arc<Passage>,
}

/// Has the kernel read at once for somebody who wants the counters of this moment.
#[derive(Clone, Debug)]
pub struct Look {
    asked: mpsc::Sender<oneshot::Sender<()>>,
}

impl Look {
    /// Returns when the kernel has been read, with the report sent; where nothing is wanted of the kernel there is none.
    pub async fn take(&self) {
        let (done, taken) = oneshot::channel();
        // An applier that has ended ends the daemon too.
        if self.asked.send(done).await.is_ok() {
            let _ = taken.await;
        }
    }
}

/// Why a goal was not followed; it is tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyFailure {
    /// The interface is somebody else's.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The kernel would not.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Counters that others may read at any time.
#[derive(Debug, Default)]
pub struct Pulse {
    turns: Progress,
    writes: AtomicU64,
}

impl Pulse {
    /// Returns the number of turns of the loop.
    pub fn turns(&self) -> u64 {
        self.turns.count()
    }

    /// Returns the counter of turns, for the watchdog.
    pub fn progress(&self) -> Progress {
        self.turns.clone()
    }

    /// Returns the number of writes that the kernel took.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }
}

/// The task's state.
#[derive(Debug)]
pub struct Applier<N> {
    net: N,
    owner: OwnerMark,
    goals: watch::Receiver<Goal>,
    notices: Arc<Notify>,
    reports: watch::Sender<Report>,
    look: Look,
    looks: mpsc::Receiver<oneshot::Sender<()>>,
    pulse: Arc<Pulse>,
    mirror: Option<Arc<Observed>>,
    /// Whether there were notices since everything was read.
    noticed: bool,
    /// When everything was last read.
    read_at: Instant,
    /// Readings in a row that found something to write, and wrote it.
    contested: u32,
    /// Turns in a row that failed, wholly or in part.
    failed: u32,
    /// The failures among them that the log tells of.
    told: Vec<String>,
    /// What the host was last made to pass on, and what came of it.
    passing: Option<(Forwarding, Arc<Passage>)>,
}

/// What made the loop turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Goal,
    Reading,
}

/// Where a turn has its picture of the kernel from.
enum Picture {
    /// The mirror.
    Mirror,
    /// A reading that was waited for.
    Polled(Result<Reading, KernelError>),
    /// A reading of everything, yet to be made.
    Whole,
}

impl<N: Net> Applier<N> {
    /// Makes the applier of one interface. `notices` wakes it when the kernel changed.
    pub fn new(net: N, owner: OwnerMark, mut goals: watch::Receiver<Goal>, notices: Arc<Notify>) -> Self {
        goals.mark_changed();
        let (reports, _) = watch::channel(Report { generation: 0, result: Ok(Outcome::default()) });
        let (asked, looks) = mpsc::channel(1);
        let pulse = Arc::default();
        Self {
            net,
            owner,
            goals,
            notices,
            reports,
            look: Look { asked },
            looks,
            pulse,
            mirror: None,
            noticed: false,
            read_at: Instant::now(),
            contested: 0,
            failed: 0,
            told: Vec::new(),
            passing: None,
        }
    }

    /// Spares the first goal a reading of its own; notices since that reading must be listened to already.
    pub fn with_reading(mut self, observed: Arc<Observed>) -> Self {
        self.mirror = Some(observed);
        self
    }

    /// Returns a receiver of reports. Wait for `changed()`: the value that is there before says nothing.
    pub fn reports(&self) -> watch::Receiver<Report> {
        self.reports.subscribe()
    }

    /// Returns what asks for a reading at once.
    pub fn look(&self) -> Look {
        self.look.clone()
    }

    /// Returns the counters.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Runs until the last sender of goals is dropped.
    pub async fn run(mut self) {
        let mut due = Instant::now() + INTERVAL;
        loop {
            self.pulse.turns.step();
            let (mirror, whole_at) = (self.mirror_to_refresh(), self.whole_at());
            tokio::select! {
                biased;
                goal = self.goals.changed() => match goal {
                    Ok(()) => due = self.turn(Cause::Goal, self.picture_for_goal(), due).await,
                    Err(_) => return,
                },
                Some(done) = self.looks.recv() => {
                    due = self.turn(Cause::Reading, Picture::Whole, due).await;
                    // Whoever asked may be gone.
                    let _ = done.send(());
                }
                picture = wait_for_reading(&self.net, mirror, due, whole_at) => {
                    due = self.turn(Cause::Reading, picture, due).await;
                }
                // After a failure there is nothing to compare a change with, and a retry is due already.
                () = self.notices.notified(), if self.mirror.is_some() => {
                    let settled = Instant::now() + doubled(SETTLE, self.contested);
                    // The reading that was due may have been made and have told nothing new.
                    let is_ahead = self.noticed || due > Instant::now();
                    due = if is_ahead { due.min(settled) } else { settled };
                    self.noticed = true;
                }
                never = self.pulse.turns.step_when_asked() => match never {},
            }
        }
    }

    /// Follows the goal once, reports, and returns when the kernel must be read next.
    async fn turn(&mut self, cause: Cause, picture: Picture, due: Instant) -> Instant {
        let Goal { generation, want } = self.goals.borrow_and_update().clone();
        let is_read = !matches!(picture, Picture::Mirror);
        let is_quiet = matches!(picture, Picture::Polled(_));
        let result = match want {
            Want::Nothing => return Instant::now() + INTERVAL,
            Want::Present(desired) => {
                let done = self.follow(picture, |observed| diff(&desired, observed)).await;
                match done {
                    // Not before the link is there: it has a switch of its own.
                    Ok(outcome) => {
                        let may_look = is_quiet || is_read && !desired.forwarding.is_nothing();
                        self.pass_on(&desired.forwarding, may_look, outcome).await
                    }
                    Err(failure) => Err(failure),
                }
            }
            Want::Withdrawn => {
                let owner = self.owner.clone();
                match self.pass_on(&Forwarding::default(), true, Outcome::default()).await {
                    Ok(passed) => {
                        let done = self.follow(picture, |observed| Ok(withdraw(observed, &owner))).await;
                        done.map(|mut outcome| {
                            outcome.failures.extend(passed.failures);
                            outcome
                        })
                    }
                    Err(failure) => Err(failure),
                }
            }
        };
        self.note(cause, generation, &result);
        self.reports.send_replace(Report { generation, result });
        match self.failed.checked_sub(1) {
            Some(earlier) => Instant::now() + doubled(RETRY, earlier),
            None if is_read => Instant::now() + INTERVAL,
            None => due,
        }
    }

    fn picture_for_goal(&self) -> Picture {
        if self.mirror.is_some() { Picture::Mirror } else { Picture::Whole }
    }

    /// Returns the mirror if, when a reading is due, that of the device will do.
    fn mirror_to_refresh(&self) -> Option<Arc<Observed>> {
        let wants_nothing = matches!(self.goals.borrow().want, Want::Nothing);
        // What failed is tried again whatever a reading shows.
        let must_turn = self.noticed || self.failed > 0 || wants_nothing;
        if must_turn { None } else { self.mirror.clone() }
    }

    async fn read(&mut self, picture: Picture) -> Result<Arc<Observed>, KernelError> {
        match (picture, self.mirror.take()) {
            (Picture::Mirror, Some(mirror)) => Ok(mirror),
            (Picture::Polled(reading), _) => {
                let Reading { observed, is_whole } = reading?;
                if is_whole {
                    self.read_at = Instant::now();
                }
                Ok(Arc::new(observed))
            }
            (Picture::Whole, _) | (Picture::Mirror, None) => {
                // Before the reading: what changes while it goes on is not part of it.
                (self.noticed, self.read_at) = (false, Instant::now());
                self.net.observe().await.map(Arc::new)
            }
        }
    }

    /// Returns when everything is to be read again, notices or not.
    fn whole_at(&self) -> Instant {
        let passes_on = self.passing.as_ref().is_some_and(|(want, _)| !want.is_nothing());
        self.read_at + if passes_on { PASSING_INTERVAL } else { REPORT_INTERVAL }
    }

    async fn follow(
        &mut self,
        picture: Picture,
        decide: impl Fn(&Observed) -> Result<Vec<Write>, Refusal>,
    ) -> Result<Outcome, ApplyFailure> {
        let is_read = !matches!(picture, Picture::Mirror);
        let mut observed = self.read(picture).await?;
        let writes: Arc<[Write]> = decide(&observed)?.into();
        let mut failures = Vec::new();
        if !writes.is_empty() {
            failures = self.net.apply(Arc::clone(&writes)).await?;
            if failures.is_empty() {
                let mirror = Arc::make_mut(&mut observed);
                apply_to(mirror, &writes);
                // Only the kernel knows a new link's index.
                if let (Link::WireGuard { index, .. }, Some(current)) =
                    (&mut mirror.link, self.net.link_index())
                {
                    *index = current;
                }
            } else {
                observed = Arc::new(self.net.observe().await?);
            }
        }
        self.mirror = Some(Arc::clone(&observed));
        let fresh = is_read || !failures.is_empty();
        let writes = writes.len().saturating_sub(failures.len());
        Ok(Outcome { observed, fresh, writes, failures, passage: Arc::default() })
    }

    /// Makes the host pass on what is wanted, if that is new, or if it is anything and it is time to look: of what others do
    /// to tables and switches there is no notice. What an earlier run may have left is looked for when all is quiet, because
    /// a kernel that has yet to load nf_tables would hold up the start.
    async fn pass_on(
        &mut self,
        want: &Forwarding,
        may_look: bool,
        mut outcome: Outcome,
    ) -> Result<Outcome, ApplyFailure> {
        let is_due = match &self.passing {
            Some((before, passage)) => {
                before != want || passage.failure.is_some() || may_look && !want.is_nothing()
            }
            None => may_look || !want.is_nothing(),
        };
        if is_due {
            let passage = Arc::new(self.net.forward(want.clone()).await?);
            let before =
                self.passing.as_ref().map(|(_, before)| before.obstacles.as_slice()).unwrap_or_default();
            for obstacle in passage.obstacles.iter().filter(|obstacle| !before.contains(obstacle)) {
                warn!(obstacle, "packets of the mesh may not be passed on");
            }
            self.passing = Some((want.clone(), passage));
        }
        if let Some((_, passage)) = &self.passing {
            outcome.passage = Arc::clone(passage);
            outcome.failures.extend(passage.failure.clone());
        }
        Ok(outcome)
    }

    /// Keeps the counters, and logs what changed.
    fn note(&mut self, cause: Cause, generation: u64, result: &Result<Outcome, ApplyFailure>) {
        let (writes, failures) = match result {
            Ok(outcome) => (outcome.writes, outcome.failures.iter().map(ToString::to_string).collect()),
            Err(failure) => (0, vec![failure.to_string()]),
        };
        self.contested = match (writes, cause) {
            (0, _) => 0,
            (_, Cause::Goal) => self.contested,
            (_, Cause::Reading) => self.contested.saturating_add(1),
        };
        self.pulse.writes.fetch_add(writes as u64, Ordering::Relaxed);
        if writes > 0 {
            debug!(generation, writes, healed = cause == Cause::Reading, "wrote to the kernel");
        }
        self.note_failures(failures, result.is_ok());
    }

    /// Logs each failure once, not at every attempt, until the kernel holds the plan.
    fn note_failures(&mut self, failures: Vec<String>, is_most_done: bool) {
        if failures.is_empty() {
            if self.failed > 0 {
                info!("the kernel holds the whole plan again");
            }
            self.failed = 0;
            self.told.clear();
            return;
        }
        self.failed = self.failed.saturating_add(1);
        for failure in failures {
            if self.told.contains(&failure) || self.told.len() >= MAX_TOLD {
                debug!(failure, attempts = self.failed, "the kernel is still not as planned");
                continue;
            }
            match is_most_done {
                true => warn!(failure, "one write failed; the others are done, and it is tried again"),
                false => warn!(failure, "the kernel could not be brought to the plan"),
            }
            self.told.push(failure);
        }
    }
}

/// Waits until a reading is due. Where there is a mirror that is left to the kernel's own thread, wait and all: so a reading
/// wakes this thread once, with the answer, where a timer of the runtime's and a question would wake it four times.
async fn wait_for_reading<N: Net>(
    net: &N,
    mirror: Option<Arc<Observed>>,
    due: Instant,
    whole_at: Instant,
) -> Picture {
    match mirror {
        Some(mirror) => Picture::Polled(net.poll(due, whole_at, mirror).await),
        None => {
            sleep_until(due).await;
            Picture::Whole
        }
    }
}

/// Returns the pause after so many doublings, at most [`INTERVAL`].
fn doubled(pause: Duration, doublings: u32) -> Duration {
    pause.saturating_mul(1 << doublings.min(16)).min(INTERVAL)
}

#[cfg(test)]
mod tests;
