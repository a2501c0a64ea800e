//! Outsiders that record and replay, and members that make things up.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use wgmesh_core::key::PublicKey;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::kernel::wireguard::Body;
use wgmesh_sim::nat::Kind;
use wgmesh_sim::network::{Conditions, HostId, Payload};
use wgmesh_sim::outsider::{announce, invented_announce, stolen_announce};
use wgmesh_sim::world::{LAN_PORT, Violation, World};

use crate::fleet::{Fleet, millis, mins, secs};

#[test]
fn nodes_with_another_secret_stay_apart() -> Result<(), Violation> {
    let mut world = World::new(1);
    let lan = world.add_segment(Conditions::CLEAN);
    let mut nodes = world.add_hosts(3, &HostPlan::default(), lan);
    nodes.extend(world.add_hosts(3, &HostPlan { secret: 2, ..HostPlan::default() }, lan));
    for &node in &nodes {
        world.start(node)?;
    }
    world.run_until_meshed(secs(2))?;
    world.run_for(mins(5))?;
    for &node in &nodes {
        assert_eq!(world.host(node).kernel.peers().count(), 2, "node-{}", node.0);
    }
    world.check_quiet(mins(1))
}

/// Every datagram of a fleet's start is sent again, at once and much later, from an address that is nobody's.
#[test]
fn whoever_replays_everything_from_another_address_moves_no_endpoint() -> Result<(), Violation> {
    let mut world = World::new(2);
    let lan = world.add_segment(Conditions::CLEAN);
    let nodes = world.add_hosts(6, &HostPlan::default(), lan);
    let outsider = world.add_host(HostPlan::default(), &[lan]);
    world.record();
    for &node in &nodes {
        world.start(node)?;
    }
    world.run_until_meshed(secs(2))?;
    world.run_for(secs(20))?;
    let recording = world.take_recording();
    let endpoints = all_endpoints(&world, &nodes);
    for pause in [millis(1), mins(10), mins(200)] {
        world.run_for(pause)?;
        for datagram in &recording {
            if let Payload::Daemon(_) = datagram.payload {
                for &node in &nodes {
                    let to = SocketAddr::new(world.address(node), LAN_PORT);
                    world.inject(outsider, LAN_PORT, to, &datagram.payload);
                }
                world.run_for(millis(2))?;
            }
        }
        assert!(world.is_meshed(), "{:?}", world.why_unmeshed());
        assert_eq!(all_endpoints(&world, &nodes), endpoints, "after {pause:?}");
    }
    world.run_for(secs(20))?;
    world.check_quiet(mins(1))
}

#[test]
fn replayed_wireguard_messages_end_no_session() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(3, 4)?;
    let outsider = fleet.world.add_host(HostPlan::default(), &[fleet.lan]);
    fleet.world.record();
    fleet.world.run_for(mins(5))?;
    let recording = fleet.world.take_recording();
    for datagram in &recording {
        if let Payload::WireGuard(message) = &datagram.payload
            && matches!(message.body, Body::Initiation { .. } | Body::Response { .. })
        {
            fleet.world.inject(outsider, 51820, datagram.to, &datagram.payload);
            fleet.world.run_for(millis(5))?;
            assert!(fleet.world.is_meshed(), "{:?}", fleet.world.why_unmeshed());
        }
    }
    fleet.world.check_quiet(mins(1))
}

/// W-D19: a member that invents thousands of nodes fills the store to its cap, and harms no tunnel.
#[test]
fn thousands_of_invented_nodes_hit_the_cap_and_no_honest_pair() -> Result<(), Violation> {
    let mut world = World::new(4);
    let lan = world.add_segment(Conditions::CLEAN);
    let plan = HostPlan { max_peers: 100, ..HostPlan::default() };
    let nodes = world.add_hosts(4, &plan, lan);
    let hostile = world.add_host(HostPlan::default(), &[lan]);
    for &node in &nodes {
        world.start(node)?;
    }
    world.run_until_meshed(secs(2))?;
    world.run_for(secs(20))?;
    let endpoints = all_endpoints(&world, &nodes);
    invent(&mut world, hostile, 10_000)?;
    assert!(world.is_meshed(), "{:?}", world.why_unmeshed());
    for (key, endpoint) in endpoints {
        assert_eq!(all_endpoints(&world, &nodes)[&key], endpoint);
    }
    for &node in &nodes {
        let host = world.host(node);
        let mesh = host.mesh().expect("it runs");
        assert!(host.kernel.peers().count() <= 100 && mesh.store().len() <= 100, "node-{}", node.0);
        let refused = mesh.drops()["busy"] + mesh.drops()["peer limit"];
        assert!(refused >= 9_900, "{:?}", mesh.drops());
    }
    world.run_for(mins(11))?;
    assert!(world.is_meshed(), "{:?}", world.why_unmeshed());
    for &node in &nodes {
        assert_eq!(world.host(node).kernel.peers().count(), 3, "node-{}: the invented are forgotten", node.0);
    }
    world.check_quiet(mins(1))
}

/// Issue "find anyone", 4: floods of others' records, as they once were and with other addresses: counted, and nobody moves.
#[test]
fn others_records_as_they_were_or_with_other_addresses_move_nobody() -> Result<(), Violation> {
    let mut world = World::new(5);
    let lan = world.add_segment(Conditions::CLEAN);
    let nodes = world.add_hosts(3, &HostPlan::default(), lan);
    let hostile = world.add_host(HostPlan::default(), &[lan]);
    world.record();
    for &node in &nodes {
        world.start(node)?;
    }
    world.run_until_meshed(secs(2))?;
    let old = world.take_recording();
    let victim = world.host(nodes[0]).public_key();
    let known = world.host(nodes[1]).mesh().expect("it runs").store().get(victim).expect("they met");
    let stale = known.record().clone();
    // What the others hold of the first is newer now.
    world.crash(nodes[0]);
    world.start(nodes[0])?;
    world.run_until_meshed(secs(30))?;
    world.run_for(mins(2))?;
    let endpoints = all_endpoints(&world, &nodes);
    let known = world.host(nodes[1]).mesh().expect("it runs").store().get(victim).expect("they met");
    let mut record = known.record().record().clone();
    let sequence = record.sequence;
    let host = world.host(hostile);
    let (keys, group) = (host.keys().clone(), SocketAddr::from((host.keys().multicast_v4(), LAN_PORT)));
    for round in 1..=2_000 {
        (record.sequence.0, record.candidates) =
            (sequence.0 + round, vec![SocketAddr::new(world.address(hostile), 51820)]);
        let now = world.host(hostile).now(world.now());
        let stolen = stolen_announce(&keys, record.clone(), now, world.random());
        world.inject(hostile, LAN_PORT, group, &Payload::Daemon(stolen.into()));
        let anew = announce(&keys, &stale, record.sequence, now, world.random());
        world.inject(hostile, LAN_PORT, group, &Payload::Daemon(anew.into()));
        for datagram in old.iter().filter(|datagram| matches!(datagram.payload, Payload::Daemon(_))).take(5) {
            world.inject(hostile, LAN_PORT, group, &datagram.payload);
        }
        world.run_for(millis(2))?;
    }
    world.run_for(secs(10))?;
    assert_eq!(all_endpoints(&world, &nodes), endpoints);
    for &node in &nodes[1..] {
        let mesh = world.host(node).mesh().expect("it runs");
        assert_eq!(mesh.store().get(victim).map(|peer| peer.record().record().sequence), Some(sequence));
        let drops = mesh.drops();
        assert!(drops.get("signature").is_some_and(|&count| count >= 1_900), "{drops:?}");
        assert!(drops.get("old record").is_some_and(|&count| count >= 1_900), "{drops:?}");
    }
    assert!(world.is_meshed(), "{:?}", world.why_unmeshed());
    world.run_for(mins(1))?;
    world.check_quiet(mins(1))
}

/// Issue "find anyone", 4: a member that opens streams from one range and never says who is there, hundreds a second: they have
/// their time and a part of the room, are counted, and a newcomer from elsewhere gets in meanwhile.
#[test]
fn floods_of_silent_streams_from_one_range_keep_nobody_out() -> Result<(), Violation> {
    let mut world = World::new(6);
    let place = |world: &mut World, bootstrap| {
        let site = world.add_site(Kind::None);
        world.add_host(HostPlan { bootstrap, ..HostPlan::default() }, &[site])
    };
    let first = place(&mut world, Vec::new());
    let nodes = [first, place(&mut world, vec![first]), place(&mut world, vec![first])];
    // Behind routers whose outside addresses are all in one range.
    let hostile: Vec<_> = (0..12)
        .map(|_| {
            let site = world.add_site(Kind::PortRestricted);
            world.add_host(HostPlan::default(), &[site])
        })
        .collect();
    world.start(first)?;
    world.start(nodes[1])?;
    world.run_until_meshed(secs(5))?;
    let port = world.host(first).exchange_port().expect("it has an exchange");
    let to = SocketAddr::new(world.address(first), port);
    for round in 0..1_200 {
        for &host in &hostile {
            world.dial_in_silence(host, to);
        }
        if round == 300 {
            world.start(nodes[2])?;
        }
        world.run_for(millis(50))?;
        if round == 400 {
            assert!(world.is_meshed(), "{:?}", world.why_unmeshed());
        }
    }
    let status = world.status(first).expect("it runs");
    assert_eq!(status.sessions.len(), 2, "{:?}", status.sessions);
    let count = |reason: &str| status.drops.get(reason).copied().unwrap_or_default();
    assert!(count("session no room") > 10_000, "{:?}", status.drops);
    assert!(count("session greeting timeout") > 10, "{:?}", status.drops);
    Ok(())
}

fn invent(world: &mut World, hostile: HostId, count: usize) -> Result<(), Violation> {
    let host = world.host(hostile);
    let (keys, now) = (host.keys().clone(), host.now(world.now()));
    let group = SocketAddr::from((keys.multicast_v4(), LAN_PORT));
    for _ in 0..count {
        let bytes = invented_announce(&keys, &[], now, world.random());
        world.inject(hostile, LAN_PORT, group, &Payload::Daemon(bytes.into()));
        world.run_for(millis(1))?;
    }
    Ok(())
}

type Endpoints = BTreeMap<(PublicKey, PublicKey), Option<SocketAddr>>;

/// Returns where each node's kernel sends to each other node.
fn all_endpoints(world: &World, nodes: &[HostId]) -> Endpoints {
    let mut endpoints = Endpoints::new();
    for &node in nodes {
        let host = world.host(node);
        let peers = host.kernel.peers().map(|(key, peer)| ((host.public_key(), key), peer.endpoint));
        endpoints.extend(peers);
    }
    endpoints
}
