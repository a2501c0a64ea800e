//! The task that drives everything: it owns the [`Mesh`], feeds it events and carries out its commands.
//!
//! ```text
//!   LAN sockets ─┐                                  ┌─▶ LAN sockets
//!   applier ─────┤                                  ├─▶ applier ─▶ kernel
//!   underlay ────┼──▶ Event ──▶ Mesh ──▶ Command ───┤
//!   timer ───────┤                                  └─▶ storage
//!   signals ─────┘
//! ```
//!
//! The order of a start: state from disk, kernel as it was left, sockets, then the first announce; READY once the
//! kernel holds the first plan. Nothing waits for the network. Every other task lives in one `JoinSet` and is
//! cancel-safe.

mod answers;
mod dns_seeds;
mod network;
mod node;
mod reload;
mod signals;
mod storage;
mod timer;
mod underlay;
mod wanted;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::kernel::{Link, Observed, OwnerMark, Underlay};
use wgmesh_core::mesh::{Command, Event, KernelReport, KernelTrouble, Mesh, Stop};
use wgmesh_core::secret::MeshSecret;
use wgmesh_core::time::Monotonic;

use crate::api::{self, ApiRequest, Leaving};
use crate::applier::{Applier, ApplyFailure, Goal, Look, Pulse, Report, Want};
use crate::clock;
use crate::config::File;
use crate::ebpf::EbpfSettings;
use crate::journal;
use crate::kernel::{Changes, Kernel, KernelError, Passage};
use crate::notify::{Notifier, Progress, Watched};
use crate::traffic::{Change, Traffic};
use crate::{privileges, state};
use network::Network;
use node::{Node, Remembered};
use signals::{Asked, Signals};
use storage::{Job, Storage};
use timer::Timer;
use wanted::Wanted;

/// How long a stop waits for the kernel to be cleared, far below systemd's `TimeoutStopSec=`.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(5);

/// Questions from the command line that may wait.
const WAITING_QUESTIONS: usize = 4;

/// How often the state is written to the log at most: at rest it is with the applier's report of each half minute (seed 003,
/// W-D52).
const TELL_INTERVAL: Duration = Duration::from_secs(20);

/// Why a daemon has ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A signal asked for it.
    Stopped,
    /// The operator wants this node out of the mesh.
    Left(Leaving),
}

/// A daemon that could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The local socket cannot be served.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// The state directory cannot be read.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The kernel cannot be used at all.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel does not let us have the interface.
    #[error(transparent)]
    Refused(#[from] ApplyFailure),
    /// A task that should live as long as the daemon has ended, by a panic if there is one. Whoever starts the
    /// daemon anew finds the tunnels working.
    #[error("a task of the daemon ended{}", .0.as_ref().map(|panic| format!(": {panic}")).unwrap_or_default())]
    TaskEnded(Option<tokio::task::JoinError>),
    /// A capability could not be given away.
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    /// The system refused something that always works.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

impl Error {
    /// Whether a capability is missing.
    pub fn is_permission(&self) -> bool {
        matches!(
            self,
            Self::Kernel(KernelError::NoPermission { .. })
                | Self::Refused(ApplyFailure::Kernel(KernelError::NoPermission { .. }))
        )
    }

    /// Whether a file of ours may not be used.
    pub fn is_denied_file(&self) -> bool {
        let kind = match self {
            Self::Api(api::Error::File { source, .. }) => Some(source.kind()),
            Self::State(error) => Some(error.kind()),
            _ => None,
        };
        kind == Some(io::ErrorKind::PermissionDenied)
    }

    /// Whether the interface is somebody else's, which only an operator can change.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(ApplyFailure::Refused(_)))
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System(what, source)
}

/// Runs one mesh until a signal ends it. `journal` changes how much is logged.
///
/// # Errors
/// If it cannot start: the interface is somebody else's, the kernel has no WireGuard, state cannot be read. What
/// fails later is retried and shown in `status`.
pub async fn run(config: File, secret: MeshSecret, journal: journal::Handle) -> Result<Ended, Error> {
    let files = config.state_files();
    let notifier = Notifier::from_environment().map_err(system("reach systemd"))?;
    let lock = api::Lock::take(&config.socket_path())?;
    let server = api::Server::bind(config.socket_path(), lock)?;
    let traffic = Traffic::start(EbpfSettings {
        rates: config.relay.rates(),
        serves: config.relay.serve != Some(false),
        ..EbpfSettings::new(config.interface.clone())
    });
    privileges::drop_loading()?;
    let signals = Signals::listen().map_err(system("listen to signals"))?;
    let kernel = Kernel::open(config.interface.clone())?;
    let watcher = kernel.watch()?;
    let changes = watcher.changes();
    let reading = tokio::spawn(read(kernel.clone()));
    // Lets the question go out: the netlink thread reads while this one derives keys and signs.
    tokio::task::yield_now().await;
    let (ask, questions) = mpsc::channel(WAITING_QUESTIONS);
    let mut tasks = JoinSet::new();
    tasks.spawn(watcher.run());
    tasks.spawn(server.serve(ask));
    let keys = MeshKeys::derive(&secret.mesh_key());
    drop(secret);
    let owner = OwnerMark::new(keys.owner_tag());
    let remembered = Remembered::load(&config, &keys)?;
    let (observed, underlay) = reading.await.map_err(|panic| Error::TaskEnded(Some(panic)))??;
    let node = Node::new(keys, remembered, underlay.clone())?;
    let (goals, wanted) = watch::channel(Goal { generation: 0, want: Want::Nothing });
    let applier = Applier::new(kernel.clone(), owner, wanted, Arc::clone(&changes.mesh));
    let (reports, look, pulse) = (applier.reports(), applier.look(), applier.pulse());
    tasks.spawn(applier.with_reading(Arc::clone(&observed)).run());
    let timer = Timer::new().map_err(system("get a timer"))?;
    let outside = Outside { kernel, changes, goals, reports, look, pulse, traffic, timer, journal };
    let mut daemon = Daemon::start(config, node, outside, observed, &underlay);
    let watched = daemon.watched();
    let ended = tokio::select! {
        ended = daemon.live(signals, questions, &notifier) => ended?,
        () = starve_if_stalled(&notifier, watched) => unreachable!("it never ends"),
        Some(ended) = tasks.join_next() => return Err(Error::TaskEnded(ended.err())),
    };
    // With it ends the thread that writes the files.
    drop(daemon);
    if ended == Ended::Left(Leaving { forget: true }) {
        files.iter().for_each(|file| state::forget(file));
    }
    Ok(ended)
}

async fn starve_if_stalled(notifier: &Notifier, watched: Vec<Watched>) {
    notifier.feed_watchdog(watched).await;
    // systemd set no watchdog.
    std::future::pending().await
}

/// What the daemon talks to, besides the network and the disk.
struct Outside {
    kernel: Kernel,
    changes: Changes,
    goals: watch::Sender<Goal>,
    reports: watch::Receiver<Report>,
    look: Look,
    pulse: Arc<Pulse>,
    traffic: Traffic,
    timer: Timer,
    journal: journal::Handle,
}

struct Daemon {
    /// What it runs with: as it was read last, but for keys that wait for a restart.
    config: File,
    mesh: Mesh,
    network: Network,
    wanted: Wanted,
    storage: Storage,
    outside: Outside,
    /// The links around the mesh, as they were read last.
    underlay: Vec<Underlay>,
    progress: Progress,
    ready: bool,
    /// Writes that the kernel refused in the last turn, in words.
    failures: Option<String>,
    /// What has come of passing packets on.
    passage: Arc<Passage>,
    last_line: String,
    /// When the state was last written to the log.
    told_at: Option<Monotonic>,
    suspend: clock::Suspend,
    /// Whether the operator wants this node out of the mesh.
    leaving: Option<Leaving>,
}

/// Reads the kernel as it was left, and the links around it.
async fn read(kernel: Kernel) -> Result<(Arc<Observed>, Vec<Underlay>), KernelError> {
    let (observed, underlay) = tokio::join!(kernel.observe(), kernel.underlay());
    Ok((Arc::new(observed?), underlay?))
}

impl Daemon {
    fn start(
        config: File,
        node: Node,
        outside: Outside,
        observed: Arc<Observed>,
        underlay: &[Underlay],
    ) -> Self {
        let Node { mesh, network, storage, wanted } = node;
        let mut daemon = Self {
            config,
            mesh,
            network,
            wanted,
            storage,
            outside,
            underlay: Vec::new(),
            progress: Progress::default(),
            ready: false,
            failures: None,
            passage: Arc::default(),
            last_line: String::new(),
            told_at: None,
            suspend: clock::Suspend::new(),
            leaving: None,
        };
        daemon.follow_underlay(underlay);
        let links = underlay.len();
        daemon.feed(Event::Started(observed));
        for (key, endpoint) in daemon.wanted.static_peers() {
            daemon.feed(Event::AddPeer(key, endpoint));
        }
        tracing::debug!(links, "announced");
        daemon
    }

    fn watched(&self) -> Vec<Watched> {
        let pulse = Arc::clone(&self.outside.pulse);
        vec![
            Watched { name: "mesh", progress: self.progress.clone() },
            Watched { name: "applier", progress: pulse.progress() },
            Watched { name: "netlink", progress: self.outside.kernel.progress() },
        ]
    }

    /// Goes round until a signal comes.
    async fn live(
        &mut self,
        mut signals: Signals,
        mut questions: mpsc::Receiver<ApiRequest>,
        notifier: &Notifier,
    ) -> Result<Ended, Error> {
        let stop = loop {
            self.progress.step();
            let deadline = self.mesh.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop(stop) => break stop,
                    // Whatever came of it, the log tells.
                    Asked::Reload => drop(self.reload(notifier)),
                },
                Ok(()) = self.outside.reports.changed() => self.on_report(notifier)?,
                event = self.network.next() => self.feed(event),
                () = self.outside.changes.underlay.notified() => self.on_underlay().await,
                change = self.outside.traffic.changed() => self.on_traffic(change),
                Some(question) = questions.recv() => self.answer(question, notifier).await?,
                due = self.outside.timer.until(deadline) => {
                    due.map_err(system("wait"))?;
                    self.feed(Event::Timeout);
                }
                never = self.progress.step_when_asked() => match never {},
            }
            if self.leaving.is_some() {
                break Stop::Withdraw;
            }
        };
        notifier.stopping();
        self.stop(stop).await;
        Ok(self.leaving.map_or(Ended::Stopped, Ended::Left))
    }

    /// Hands an event to the mesh, with whatever waits on the sockets, and carries out what it wants done. So nothing
    /// is asked again whose answer came in time.
    fn feed(&mut self, event: Event) {
        let woke = self.suspend.take().map(Event::Woke);
        let events: Vec<Event> = woke.into_iter().chain([event]).chain(self.network.waiting()).collect();
        self.mesh.handle_all(events, clock::now());
        self.network.follow_port(self.mesh.listen_port());
        while let Some(command) = self.mesh.poll_command() {
            self.carry_out(command);
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::SaveState(node) => self.storage.write(Job::Node(Box::new(node))),
            Command::SaveCache(peers) => self.storage.write(Job::Peers(peers)),
            Command::SaveBook(book) => self.storage.write(Job::Book(book)),
            Command::Send(transmit) => self.network.send(transmit),
            Command::Relay(table) => {
                self.network.relay(&table);
                self.outside.traffic.follow_relay(Arc::clone(&table));
                self.storage.write(Job::Relay(table));
            }
            Command::SaveRouted(pairs) => self.storage.write(Job::Routed(pairs)),
            Command::Gossip { to, bytes } => self.network.send_gossip(to, &bytes),
            Command::Dial(target) => self.network.dial(target),
            Command::SendFrame { id, bytes } => self.network.send_frame(id, bytes),
            Command::CloseSession(id) => self.network.close_session(id),
            Command::Dht(order) => self.network.ask_dht(order),
            Command::SaveDhtNodes(nodes) => self.storage.write(Job::DhtNodes(nodes)),
            Command::Probe(targets) => self.network.probe(&targets),
            Command::Look => self.outside.changes.mesh.notify_one(),
            Command::Apply { generation, desired } => {
                let want = match desired {
                    Some(desired) => {
                        self.outside.traffic.follow_plan(&desired);
                        Want::Present(desired)
                    }
                    None => Want::Withdrawn,
                };
                self.outside.goals.send_replace(Goal { generation, want });
            }
        }
    }

    fn on_report(&mut self, notifier: &Notifier) -> Result<(), Error> {
        if let Some(change) = self.outside.traffic.take_waiting() {
            self.on_traffic(change);
        }
        let Report { generation, result } = self.outside.reports.borrow_and_update().clone();
        let fresh = result.as_ref().is_ok_and(|outcome| outcome.fresh);
        let outcome = match result {
            Ok(outcome) => {
                if let Link::WireGuard { index, .. } = outcome.observed.link {
                    self.outside.traffic.follow_link(index);
                    self.network.answer_probes(index, &self.mesh);
                }
                self.network.follow_mesh(&outcome.observed);
                self.outside.traffic.follow_sessions(&outcome.observed.peers);
                let taken =
                    outcome.failures.iter().any(|failure| matches!(failure, KernelError::PortInUse { .. }));
                self.failures = outcome.failures.first().map(ToString::to_string);
                self.passage = outcome.passage;
                if taken { Err(KernelTrouble::PortInUse) } else { Ok(outcome.observed) }
            }
            Err(ApplyFailure::Kernel(KernelError::PortInUse { .. })) => Err(KernelTrouble::PortInUse),
            Err(failure) if !self.ready && is_fatal(&failure) => return Err(failure.into()),
            Err(ApplyFailure::Refused(refusal)) => Err(KernelTrouble::Refused(refusal.to_string())),
            Err(ApplyFailure::Kernel(error)) => Err(KernelTrouble::Other(error.to_string())),
        };
        let is_up = outcome.is_ok();
        self.feed(Event::Kernel(KernelReport { generation, outcome, fresh }));
        self.tell_state();
        let (known, direct) = self.mesh.count_peers(clock::now());
        let line = format!("{direct} of {known} peers reached");
        if is_up && !self.ready {
            self.ready = true;
            notifier.ready(&line);
            tracing::info!("ready");
            if let Some(event) = self.network.look_outside() {
                self.feed(event);
            }
        } else if line != self.last_line {
            notifier.status(&line);
        }
        self.last_line = line;
        if let Some(event) = self.network.follow_reached(direct) {
            self.feed(event);
        }
        Ok(())
    }

    /// Writes to the log every half minute or so who is reached and how.
    fn tell_state(&mut self) {
        let now = clock::now();
        if !self.ready || self.told_at.is_some_and(|at| now.monotonic.since(at) < TELL_INTERVAL) {
            return;
        }
        self.told_at = Some(now.monotonic);
        let (known, reached) = self.mesh.count_peers(now);
        tracing::info!(reached, known, "status");
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        for peer in self.mesh.status(now).peers {
            let name = peer.hostname.as_ref().map(ToString::to_string).unwrap_or_default();
            let (kind, endpoint) = peer.path.as_ref().map(|path| (path.kind.as_str(), path.endpoint)).unzip();
            let endpoint = endpoint.map(|endpoint| endpoint.to_string());
            let relay = peer.path.as_ref().and_then(|path| path.relay).map(|relay| relay.to_string());
            let via = peer.sources.join(",");
            tracing::debug!(
                peer = %peer.public_key, name, address = %peer.mesh_ipv4, state = ?peer.state, path = kind, endpoint, relay, via, "peer"
            );
        }
    }

    fn on_traffic(&mut self, change: Change) {
        for key in self.outside.traffic.take_unanswered() {
            self.feed(Event::Unanswered(key));
        }
        match change {
            Change::State => {
                self.outside.kernel.leave_traffic_to_ebpf(self.outside.traffic.tells_of_silence());
            }
            Change::Handshakes(seen) => self.feed(Event::Handshakes(seen)),
        }
    }

    async fn stop(&mut self, stop: Stop) {
        self.feed(Event::Stop(stop));
        if let Some(nodes) = self.network.finish().await {
            self.storage.write(Job::DhtNodes(nodes));
        }
        if stop == Stop::Handover {
            tracing::info!("leaving the tunnels to whoever comes next");
            return;
        }
        let goal = self.outside.goals.borrow().generation;
        let done = self.outside.reports.wait_for(|report| report.generation >= goal && report.is_all_done());
        match tokio::time::timeout(WITHDRAW_PATIENCE, done).await {
            Ok(Ok(_)) => tracing::info!("everything of ours is out of the kernel"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the kernel did not let go of everything in time"),
        }
        if tokio::time::timeout(WITHDRAW_PATIENCE, self.outside.traffic.withdraw()).await.is_err() {
            tracing::warn!("eBPF is still being loaded; something of it may be left");
        }
    }
}

/// Whether waiting cannot help: a start that fails so must be seen to fail.
fn is_fatal(failure: &ApplyFailure) -> bool {
    match failure {
        ApplyFailure::Refused(_) => true,
        ApplyFailure::Kernel(error) => {
            matches!(error, KernelError::NoWireGuard | KernelError::NoPermission { .. })
        }
    }
}
