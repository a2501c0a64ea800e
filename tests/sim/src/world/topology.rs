//! How a test builds its world's networks and lets them change.

use std::net::{IpAddr, SocketAddr};

use wgmesh_core::cache::CacheEntry;
use wgmesh_core::exchange::Target;

use super::{Violation, World};
use crate::host::Surroundings;
use crate::nat::{Behaviour, Firewall, Kind, Nat};
use crate::network::{Addressing, Conditions, Datagram, HostId, Payload, SegmentId};
use crate::stun::{self, StunServer};

impl World {
    /// Adds an IPv4 segment that leads nowhere.
    pub fn add_segment(&mut self, conditions: Conditions) -> SegmentId {
        self.network.add_segment(conditions, Addressing::Private)
    }

    /// Adds a segment whose hosts have IPv6 link-local addresses only.
    pub fn add_segment_v6(&mut self, conditions: Conditions) -> SegmentId {
        self.network.add_segment(conditions, Addressing::LinkLocal)
    }

    /// Adds a clean segment with this kind of way to the internet.
    pub fn add_site(&mut self, kind: Kind) -> SegmentId {
        match *kind.layers() {
            [] => {
                let site = self.network.add_segment(Conditions::CLEAN, Addressing::Public);
                self.network.add_gateway(site, None, None);
                site
            }
            [behaviour] => self.add_site_behind(behaviour, None),
            [behaviour, .., outer] => {
                let carrier = self.add_carrier(outer);
                self.add_site_behind(behaviour, Some(carrier))
            }
        }
    }

    /// Adds a carrier's segment, which is translated once more.
    pub fn add_carrier(&mut self, behaviour: Behaviour) -> SegmentId {
        let carrier = self.network.add_segment(Conditions::CLEAN, Addressing::Shared);
        self.network.add_gateway(carrier, None, Some(behaviour));
        carrier
    }

    /// Adds a clean segment behind a NAT, on the internet or in a carrier's segment.
    pub fn add_site_behind(&mut self, behaviour: Behaviour, carrier: Option<SegmentId>) -> SegmentId {
        let site = self.network.add_segment(Conditions::CLEAN, Addressing::Private);
        self.network.add_gateway(site, carrier, Some(behaviour));
        site
    }

    /// Adds a STUN server and returns its addresses: the one to ask, and the other that RFC 5780 wants.
    pub fn add_stun_server(&mut self, tells_other: bool) -> [SocketAddr; 2] {
        let addresses = [(); 2].map(|()| self.network.add_server());
        self.stun_servers.push(StunServer::new(addresses, tells_other));
        addresses.map(|address| SocketAddr::new(address, stun::PORT))
    }

    /// Has every STUN server answer, or none.
    pub fn set_stun_servers(&mut self, answer: bool) {
        self.stun_servers.iter_mut().for_each(|server| server.answers = answer);
    }

    /// Changes how well a segment carries.
    pub fn set_conditions(&mut self, segment: SegmentId, conditions: Conditions) {
        self.network.set_conditions(segment, conditions);
    }

    /// Changes how well the internet carries.
    pub const fn set_internet(&mut self, conditions: Conditions) {
        self.network.set_internet(conditions);
    }

    /// Cuts a segment into islands; the same island everywhere heals it.
    pub fn partition(&mut self, segment: SegmentId, island: impl Fn(HostId) -> u32) {
        self.network.partition(segment, island);
    }

    /// Has a segment carry nothing to a port of its hosts, or everything again.
    pub fn filter(&mut self, segment: SegmentId, port: Option<u16>) {
        self.network.filter(segment, port);
    }

    /// Cuts the internet into islands of segments; the same island everywhere heals it.
    pub fn partition_internet(&mut self, island: impl Fn(SegmentId) -> u32) {
        self.network.partition_internet(island);
    }

    /// Has the internet carry nothing between two segments, or everything again.
    pub fn bar(&mut self, pair: [SegmentId; 2], is_barred: bool) {
        self.network.bar(pair, is_barred);
    }

    /// Has the internet carry nothing from the first segment to the second, or everything again.
    pub fn bar_one_way(&mut self, way: [SegmentId; 2], is_barred: bool) {
        self.network.bar_one_way(way, is_barred);
    }

    /// Gives the box between a segment and the internet another public address.
    pub fn renumber(&mut self, segment: SegmentId) {
        self.network.renumber(segment);
    }

    /// Changes every box between a segment and the internet.
    pub fn change_nats(&mut self, segment: SegmentId, change: impl FnMut(&mut Nat)) {
        self.network.change_nats(segment, change);
    }

    /// Pulls a host's cable, or puts it back.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn set_link(&mut self, segment: SegmentId, id: HostId, up: bool) -> Result<(), Violation> {
        self.network.set_up(segment, id, up);
        self.tell_underlay(id)
    }

    /// Moves a host from one segment to another.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn roam(&mut self, id: HostId, from: SegmentId, to: SegmentId) -> Result<(), Violation> {
        self.network.roam(id, from, to);
        self.tell_underlay(id)
    }

    /// Gives the hosts of a segment global IPv6 addresses behind a firewall, or takes them away.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn set_ipv6(&mut self, segment: SegmentId, firewall: Option<Firewall>) -> Result<(), Violation> {
        self.network.set_ipv6(segment, firewall);
        self.network.hosts_of(segment).into_iter().try_for_each(|id| self.tell_underlay(id))
    }

    /// Has these hosts remember each other as from an earlier run: by a record that knows of no NAT.
    pub fn acquaint(&mut self, hosts: &[HostId]) {
        for &known in hosts {
            let surroundings = self.surroundings(known);
            let record = self.hosts[known.0].first_record(&surroundings, self.now, &mut self.random);
            for &id in hosts.iter().filter(|id| **id != known) {
                let host = &mut self.hosts[id.0];
                let last_seen = host.now(self.now).wall;
                host.disk.cache.push(CacheEntry { record: (&record).into(), endpoint: None, last_seen });
            }
        }
    }

    pub(super) fn surroundings(&self, id: HostId) -> Surroundings {
        Surroundings {
            number: id.0,
            underlay: self.network.underlay(id),
            stun_servers: self.stun_servers.iter().map(StunServer::main_address).collect(),
            bootstrap: self.host(id).plan.bootstrap.iter().filter_map(|&host| self.target(host)).collect(),
        }
    }

    /// Returns where the exchange of a host listens.
    fn target(&self, host: HostId) -> Option<Target> {
        let port = self.host(host).exchange_port()?;
        Some(Target { address: SocketAddr::new(self.address(host), port), expected: None })
    }

    fn tell_underlay(&mut self, id: HostId) -> Result<(), Violation> {
        let underlay = self.network.underlay(id);
        self.act(id, |host, now| host.set_underlay(underlay, now))
    }

    /// Has a server answer what came to one of its addresses.
    pub(super) fn ask_server(&mut self, address: IpAddr, datagram: &Datagram) {
        let Payload::Daemon(bytes) = &datagram.payload else { return };
        let server = self.stun_servers.iter().find(|server| server.has(address));
        let Some(answer) = server.and_then(|server| server.answer(datagram.from, datagram.to, bytes)) else {
            return;
        };
        let arrivals = self.network.send_from_server(&answer);
        self.schedule_all(arrivals);
    }
}
