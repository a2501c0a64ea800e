//! One host: its kernel, its disk, its clocks and, while it runs, its daemon around the real [`Mesh`].
//!
//! The daemon may crash or restart; kernel and disk stay. A reboot also empties the kernel.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use wgmesh_core::derive::MeshKeys;
use wgmesh_core::dht::{DhtEvent, Order};
use wgmesh_core::exchange::{SessionEvent, SessionId, Target};
use wgmesh_core::kernel::{OwnerMark, Underlay};
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::{Command, Event, KernelReport, Mesh, Seed, Stop, Transmit, Via};
use wgmesh_core::relay::Forwarding;
use wgmesh_core::time::{Monotonic, Now, WallClock};

use crate::applier::Applier;
use crate::kernel::{Kernel, Sabotage};
use crate::random::Random;
use crate::world::LAN_PORT;

mod disk;
mod plan;
mod probing;
mod record;
mod relaying;
mod totals;

pub use disk::Disk;
pub use plan::{HostPlan, settings};
use probing::Probing;
pub use relaying::Relaying;
pub use totals::Totals;

/// What a socket's default buffer (`net.core.rmem_default`, 212,992 bytes) holds of datagrams like ours, each of
/// which is accounted with some 1,300 bytes.
const SOCKET_DATAGRAMS: usize = 160;

/// Datagrams that the daemon takes in at once.
const WAITING_DATAGRAMS: usize = 64;

/// The wall clock where a world's time is zero: some day in 2027.
const EPOCH_MILLIS: u64 = 1_800_000_000_000;

/// What a daemon wants done with its sessions, or of the DHT.
#[derive(Clone, Debug)]
pub enum Request {
    /// A new one.
    Dial(Target),
    /// A frame sent.
    Send(SessionId, Vec<u8>),
    /// An end.
    Close(SessionId),
    /// Something of the DHT.
    Dht(Order),
    /// A datagram sent to a mesh address; no part of a session.
    Gossip(SocketAddr, Vec<u8>),
}

/// What a daemon finds when it starts.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The host's number, for its name.
    pub number: usize,
    /// The host's links.
    pub underlay: Vec<Underlay>,
    /// The STUN servers of its configuration.
    pub stun_servers: Vec<SocketAddr>,
    /// Its bootstrap nodes.
    pub bootstrap: Vec<Target>,
}

struct Process {
    mesh: Mesh,
    applier: Applier,
    inbox: VecDeque<Event>,
    free_at: Monotonic,
    probing: Probing,
}

/// One host.
pub struct Host {
    /// What it is like.
    pub plan: HostPlan,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its files.
    pub disk: Disk,
    /// What it did.
    pub totals: Totals,
    /// Whether it stands still, all but its clocks.
    pub is_asleep: bool,
    /// Since when it stands still, or stood still last.
    pub slept_at: Monotonic,
    /// For how long it stood still, as long as its daemon has not noticed.
    pub woke: Option<Duration>,
    /// Whether its daemon does, and nothing else.
    pub is_hung: bool,
    keys: MeshKeys,
    boot_offset: Duration,
    process: Option<Process>,
    sends: VecDeque<Transmit>,
    requests: VecDeque<Request>,
    /// What its daemon passes on for others, while it runs.
    forwardings: Arc<Vec<Forwarding>>,
    sabotaged_at: Option<Monotonic>,
    /// How often the daemon wanted to be called again at the same moment.
    calls_at_once: u32,
    called_at: Monotonic,
    /// How many daemons have run here.
    runs: u64,
}

impl Host {
    /// Installs a host that has never run.
    pub fn new(plan: HostPlan, keys: MeshKeys, random: &mut Random) -> Self {
        Self {
            plan,
            kernel: Kernel::new(Random::new(random.below(u64::MAX))),
            disk: Disk::new(random),
            totals: Totals::default(),
            is_asleep: false,
            slept_at: Monotonic::default(),
            woke: None,
            is_hung: false,
            keys,
            boot_offset: random.up_to(Duration::from_secs(86_400)),
            process: None,
            sends: VecDeque::new(),
            requests: VecDeque::new(),
            forwardings: Arc::default(),
            sabotaged_at: None,
            calls_at_once: 0,
            called_at: Monotonic::default(),
            runs: 0,
        }
    }

    /// Reads the host's clocks.
    pub fn now(&self, world: Monotonic) -> Now {
        let millis = EPOCH_MILLIS + world.as_nanos() / 1_000_000;
        Now {
            monotonic: world + self.boot_offset,
            wall: WallClock::from_millis(millis.saturating_add_signed(self.plan.skew_millis)),
        }
    }

    /// Returns the node's key.
    pub const fn public_key(&self) -> PublicKey {
        self.disk.state.wg_pubkey
    }

    /// Whether a daemon ever ran here; otherwise it is an outsider's host.
    pub const fn has_run(&self) -> bool {
        self.runs > 0
    }

    /// Returns how many daemons have run here: the number of the one that runs, or ran last.
    pub const fn runs(&self) -> u64 {
        self.runs
    }

    /// Returns the keys of its mesh.
    pub const fn keys(&self) -> &MeshKeys {
        &self.keys
    }

    /// Returns the running node.
    pub fn mesh(&self) -> Option<&Mesh> {
        self.process.as_ref().map(|process| &process.mesh)
    }

    /// Returns how often the daemon of now has read the kernel.
    pub fn readings(&self) -> u64 {
        self.process.as_ref().map_or(0, |process| process.applier.readings())
    }

    /// Returns how many plans of the daemon of now were made in vain.
    pub fn overtaken_plans(&self) -> u64 {
        self.process.as_ref().map_or(0, |process| process.applier.overtaken())
    }

    /// Whether somebody changed its kernel within the last `span`.
    pub fn was_sabotaged_within(&self, span: Duration, world: Monotonic) -> bool {
        self.sabotaged_at.is_some_and(|at| world.since(at) <= span)
    }

    /// Starts the daemon, if it does not run.
    pub fn start(&mut self, surroundings: Surroundings, seed: [u8; 32], world: Monotonic) {
        if self.process.is_some() {
            return;
        }
        self.runs += 1;
        let now = self.now(world);
        let Surroundings { number, underlay, stun_servers, bootstrap } = surroundings;
        let settings = settings(&self.plan, number);
        let mut mesh = Mesh::new(settings, self.keys.clone(), self.disk.state.clone(), underlay, seed, now);
        mesh.take_book(self.disk.book.clone(), now);
        mesh.restore(&self.disk.cache, now);
        mesh.restore_routed(&self.disk.routed, now);
        let owner = OwnerMark::new(self.keys.owner_tag());
        let applier = Applier::new(self.plan.pace, owner, now.monotonic);
        let (inbox, probing) = (VecDeque::new(), Probing::default());
        self.process = Some(Process { mesh, applier, inbox, free_at: now.monotonic, probing });
        let observed = Arc::new(self.kernel.observe());
        self.handle(Event::Started(observed), now);
        self.handle(Event::StunServers(stun_servers), now);
        self.handle(Event::ExchangePort(self.exchange_port()), now);
        let seeds =
            bootstrap.into_iter().map(|target| Seed { name: Some(target.address.to_string()), target });
        self.handle(Event::Bootstrap(seeds.collect()), now);
        self.handle(Event::Dht(DhtEvent::Opened), now);
    }

    /// Returns the port that its exchange listens on.
    pub fn exchange_port(&self) -> Option<u16> {
        self.plan.exchange.then(|| self.keys.exchange_port())
    }

    /// Ends the daemon without a word; what it left in the kernel stays.
    pub fn crash(&mut self) {
        self.process = None;
        self.sends.clear();
        self.requests.clear();
        self.forwardings = Arc::default();
    }

    /// Ends the daemon as asked.
    pub fn stop(&mut self, stop: Stop, world: Monotonic) {
        let now = self.now(world);
        self.handle(Event::Stop(stop), now);
        if let (Some(process), Stop::Withdraw) = (&self.process, stop) {
            process.applier.withdraw(&mut self.kernel, now);
        }
        self.process = None;
        self.forwardings = Arc::default();
    }

    /// Ends everything and comes up again with an empty kernel.
    pub fn reboot(&mut self, random: &mut Random) {
        self.crash();
        self.kernel = Kernel::new(Random::new(random.below(u64::MAX)));
    }

    /// Tells the daemon of its links.
    pub fn set_underlay(&mut self, underlay: Vec<Underlay>, world: Monotonic) {
        self.handle(Event::Underlay(underlay), self.now(world));
    }

    /// Puts a datagram into the daemon's socket for its port, if there is one.
    pub fn receive(&mut self, interface: u32, from: SocketAddr, port: u16, bytes: &[u8]) {
        let via = match port {
            LAN_PORT => Via::Link(interface),
            port if self.kernel.open_port() == Some(port) => Via::WireGuard,
            _ => return,
        };
        let Some(process) = &mut self.process else { return };
        if process.inbox.len() >= SOCKET_DATAGRAMS {
            self.totals.overflows += 1;
            return;
        }
        process.inbox.push_back(Event::Datagram { via, from, bytes: bytes.to_vec() });
    }

    /// Has somebody else change the kernel.
    pub fn sabotage(&mut self, sabotage: &Sabotage, world: Monotonic) {
        self.sabotaged_at = Some(world);
        self.kernel.sabotage(sabotage);
    }

    /// Puts a datagram into the daemon's socket on its mesh address.
    pub fn receive_gossip(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        let Some(process) = &mut self.process else { return };
        if process.inbox.len() >= SOCKET_DATAGRAMS {
            self.totals.overflows += 1;
            return;
        }
        process.inbox.push_back(Event::Gossip { from, bytes });
    }

    /// Does whatever is due.
    pub fn handle_timeout(&mut self, world: Monotonic) {
        let now = self.now(world);
        self.kernel.handle_timeout(now);
        self.read_packets();
        if self.is_hung {
            return;
        }
        self.pass_on_kernel_events(now);
        let Some(process) = &mut self.process else { return };
        if let Some(report) = process.applier.handle_timeout(&mut self.kernel, now) {
            self.on_report(report, now);
        }
        self.read_sockets(now);
        self.probe(now);
        let due = |process: &Process| {
            let is_free = process.free_at <= now.monotonic;
            is_free && process.mesh.poll_timeout().is_some_and(|(at, _)| at <= now.monotonic)
        };
        if self.process.as_ref().is_some_and(due) {
            self.calls_at_once = if self.called_at == now.monotonic { self.calls_at_once + 1 } else { 0 };
            self.called_at = now.monotonic;
            self.handle(Event::Timeout, now);
        }
        self.pass_on_kernel_events(now);
    }

    /// Returns when [`Host::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        if self.is_asleep {
            return None;
        }
        let process = self.process.as_ref().filter(|_| !self.is_hung);
        let daemon = process.into_iter().flat_map(|process| {
            let inbox = process.inbox.front().map(|_| process.free_at);
            let mesh = process.mesh.poll_timeout().map(|(at, _)| at.max(process.free_at));
            [Some(process.applier.poll_timeout()), inbox, mesh, process.probing.poll_timeout()]
        });
        let next = daemon.chain([self.kernel.poll_timeout()]).flatten().min()?;
        Some(next - self.boot_offset)
    }

    /// Returns the daemon's next datagram to send.
    pub fn poll_send(&mut self) -> Option<Transmit> {
        self.sends.pop_front()
    }

    /// Returns what the daemon wants done next with its sessions.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Tells the daemon of one of its sessions.
    pub fn hear_session(&mut self, event: SessionEvent, world: Monotonic) {
        self.handle(Event::Session(event), self.now(world));
    }

    /// Tells the daemon of the DHT.
    pub fn hear_dht(&mut self, event: DhtEvent, world: Monotonic) {
        self.handle(Event::Dht(event), self.now(world));
    }

    /// Takes what waits in the sockets, if the daemon is free to.
    fn read_sockets(&mut self, now: Now) {
        let batch = self.take_waiting(now);
        self.handle_all(batch, now);
    }

    /// Empties the sockets as far as the daemon does at once; it is busy for as long as that costs.
    fn take_waiting(&mut self, now: Now) -> Vec<Event> {
        let Some(process) = &mut self.process else { return Vec::new() };
        if process.free_at > now.monotonic {
            return Vec::new();
        }
        let waiting = process.inbox.len().min(WAITING_DATAGRAMS);
        let batch: Vec<_> = process.inbox.drain(..waiting).collect();
        process.free_at = now.monotonic + self.plan.cost * u32::try_from(batch.len()).unwrap_or(u32::MAX);
        batch
    }

    fn on_report(&mut self, report: KernelReport, now: Now) {
        self.handle(Event::Kernel(report), now);
    }

    fn pass_on_kernel_events(&mut self, now: Now) {
        let changed = self.kernel.take_change();
        let answered = self.kernel.take_answered();
        let unanswered = self.kernel.take_unanswered();
        let Some(process) = &mut self.process else { return };
        if changed {
            process.applier.notice(now.monotonic);
        }
        if self.plan.has_ebpf {
            if !answered.is_empty() {
                self.handle(Event::Handshakes(answered), now);
            }
            unanswered.into_iter().for_each(|key| self.handle(Event::Unanswered(key), now));
        }
    }

    /// Hands an event to the node, with whatever waits in its sockets, as the daemon does.
    fn handle(&mut self, event: Event, now: Now) {
        let waiting = self.take_waiting(now);
        self.handle_all(std::iter::once(event).chain(waiting).collect(), now);
    }

    fn handle_all(&mut self, events: Vec<Event>, now: Now) {
        let Some(process) = self.process.as_mut().filter(|_| !events.is_empty()) else { return };
        if self.is_hung {
            return process.inbox.extend(events);
        }
        let woke = self.woke.take().map(Event::Woke);
        process.mesh.handle_all(woke.into_iter().chain(events), now);
        while let Some(command) = process.mesh.poll_command() {
            match command {
                Command::SaveState(state) => self.disk.state = state,
                Command::SaveCache(cache) => self.disk.cache = cache,
                Command::SaveBook(book) => self.disk.book = book,
                Command::Apply { generation, desired } => {
                    process.applier.set_goal(generation, desired);
                }
                Command::Send(transmit) => self.sends.push_back(transmit),
                Command::Relay(table) => self.forwardings = table,
                Command::SaveRouted(pairs) => self.disk.routed = pairs,
                Command::Gossip { to, bytes } => self.requests.push_back(Request::Gossip(to, bytes)),
                Command::Dial(target) => self.requests.push_back(Request::Dial(target)),
                Command::SendFrame { id, bytes } => self.requests.push_back(Request::Send(id, bytes)),
                Command::CloseSession(id) => self.requests.push_back(Request::Close(id)),
                Command::Dht(order) => self.requests.push_back(Request::Dht(order)),
                Command::SaveDhtNodes(_) => {}
                Command::Probe(targets) => process.probing.follow(targets, now.monotonic),
                Command::Look => process.applier.notice(now.monotonic),
            }
        }
    }
}
