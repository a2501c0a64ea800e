//! Writes state to disk from a thread of its own, so that a slow or full disk never holds up the mesh.
//!
//! The newest value of each file replaces one that was not written yet. What could not be written is tried again.
//! Records may leave before their sequence is durable: a sequence is never below the time of day, so a start
//! after a power cut goes on above it all the same.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use wgmesh_core::cache::CacheEntry;
use wgmesh_core::identity::NodeState;
use wgmesh_core::key::PublicKey;
use wgmesh_core::relay::Forwarding;
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
    /// Nodes of the DHT to begin with.
    pub(super) dht_nodes: StateFile<Vec<SocketAddrV4>>,
    /// The pairs that it is a relay for.
    pub(super) relay: StateFile<Vec<Forwarding>>,
    /// The pairs between which it routes.
    pub(super) routed: StateFile<Vec<[PublicKey; 2]>>,
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
    /// Nodes of the DHT to begin with.
    DhtNodes(Vec<SocketAddrV4>),
    /// The pairs that it is a relay for.
    Relay(Arc<Vec<Forwarding>>),
    /// The pairs between which it routes.
    Routed(Vec<[PublicKey; 2]>),
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
        let waiting = Waiting::default();
        let thread = builder.spawn(move || Writer { files, report, waiting }.run(&queue))?;
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
    waiting: Waiting,
}

/// What is still to be written.
#[derive(Default)]
struct Waiting {
    node: Option<Box<NodeState>>,
    peers: Option<Vec<CacheEntry>>,
    pins: Option<Pins>,
    book: Option<Book>,
    dht_nodes: Option<Vec<SocketAddrV4>>,
    relay: Option<Arc<Vec<Forwarding>>>,
    routed: Option<Vec<[PublicKey; 2]>>,
}

impl Waiting {
    const fn is_empty(&self) -> bool {
        let Self { node, peers, pins, book, dht_nodes, relay, routed } = self;
        let are_ours = node.is_none() && peers.is_none() && pins.is_none();
        are_ours && book.is_none() && dht_nodes.is_none() && relay.is_none() && routed.is_none()
    }
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        loop {
            let next = match self.waiting.is_empty() {
                false => queue.recv_timeout(RETRY),
                true => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
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
            Job::Node(node) => self.waiting.node = Some(node),
            Job::Peers(peers) => self.waiting.peers = Some(peers),
            Job::Pins(pins) => self.waiting.pins = Some(pins),
            Job::Book(book) => self.waiting.book = Some(book),
            Job::DhtNodes(nodes) => self.waiting.dht_nodes = Some(nodes),
            Job::Relay(relay) => self.waiting.relay = Some(relay),
            Job::Routed(routed) => self.waiting.routed = Some(routed),
        }
    }

    fn write(&mut self) {
        let Self { files, report, waiting } = self;
        let Waiting { node, peers, pins, book, dht_nodes, relay, routed } = waiting;
        let wrote = [
            write(node, |node| files.node.save(node), report),
            write(peers, |peers| files.peers.save(peers), report),
            write(pins, |pins| files.pins.save(pins), report),
            write(book, |book| files.book.save(book), report),
            write(dht_nodes, |nodes| files.dht_nodes.save(nodes), report),
            write(relay, |relay| files.relay.save(relay), report),
            write(routed, |routed| files.routed.save(routed), report),
        ];
        if wrote.contains(&true) && waiting.is_empty() {
            report.send_replace(None);
        }
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
