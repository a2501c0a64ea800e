use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::key::SecretKey;
use crate::record::tests::{sample, signed};
use crate::wire::decode_all;

const FRAME: usize = 65_536;
const DATAGRAM: usize = 1_100;

/// A store of records that never says no, but to the nodes that it buried.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    pub(crate) held: BTreeMap<PublicKey, SignedRecord>,
    pub(crate) buried: BTreeSet<PublicKey>,
}

impl Table {
    pub(crate) fn take(&mut self, record: &SignedRecord) {
        if self.wants(Entry::of(record)) {
            self.held.insert(record.record().key, record.clone());
        }
    }
}

impl<'a> FromIterator<&'a SignedRecord> for Table {
    fn from_iter<I: IntoIterator<Item = &'a SignedRecord>>(records: I) -> Self {
        let mut table = Self::default();
        records.into_iter().for_each(|record| table.take(record));
        table
    }
}

impl Records for Table {
    fn record(&self, key: PublicKey) -> Option<&SignedRecord> {
        self.held.get(&key)
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.held.values().map(Entry::of)
    }

    fn wants(&self, entry: Entry) -> bool {
        let held = self.held.get(&entry.key).map(|record| record.record().sequence);
        held < Some(entry.sequence) && !self.buried.contains(&entry.key)
    }

    fn silence(&self, _: PublicKey) -> Duration {
        Duration::from_secs(7)
    }
}

pub(crate) fn record_of(number: u16, sequence: u64) -> SignedRecord {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    let secret = SecretKey::from_random(seed);
    signed(crate::record::Record { sequence: Sequence(sequence), ..sample(&secret) }, &secret)
}

/// Ninety nodes, three records each.
static POOL: LazyLock<Vec<[SignedRecord; 3]>> =
    LazyLock::new(|| (0..90).map(|number| [1, 2, 3].map(|sequence| record_of(number, sequence))).collect());

/// A thousand nodes.
static FLEET: LazyLock<Vec<SignedRecord>> =
    LazyLock::new(|| (0..1000).map(|number| record_of(number, 1)).collect());

#[derive(Debug, Default, PartialEq)]
struct Cost {
    /// Messages that had to wait for one before.
    legs: usize,
    bytes: usize,
}

/// Runs one synchronisation that `a` begins, until nobody has anything to say.
fn synchronise(a: &mut Table, b: &mut Table, limit: usize) -> Cost {
    let mut cost = Cost::default();
    let mut flying = vec![Message::Summary(Summary::of(a))];
    let (mut to, mut from) = (b, a);
    while !flying.is_empty() {
        cost.legs += 1;
        let mut next = Vec::new();
        for message in flying {
            let bytes = minicbor::to_vec(&message).unwrap();
            assert!(bytes.len() <= limit, "{} bytes", bytes.len());
            cost.bytes += bytes.len();
            next.extend(hear(to, &bytes, limit));
        }
        flying = next;
        std::mem::swap(&mut to, &mut from);
    }
    cost
}

fn hear(table: &mut Table, bytes: &[u8], limit: usize) -> Vec<Message> {
    let message = decode_all(bytes).unwrap();
    if let Message::Records(records) = &message {
        for told in records {
            table.take(&SignedRecord::verify(&told.record, &[5; 32]).unwrap());
        }
    }
    let Answer { mut messages, wanted } = answer(&message, table, limit);
    let per_ask = MAX_ASKED.min(limit / 40);
    let keys = |entries: &[Entry]| entries.iter().map(|entry| entry.key).collect();
    messages.extend(wanted.chunks(per_ask).map(|entries| Message::Ask(keys(entries))));
    messages
}

fn table() -> impl Strategy<Value = Table> {
    let held = prop::collection::vec((0..POOL.len(), 0_usize..3), 0..120);
    held.prop_map(|held| held.iter().map(|&(node, version)| &POOL[node][version]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// W-X19, W-X20: one run serves both ways, within three round trips.
    #[test]
    fn any_two_stores_converge_to_the_newest_of_both(
        mut a in table(),
        mut b in table(),
        limit in prop_oneof![Just(FRAME), Just(DATAGRAM)],
    ) {
        let newest: Table = a.held.values().chain(b.held.values()).collect();
        let cost = synchronise(&mut a, &mut b, limit);
        prop_assert!(cost.legs <= 6, "{cost:?}");
        prop_assert_eq!(&a.held, &newest.held);
        prop_assert_eq!(&b.held, &newest.held);
        prop_assert_eq!(synchronise(&mut b, &mut a, limit).legs, 1, "nothing is left to say");
    }

    #[test]
    fn no_bytes_are_too_strange_to_decode_and_to_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(message) = decode_all::<Message>(&bytes) {
            answer(&message, &FLEET[..90].iter().collect::<Table>(), FRAME);
        }
    }

    /// Whatever a member claims, the answer holds no more than what there is.
    #[test]
    fn a_claimed_holding_never_makes_a_long_answer(mask: u64, claimed in prop::collection::vec(any::<(u8, u64)>(), 0..50)) {
        let held: Table = FLEET[..90].iter().collect();
        let entry = |(number, sequence)| Entry { key: FLEET[usize::from(number)].record().key, sequence: Sequence(sequence) };
        let entries: Vec<_> = claimed.into_iter().map(entry).collect();
        let given = answer(&Message::Holdings { buckets: Mask(mask), entries: entries.clone() }, &held, FRAME);
        prop_assert!(given.messages.len() <= 1 && given.wanted.len() <= entries.len());
    }
}

/// The bytes are those of the differences, not those of the fleet: 1,000 records are 300 kB.
#[test]
fn one_difference_among_a_thousand_records_costs_little() {
    let whole: Table = FLEET.iter().collect();
    for limit in [FRAME, DATAGRAM] {
        let (mut a, mut b) = (whole.clone(), whole.clone());
        assert_eq!(synchronise(&mut a, &mut b, limit), Cost { legs: 1, bytes: 20 });
        a.take(&record_of(500, 2));
        let cost = synchronise(&mut a, &mut b, limit);
        assert_eq!(a, b);
        assert!(cost.legs <= 6 && cost.bytes < 2_500, "{cost:?}");
        b.take(&record_of(500, 3));
        let cost = synchronise(&mut a, &mut b, limit);
        assert_eq!(a, b);
        assert!(cost.legs <= 6 && cost.bytes < 2_500, "{cost:?}");
    }
}

#[test]
fn a_node_that_knows_nobody_learns_a_thousand_records_in_three_round_trips() {
    let mut whole: Table = FLEET.iter().collect();
    for newcomer_begins in [true, false] {
        let mut newcomer: Table = [&record_of(2000, 1)].into_iter().collect();
        let cost = match newcomer_begins {
            true => synchronise(&mut newcomer, &mut whole, FRAME),
            false => synchronise(&mut whole, &mut newcomer, FRAME),
        };
        let records: usize = whole.held.values().map(|record| record.as_bytes().len()).sum();
        assert_eq!(newcomer.held, whole.held);
        assert!(cost.legs <= 6 && cost.bytes < records + 1000 * (2 * ENTRY_BYTES), "{cost:?}");
        whole = FLEET.iter().collect();
    }
}

/// The dead stay dead, and repeating so costs an entry, not a record.
#[test]
fn what_a_node_would_refuse_is_not_sent_to_it() {
    let all: Vec<_> = FLEET[..40].iter().collect();
    let mut a: Table = all.iter().copied().collect();
    let mut b: Table = all[1..].iter().copied().collect();
    b.buried.insert(all[0].record().key);
    let cost = synchronise(&mut a, &mut b, FRAME);
    assert_eq!(b.held.len(), 39);
    assert!(cost.bytes < 1000, "{cost:?}");
}

#[test]
fn more_is_never_given_than_may_be_asked_for() {
    let held: Table = FLEET.iter().collect();
    let keys = held.held.keys().copied().collect();
    let given = answer(&Message::Ask(keys), &held, FRAME);
    let records = |message: &Message| match message {
        Message::Records(records) => records.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(given.messages.iter().map(records).sum::<usize>(), MAX_ASKED);
}
