//! The wires: segments that carry datagrams between the hosts on them, and gateways that carry them on to the internet,
//! as well or badly as they are told to.
//!
//! A [`segment`] is one L2 link. What is not for it goes to its [`gateway`], if it has one: that stands with its outside
//! on the internet, or on another segment (a carrier's), and translates or routes. Each hop takes its time, so boxes
//! see packets in the order in which they come by. Groups stay on their segment.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use wgmesh_core::kernel::Underlay;
use wgmesh_core::time::Monotonic;

use crate::kernel::wireguard::Message;
use crate::nat::Firewall;
use crate::random::Random;

mod gateway;
mod segment;

use gateway::{Gateway, Outside};
pub use segment::Addressing;
use segment::{Plug, Segment};

/// The bytes that IPv4 and UDP add to each datagram.
pub const HEADER_BYTES: u64 = 28;

/// The bytes that IPv6 and UDP add.
const HEADER_BYTES_V6: u64 = 48;

/// A host's number in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

/// A segment's number in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(usize);

/// A gateway's number in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayId(usize);

/// How well a segment, or the internet, carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// What every datagram takes.
    pub latency: Duration,
    /// What some take beyond that, at random; more than the gap between two datagrams reorders them.
    pub jitter: Duration,
    /// The share of datagrams that get lost, for each receiver by itself.
    pub loss: f64,
    /// The share of datagrams that arrive twice.
    pub duplication: f64,
    /// The bytes of the longest packet. A longer one is lost without a word.
    pub mtu: u64,
}

impl Conditions {
    /// A quiet switch.
    pub const CLEAN: Self = Self {
        latency: Duration::from_micros(200),
        jitter: Duration::from_micros(20),
        loss: 0.0,
        duplication: 0.0,
        mtu: 1500,
    };

    /// The internet between two gateways of one country.
    pub const INTERNET: Self =
        Self { latency: Duration::from_millis(10), jitter: Duration::from_millis(1), ..Self::CLEAN };
}

/// A datagram on the wire.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Its content.
    pub payload: Payload,
}

impl Datagram {
    /// Returns how long it is with its headers.
    fn bytes(&self) -> u64 {
        let header = if self.to.is_ipv4() { HEADER_BYTES } else { HEADER_BYTES_V6 };
        let payload = match &self.payload {
            Payload::Daemon(bytes) => bytes.len() as u64,
            Payload::WireGuard(message) => message.body.bytes(),
        };
        header + payload
    }
}

/// What a datagram carries.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Of a daemon, or for one.
    Daemon(Arc<[u8]>),
    /// Of WireGuard.
    WireGuard(Message),
}

/// A datagram that reaches something.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// What it reaches.
    pub stop: Stop,
    /// The datagram as it looks there.
    pub datagram: Datagram,
    /// How long it takes.
    pub after: Duration,
}

/// What a datagram can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A host.
    Host {
        /// Which one.
        host: HostId,
        /// On which of its links.
        interface: u32,
    },
    /// A gateway, from its own segment; [`Network::forward`] carries it on.
    Inside(GatewayId),
    /// A gateway, from the other side.
    Outside(GatewayId),
    /// A server on the internet that is not a host of the world.
    Server(IpAddr),
}

/// What would become of a datagram.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Whom it reaches.
    pub host: HostId,
    /// What it looks like there.
    pub datagram: Datagram,
    /// How long it takes.
    pub after: Duration,
}

/// All segments and gateways.
#[derive(Clone, Debug)]
pub struct Network {
    segments: Vec<Segment>,
    gateways: Vec<Gateway>,
    servers: BTreeSet<IpAddr>,
    /// Pairs of segments between which the internet carries nothing, the lower one first.
    barred: BTreeSet<[SegmentId; 2]>,
    internet: Conditions,
    external_addresses: u16,
    random: Random,
}

impl Network {
    /// Starts without any segment.
    pub const fn new(random: Random) -> Self {
        Self {
            segments: Vec::new(),
            gateways: Vec::new(),
            servers: BTreeSet::new(),
            barred: BTreeSet::new(),
            internet: Conditions::INTERNET,
            external_addresses: 0,
            random,
        }
    }

    /// Adds a segment.
    pub fn add_segment(&mut self, conditions: Conditions, addressing: Addressing) -> SegmentId {
        let number = u8::try_from(self.segments.len()).expect("a world has few segments");
        self.segments.push(Segment::new(number, conditions, addressing));
        SegmentId(self.segments.len() - 1)
    }

    /// Plugs a host into a segment.
    pub fn attach(&mut self, segment: SegmentId, host: HostId) {
        let links = self.segments.iter().filter(|segment| segment.plug(host).is_some()).count();
        let interface = 2 + u32::try_from(links).expect("a host has few links");
        self.segments[segment.0].plugs.push(Plug { host, interface, up: true, island: 0 });
    }

    /// Moves a host's link from one segment to another.
    pub fn roam(&mut self, host: HostId, from: SegmentId, to: SegmentId) {
        let plugs = &mut self.segments[from.0].plugs;
        let Some(index) = plugs.iter().position(|plug| plug.host == host) else { return };
        let plug = plugs.remove(index);
        self.segments[to.0].plugs.push(plug);
    }

    /// Changes how well a segment carries from now on.
    pub fn set_conditions(&mut self, segment: SegmentId, conditions: Conditions) {
        self.segments[segment.0].conditions = conditions;
    }

    /// Pulls a host's plug, or puts it back.
    pub fn set_up(&mut self, segment: SegmentId, host: HostId, up: bool) {
        self.change_plugs(segment, |plug| {
            if plug.host == host {
                plug.up = up;
            }
        });
    }

    /// Cuts a segment into islands that do not hear each other.
    pub fn partition(&mut self, segment: SegmentId, island: impl Fn(HostId) -> u32) {
        self.change_plugs(segment, |plug| plug.island = island(plug.host));
    }

    /// Has a segment carry nothing to a port of its hosts, or everything again.
    pub fn filter(&mut self, segment: SegmentId, port: Option<u16>) {
        self.segments[segment.0].filtered_port = port;
    }

    /// Gives the hosts of a segment global IPv6 addresses behind a firewall, or takes them away.
    pub fn set_ipv6(&mut self, segment: SegmentId, firewall: Option<Firewall>) {
        self.segments[segment.0].has_global_v6 = firewall.is_some();
        if let Some(gateway) = self.gateway_of(segment) {
            self.gateways[gateway.0].firewall = firewall;
        }
    }

    /// Returns the hosts of a segment.
    pub fn hosts_of(&self, segment: SegmentId) -> Vec<HostId> {
        self.segments[segment.0].plugs.iter().map(|plug| plug.host).collect()
    }

    /// Returns the links of a host as its kernel lists them.
    pub fn underlay(&self, host: HostId) -> Vec<Underlay> {
        let plugged = self.segments.iter().filter_map(|segment| {
            let plug = segment.plug(host).filter(|plug| plug.up)?;
            Some(Underlay {
                index: plug.interface,
                name: format!("eth{}", plug.interface - 2),
                multicast: true,
                ethernet: true,
                addresses: segment.addresses(host).into_iter().collect(),
            })
        });
        let mut links: Vec<_> = plugged.collect();
        links.sort_by_key(|link| link.index);
        links
    }

    /// Whether two hosts hear each other on a common segment.
    pub fn share_link(&self, one: HostId, other: HostId) -> bool {
        self.segments.iter().any(|segment| match (segment.plug(one), segment.plug(other)) {
            (Some(one), Some(other)) => one.up && other.up && one.island == other.island,
            _ => false,
        })
    }

    /// Whether what one host sends can reach the other: on a common segment, or through gateways by the rule of
    /// [`crate::nat::direct_path_possible`].
    pub fn are_connected(&self, one: HostId, other: HostId) -> bool {
        self.share_link(one, other) || self.have_common_ipv6(one, other) || self.have_direct_path(one, other)
    }

    /// Whether `address` is one of `host`, on a link that is up or, with `or_down`, on any.
    pub fn is_address_of(&self, address: IpAddr, host: HostId, or_down: bool) -> bool {
        let plugged = |segment: &&Segment| segment.plug(host).is_some_and(|plug| plug.up || or_down);
        let mut segments = self.segments.iter().filter(plugged);
        segments.any(|segment| segment.addresses(host).iter().any(|net| net.addr() == address))
    }

    /// Sends from one of the host's links; `to` may be a group. Returns what arrives.
    pub fn send_on(
        &mut self,
        host: HostId,
        interface: u32,
        port: u16,
        to: SocketAddr,
        payload: &Payload,
    ) -> Vec<Arrival> {
        let found = self.segments.iter().position(|segment| {
            segment.plug(host).is_some_and(|plug| plug.interface == interface && plug.up)
        });
        let Some(number) = found else { return Vec::new() };
        let Some(from) = self.segments[number].source(host, to.ip()) else { return Vec::new() };
        let datagram = Datagram { from: SocketAddr::new(from, port), to, payload: payload.clone() };
        self.carry(number, Some(host), &datagram)
    }

    /// Sends wherever the host's routes lead: to a link that the address is on, else by the first link with a gateway.
    pub fn send(&mut self, host: HostId, port: u16, to: SocketAddr, payload: &Payload) -> Vec<Arrival> {
        let Some((number, is_on_link)) = self.route(host, to) else { return Vec::new() };
        let Some(from) = self.segments[number].source(host, to.ip()) else { return Vec::new() };
        let datagram = Datagram { from: SocketAddr::new(from, port), to, payload: payload.clone() };
        if is_on_link {
            return self.carry(number, Some(host), &datagram);
        }
        let is_cut_off = self.segments[number].plug(host).is_none_or(|plug| plug.island != 0);
        match self.gateway_of(SegmentId(number)).filter(|_| !is_cut_off) {
            Some(gateway) => self.hop(self.segments[number].conditions, Stop::Inside(gateway), &datagram),
            None => Vec::new(),
        }
    }

    /// Returns what would become of a datagram to this endpoint if it were sent now and nothing got lost by chance;
    /// `None` if it reaches no host.
    pub fn trial(&self, host: HostId, port: u16, to: SocketAddr, now: Monotonic) -> Option<Trial> {
        let mut trial = self.clone();
        let perfect = |conditions: &mut Conditions| {
            *conditions = Conditions { loss: 0.0, duplication: 0.0, jitter: Duration::ZERO, ..*conditions };
        };
        perfect(&mut trial.internet);
        trial.segments.iter_mut().for_each(|segment| perfect(&mut segment.conditions));
        let mut arrivals = trial.send(host, port, to, &Payload::Daemon([].into()));
        let mut after = Duration::ZERO;
        while let Some(arrival) = arrivals.pop() {
            after += arrival.after;
            match arrival.stop {
                Stop::Host { host, .. } => return Some(Trial { host, datagram: arrival.datagram, after }),
                Stop::Server(_) => return None,
                Stop::Inside(_) | Stop::Outside(_) => arrivals.extend(trial.forward(&arrival, now)),
            }
        }
        None
    }

    /// Returns the share of a host's datagrams that get lost on their way over the internet.
    pub fn loss(&self, host: HostId) -> f64 {
        let own = self.segments.iter().find(|segment| segment.plug(host).is_some());
        1.0 - (1.0 - self.internet.loss) * (1.0 - own.map_or(0.0, |segment| segment.conditions.loss))
    }

    /// Returns the first segment that a host should send by, and whether the address is on it.
    fn route(&self, host: HostId, to: SocketAddr) -> Option<(usize, bool)> {
        let plugged = || {
            let mut up: Vec<_> = self.segments.iter().enumerate().collect();
            up.retain(|(_, segment)| segment.plug(host).is_some_and(|plug| plug.up));
            up.sort_by_key(|(_, segment)| segment.plug(host).map(|plug| plug.interface));
            up.into_iter()
        };
        let on_link = plugged().find(|(_, segment)| segment.is_on_link(host, to));
        let by_gateway = || {
            plugged().find(|(number, segment)| {
                self.gateway_of(SegmentId(*number)).is_some() && segment.source(host, to.ip()).is_some()
            })
        };
        match on_link {
            Some((number, _)) => Some((number, true)),
            None => by_gateway().map(|(number, _)| (number, false)),
        }
    }

    /// Carries a datagram over one segment, from a host on it or from a gateway.
    fn carry(&mut self, number: usize, sender: Option<HostId>, datagram: &Datagram) -> Vec<Arrival> {
        let segment = &self.segments[number];
        let island = sender.map_or(Some(0), |sender| segment.plug(sender).map(|plug| plug.island));
        let Some(island) = island else { return Vec::new() };
        let (conditions, to) = (segment.conditions, datagram.to.ip());
        if segment.filtered_port == Some(datagram.to.port()) {
            return Vec::new();
        }
        let is_meant = |plug: &&Plug| to.is_multicast() || segment.has_address(plug.host, to);
        let is_reached = |plug: &&Plug| Some(plug.host) != sender && plug.up && plug.island == island;
        let mut stops: Vec<_> = segment
            .plugs
            .iter()
            .filter(is_reached)
            .filter(is_meant)
            .map(|plug| Stop::Host { host: plug.host, interface: plug.interface })
            .collect();
        let gateways = self.gateways.iter().enumerate();
        let carried = gateways.filter(|(_, gateway)| {
            gateway.outside == Outside::Segment(SegmentId(number)) && gateway.has_external(to)
        });
        stops.extend(carried.map(|(number, _)| Stop::Outside(GatewayId(number))));
        stops.into_iter().flat_map(|stop| self.hop(conditions, stop, datagram)).collect()
    }

    /// Lets a datagram reach its next stop, perhaps twice or not at all.
    fn hop(&mut self, conditions: Conditions, stop: Stop, datagram: &Datagram) -> Vec<Arrival> {
        let random = &mut self.random;
        let mut arrivals = Vec::new();
        let copies = 1 + u32::from(random.chance(conditions.duplication));
        for _ in 0..copies {
            let after = conditions.latency + random.up_to(conditions.jitter);
            if random.chance(conditions.loss) || datagram.bytes() > conditions.mtu {
                continue;
            }
            let mut datagram = datagram.clone();
            if let (Stop::Host { interface, .. }, SocketAddr::V6(from)) = (stop, &mut datagram.from)
                && from.ip().is_unicast_link_local()
            {
                from.set_scope_id(interface);
            }
            arrivals.push(Arrival { stop, datagram, after });
        }
        arrivals
    }

    fn change_plugs(&mut self, segment: SegmentId, change: impl FnMut(&mut Plug)) {
        self.segments[segment.0].plugs.iter_mut().for_each(change);
    }
}

#[cfg(test)]
mod tests;
