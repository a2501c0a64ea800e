//! Many nodes and few details: how knowledge spreads through a mesh of up to thousands.
//!
//! Each node is the real [`Mesh`], with its store, its exchange and its gossip. What lies under it is as simple as can be:
//! everyone has a public address, a tunnel is up as soon as both ends hold each other and nothing parts them, nothing
//! gets lost, and a kernel is read each [`READING`] or so instead of every few seconds. Paths are not looked for: what that
//! costs [`crate::world`] shows. So a thousand nodes fit one process, and a day of fifty nodes takes minutes.
//!
//! The same seed gives the same run.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use wgmesh_core::cache::CacheEntry;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::exchange::{SessionEvent, SessionId, Target};
pub use wgmesh_core::gossip::ROUND;
use wgmesh_core::identity::{NodeState, Sequence};
use wgmesh_core::kernel::{Desired, Observed, ObservedPeer, Underlay};
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::{Command, Event, KernelReport, Mesh, Seed, Stop};
use wgmesh_core::secret::MeshSecret;
use wgmesh_core::time::{Monotonic, Now, WallClock};

use crate::host::{self, HostPlan};
use crate::network::HEADER_BYTES;
use crate::random::Random;
use crate::schedule::Schedule;

/// How often a kernel is read; well below the three minutes for which a session lives.
const READING: Duration = Duration::from_secs(60);

/// How long an applier takes for a plan.
const APPLY: Duration = Duration::from_millis(500);

/// One way between any two nodes.
const DELAY: Duration = Duration::from_millis(15);

/// What IPv4, TCP and TLS add to a frame.
const STREAM_OVERHEAD: u64 = 20 + 32 + 22 + 4;

/// How many other nodes each one is told of at its start, as by a lookup elsewhere.
const ACQUAINTANCES: u64 = 3;

/// The wall clock where a world's time is zero: some day in 2027.
const EPOCH_MILLIS: u64 = 1_800_000_000_000;

/// A number of a node.
pub type Number = usize;

/// What a node has sent, with the headers of IP and of UDP, or TCP and TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of gossip, without WireGuard's.
    pub gossip: u64,
    /// Bytes of sessions.
    pub sessions: u64,
}

/// One node, running or not.
struct Node {
    state: NodeState,
    cache: Vec<CacheEntry>,
    mesh: Option<Mesh>,
    desired: Option<Arc<Desired>>,
    generation: u64,
    /// What its kernel knows of sessions: last handshake, and bytes received.
    sessions: BTreeMap<PublicKey, (WallClock, u64)>,
    island: u32,
    skew_millis: i64,
    changed: Monotonic,
    sent: Sent,
    wake_at: Option<Monotonic>,
    /// Rises with each start, so that nothing of an earlier run arrives.
    run: u64,
}

enum Happening {
    Wake(Number),
    Report { node: Number, run: u64, is_regular: bool },
    Tell { node: Number, run: u64, event: Box<Event> },
}

/// A mesh.
pub struct Scale {
    now: Monotonic,
    schedule: Schedule<Happening>,
    random: Random,
    keys: MeshKeys,
    nodes: Vec<Node>,
    numbers: BTreeMap<PublicKey, Number>,
    owners: BTreeMap<IpAddr, Number>,
    streams: BTreeMap<(Number, SessionId), (Number, SessionId)>,
    opened: u64,
    missing: Option<(Number, Number)>,
    reading: Duration,
}

impl Scale {
    /// Makes so many nodes, none of which runs.
    pub fn new(seed: u64, count: usize) -> Self {
        let mut random = Random::new(seed);
        let keys = MeshKeys::derive(&MeshSecret::from_random([1; 32]).mesh_key());
        let nodes: Vec<_> = (0..count).map(|_| Node::new(&mut random)).collect();
        let numbers = nodes.iter().enumerate().map(|(number, node)| (node.state.wg_pubkey, number)).collect();
        Self {
            now: Monotonic::default() + Duration::from_secs(1000),
            schedule: Schedule::default(),
            random,
            keys,
            nodes,
            numbers,
            owners: BTreeMap::new(),
            streams: BTreeMap::new(),
            opened: 0,
            missing: None,
            reading: READING,
        }
    }

    /// Has kernels read so often.
    pub const fn read_kernels_each(&mut self, reading: Duration) {
        self.reading = reading;
    }

    /// Returns the world's time.
    pub const fn now(&self) -> Monotonic {
        self.now
    }

    /// Returns the world's own chance.
    pub const fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Whether a node runs.
    pub fn runs(&self, node: Number) -> bool {
        self.nodes[node].mesh.is_some()
    }

    /// Returns when a node started or ended last.
    pub fn changed_at(&self, node: Number) -> Monotonic {
        self.nodes[node].changed
    }

    /// Returns how many nodes there are, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the running node.
    pub fn mesh(&self, node: Number) -> Option<&Mesh> {
        self.nodes[node].mesh.as_ref()
    }

    /// Returns what all nodes have sent.
    pub fn sent(&self) -> Sent {
        self.nodes.iter().fold(Sent::default(), |sum, node| Sent {
            gossip: sum.gossip + node.sent.gossip,
            sessions: sum.sessions + node.sent.sessions,
        })
    }

    /// Sets by how much a node's wall clock is ahead.
    pub fn set_skew(&mut self, node: Number, millis: i64) {
        self.nodes[node].skew_millis = millis;
    }

    /// Parts the nodes; the same island everywhere heals it.
    pub fn partition(&mut self, island: impl Fn(Number) -> u32) {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.island = island(number);
        }
    }

    /// Starts a node, which is told of a few others that run.
    pub fn start(&mut self, node: Number) {
        if self.runs(node) {
            return;
        }
        let (now, seed) = (self.now_of(node), self.random.bytes());
        let plan = HostPlan { lan: false, max_peers: 4000, ..HostPlan::default() };
        let settings = wgmesh_core::config::Settings { punching: false, ..host::settings(&plan, node) };
        let link = Underlay {
            index: 2,
            name: "eth0".to_owned(),
            addresses: [IpNet::from(IpAddr::V4(address(node)))].into(),
            multicast: false,
            ethernet: true,
        };
        let this = &mut self.nodes[node];
        let mut mesh = Mesh::new(settings, self.keys.clone(), this.state.clone(), vec![link], seed, now);
        mesh.restore(&this.cache, now);
        this.mesh = Some(mesh);
        this.run += 1;
        (this.generation, this.changed, this.wake_at) = (0, self.now, None);
        let bootstrap = self.acquaintances(node);
        self.handle(node, Event::Started(Arc::new(Observed::default())));
        self.handle(node, Event::Bootstrap(bootstrap));
        let run = self.nodes[node].run;
        let first = self.random.up_to(self.reading);
        self.schedule.push(self.now + first, Happening::Report { node, run, is_regular: true });
    }

    /// Ends a node, with a word or without.
    pub fn stop(&mut self, node: Number, says_goodbye: bool) {
        if !self.runs(node) {
            return;
        }
        if says_goodbye {
            self.handle(node, Event::Stop(Stop::Withdraw));
        }
        let this = &mut self.nodes[node];
        (this.mesh, this.desired, this.changed) = (None, None, self.now);
        this.sessions.clear();
        let ends: Vec<_> =
            self.streams.range((node, SessionId(0))..(node + 1, SessionId(0))).map(|(&end, _)| end).collect();
        ends.into_iter().for_each(|end| self.hang_up(end));
    }

    /// Has a node say something new of itself.
    pub fn change(&mut self, node: Number) {
        let third = u8::try_from(self.random.below(256)).expect("below 256");
        let route = Ipv4Net::new(Ipv4Addr::new(172, 20, third, 0), 24).expect("a prefix length");
        let event = Event::Reconfigure { advertise_routes: [route.into()].into(), accept_routes: [].into() };
        self.handle(node, event);
    }

    /// Returns the sequence of the record that a node holds of another.
    pub fn held(&self, by: Number, of: Number) -> Option<Sequence> {
        let peer = self.mesh(by)?.store().get(self.nodes[of].state.wg_pubkey)?;
        Some(peer.record().record().sequence)
    }

    /// Returns the sequence of a node's own newest record.
    pub fn sequence(&self, node: Number) -> Sequence {
        self.nodes[node].state.sequence
    }

    /// Whether every running node holds the newest record of every other that runs.
    pub fn all_know_all(&mut self) -> bool {
        let lacks = |by: Number, of: Number| {
            by != of && self.runs(by) && self.runs(of) && self.held(by, of) != Some(self.sequence(of))
        };
        if self.missing.is_some_and(|(by, of)| lacks(by, of)) {
            return false;
        }
        let count = self.count();
        let missing = (0..count).find_map(|by| (0..count).find(|&of| lacks(by, of)).map(|of| (by, of)));
        self.missing = missing;
        missing.is_none()
    }

    /// Lets time pass.
    pub fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while self.schedule.next_at().is_some_and(|at| at <= end) {
            let Some((at, happening)) = self.schedule.pop() else { return };
            self.now = at;
            self.happen(happening);
        }
        self.now = end;
    }

    /// Lets time pass in `steps` until something holds, and returns how long that took; `None` after `limit`.
    pub fn run_until(
        &mut self,
        limit: Duration,
        step: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let begin = self.now;
        while !holds(self) {
            if self.now.since(begin) >= limit {
                return None;
            }
            self.run_for(step);
        }
        Some(self.now.since(begin))
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(node) => {
                if self.nodes[node].wake_at == Some(self.now) {
                    self.nodes[node].wake_at = None;
                    self.handle(node, Event::Timeout);
                }
            }
            Happening::Report { node, run, is_regular } => {
                if self.nodes[node].run != run || !self.runs(node) {
                    return;
                }
                self.report(node);
                if is_regular {
                    self.schedule.push(self.now + self.reading, Happening::Report { node, run, is_regular });
                }
            }
            Happening::Tell { node, run, event } => {
                if self.nodes[node].run == run {
                    self.handle(node, *event);
                }
            }
        }
    }

    fn handle(&mut self, node: Number, event: Event) {
        let now = self.now_of(node);
        let Some(mesh) = &mut self.nodes[node].mesh else { return };
        mesh.handle(event, now);
        while let Some(command) = self.nodes[node].mesh.as_mut().and_then(Mesh::poll_command) {
            self.carry_out(node, command);
        }
        let this = &mut self.nodes[node];
        let wanted = this.mesh.as_ref().and_then(Mesh::poll_timeout).map(|(at, _)| at.max(self.now));
        if wanted != this.wake_at {
            this.wake_at = wanted;
            if let Some(at) = wanted {
                self.schedule.push(at, Happening::Wake(node));
            }
        }
    }

    fn carry_out(&mut self, node: Number, command: Command) {
        match command {
            Command::SaveState(state) => {
                let ip = state.mesh_ip.map(IpAddr::from).into_iter().chain(state.mesh_ipv6.map(IpAddr::from));
                self.owners.extend(ip.map(|ip| (ip, node)));
                self.nodes[node].state = state;
            }
            Command::SaveCache(cache) => self.nodes[node].cache = cache,
            Command::Apply { generation, desired } => {
                let this = &mut self.nodes[node];
                (this.generation, this.desired) = (generation, desired);
                let run = this.run;
                self.schedule.push(self.now + APPLY, Happening::Report { node, run, is_regular: false });
            }
            Command::Gossip { to, bytes } => self.gossip(node, to, bytes),
            Command::Dial(target) => self.dial(node, target),
            Command::SendFrame { id, bytes } => {
                self.nodes[node].sent.sessions += STREAM_OVERHEAD + bytes.len() as u64;
                let Some(&(other, other_id)) = self.streams.get(&(node, id)) else { return };
                if self.are_connected(node, other) {
                    self.tell(other, DELAY, Event::Session(SessionEvent::Frame { id: other_id, bytes }));
                }
            }
            Command::CloseSession(id) => self.hang_up((node, id)),
            // Nobody looks for paths, and kernels are read regularly.
            Command::Send(_) | Command::Look | Command::SaveBook(_) | Command::Relay(_) => {}
            Command::Dht(_) | Command::SaveDhtNodes(_) | Command::Probe(_) | Command::SaveRouted(_) => {}
        }
    }

    fn gossip(&mut self, node: Number, to: SocketAddr, bytes: Vec<u8>) {
        self.nodes[node].sent.gossip += HEADER_BYTES + bytes.len() as u64;
        let Some(&other) = self.owners.get(&to.ip()) else { return };
        let own = self.nodes[node].state.mesh_ip;
        let (Some(own), true) = (own, self.have_tunnel(node, other)) else { return };
        let from = SocketAddr::new(own.into(), self.keys.gossip_port());
        self.tell(other, DELAY, Event::Gossip { from, bytes });
    }

    fn dial(&mut self, node: Number, target: Target) {
        self.opened += 1;
        let ends = [SessionId(self.opened * 2), SessionId(self.opened * 2 + 1)];
        let by_mesh = self.owners.get(&target.address.ip()).copied();
        let by_address = (0..self.count()).find(|&other| IpAddr::V4(address(other)) == target.address.ip());
        let other = by_mesh.filter(|&other| self.have_tunnel(node, other)).or(by_address);
        let other = other.filter(|&other| self.are_connected(node, other) && self.runs(other));
        let Some(other) = other else {
            let event = SessionEvent::DialFailed { target, error: "no answer".to_owned() };
            return self.tell(node, Duration::from_secs(5), Event::Session(event));
        };
        let exporter = self.random.bytes();
        self.streams.insert((node, ends[0]), (other, ends[1]));
        self.streams.insert((other, ends[1]), (node, ends[0]));
        let remote = SocketAddr::new(address(node).into(), 40_000);
        let event =
            |id, remote, dialed| Event::Session(SessionEvent::Opened { id, remote, dialed, exporter });
        self.tell(node, DELAY * 4, event(ends[0], target.address, Some(target)));
        self.tell(other, DELAY * 4, event(ends[1], remote, None));
    }

    fn hang_up(&mut self, end: (Number, SessionId)) {
        let Some((other, id)) = self.streams.remove(&end) else { return };
        self.streams.remove(&(other, id));
        if self.are_connected(end.0, other) {
            let reason = "the other side closed it".to_owned();
            self.tell(other, DELAY, Event::Session(SessionEvent::Closed { id, reason }));
        }
    }

    fn tell(&mut self, node: Number, after: Duration, event: Event) {
        let run = self.nodes[node].run;
        self.schedule.push(self.now + after, Happening::Tell { node, run, event: Box::new(event) });
    }

    /// Reads a node's kernel and tells the node.
    fn report(&mut self, node: Number) {
        let now = self.now_of(node);
        let Some(desired) = self.nodes[node].desired.clone() else { return };
        let mut sessions = std::mem::take(&mut self.nodes[node].sessions);
        sessions.retain(|key, _| desired.peers.contains_key(key));
        let mut peers = BTreeMap::new();
        for (&key, wanted) in &desired.peers {
            let other = self.numbers.get(&key).copied();
            if other.is_some_and(|other| self.have_tunnel(node, other)) {
                let (handshake, received) = sessions.entry(key).or_insert((now.wall, 0));
                (*handshake, *received) = (now.wall, *received + 32);
            }
            let session = sessions.get(&key).copied();
            let endpoint = other.map(|other| SocketAddr::new(address(other).into(), 51820));
            peers.insert(
                key,
                ObservedPeer {
                    preshared_key: wanted.preshared_key.clone(),
                    endpoint: endpoint.filter(|_| session.is_some()),
                    keepalive: wanted.keepalive,
                    allowed_ips: wanted.allowed_ips.clone(),
                    last_handshake: session.map(|(at, _)| at),
                    rx_bytes: session.map_or(0, |(_, received)| received),
                    tx_bytes: 0,
                },
            );
        }
        self.nodes[node].sessions = sessions;
        let observed = Observed { peers, ..Observed::default() };
        let generation = self.nodes[node].generation;
        let report = KernelReport { generation, outcome: Ok(Arc::new(observed)), fresh: true };
        self.handle(node, Event::Kernel(report));
    }

    /// Whether both ends hold each other, and packets pass between them.
    fn have_tunnel(&self, one: Number, other: Number) -> bool {
        let holds = |one: &Node, other: &Node| {
            one.desired.as_ref().is_some_and(|desired| desired.peers.contains_key(&other.state.wg_pubkey))
        };
        let (one_node, other_node) = (&self.nodes[one], &self.nodes[other]);
        self.are_connected(one, other) && holds(one_node, other_node) && holds(other_node, one_node)
    }

    fn are_connected(&self, one: Number, other: Number) -> bool {
        self.nodes[one].island == self.nodes[other].island
    }

    fn acquaintances(&mut self, node: Number) -> Vec<Seed> {
        let running: Vec<_> = (0..self.count()).filter(|&other| other != node && self.runs(other)).collect();
        let some = if running.is_empty() { 0 } else { ACQUAINTANCES };
        let port = self.keys.exchange_port();
        (0..some)
            .map(|_| {
                let place = self.random.below(running.len() as u64);
                let other = running[usize::try_from(place).expect("less than a length")];
                let target = Target { address: SocketAddr::new(address(other).into(), port), expected: None };
                Seed { name: None, target }
            })
            .collect()
    }

    fn now_of(&self, node: Number) -> Now {
        let millis = EPOCH_MILLIS + self.now.as_nanos() / 1_000_000;
        let wall = WallClock::from_millis(millis.saturating_add_signed(self.nodes[node].skew_millis));
        Now { monotonic: self.now, wall }
    }
}

impl Node {
    fn new(random: &mut Random) -> Self {
        Self {
            state: NodeState::from_random(random.bytes()),
            cache: Vec::new(),
            mesh: None,
            desired: None,
            generation: 0,
            sessions: BTreeMap::new(),
            island: 0,
            skew_millis: 0,
            changed: Monotonic::default(),
            sent: Sent::default(),
            wake_at: None,
            run: 0,
        }
    }
}

fn address(node: Number) -> Ipv4Addr {
    let number = u32::try_from(node).expect("far fewer nodes than addresses");
    Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 1).to_bits() + number)
}
