//! What changes under a path that carries traffic: boxes, addresses, links. Traffic is back within five seconds.

use std::time::Duration;

use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::{Dependence, Firewall, Kind, Nat, direct_path_possible};
use wgmesh_sim::network::{Conditions, HostId, SegmentId};
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{millis, mins, secs};
use crate::meeting::Meeting;

/// What the issue allows for a path to heal.
const LIMIT: Duration = secs(5);

/// All pairs of kinds that have a direct path over NATs.
fn pairs() -> Vec<[Kind; 2]> {
    let pairs = Kind::ALL.into_iter().flat_map(|one| Kind::ALL.map(|other| [one, other]));
    let is_direct = |pair: &[Kind; 2]| direct_path_possible(pair[0].layers(), pair[1].layers());
    pairs.filter(is_direct).collect()
}

/// Starts a pair that talks, and returns it once it has done so for half a minute.
fn talking(seed: u64, kinds: [Kind; 2]) -> Result<Meeting, Violation> {
    let mut meeting = Meeting::new(seed, kinds);
    meeting.meet()?;
    let [one, other] = meeting.nodes;
    meeting.world.talk(one, other);
    meeting.world.run_for(secs(30))?;
    let silence = meeting.world.take_longest_silence();
    assert!(silence < secs(1), "{silence:?}: {kinds:?} before anything has changed");
    Ok(meeting)
}

/// Lets a minute pass and fails if either side heard nothing for longer than [`LIMIT`].
fn check_healed(meeting: &mut Meeting, what: &str) -> Result<(), Violation> {
    meeting.world.run_for(mins(1))?;
    let silence = meeting.world.take_longest_silence();
    assert!(silence < LIMIT, "{silence:?}: {what}");
    Ok(())
}

/// Three renewals of a session, one every two minutes, and nobody who talks notices any.
#[test]
fn a_path_that_nothing_happens_to_stays() -> Result<(), Violation> {
    for kinds in pairs() {
        let mut meeting = talking(10, kinds)?;
        let endpoints = [0, 1].map(|side| meeting.endpoint(side));
        meeting.world.run_for(mins(7))?;
        let silence = meeting.world.take_longest_silence();
        assert!(silence < millis(500), "{silence:?}: {kinds:?}");
        assert_eq!([0, 1].map(|side| meeting.endpoint(side)), endpoints, "{kinds:?}");
    }
    Ok(())
}

/// W-X32.
#[test]
fn a_path_heals_when_a_box_forgets_its_mappings() -> Result<(), Violation> {
    for kinds in pairs() {
        let mut meeting = talking(1, kinds)?;
        for side in [0, 1] {
            meeting.world.change_nats(meeting.sites[side], Nat::flush);
            check_healed(&mut meeting, &format!("{kinds:?}, side {side} was flushed"))?;
        }
        meeting.world.change_nats(meeting.sites[0], Nat::flush);
        meeting.world.change_nats(meeting.sites[1], Nat::flush);
        check_healed(&mut meeting, &format!("{kinds:?}, both were flushed"))?;
    }
    Ok(())
}

/// W-X32.
#[test]
fn a_path_heals_when_a_box_gets_another_public_address() -> Result<(), Violation> {
    for kinds in pairs() {
        let mut meeting = talking(2, kinds)?;
        for side in [0, 1] {
            meeting.world.renumber(meeting.sites[side]);
            check_healed(&mut meeting, &format!("{kinds:?}, side {side} was renumbered"))?;
        }
    }
    Ok(())
}

#[test]
fn a_path_follows_a_host_to_another_network() -> Result<(), Violation> {
    for kinds in pairs() {
        let mut meeting = talking(3, kinds)?;
        let elsewhere = meeting.world.add_site(Kind::PortRewriting);
        // A symmetric box on the other side could not be reached from there.
        if kinds[1] == Kind::Symmetric {
            continue;
        }
        meeting.world.roam(meeting.nodes[0], meeting.sites[0], elsewhere)?;
        check_healed(&mut meeting, &format!("{kinds:?}, and the first went elsewhere"))?;
        meeting.world.roam(meeting.nodes[0], elsewhere, meeting.sites[0])?;
        check_healed(&mut meeting, &format!("{kinds:?}, and the first came back"))?;
    }
    Ok(())
}

#[test]
fn a_path_takes_the_next_uplink_when_its_own_is_cut() -> Result<(), Violation> {
    let kinds = [Kind::PortRestricted, Kind::PortRewriting];
    let mut meeting = Meeting::with_second_uplink(4, kinds, Kind::AddressRestricted);
    meeting.meet()?;
    let [one, other] = meeting.nodes;
    meeting.world.talk(one, other);
    meeting.world.run_for(secs(30))?;
    meeting.world.take_longest_silence();
    for up in [false, true] {
        meeting.world.set_link(meeting.sites[0], one, up)?;
        check_healed(&mut meeting, &format!("the first uplink is up: {up}"))?;
    }
    Ok(())
}

#[test]
fn a_path_survives_ipv6_that_comes_and_goes() -> Result<(), Violation> {
    let mut meeting = talking(5, [Kind::PortRestricted, Kind::PortRewriting])?;
    for _ in 0..2 {
        for site in meeting.sites {
            let firewall = Firewall::new(Dependence::AddressAndPort, secs(60));
            meeting.world.set_ipv6(site, Some(firewall))?;
            check_healed(&mut meeting, "IPv6 has come")?;
        }
        let is_v6 = |meeting: &Meeting| meeting.endpoint(0).is_some_and(|endpoint| endpoint.is_ipv6());
        assert!(is_v6(&meeting), "{:?}: it is preferred", meeting.endpoint(0));
        for site in meeting.sites {
            meeting.world.set_ipv6(site, None)?;
            check_healed(&mut meeting, "IPv6 has gone")?;
        }
        assert!(!is_v6(&meeting));
    }
    Ok(())
}

#[test]
fn a_cut_internet_parts_nobody_for_longer_than_it_lasts() -> Result<(), Violation> {
    for minutes in [1, 5, 30] {
        let mut meeting = talking(6, [Kind::PortRestricted, Kind::PortRewriting])?;
        let alone = meeting.sites[0];
        meeting.world.partition_internet(|segment| u32::from(segment == alone));
        meeting.world.run_for(mins(minutes))?;
        meeting.world.partition_internet(|_| 0);
        let span = meeting.world.run_until_meshed(mins(5))?;
        assert!(span < secs(45), "{span:?} after {minutes} min");
    }
    Ok(())
}

/// A pair without traffic costs no watch, so it is for STUN to find out, every minute, or for WireGuard's keepalives.
#[test]
fn a_pair_at_rest_is_back_after_the_next_look_at_the_nat() -> Result<(), Violation> {
    for kinds in pairs() {
        let mut meeting = Meeting::new(7, kinds);
        meeting.meet()?;
        meeting.world.run_for(mins(1))?;
        meeting.world.renumber(meeting.sites[0]);
        meeting.world.run_for(secs(70))?;
        assert!(meeting.world.is_meshed(), "{kinds:?}: {:?}", meeting.world.why_unmeshed());
    }
    Ok(())
}

#[test]
fn a_lossy_path_that_works_is_not_left_again_and_again() -> Result<(), Violation> {
    let mut meeting = talking(8, [Kind::FullCone, Kind::AddressRestricted])?;
    meeting.world.set_internet(Conditions { loss: 0.1, ..Conditions::INTERNET });
    let mut moves = 0;
    let mut endpoint = meeting.endpoint(0);
    for _ in 0..600 {
        meeting.world.run_for(secs(1))?;
        moves += u32::from(meeting.endpoint(0) != endpoint);
        endpoint = meeting.endpoint(0);
    }
    assert!(moves <= 2, "{moves} moves in ten minutes");
    Ok(())
}

/// X-16, W-D18: sessions tell of a node that is gone only as long as somebody may still believe in it.
#[test]
fn a_node_that_vanished_is_forgotten_by_all_that_hold_sessions() -> Result<(), Violation> {
    let mut meeting = Meeting::new(9, [Kind::PortRestricted, Kind::FullCone]);
    for kind in [Kind::PortRewriting, Kind::AddressRestricted, Kind::None] {
        let site = meeting.world.add_site(kind);
        let plan = HostPlan { bootstrap: vec![meeting.introducer], ..HostPlan::default() };
        let node = meeting.world.add_host(plan, &[site]);
        meeting.world.start(node)?;
    }
    meeting.meet()?;
    meeting.world.run_for(mins(5))?;
    let gone = meeting.world.host(meeting.nodes[0]).public_key();
    meeting.world.reboot(meeting.nodes[0]);
    meeting.world.run_for(mins(9))?;
    assert!(meeting.view(meeting.introducer, meeting.nodes[0]).public_key == gone, "it may still come back");
    meeting.world.run_for(mins(6))?;
    for (id, host) in meeting.world.hosts() {
        assert!(host.kernel.peer(gone).is_none(), "node-{} has a zombie", id.0);
    }
    meeting.world.start(meeting.nodes[0])?;
    let span = meeting.world.run_until_meshed(mins(1))?;
    assert!(span < secs(1), "{span:?}: it may come back at any time");
    Ok(())
}

/// Whatever happens in whatever order: once it stops, every pair meets that can.
#[test]
fn after_any_changes_all_pairs_meet_again() -> Result<(), Violation> {
    for seed in 0..12 {
        let mut meeting = Meeting::new(seed, [Kind::PortRestricted, Kind::PortRewriting]);
        let world = &mut meeting.world;
        let more = [Kind::Cgnat, Kind::AddressRestricted].map(|kind| world.add_site(kind));
        let plan = HostPlan { bootstrap: vec![meeting.introducer], ..HostPlan::default() };
        let others = more.map(|site| world.add_host(plan.clone(), &[site]));
        for other in others {
            world.start(other)?;
        }
        meeting.meet()?;
        let mut places: Vec<_> =
            [meeting.nodes, others].concat().into_iter().zip([meeting.sites, more].concat()).collect();
        for _ in 0..20 {
            change(&mut meeting.world, &mut places)?;
            let pause = meeting.world.random().up_to(secs(20));
            meeting.world.run_for(pause)?;
        }
        meeting.world.partition_internet(|_| 0);
        meeting.world.set_internet(Conditions::INTERNET);
        meeting.world.set_stun_servers(true);
        for &(node, site) in &places {
            meeting.world.set_link(site, node, true)?;
            meeting.world.start(node)?;
        }
        let span = meeting.world.run_until_meshed(mins(5))?;
        assert!(span < mins(4), "{span:?} with seed {seed}");
    }
    Ok(())
}

/// Does one of the things that happen to networks and hosts.
fn change(world: &mut World, places: &mut [(HostId, SegmentId)]) -> Result<(), Violation> {
    let index = usize::try_from(world.random().below(places.len() as u64)).expect("below a length");
    let (node, site) = places[index];
    match world.random().below(10) {
        0 => world.change_nats(site, Nat::flush),
        1 => world.renumber(site),
        2 => world.partition_internet(|segment| u32::from(segment == site)),
        3 => world.partition_internet(|_| 0),
        4 => world.set_internet(Conditions { loss: 0.2, ..Conditions::INTERNET }),
        5 => {
            let answer = world.random().chance(0.5);
            world.set_stun_servers(answer);
        }
        6 => {
            world.crash(node);
            world.start(node)?;
        }
        7 => {
            let elsewhere = world.random().pick(&places.iter().map(|place| place.1).collect::<Vec<_>>());
            world.roam(node, site, elsewhere)?;
            places[index].1 = elsewhere;
        }
        8 => world.set_link(site, node, false)?,
        _ => world.set_link(site, node, true)?,
    }
    Ok(())
}
