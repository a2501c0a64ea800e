use super::super::Origin;
use super::super::tests::{Peer, address, at};
use super::*;
use crate::timed::Deadline as _;

/// A path that was met on a link beside so many other peers, which carries so much and answers after so long, in
/// milliseconds, or never; `random` is the moment at which it is measured.
fn met_beside(others: u32, random: u32, carries: u16, rtt: Option<u64>) -> Peer {
    let mut peer = Peer::new(&[(1, Kind::Lan, rtt)]);
    peer.largest = carries;
    peer.paths.take_up(address(1), Kind::Lan, others, || random, at(0));
    peer
}

/// One that was met alone.
fn met(carries: u16, rtt: Option<u64>) -> Peer {
    met_beside(0, u32::MAX, carries, rtt)
}

/// A path in use that carries so much, after a while.
fn measured(mtu: u16, rtt: u64) -> Peer {
    let mut peer = Peer::new(&[(1, Kind::Ipv4, Some(rtt))]);
    peer.largest = mtu;
    peer.paths.begin(at(0));
    peer.run(0, 6000);
    peer
}

#[test]
fn whatever_a_path_carries_is_found_within_five_bytes() {
    for (carries, found) in
        [(9000, 1420), (1420, 1420), (1419, 1415), (1412, 1410), (1280, 1280), (1220, 1220), (1200, 1200)]
    {
        for rtt in [2, 40, 300] {
            assert_eq!(measured(carries, rtt).paths.mtu(), Some(found), "{carries} bytes, {rtt} ms");
        }
    }
}

#[test]
fn a_path_that_carries_everything_costs_one_long_ping() {
    let peer = measured(1500, 20);
    assert_eq!(peer.long_pings, 1);
    assert_eq!(peer.paths.deadline(), None);
}

#[test]
fn a_path_on_which_long_packets_get_stuck_is_measured_anew_within_three_seconds() {
    for rtt in [2, 40, 150] {
        let mut peer = measured(1500, rtt);
        assert!(!peer.paths.take_mtu_change());
        peer.paths.note_traffic(at(6000));
        for begin in [6000, 6000 + 501] {
            peer.run(begin, begin + 500);
        }
        peer.largest = 1220;
        peer.run(7001, 10_001);
        assert_eq!(peer.paths.mtu(), Some(1220), "{rtt} ms");
        assert!(peer.paths.take_mtu_change());
        assert!(peer.paths.works(), "short packets pass");
    }
}

/// Packets that vanish tell sooner than lost pings alone.
#[test]
fn a_suspected_path_carries_packets_again_within_a_second() {
    for rtt in [2, 40] {
        let mut peer = measured(1500, rtt);
        peer.paths.note_traffic(at(6000));
        peer.run(6000, 7000);
        peer.largest = 1220;
        peer.paths.suspect(at(7000));
        peer.run(7000, 7950);
        assert!(peer.paths.mtu().is_some_and(|mtu| mtu <= 1220), "{rtt} ms");
    }
}

#[test]
fn a_path_that_was_met_on_a_link_is_measured_before_anybody_needs_it() {
    let mut peer = met(1300, Some(2));
    peer.run(0, 295);
    assert_eq!(peer.long_pings, 0, "the tunnel comes first");
    peer.run(295, 2000);
    assert_eq!(peer.paths.mtu(), Some(1300));
}

/// Found wanting in the lab: who only answers hears every packet, and so does not notice that its own are too long.
#[test]
fn a_ping_that_measures_less_has_this_side_measured_too() {
    let mut peer = measured(1420, 10);
    peer.largest = 1220;
    peer.paths.follow_length(address(1), 200, at(6000));
    peer.paths.follow_length(address(1), probe_bytes(1420), at(6000));
    peer.run(6000, 8000);
    assert_eq!(peer.paths.mtu(), Some(1420), "these are no news");
    peer.paths.follow_length(address(1), probe_bytes(1240), at(8000));
    peer.run(8000, 9000);
    assert_eq!(peer.paths.mtu(), Some(1220));
    peer.largest = 1200;
    peer.paths.follow_length(address(1), probe_bytes(1200), at(9000));
    assert!(peer.paths.mtu.search.is_none(), "the peer cannot have it measured all the time");
}

/// Where many start together the tunnels of all come first, and not all are measured at once.
#[test]
fn a_path_that_was_met_beside_many_is_measured_at_some_later_moment() {
    for (others, first, latest) in
        [(1, 450_u64, 950), (9, 1650, 6150), (19, 3000, 12_500), (999, 3000, 18_000)]
    {
        for (random, calm) in [(0, first), (u32::MAX / 2, first.midpoint(latest)), (u32::MAX, latest)] {
            let mut peer = met_beside(others, random, 1500, Some(2));
            peer.run(0, calm - 5);
            assert_eq!(peer.long_pings, 0, "{others} others");
            peer.paths.take_up(address(1), Kind::Lan, others, || 0, at(calm - 5));
            peer.run(calm - 5, calm + 100);
            assert_eq!(peer.paths.mtu(), Some(1420), "{others} others");
            assert_eq!(peer.long_pings, 1, "{others} others");
        }
    }
}

/// Found wanting in the lab: twenty hosts that started together took their late answers for narrow links, and all that
/// they sent to find out how narrow had them answer later still.
#[test]
fn a_peer_that_is_busy_is_not_taken_for_a_narrow_path() {
    for rtt in [400, 1500, 3000] {
        let mut peer = met(1500, Some(rtt));
        peer.run(0, 10_000);
        assert_eq!(peer.paths.mtu(), Some(1420), "{rtt} ms");
        assert!(!peer.paths.take_mtu_change(), "{rtt} ms");
        assert!(peer.long_pings <= 2 * COPIES, "{} long pings at {rtt} ms", peer.long_pings);
    }
}

#[test]
fn a_path_that_falls_silent_in_between_says_nothing() {
    let mut peer = met(1300, Some(2));
    peer.run(0, 700);
    assert_eq!(peer.long_pings, COPIES, "short pings were answered, and none of full length");
    peer.rtt.clear();
    peer.run(700, 5000);
    assert_eq!(peer.paths.mtu(), None);
}

#[test]
fn a_path_that_answers_nothing_is_not_asked_for_its_mtu_forever() {
    let mut peer = met(1500, None);
    peer.run(0, 60_000);
    assert_eq!(peer.long_pings, COPIES * (1 + RETRIES));
    assert_eq!(peer.paths.mtu(), None);
}

/// Found wanting in the simulation: a search that need not have been wrote to the kernel four times.
#[test]
fn a_path_that_carries_what_it_did_is_the_same_all_along() {
    for mtu in [1420, 1310] {
        let mut peer = measured(mtu, 10);
        peer.paths.take_mtu_change();
        peer.paths.mtu.search(address(1), at(6000));
        for step in 0..200 {
            peer.run(6000 + 5 * step, 6005 + 5 * step);
            assert!(!peer.paths.take_mtu_change(), "{mtu} after {step}");
        }
        assert!(peer.long_pings > 0 && peer.paths.mtu.search.is_none());
        assert_eq!(peer.paths.mtu(), Some(mtu));
    }
}

/// A host that is busy answers later than a search waits.
#[test]
fn a_late_answer_counts() {
    let mut peer = measured(1220, 10);
    assert!(peer.paths.take_mtu_change());
    peer.paths.mtu.on_answer(address(1), 1420, at(6000));
    assert_eq!(peer.paths.mtu(), Some(1420));
    assert!(peer.paths.take_mtu_change());
}

#[test]
fn a_larger_mtu_is_looked_for_after_ten_minutes_of_use() {
    let mut peer = measured(1220, 10);
    peer.largest = 1500;
    for second in 6..700 {
        if second % 5 == 0 {
            peer.paths.note_traffic(at(second * 1000));
        }
        peer.run(second * 1000, second * 1000 + 1000);
        let expected = if second < 600 { 1220 } else { 1420 };
        assert!(second.abs_diff(605) < 15 || peer.paths.mtu() == Some(expected), "{second} s");
    }
}

#[test]
fn a_path_that_dies_while_it_is_measured_says_nothing_of_its_mtu() {
    let mut peer = measured(1500, 20);
    peer.paths.add(address(2), Origin::Record, Kind::Ipv4, at(6000));
    peer.rtt.clear();
    peer.paths.mtu.search(address(1), at(6000));
    peer.run(6000, 9000);
    assert_eq!(peer.paths.mtu(), Some(1420));
}
