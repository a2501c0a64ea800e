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
mod clock;
mod storage;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use wgmesh_core::cache::CacheEntry;
use wgmesh_core::config::Settings;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::identity::NodeState;
use wgmesh_core::kernel::{HandshakeMessage, HandshakeSeen, Link, Observed, OwnerMark, Underlay};
use wgmesh_core::mesh::{Command, Event, KernelReport, KernelTrouble, Mesh, Recipient, Stop, Transmit, Via};
use wgmesh_core::secret::MeshSecret;

use crate::api::{self, ApiRequest};
use crate::applier::{Applier, ApplyFailure, Goal, Pulse, Report, Want};
use crate::config::File;
use crate::ebpf::EbpfSettings;
use crate::kernel::{Changes, Kernel, KernelError};
use crate::lan::{Lan, Received};
use crate::names::{Names, Service};
use crate::notify::{Notifier, Progress, Watched};
use crate::traffic::{Change, Traffic};
use crate::wireguard_port::{self, WireguardPort};
use crate::{privileges, state};
use storage::{Files, Job, Storage};

/// How long a stop waits for the kernel to be cleared, far below systemd's `TimeoutStopSec=`.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(5);

/// Datagrams that are taken in at once; more wait for the next turn, so that a flood holds up nothing else.
const WAITING_DATAGRAMS: usize = 64;

/// Questions from the command line that may wait.
const WAITING_QUESTIONS: usize = 4;

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

    /// Whether the interface is somebody else's, which only an operator can change.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(ApplyFailure::Refused(_)))
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System(what, source)
}

/// Runs one mesh until a signal ends it.
///
/// # Errors
/// If it cannot start: the interface is somebody else's, the kernel has no WireGuard, state cannot be read. What
/// fails later is retried and shown in `status`.
pub async fn run(config: File, secret: MeshSecret) -> Result<(), Error> {
    let notifier = Notifier::from_environment().map_err(system("reach systemd"))?;
    let lock = api::Lock::take(&config.socket_path())?;
    let server = api::Server::bind(config.socket_path(), lock)?;
    let traffic = Traffic::start(EbpfSettings::new(config.interface.clone()));
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
    let (reports, pulse) = (applier.reports(), applier.pulse());
    tasks.spawn(applier.with_reading(Arc::clone(&observed)).run());
    let outside = Outside { kernel, changes, goals, reports, pulse, traffic };
    let mut daemon = Daemon::start(node, Services::of(&config), outside, observed, &underlay);
    let watched = daemon.watched();
    tokio::select! {
        ended = daemon.live(signals, questions, &notifier) => ended,
        () = starve_if_stalled(&notifier, watched) => unreachable!("it never ends"),
        Some(ended) = tasks.join_next() => Err(Error::TaskEnded(ended.err())),
    }
}

async fn starve_if_stalled(notifier: &Notifier, watched: Vec<Watched>) {
    notifier.feed_watchdog(watched).await;
    // systemd set no watchdog.
    std::future::pending().await
}

/// The signals that end a daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    handover: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            handover: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for one of them. Cancel-safe.
    async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Withdraw,
            _ = self.interrupt.recv() => Stop::Withdraw,
            _ = self.handover.recv() => Stop::Handover,
        }
    }
}

/// What the daemon talks to, besides the network and the disk.
struct Outside {
    kernel: Kernel,
    changes: Changes,
    goals: watch::Sender<Goal>,
    reports: watch::Receiver<Report>,
    pulse: Arc<Pulse>,
    traffic: Traffic,
}

/// Who is asked for help on the internet.
#[derive(Default)]
struct Services {
    stun: Vec<Service>,
}

impl Services {
    fn of(config: &File) -> Self {
        let stun = config.nat.stun_servers.iter();
        let stun = stun.map(|server| Service { host: server.host.clone(), port: server.port });
        Self { stun: if config.nat.punching { stun.collect() } else { Vec::new() } }
    }
}

struct Daemon {
    mesh: Mesh,
    services: Services,
    lan: Result<Lan, String>,
    wireguard: Result<WireguardPort, String>,
    stun_servers: Names,
    storage: Storage,
    outside: Outside,
    progress: Progress,
    ready: bool,
    /// Writes that the kernel refused in the last turn, in words.
    failures: Option<String>,
    last_line: String,
}

/// The node as it comes from disk, and its way to the network.
struct Node {
    mesh: Mesh,
    lan: Result<Lan, String>,
    wireguard: Result<WireguardPort, String>,
    storage: Storage,
}

/// What the disk and the configuration say of the node, and its sockets.
struct Remembered {
    files: Files,
    node: NodeState,
    cache: Vec<CacheEntry>,
    settings: Settings,
    lan: Result<Lan, String>,
}

impl Remembered {
    fn load(config: &File, keys: &MeshKeys) -> Result<Self, Error> {
        let files = Files {
            node: state::StateFile::new(config.state_path()),
            peers: state::StateFile::new(config.peers_path()),
        };
        let node = match files.node.load()? {
            Some(node) => node,
            None => NodeState::from_random(random()?),
        };
        let cache = files.peers.load()?.unwrap_or_default();
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let settings = config.settings(&hostname.to_string_lossy());
        let lan = match settings.lan {
            true => Lan::open(keys, settings.listen_port).map_err(|error| error.to_string()),
            false => Err("it is not enabled".to_owned()),
        };
        Ok(Self { files, node, cache, settings, lan })
    }
}

impl Node {
    fn new(keys: MeshKeys, remembered: Remembered, underlay: Vec<Underlay>) -> Result<Self, Error> {
        let Remembered { files, node, cache, settings, lan } = remembered;
        let (now, punching) = (clock::now(), settings.punching);
        let mut mesh = Mesh::new(settings, keys, node, underlay, random()?, now);
        let restored = mesh.restore(&cache, now);
        tracing::info!(key = %mesh.public_key(), restored, "starting");
        let storage = Storage::start(files).map_err(system("start a thread"))?;
        let wireguard = match punching {
            true => WireguardPort::open(mesh.listen_port()).map_err(|error| error.to_string()),
            false => Err("it is not enabled".to_owned()),
        };
        Ok(Self { mesh, lan, wireguard, storage })
    }
}

/// Reads the kernel as it was left, and the links around it.
async fn read(kernel: Kernel) -> Result<(Arc<Observed>, Vec<Underlay>), KernelError> {
    let (observed, underlay) = tokio::join!(kernel.observe(), kernel.underlay());
    Ok((Arc::new(observed?), underlay?))
}

impl Daemon {
    fn start(
        node: Node,
        services: Services,
        outside: Outside,
        observed: Arc<Observed>,
        underlay: &[Underlay],
    ) -> Self {
        let Node { mesh, lan, wireguard, storage } = node;
        let mut daemon = Self {
            mesh,
            services,
            lan,
            wireguard,
            stun_servers: Names::resolve(Vec::new()),
            storage,
            outside,
            progress: Progress::default(),
            ready: false,
            failures: None,
            last_line: String::new(),
        };
        daemon.follow_underlay(underlay);
        let links = underlay.len();
        daemon.feed(Event::Started(observed));
        tracing::debug!(links, "announced");
        daemon
    }

    fn watched(&self) -> Vec<Watched> {
        let pulse = Arc::clone(&self.outside.pulse);
        vec![
            Watched { name: "mesh", progress: self.progress.clone() },
            Watched { name: "applier", progress: pulse.progress() },
        ]
    }

    /// Goes round until a signal comes. The applier's report every few seconds makes sure that it does.
    async fn live(
        &mut self,
        mut signals: Signals,
        mut questions: mpsc::Receiver<ApiRequest>,
        notifier: &Notifier,
    ) -> Result<(), Error> {
        let stop = loop {
            self.progress.step();
            let timeout = self.mesh.poll_timeout().map(|(at, _)| at.since(clock::now().monotonic));
            tokio::select! {
                stop = signals.next() => break stop,
                Ok(()) = self.outside.reports.changed() => self.on_report(notifier)?,
                received = receive(&self.lan) => if let Some(event) = datagram(received) {
                    self.feed(event);
                },
                received = receive_wireguard(&self.wireguard) => if let Some(event) = disco(received) {
                    self.feed(event);
                },
                servers = self.stun_servers.changed() => {
                    let servers = servers.into_iter().map(|(_, address)| address).collect();
                    self.feed(Event::StunServers(servers));
                },
                () = self.outside.changes.underlay.notified() => self.on_underlay().await,
                change = self.outside.traffic.changed() => self.on_traffic(change),
                Some(question) = questions.recv() => self.answer(question).await,
                () = tokio::time::sleep(timeout.unwrap_or(Duration::MAX)) => self.feed(Event::Timeout),
            }
        };
        notifier.stopping();
        self.stop(stop).await;
        Ok(())
    }

    /// Hands an event to the mesh, with whatever waits on the sockets, and carries out what it wants done. So nothing
    /// is asked again whose answer came in time.
    fn feed(&mut self, event: Event) {
        let on_links = self.lan.iter().flat_map(|lan| std::iter::from_fn(|| lan.try_receive()));
        let on_port = self.wireguard.iter().flat_map(|port| std::iter::from_fn(|| port.try_receive()));
        let on_links = on_links.take(WAITING_DATAGRAMS).filter_map(datagram);
        let on_port = on_port.take(WAITING_DATAGRAMS).filter_map(disco);
        let events: Vec<Event> = std::iter::once(event).chain(on_links).chain(on_port).collect();
        self.mesh.handle_all(events, clock::now());
        self.follow_port();
        while let Some(command) = self.mesh.poll_command() {
            self.carry_out(command);
        }
    }

    /// Has the raw sockets follow WireGuard to another port.
    fn follow_port(&mut self) {
        let port = self.mesh.listen_port();
        if let Ok(wireguard) = &mut self.wireguard
            && wireguard.port() != port
            && let Err(error) = wireguard.set_port(port)
        {
            tracing::warn!(port, %error, "cannot follow WireGuard to its port");
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::SaveState(node) => self.storage.write(Job::Node(Box::new(node))),
            Command::SaveCache(peers) => self.storage.write(Job::Peers(peers)),
            Command::Send(Transmit { via: Via::Link(index), to, bytes }) => {
                if let Ok(lan) = &self.lan {
                    lan.send(index, to, &bytes);
                }
            }
            Command::Send(Transmit { via: Via::WireGuard, to, bytes }) => {
                if let (Ok(port), Recipient::Node(to)) = (&self.wireguard, to) {
                    port.send(to, &bytes);
                }
            }
            Command::Dial(_) | Command::SendFrame { .. } | Command::CloseSession(_) => {}
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
        let Report { generation, result } = self.outside.reports.borrow_and_update().clone();
        let fresh = result.as_ref().is_ok_and(|outcome| outcome.fresh);
        let outcome = match result {
            Ok(outcome) => {
                if let Link::WireGuard { index, .. } = outcome.observed.link {
                    self.outside.traffic.follow_link(index);
                }
                let taken =
                    outcome.failures.iter().any(|failure| matches!(failure, KernelError::PortInUse { .. }));
                self.failures = outcome.failures.first().map(ToString::to_string);
                if taken { Err(KernelTrouble::PortInUse) } else { Ok(outcome.observed) }
            }
            Err(ApplyFailure::Kernel(KernelError::PortInUse { .. })) => Err(KernelTrouble::PortInUse),
            Err(failure) if !self.ready && is_fatal(&failure) => return Err(failure.into()),
            Err(failure) => Err(KernelTrouble::Other(failure.to_string())),
        };
        let is_up = outcome.is_ok();
        self.feed(Event::Kernel(KernelReport { generation, outcome, fresh }));
        let (known, direct) = self.mesh.count_peers(clock::now());
        let line = format!("{direct} of {known} peers reached");
        if is_up && !self.ready {
            self.ready = true;
            notifier.ready(&line);
            tracing::info!("ready");
            self.look_outside();
        } else if line != self.last_line {
            notifier.status(&line);
        }
        self.last_line = line;
        Ok(())
    }

    /// Begins with what needs more than this host's links. Nothing waits for it.
    fn look_outside(&mut self) {
        let services = std::mem::take(&mut self.services);
        self.stun_servers = Names::resolve(services.stun);
    }

    async fn on_underlay(&mut self) {
        match self.outside.kernel.underlay().await {
            Ok(underlay) => {
                self.follow_underlay(&underlay);
                self.stun_servers.again();
                self.feed(Event::Underlay(underlay));
            }
            Err(error) => tracing::warn!(%error, "cannot list the host's links"),
        }
    }

    fn follow_underlay(&mut self, underlay: &[Underlay]) {
        if let Ok(lan) = &mut self.lan {
            lan.follow(underlay);
        }
        self.outside.traffic.follow_underlay(underlay);
    }

    fn on_traffic(&mut self, change: Change) {
        match change {
            Change::State => {}
            // A first handshake is news at once; a renewal can wait for the next reading.
            Change::Handshakes(seen) if seen.iter().any(is_answer) && self.mesh.awaits_handshake() => {
                self.outside.changes.mesh.notify_one();
            }
            Change::Handshakes(_) => {}
        }
    }

    async fn stop(&mut self, stop: Stop) {
        self.feed(Event::Stop(stop));
        if stop == Stop::Handover {
            tracing::info!("leaving the tunnels to whoever comes next");
            return;
        }
        let goal = self.outside.goals.borrow().generation;
        let done = self.outside.reports.wait_for(|report| report.generation >= goal && report.result.is_ok());
        match tokio::time::timeout(WITHDRAW_PATIENCE, done).await {
            Ok(Ok(_)) => tracing::info!("everything of ours is out of the kernel"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the kernel did not let go of everything in time"),
        }
        if tokio::time::timeout(WITHDRAW_PATIENCE, self.outside.traffic.withdraw()).await.is_err() {
            tracing::warn!("eBPF is still being loaded; something of it may be left");
        }
    }
}

fn datagram(received: io::Result<Received>) -> Option<Event> {
    match received {
        Ok(Received { interface, from, bytes }) => {
            Some(Event::Datagram { via: Via::Link(interface), from, bytes })
        }
        // An error that an earlier send caused; the socket goes on.
        Err(error) => {
            tracing::debug!(%error, "cannot receive on the LAN");
            None
        }
    }
}

fn disco(received: io::Result<wireguard_port::Received>) -> Option<Event> {
    match received {
        Ok(wireguard_port::Received { from, bytes }) => {
            Some(Event::Datagram { via: Via::WireGuard, from, bytes })
        }
        Err(error) => {
            tracing::debug!(%error, "cannot receive on WireGuard's port");
            None
        }
    }
}

async fn receive_wireguard(port: &Result<WireguardPort, String>) -> io::Result<wireguard_port::Received> {
    match port {
        Ok(port) => port.receive().await,
        Err(_) => std::future::pending().await,
    }
}

async fn receive(lan: &Result<Lan, String>) -> io::Result<Received> {
    match lan {
        Ok(lan) => lan.receive().await,
        Err(_) => std::future::pending().await,
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

fn is_answer(seen: &HandshakeSeen) -> bool {
    seen.message == HandshakeMessage::Response
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::System("get random bytes", error.into()))?;
    Ok(bytes)
}
