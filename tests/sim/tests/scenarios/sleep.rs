//! Hosts that sleep while the world goes on.

use std::time::Duration;

use wgmesh_sim::nat::Kind;
use wgmesh_sim::world::Violation;

use crate::fleet::{Fleet, mins, secs};
use crate::meeting::Meeting;

/// What a host that wakes may take to be back.
const BACK: Duration = Duration::from_secs(5);

/// Where others have let go of it, so that it must dial its introducer anew: the old session is given up after 10 s.
const BACK_BY_INTRODUCER: Duration = Duration::from_secs(13);

/// Issue 4 (suspend): on a common link, after minutes or hours; nobody was silent only because this host did not listen.
#[test]
fn a_host_that_wakes_on_a_link_is_back_within_seconds_and_has_forgotten_nobody() -> Result<(), Violation> {
    for span in [mins(2), mins(9), mins(180)] {
        let mut fleet = Fleet::resting(1, 5)?;
        let node = fleet.nodes[2];
        let known = |fleet: &Fleet| fleet.world.host(node).mesh().expect("it runs").store().len();
        fleet.world.sleep(node, true);
        fleet.world.run_for(span)?;
        fleet.world.sleep(node, false);
        fleet.world.run_for(Duration::from_millis(10))?;
        assert_eq!(known(&fleet), 4, "after {span:?}");
        let back = fleet.world.run_until_meshed(secs(60))?;
        assert!(back < BACK, "{back:?} after {span:?}");
        fleet.world.run_for(mins(11))?;
        assert_eq!(known(&fleet), 4);
    }
    Ok(())
}

/// Issue 4 (suspend): behind NATs, which have forgotten it meanwhile.
#[test]
fn a_host_that_wakes_behind_a_nat_is_back_within_seconds() -> Result<(), Violation> {
    for span in [mins(2), mins(30), mins(180)] {
        let mut meeting = Meeting::new(2, [Kind::PortRestricted; 2]);
        meeting.meet()?;
        let [one, other] = meeting.nodes;
        meeting.world.talk(one, other);
        meeting.world.run_for(secs(30))?;
        meeting.world.sleep(one, true);
        meeting.world.run_for(span)?;
        meeting.world.sleep(one, false);
        let back = meeting.world.run_until_meshed(secs(60))?;
        assert!(back < BACK_BY_INTRODUCER, "{back:?} after {span:?}");
    }
    Ok(())
}

/// Issue 4 (suspend): WireGuard forgets its keys when the machine sleeps, and the others' kernels do not know.
#[test]
fn a_host_that_wakes_hears_at_once_whoever_talks_to_it() -> Result<(), Violation> {
    for (seed, span) in (0..4).flat_map(|seed| [secs(14), secs(65), mins(4)].map(|span| (seed, span))) {
        let mut fleet = Fleet::resting(seed, 5)?;
        let [asleep, awake] = [fleet.nodes[2], fleet.nodes[3]];
        fleet.world.sleep(asleep, true);
        fleet.world.run_for(span - secs(2))?;
        fleet.world.ping_in(awake, asleep, 100);
        fleet.world.run_for(secs(2))?;
        fleet.world.sleep(asleep, false);
        fleet.world.take_longest_silence();
        fleet.world.run_for(secs(60))?;
        let silence = fleet.world.take_longest_silence();
        assert!(silence < secs(1), "{silence:?} after {span:?}, seed {seed}");
    }
    Ok(())
}

/// Issue 4 (suspend): both ends wake at once, say when their common host does, and begin at once: initiations that cross undo each
/// other, and WireGuard repeats them after five seconds, again at once. Found on Linux 6.12: 5 s, and once 26.
#[test]
fn hosts_that_wake_together_are_joined_within_three_seconds() -> Result<(), Violation> {
    for (seed, span) in (0..4).flat_map(|seed| [secs(5), secs(65), mins(30)].map(|span| (seed, span))) {
        let mut fleet = Fleet::resting(seed, 4)?;
        let sleepers = [fleet.nodes[1], fleet.nodes[2]];
        sleepers.iter().for_each(|&node| fleet.world.sleep(node, true));
        fleet.world.run_for(span)?;
        sleepers.iter().for_each(|&node| fleet.world.sleep(node, false));
        fleet.world.talk(sleepers[0], sleepers[1]);
        fleet.world.take_longest_silence();
        fleet.world.run_for(secs(30))?;
        let silence = fleet.world.take_longest_silence();
        assert!(silence < secs(3), "{silence:?} after {span:?}, seed {seed}");
    }
    Ok(())
}

/// What is dead stays dead: a host that sleeps makes nobody younger than when it fell asleep.
#[test]
fn whoever_was_dead_before_a_sleep_is_forgotten_after_it() -> Result<(), Violation> {
    let mut fleet = Fleet::resting(3, 4)?;
    let (dead, node) = (fleet.nodes[0], fleet.nodes[1]);
    fleet.world.reboot(dead);
    fleet.world.run_for(mins(5))?;
    fleet.world.sleep(node, true);
    fleet.world.run_for(mins(60))?;
    fleet.world.sleep(node, false);
    fleet.world.run_for(mins(4))?;
    assert!(fleet.knows(node, dead));
    fleet.world.run_for(mins(3))?;
    assert!(!fleet.knows(node, dead));
    Ok(())
}

/// Issue 4 (clock jumps): whatever the wall clock of a host does, what its kernel carries goes on, and what it says counts again
/// as soon as the clock is right.
#[test]
fn a_wall_clock_that_jumps_costs_no_packet() -> Result<(), Violation> {
    const HOUR: i64 = 3_600_000;
    for (kinds, relays) in [([Kind::PortRestricted; 2], 1), ([Kind::Symmetric; 2], 1)] {
        for jump in [HOUR, -5 * HOUR, 24 * 30 * HOUR] {
            let mut meeting = Meeting::with_relays(3, kinds, relays);
            meeting.meet_and_talk()?;
            let endpoints = [0, 1].map(|side| meeting.endpoint(side));
            let node = meeting.nodes[0];
            for skew in [jump, 0] {
                meeting.world.change(node, |host| host.plan.skew_millis = skew);
                meeting.world.run_for(mins(4))?;
                let silence = meeting.world.take_longest_silence();
                assert!(silence < secs(1), "{silence:?} with {skew} ms, {kinds:?}");
            }
            assert_eq!([0, 1].map(|side| meeting.endpoint(side)), endpoints, "{jump} ms, {kinds:?}");
            meeting.world.run_until_meshed(secs(30))?;
        }
    }
    Ok(())
}
