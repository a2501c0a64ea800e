//! The slow, sure watch over tunnels: who is gone is given up and comes back, and nobody else is.

use wgmesh_core::status::{Health, PeerState};
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::Kind;
use wgmesh_sim::network::HostId;
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{Fleet, millis, mins, secs};
use crate::meeting::Meeting;

fn health(world: &World, id: HostId) -> Health {
    world.status(id).expect("it runs").health
}

fn holds(world: &World, id: HostId, other: HostId) -> bool {
    world.host(id).kernel.peer(world.host(other).public_key()).is_some()
}

/// W-D21, W-D22, W-D23, W-D27: stale, begun anew, left out, given up; and as new when it is back.
#[test]
fn a_host_that_is_gone_is_given_up_and_comes_back() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(1, 4)?;
    let [first, .., gone] = fleet.nodes[..] else { unreachable!("there are four") };
    fleet.world.reboot(gone);
    fleet.world.run_for(secs(125))?;
    assert!(fleet.holds(first, gone) && health(&fleet.world, first).stale == 0, "its handshake may be fresh");
    fleet.world.run_for(secs(75))?;
    let Health { stale, probes_answered, probes_lost, offline: _, evicted } = health(&fleet.world, first);
    assert_eq!([stale, probes_answered, evicted], [1, 0, 1]);
    assert!(probes_lost > 0);
    assert!(!fleet.holds(first, gone));
    let key = fleet.world.host(gone).public_key();
    let status = fleet.world.status(first).expect("it runs");
    let peer = status.peers.into_iter().find(|peer| peer.public_key == key).expect("it is remembered");
    assert_eq!(peer.state, PeerState::Offline);
    assert!(peer.why.is_some_and(|why| why.contains("given up")));
    fleet.world.check_quiet(mins(3))?;
    fleet.world.start(gone)?;
    let span = fleet.world.run_until_meshed(secs(10))?;
    assert!(span < secs(2), "{span:?}");
    Ok(())
}

/// what others tell of a peer that is gone does not bring it back.
#[test]
fn who_was_given_up_comes_back_by_itself_only() -> Result<(), Violation> {
    for kinds in [[Kind::PortRestricted; 2], [Kind::None, Kind::Symmetric]] {
        let mut meeting = Meeting::new(2, kinds);
        meeting.meet()?;
        meeting.world.run_for(secs(30))?;
        let [first, gone] = meeting.nodes;
        meeting.world.reboot(gone);
        meeting.world.run_for(secs(210))?;
        assert_eq!(health(&meeting.world, first).evicted, 1);
        for _ in 0..20 {
            meeting.world.run_for(secs(10))?;
            assert!(!holds(&meeting.world, first, gone));
        }
        meeting.world.start(gone)?;
        let span = meeting.world.run_until_meshed(secs(60))?;
        assert!(span < secs(10), "{span:?} for {kinds:?}");
    }
    Ok(())
}

/// W-D27: whoever answers no probe is left out of the kernel for half a minute, and then tried again, where nobody else is heard
/// that would tell whose fault it is.
#[test]
fn the_only_peer_is_left_out_for_a_while_and_tried_again() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(2, 2)?;
    let [first, gone] = fleet.nodes[..] else { unreachable!("there are two") };
    fleet.world.reboot(gone);
    let left_out = |world: &mut World| health(world, first).offline == 1 && !holds(world, first, gone);
    assert!(fleet.world.run_until(mins(10), left_out)?.is_some(), "{:?}", health(&fleet.world, first));
    let tried = fleet.world.run_until(mins(2), |world| holds(world, first, gone))?;
    assert!(tried.is_some_and(|span| (secs(25)..secs(40)).contains(&span)), "{tried:?}");
    assert_eq!(health(&fleet.world, first).evicted, 0);
    fleet.world.start(gone)?;
    let span = fleet.world.run_until_meshed(secs(60))?;
    assert!(span < secs(5), "{span:?}");
    Ok(())
}

/// A host whose own cable is out hears nobody: it must not give up everybody.
#[test]
fn a_host_that_was_cut_off_has_given_up_nobody() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(3, 5)?;
    let lonely = fleet.nodes[0];
    fleet.world.partition(fleet.lan, |host| u32::from(host == lonely));
    fleet.world.run_for(mins(8))?;
    assert_eq!(health(&fleet.world, lonely).evicted, 0);
    assert_eq!(health(&fleet.world, fleet.nodes[1]).evicted, 1);
    fleet.world.partition(fleet.lan, |_| 0);
    let span = fleet.world.run_until_meshed(mins(1))?;
    assert!(span < secs(20), "{span:?}: the next announce tells");
    Ok(())
}

/// Two halves of the internet that give up each other find together again by themselves.
#[test]
fn halves_that_gave_up_each_other_find_together() -> Result<(), Violation> {
    let mut world = World::new(4);
    let sites: Vec<_> = (0..4).map(|_| world.add_site(Kind::None)).collect();
    let first = world.add_host(HostPlan::default(), &[sites[0]]);
    let mut nodes = vec![first];
    for &site in &sites[1..] {
        nodes.push(world.add_host(HostPlan { bootstrap: vec![first], ..HostPlan::default() }, &[site]));
    }
    nodes.iter().try_for_each(|&node| world.start(node))?;
    world.run_until_meshed(secs(20))?;
    world.run_for(secs(60))?;
    world.partition_internet(|segment| u32::from(segment == sites[2] || segment == sites[3]));
    world.run_for(mins(6))?;
    assert!(nodes.iter().all(|&node| health(&world, node).evicted == 2));
    world.partition_internet(|_| 0);
    let span = world.run_until_meshed(mins(2))?;
    assert!(span < secs(40), "{span:?}: an attempt begins each half minute");
    Ok(())
}

/// A session may be 175 s old and have brought nothing for long; a ping shows that it is well. One that ends between two
/// keepalives, as with seed 5, is begun anew by a probe, of which the first may be lost: both ends probe at once.
#[test]
fn tunnels_at_rest_are_never_taken_for_stale() -> Result<(), Violation> {
    let mut probed = 0;
    for seed in 0..10 {
        let mut fleet = Fleet::resting(seed, 4)?;
        fleet.world.run_for(mins(5))?;
        fleet.world.check_quiet(mins(60))?;
        for &node in &fleet.nodes {
            let health = health(&fleet.world, node);
            let Health { probes_answered, probes_lost, .. } = health;
            assert_eq!(health, Health { probes_answered, probes_lost, ..Health::default() }, "seed {seed}");
            assert!(probes_lost <= probes_answered, "seed {seed}: {health:?}");
            probed += probes_answered;
        }
    }
    assert!(probed <= 2, "{probed} times in 40 hours of nodes at rest");
    Ok(())
}

/// Issue 4, 6: the kernel goes on without its daemon, and so do those who talk to it.
#[test]
fn a_host_whose_daemon_hangs_is_not_given_up() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(6, 3)?;
    let [first, other, hung] = fleet.nodes[..] else { unreachable!("there are three") };
    fleet.world.talk(first, hung);
    fleet.world.run_for(secs(1))?;
    fleet.world.take_longest_silence();
    fleet.world.crash(hung);
    fleet.world.run_for(mins(9))?;
    let silence = fleet.world.take_longest_silence();
    assert!(silence < millis(250), "{silence:?}");
    for node in [first, other] {
        assert!(fleet.holds(node, hung));
        assert_eq!(health(&fleet.world, node).stale, 0);
    }
    Ok(())
}
