use std::collections::BTreeMap;

use proptest::prelude::*;

use super::body::VERSION;
use super::*;
use crate::record::InvalidRecord;
use crate::sync::tests::{Table, record_of};

const NETWORK: [u8; 32] = [5; 32];
const SECOND: Duration = Duration::from_secs(1);

/// Nodes that all reach each other, on virtual time.
struct World {
    nodes: BTreeMap<PublicKey, (Table, Gossip)>,
    now: Monotonic,
    flying: Vec<(PublicKey, PublicKey, Vec<u8>)>,
    heard: Vec<(PublicKey, PublicKey, Monotonic)>,
    sent: usize,
    bytes: usize,
    /// Every so many-th datagram is lost.
    loses: Option<usize>,
}

impl World {
    fn new(count: u16) -> Self {
        let now = Monotonic::from_nanos(1_000_000_000_000);
        let node = |number: u16| {
            let own = record_of(number, 1);
            let mut seed = [0; 32];
            seed[..2].copy_from_slice(&number.to_be_bytes());
            (own.record().key, ([&own].into_iter().collect(), Gossip::new(seed, now, now)))
        };
        Self {
            nodes: (0..count).map(node).collect(),
            now,
            flying: Vec::new(),
            heard: Vec::new(),
            sent: 0,
            bytes: 0,
            loses: None,
        }
    }

    /// Makes nodes that know each other and rest.
    fn resting(count: u16) -> Self {
        let mut world = Self::new(count);
        let records: Vec<_> = (0..count).map(|number| record_of(number, 1)).collect();
        world.nodes.values_mut().for_each(|(table, _)| records.iter().for_each(|record| table.take(record)));
        world
    }

    fn on(&mut self, key: PublicKey, act: impl FnOnce(&mut Gossip, &Company, &Context<'_, Table>)) {
        let reached = self.nodes.keys().copied().filter(|other| *other != key).collect();
        let (table, gossip) = self.nodes.get_mut(&key).unwrap();
        let company = Company { reached, silent: Vec::new() };
        let context = Context { network_id: &NETWORK, own: key, records: &*table, now: self.now };
        act(gossip, &company, &context);
        for output in gossip.take_outputs() {
            match output {
                Output::Send { to, bytes } => {
                    assert!(bytes.len() <= MAX_GOSSIP_BYTES, "{} bytes", bytes.len());
                    self.sent += 1;
                    self.bytes += bytes.len();
                    if self.loses.is_none_or(|every| !self.sent.is_multiple_of(every)) {
                        self.flying.push((key, to, bytes));
                    }
                }
                Output::Record { record, from, .. } => {
                    table.take(&record);
                    gossip.push(&record, Some(from), self.now);
                }
                Output::Heard { key: peer, at } => self.heard.push((key, peer, at)),
                Output::Stem { .. } | Output::Done { .. } => panic!("nobody wants anything published"),
            }
        }
    }

    /// Lets time pass in steps of 50 ms.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + NEWS_DELAY;
            for (from, to, bytes) in std::mem::take(&mut self.flying) {
                self.on(to, |gossip, _, context| gossip.handle(from, &bytes, context).unwrap());
            }
            for key in self.nodes.keys().copied().collect::<Vec<_>>() {
                if self.nodes[&key].1.poll_timeout() <= self.now {
                    self.on(key, |gossip, company, context| gossip.handle_timeout(company, context));
                }
            }
        }
    }

    fn change(&mut self, number: u16, sequence: u64) {
        let record = record_of(number, sequence);
        let (table, gossip) = self.nodes.get_mut(&record.record().key).unwrap();
        table.take(&record);
        gossip.push(&record, None, self.now);
    }

    fn all_hold_the_same(&self) -> bool {
        let mut tables = self.nodes.values().map(|(table, _)| &table.held);
        let first = tables.next().unwrap();
        tables.all(|table| table == first)
    }
}

fn key(number: u16) -> PublicKey {
    record_of(number, 1).record().key
}

/// W-X14: at once on change, to a few.
#[test]
fn a_change_reaches_nearly_everyone_within_a_second_and_everyone_within_some_rounds() {
    let mut world = World::resting(40);
    world.change(7, 2);
    world.run(SECOND);
    let knows = |world: &World| {
        let newest = Some(Sequence(2));
        let sequence = |table: &Table| table.record(key(7)).map(|record| record.record().sequence);
        world.nodes.values().filter(|(table, _)| sequence(table) == newest).count()
    };
    assert!(knows(&world) >= 34, "{} of 40", knows(&world));
    world.run(ROUND * 4);
    assert!(world.all_hold_the_same());
}

/// W-X14, X-7: rounds alone bring two halves together that never told each other of a change.
#[test]
fn nodes_that_know_only_themselves_learn_of_all_by_rounds() {
    let mut world = World::new(30);
    world.run(ROUND * 6);
    assert!(world.all_hold_the_same());
    assert_eq!(world.nodes[&key(0)].0.held.len(), 30);
}

/// Each in two rounds at least, whatever it hears; fewer than one in each round, because it hears of others' rounds.
#[test]
fn nodes_that_hold_the_same_send_less_than_one_small_datagram_a_round() {
    let mut world = World::resting(40);
    world.run(ROUND * 20);
    assert!((400..=600).contains(&world.sent), "{} datagrams of 40 nodes in 20 rounds", world.sent);
    assert!(world.bytes <= world.sent * 24, "{} bytes in {} datagrams", world.bytes, world.sent);
}

/// Whoever is awake anyway need not be woken for a round.
#[test]
fn a_round_comes_sooner_where_something_else_has_woken_the_node() {
    let mut world = World::resting(2);
    let latest = world.nodes[&key(0)].1.poll_timeout();
    world.now = latest - EARLY;
    world.on(key(0), |gossip, company, context| {
        assert!(!gossip.wants_turn(latest - EARLY - Duration::from_millis(1)));
        assert!(gossip.wants_turn(context.now));
        gossip.handle_timeout(company, context);
        assert!(!gossip.wants_turn(context.now + ROUND - EARLY - SECOND));
        assert!(gossip.poll_timeout() <= context.now + ROUND + EARLY);
    });
    assert_eq!(world.flying.len(), 1);
}

/// A peer that says the same again and again does not keep a node from asking others.
#[test]
fn who_is_told_the_same_again_and_again_still_begins_every_other_round() {
    let mut world = World::resting(2);
    let same = encode(&Body::Sync(Message::Summary(Summary::of(&world.nodes[&key(1)].0))));
    let begin = world.now;
    for _ in 0..20 {
        world.now = world.now + ROUND / 4;
        world.on(key(0), |gossip, company, context| {
            // It may speak as often as that, if not be answered.
            let _ = gossip.handle(key(1), &same, context);
            if gossip.poll_timeout() <= context.now {
                gossip.handle_timeout(company, context);
            }
        });
    }
    assert_eq!(world.now.since(begin), ROUND * 5);
    assert_eq!(world.flying.len(), 2);
}

#[test]
fn a_third_of_all_datagrams_lost_only_costs_time() {
    let mut world = World::new(20);
    world.loses = Some(3);
    world.run(ROUND * 20);
    assert!(world.all_hold_the_same());
}

/// what is told of a node's silence is told as it is, and only of nodes that are known.
#[test]
fn a_node_that_is_not_heard_is_asked_after() {
    let mut world = World::resting(3);
    let [asker, other, silent] = [0, 1, 2].map(key);
    let company = Company { reached: vec![other], silent: vec![silent, key(9)] };
    world.now = world.now + ROUND * 2;
    world.on(asker, |gossip, _, context| gossip.handle_timeout(&company, context));
    world.run(SECOND);
    let at = world.heard.iter().map(|&(by, about, at)| (by, about, world.now.since(at).as_secs()));
    assert_eq!(
        at.collect::<Vec<_>>(),
        [(asker, silent, 9)],
        "the table's seven seconds, and two for the way"
    );
}

#[test]
fn a_record_that_is_offered_and_never_given_is_forgotten() {
    let mut world = World::resting(2);
    let offer = encode(&Body::Sync(Message::Offer(vec![Entry { key: key(9), sequence: Sequence(4) }])));
    world.on(key(0), |gossip, _, context| gossip.handle(key(1), &offer, context).unwrap());
    world.loses = Some(1);
    world.run(ANSWER_PATIENCE * (MAX_TRIES + 1));
    assert!(world.nodes[&key(0)].1.wanted.is_empty());
}

/// Nor does it keep this node from others that do give it, not by a sequence that nobody has.
#[test]
fn who_never_gives_what_it_offers_is_not_waited_for() {
    let mut world = World::resting(3);
    let offer = |sequence| {
        let entry = Entry { key: key(9), sequence: Sequence(sequence) };
        encode(&Body::Sync(Message::Offer(vec![entry])))
    };
    world.on(key(0), |gossip, _, context| gossip.handle(key(1), &offer(u64::MAX), context).unwrap());
    world.nodes.get_mut(&key(2)).unwrap().0.take(&record_of(9, 4));
    world.now = world.now + ANSWER_PATIENCE;
    world.on(key(0), |gossip, _, context| gossip.handle(key(2), &offer(4), context).unwrap());
    world.run(Duration::from_millis(100));
    assert!(world.nodes[&key(0)].0.held.contains_key(&key(9)));
}

#[test]
fn one_peer_cannot_fill_the_list_of_what_is_wanted() {
    let mut world = World::resting(3);
    for number in 0..100_u16 {
        let entries =
            (0..20).map(|other| Entry { key: key(1000 + number * 20 + other), sequence: Sequence(1) });
        let offer = encode(&Body::Sync(Message::Offer(entries.collect())));
        world.on(key(0), |gossip, _, context| gossip.handle(key(1), &offer, context).unwrap());
    }
    assert!(world.nodes[&key(0)].1.wanted.len() <= MAX_WANTED_OF_ONE);
    let offer = encode(&Body::Sync(Message::Offer(vec![Entry { key: key(9), sequence: Sequence(4) }])));
    world.on(key(0), |gossip, _, context| gossip.handle(key(2), &offer, context).unwrap());
    assert!(world.nodes[&key(0)].1.wanted.contains_key(&key(9)));
}

#[test]
fn a_peer_that_says_too_much_is_not_listened_to() {
    let mut world = World::resting(2);
    let summary = encode(&Body::Sync(Message::Summary(Summary::of(&world.nodes[&key(1)].0))));
    let mut refused = 0;
    world.on(key(0), |gossip, _, context| {
        refused = (0..5000).filter(|_| gossip.handle(key(1), &summary, context).is_err()).count();
    });
    assert!(refused > 3000, "{refused}");
}

#[test]
fn a_forged_record_is_refused_and_nothing_after_it_taken() {
    let mut world = World::resting(2);
    let mut bytes = record_of(9, 1).as_bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let told = Told { record: bytes.into(), silence_s: 0 };
    let gossip = encode(&Body::Sync(Message::Records(vec![told])));
    let mut outcome = Ok(());
    world.on(key(0), |machine, _, context| outcome = machine.handle(key(1), &gossip, context));
    assert_eq!(outcome, Err(Refused::Record(InvalidRecord::Signature)));
    assert_eq!(world.nodes[&key(0)].0.held.len(), 2);
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut world = World::resting(2);
        world.on(key(0), |gossip, _, context| {
            let _ = gossip.handle(key(1), &[&[VERSION], bytes.as_slice()].concat(), context);
        });
    }
}
