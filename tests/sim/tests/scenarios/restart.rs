//! Daemons and hosts that come and go.

use wgmesh_core::mesh::Stop;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::network::Conditions;
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{Fleet, millis, mins, secs};

#[test]
fn a_crashed_daemon_comes_back_without_touching_a_session() -> Result<(), Violation> {
    for gap in [millis(300), secs(60)] {
        let mut fleet = Fleet::resting(1, 6)?;
        let node = fleet.nodes[2];
        let before = fleet.sessions(node);
        let writes = fleet.world.host(node).kernel.writes();
        fleet.world.crash(node);
        fleet.world.run_for(gap)?;
        fleet.world.start(node)?;
        fleet.world.run_for(secs(20))?;
        assert!(fleet.world.is_meshed(), "{:?}", fleet.world.why_unmeshed());
        assert_eq!(fleet.sessions(node), before);
        assert_eq!(fleet.world.host(node).kernel.writes(), writes, "what was left is what is wanted");
        fleet.world.check_quiet(mins(1))?;
    }
    Ok(())
}

#[test]
fn a_handover_costs_no_session() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(2, 6)?;
    let node = fleet.nodes[0];
    let before = fleet.sessions(node);
    fleet.world.stop(node, Stop::Handover)?;
    fleet.world.run_for(millis(50))?;
    fleet.world.start(node)?;
    fleet.world.run_for(secs(20))?;
    assert_eq!(fleet.sessions(node), before);
    assert!(fleet.world.is_meshed(), "{:?}", fleet.world.why_unmeshed());
    Ok(())
}

#[test]
fn a_daemon_that_lost_its_peer_cache_adopts_what_it_finds() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(3, 6)?;
    let node = fleet.nodes[2];
    let before = fleet.sessions(node);
    fleet.world.crash(node);
    fleet.world.change(node, |host| host.disk.cache.clear());
    fleet.world.start(node)?;
    fleet.world.run_for(secs(20))?;
    assert_eq!(fleet.sessions(node), before);
    assert!(fleet.world.is_meshed(), "{:?}", fleet.world.why_unmeshed());
    fleet.world.check_quiet(mins(1))
}

#[test]
fn a_rebooted_host_is_meshed_at_once() -> Result<(), Violation> {
    for keeps_cache in [true, false] {
        let mut fleet = Fleet::resting(4, 6)?;
        let node = fleet.nodes[2];
        fleet.world.reboot(node);
        if !keeps_cache {
            fleet.world.change(node, |host| host.disk.cache.clear());
        }
        fleet.world.run_for(secs(40))?;
        fleet.world.start(node)?;
        let span = fleet.world.run_until_meshed(mins(1))?;
        assert!(span < millis(200), "{span:?}, with the cache: {keeps_cache}");
        fleet.world.run_for(secs(20))?;
        fleet.world.check_quiet(mins(1))?;
    }
    Ok(())
}

/// W-D36: where no LAN finds peers, the cache alone brings the tunnels back.
#[test]
fn a_rebooted_host_without_discovery_reconnects_from_its_cache() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(5, 6)?;
    let node = fleet.nodes[2];
    fleet.world.stop(node, Stop::Handover)?;
    fleet.world.reboot(node);
    fleet.world.change(node, |host| host.plan.lan = false);
    fleet.world.run_for(secs(10))?;
    fleet.world.start(node)?;
    let span = fleet.world.run_until_meshed(mins(2))?;
    assert!(span < secs(2), "{span:?}");
    Ok(())
}

#[test]
fn a_host_that_lost_its_state_is_a_new_node_and_the_old_one_goes() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(6, 5)?;
    let node = fleet.nodes[2];
    let old = fleet.world.host(node).public_key();
    fleet.world.crash(node);
    let key = fleet.world.random().bytes();
    fleet.world.change(node, |host| {
        host.disk.state = wgmesh_core::identity::NodeState::from_random(key);
        host.disk.cache.clear();
    });
    fleet.world.start(node)?;
    let span = fleet.world.run_until_meshed(mins(1))?;
    assert!(span < secs(1), "{span:?}");
    fleet.world.run_for(mins(11))?;
    let holds_old = |host: &wgmesh_sim::host::Host| host.kernel.peer(old).is_some();
    assert!(!fleet.world.hosts().any(|(_, host)| holds_old(host)), "nobody keeps the old key");
    fleet.world.check_quiet(mins(1))
}

#[test]
fn a_goodbye_takes_a_node_out_of_every_kernel_at_once() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(7, 6)?;
    let node = fleet.nodes[2];
    fleet.world.stop(node, Stop::Withdraw)?;
    fleet.world.run_for(millis(50))?;
    for &other in &fleet.nodes {
        assert!(!fleet.holds(other, node), "node-{}", other.0);
    }
    assert!(fleet.world.host(node).kernel.peers().next().is_none(), "and everything out of its own");
    fleet.world.start(node)?;
    let span = fleet.world.run_until_meshed(secs(10))?;
    assert!(span < millis(200), "{span:?}: it may come back at any time");
    Ok(())
}

/// W-D18, W-D51: a node that is gone without a word is forgotten after ten minutes, and no cache or memory of another node
/// brings it back.
#[test]
fn a_node_that_vanished_is_forgotten_after_ten_minutes_and_stays_so() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(8, 6)?;
    let node = fleet.nodes[2];
    fleet.world.reboot(node);
    fleet.world.run_for(mins(9))?;
    assert!(fleet.knows(fleet.nodes[0], node), "it may still come back");
    fleet.world.run_for(secs(90))?;
    for &other in &fleet.nodes {
        assert!(!fleet.knows(other, node), "node-{}", other.0);
    }
    let restarted = fleet.nodes[4];
    fleet.world.crash(restarted);
    fleet.world.start(restarted)?;
    fleet.world.run_for(mins(5))?;
    for &other in &fleet.nodes {
        assert!(!fleet.knows(other, node), "node-{} has a zombie", other.0);
    }
    fleet.world.check_quiet(mins(1))
}

#[test]
fn clocks_that_are_wrong_by_minutes_or_years_part_nobody() -> Result<(), Violation> {
    const YEAR: i64 = 365 * 86_400_000;
    for skew_millis in [15 * 60_000, -15 * 60_000, 30 * 3_600_000, 3 * YEAR, -20 * YEAR] {
        let mut world = World::new(9);
        let lan = world.add_segment(Conditions::CLEAN);
        let mut nodes = world.add_hosts(4, &HostPlan::default(), lan);
        nodes.push(world.add_host(HostPlan { skew_millis, ..HostPlan::default() }, &[lan]));
        for &node in &nodes {
            world.start(node)?;
        }
        let span = world.run_until_meshed(mins(1))?;
        assert!(span < secs(2), "{span:?} with {skew_millis} ms");
        world.run_for(secs(20))?;
        world.check_quiet(mins(3))?;
    }
    Ok(())
}

#[test]
fn a_host_that_boots_with_its_clock_years_back_is_taken_up_again() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(10, 5)?;
    let node = fleet.nodes[2];
    fleet.world.reboot(node);
    fleet.world.change(node, |host| host.plan.skew_millis = -5 * 365 * 86_400_000);
    fleet.world.start(node)?;
    // WireGuard takes no initiation with an older time stamp than the last, so the others must begin: when they
    // find their sessions dead.
    let span = fleet.world.run_until_meshed(mins(4))?;
    assert!(span < secs(185), "{span:?}");
    fleet.world.run_for(mins(3))?;
    assert!(fleet.world.is_meshed(), "{:?}", fleet.world.why_unmeshed());
    Ok(())
}

/// Found in a review: whoever found no address free took one that another had, and what was for it went to that one.
#[test]
fn whoever_finds_no_address_free_is_reached_by_ipv6() -> Result<(), Violation> {
    for seed in 0..5 {
        let mut world = World::new(seed);
        let lan = world.add_segment(Conditions::CLEAN);
        let plan = HostPlan { subnet: Some("10.9.0.0/29".parse().unwrap()), ..HostPlan::default() };
        world.expect_error("lower keys have all addresses");
        let nodes = world.add_hosts(8, &plan, lan);
        for &node in &nodes {
            world.start(node)?;
        }
        world.run_until_meshed(secs(30))?;
        world.run_for(secs(60))?;
        world.check_addresses()?;
        let families = |node| world.host(node).kernel.addresses().filter(|net| net.addr().is_ipv4()).count();
        assert_eq!(nodes.iter().map(|&node| families(node)).sum::<usize>(), 6, "as many as there are");
        for &node in &nodes {
            let mesh = world.host(node).mesh().expect("it runs");
            let explained = mesh.status(world.host(node).now(world.now())).peers;
            let parted = explained
                .iter()
                .filter(|peer| peer.why.as_deref().is_some_and(|why| why.contains("IPv6 only")));
            let expected = nodes.iter().filter(|&&other| other != node && families(other) == 0).count();
            assert_eq!(parted.count(), expected);
        }
    }
    Ok(())
}

/// X-50, W-D30: in a subnet with six addresses five nodes collide, and each ends up with one of its own.
#[test]
fn collisions_in_a_tiny_subnet_are_settled() -> Result<(), Violation> {
    for seed in 0..12 {
        let mut world = World::new(seed);
        let lan = world.add_segment(Conditions::CLEAN);
        let plan = HostPlan { subnet: Some("10.9.0.0/29".parse().unwrap()), ..HostPlan::default() };
        for node in world.add_hosts(5, &plan, lan) {
            world.start(node)?;
        }
        let span = world.run_until_meshed(secs(30))?;
        assert!(span < secs(2), "{span:?} with seed {seed}");
        world.run_for(secs(20))?;
        world.check_addresses()?;
        world.check_quiet(mins(1))?;
    }
    Ok(())
}
