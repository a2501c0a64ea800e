use super::*;
use crate::testing::key;

fn at(millis: u64) -> Monotonic {
    Monotonic::from_nanos(millis * 1_000_000)
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn distances(relays: &[(u8, u64)]) -> BTreeMap<PublicKey, Duration> {
    relays.iter().map(|&(relay, millis)| (key(relay), Duration::from_millis(millis))).collect()
}

fn heard(relays: &[(u8, u64)]) -> Seeker {
    let mut seeker = Seeker::default();
    let theirs = distances(relays);
    seeker.hear(&theirs.iter().map(|(&relay, &rtt)| Reached::new(relay, rtt)).collect::<Vec<_>>(), false);
    seeker
}

fn pair() -> [PublicKey; 2] {
    [key(1), key(2)]
}

/// Does everything that is due until `to`. Returns it with its time.
fn run(seeker: &mut Seeker, to: u64) -> Vec<(u64, Step)> {
    let mut steps = Vec::new();
    while let Some(due) = seeker.poll_timeout().filter(|due| *due <= at(to)) {
        while let Some(step) = seeker.poll_step(due) {
            steps.push((due.as_nanos() / 1_000_000, step));
        }
    }
    steps
}

/// X-19, L-15: the smallest sum of both round trips, among relays that both reach.
#[test]
fn the_nearest_relay_that_both_reach_is_chosen() {
    let seeker = heard(&[(10, 30), (11, 10), (12, 1)]);
    let ours = distances(&[(10, 5), (11, 40), (13, 1)]);
    assert_eq!(seeker.choose(&ours, &[], pair(), at(0)), Some(key(10)));
    assert_eq!(seeker.distance(key(10), &ours), Some(Duration::from_millis(35)));
    assert_eq!(seeker.choose(&distances(&[(13, 1)]), &[], pair(), at(0)), None, "the peer does not reach it");
    assert_eq!(Seeker::default().choose(&ours, &[], pair(), at(0)), None, "the peer has told of none");
}

/// W-D33: one that is preferred comes before a nearer one, and after any that has not failed.
#[test]
fn a_preferred_relay_is_chosen_while_it_works() {
    let mut seeker = heard(&[(10, 30), (11, 10), (12, 1)]);
    let ours = distances(&[(10, 5), (11, 40), (13, 1)]);
    let preferred = [key(11), key(12)];
    assert_eq!(seeker.choose(&ours, &preferred, pair(), at(0)), Some(key(11)));
    seeker.fail(key(11), false, at(0));
    assert_eq!(seeker.choose(&ours, &preferred, pair(), at(100_000)), Some(key(10)));
}

/// at equal distance a hash decides, from either side alike, and not for all pairs alike.
#[test]
fn equally_near_relays_are_spread_over_the_pairs() {
    let relays: Vec<(u8, u64)> = (10..20).map(|relay| (relay, 7)).collect();
    let (seeker, ours) = (heard(&relays), distances(&relays));
    let chosen = |one, other| seeker.choose(&ours, &[], [key(one), key(other)], at(0));
    let different: std::collections::BTreeSet<_> = (30..60).map(|other| chosen(2, other)).collect();
    assert!(different.len() > 4, "{}", different.len());
    assert!((30..60).all(|other| chosen(2, other) == chosen(other, 2)));
}

#[test]
fn a_relay_that_does_not_answer_is_asked_three_times() {
    let mut seeker = Seeker::default();
    assert!(seeker.ask(key(10), at(0)));
    let steps = run(&mut seeker, 60_000);
    let ask = Step::Ask(key(10));
    assert_eq!(steps, [(0, ask), (200, ask), (600, ask), (1200, Step::Failed(key(10), None))]);
    assert!(!seeker.is_under_way());
}

#[test]
fn a_relay_through_which_the_peer_does_not_answer_is_given_up() {
    let mut seeker = Seeker::default();
    seeker.ask(key(10), at(0));
    assert!(seeker.handle_allocated(key(10), address(1), false, at(0)));
    assert!(!seeker.handle_allocated(key(10), address(1), false, at(50)), "it is told twice");
    assert_eq!(seeker.relay_at(address(1)), Some(key(10)));
    assert_eq!(run(&mut seeker, 60_000), [(2000, Step::Failed(key(10), Some(address(1))))]);
    assert_eq!(seeker.relay_at(address(1)), None);
}

/// Whatever a relay offers that the chooser did not ask for is ignored; the other node cannot know who was asked.
#[test]
fn an_offer_that_nobody_asked_for_is_taken_by_the_node_that_does_not_choose() {
    assert!(!Seeker::default().handle_allocated(key(10), address(1), false, at(0)));
    let mut seeker = Seeker::default();
    assert!(seeker.handle_allocated(key(10), address(1), true, at(0)));
    assert!(seeker.handle_allocated(key(11), address(2), true, at(0)));
    assert!(!seeker.handle_allocated(key(12), address(3), true, at(0)), "there are two already");
    run(&mut seeker, 2000);
    assert!(!seeker.handle_allocated(key(10), address(1), true, at(2000)), "it has just failed");
}

#[test]
fn a_relay_in_use_is_bound_each_minute_and_one_that_is_not_is_let_go() {
    let mut seeker = Seeker::default();
    seeker.ask(key(10), at(0));
    seeker.handle_allocated(key(10), address(1), false, at(0));
    seeker.handle_answer(address(1), at(100));
    for second in 0..200 {
        seeker.note_use(Some(address(1)), at(100 + second * 1000));
        let steps = run(&mut seeker, 100 + second * 1000);
        let is_due = second > 0 && second % 60 == 0;
        let bind = is_due.then_some((100 + second * 1000, Step::Bind(key(10), address(1))));
        assert_eq!(steps, bind.into_iter().collect::<Vec<_>>());
    }
    let steps = run(&mut seeker, 400_000);
    assert_eq!(steps.last().unwrap().1, Step::Release(key(10), address(1)));
    assert!(steps.last().unwrap().0 <= 260_000 && !seeker.is_under_way());
}

/// A dead or a lying relay is left for any other, however far, and comes up again later and later.
#[test]
fn a_relay_that_failed_ranks_behind_all_others() {
    let mut seeker = heard(&[(10, 1), (11, 300)]);
    let ours = distances(&[(10, 1), (11, 300)]);
    assert_eq!(seeker.choose(&ours, &[], pair(), at(0)), Some(key(10)));
    seeker.fail(key(10), false, at(0));
    assert_eq!(seeker.choose(&ours, &[], pair(), at(5000)), Some(key(11)), "rested, but failed");
    let only = distances(&[(10, 1)]);
    assert_eq!(seeker.choose(&only, &[], pair(), at(500)), None);
    assert_eq!(seeker.choose(&only, &[], pair(), at(1000)), Some(key(10)), "better than none");
    seeker.fail(key(10), false, at(1000));
    assert_eq!(seeker.choose(&only, &[], pair(), at(2900)), None, "the second rest is longer");
    assert_eq!(seeker.choose(&only, &[], pair(), at(3000)), Some(key(10)));
    seeker.fail(key(11), true, at(3000));
    assert_eq!(
        seeker.choose(&ours, &[], pair(), at(33_000)),
        Some(key(10)),
        "a lie weighs more than a failure"
    );
    assert_eq!(seeker.choose(&ours, &[], pair(), at(700_000)), Some(key(10)), "all is forgotten in the end");
}

#[test]
fn failures_of_ever_new_relays_take_no_more_room() {
    let mut seeker = Seeker::default();
    for relay in 10..100 {
        seeker.fail(key(relay), false, at(u64::from(relay)));
    }
    assert_eq!(seeker.failures.len(), MAX_FAILURES);
}

/// Whoever asked for another relay long before loses the one in use: the way to the next must not have to wait.
#[test]
fn a_peer_that_was_asked_for_relays_is_asked_at_once_where_no_path_works() {
    let mut seeker = Seeker::default();
    let asked = (0..60).filter(|second| seeker.take_inquiry(at(second * 1000))).count();
    assert_eq!(asked, 6, "after 1, 2, 4, 8 and 16 s");
    assert!(seeker.next_turn().is_none() && seeker.take_turn(at(60_000)));
}

#[test]
fn where_there_is_no_relay_tries_become_rarer() {
    let mut seeker = Seeker::default();
    let turns: Vec<u64> = (0..200).filter(|second| seeker.take_turn(at(second * 1000))).collect();
    assert_eq!(turns[..8], [0, 1, 3, 7, 15, 31, 61, 91]);
}

/// The lower key's proved word counts more than what this node holds.
#[test]
fn a_relay_that_the_peer_has_chosen_takes_the_place_of_every_other() {
    let mut seeker = Seeker::default();
    assert!(seeker.take_choice(key(10), address(1), at(0)));
    seeker.handle_answer(address(1), at(100));
    assert!(!seeker.take_choice(key(10), address(1), at(60_000)), "it is the one in use");
    assert!(seeker.take_choice(key(11), address(1), at(60_100)));
    assert_eq!(seeker.relay_at(address(1)), Some(key(11)));
    assert_eq!(run(&mut seeker, 65_000), [(62_100, Step::Failed(key(11), Some(address(1))))]);
}

/// Word that the tunnel is up is repeated until both have left the relay, and is believed for a while only.
#[test]
fn the_peer_is_told_again_and_again_that_the_tunnel_is_up() {
    let mut seeker = Seeker::default();
    seeker.take_choice(key(10), address(1), at(0));
    seeker.handle_answer(address(1), at(10));
    assert!(!seeker.take_telling(false, at(100)));
    let told: Vec<u64> = (100..1000).step_by(10).filter(|&now| seeker.take_telling(true, at(now))).collect();
    assert_eq!(told, [100, 350, 600, 850]);
    assert!(!seeker.take_telling(false, at(1000)) && seeker.poll_timeout() > Some(at(1100)));
    assert!(!seeker.has_heard_direct(at(1000)));
    seeker.hear_direct(at(1000));
    assert!(seeker.has_heard_direct(at(10_999)) && !seeker.has_heard_direct(at(11_000)));
    seeker.leave(key(10));
    assert!(!seeker.is_under_way() && !seeker.has_heard_direct(at(1001)));
}
