//! Writes state to disk from a thread of its own, so that a slow or full disk never holds up the mesh.
//!
//! The newest value of each file replaces one that was not written yet. What could not be written is tried again.
//! Records may leave before their sequence is durable: a sequence is never below the time of day, so a start
//! after a power cut goes on above it all the same.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use wgmesh_core::cache::CacheEntry;
use wgmesh_core::identity::NodeState;
use wgmesh_core::standing::Book;

use crate::pins::Pins;
use crate::state::{Error, StateFile};

/// The pause before what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// The files of one mesh.
pub(super) struct Files {
    /// The node's own state.
    pub(super) node: StateFile<NodeState>,
    /// Its peers.
    pub(super) peers: StateFile<Vec<CacheEntry>>,
    /// Whom the operator has named.
    pub(super) pins: StateFile<Pins>,
    /// What others are worth.
    pub(super) book: StateFile<Book>,
}

/// Something to write.
pub(super) enum Job {
    /// The node's own state.
    Node(Box<NodeState>),
    /// Its peers.
    Peers(Vec<CacheEntry>),
    /// Whom the operator has named.
    Pins(Pins),
    /// What others are worth.
    Book(Book),
}

/// The writing thread. Dropping it waits until everything is written, or was tried once more.
pub(super) struct Storage {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    trouble: watch::Receiver<Option<String>>,
}

impl Storage {
    /// Starts the thread.
    pub(super) fn start(files: Files) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (report, trouble) = watch::channel(None);
        let builder = std::thread::Builder::new().name("storage".to_owned());
        let thread = builder.spawn(move || {
            Writer { files, report, node: None, peers: None, pins: None, book: None }.run(&queue)
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), trouble })
    }

    /// Queues something to write.
    pub(super) fn write(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("it is only taken when dropped");
        if jobs.send(job).is_err() {
            tracing::error!("the thread that writes state is gone; nothing is saved any more");
        }
    }

    /// Returns what went wrong with the last write, in words.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed already.
            let _ = thread.join();
        }
    }
}

struct Writer {
    files: Files,
    report: watch::Sender<Option<String>>,
    node: Option<Box<NodeState>>,
    peers: Option<Vec<CacheEntry>>,
    pins: Option<Pins>,
    book: Option<Book>,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        loop {
            let next = match self.waits() {
                true => queue.recv_timeout(RETRY),
                false => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(job) => {
                    self.take(job);
                    queue.try_iter().for_each(|job| self.take(job));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.write();
                    return;
                }
            }
            self.write();
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Node(node) => self.node = Some(node),
            Job::Peers(peers) => self.peers = Some(peers),
            Job::Pins(pins) => self.pins = Some(pins),
            Job::Book(book) => self.book = Some(book),
        }
    }

    fn write(&mut self) {
        let Self { files, report, node, peers, pins, book } = self;
        let wrote = [
            write(node, |node| files.node.save(node), report),
            write(peers, |peers| files.peers.save(peers), report),
            write(pins, |pins| files.pins.save(pins), report),
            write(book, |book| files.book.save(book), report),
        ];
        if wrote.contains(&true) && !self.waits() {
            self.report.send_replace(None);
        }
    }

    const fn waits(&self) -> bool {
        self.node.is_some() || self.peers.is_some() || self.pins.is_some() || self.book.is_some()
    }
}

/// Writes what waits, and lets it wait if that fails. Returns whether it was written.
fn write<T>(
    waiting: &mut Option<T>,
    save: impl FnOnce(&T) -> Result<(), Error>,
    report: &watch::Sender<Option<String>>,
) -> bool {
    let saved = waiting.take_if(|value| save(value).map_err(|error| report.complain(&error)).is_ok());
    saved.is_some()
}

trait Complain {
    fn complain(&self, error: &Error);
}

impl Complain for watch::Sender<Option<String>> {
    fn complain(&self, error: &Error) {
        let text = error.to_string();
        if self.borrow().as_ref() != Some(&text) {
            tracing::error!(error = %text, "state is not saved; it is tried again every half minute");
        }
        self.send_replace(Some(text));
    }
}
