//! Pairs that no packet can join directly, and relays that route between them.

use std::time::Duration;

use wgmesh_core::config::RelayMode;
use wgmesh_core::message::DiscoBody;
use wgmesh_core::status::PeerState;
use wgmesh_sim::nat::{Behaviour, Kind};
use wgmesh_sim::network::{HostId, Payload};
use wgmesh_sim::outsider::Forgery;
use wgmesh_sim::random::Random;
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{mins, secs};
use crate::meeting::Meeting;

/// Builds a pair behind symmetric NATs with so many relays, all of which are to route.
fn meeting(seed: u64, relays: usize) -> Meeting {
    let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], relays);
    set_mode(&mut meeting.world, |_| RelayMode::Routed);
    meeting
}

fn set_mode(world: &mut World, mode: impl Fn(HostId) -> RelayMode) {
    for id in world.hosts().map(|(id, _)| id).collect::<Vec<_>>() {
        world.change(id, |host| host.plan.relay_mode = mode(id));
    }
}

/// W-D11, W-D45, W-D46: both ends give the other's addresses to the relay, and it passes on between these two alone.
#[test]
fn a_pair_without_a_direct_path_is_joined_by_a_relay_that_routes() -> Result<(), Violation> {
    for seed in 0..5 {
        let mut meeting = meeting(seed, 1);
        let span = meeting.meet()?;
        assert!(span < secs(3), "{span:?} with seed {seed}");
        let [one, other] = meeting.nodes;
        meeting.world.talk(one, other);
        meeting.world.run_for(secs(10))?;
        meeting.world.take_longest_silence();
        meeting.world.run_for(mins(10))?;
        let silence = meeting.world.take_longest_silence();
        assert!(silence < secs(1), "{silence:?} with seed {seed}");
        let relay = meeting.world.host(meeting.introducer).public_key();
        for (from, of) in [(one, other), (other, one)] {
            let path = meeting.view(from, of).path.expect("there is one");
            assert_eq!((path.kind.as_str(), path.relay), ("routed", Some(relay)));
            assert_eq!(meeting.view(from, of).state, PeerState::Relayed);
            let of = meeting.world.host(of).public_key();
            let kernel = &meeting.world.host(from).kernel;
            assert!(kernel.peer(of).is_some_and(|peer| peer.allowed_ips.is_empty()));
        }
        let status = meeting.world.status(meeting.introducer).expect("it runs").relay;
        assert_eq!((status.routed_pairs, status.pairs), (1, 0));
        let explained = meeting.explain();
        assert!(explained.since_s.is_some_and(|since| (600..=616).contains(&since)), "{explained:?}");
    }
    Ok(())
}

/// W-D11: it is both ends or neither, and a relay is none that was not set to it.
#[test]
fn where_an_end_or_the_relay_is_not_set_to_it_nothing_is_routed() -> Result<(), Violation> {
    for sealed in 0..3 {
        let mut meeting = meeting(3, 1);
        let mixed = [meeting.nodes[0], meeting.nodes[1], meeting.introducer][sealed];
        meeting.world.change(mixed, |host| host.plan.relay_mode = RelayMode::Sealed);
        meeting.start()?;
        meeting.world.run_for(secs(60))?;
        let status = meeting.world.status(meeting.introducer).expect("it runs").relay;
        assert_eq!(status.routed_pairs, 0);
        let (state, kind) = (meeting.first_view().state, meeting.first_view().path.map(|path| path.kind));
        let expected = if mixed == meeting.introducer { PeerState::Connecting } else { PeerState::Relayed };
        assert_eq!(state, expected, "node-{mixed:?}");
        assert_ne!(kind.as_deref(), Some("routed"));
    }
    Ok(())
}

/// W-D56, DESIGN 14: a relay that dies gives way to another.
#[test]
fn a_pair_whose_relay_dies_moves_to_another_within_three_seconds() -> Result<(), Violation> {
    for seed in 0..10 {
        let mut meeting = meeting(seed, 3);
        meeting.meet_and_talk()?;
        meeting.lose_relays(World::reboot)?;
    }
    Ok(())
}

/// W-D12: the direct path is tried again, proved, and taken by both ends at once.
#[test]
fn a_direct_path_that_opens_is_taken_by_both_at_once() -> Result<(), Violation> {
    for seed in 0..10 {
        let mut world = World::new(seed);
        let sites = [(); 2].map(|()| world.add_site_behind(Behaviour::SYMMETRIC, None));
        let mut meeting = Meeting::relayed_at(world, sites, 1);
        set_mode(&mut meeting.world, |_| RelayMode::Routed);
        meeting.meet_and_talk()?;
        assert_eq!(meeting.first_view().path.expect("there is one").kind, "routed");
        let silence = meeting.open_ipv6()?;
        assert!(silence < Duration::from_millis(500), "{silence:?} with seed {seed}");
        meeting.world.run_for(mins(4))?;
        let status = meeting.world.status(meeting.introducer).expect("it runs").relay;
        assert_eq!(status.routed_pairs, 0, "nobody asks for it any more");
    }
    Ok(())
}

/// Any daemon may die and come back, the relay's own included: the kernels go on, and each new daemon finds what is there.
#[test]
fn a_routed_pair_outlives_the_restart_of_any_daemon() -> Result<(), Violation> {
    for number in 0..3 {
        let mut meeting = meeting(8, 1);
        meeting.meet()?;
        let [one, other] = meeting.nodes;
        meeting.world.talk(one, other);
        meeting.world.run_for(secs(40))?;
        meeting.world.take_longest_silence();
        let restarted = [one, other, meeting.introducer][number];
        meeting.world.crash(restarted);
        meeting.world.run_for(secs(1))?;
        meeting.world.start(restarted)?;
        meeting.world.run_for(mins(10))?;
        let silence = meeting.world.take_longest_silence();
        assert!(silence < Duration::from_millis(500), "{silence:?}, restarted {restarted:?}");
        assert_eq!(meeting.first_view().path.expect("there is one").kind, "routed");
    }
    Ok(())
}

/// Issue 4, 6: pings to the mesh address of a node whose daemon hangs are not answered, but its kernel goes on.
#[test]
fn a_routed_pair_outlives_the_hang_of_any_two_daemons() -> Result<(), Violation> {
    for (spared, span) in (0..3).flat_map(|spared| [(spared, secs(5)), (spared, secs(25))]) {
        let mut meeting = meeting(9, 1);
        meeting.meet_and_talk()?;
        let [one, other] = meeting.nodes;
        let all = [one, other, meeting.introducer];
        for is_hung in [true, false] {
            for (number, host) in all.into_iter().enumerate() {
                meeting.world.change(host, |host| host.is_hung = is_hung && number != spared);
            }
            meeting.world.run_for(if is_hung { span } else { secs(20) })?;
        }
        let silence = meeting.world.take_longest_silence();
        assert!(silence < Duration::from_millis(500), "{silence:?}, spared {spared}, {span:?}");
        assert_eq!(meeting.first_view().path.expect("there is one").kind, "routed");
    }
    Ok(())
}

/// A relay takes nobody's packets by its own word, nor by one that it makes up.
#[test]
fn a_relay_that_nobody_has_chosen_gets_nothing() -> Result<(), Violation> {
    let mut meeting = meeting(6, 1);
    let relay = meeting.introducer;
    meeting.world.change(relay, |host| host.plan.relay_mode = RelayMode::Sealed);
    meeting.start()?;
    meeting.world.run_for(secs(20))?;
    let key = |meeting: &Meeting, id| meeting.world.host(id).public_key();
    let [one, other] = meeting.nodes;
    let mut counter = 0;
    for (to, peer) in [(one, other), (other, one)] {
        for has_choice in [false, true] {
            counter += 2;
            let (claimed, now) = (key(&meeting, peer), meeting.world.host(relay).now(meeting.world.now()));
            let forgery = |claimed, counter| Forgery {
                member: meeting.world.host(relay),
                claimed,
                to: key(&meeting, to),
                counter,
            };
            let choice = forgery(claimed, counter).choice(key(&meeting, relay));
            let choice = has_choice.then(|| choice.into());
            let body = DiscoBody::Routed { peer: claimed, choice };
            let mut random = Random::new(counter);
            let bytes = forgery(key(&meeting, relay), counter + 1).disco(body, now, &mut random);
            let endpoint =
                meeting.world.host(relay).kernel.peer(key(&meeting, to)).and_then(|peer| peer.endpoint);
            let endpoint = endpoint.expect("the relay reaches both");
            meeting.world.inject(relay, 51820, endpoint, &Payload::Daemon(bytes.into()));
        }
        let address = meeting.world.host(peer).kernel.addresses().next().expect("it has one").addr();
        let relay = key(&meeting, relay);
        let is_taken = |world: &mut World| world.host(to).kernel.owner(address) == Some(relay);
        assert_eq!(meeting.world.run_until(secs(5), is_taken)?, None);
    }
    let forged = [one, other].map(|id| {
        let drops = meeting.world.host(id).mesh().expect("it runs").drops();
        drops.get("forged").copied().unwrap_or_default()
    });
    assert_eq!(forged, [1, 1]);
    Ok(())
}
