//! Records over the mesh itself.

use std::net::SocketAddr;

use wgmesh_core::mesh::REPORT_INTERVAL;
use wgmesh_core::store::Source;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::network::{Conditions, HostId};
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{mins, secs};

/// A host that two segments share, and one host on each. Only gossip can tell of whom the other segment has.
fn chain(gossip: bool) -> Result<(World, [HostId; 3]), Violation> {
    let mut world = World::new(11);
    let segments = [(); 2].map(|()| world.add_segment(Conditions::CLEAN));
    let plan = HostPlan { exchange: false, gossip, ..HostPlan::default() };
    let middle = world.add_host(plan.clone(), &segments);
    let [one, other] = segments.map(|segment| world.add_host(plan.clone(), &[segment]));
    for node in [one, middle, other] {
        world.start(node)?;
    }
    Ok((world, [one, middle, other]))
}

fn sources_of(world: &World, at: HostId, of: HostId) -> Option<Vec<Source>> {
    let peer = world.host(at).mesh()?.store().get(world.host(of).public_key())?;
    Some(peer.sources.keys().copied().collect())
}

/// W-X14, W-X15: within 20 s; it comes much sooner, by the first tunnel.
#[test]
fn a_node_learns_of_another_only_through_a_third() -> Result<(), Violation> {
    let (mut world, [one, middle, other]) = chain(true)?;
    let knows = |world: &mut World| sources_of(world, one, other).is_some();
    let took = world.run_until(secs(20), knows)?.expect("it learns of it");
    assert!(took < secs(2), "{took:?}");
    assert_eq!(sources_of(&world, one, other), Some(vec![Source::GossipTransitive]));
    world.run_for(secs(30))?;
    assert!(world.status(one).unwrap().sources.iter().any(|source| source.name == "gossip"));
    assert!(sources_of(&world, one, middle).unwrap().contains(&Source::Lan));

    let (mut world, [one, _, other]) = chain(false)?;
    world.run_for(mins(2))?;
    assert_eq!(sources_of(&world, one, other), None, "without gossip nobody tells it");
    Ok(())
}

/// as long as anyone hears a node the others keep it, and when it is gone it goes everywhere at the same time.
#[test]
fn a_node_that_only_one_other_hears_lives_as_long_as_that_one_hears_it() -> Result<(), Violation> {
    let (mut world, [one, middle, other]) = chain(true)?;
    world.run_for(mins(45))?;
    assert!(sources_of(&world, one, other).is_some(), "the middle one hears it");
    // A daemon that only crashed leaves a kernel that still speaks.
    world.reboot(other);
    let forgotten = |at: HostId| move |world: &mut World| sources_of(world, at, other).is_none();
    let first = world.run_until(mins(11), forgotten(middle))?.expect("silent for ten minutes");
    let second = world.run_until(mins(1), forgotten(one))?.expect("as silent for the other");
    assert!(first <= secs(10 * 60) + REPORT_INTERVAL, "{first:?}, then {second:?}");
    for _ in 0..30 {
        world.run_for(mins(1))?;
        assert!(sources_of(&world, one, other).is_none() && sources_of(&world, middle, other).is_none());
    }
    Ok(())
}

/// W-X16: only from the key that owns the source address, and from the port that no other program has.
#[test]
fn gossip_from_an_address_or_port_of_nobody_is_dropped() -> Result<(), Violation> {
    let (mut world, [one, middle, _]) = chain(true)?;
    world.run_for(secs(5))?;
    let port = world.host(one).keys().gossip_port();
    let middle_ip = world.host(middle).mesh().unwrap().addresses().v4;
    let strange = ["10.255.255.254".parse().unwrap(), middle_ip];
    for from in [SocketAddr::new(strange[0].into(), port), SocketAddr::new(middle_ip.into(), port + 1)] {
        world.deliver_gossip(one, from, vec![1, 2, 3])?;
        world.run_for(secs(1))?;
    }
    let dropped = |world: &World, reason| world.status(one).unwrap().drops.get(reason).copied();
    assert_eq!(dropped(&world, "gossip of a stranger"), Some(2));
    world.deliver_gossip(one, SocketAddr::new(middle_ip.into(), port), vec![1, 2, 3])?;
    world.run_for(secs(1))?;
    assert_eq!(dropped(&world, "malformed gossip"), Some(1));
    Ok(())
}
