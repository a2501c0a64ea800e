use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::*;
use crate::derive::MeshKeys;
use crate::key::SecretKey;
use crate::record::tests::{sample, signed};
use crate::record::{Record, SignedRecord};
use crate::secret::MeshSecret;
use crate::testing::at;

fn node(number: u32) -> SecretKey {
    let mut bytes = [1; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_random(bytes)
}

fn record_of(number: u32, sequence: u64) -> SignedRecord {
    let secret = node(number);
    signed(Record { sequence: Sequence(sequence), ..sample(&secret) }, &secret)
}

fn goodbye_of(number: u32, sequence: u64) -> SignedRecord {
    let secret = node(number);
    signed(Record { sequence: Sequence(sequence), lifetime_s: 0, ..sample(&secret) }, &secret)
}

fn heard(record: SignedRecord) -> Claim {
    Claim { record, source: Source::Lan, endpoint: None, fresh: true }
}

fn keys() -> PairKeys {
    let mesh = MeshKeys::derive(&MeshSecret::from_random([1; 32]).mesh_key());
    mesh.pair(&node(1), node(1).public(), node(2).public())
}

fn claim(store: &mut PeerStore, claim: Claim, seconds: u64) -> Outcome {
    store.claim(claim, keys, at(seconds))
}

/// W-D13, W-D14: by the signed sequence, never by arrival.
#[test]
fn the_newest_record_wins_whatever_the_order_of_arrival() {
    let mut store = PeerStore::new(10, MIN_AGE);
    let key = node(1).public();
    assert_eq!(claim(&mut store, heard(record_of(1, 5)), 0), Outcome::New);
    assert_eq!(claim(&mut store, heard(record_of(1, 4)), 1), Outcome::Refused(Refused::Stale));
    assert_eq!(claim(&mut store, heard(record_of(1, 5)), 2), Outcome::Refreshed);
    assert_eq!(claim(&mut store, heard(record_of(1, 6)), 3), Outcome::Updated);
    assert_eq!(store.get(key).unwrap().record().record().sequence, Sequence(6));
}

/// W-D19.
#[test]
fn a_full_store_refuses_strangers_and_still_updates_peers() {
    let mut store = PeerStore::new(1000, MIN_AGE);
    for number in 0..1000 {
        assert_eq!(claim(&mut store, heard(record_of(number, 1)), 0), Outcome::New);
    }
    for number in 1000..1100 {
        assert_eq!(claim(&mut store, heard(record_of(number, 1)), 0), Outcome::Refused(Refused::Full));
    }
    assert_eq!(claim(&mut store, heard(record_of(999, 2)), 0), Outcome::Updated);
    assert_eq!(store.len(), 1000);
}

/// X-17, W-D18: a cache or a replayable announce keeps nobody alive, a fresh hello and the kernel do.
#[test]
fn only_direct_evidence_keeps_a_peer_alive() {
    let mut store = PeerStore::new(10, MIN_AGE);
    let key = node(1).public();
    claim(&mut store, heard(record_of(1, 1)), 0);
    let cached = Claim { source: Source::Cache, ..heard(record_of(1, 1)) };
    claim(&mut store, cached, 500);
    claim(&mut store, Claim { fresh: false, ..heard(record_of(1, 2)) }, 550);
    assert_eq!(store.next_removal(), Some(at(600)));
    store.touch(key, at(590), at(590));
    assert!(store.remove_stale(at(1189)).is_empty());
    assert_eq!(store.remove_stale(at(1190)), [key]);
    assert!(store.is_empty());
}

#[test]
fn who_said_goodbye_comes_back_only_with_a_newer_record() {
    let mut store = PeerStore::new(10, MIN_AGE);
    claim(&mut store, heard(record_of(1, 5)), 0);
    assert_eq!(claim(&mut store, heard(goodbye_of(1, 6)), 1), Outcome::Departed);
    assert_eq!(claim(&mut store, heard(record_of(1, 5)), 2), Outcome::Refused(Refused::Departed));
    assert_eq!(claim(&mut store, heard(goodbye_of(1, 6)), 2), Outcome::Refused(Refused::Departed));
    assert_eq!(claim(&mut store, heard(record_of(1, 7)), 3), Outcome::New);
}

#[test]
fn the_memory_of_the_departed_is_bounded() {
    let mut store = PeerStore::new(10, MIN_AGE);
    let farewell = goodbye_of(1, 1);
    for number in 0..=MAX_TOMBSTONES {
        let key = PublicKey::from_bytes(rand_key(number));
        store.bury(key, farewell.record().sequence, at(number as u64));
    }
    assert_eq!(store.departed.len(), MAX_TOMBSTONES);
    assert!(!store.departed.contains_key(&PublicKey::from_bytes(rand_key(0))), "the oldest made room");
}

fn rand_key(number: usize) -> [u8; 32] {
    use rand_core::Rng as _;
    let mut key = [0; 32];
    ChaCha8Rng::seed_from_u64(number as u64).fill_bytes(&mut key);
    key
}

/// W-D15, W-D16, W-D20, X-18.
#[test]
fn the_best_address_is_by_rank_then_ipv6_and_no_rank_outlives_its_reason() {
    let mut store = PeerStore::new(10, MIN_AGE);
    let key = node(1).public();
    let with = |source, endpoint: &str| Claim {
        source,
        endpoint: Some(endpoint.parse().unwrap()),
        ..heard(record_of(1, 1))
    };
    let best =
        |store: &PeerStore, seconds| store.get(key).unwrap().best_candidate(at(seconds)).unwrap().to_string();
    claim(&mut store, with(Source::Cache, "198.51.100.1:1"), 0);
    assert_eq!(best(&store, 0), "198.51.100.1:1");
    claim(&mut store, with(Source::Lan, "192.0.2.1:1"), 0);
    assert_eq!(best(&store, 0), "192.0.2.1:1");
    claim(&mut store, with(Source::Lan, "[2001:db8::1]:1"), 0);
    assert_eq!(best(&store, 0), "[2001:db8::1]:1");
    claim(&mut store, with(Source::Cache, "198.51.100.1:1"), 400);
    assert_eq!(best(&store, 299), "[2001:db8::1]:1");
    claim(&mut store, with(Source::Cache, "[2001:db8::2]:1"), 400);
    assert_eq!(best(&store, 400), "[2001:db8::2]:1");
    let sources: Vec<_> = store.get(key).unwrap().sources.keys().copied().collect();
    assert_eq!(sources, [Source::Cache, Source::Lan]);
}

#[test]
fn the_addresses_of_one_peer_are_bounded() {
    let mut store = PeerStore::new(10, MIN_AGE);
    for port in 1..200 {
        let endpoint = Some(SocketAddr::from(([192, 0, 2, 1], port)));
        claim(&mut store, Claim { endpoint, ..heard(record_of(1, 1)) }, u64::from(port));
    }
    let candidates = &store.get(node(1).public()).unwrap().candidates;
    assert_eq!(candidates.len(), MAX_CANDIDATES);
    assert!(candidates.contains_key(&SocketAddr::from(([192, 0, 2, 1], 199))));
}

///
#[test]
fn nobodys_word_makes_a_peer_younger_than_somebody_heard_it() {
    let mut store = PeerStore::new(10, MIN_AGE);
    let key = node(1).public();
    let silence = |store: &PeerStore, seconds| store.get(key).unwrap().silence(at(seconds)).as_secs();
    let cached = Claim { source: Source::Cache, ..heard(record_of(1, 1)) };
    store.claim_heard(Claim { fresh: false, ..cached }, at(700), keys, at(1000));
    store.note_silence(key, Duration::from_secs(590), at(1000));
    assert_eq!(silence(&store, 1000), 590);
    store.note_heard(key, at(405), at(1000));
    assert_eq!(silence(&store, 1000), 590, "that was before");
    store.note_heard(key, at(420), at(1000));
    assert_eq!(
        silence(&store, 1000),
        580,
        "not as if the time that was given to look for it were heard time"
    );
    store.touch(key, at(800), at(1000));
    assert_eq!(silence(&store, 1001), 201);
    store.note_heard(key, at(500), at(1001));
    assert_eq!(silence(&store, 1001), 201);
}

///
#[test]
fn what_fell_silent_comes_back_by_itself_or_with_a_newer_record_only() {
    let told = |sequence| Claim {
        source: Source::ExchangeTransitive,
        fresh: false,
        ..heard(record_of(1, sequence))
    };
    let mut store = PeerStore::new(10, MIN_AGE);
    let forget = |store: &mut PeerStore, seconds| assert_eq!(store.remove_stale(at(seconds)).len(), 1);
    claim(&mut store, heard(record_of(1, 1)), 0);
    forget(&mut store, 600);
    assert_eq!(claim(&mut store, told(1), 601), Outcome::Refused(Refused::Departed));
    assert_eq!(claim(&mut store, told(2), 602), Outcome::New);
    forget(&mut store, 1202);
    assert_eq!(claim(&mut store, told(2), 1203), Outcome::New, "it was never heard itself this time");
    claim(&mut store, heard(record_of(1, 2)), 1203);
    forget(&mut store, 1803);
    assert_eq!(claim(&mut store, heard(record_of(1, 2)), 1804), Outcome::New);
    forget(&mut store, 2404);
    assert_eq!(claim(&mut store, told(2), 2404 + 660), Outcome::New, "by then nobody believes in the old");
}

fn told(record: SignedRecord) -> Claim {
    Claim { record, source: Source::ExchangeTransitive, endpoint: None, fresh: false }
}

/// W-D19, M-5.
#[test]
fn who_proves_to_be_there_takes_the_place_of_hearsay() {
    let mut store = PeerStore::new(3, MIN_AGE);
    assert_eq!(claim(&mut store, heard(record_of(1, 1)), 0), Outcome::New);
    (2..=3).for_each(|number| assert_eq!(claim(&mut store, told(record_of(number, 1)), 0), Outcome::New));
    assert_eq!(claim(&mut store, told(record_of(4, 1)), 1), Outcome::Refused(Refused::Full));
    assert_eq!(store.refusal(node(4).public(), Sequence(1)), None, "it may yet prove to be there");
    assert!(!store.has_room_for(node(4).public()));
    store.touch(node(2).public(), at(2), at(2));
    assert_eq!(claim(&mut store, heard(record_of(4, 1)), 3), Outcome::New);
    assert_eq!(store.take_evicted(), [node(3).public()]);
    assert_eq!(claim(&mut store, heard(record_of(5, 1)), 4), Outcome::Refused(Refused::Full));
    assert_eq!(store.refusal(node(5).public(), Sequence(1)), Some(Refused::Full));
    store.refuse(node(2).public());
    assert_eq!(claim(&mut store, heard(record_of(2, 2)), 5), Outcome::Refused(Refused::Unwanted));
    store.readmit(node(2).public());
    assert_eq!(claim(&mut store, heard(record_of(2, 2)), 6), Outcome::Updated);
}

/// P-11, P-12, X-26: a fleet's start passes at once, a flood of inventions waits, and proof ends the wait.
#[test]
fn a_flood_of_hearsay_is_passed_on_late() {
    let mut store = PeerStore::new(2000, MIN_AGE);
    (0..600).for_each(|number| assert_eq!(claim(&mut store, told(record_of(number, 1)), 100), Outcome::New));
    let passed = |store: &PeerStore| store.iter().filter(|(key, _)| store.may_pass_on(*key)).count();
    assert_eq!(passed(&store), 512);
    let withheld: Vec<_> = store.iter().map(|(key, _)| key).filter(|key| !store.may_pass_on(*key)).collect();
    store.touch(withheld[0], at(101), at(101));
    assert_eq!(passed(&store), 513);
    assert_eq!(store.next_removal(), Some(at(160)));
    store.pass_on_withheld(at(159));
    assert_eq!(passed(&store), 513);
    store.pass_on_withheld(at(160));
    assert_eq!(passed(&store), 600);
    assert_eq!(claim(&mut store, heard(record_of(700, 1)), 161), Outcome::New);
    assert!(store.may_pass_on(node(700).public()), "what tells of itself never waits");
}

/// P-11: the operator may choose how long a flood waits.
#[test]
fn hearsay_waits_as_long_as_the_operator_wants() {
    let mut store = PeerStore::new(2000, Duration::from_secs(5));
    (0..600).for_each(|number| assert_eq!(claim(&mut store, told(record_of(number, 1)), 100), Outcome::New));
    let passed = |store: &PeerStore| store.iter().filter(|(key, _)| store.may_pass_on(*key)).count();
    store.pass_on_withheld(at(104));
    assert_eq!(passed(&store), 512);
    store.pass_on_withheld(at(105));
    assert_eq!(passed(&store), 600);
}

/// W-D19: a store that is full of inventions has room for others a minute later, and they do not come back.
#[test]
fn hearsay_that_had_its_time_makes_room_for_other_hearsay() {
    let mut store = PeerStore::new(2, MIN_AGE);
    (1..=2).for_each(|number| assert_eq!(claim(&mut store, told(record_of(number, 1)), 0), Outcome::New));
    store.touch(node(1).public(), at(1), at(1));
    store.pass_on_withheld(at(59));
    assert!(!store.has_room_for(node(3).public()));
    store.pass_on_withheld(at(60));
    assert!(store.has_room_for(node(3).public()));
    assert_eq!(claim(&mut store, told(record_of(3, 1)), 60), Outcome::New);
    assert_eq!(store.take_evicted(), [node(2).public()]);
    assert!(!store.has_room_for(node(2).public()));
    store.pass_on_withheld(at(200));
    assert_eq!(claim(&mut store, told(record_of(2, 1)), 200), Outcome::Refused(Refused::Departed));
    assert_eq!(claim(&mut store, heard(record_of(2, 1)), 201), Outcome::New);
}
