use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::ownership::Foreign;
use super::*;
use crate::forwarding::Forwarding;
use crate::key::{PresharedKey, SecretKey};

fn owner() -> OwnerMark {
    OwnerMark::new([0xab, 0xcd, 0xef, 0x01])
}

fn secret() -> SecretKey {
    SecretKey::from_random([7; 32])
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn peer(allowed_ips: &[&str]) -> DesiredPeer {
    DesiredPeer {
        preshared_key: Some(PresharedKey::from_bytes([9; 32])),
        endpoint: Endpoint::IfUnset(at("192.0.2.1:51820")),
        keepalive: 25,
        allowed_ips: allowed_ips.iter().map(|text| net(text)).collect(),
    }
}

fn desired() -> Desired {
    Desired {
        interface: "wgmesh0".parse().unwrap(),
        owner: owner(),
        private_key: secret(),
        listen_port: 51820,
        fwmark: None,
        mtu: 1420,
        addresses: [net("10.1.2.3/16"), net("fd00::3/64")].into(),
        peers: [(key(1), peer(&["10.1.0.1/32"])), (key(2), peer(&["10.1.0.2/32", "fd00::2/128"]))].into(),
        routes: [route("10.1.0.0/16", 0), route("fd00::/64", 0)].into(),
        forwarding: Forwarding::default(),
    }
}

fn route(destination: &str, metric: u32) -> Route {
    Route { destination: net(destination), gateway: None, metric, mtu: None }
}

fn link(alias: Option<&str>, up: bool) -> Link {
    Link::WireGuard { index: 5, alias: alias.map(str::to_owned), up, mtu: 1420, ipv6: true }
}

/// Returns the kernel after it took all that `desired` asks for.
fn converged(desired: &Desired) -> Observed {
    after(desired, Observed::default())
}

fn after(desired: &Desired, mut observed: Observed) -> Observed {
    let writes = diff(desired, &observed).unwrap();
    apply_to(&mut observed, &writes);
    observed
}

fn one_peer_write(desired: &Desired, observed: &Observed) -> PeerWrite {
    match diff(desired, observed).unwrap().as_slice() {
        [Write::SetPeers(peers)] if peers.len() == 1 => peers[0].clone(),
        other => panic!("one peer's change expected: {other:?}"),
    }
}

/// W-D5: create, configure, peers, addresses, up, routes.
#[test]
fn a_missing_link_is_made_and_filled_in_order() {
    let writes = diff(&desired(), &Observed::default()).unwrap();

    let [
        Write::CreateLink { mtu: 1420, .. },
        Write::SetDevice { private_key: Some(_), listen_port: Some(51820), fwmark: None },
        Write::SetPeers(peers),
        Write::AddAddress(_),
        Write::AddAddress(_),
        Write::SetUp,
        Write::AddRoute(_),
        Write::AddRoute(_),
    ] = writes.as_slice()
    else {
        panic!("another order: {writes:?}");
    };
    assert!(peers.iter().all(|peer| peer.create && peer.preshared_key.is_some()));
}

/// W-D10: no writes when equal.
#[test]
fn a_converged_kernel_gets_no_writes() {
    assert_eq!(diff(&desired(), &converged(&desired())), Ok(vec![]));
}

#[test]
fn an_ipv6_route_without_metric_is_the_kernels_1024() {
    let routes = converged(&desired()).routes;
    assert!(routes.contains(&route("fd00::/64", 1024)), "{routes:?}");
}

/// W-D8: what somebody took away comes back, and nothing else is written.
#[test]
fn each_missing_part_is_put_back_alone() {
    let whole = converged(&desired());

    let mut observed = whole.clone();
    observed.peers.remove(&key(2));
    assert!(one_peer_write(&desired(), &observed).create);

    let mut observed = whole.clone();
    observed.addresses.remove(&net("10.1.2.3/16"));
    assert_eq!(diff(&desired(), &observed), Ok(vec![Write::AddAddress(net("10.1.2.3/16"))]));

    let mut observed = whole.clone();
    observed.routes.remove(&route("10.1.0.0/16", 0));
    assert_eq!(diff(&desired(), &observed), Ok(vec![Write::AddRoute(route("10.1.0.0/16", 0))]));

    let mut observed = whole;
    observed.link = link(Some(owner().as_str()), false);
    assert_eq!(diff(&desired(), &observed), Ok(vec![Write::SetUp]));
}

#[test]
fn what_somebody_added_to_our_link_goes_away() {
    let mut observed = converged(&desired());
    observed.peers.insert(key(9), ObservedPeer::default());
    observed.addresses.insert(net("203.0.113.1/24"));
    observed.routes.insert(route("198.51.100.0/24", 5));

    let expected = vec![
        Write::RemovePeers(vec![key(9)]),
        Write::RemoveAddress(net("203.0.113.1/24")),
        Write::RemoveRoute(route("198.51.100.0/24", 5)),
    ];
    assert_eq!(diff(&desired(), &observed), Ok(expected));
}

/// W-D40: a link of another kind is never touched.
#[test]
fn a_link_of_another_kind_is_refused_with_a_way_out() {
    let observed = Observed { link: Link::OtherKind { kind: "veth".into() }, ..Observed::default() };

    let refusal = diff(&desired(), &observed).unwrap_err();

    assert_eq!(refusal.found, Foreign::OtherKind("veth".into()));
    let text = refusal.to_string();
    assert!(text.contains("wgmesh0") && text.contains("\"veth\"") && text.contains("`interface`"), "{text}");
    assert_eq!(withdraw(&observed, &owner()), vec![]);
}

#[test]
fn a_wireguard_link_that_somebody_configured_is_refused() {
    let keyed = Device { public_key: Some(key(3)), ..Device::default() };
    let foreign = [
        Observed { link: link(None, true), ..Observed::default() },
        Observed { link: link(None, false), device: Some(keyed), ..Observed::default() },
        Observed {
            link: link(None, false),
            peers: [(key(1), ObservedPeer::default())].into(),
            ..Observed::default()
        },
        Observed { link: link(None, false), addresses: [net("10.0.0.1/24")].into(), ..Observed::default() },
        Observed { link: link(Some("netbird"), false), ..Observed::default() },
    ];
    for observed in foreign {
        assert!(diff(&desired(), &observed).is_err(), "{observed:?}");
        assert_eq!(withdraw(&observed, &owner()), vec![], "{observed:?}");
    }
}

/// W-D5: a start adopts what it finds.
#[test]
fn a_link_that_a_crash_left_unmarked_is_adopted() {
    let observed =
        Observed { link: link(None, false), device: Some(Device::default()), ..Observed::default() };

    assert_eq!(diff(&desired(), &observed).unwrap()[0], Write::MarkLink(owner()));
    assert_eq!(withdraw(&observed, &owner()), vec![Write::DeleteLink]);
}

#[test]
fn a_link_of_another_mesh_is_taken_over_without_its_peers() {
    let mut observed = converged(&desired());
    observed.link = link(Some("wgmesh:00000000"), true);
    observed.device = Some(Device { public_key: Some(key(8)), listen_port: 51820, fwmark: 0 });
    observed.peers.insert(key(9), ObservedPeer::default());

    let writes = diff(&desired(), &observed).unwrap();

    assert_eq!(writes[0], Write::MarkLink(owner()));
    assert_eq!(writes[1], Write::RemovePeers(vec![key(9)]));
    assert!(matches!(writes[2], Write::SetDevice { private_key: Some(_), listen_port: None, fwmark: None }));
    assert_eq!(writes.len(), 3);
}

#[test]
fn a_link_of_another_mesh_is_not_withdrawn() {
    let observed = Observed { link: link(Some("wgmesh:00000000"), true), ..Observed::default() };
    assert_eq!(withdraw(&observed, &owner()), vec![]);
}

/// W-D6: stop takes the link away, and all that hangs on it with it.
#[test]
fn withdrawing_deletes_our_link_and_then_has_nothing_to_do() {
    let mut observed = converged(&desired());
    let writes = withdraw(&observed, &owner());
    assert_eq!(writes, vec![Write::DeleteLink]);

    apply_to(&mut observed, &writes);
    assert_eq!(withdraw(&observed, &owner()), vec![]);
}

#[test]
fn an_endpoint_that_the_kernel_moved_is_not_drift() {
    let mut observed = converged(&desired());
    observed.peers.get_mut(&key(1)).unwrap().endpoint = Some(at("203.0.113.7:9999"));

    assert_eq!(diff(&desired(), &observed), Ok(vec![]));
}

#[test]
fn an_endpoint_that_is_set_replaces_the_kernels() {
    let mut wanted = desired();
    wanted.peers.get_mut(&key(1)).unwrap().endpoint = Endpoint::Set(at("198.51.100.2:4"));

    let write = one_peer_write(&wanted, &converged(&desired()));

    assert_eq!(write.endpoint, Some(at("198.51.100.2:4")));
    assert_eq!(
        (write.create, write.allowed_ips, write.preshared_key, write.keepalive),
        (false, None, None, None)
    );
}

#[test]
fn an_ipv4_mapped_endpoint_is_the_ipv4_one() {
    let mut wanted = desired();
    wanted.peers.get_mut(&key(1)).unwrap().endpoint = Endpoint::Set(at("[::ffff:192.0.2.1]:51820"));

    assert_eq!(diff(&wanted, &converged(&desired())), Ok(vec![]));
}

#[test]
fn a_link_local_endpoint_keeps_its_scope() {
    let scoped = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 99, 3));
    let mut wanted = desired();
    wanted.peers.get_mut(&key(1)).unwrap().endpoint = Endpoint::Set(scoped);

    let write = one_peer_write(&wanted, &converged(&desired()));

    let SocketAddr::V6(written) = write.endpoint.unwrap() else { panic!("a v6 endpoint expected") };
    assert_eq!((written.scope_id(), written.flowinfo()), (3, 0));
}

#[test]
fn keepalive_waits_for_an_endpoint() {
    let mut wanted = desired();
    wanted.peers.get_mut(&key(1)).unwrap().endpoint = Endpoint::Keep;
    let mut observed = converged(&wanted);
    assert_eq!(observed.peers[&key(1)].keepalive, 0);

    observed.peers.get_mut(&key(1)).unwrap().endpoint = Some(at("203.0.113.7:9999"));

    assert_eq!(one_peer_write(&wanted, &observed).keepalive, Some(25));
}

#[test]
fn a_wrong_preshared_key_is_corrected_and_an_unknown_one_left() {
    let mut observed = converged(&desired());
    observed.peers.get_mut(&key(1)).unwrap().preshared_key = Some(PresharedKey::from_bytes([1; 32]));
    assert!(one_peer_write(&desired(), &observed).preshared_key.is_some());

    let mut wanted = desired();
    wanted.peers.get_mut(&key(1)).unwrap().preshared_key = None;
    assert_eq!(diff(&wanted, &observed), Ok(vec![]));
}

#[test]
fn a_prefix_that_two_peers_ask_for_stays_with_the_lower_key() {
    let mut wanted = desired();
    wanted.peers.insert(key(3), peer(&["10.1.0.1/32"]));

    let observed = converged(&wanted);

    assert_eq!(observed.peers[&key(1)].allowed_ips, [net("10.1.0.1/32")].into());
    assert!(observed.peers[&key(3)].allowed_ips.is_empty());
    assert_eq!(diff(&wanted, &observed), Ok(vec![]));
}

#[test]
fn two_peers_can_swap_their_prefixes() {
    let mut wanted = desired();
    let first = wanted.peers[&key(1)].allowed_ips.clone();
    let second = wanted.peers[&key(2)].allowed_ips.clone();
    wanted.peers.get_mut(&key(1)).unwrap().allowed_ips = second.clone();
    wanted.peers.get_mut(&key(2)).unwrap().allowed_ips = first.clone();

    let observed = after(&wanted, converged(&desired()));

    assert_eq!(observed.peers[&key(1)].allowed_ips, second);
    assert_eq!(observed.peers[&key(2)].allowed_ips, first);
}

/// Issue 4, 5: a change of what belongs to a peer costs no packet of what stays, and leaves nothing behind.
#[test]
fn what_a_peer_keeps_it_never_loses_not_even_for_a_moment() {
    let mut before = desired();
    before.peers.insert(key(1), peer(&["10.1.0.1/32", "10.7.0.0/24", "10.8.0.0/24"]));
    let mut wanted = desired();
    wanted.peers.insert(key(1), peer(&["10.1.0.1/32", "10.8.0.0/24", "10.9.0.0/24"]));
    let mut observed = converged(&before);

    for write in diff(&wanted, &observed).unwrap() {
        apply_to(&mut observed, &[write]);
        let held = &observed.peers[&key(1)].allowed_ips;
        assert!(held.contains(&net("10.1.0.1/32")) && held.contains(&net("10.8.0.0/24")), "{held:?}");
    }

    assert_eq!(observed.peers[&key(1)].allowed_ips, wanted.peers[&key(1)].allowed_ips);
    assert_eq!(observed.peers.keys().copied().collect::<Vec<_>>(), [key(1), key(2)]);
    assert_eq!(diff(&wanted, &observed), Ok(vec![]));
}

#[test]
fn our_own_key_never_becomes_a_peer() {
    let mut wanted = desired();
    wanted.peers.insert(secret().public(), peer(&["10.1.9.9/32"]));

    let observed = converged(&wanted);

    assert!(!observed.peers.contains_key(&secret().public()));
    assert_eq!(diff(&wanted, &observed), Ok(vec![]));
}

#[test]
fn without_ipv6_the_rest_is_done() {
    let without = Link::WireGuard {
        index: 5,
        alias: Some(owner().as_str().to_owned()),
        up: true,
        mtu: 1420,
        ipv6: false,
    };
    let mut observed = Observed { link: without, device: Some(Device::default()), ..Observed::default() };

    let writes = diff(&desired(), &observed).unwrap();

    assert!(!writes.contains(&Write::AddAddress(net("fd00::3/64"))), "{writes:?}");
    assert!(writes.contains(&Write::AddRoute(route("10.1.0.0/16", 0))), "{writes:?}");
    apply_to(&mut observed, &writes);
    assert_eq!(diff(&desired(), &observed), Ok(vec![]));
}

#[test]
fn a_changed_gateway_replaces_the_route_in_one_step() {
    let via = Route { gateway: Some("10.1.0.9".parse().unwrap()), ..route("10.1.0.0/16", 0) };
    let mut wanted = desired();
    wanted.routes = [via, route("fd00::/64", 0)].into();

    assert_eq!(diff(&wanted, &converged(&desired())), Ok(vec![Write::AddRoute(via)]));
}

fn any_address() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0u8..4, 8u8..=32).prop_map(|(n, len)| IpNet::new(Ipv4Addr::new(10, n, n, n).into(), len).unwrap()),
        (0u16..4, 48u8..=128).prop_map(|(n, len)| IpNet::new(
            Ipv6Addr::new(0xfd00, n, 0, 0, 0, 0, 0, n).into(),
            len
        )
        .unwrap()),
    ]
}

fn any_route() -> impl Strategy<Value = Route> {
    let mtu = proptest::option::of(1200u32..1203);
    (any_address(), 0u32..3, proptest::option::of(0u8..3), mtu).prop_map(
        |(destination, metric, gateway, mtu)| {
            let gateway = gateway.map(|n| Ipv4Addr::new(10, 9, 9, n).into());
            Route { destination, gateway, metric, mtu }
        },
    )
}

fn any_socket() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (0u8..3).prop_map(|n| SocketAddr::from((Ipv4Addr::new(192, 0, 2, n), 51820))),
        (0u8..3).prop_map(|n| SocketAddr::from((Ipv4Addr::new(192, 0, 2, n).to_ipv6_mapped(), 51820))),
        (0u16..3).prop_map(|n| SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n), 51820))),
    ]
}

fn any_desired_peer() -> impl Strategy<Value = DesiredPeer> {
    let endpoint = prop_oneof![
        Just(Endpoint::Keep),
        any_socket().prop_map(Endpoint::IfUnset),
        any_socket().prop_map(Endpoint::Set),
    ];
    let preshared_key = proptest::option::of((0u8..3).prop_map(|n| PresharedKey::from_bytes([n; 32])));
    (preshared_key, endpoint, 0u16..3, btree_set(any_address(), 0..4)).prop_map(
        |(preshared_key, endpoint, keepalive, allowed_ips)| DesiredPeer {
            preshared_key,
            endpoint,
            keepalive,
            allowed_ips,
        },
    )
}

prop_compose! {
    fn any_desired()(
        peers in btree_map((0u8..6).prop_map(key), any_desired_peer(), 0..6),
        addresses in btree_set(any_address(), 0..4),
        mut routes in btree_set(any_route(), 0..6),
        (mtu, listen_port, fwmark) in (1400u32..1403, 1u16..3, proptest::option::of(0u32..3)),
    ) -> Desired {
        // The kernel holds one route per destination and metric, and so must a plan.
        let mut seen = BTreeSet::new();
        routes.retain(|route| { let r = normal(route); seen.insert((r.destination, r.metric)) });
        Desired {
            interface: "wgmesh0".parse().unwrap(), owner: owner(), private_key: secret(),
            listen_port, fwmark, mtu, addresses, peers, routes, forwarding: Forwarding::default(),
        }
    }
}

fn holds(observed: &Observed, desired: &Desired) {
    let keys = |map: &BTreeMap<PublicKey, _>| map.keys().copied().collect::<Vec<_>>();
    assert_eq!(observed.peers.keys().copied().collect::<Vec<_>>(), keys(&desired.peers));
    assert_eq!(observed.addresses, desired.addresses);
    assert_eq!(observed.routes, desired.routes.iter().map(normal).collect());
    for (key, peer) in &desired.peers {
        let seen = &observed.peers[key];
        if let Endpoint::Set(address) = peer.endpoint {
            assert_eq!(seen.endpoint, Some(plain(address)));
        }
        if seen.endpoint.is_some() {
            assert_eq!(seen.keepalive, peer.keepalive);
        }
    }
}

proptest! {
    /// W-D10: from whatever was there, one pass reaches what is wanted, and a second has nothing to do.
    #[test]
    fn one_pass_converges_from_any_earlier_plan(earlier in any_desired(), wanted in any_desired()) {
        let observed = after(&wanted, converged(&earlier));

        holds(&observed, &wanted);
        prop_assert_eq!(diff(&wanted, &observed), Ok(vec![]));
    }

    #[test]
    fn a_peer_that_both_plans_hold_is_never_removed(earlier in any_desired(), wanted in any_desired()) {
        let writes = diff(&wanted, &converged(&earlier)).unwrap();

        for write in writes {
            if let Write::RemovePeers(keys) = write {
                prop_assert!(keys.iter().all(|key| !wanted.peers.contains_key(key)));
            }
        }
    }
}
