//! What leads from a segment to the rest of the world.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use wgmesh_core::time::Monotonic;

use super::{Arrival, Conditions, Datagram, GatewayId, HostId, Network, SegmentId, Stop};
use crate::nat::{Behaviour, Firewall, Nat, direct_path_possible};
use crate::random::Random;

/// What a gateway's other side is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outside {
    /// The internet.
    Internet,
    /// A carrier's segment.
    Segment(SegmentId),
}

#[derive(Clone, Debug)]
pub(super) struct Gateway {
    pub(super) inside: SegmentId,
    pub(super) outside: Outside,
    /// What it does to IPv4; without it routes.
    pub(super) nat: Option<Nat>,
    /// What it does to IPv6 while the segment has any.
    pub(super) firewall: Option<Firewall>,
    /// Only gateways of the same island hear each other over the internet.
    island: u32,
}

impl Gateway {
    pub(super) fn has_external(&self, address: IpAddr) -> bool {
        self.nat.as_ref().is_some_and(|nat| address == nat.external())
    }
}

impl Network {
    /// Leads a segment to the internet, or to a carrier's segment, through a NAT or, without one, as it is.
    ///
    /// # Panics
    /// If the segment has a gateway.
    pub fn add_gateway(
        &mut self,
        inside: SegmentId,
        carrier: Option<SegmentId>,
        behaviour: Option<Behaviour>,
    ) -> GatewayId {
        assert!(self.gateway_of(inside).is_none(), "a segment has one gateway");
        let outside = carrier.map_or(Outside::Internet, Outside::Segment);
        let external = self.next_external(outside);
        let random = Random::new(self.random.below(u64::MAX));
        let nat = behaviour.map(|behaviour| Nat::new(behaviour, external, random));
        self.gateways.push(Gateway { inside, outside, nat, firewall: None, island: 0 });
        GatewayId(self.gateways.len() - 1)
    }

    /// Changes how well the internet carries from now on.
    pub const fn set_internet(&mut self, conditions: Conditions) {
        self.internet = conditions;
    }

    /// Cuts the internet into islands of segments that do not hear each other.
    pub fn partition_internet(&mut self, island: impl Fn(SegmentId) -> u32) {
        self.gateways.iter_mut().for_each(|gateway| gateway.island = island(gateway.inside));
    }

    /// Has the internet carry nothing between two segments, or everything again.
    pub fn bar(&mut self, [one, other]: [SegmentId; 2], is_barred: bool) {
        self.bar_one_way([one, other], is_barred);
        self.bar_one_way([other, one], is_barred);
    }

    /// Has the internet carry nothing from the first segment to the second, or everything again.
    pub fn bar_one_way(&mut self, way: [SegmentId; 2], is_barred: bool) {
        match is_barred {
            true => self.barred.insert(way),
            false => self.barred.remove(&way),
        };
    }

    /// Whether the internet carries packets from one gateway on it to another.
    fn hears(&self, from: GatewayId, to: GatewayId) -> bool {
        let [from, to] = [from, to].map(|GatewayId(number)| &self.gateways[number]);
        from.island == to.island && !self.barred.contains(&[from.inside, to.inside])
    }

    /// Whether the internet carries packets between two gateways on it.
    fn hear_each_other(&self, one: GatewayId, other: GatewayId) -> bool {
        self.hears(one, other) && self.hears(other, one)
    }

    /// Gives the box that leads a segment to the internet another public address.
    pub fn renumber(&mut self, segment: SegmentId) {
        let Some(GatewayId(number)) = self.gateways_of(segment).pop() else { return };
        let external = self.next_external(Outside::Internet);
        if let Some(nat) = &mut self.gateways[number].nat {
            nat.set_external(external);
        }
    }

    /// Changes every box between a segment and the internet.
    pub fn change_nats(&mut self, segment: SegmentId, mut change: impl FnMut(&mut Nat)) {
        for GatewayId(number) in self.gateways_of(segment) {
            self.gateways[number].nat.iter_mut().for_each(&mut change);
        }
    }

    /// Adds an address on the internet that is no host's.
    pub fn add_server(&mut self) -> IpAddr {
        self.external_addresses += 1;
        let address = numbered(Ipv4Addr::new(62, 0, 0, 0), self.external_addresses).into();
        self.servers.insert(address);
        address
    }

    /// Sends from a server.
    pub fn send_from_server(&mut self, datagram: &Datagram) -> Vec<Arrival> {
        self.cross_internet(None, datagram)
    }

    /// Carries a datagram on that has come to a gateway.
    pub fn forward(&mut self, arrival: &Arrival, now: Monotonic) -> Vec<Arrival> {
        match arrival.stop {
            Stop::Inside(gateway) => self.forward_out(gateway, &arrival.datagram, now),
            Stop::Outside(gateway) => self.forward_in(gateway, &arrival.datagram, now),
            Stop::Host { .. } | Stop::Server(_) => Vec::new(),
        }
    }

    pub(super) fn gateway_of(&self, segment: SegmentId) -> Option<GatewayId> {
        self.gateways.iter().position(|gateway| gateway.inside == segment).map(GatewayId)
    }

    /// Whether both have global IPv6; firewalls that translate nothing can always be opened from both sides.
    pub(super) fn have_common_ipv6(&self, one: HostId, other: HostId) -> bool {
        let gateway = |host| {
            let mut segments = self.segments.iter().enumerate();
            let (number, _) = segments.find(|(_, segment)| {
                segment.has_global_v6 && segment.plug(host).is_some_and(|plug| plug.up && plug.island == 0)
            })?;
            self.gateway_of(SegmentId(number))
        };
        matches!((gateway(one), gateway(other)), (Some(one), Some(other)) if self.hear_each_other(one, other))
    }

    /// Whether the boxes between two hosts let them have a direct path over IPv4.
    pub(super) fn have_direct_path(&self, one: HostId, other: HostId) -> bool {
        let (Some(one), Some(other)) = (self.gateways_from(one), self.gateways_from(other)) else {
            return false;
        };
        let meeting = one.iter().position(|gateway| other.contains(gateway)).map(|index| one[index]);
        let can_meet = match meeting {
            Some(GatewayId(number)) => {
                let nat = self.gateways[number].nat.as_ref();
                nat.is_some_and(|nat| nat.behaviour().hairpin)
            }
            None => {
                one.last().zip(other.last()).is_none_or(|(&one, &other)| self.hear_each_other(one, other))
            }
        };
        let layers = |way: &[GatewayId]| -> Vec<Behaviour> {
            let end =
                way.iter().position(|gateway| Some(*gateway) == meeting).map_or(way.len(), |end| end + 1);
            let boxes = way[..end].iter().filter_map(|gateway| self.gateways[gateway.0].nat.as_ref());
            boxes.map(Nat::behaviour).collect()
        };
        can_meet && direct_path_possible(&layers(&one), &layers(&other))
    }

    /// Returns the gateways that a host's packets pass on their way to the internet; `None` if they never start.
    fn gateways_from(&self, host: HostId) -> Option<Vec<GatewayId>> {
        let nowhere = SocketAddr::from(([1, 0, 0, 1], 1));
        let (number, _) = self.route(host, nowhere)?;
        let is_plugged = self.segments[number].plug(host).is_some_and(|plug| plug.island == 0);
        is_plugged.then(|| self.gateways_of(SegmentId(number)))
    }

    /// Returns the gateways from a segment to the internet, in the order of passing.
    fn gateways_of(&self, mut segment: SegmentId) -> Vec<GatewayId> {
        let mut gateways = Vec::new();
        while let Some(gateway) = self.gateway_of(segment) {
            gateways.push(gateway);
            match self.gateways[gateway.0].outside {
                Outside::Internet => break,
                Outside::Segment(carrier) => segment = carrier,
            }
        }
        gateways
    }

    fn forward_out(&mut self, id: GatewayId, datagram: &Datagram, now: Monotonic) -> Vec<Arrival> {
        let Datagram { from, to, .. } = *datagram;
        let gateway = &mut self.gateways[id.0];
        let mut datagram = datagram.clone();
        match (&mut gateway.nat, &mut gateway.firewall) {
            (_, firewall) if to.is_ipv6() => {
                let Some(firewall) = firewall else { return Vec::new() };
                firewall.outbound(from, to, now);
            }
            (Some(nat), _) => {
                let is_hairpin = to.ip() == nat.external();
                if is_hairpin && !nat.behaviour().hairpin {
                    return Vec::new();
                }
                datagram.from = nat.outbound(from, to, now);
                if is_hairpin {
                    return self.forward_in(id, &datagram, now);
                }
            }
            (None, _) => {}
        }
        match self.gateways[id.0].outside {
            Outside::Segment(carrier) if to.is_ipv4() => self.cross_carrier(carrier, &datagram),
            Outside::Segment(_) | Outside::Internet => self.cross_internet(Some(id), &datagram),
        }
    }

    fn forward_in(&mut self, id: GatewayId, datagram: &Datagram, now: Monotonic) -> Vec<Arrival> {
        let Datagram { from, to, .. } = *datagram;
        let gateway = &mut self.gateways[id.0];
        let internal = match (&mut gateway.nat, &gateway.firewall) {
            (_, Some(firewall)) if to.is_ipv6() => firewall.admits(to, from, now).then_some(to),
            (_, None) if to.is_ipv6() => None,
            (Some(nat), _) => nat.inbound(to.port(), from, now),
            (None, _) => Some(to),
        };
        let Some(to) = internal else { return Vec::new() };
        let inside = gateway.inside.0;
        self.carry(inside, None, &Datagram { to, ..datagram.clone() })
    }

    fn cross_carrier(&mut self, carrier: SegmentId, datagram: &Datagram) -> Vec<Arrival> {
        let segment = &self.segments[carrier.0];
        let to = IpNet::from(datagram.to.ip());
        if segment.network_v4().is_some_and(|net| IpNet::V4(net).contains(&to)) {
            return self.carry(carrier.0, None, datagram);
        }
        let conditions = segment.conditions;
        match self.gateway_of(carrier) {
            Some(gateway) => self.hop(conditions, Stop::Inside(gateway), datagram),
            None => Vec::new(),
        }
    }

    /// Carries a datagram over the internet, from a gateway or from a server.
    fn cross_internet(&mut self, from: Option<GatewayId>, datagram: &Datagram) -> Vec<Arrival> {
        let to = datagram.to.ip();
        if self.servers.contains(&to) {
            return self.hop(self.internet, Stop::Server(to), datagram);
        }
        let is_meant = |gateway: &Gateway| {
            let segment = &self.segments[gateway.inside.0];
            match (to, &gateway.nat) {
                (IpAddr::V6(to), _) => segment.network_v6().is_some_and(|net| net.contains(&to)),
                (IpAddr::V4(to), None) => segment.network_v4().is_some_and(|net| net.contains(&to)),
                (IpAddr::V4(to), Some(nat)) => gateway.outside == Outside::Internet && to == nat.external(),
            }
        };
        let found = self.gateways.iter().position(is_meant).map(GatewayId);
        let is_reached = |gateway: &GatewayId| from.is_none_or(|from| self.hears(from, *gateway));
        match found.filter(is_reached) {
            Some(gateway) => self.hop(self.internet, Stop::Outside(gateway), datagram),
            None => Vec::new(),
        }
    }

    /// Returns an address for the outside of a box that no other has.
    fn next_external(&mut self, outside: Outside) -> Ipv4Addr {
        self.external_addresses += 1;
        let base = match outside {
            Outside::Internet => Ipv4Addr::new(81, 0, 0, 0),
            Outside::Segment(carrier) => {
                let net = self.segments[carrier.0].network_v4().expect("a carrier's segment has IPv4");
                // Above the numbers of hosts.
                numbered(net.addr(), 0xf000)
            }
        };
        numbered(base, self.external_addresses)
    }
}

fn numbered(base: Ipv4Addr, number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + u32::from(number))
}
