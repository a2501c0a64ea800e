//! With whom nodes hold sessions.

use wgmesh_core::pool::Places;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::Kind;
use wgmesh_sim::network::{Conditions, HostId};
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{mins, secs};

/// A fleet of which everybody is in a network of its own, and knows one to begin with.
fn scattered(seed: u64, count: usize, sessions: Places) -> Result<(World, Vec<HostId>), Violation> {
    let mut world = World::new(seed);
    let site = |world: &mut World, bootstrap| {
        let site = world.add_site(Kind::None);
        world.add_host(HostPlan { sessions, bootstrap, ..HostPlan::default() }, &[site])
    };
    let first = site(&mut world, Vec::new());
    let mut nodes = vec![first];
    nodes.extend((1..count).map(|_| site(&mut world, vec![first])));
    for &node in &nodes {
        world.start(node)?;
    }
    Ok((world, nodes))
}

fn sessions(world: &World, node: HostId) -> usize {
    world.status(node).map_or(0, |status| status.sessions.len())
}

/// M-31: two sessions each are enough for everybody to know everybody.
#[test]
fn a_mesh_is_whole_although_nobody_holds_more_than_two_sessions() -> Result<(), Violation> {
    let (mut world, nodes) = scattered(1, 6, Places { target: 2, max: 2 })?;
    world.run_until_meshed(mins(10))?;
    for &node in &nodes {
        assert!(sessions(&world, node) <= 2, "node-{}", node.0);
    }
    Ok(())
}

/// M-21, M-23, M-32: a node looks for as many sessions as it is told to, and replaces the one that it loses.
#[test]
fn a_lost_session_is_replaced() -> Result<(), Violation> {
    let (mut world, nodes) = scattered(2, 16, Places { target: 6, max: 12 })?;
    world.run_until_meshed(mins(2))?;
    world.run_for(mins(2))?;
    let node = nodes[5];
    assert!((6..=12).contains(&sessions(&world, node)), "{}", sessions(&world, node));
    let status = world.status(node).expect("it runs");
    let lost: Vec<_> =
        status.sessions.iter().filter(|session| session.dialed).map(|one| one.public_key).collect();
    let lost: Vec<_> =
        nodes.iter().copied().filter(|one| lost.contains(&world.host(*one).public_key())).take(2).collect();
    assert_eq!(lost.len(), 2);
    lost.iter().for_each(|&one| world.crash(one));
    world.run_for(secs(100))?;
    assert!((6..=12).contains(&sessions(&world, node)), "{}", sessions(&world, node));
    Ok(())
}

/// The least that a mesh of many costs: by itself a node looks for four sessions, whoever dialed them.
#[test]
fn by_itself_a_node_holds_a_few_sessions() -> Result<(), Violation> {
    let (mut world, nodes) = scattered(3, 24, HostPlan::default().sessions)?;
    world.run_until_meshed(mins(2))?;
    world.run_for(mins(3))?;
    let held: Vec<usize> = nodes[1..].iter().map(|&node| sessions(&world, node)).collect();
    assert!(held.iter().all(|&count| (3..=10).contains(&count)), "{held:?}");
    Ok(())
}

/// no limit for whoever is met on a link either: a fleet on one, with one node beyond it that all know, gets as many
/// sessions as it looks for.
#[test]
fn a_fleet_on_a_link_holds_all_the_sessions_that_it_wants() -> Result<(), Violation> {
    let mut world = World::new(6);
    let internet = world.add_site(Kind::None);
    let plan = HostPlan { sessions: Places { target: 26, max: 64 }, ..HostPlan::default() };
    let beyond = world.add_host(plan.clone(), &[internet]);
    let lan = world.add_site(Kind::PortRestricted);
    let nodes = world.add_hosts(30, &HostPlan { bootstrap: vec![beyond], ..plan }, lan);
    [&[beyond], &nodes[..]].concat().into_iter().try_for_each(|node| world.start(node))?;
    world.run_until_meshed(mins(1))?;
    world.run_for(mins(3))?;
    let fewest = nodes.iter().map(|&node| sessions(&world, node)).min();
    assert!(fewest >= Some(26), "{fewest:?}");
    Ok(())
}

/// the limit for what comes from one network is none for a fleet in one network: without multicast, all at once, knowing
/// one to begin with.
#[test]
fn a_fleet_in_one_network_without_multicast_meets_as_soon_as_one_that_is_scattered() -> Result<(), Violation>
{
    let sessions = HostPlan::default().sessions;
    let (mut apart, _) = scattered(4, 30, sessions)?;
    let apart = apart.run_until_meshed(mins(2))?;
    let mut world = World::new(4);
    let lan = world.add_segment(Conditions::CLEAN);
    let plan = HostPlan { lan: false, ..HostPlan::default() };
    let first = world.add_host(plan.clone(), &[lan]);
    let mut nodes = vec![first];
    nodes.extend(world.add_hosts(29, &HostPlan { bootstrap: vec![first], ..plan }, lan));
    for &node in &nodes {
        world.start(node)?;
    }
    let together = world.run_until_meshed(mins(2))?;
    println!("{apart:?} apart, {together:?} together");
    assert!(together < apart + secs(1), "{together:?} together, {apart:?} apart");
    Ok(())
}
