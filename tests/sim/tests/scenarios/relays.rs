//! Pairs that no packet can join directly, and the relays between them.

use std::time::Duration;

use wgmesh_core::config::RelayMode;
use wgmesh_core::status::PeerState;
use wgmesh_sim::host::{HostPlan, Relaying};
use wgmesh_sim::nat::{Behaviour, Kind, direct_path_possible};
use wgmesh_sim::network::Conditions;
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{millis, mins, secs};
use crate::meeting::{FAILOVER, Meeting};

/// W-D11, L-13, L-14, P-21, X-20: one layer after the other is tried, the direct ways first, then a relay; whatever stands before them, any two hosts that share a relay reach each other.
#[test]
fn every_pair_of_nats_is_joined_where_there_is_a_relay() -> Result<(), Violation> {
    for [one, other] in Kind::pairs() {
        let mut meeting = Meeting::with_relays(1, [one, other], 1);
        let span = meeting.meet()?;
        assert!(span < secs(3), "{span:?}: {one:?} with {other:?}");
        meeting.world.run_for(secs(20))?;
        let is_possible = direct_path_possible(one.layers(), other.layers());
        let expected = if is_possible { PeerState::Direct } else { PeerState::Relayed };
        for (from, of) in [(0, 1), (1, 0)] {
            let view = meeting.view(meeting.nodes[from], meeting.nodes[of]);
            assert_eq!(view.state, expected, "{one:?} with {other:?}: {:?}", view.why);
            let relay = view.path.expect("there is a path").relay;
            let introducer = meeting.world.host(meeting.introducer).public_key();
            assert_eq!(relay, (!is_possible).then_some(introducer));
        }
    }
    Ok(())
}

/// W-D12: where one of the two wants a relay there is one, and none to a public node or on a common link; also where the
/// kernels had a direct tunnel before.
#[test]
fn a_relay_that_is_forced_is_between_whoever_is_neither_public_nor_near() -> Result<(), Violation> {
    let mut quickest = FAILOVER;
    for kinds in [[Kind::PortRestricted; 2], [Kind::FullCone, Kind::PortRewriting]] {
        for seed in 0..5 {
            let mut meeting = Meeting::with_relays(seed, kinds, 1);
            let plan = HostPlan { bootstrap: vec![meeting.introducer], ..HostPlan::default() };
            let neighbour = meeting.world.add_host(plan, &[meeting.sites[0]]);
            meeting.meet()?;
            meeting.world.run_for(secs(20))?;
            assert_eq!(meeting.first_view().state, PeerState::Direct);
            let node = meeting.nodes[0];
            meeting.world.change(node, |host| host.plan.force_relay = true);
            meeting.world.crash(node);
            meeting.world.start(node)?;
            meeting.world.start(neighbour)?;
            let (key, other) = (meeting.world.host(meeting.nodes[1]).public_key(), meeting.nodes[1]);
            let is_relayed = |world: &mut World| {
                let status = world.status(node).expect("it runs");
                status.peers.iter().any(|peer| peer.public_key == key && peer.state == PeerState::Relayed)
            };
            let span = meeting.world.run_until(secs(60), is_relayed)?;
            assert!(span.is_some_and(|span| span < FAILOVER), "{span:?}: {kinds:?}, seed {seed}");
            quickest = quickest.min(span.unwrap_or(quickest));
            meeting.world.talk(node, other);
            meeting.world.run_for(mins(5))?;
            for (from, of) in [(0, 1), (1, 0)] {
                let view = meeting.view(meeting.nodes[from], meeting.nodes[of]);
                assert_eq!(view.state, PeerState::Relayed, "{kinds:?}, seed {seed}: {view:?}");
            }
            for other in [meeting.introducer, neighbour] {
                assert_eq!(meeting.view(node, other).state, PeerState::Direct, "{kinds:?}, seed {seed}");
            }
        }
    }
    assert!(quickest < millis(500), "{quickest:?}: nobody waits for what is not wanted");
    Ok(())
}

/// Issue 4 (sealed relay): agreed by both ends or by neither.
#[test]
fn where_one_end_seeks_no_relays_there_is_none() -> Result<(), Violation> {
    for (seed, end) in (0..3).flat_map(|seed| [(seed, 0), (seed, 1)]) {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 1);
        meeting.world.change(meeting.nodes[end], |host| host.plan.relay_mode = RelayMode::Off);
        meeting.start()?;
        meeting.world.talk(meeting.nodes[0], meeting.nodes[1]);
        for _ in 0..30 {
            meeting.world.run_for(secs(2))?;
            assert!([0, 1].iter().all(|&side| meeting.endpoint(side).is_none()), "seed {seed}, end {end}");
        }
        assert_eq!(meeting.first_view().state, PeerState::Connecting);
    }
    Ok(())
}

/// Issue 4 (`wgmesh explain`): which relay, since when, what was tried, and why no direct path, said once.
#[test]
fn a_relayed_peer_is_explained() -> Result<(), Violation> {
    let mut meeting = Meeting::with_relays(1, [Kind::Symmetric; 2], 2);
    meeting.meet_and_talk()?;
    let left = meeting.relay().expect("it is relayed");
    meeting.world.crash(left);
    meeting.world.run_for(secs(60))?;
    let explained = meeting.explain();
    assert_eq!(explained.peer.state, PeerState::Relayed);
    assert!(explained.since_s.is_some_and(|since| (50..=60).contains(&since)), "{explained:?}");
    assert!(!explained.attempts.is_empty() && !explained.earlier.is_empty(), "{explained:?}");
    let left = meeting.world.host(left).public_key();
    assert!(explained.left_relays.iter().any(|one| one.relay == left), "{explained:?}");
    let [reason] = &explained.reasons[..] else { panic!("{:?}", explained.reasons) };
    assert!(reason.contains("both NATs are symmetric"), "{reason}");

    let mut meeting = Meeting::with_relays(1, [Kind::PortRestricted; 2], 1);
    meeting.world.change(meeting.nodes[0], |host| host.plan.force_relay = true);
    meeting.meet_and_talk()?;
    assert_eq!(meeting.first_view().state, PeerState::Relayed);
    let [reason] = &meeting.explain().reasons[..] else { panic!("{:?}", meeting.explain()) };
    assert!(reason.contains("`relay.force` is set"), "{reason}");
    Ok(())
}

/// Issue 4, 6: daemons that stand still leave the kernels and what eBPF relays as they are, also past the watchdog of systemd.
#[test]
fn a_relayed_pair_outlives_the_hang_of_any_daemons() -> Result<(), Violation> {
    for (relays, span) in [1, 2].into_iter().flat_map(|relays| [5, 25, 60].map(|span| (relays, secs(span)))) {
        for hung in [[true, false, false], [false, false, true], [true, false, true], [true, true, true]] {
            let mut meeting = Meeting::with_relays(4, [Kind::Symmetric; 2], relays);
            meeting.meet_and_talk()?;
            let relay = meeting.relay().expect("it is relayed");
            let all = [meeting.nodes[0], meeting.nodes[1], relay];
            for is_hung in [true, false] {
                for (host, may_hang) in all.into_iter().zip(hung) {
                    meeting.world.change(host, |host| host.is_hung = is_hung && may_hang);
                }
                meeting.world.run_for(if is_hung { span } else { secs(20) })?;
            }
            let silence = meeting.world.take_longest_silence();
            assert!(silence < millis(500), "{silence:?}: {relays} relays, {hung:?} for {span:?}");
            assert_eq!(meeting.first_view().state, PeerState::Relayed);
        }
    }
    Ok(())
}

/// W-D12: where relays are never sought (`relay.mode = "off"`), nothing is kept from a direct path for their sake.
#[test]
fn a_relay_that_is_forced_and_never_sought_bars_no_path() -> Result<(), Violation> {
    let mut meeting = Meeting::with_relays(1, [Kind::PortRestricted; 2], 1);
    for node in meeting.nodes {
        meeting.world.change(node, |host| {
            (host.plan.force_relay, host.plan.relay_mode) = (true, RelayMode::Off);
        });
    }
    meeting.meet()?;
    assert_eq!(meeting.first_view().state, PeerState::Direct);
    Ok(())
}

/// Issue 4, 1: as a firewall between two sites may have it. The kinds of NAT promise a direct path, so it is looked for
/// first. Found wanting in the lab: the pings through the relay ended with the attempt in which it was asked.
#[test]
fn a_pair_between_which_packets_are_dropped_is_joined_within_three_seconds() -> Result<(), Violation> {
    for kinds in [[Kind::None; 2], [Kind::None, Kind::PortRestricted], [Kind::PortRestricted; 2]] {
        for (seed, has_ebpf) in (0..10).flat_map(|seed| [(seed, true), (seed, false)]) {
            let mut meeting = Meeting::with_relays(seed, kinds, 1);
            meeting.world.bar(meeting.sites, true);
            for host in [meeting.introducer, meeting.nodes[0], meeting.nodes[1]] {
                meeting.world.change(host, |host| host.plan.has_ebpf = has_ebpf);
            }
            let span = meeting.meet()?;
            assert!(span < FAILOVER, "{span:?}: {kinds:?} with seed {seed}, eBPF {has_ebpf}");
        }
    }
    Ok(())
}

/// Issue 4, 2 (DESIGN 14): a direct path that dies without a word, both ways or one way, gives way to a relay, and comes back
/// when it heals.
#[test]
fn a_direct_path_that_is_cut_gives_way_to_a_relay_within_three_seconds() -> Result<(), Violation> {
    for (kinds, one_way) in [[Kind::None; 2], [Kind::PortRestricted; 2]]
        .into_iter()
        .flat_map(|kinds| [(kinds, false), (kinds, true)])
    {
        for (seed, has_ebpf) in (0..4).flat_map(|seed| [(seed, true), (seed, false)]) {
            let mut meeting = Meeting::with_relays(seed, kinds, 1);
            for host in meeting.nodes {
                meeting.world.change(host, |host| host.plan.has_ebpf = has_ebpf);
            }
            meeting.meet_and_talk()?;
            assert_eq!(meeting.first_view().state, PeerState::Direct);
            let [one, other] = meeting.sites;
            match one_way {
                true if seed % 2 == 0 => meeting.world.bar_one_way([one, other], true),
                true => meeting.world.bar_one_way([other, one], true),
                false => meeting.world.bar(meeting.sites, true),
            }
            meeting.world.run_for(secs(30))?;
            let silence = meeting.world.take_longest_silence();
            let case = format!("{kinds:?}, seed {seed}, eBPF {has_ebpf}, one way {one_way}");
            assert!(silence < FAILOVER, "{silence:?}: {case}");
            assert_eq!(meeting.first_view().state, PeerState::Relayed, "{case}");
            meeting.world.bar(meeting.sites, false);
            meeting.world.run_for(mins(6))?;
            let silence = meeting.world.take_longest_silence();
            assert!(silence < secs(1), "{silence:?} on the way back: {case}");
            assert_eq!(meeting.first_view().state, PeerState::Direct, "{case}");
        }
    }
    Ok(())
}

/// W-D11, W-D56: nothing works any more that worked, not even the way from the relay to either of the two.
#[test]
fn a_pair_whose_nats_both_turn_symmetric_is_joined_by_a_relay() -> Result<(), Violation> {
    for kinds in [[Kind::PortRestricted; 2], [Kind::FullCone, Kind::PortRewriting]] {
        for (seed, has_ebpf) in (0..10).flat_map(|seed| [(seed, true), (seed, false)]) {
            let mut meeting = Meeting::with_relays(seed, kinds, 1);
            for host in [meeting.introducer, meeting.nodes[0], meeting.nodes[1]] {
                meeting.world.change(host, |host| host.plan.has_ebpf = has_ebpf);
            }
            meeting.meet_and_talk()?;
            assert_eq!(meeting.first_view().state, PeerState::Direct);
            for site in meeting.sites {
                meeting.world.change_nats(site, |nat| {
                    nat.set_behaviour(Behaviour::SYMMETRIC);
                    nat.flush();
                });
            }
            meeting.world.run_for(secs(40))?;
            let silence = meeting.world.take_longest_silence();
            assert!(silence < secs(5), "{silence:?}: {kinds:?} with seed {seed}, eBPF {has_ebpf}");
            assert_eq!(meeting.first_view().state, PeerState::Relayed);
        }
    }
    Ok(())
}

/// The path is found once: while it is used nothing changes, past three renewals of the session.
#[test]
fn a_relayed_pair_that_talks_is_never_interrupted() -> Result<(), Violation> {
    let mut meeting = Meeting::with_relays(2, [Kind::Symmetric; 2], 2);
    meeting.meet()?;
    let [one, other] = meeting.nodes;
    meeting.world.talk(one, other);
    meeting.world.run_for(secs(30))?;
    meeting.world.take_longest_silence();
    let endpoints = [0, 1].map(|side| meeting.endpoint(side));
    for _ in 0..10 {
        meeting.world.run_for(secs(60))?;
        assert_eq!([0, 1].map(|side| meeting.endpoint(side)), endpoints);
    }
    let silence = meeting.world.take_longest_silence();
    assert!(silence < secs(1), "{silence:?}");
    Ok(())
}

/// A pair at rest keeps its ports for hours.
#[test]
fn a_relayed_pair_at_rest_stays_joined() -> Result<(), Violation> {
    let mut meeting = Meeting::with_relays(3, [Kind::Symmetric, Kind::PortRestricted], 1);
    meeting.meet()?;
    for _ in 0..20 {
        meeting.world.run_for(mins(6))?;
        meeting.world.run_until_meshed(secs(30))?;
    }
    let [one, other] = meeting.nodes;
    meeting.world.talk(one, other);
    meeting.world.run_for(secs(1))?;
    meeting.world.take_longest_silence();
    meeting.world.run_for(secs(30))?;
    let silence = meeting.world.take_longest_silence();
    assert!(silence < secs(1), "{silence:?}");
    Ok(())
}

/// W-D56, DESIGN 14: a relay that dies gives way to another.
#[test]
fn a_pair_whose_relay_dies_moves_to_another_within_three_seconds() -> Result<(), Violation> {
    for seed in 0..10 {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 3);
        meeting.meet_and_talk()?;
        meeting.lose_relays(World::crash)?;
    }
    Ok(())
}

/// L-15, X-19: of two relays the nearer one is taken, also once it is the other one; a small difference moves nobody.
#[test]
fn the_nearest_relay_is_taken_and_kept_until_another_is_much_nearer() -> Result<(), Violation> {
    let (near, far) = (millis(5), millis(40));
    for (seed, has_ebpf) in [(0, true), (1, false), (2, true)] {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 2);
        for host in meeting.nodes {
            meeting.world.change(host, |host| host.plan.has_ebpf = has_ebpf);
        }
        let introducer = meeting.introducer;
        meeting.set_latencies(&[far, near]);
        meeting.meet_and_talk()?;
        meeting.world.run_for(mins(2))?;
        assert!(meeting.relay().is_some_and(|relay| relay != introducer), "seed {seed}, eBPF {has_ebpf}");
        meeting.set_latencies(&[near, far]);
        meeting.world.run_for(mins(12))?;
        assert_eq!(meeting.relay(), Some(introducer), "seed {seed}, eBPF {has_ebpf}");
        let endpoints = [0, 1].map(|side| meeting.endpoint(side));
        for latency in [millis(4), millis(6)] {
            meeting.set_latencies(&[millis(5), latency]);
            meeting.world.run_for(mins(6))?;
            assert_eq!([0, 1].map(|side| meeting.endpoint(side)), endpoints, "seed {seed}, {latency:?}");
        }
        let silence = meeting.world.take_longest_silence();
        assert!(silence < secs(1), "{silence:?} with seed {seed}");
    }
    Ok(())
}

/// L-15, W-D12: what is under way on a slow path leads both kernels back to it again and again while much is sent both ways. The
/// move to a nearer relay, and that to a direct path, is over soon all the same, and stays. Found wanting with
/// seed 8: one end alone noticed, and the relay waited for the other's word in vain.
#[test]
fn a_pair_that_talks_moves_from_a_slow_path_once_and_for_all() -> Result<(), Violation> {
    for seed in 0..20 {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 2);
        let introducer = meeting.introducer;
        meeting.set_latencies(&[millis(40), millis(10)]);
        meeting.meet_and_talk()?;
        meeting.world.run_for(mins(2))?;
        assert!(meeting.relay().is_some_and(|relay| relay != introducer), "seed {seed}");
        meeting.set_latencies(&[millis(10), millis(80)]);
        moves_soon(&mut meeting, mins(12))?;
        assert_eq!(meeting.relay(), Some(introducer), "seed {seed}");

        let mut world = World::new(seed);
        let sites = [(); 2].map(|()| world.add_site_behind(Behaviour::SYMMETRIC, None));
        let mut meeting = Meeting::relayed_at(world, sites, 1);
        meeting.meet_and_talk()?;
        meeting.set_latencies(&[millis(80)]);
        meeting.world.run_for(mins(1))?;
        meeting.bring_ipv6()?;
        moves_soon(&mut meeting, mins(6))?;
        assert_eq!(meeting.first_view().state, PeerState::Direct, "seed {seed}");
    }
    Ok(())
}

/// Lets time pass in which both kernels move to another path.
fn moves_soon(meeting: &mut Meeting, span: Duration) -> Result<(), Violation> {
    meeting.world.take_longest_silence();
    let mut endpoints = [0, 1].map(|side| meeting.endpoint(side));
    let mut moved_at = Vec::new();
    let start = meeting.world.now();
    while meeting.world.now().since(start) < span {
        meeting.world.run_for(millis(20))?;
        let before = std::mem::replace(&mut endpoints, [0, 1].map(|side| meeting.endpoint(side)));
        if endpoints != before {
            moved_at.push(meeting.world.now());
        }
    }
    let took = moved_at.last().zip(moved_at.first()).map(|(last, first)| last.since(*first));
    let silence = meeting.world.take_longest_silence();
    println!("{} moves of an endpoint within {took:?}, silent for {silence:?}", moved_at.len());
    assert!(took.is_some_and(|took| took < secs(3)), "{took:?}");
    assert!(silence < millis(600), "{silence:?}");
    Ok(())
}

/// W-D12: the direct path is tried again, proved, and taken without a gap.
#[test]
fn a_direct_path_that_opens_is_taken_and_nothing_is_lost() -> Result<(), Violation> {
    for seed in 0..10 {
        let mut world = World::new(seed);
        let sites = [(); 2].map(|()| world.add_site_behind(Behaviour::SYMMETRIC, None));
        let mut meeting = Meeting::relayed_at(world, sites, 1);
        meeting.meet_and_talk()?;
        assert_eq!(meeting.first_view().state, PeerState::Relayed);
        let silence = meeting.open_ipv6()?;
        assert!(silence < Duration::from_millis(300), "{silence:?} with seed {seed}");
    }
    Ok(())
}

/// Issue 4, 3: relays that drop everything, or all but what nodes say to each other, or that for one of the two, are left
/// for one that does not. Without eBPF only the kernel's counters tell, every five seconds.
#[test]
fn a_relay_that_drops_or_lies_is_left() -> Result<(), Violation> {
    for (relaying, has_ebpf, patience) in [
        (Relaying::Nothing, true, FAILOVER),
        (Relaying::Messages, true, FAILOVER),
        (Relaying::Half, true, FAILOVER),
        (Relaying::Messages, false, secs(20)),
    ] {
        for seed in 0..4 {
            let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 2);
            for host in meeting.nodes {
                meeting.world.change(host, |host| host.plan.has_ebpf = has_ebpf);
            }
            meeting.meet()?;
            let [one, other] = meeting.nodes;
            meeting.world.talk(one, other);
            meeting.world.run_for(secs(20))?;
            let relay = meeting.relay().expect("it is relayed");
            meeting.world.take_longest_silence();
            meeting.world.change(relay, |host| host.plan.relaying = relaying);
            meeting.world.run_for(mins(2))?;
            let silence = meeting.world.take_longest_silence();
            assert!(silence < patience, "{silence:?} with seed {seed}, {relaying:?}, eBPF {has_ebpf}");
            assert_ne!(meeting.relay(), Some(relay));
        }
    }
    Ok(())
}

/// Issue 4, 3: so are those that never passed on a packet, where there is another or one comes; also where the tunnel comes up
/// through them. Found wanting: a relay that passed on nothing of WireGuard's was never left.
#[test]
fn a_relay_that_lies_from_the_start_is_left() -> Result<(), Violation> {
    let kinds = [Relaying::Messages, Relaying::Handshakes, Relaying::Half];
    for (relaying, has_ebpf) in kinds.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        for (seed, comes_late) in (0..6).flat_map(|seed| [(seed, true), (seed, false)]) {
            let relays = if comes_late { 1 } else { 2 };
            let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], relays);
            for host in meeting.nodes {
                meeting.world.change(host, |host| host.plan.has_ebpf = has_ebpf);
            }
            meeting.world.change(meeting.introducer, |host| host.plan.relaying = relaying);
            meeting.start()?;
            if comes_late {
                meeting.add_relay()?;
            }
            let [one, other] = meeting.nodes;
            meeting.world.talk(one, other);
            meeting.world.run_for(mins(1))?;
            let silence = meeting.world.take_longest_silence();
            let case = format!("seed {seed}, {relaying:?}, eBPF {has_ebpf}, late {comes_late}");
            assert!(silence < secs(4), "{silence:?}: {case}");
            assert_ne!(meeting.relay(), Some(meeting.introducer), "{case}");
        }
    }
    Ok(())
}

/// Issue 4, 3: also where the other relay is hard to reach at first, so that both ends do not go there at the same time, or
/// one of them goes back. Found wanting on a busy Linux 5.10: both stayed with the liar.
#[test]
fn a_relay_that_lies_from_the_start_is_left_for_one_that_is_hard_to_reach() -> Result<(), Violation> {
    let (clean, late) = (Conditions::CLEAN, Conditions { jitter: secs(1), ..Conditions::CLEAN });
    let lossy = Conditions { loss: 0.3, ..clean };
    let bad = Conditions { loss: 0.4, jitter: millis(400), ..clean };
    for relaying in [Relaying::Messages, Relaying::Handshakes, Relaying::Half] {
        for (seed, conditions) in (0..4).flat_map(|seed| [late, lossy, bad].map(|one| (seed, one))) {
            let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 2);
            meeting.world.change(meeting.introducer, |host| host.plan.relaying = relaying);
            meeting.start()?;
            meeting.set_other_relays(conditions);
            let [one, other] = meeting.nodes;
            meeting.world.talk(one, other);
            meeting.world.run_for(secs(10))?;
            meeting.set_other_relays(clean);
            meeting.world.run_for(secs(40))?;
            meeting.world.take_longest_silence();
            meeting.world.run_for(secs(10))?;
            let silence = meeting.world.take_longest_silence();
            let case = format!("seed {seed}, {relaying:?}, {conditions:?}");
            assert!(silence < secs(1), "{silence:?}: {case}");
            assert_ne!(meeting.relay(), Some(meeting.introducer), "{case}");
        }
    }
    Ok(())
}

/// Issue 4, 3: before anybody talks through it: a ping through the tunnel follows its handshake.
#[test]
fn a_relay_that_passes_on_handshakes_only_is_left_before_anybody_talks() -> Result<(), Violation> {
    for (seed, has_ebpf) in (0..10).flat_map(|seed| [(seed, true), (seed, false)]) {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 2);
        for host in meeting.nodes {
            meeting.world.change(host, |host| host.plan.has_ebpf = has_ebpf);
        }
        meeting.world.change(meeting.introducer, |host| host.plan.relaying = Relaying::Handshakes);
        meeting.start()?;
        meeting.world.run_for(secs(10))?;
        let [one, other] = meeting.nodes;
        meeting.world.talk(one, other);
        meeting.world.run_for(mins(1))?;
        let silence = meeting.world.take_longest_silence();
        assert!(silence < secs(1), "{silence:?}: seed {seed}, eBPF {has_ebpf}");
    }
    Ok(())
}

/// Issue 4, 3: a relay that sends everything a hundred times costs nobody the tunnel, and is left where there is another. The
/// status says why.
#[test]
fn a_relay_that_floods_is_left_and_costs_nobody_the_tunnel() -> Result<(), Violation> {
    for (seed, relays) in (0..2).flat_map(|seed| [(seed, 1), (seed, 2)]) {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], relays);
        meeting.meet_and_talk()?;
        let relay = meeting.relay().expect("it is relayed");
        meeting.world.change(relay, |host| host.plan.relaying = Relaying::Flood);
        meeting.world.run_for(secs(20))?;
        let silence = meeting.world.take_longest_silence();
        assert!(silence < secs(2), "{silence:?} with seed {seed}, {relays} relays");
        let is_left = meeting.relay() != Some(relay);
        assert_eq!(is_left, relays == 2, "seed {seed}");
        let statuses = meeting.nodes.map(|node| meeting.world.status(node).expect("it runs"));
        let counted = statuses.iter().filter_map(|status| status.relays_left.get("floods")).sum::<u64>();
        assert_eq!(counted > 0, is_left, "seed {seed}: {counted}");
        assert!(statuses.iter().all(|status| status.drops["replayed"] >= 99), "seed {seed}");
    }
    Ok(())
}

/// Found wanting in the lab: both ends leave a relay that goes on to pass on packets. What is under way through it meanwhile takes
/// their kernels back to it, and there they stayed.
#[test]
fn a_relay_that_is_left_is_not_gone_back_to() -> Result<(), Violation> {
    for seed in 0..12 {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 2);
        meeting.set_latencies(&[millis(60); 2]);
        meeting.meet()?;
        let [one, other] = meeting.nodes;
        meeting.world.ping_in(one, other, 100);
        meeting.world.run_for(secs(20))?;
        let relay = meeting.relay().expect("it is relayed");
        meeting.world.change(relay, |host| host.plan.relaying = Relaying::Flood);
        meeting.world.run_for(secs(5))?;
        meeting.world.change(relay, |host| host.plan.relaying = Relaying::Honest);
        meeting.world.run_for(secs(15))?;
        for (from, of) in [(0, 1), (1, 0)] {
            let view = meeting.view(meeting.nodes[from], meeting.nodes[of]);
            let current = view.path.and_then(|path| path.relay);
            assert_ne!(current, Some(meeting.world.host(relay).public_key()), "seed {seed}");
        }
    }
    Ok(())
}

/// A relay that has no room says so, and the pairs that it serves keep what they have.
#[test]
fn a_full_relay_refuses_and_serves_on() -> Result<(), Violation> {
    let mut world = World::new(6);
    world.add_stun_server(true);
    world.add_stun_server(false);
    let public = world.add_site(Kind::None);
    let relay = world.add_host(HostPlan { serve: None, max_pairs: 3, ..HostPlan::default() }, &[public]);
    world.start(relay)?;
    world.run_for(secs(3))?;
    let mut nodes = Vec::new();
    for _ in 0..5 {
        let site = world.add_site(Kind::Symmetric);
        let node = world.add_host(HostPlan { bootstrap: vec![relay], ..HostPlan::default() }, &[site]);
        world.start(node)?;
        nodes.push(node);
    }
    for _ in 0..10 {
        world.run_for(secs(30))?;
        let status = world.status(relay).expect("it runs").relay;
        assert!(status.serving && status.pairs <= 3, "{status:?}");
    }
    let relayed = |world: &World, id| {
        let peers = world.status(id).expect("it runs").peers;
        peers.into_iter().filter(|peer| peer.state == PeerState::Relayed).count()
    };
    assert_eq!(
        nodes.iter().map(|&node| relayed(&world, node)).sum::<usize>(),
        6,
        "both sides of three pairs"
    );
    let drops = world.host(relay).mesh().expect("it runs").drops();
    assert!(drops.get("relay refused").is_some_and(|&count| count > 0));
    Ok(())
}

#[test]
fn a_node_that_does_not_serve_is_no_relay() -> Result<(), Violation> {
    let mut meeting = Meeting::new(7, [Kind::Symmetric; 2]);
    meeting.meet()?;
    meeting.world.run_for(secs(30))?;
    assert_eq!(meeting.first_view().state, PeerState::Connecting);
    let status = meeting.world.status(meeting.introducer).expect("it runs").relay;
    assert!(!status.serving && status.pairs == 0);
    Ok(())
}

/// Either end may lose its daemon: the relay goes on, and the new daemon finds where it is.
#[test]
fn a_relayed_pair_outlives_the_restart_of_either_daemon() -> Result<(), Violation> {
    for side in [0, 1] {
        let mut meeting = Meeting::with_relays(8, [Kind::Symmetric; 2], 1);
        meeting.meet()?;
        let [one, other] = meeting.nodes;
        meeting.world.talk(one, other);
        meeting.world.run_for(secs(30))?;
        meeting.world.take_longest_silence();
        meeting.world.crash(meeting.nodes[side]);
        meeting.world.run_for(secs(2))?;
        meeting.world.start(meeting.nodes[side])?;
        meeting.world.run_for(mins(10))?;
        let silence = meeting.world.take_longest_silence();
        assert!(silence < secs(1), "{silence:?}");
        assert_eq!(meeting.first_view().state, PeerState::Relayed);
        let relayed = meeting.first_view().path.and_then(|path| path.relay);
        assert_eq!(relayed, Some(meeting.world.host(meeting.introducer).public_key()));
    }
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_trace_with_relays() -> Result<(), Violation> {
    let trace = |seed| {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 3);
        meeting.start()?;
        meeting.world.run_for(secs(30))?;
        Ok(meeting.world.trace())
    };
    assert_eq!(trace(1)?, trace(1)?);
    Ok(())
}
