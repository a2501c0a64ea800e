//! The wires: segments that carry datagrams between the hosts on them, as well or badly as they are told to.
//!
//! A segment is one L2 link with one IPv4 network (or IPv6 link-local addresses only). Nothing is routed between
//! segments; a NAT would be a host kind of its own that stands on two of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use wgmesh_core::kernel::Underlay;

use crate::kernel::wireguard::Message;
use crate::random::Random;

/// The bytes that IPv4 and UDP add to each datagram.
pub const HEADER_BYTES: u64 = 28;

/// A host's number in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

/// A segment's number in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(usize);

/// How well a segment carries.
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
}

impl Conditions {
    /// A quiet switch.
    pub const CLEAN: Self = Self {
        latency: Duration::from_micros(200),
        jitter: Duration::from_micros(20),
        loss: 0.0,
        duplication: 0.0,
    };
}

/// Which addresses the hosts of a segment have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// An IPv4 address.
    V4,
    /// An IPv6 link-local address and no other.
    V6,
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

/// What a datagram carries.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Of one daemon to others.
    Lan(Arc<[u8]>),
    /// Of WireGuard.
    WireGuard(Message),
}

/// A datagram that reaches a host.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Which host.
    pub host: HostId,
    /// On which of its links.
    pub interface: u32,
    /// What.
    pub datagram: Datagram,
    /// How long it takes.
    pub after: Duration,
}

/// All segments.
#[derive(Clone, Debug)]
pub struct Network {
    segments: Vec<Segment>,
    random: Random,
}

#[derive(Clone, Debug)]
struct Segment {
    conditions: Conditions,
    family: Family,
    plugs: Vec<Plug>,
}

/// Where a host is plugged in.
#[derive(Clone, Copy, Debug)]
struct Plug {
    host: HostId,
    interface: u32,
    up: bool,
    /// Only plugs of the same island hear each other.
    island: u32,
}

impl Network {
    /// Starts without any segment.
    pub const fn new(random: Random) -> Self {
        Self { segments: Vec::new(), random }
    }

    /// Adds a segment.
    pub fn add_segment(&mut self, conditions: Conditions, family: Family) -> SegmentId {
        self.segments.push(Segment { conditions, family, plugs: Vec::new() });
        SegmentId(self.segments.len() - 1)
    }

    /// Plugs a host into a segment.
    pub fn attach(&mut self, segment: SegmentId, host: HostId) {
        let links = self.segments.iter().filter(|segment| segment.plug(host).is_some()).count();
        let interface = 2 + u32::try_from(links).expect("a host has few links");
        self.segments[segment.0].plugs.push(Plug { host, interface, up: true, island: 0 });
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

    /// Returns the links of a host as its kernel lists them.
    pub fn underlay(&self, host: HostId) -> Vec<Underlay> {
        let plugged = self.segments.iter().enumerate().filter_map(|(number, segment)| {
            let plug = segment.plug(host).filter(|plug| plug.up)?;
            Some(Underlay {
                index: plug.interface,
                name: format!("eth{}", plug.interface - 2),
                multicast: true,
                ethernet: true,
                addresses: [segment.address(number, host)].into(),
            })
        });
        plugged.collect()
    }

    /// Whether what one host sends can reach the other.
    pub fn are_connected(&self, one: HostId, other: HostId) -> bool {
        self.segments.iter().any(|segment| match (segment.plug(one), segment.plug(other)) {
            (Some(one), Some(other)) => one.up && other.up && one.island == other.island,
            _ => false,
        })
    }

    /// Whether `address` is one of `host`, on a link that is up or, with `or_down`, on any.
    pub fn is_address_of(&self, address: IpAddr, host: HostId, or_down: bool) -> bool {
        let plugged = |segment: &Segment| segment.plug(host).is_some_and(|plug| plug.up || or_down);
        let mut segments = self.segments.iter().enumerate().filter(|(_, segment)| plugged(segment));
        segments.any(|(number, segment)| segment.address(number, host).addr() == address)
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
        self.carry(number, host, port, to, payload)
    }

    /// Sends wherever the host's routes lead.
    pub fn send(&mut self, host: HostId, port: u16, to: SocketAddr, payload: &Payload) -> Vec<Arrival> {
        let found = self.segments.iter().enumerate().position(|(number, segment)| {
            let Some(plug) = segment.plug(host).filter(|plug| plug.up) else { return false };
            let is_scope = match to {
                SocketAddr::V4(_) => true,
                SocketAddr::V6(v6) => v6.scope_id() == plug.interface,
            };
            is_scope && segment.address(number, host).contains(&to.ip())
        });
        let Some(number) = found else { return Vec::new() };
        self.carry(number, host, port, to, payload)
    }

    fn carry(
        &mut self,
        number: usize,
        sender: HostId,
        port: u16,
        to: SocketAddr,
        payload: &Payload,
    ) -> Vec<Arrival> {
        let Self { segments, random } = self;
        let segment = &segments[number];
        let Some(source) = segment.plug(sender) else { return Vec::new() };
        let mut arrivals = Vec::new();
        for plug in &segment.plugs {
            let address = segment.address(number, plug.host).addr();
            let is_meant = to.ip().is_multicast() || to.ip() == address;
            if plug.host == sender || !plug.up || plug.island != source.island || !is_meant {
                continue;
            }
            let copies = 1 + u32::from(random.chance(segment.conditions.duplication));
            for _ in 0..copies {
                let after = segment.conditions.latency + random.up_to(segment.conditions.jitter);
                if random.chance(segment.conditions.loss) {
                    continue;
                }
                let from = segment.seen_from(number, sender, port, plug.interface);
                let datagram = Datagram { from, to, payload: payload.clone() };
                arrivals.push(Arrival { host: plug.host, interface: plug.interface, datagram, after });
            }
        }
        arrivals
    }

    fn change_plugs(&mut self, segment: SegmentId, change: impl FnMut(&mut Plug)) {
        self.segments[segment.0].plugs.iter_mut().for_each(change);
    }
}

impl Segment {
    fn plug(&self, host: HostId) -> Option<Plug> {
        self.plugs.iter().find(|plug| plug.host == host).copied()
    }

    fn address(&self, number: usize, host: HostId) -> IpNet {
        let number = u8::try_from(number).expect("a world has few segments");
        let host = u16::try_from(host.0 + 1).expect("a world has fewer than 65,535 hosts");
        let [high, low] = host.to_be_bytes();
        match self.family {
            Family::V4 => Ipv4Net::new(Ipv4Addr::new(172, 16 + number, high, low), 16).map(IpNet::V4),
            Family::V6 => {
                let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, number.into(), host);
                Ipv6Net::new(address, 64).map(IpNet::V6)
            }
        }
        .expect("16 and 64 are prefix lengths")
    }

    /// Returns the sender's address as a receiver on its link `interface` sees it.
    fn seen_from(&self, number: usize, sender: HostId, port: u16, interface: u32) -> SocketAddr {
        match self.address(number, sender).addr() {
            IpAddr::V4(v4) => SocketAddr::from((v4, port)),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, interface).into(),
        }
    }
}
