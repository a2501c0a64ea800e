//! Each kind of NAT is what its name says, by a witness that knows nothing of how it is made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wgmesh_lab::{Host, Internet, NatKind, Site, StunServers, Traffic, bind_udp, eventually, wait_for};

/// WireGuard's usual port.
const PORT: u16 = 51820;

/// Two servers; the witness listens on two ports of each.
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

/// Longer than a packet travels through the lab.
const TRAVEL: Duration = Duration::from_secs(2);

/// Longer than anything takes that works, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who gets in through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// Whoever knows it.
    Everybody,
    /// Who has the address of somebody the host has sent to.
    Address,
    /// Only whom the host has sent to.
    AddressAndPort,
}

/// What the witness saw of a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    one_mapping: bool,
    keeps_port: bool,
    entry: Entry,
}

/// RFC 4787 §4.1 and §5, seen from outside.
#[test]
fn every_kind_of_nat_maps_and_filters_as_its_name_says() {
    let witness = Witness::new("kinds");
    for kind in NatKind::ALL {
        let (one_mapping, keeps_port, entry) = match kind {
            NatKind::None | NatKind::FullCone => (true, true, Entry::Everybody),
            NatKind::AddressRestricted => (true, true, Entry::Address),
            NatKind::PortRestricted => (true, true, Entry::AddressAndPort),
            NatKind::PortRewriting | NatKind::Cgnat => (true, false, Entry::AddressAndPort),
            NatKind::Symmetric => (false, false, Entry::AddressAndPort),
        };
        let site = witness.internet.site(&format!("{kind:?}"), kind);
        assert_eq!(witness.see(&site), Seen { one_mapping, keeps_port, entry }, "{kind}");
    }
}

#[test]
fn a_flush_closes_what_was_open_and_a_rewriting_nat_takes_other_ports() {
    let witness = Witness::new("flush");
    for kind in [NatKind::FullCone, NatKind::PortRestricted, NatKind::PortRewriting, NatKind::Cgnat] {
        let mut site = witness.internet.site(&format!("{kind:?}"), kind);
        let socket = bind(&site.host, PORT);
        let mapped = witness.mapping(&socket, 0);
        assert!(reaches(&witness.sockets[0], mapped, &socket), "{kind}");

        site.nat.as_mut().unwrap().flush_mappings();

        assert!(!reaches(&witness.sockets[0], mapped, &socket), "{kind}");
        let keeps = matches!(kind, NatKind::FullCone | NatKind::PortRestricted);
        assert_eq!(witness.mapping(&socket, 0) == mapped, keeps, "{kind}");
    }
}

#[test]
fn a_site_can_change_its_public_address() {
    let witness = Witness::new("renumbered");
    for kind in [NatKind::PortRestricted, NatKind::PortRewriting, NatKind::Cgnat] {
        let mut site = witness.internet.site(&format!("{kind:?}"), kind);
        let socket = bind(&site.host, PORT);
        let old = witness.mapping(&socket, 0);
        assert_eq!(old.ip(), site.public());
        let new = Ipv4Addr::new(203, 0, 113, site.public().octets()[3]);

        site.nat.as_mut().unwrap().change_public_address(new);

        assert!(!reaches(&witness.sockets[0], old, &socket), "{kind}");
        let mapped = witness.mapping(&socket, 0);
        assert_eq!(mapped.ip(), new, "{kind}");
        assert!(reaches(&witness.sockets[0], mapped, &socket), "{kind}");
    }
}

#[test]
fn mappings_go_when_nothing_passes() {
    let witness = Witness::new("expiry");
    for kind in [NatKind::FullCone, NatKind::AddressRestricted, NatKind::PortRestricted] {
        let mut site = witness.internet.site(&format!("{kind:?}"), kind);
        site.nat.as_mut().unwrap().set_mapping_lifetime(Duration::from_secs(3));
        let socket = bind(&site.host, PORT);
        let mapped = witness.mapping(&socket, 0);
        assert!(reaches(&witness.sockets[0], mapped, &socket), "{kind}");
        std::thread::sleep(Duration::from_secs(5));
        assert!(!reaches(&witness.sockets[0], mapped, &socket), "{kind}");
    }
}

/// RFC 4787 §6: the reflected packet comes from the sender's public mapping.
#[test]
fn hairpinning_decides_whether_two_networks_of_one_nat_reach_each_other() {
    let witness = Witness::new("hairpin");
    let mut site = witness.internet.site("left", NatKind::PortRestricted);
    let nat = site.nat.as_mut().unwrap();
    let right = nat.member(&witness.internet, "right", 1);
    let sockets = [bind(&site.host, PORT), bind(&right.host, PORT + 1)];
    for on in [false, true] {
        nat.set_hairpin(on);
        let mapped = [0, 1].map(|index| witness.mapping(&sockets[index], 0));
        assert_eq!(mapped[1].port(), PORT + 1);
        assert_eq!(reaches(&sockets[0], mapped[1], &sockets[1]), on);
        if on {
            assert_eq!(from_of(&sockets[0], mapped[1], &sockets[1]), mapped[0]);
        }
    }
    assert!(!site.host.pings(right.address), "the networks are apart");
}

#[test]
fn hosts_of_one_private_network_reach_each_other_without_the_router() {
    let internet = Internet::new("neighbours");
    let mut site = internet.site("left", NatKind::Symmetric);
    let right = site.nat.as_mut().unwrap().member(&internet, "right", 0);
    eventually(PATIENCE, || site.host.pings(right.address));
}

#[test]
fn private_addresses_of_another_site_lead_nowhere() {
    let internet = Internet::new("private");
    let [left, right] = ["left", "right"].map(|name| internet.site(name, NatKind::FullCone));
    assert!(!left.host.pings(right.address));
    // The router itself answers.
    eventually(PATIENCE, || left.host.pings(right.public()));
}

#[test]
fn a_router_counts_packets_and_flows_to_other_sites() {
    let witness = Witness::new("counters");
    let site = witness.internet.site("left", NatKind::PortRestricted);
    let other = witness.internet.site("right", NatKind::None);
    let socket = bind(&site.host, PORT);
    witness.mapping(&socket, 0);
    let nat = site.nat.as_ref().unwrap();
    assert_eq!(nat.traffic(), Traffic::default(), "servers do not count");
    for port in [1, 2, 2] {
        socket.send_to(b"x", (other.address, port)).unwrap();
    }
    assert_eq!(nat.traffic(), Traffic { packets: 3, flows: 2 });
}

#[test]
fn ipv6_comes_and_goes_and_routers_let_nobody_in() {
    let internet = Internet::new("ipv6");
    let (inside, outside) =
        (internet.site("in", NatKind::PortRestricted), internet.site("out", NatKind::None));
    [&inside, &outside].into_iter().for_each(Site::ipv6_up);
    eventually(PATIENCE, || inside.host.pings(outside.ipv6()));
    let [left, right] = [(&inside, PORT), (&outside, PORT)].map(|(site, port)| bind_v6(&site.host, port));
    let to = |site: &Site| SocketAddr::new(IpAddr::V6(site.ipv6()), PORT);
    assert!(!reaches(&right, to(&inside), &left));
    assert!(reaches(&left, to(&outside), &right));
    assert!(reaches(&right, to(&inside), &left), "somebody inside asked for it");

    inside.ipv6_down();

    assert!(!inside.host.pings(outside.ipv6()));
    inside.ipv6_up();
    eventually(PATIENCE, || inside.host.pings(outside.ipv6()));
}

#[test]
fn stun_servers_that_are_not_ours_see_what_the_witness_sees() {
    let witness = Witness::new("stun");
    let stun = StunServers::start(&witness.internet);
    eventually(PATIENCE, || stun.host.pings(SERVERS[0]));
    for kind in [NatKind::None, NatKind::PortRewriting, NatKind::Cgnat] {
        let site = witness.internet.site(&format!("{kind:?}"), kind);
        let seen = witness.mapping(&bind(&site.host, PORT), 0);
        for server in StunServers::ADDRESSES {
            assert_eq!(
                StunServers::mapped(&site.host, PORT, server).map(SocketAddr::V4),
                Some(seen),
                "{kind}"
            );
        }
    }
}

/// Two servers with two sockets each.
struct Witness {
    sockets: Vec<UdpSocket>,
    _servers: [Host; 2],
    internet: Internet,
}

impl Witness {
    fn new(name: &str) -> Self {
        let internet = Internet::new(name);
        let servers = [0, 1].map(|index| internet.server(&format!("server-{index}"), &[SERVERS[index]]));
        let sockets = servers.iter().flat_map(|server| [1000, 1001].map(|port| bind(server, port))).collect();
        Self { sockets, _servers: servers, internet }
    }

    fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::from((SERVERS[index / 2], self.sockets[index].local_addr().unwrap().port()))
    }

    /// Returns how the socket of that index sees a host's socket.
    fn mapping(&self, socket: &UdpSocket, index: usize) -> SocketAddr {
        from_of(socket, self.address(index), &self.sockets[index])
    }

    fn see(&self, site: &Site) -> Seen {
        let socket = bind(&site.host, PORT);
        let first = self.mapping(&socket, 0);
        assert_eq!(first.ip(), site.public());
        assert!(reaches(&self.sockets[0], first, &socket), "an answer gets through");
        let entry = if reaches(&self.sockets[2], first, &socket) {
            Entry::Everybody
        } else if reaches(&self.sockets[1], first, &socket) {
            Entry::Address
        } else {
            Entry::AddressAndPort
        };
        let others = [1, 2, 3].map(|index| self.mapping(&socket, index));
        Seen {
            one_mapping: others.iter().all(|other| *other == first),
            keeps_port: first.port() == PORT && others.iter().all(|other| other.port() == PORT),
            entry,
        }
    }
}

fn bind(host: &Host, port: u16) -> UdpSocket {
    bind_to(host, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
}

fn bind_v6(host: &Host, port: u16) -> UdpSocket {
    bind_to(host, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
}

fn bind_to(host: &Host, address: SocketAddr) -> UdpSocket {
    host.namespace().run(move || bind_udp(address))
}

/// Sends from one socket and tells whether it arrives at the other.
fn reaches(from: &UdpSocket, address: SocketAddr, to: &UdpSocket) -> bool {
    arrival(from, address, to, TRAVEL).is_some()
}

/// Sends from one socket to the other, which must get it, and returns whom that takes for the sender.
fn from_of(from: &UdpSocket, address: SocketAddr, to: &UdpSocket) -> SocketAddr {
    wait_for(PATIENCE, || arrival(from, address, to, TRAVEL))
}

/// Sends what was never sent before, and returns from whom it arrives.
fn arrival(from: &UdpSocket, address: SocketAddr, to: &UdpSocket, timeout: Duration) -> Option<SocketAddr> {
    static SENT: AtomicU64 = AtomicU64::new(0);
    let message = SENT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    from.send_to(&message, address).unwrap();
    to.set_read_timeout(Some(timeout)).unwrap();
    let mut buffer = [0; 8];
    while let Ok((_, sender)) = to.recv_from(&mut buffer) {
        if buffer == message {
            return Some(sender);
        }
    }
    None
}
