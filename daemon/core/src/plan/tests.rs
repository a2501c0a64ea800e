use std::net::Ipv4Addr;

use super::*;
use crate::identity::Sequence;
use crate::time::WallClock;

const NETWORK: [u8; 32] = [9; 32];

fn subnets() -> MeshSubnets {
    MeshSubnets { v4: "10.9.0.0/16".parse().unwrap(), v6: "fd00:9::/64".parse().unwrap() }
}

fn secret(byte: u8) -> SecretKey {
    SecretKey::from_random([byte; 32])
}

fn record(byte: u8, routes: &[&str]) -> Record {
    Record {
        key: secret(byte).public(),
        sequence: Sequence(1),
        hostname: "peer".parse().unwrap(),
        nonce: AddressNonce(0),
        subnet: subnets().v4,
        listen_port: 51820,
        routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        issued: WallClock::default(),
        lifetime_s: 3600,
        candidates: Vec::new(),
        nat: crate::nat::Nat::Unknown,
        exchange_port: None,
        introducer: false,
        relay: false,
    }
}

struct Node {
    interface: InterfaceName,
    private_key: SecretKey,
    preshared_key: PresharedKey,
    subnets: MeshSubnets,
    advertise_routes: BTreeSet<IpNet>,
    routed_pairs: BTreeSet<[PublicKey; 2]>,
    accept_routes: BTreeSet<IpNet>,
    orphans: BTreeMap<PublicKey, ObservedPeer>,
}

impl Node {
    fn new() -> Self {
        Self {
            interface: "wgmesh0".parse().unwrap(),
            private_key: secret(200),
            preshared_key: PresharedKey::from_bytes([1; 32]),
            subnets: subnets(),
            advertise_routes: BTreeSet::new(),
            routed_pairs: BTreeSet::new(),
            accept_routes: BTreeSet::new(),
            orphans: BTreeMap::new(),
        }
    }

    fn accepting(routes: &[&str]) -> Self {
        Self { accept_routes: routes.iter().map(|route| route.parse().unwrap()).collect(), ..Self::new() }
    }

    fn inputs<'a>(&'a self, records: &'a [Record], reach: Reach) -> Inputs<'a> {
        let planned = |record: &'a Record| {
            (
                record.key,
                PlannedPeer { record, preshared_key: &self.preshared_key, reach, mtu: None, via: None },
            )
        };
        Inputs {
            interface: &self.interface,
            owner: OwnerMark::new([1; 4]),
            private_key: &self.private_key,
            public_key: self.private_key.public(),
            nonce: AddressNonce(0),
            listen_port: 51820,
            network_id: &NETWORK,
            subnets: self.subnets,
            advertise_routes: &self.advertise_routes,
            routed_pairs: &self.routed_pairs,
            accept_routes: &self.accept_routes,
            own_networks: ["192.168.1.0/24".parse().unwrap()].into(),
            peers: records.iter().map(planned).collect(),
            orphans: &self.orphans,
        }
    }

    fn routes_taken(&self, records: &[Record]) -> Vec<String> {
        let desired = desired(&self.inputs(records, Reach::Passive));
        let own = subnets().v4.into();
        let ula = subnets().v6.into();
        desired
            .routes
            .iter()
            .map(|route| route.destination)
            .filter(|route| *route != own && *route != ula)
            .map(|route| route.to_string())
            .collect()
    }
}

/// W-D9: a peer gets its two mesh addresses and nothing else.
#[test]
fn a_peer_owns_its_derived_addresses() {
    let (node, records) = (Node::new(), [record(1, &[])]);
    let desired = desired(&node.inputs(&records, Reach::Passive));
    let addresses = derive_mesh_addresses(&NETWORK, subnets(), records[0].key, AddressNonce(0));
    let expected: BTreeSet<IpNet> = addresses.both().into_iter().map(IpNet::from).collect();
    assert_eq!(desired.peers[&records[0].key].allowed_ips, expected);
    assert_eq!(desired.addresses.len(), 2);
    assert_eq!(desired.routes.len(), 2, "one route for each of the mesh's subnets");
}

/// Issue 4: a path that carries less than the link gets routes that say so, to the peer and to what is behind it.
#[test]
fn a_narrow_path_has_host_routes_with_its_mtu() {
    let (node, records) = (Node::accepting(&["10.5.0.0/16"]), [record(1, &["10.5.1.0/24"]), record(2, &[])]);
    let mut inputs = node.inputs(&records, Reach::Passive);
    inputs.peers.get_mut(&records[0].key).unwrap().mtu = Some(1220);
    let desired = desired(&inputs);
    let narrow: BTreeSet<_> = desired.routes.iter().filter(|route| route.mtu == Some(1220)).collect();
    let expected = &desired.peers[&records[0].key].allowed_ips;
    assert_eq!(narrow.iter().map(|route| route.destination).collect::<BTreeSet<_>>(), *expected);
    assert_eq!(expected.len(), 3);
    assert_eq!(desired.routes.len(), 5, "the other peer needs none of its own");
}

/// an address that works or may work is kept open every 25 s.
#[test]
fn the_endpoint_is_as_firm_as_its_proof() {
    let (node, records) = (Node::new(), [record(1, &[])]);
    let address = SocketAddr::from(([192, 0, 2, 1], 51820));
    let cases = [
        (Reach::Passive, Endpoint::Keep, 0),
        (Reach::Known(address), Endpoint::IfUnset(address), KEEPALIVE_S),
        (Reach::Proved(address), Endpoint::Set(address), KEEPALIVE_S),
    ];
    for (reach, endpoint, keepalive) in cases {
        let desired = desired(&node.inputs(&records, reach));
        let peer = &desired.peers[&records[0].key];
        assert_eq!((peer.endpoint, peer.keepalive), (endpoint, keepalive));
    }
}

/// W-D9: nothing unless the operator accepts it, and some things only when named.
#[test]
fn routes_of_peers_are_taken_by_the_stated_criteria() {
    let greedy =
        [record(1, &["0.0.0.0/0", "::/0", "10.9.0.0/16", "10.0.0.0/8", "10.9.1.1/32", "192.168.1.0/25"])];
    let modest = [record(1, &["172.16.5.0/24"])];
    assert!(Node::new().routes_taken(&modest).is_empty(), "nothing is accepted by default");
    assert_eq!(Node::accepting(&["172.16.0.0/12"]).routes_taken(&modest), ["172.16.5.0/24"]);
    assert!(
        Node::accepting(&["172.16.5.0/25"]).routes_taken(&modest).is_empty(),
        "larger than what is accepted"
    );
    let all = Node::accepting(&["0.0.0.0/0", "::/0"]);
    assert_eq!(
        all.routes_taken(&greedy),
        ["0.0.0.0/0", "::/0"],
        "named, so taken; the rest covers what is ours"
    );
    assert!(Node::accepting(&["8.0.0.0/5", "192.168.0.0/16"]).routes_taken(&greedy).is_empty());
    assert_eq!(Node::accepting(&["192.168.1.0/25"]).routes_taken(&greedy), ["192.168.1.0/25"], "named");
}

#[test]
fn of_two_peers_with_one_route_the_lower_key_gets_it() {
    let node = Node::accepting(&["172.16.0.0/12"]);
    let records = [record(1, &["172.16.5.0/24"]), record(2, &["172.16.5.0/24"])];
    let desired = desired(&node.inputs(&records, Reach::Passive));
    let owns =
        |record: &Record| desired.peers[&record.key].allowed_ips.contains(&"172.16.5.0/24".parse().unwrap());
    let (lower, higher) =
        if records[0].key < records[1].key { (&records[0], &records[1]) } else { (&records[1], &records[0]) };
    assert!(owns(lower) && !owns(higher));
}

/// W-D28, W-D30: in a subnet of six hosts somebody collides; only the lowest key of each address has it.
#[test]
fn who_loses_an_address_to_a_lower_key_gets_none_until_it_moves() {
    let mut node = Node::new();
    node.subnets.v4 = "10.9.0.0/29".parse().unwrap();
    let records: Vec<_> =
        (1..=7).map(|byte| Record { subnet: node.subnets.v4, ..record(byte, &[]) }).collect();
    let desired = desired(&node.inputs(&records, Reach::Passive));
    let mut seen = BTreeSet::new();
    for (_, peer) in desired.peers {
        assert!(peer.allowed_ips.iter().all(|address| seen.insert(*address)), "one owner for each address");
    }
    let addresses = seen.iter().filter(|net| net.addr().is_ipv4()).count();
    assert!((1..=6).contains(&addresses));
}

/// Found in a review: a node for which nothing was left looked for an address without end.
#[test]
fn in_a_subnet_that_lower_keys_fill_there_is_no_address_and_the_search_ends() {
    let mut node = Node::new();
    node.subnets.v4 = "10.9.0.0/29".parse().unwrap();
    let own = node.private_key.public();
    let lower = (1..=255).map(|byte| Record { subnet: node.subnets.v4, ..record(byte, &[]) });
    let lower: Vec<_> = lower.filter(|record| record.key < own).take(6).collect();
    assert_eq!(lower.len(), 6);
    let mut records: Vec<Record> = Vec::new();
    let derive = |record: &Record| derive_mesh_addresses(&NETWORK, node.subnets, record.key, record.nonce).v4;
    for record in lower {
        let distinct = |record: &Record| records.iter().all(|other| derive(other) != derive(record));
        let nonces = (0..).map(|nonce| Record { nonce: AddressNonce(nonce), ..record.clone() });
        let record = nonces.into_iter().find(distinct).unwrap();
        records.push(record);
        let nonce = free_nonce(&node.inputs(&records, Reach::Passive));
        assert_eq!(nonce.is_some(), records.len() < 6, "{nonce:?} beside {}", records.len());
    }
}

#[test]
fn who_lost_its_ipv4_address_is_reached_by_ipv6() {
    let mut node = Node::new();
    node.subnets.v4 = "10.9.0.0/29".parse().unwrap();
    let records: Vec<_> =
        (1..=7).map(|byte| Record { subnet: node.subnets.v4, ..record(byte, &[]) }).collect();
    let desired = desired(&node.inputs(&records, Reach::Passive));
    assert_eq!(desired.peers.len(), 7);
    let v6 = |peer: &DesiredPeer| peer.allowed_ips.iter().any(|net| net.addr().is_ipv6());
    assert!(desired.peers.values().all(v6));
}

#[test]
fn a_peer_of_another_subnet_is_reached_over_ipv6_only() {
    let other = Record { subnet: "10.77.0.0/16".parse().unwrap(), ..record(1, &[]) };
    let node = Node::new();
    let records = [other];
    let desired = desired(&node.inputs(&records, Reach::Passive));
    let allowed = &desired.peers[&records[0].key].allowed_ips;
    assert!(allowed.len() == 1 && allowed.iter().all(|net| net.addr().is_ipv6()));
}

#[test]
fn what_an_earlier_run_left_stays_unless_somebody_has_its_addresses() {
    let mut node = Node::new();
    let records = [record(1, &[])];
    let addresses = derive_mesh_addresses(&NETWORK, subnets(), records[0].key, AddressNonce(0));
    let other = IpNet::from(std::net::IpAddr::V4(Ipv4Addr::new(10, 9, 250, 250)));
    let left = ObservedPeer {
        keepalive: 25,
        allowed_ips: [IpNet::from(addresses.both()[0]), other].into(),
        ..ObservedPeer::default()
    };
    let orphan = secret(77).public();
    node.orphans = [(orphan, left)].into();
    let desired = desired(&node.inputs(&records, Reach::Passive));
    assert_eq!(desired.peers[&orphan].allowed_ips, [other].into());
    assert_eq!((desired.peers[&orphan].endpoint, desired.peers[&orphan].keepalive), (Endpoint::Keep, 25));
}

/// W-D11, W-D45: what belongs to a peer moves to the relay, by whose mesh address the routes go; and back in one plan.
#[test]
fn a_peer_behind_a_routed_relay_gives_its_networks_to_the_relay() {
    let node = Node::accepting(&["10.77.0.0/16"]);
    let records = [record(1, &["10.77.1.0/24"]), record(2, &[])];
    let [peer, relay] = [records[0].key, records[1].key];
    let network: IpNet = "10.77.1.0/24".parse().unwrap();
    let address = |key| derive_mesh_addresses(&NETWORK, subnets(), key, AddressNonce(0)).both();
    let mut inputs = node.inputs(&records, Reach::Passive);
    inputs.peers.get_mut(&peer).unwrap().via = Some(relay);
    inputs.peers.get_mut(&relay).unwrap().mtu = Some(1300);
    let plan = desired(&inputs);
    assert!(plan.peers[&peer].allowed_ips.is_empty());
    let hosts = [peer, relay].into_iter().flat_map(address).map(IpNet::from);
    assert_eq!(plan.peers[&relay].allowed_ips, hosts.chain([network]).collect());
    let way = |destination: IpNet| {
        let route = plan.routes.iter().find(|route| route.destination == destination);
        route.map(|route| (route.gateway, route.mtu))
    };
    let [relay_v4, relay_v6] = address(relay);
    assert_eq!(way(network), Some((Some(relay_v4), Some(1300))), "it must fit the relay's own path");
    assert_eq!(address(peer).map(|one| way(one.into()).unwrap().0), [Some(relay_v4), Some(relay_v6)]);
    assert_eq!(way(relay_v4.into()), Some((None, Some(1300))));

    inputs.peers.get_mut(&relay).unwrap().reach = Reach::Not;
    assert!(!desired(&inputs).peers[&peer].allowed_ips.is_empty(), "a relay that is gone carries nothing");
}

/// W-D46: a relay lets through what belongs to the two that have asked, and what it takes of their routes.
#[test]
fn a_routed_relay_passes_on_between_the_networks_of_a_pair_only() {
    let mut node = Node::accepting(&["10.77.0.0/16"]);
    let records = [record(1, &["10.77.1.0/24", "10.66.0.0/24"]), record(2, &[]), record(3, &[])];
    let [one, other, third] = [0, 1, 2].map(|index: usize| records[index].key);
    assert!(desired(&node.inputs(&records, Reach::Passive)).forwarding.is_nothing());
    node.routed_pairs = [[one, other]].into();
    let between = desired(&node.inputs(&records, Reach::Passive)).forwarding.between;
    let address = |key| derive_mesh_addresses(&NETWORK, subnets(), key, AddressNonce(0)).both();
    let [one_v4, one_v6] = address(one).map(IpNet::from);
    let [other_v4, other_v6] = address(other).map(IpNet::from);
    let network = "10.77.1.0/24".parse().unwrap();
    let ways = [(one_v4, other_v4), (network, other_v4), (one_v6, other_v6)];
    assert_eq!(between, ways.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect());
    assert!(
        !between
            .iter()
            .any(|(from, to)| address(third).iter().any(|one| [from, to].contains(&&(*one).into())))
    );
}
