//! Networks at their worst.

use wgmesh_sim::host::HostPlan;
use wgmesh_sim::kernel::Sabotage;
use wgmesh_sim::network::Conditions;
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{Fleet, millis, mins, secs};

#[test]
fn a_third_of_all_datagrams_lost_delays_a_mesh_by_wireguards_own_retries() -> Result<(), Violation> {
    let lossy = Conditions { loss: 0.3, ..Conditions::CLEAN };
    for seed in 0..5 {
        let mut fleet = Fleet::starting(seed, 12, &HostPlan::default(), lossy)?;
        fleet.world.run_until_meshed(secs(180))?;
    }
    Ok(())
}

/// WireGuard alone repeats a lost initiation after five seconds: then 27 of these pairs take longer, and 13 do whose
/// confirming packet was lost, which only traffic or a keepalive makes good.
#[test]
fn a_lost_initiation_is_made_good_before_wireguard_repeats_it() -> Result<(), Violation> {
    let lossy = Conditions { loss: 0.3, ..Conditions::CLEAN };
    let mut late = 0;
    for seed in 0..40 {
        let mut fleet = Fleet::starting(seed, 2, &HostPlan::default(), lossy)?;
        late += u32::from(fleet.world.run_until_meshed(secs(180))? > secs(5));
    }
    assert!(late < 20, "{late} of 40 pairs took longer than 5 s");
    Ok(())
}

#[test]
fn duplicates_and_reordering_change_nothing() -> Result<(), Violation> {
    let wild = Conditions { duplication: 0.3, jitter: millis(20), ..Conditions::CLEAN };
    for seed in 0..5 {
        let mut fleet = Fleet::starting(seed, 12, &HostPlan::default(), wild)?;
        let span = fleet.world.run_until_meshed(secs(10))?;
        assert!(span < secs(2), "{span:?} with seed {seed}");
        fleet.world.run_for(secs(20))?;
        fleet.world.check_quiet(secs(60))?;
    }
    Ok(())
}

#[test]
fn a_slow_network_and_a_slow_kernel_take_a_few_round_trips() -> Result<(), Violation> {
    let far = Conditions { latency: millis(100), jitter: millis(5), ..Conditions::CLEAN };
    let mut plan = HostPlan::default();
    plan.pace.write = millis(50);
    for seed in 0..5 {
        let mut fleet = Fleet::starting(seed, 8, &plan, far)?;
        let span = fleet.world.run_until_meshed(secs(20))?;
        assert!(span < secs(3), "{span:?} with seed {seed}");
        fleet.world.run_for(secs(20))?;
        fleet.world.check_quiet(secs(60))?;
    }
    Ok(())
}

#[test]
fn halves_that_were_parted_for_half_an_hour_find_each_other_again() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(1, 10)?;
    fleet.world.partition(fleet.lan, |host| u32::from(host.0 % 2 == 0));
    fleet.world.run_for(mins(30))?;
    assert!(fleet.world.is_meshed(), "each half stays a mesh: {:?}", fleet.world.why_unmeshed());
    assert!(!fleet.holds(fleet.nodes[0], fleet.nodes[1]), "the other half is forgotten");
    fleet.world.partition(fleet.lan, |_| 0);
    let span = fleet.world.run_until_meshed(mins(2))?;
    // Each half has five nodes, which announce themselves every 40 s.
    assert!(span < secs(41), "{span:?}: the next announce of anyone brings all of them together");
    fleet.world.run_for(secs(20))?;
    fleet.world.check_quiet(mins(1))
}

/// Tunnels at rest, that is: WireGuard itself begins anew where packets find no answer.
#[test]
fn a_short_partition_costs_no_session() -> Result<(), Violation> {
    let plan = HostPlan { gossip: false, ..HostPlan::default() };
    let mut fleet = Fleet::starting(2, 6, &plan, Conditions::CLEAN)?;
    fleet.world.run_for(secs(20))?;
    let before = fleet.sessions(fleet.nodes[0]);
    fleet.world.partition(fleet.lan, |host| u32::from(host.0 % 2 == 0));
    fleet.world.run_for(secs(60))?;
    fleet.world.partition(fleet.lan, |_| 0);
    fleet.world.run_for(secs(10))?;
    assert_eq!(fleet.sessions(fleet.nodes[0]), before);
    fleet.world.check_quiet(mins(1))
}

#[test]
fn a_host_whose_cable_was_out_is_back_at_once() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(3, 6)?;
    let (lan, node) = (fleet.lan, fleet.nodes[2]);
    for minutes in [1, 4, 20] {
        fleet.world.set_link(lan, node, false)?;
        fleet.world.run_for(mins(minutes))?;
        fleet.world.set_link(lan, node, true)?;
        let span = fleet.world.run_until_meshed(mins(1))?;
        // Sessions that died meanwhile come back with WireGuard's own next retry.
        assert!(span < secs(6), "{span:?} after {minutes} min");
        fleet.world.run_for(secs(20))?;
        fleet.world.check_quiet(mins(1))?;
    }
    Ok(())
}

#[test]
fn a_link_with_nothing_but_ipv6_link_local_addresses_is_enough() -> Result<(), Violation> {
    let mut world = World::new(1);
    let lan = world.add_segment_v6(Conditions::CLEAN);
    for node in world.add_hosts(5, &HostPlan::default(), lan) {
        world.start(node)?;
    }
    let span = world.run_until_meshed(secs(10))?;
    assert!(span < secs(1), "{span:?}");
    world.run_for(secs(20))?;
    world.check_quiet(mins(1))
}

#[test]
fn two_common_links_carry_one_tunnel_that_does_not_flap() -> Result<(), Violation> {
    let mut world = World::new(1);
    let lans = [world.add_segment(Conditions::CLEAN), world.add_segment(Conditions::CLEAN)];
    for _ in 0..6 {
        let node = world.add_host(HostPlan::default(), &lans);
        world.start(node)?;
    }
    let span = world.run_until_meshed(secs(10))?;
    assert!(span < secs(1), "{span:?}");
    world.run_for(secs(20))?;
    world.check_quiet(mins(5))
}

#[test]
fn a_tunnel_moves_to_the_other_common_link_when_its_own_is_cut() -> Result<(), Violation> {
    let mut world = World::new(1);
    let lans = [world.add_segment(Conditions::CLEAN), world.add_segment(Conditions::CLEAN)];
    let nodes: Vec<_> = (0..4).map(|_| world.add_host(HostPlan::default(), &lans)).collect();
    for &node in &nodes {
        world.start(node)?;
    }
    world.run_until_meshed(secs(10))?;
    world.run_for(secs(20))?;
    for lan in lans {
        world.set_link(lan, nodes[0], false)?;
        world.run_for(millis(1))?;
        let span = world.run_until_meshed(mins(2))?;
        assert!(span < secs(1), "{span:?}");
        world.set_link(lan, nodes[0], true)?;
        world.run_for(secs(30))?;
    }
    world.check_quiet(mins(1))
}

/// W-D8: what somebody else does to the kernel is undone by the next reading at the latest.
#[test]
fn sabotage_is_healed_within_five_seconds() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(4, 5)?;
    let peer = fleet.world.host(fleet.nodes[3]).public_key();
    let acts = [
        Sabotage::RemovePeer(peer),
        Sabotage::RemoveAddresses,
        Sabotage::RemoveRoutes,
        Sabotage::SetDown,
        Sabotage::DeleteLink,
    ];
    for act in acts {
        fleet.world.sabotage(fleet.nodes[1], &act)?;
        assert!(!fleet.world.is_meshed(), "{act:?} does harm");
        let span = fleet.world.run_until_meshed(mins(1))?;
        let limit = if matches!(act, Sabotage::RemovePeer(_)) { millis(5_100) } else { millis(200) };
        assert!(span <= limit, "{span:?} after {act:?}");
        fleet.world.run_for(secs(20))?;
        fleet.world.check_quiet(mins(1))?;
    }
    Ok(())
}
