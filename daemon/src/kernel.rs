//! The real kernel: reads it into [`Observed`] and carries out [`Write`]s, all over netlink.
//!
//! One thread owns the sockets and does one job after the other. The kernel carries out a netlink request inside
//! the `sendto` that brings it, and its answer is there when the call returns: a blocking exchange costs two system
//! calls, where an asynchronous one adds two wake-ups to each and still holds up its thread for as long. The thread
//! also keeps a long set (a thousand peers) away from the async runtime.
//!
//! Links, addresses and routes are written and read with rtnetlink's messages, WireGuard with
//! netlink-packet-wireguard's; the module `wireguard` says why not with wireguard-uapi's.
//!
//! Invariants:
//! - Success means that the kernel acknowledged; silence is an error.
//! - A dump that the kernel marks as interrupted is thrown away and read again.
//! - Writes go to the link that the last [`Kernel::observe`] saw, by index, never to whatever has its name by then.
//! - Netlink's own types print keys in `Debug`: no message is ever logged.

mod address;
mod error;
mod forwarding;
mod link;
mod route;
mod socket;
mod underlay;
mod watch;
mod way;
mod wireguard;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{InterfaceName, LITTLE_TRAFFIC, Observed, Underlay, Write};

pub use error::{KernelError, Refused};
pub use forwarding::{Passage, chains_that_drop_input};
pub use watch::{Changes, Watcher};
pub use way::{Router, Way};
use worker::{Job, LinkIndex, Polling, Worker};

use crate::notify::Progress;

/// Jobs that may wait for the thread. When there are more, whoever asks waits for a place: only the applier and
/// the mesh task ask, one question at a time each.
const JOBS: usize = 4;

/// A handle to the kernel's state of one mesh interface. Cheap to clone; the thread ends with the last handle.
///
/// Dropping a future of these methods gives up the answer, not the job: what was started is carried out. Only a reading
/// whose time has not come is not made.
#[derive(Clone, Debug)]
pub struct Kernel {
    jobs: mpsc::Sender<Job>,
    interface: InterfaceName,
    index: LinkIndex,
    /// Whether eBPF tells of traffic, so that counters alone are no news.
    ebpf_tells: Arc<AtomicBool>,
    progress: Progress,
    readings: Arc<AtomicU64>,
}

/// A reading that [`Kernel::poll`] has made.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What it shows.
    pub observed: Observed,
    /// Whether links, addresses and routes were read too.
    pub is_whole: bool,
}

impl Kernel {
    /// Opens the sockets, in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel grants no netlink socket, or no thread can be started.
    pub fn open(interface: InterfaceName) -> Result<Self, KernelError> {
        let index = LinkIndex::default();
        let progress = Progress::default();
        let readings = Arc::default();
        let worker = Worker::open(interface.clone(), index.clone(), progress.clone(), Arc::clone(&readings))?;
        let (jobs, queue) = mpsc::channel(JOBS);
        let thread = std::thread::Builder::new().name("netlink".into());
        thread
            .spawn(move || worker.run(queue))
            .map_err(|error| KernelError::at("start the netlink thread", error.into()))?;
        Ok(Self { jobs, interface, index, ebpf_tells: Arc::default(), progress, readings })
    }

    /// Reads everything that the kernel holds of our interface.
    ///
    /// # Errors
    /// [`KernelError`]; a link that is missing or foreign is an answer, not an error.
    pub async fn observe(&self) -> Result<Observed, KernelError> {
        self.ask(Job::Observe).await
    }

    /// Reads the WireGuard device at `first` and after each `interval`, and from `whole_at` on everything, until a reading is
    /// a whole one or tells something that `earlier` does not; links, addresses and routes are taken from there, because for
    /// those the kernel gives notice of every change. So at rest nobody is woken for each reading: the thread waits, not the
    /// caller's timer. Where [`Kernel::leave_traffic_to_ebpf`] was called, a little traffic is nothing new. The thread does
    /// this once at a time: whoever asks anew takes the place of the first.
    ///
    /// # Errors
    /// As [`Kernel::observe`].
    pub async fn poll(
        &self,
        first: Instant,
        interval: Duration,
        whole_at: Instant,
        earlier: Arc<Observed>,
    ) -> Result<Reading, KernelError> {
        let (next, is_first) = (first, true);
        let traffic = if self.ebpf_tells.load(Ordering::Relaxed) { LITTLE_TRAFFIC } else { 0 };
        let polling = |answer| Polling { next, interval, whole_at, traffic, earlier, is_first, answer };
        self.ask(|answer| Job::Poll(polling(answer))).await
    }

    /// Has readings tell late of a little traffic, because eBPF tells at once of packets that are not answered; or no more.
    pub fn leave_traffic_to_ebpf(&self, ebpf_tells: bool) {
        self.ebpf_tells.store(ebpf_tells, Ordering::Relaxed);
    }

    /// Carries out the writes in order. A write that stands alone and fails is reported in the list, and the others
    /// are done.
    ///
    /// # Errors
    /// The first failure without which the rest makes no sense (no link, no device settings, not up): the writes
    /// after it were not tried.
    pub async fn apply(&self, writes: Arc<[Write]>) -> Result<Vec<KernelError>, KernelError> {
        self.ask(|answer| Job::Apply(writes, answer)).await
    }

    /// Makes the host pass on what is wanted and no more, and looks for what is in the way.
    ///
    /// # Errors
    /// [`KernelError::ThreadGone`]; what the kernel would not do is part of the answer.
    pub async fn forward(&self, want: Forwarding) -> Result<Passage, KernelError> {
        self.ask(|answer| Job::Forward(want, answer)).await
    }

    /// Returns the counter of what the thread did, readings that tell nothing new included.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Returns how often our interface was read, wholly or the device alone.
    pub fn readings(&self) -> u64 {
        self.readings.load(Ordering::Relaxed)
    }

    /// Returns the index of our link as it was last read or made.
    pub fn link_index(&self) -> Option<u32> {
        self.index.current()
    }

    /// Lists the links that lead out of the host.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel cannot be read.
    pub async fn underlay(&self) -> Result<Vec<Underlay>, KernelError> {
        self.ask(Job::Underlay).await
    }

    /// Subscribes to the kernel's own notices of change, in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel grants no netlink socket.
    pub fn watch(&self) -> Result<Watcher, KernelError> {
        Watcher::open(self.interface.clone(), self.index.clone())
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, KernelError>>) -> Job,
    ) -> Result<T, KernelError> {
        let (answer, reply) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| KernelError::ThreadGone)?;
        reply.await.map_err(|_| KernelError::ThreadGone)?
    }
}
