//! Hosts, wires and time together.
//!
//! Everything that a test does to a world goes through [`World`]; everything that happens in it is checked
//! ([`crate::watch`]) and traced.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tracing::Dispatch;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::dht::DhtEvent;
use wgmesh_core::kernel::Underlay;
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::{Recipient, Stop, Transmit, Via};
use wgmesh_core::secret::MeshSecret;
use wgmesh_core::status::Status;
use wgmesh_core::time::Monotonic;

use crate::dht::VirtualDht;
use crate::host::{Host, HostPlan};
use crate::kernel::{Packet, Sabotage};
use crate::log::Log;
use crate::network::{Arrival, Datagram, HostId, Network, Payload, SegmentId, Stop as Reached};
use crate::random::Random;
use crate::schedule::{Schedule, Slot};
use crate::stun::StunServer;
use crate::trace::Trace;
use crate::watch::Watch;

mod convergence;
mod dht;
mod gossip;
mod relays;
mod sessions;
mod topology;
mod traffic;

use gossip::{Gossiped, Owners};
use sessions::{Flow, Streams};
use traffic::Talk;

/// The UDP port of the mesh's groups and hellos (seed 000, W-X2).
pub const LAN_PORT: u16 = 51830;

/// A world.
pub struct World {
    seed: u64,
    now: Monotonic,
    schedule: Schedule<Happening>,
    wakes: BTreeMap<HostId, Slot>,
    network: Network,
    stun_servers: Vec<StunServer>,
    streams: Streams,
    talks: Vec<Talk>,
    dht: VirtualDht,
    owners: Owners,
    hosts: Vec<Host>,
    random: Random,
    trace: Trace,
    watch: Watch,
    log: Log,
    dispatch: Dispatch,
    recording: Option<Vec<Datagram>>,
    unmeshed: Option<(HostId, HostId)>,
}

enum Happening {
    Arrival(Box<Arrival>),
    Flow(Box<Flow>),
    Talk(usize),
    Dht { host: HostId, event: Box<DhtEvent>, run: u64 },
    Gossip(Box<Gossiped>),
    Wake(HostId),
}

/// Something that must never happen has happened.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("with seed {seed}, at {at:?}, node-{host}: {what}\n{log}")]
pub struct Violation {
    seed: u64,
    at: Duration,
    host: usize,
    what: String,
    log: String,
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl World {
    /// Makes an empty world.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let log = Log::default();
        Self {
            seed,
            now: Monotonic::default(),
            schedule: Schedule::default(),
            wakes: BTreeMap::new(),
            network: Network::new(Random::new(random.below(u64::MAX))),
            stun_servers: Vec::new(),
            streams: Streams::default(),
            talks: Vec::new(),
            dht: VirtualDht::default(),
            owners: Owners::default(),
            hosts: Vec::new(),
            random,
            trace: Trace::default(),
            watch: Watch::default(),
            dispatch: log.dispatch(),
            log,
            recording: None,
            unmeshed: None,
        }
    }

    /// Adds a host on these segments; its daemon does not run yet.
    pub fn add_host(&mut self, plan: HostPlan, segments: &[SegmentId]) -> HostId {
        let id = HostId(self.hosts.len());
        let keys = MeshKeys::derive(&MeshSecret::from_random([plan.secret; 32]).mesh_key());
        self.hosts.push(Host::new(plan, keys, &mut self.random));
        for &segment in segments {
            self.network.attach(segment, id);
        }
        id
    }

    /// Adds so many hosts of one kind.
    pub fn add_hosts(&mut self, count: usize, plan: &HostPlan, segment: SegmentId) -> Vec<HostId> {
        (0..count).map(|_| self.add_host(plan.clone(), &[segment])).collect()
    }

    /// Returns how long the world has existed.
    pub const fn elapsed(&self) -> Duration {
        self.now.since(Monotonic::from_nanos(0))
    }

    /// Returns the world's time, which [`Host::now`] turns into a host's own.
    pub const fn now(&self) -> Monotonic {
        self.now
    }

    /// Returns a host.
    pub fn host(&self, id: HostId) -> &Host {
        &self.hosts[id.0]
    }

    /// Goes through all hosts.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, &Host)> {
        self.hosts.iter().enumerate().map(|(number, host)| (HostId(number), host))
    }

    /// Takes stock of a node as `wgmesh status` would, if its daemon runs.
    pub fn status(&self, id: HostId) -> Option<Status> {
        let host = self.host(id);
        host.mesh().map(|mesh| mesh.status(host.now(self.now)))
    }

    /// Returns the trace of everything so far.
    pub const fn trace(&self) -> Trace {
        self.trace
    }

    /// Returns the world's own chance, for tests that decide at random.
    pub const fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Starts a daemon, if it does not run.
    ///
    /// # Errors
    /// [`Violation`], as of everything that makes a node act.
    pub fn start(&mut self, id: HostId) -> Result<(), Violation> {
        let (surroundings, seed) = (self.surroundings(id), self.random.bytes());
        self.act(id, |host, now| host.start(surroundings, seed, now))
    }

    /// Takes an ERROR of these words in a log for what is to be; any other fails the run.
    pub fn expect_error(&self, words: &'static str) {
        self.log.expect(words);
    }

    /// Ends a daemon without a word.
    pub fn crash(&mut self, id: HostId) {
        self.hosts[id.0].crash();
        self.end_streams(id, true);
        self.reschedule(id);
    }

    /// Ends a daemon as asked.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn stop(&mut self, id: HostId, stop: Stop) -> Result<(), Violation> {
        self.act(id, |host, now| host.stop(stop, now))?;
        self.end_streams(id, true);
        Ok(())
    }

    /// Ends everything on a host and empties its kernel; the daemon waits for [`World::start`].
    pub fn reboot(&mut self, id: HostId) {
        self.hosts[id.0].reboot(&mut self.random);
        self.end_streams(id, false);
        self.reschedule(id);
    }

    /// Has a host stand still from now on, all of it but its clocks, or go on. Its kernel forgets its sessions before.
    pub fn sleep(&mut self, id: HostId, is_asleep: bool) {
        let host = &mut self.hosts[id.0];
        host.is_asleep = is_asleep;
        if is_asleep {
            host.kernel.forget_sessions();
            host.slept_at = self.now;
        } else {
            host.woke = Some(self.now.since(host.slept_at));
        }
        self.reschedule(id);
    }

    /// Changes what is not the daemon's: files, clock, plan.
    pub fn change(&mut self, id: HostId, change: impl FnOnce(&mut Host)) {
        change(&mut self.hosts[id.0]);
        self.reschedule(id);
    }

    /// Has somebody else change a host's kernel.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn sabotage(&mut self, id: HostId, sabotage: &Sabotage) -> Result<(), Violation> {
        self.act(id, |host, now| {
            host.sabotage(sabotage, now);
            host.handle_timeout(now);
        })
    }

    /// Keeps every datagram that any host sends from now on, for [`World::take_recording`].
    pub fn record(&mut self) {
        self.recording = Some(Vec::new());
    }

    /// Returns what was sent since [`World::record`], and stops recording.
    pub fn take_recording(&mut self) -> Vec<Datagram> {
        self.recording.take().unwrap_or_default()
    }

    /// Sends whatever one likes from a host: to a group on its first link, otherwise wherever its routes lead.
    pub fn inject(&mut self, from: HostId, port: u16, to: SocketAddr, payload: &Payload) {
        let arrivals = match to.ip().is_multicast() {
            true => self.network.send_on(from, 2, port, to, payload),
            false => self.network.send(from, port, to, payload),
        };
        self.schedule_all(arrivals);
    }

    /// Returns the address of a host on its first link.
    pub fn address(&self, id: HostId) -> IpAddr {
        let underlay = self.network.underlay(id);
        underlay[0].addresses.first().expect("every link has an address").addr()
    }

    /// Returns the links of a host as its kernel lists them.
    pub fn underlay(&self, id: HostId) -> Vec<Underlay> {
        self.network.underlay(id)
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn run_for(&mut self, span: Duration) -> Result<(), Violation> {
        let end = self.now + span;
        while self.schedule.next_at().is_some_and(|at| at <= end) {
            self.step()?;
        }
        self.now = end;
        Ok(())
    }

    /// Lets time pass until `condition` holds, for at most `limit`. Returns how long it took.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut condition: impl FnMut(&mut Self) -> bool,
    ) -> Result<Option<Duration>, Violation> {
        let (begin, end) = (self.now, self.now + limit);
        while !condition(self) {
            if self.schedule.next_at().is_none_or(|at| at > end) {
                self.now = end;
                return Ok(None);
            }
            self.step()?;
        }
        Ok(Some(self.now.since(begin)))
    }

    fn step(&mut self) -> Result<(), Violation> {
        let Some((at, happening)) = self.schedule.pop() else { return Ok(()) };
        self.now = at;
        self.trace.number(at.as_nanos());
        match happening {
            Happening::Wake(id) => {
                self.wakes.remove(&id);
                self.trace.number(id.0 as u64);
                self.act(id, Host::handle_timeout)
            }
            Happening::Arrival(arrival) => self.on_arrival(&arrival),
            Happening::Flow(flow) => self.on_flow(*flow),
            Happening::Talk(number) => self.on_talk(number),
            Happening::Dht { host, event, run } => self.on_dht(host, *event, run),
            Happening::Gossip(gossiped) => self.on_gossiped(*gossiped),
        }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Result<(), Violation> {
        match arrival.stop {
            Reached::Host { host, interface } => self.on_delivery(host, interface, &arrival.datagram),
            Reached::Inside(_) | Reached::Outside(_) => {
                let arrivals = self.network.forward(arrival, self.now);
                self.schedule_all(arrivals);
                Ok(())
            }
            Reached::Server(address) => {
                self.ask_server(address, &arrival.datagram);
                Ok(())
            }
        }
    }

    fn on_delivery(&mut self, id: HostId, interface: u32, datagram: &Datagram) -> Result<(), Violation> {
        self.trace.number(id.0 as u64);
        if self.host(id).has_relay_port(datagram.to.port()) {
            return self.on_relay_port(id, datagram);
        }
        match &datagram.payload {
            Payload::Daemon(bytes) => {
                self.trace.bytes(bytes);
                self.act(id, |host, now| {
                    host.receive(interface, datagram.from, datagram.to.port(), bytes);
                    host.handle_timeout(now);
                })
            }
            Payload::WireGuard(message) => {
                self.trace.number(message.body.bytes());
                if self.hosts[id.0].kernel.open_port() != Some(datagram.to.port()) {
                    return Ok(());
                }
                self.act(id, |host, now| {
                    let clocks = host.now(now);
                    host.kernel.receive(datagram.from, message, clocks);
                    host.handle_timeout(now);
                })
            }
        }
    }

    /// Lets one host do something, then sends what it wants sent and sees to its next wake.
    fn act(&mut self, id: HostId, act: impl FnOnce(&mut Host, Monotonic)) -> Result<(), Violation> {
        if self.host(id).is_asleep {
            return Ok(());
        }
        let now = self.now;
        self.log.set_place(format!("{:?} node-{}", self.elapsed(), id.0));
        let host = &mut self.hosts[id.0];
        tracing::dispatcher::with_default(&self.dispatch, || act(host, now));
        while let Some(transmit) = self.hosts[id.0].poll_send() {
            self.send(id, transmit)?;
        }
        self.serve_sessions(id);
        while let Some(transmit) = self.hosts[id.0].kernel.poll_transmit() {
            let payload = Payload::WireGuard(transmit.message);
            self.keep(SocketAddr::new(self.address_or_any(id), transmit.port), transmit.to, &payload);
            let arrivals = self.network.send(id, transmit.port, transmit.to, &payload);
            self.schedule_all(arrivals);
        }
        self.reschedule(id);
        let error = self.log.error().map(|error| format!("it logged an ERROR: {error}"));
        error
            .map_or_else(|| Watch::check_host(&self.hosts[id.0]), Err)
            .map_err(|what| self.violation(id, what))
    }

    fn send(&mut self, id: HostId, transmit: Transmit) -> Result<(), Violation> {
        let host = &self.hosts[id.0];
        let checked = match transmit.via {
            Via::WireGuard => {
                let members = self.members(host.plan.secret);
                self.watch.check_probe(host, &transmit.bytes, &members, self.now)
            }
            Via::Link(_) => match self.receivers(&transmit) {
                Some(receivers) => self.watch.check_sent(host, &transmit.bytes, &receivers, self.now),
                None => Ok(()),
            },
        };
        checked.map_err(|what| self.violation(id, what))?;
        let host = &mut self.hosts[id.0];
        host.totals.count(&transmit);
        let keys = host.keys();
        let to = match transmit.to {
            Recipient::GroupV4 => SocketAddr::from((keys.multicast_v4(), LAN_PORT)),
            Recipient::GroupV6 => SocketAddr::from((keys.multicast_v6(), LAN_PORT)),
            Recipient::Node(address) => address,
        };
        // A socket on WireGuard's port is of no use before WireGuard listens there.
        let port = match transmit.via {
            Via::Link(_) => Some(LAN_PORT),
            Via::WireGuard => host.kernel.open_port(),
        };
        let Some(port) = port else { return Ok(()) };
        if let Some(source) = host.kernel.inner_source(to.ip()) {
            let from = SocketAddr::new(source, port);
            let packet = Packet { from, to, datagram: Some(transmit.bytes.into()) };
            let (length, clocks) =
                (packet.datagram.as_ref().map_or(0, |bytes| bytes.len()), host.now(self.now));
            host.kernel.send_to(&packet, length as u64, clocks);
            return Ok(());
        }
        let payload = Payload::Daemon(transmit.bytes.into());
        self.keep(SocketAddr::new(self.address_or_any(id), port), to, &payload);
        let arrivals = match transmit.via {
            Via::Link(interface) => self.network.send_on(id, interface, port, to, &payload),
            Via::WireGuard => self.network.send(id, port, to, &payload),
        };
        self.schedule_all(arrivals);
        Ok(())
    }

    /// Returns the keys of the nodes that a datagram on a link goes to; `None` if it goes to an outsider, who may have
    /// claimed any key.
    fn receivers(&self, transmit: &Transmit) -> Option<Vec<PublicKey>> {
        let Recipient::Node(address) = transmit.to else { return Some(Vec::new()) };
        let meant = self.hosts().filter(|(id, _)| self.network.is_address_of(address.ip(), *id, true));
        meant.map(|(_, host)| host.has_run().then(|| host.public_key())).collect()
    }

    /// Returns the keys of all nodes of a mesh.
    fn members(&self, secret: u8) -> Vec<PublicKey> {
        let is_member = |host: &&Host| host.plan.secret == secret && host.has_run();
        self.hosts.iter().filter(is_member).map(Host::public_key).collect()
    }

    fn keep(&mut self, from: SocketAddr, to: SocketAddr, payload: &Payload) {
        if let Some(recording) = &mut self.recording {
            recording.push(Datagram { from, to, payload: payload.clone() });
        }
    }

    fn address_or_any(&self, id: HostId) -> IpAddr {
        let underlay = self.network.underlay(id);
        let first = underlay.first().and_then(|link| link.addresses.first());
        first.map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |net| net.addr())
    }

    fn schedule_all(&mut self, arrivals: Vec<Arrival>) {
        for arrival in arrivals {
            self.schedule.push(self.now + arrival.after, Happening::Arrival(Box::new(arrival)));
        }
    }

    fn reschedule(&mut self, id: HostId) {
        let wanted = self.hosts[id.0].poll_timeout().map(|at| at.max(self.now));
        let scheduled = self.wakes.get(&id).copied();
        if scheduled.map(Slot::at) == wanted {
            return;
        }
        if let Some(slot) = self.wakes.remove(&id) {
            self.schedule.cancel(slot);
        }
        if let Some(at) = wanted {
            self.wakes.insert(id, self.schedule.push(at, Happening::Wake(id)));
        }
    }

    /// Makes a failure of a node out of what a test saw, with the latest of all logs.
    pub fn violation(&self, id: HostId, what: String) -> Violation {
        Violation { seed: self.seed, at: self.elapsed(), host: id.0, what, log: self.log.latest().join("\n") }
    }
}
