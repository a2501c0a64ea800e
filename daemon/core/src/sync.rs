//! Anti-entropy: how two nodes find out, by digests, which records one has and the other lacks.
//!
//! ```text
//!   A                                          B
//!   | Summary: one hash over all that A holds  |
//!   |----------------------------------------->|  equal: done
//!   |      Buckets: a hash for each of 64      |
//!   |<-----------------------------------------|  (a small store lists what it holds at once)
//!   | Holdings: keys and sequences             |
//!   | of the buckets that differ               |
//!   |----------------------------------------->|
//!   |   Ask: what B lacks; Offer: what A lacks |
//!   |<-----------------------------------------|
//!   | Records, and an Ask of its own           |
//!   |----------------------------------------->|
//!   |                  Records                 |
//!   |<-----------------------------------------|
//! ```
//!
//! Three round trips at most, and the bytes follow the number of differences. A record travels only to who asked
//! for it, so what a receiver would refuse (an old sequence, a node that said goodbye to it) costs one entry.
//!
//! Nothing here trusts the other side: an entry is a hint, and a record counts once its signature was checked.
//! Messages hold no state; each is answered by itself, from what is held at that moment. So lost, repeated and
//! reordered messages are harmless, and the same messages serve a stream and datagrams.
//!
//! A record travels with its node's silence: for how long nobody is known to have heard the node itself. So whoever
//! learns of a node by hearsay forgets it when everyone else does, however long the hearsay took (X-16).

mod pace;

use std::array;
use std::time::Duration;

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::store::PeerStore;
use crate::time::Monotonic;
pub use pace::{LONGEST_WAIT, Pace};

/// Into how many buckets keys are sorted, by their first byte: 16 entries each at 1,000 nodes.
pub const BUCKETS: usize = 64;

/// The most keys in one [`Message::Ask`]: as many records, of 900 bytes at most, as fit a frame of 64 KiB.
pub const MAX_ASKED: usize = 64;

/// For how long a message may be under way, most of that in a busy node.
const LONGEST_WAY: Duration = Duration::from_secs(2);

/// An encoded [`Entry`] at its longest: array head, 34 bytes of key, nine of sequence.
const ENTRY_BYTES: usize = 44;

/// What a message needs besides its entries or records: heads of arrays and the mask.
const OVERHEAD_BYTES: usize = 32;

/// What a [`Told`] adds to its record: heads of the array and the bytes, and the silence.
const TOLD_OVERHEAD_BYTES: usize = 9;

const BUCKET_HASH_BYTES: usize = 8;
const ALL_HASHES_BYTES: usize = BUCKETS * BUCKET_HASH_BYTES;

/// The hash of one bucket.
pub type BucketHash = [u8; BUCKET_HASH_BYTES];

/// Up to this many entries are no longer than the buckets' hashes would be.
const SMALL: usize = ALL_HASHES_BYTES / ENTRY_BYTES;

/// Which record of which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Entry {
    /// The node.
    #[n(0)]
    pub key: PublicKey,
    /// The sequence of its record.
    #[n(1)]
    pub sequence: Sequence,
}

impl Entry {
    /// Returns the entry of a record.
    pub const fn of(record: &SignedRecord) -> Self {
        Self { key: record.record().key, sequence: record.record().sequence }
    }
}

/// What a node holds, as synchronisation sees it.
pub trait Records {
    /// Returns the record of one node.
    fn record(&self, key: PublicKey) -> Option<&SignedRecord>;

    /// Goes through all records, in any order, each node once.
    fn entries(&self) -> impl Iterator<Item = Entry>;

    /// Whether such a record would be news, and be taken.
    fn wants(&self, entry: Entry) -> bool;

    /// Returns for how long a node is not known to have been heard by anyone.
    fn silence(&self, key: PublicKey) -> Duration;

    /// Returns the hash of all entries of one bucket, in rising order of keys.
    fn bucket_hash(&self, bucket: usize) -> BucketHash {
        let mut entries: Vec<Entry> = self.entries().filter(|entry| bucket_of(entry.key) == bucket).collect();
        entries.sort_unstable();
        hash_entries(entries)
    }
}

/// A node's own record and those of its peers.
#[derive(Clone, Copy)]
pub struct RecordView<'a> {
    /// Its own.
    pub own: &'a SignedRecord,
    /// Those of its peers.
    pub peers: &'a PeerStore,
    /// The time.
    pub now: Monotonic,
}

impl Records for RecordView<'_> {
    fn record(&self, key: PublicKey) -> Option<&SignedRecord> {
        match key == self.own.record().key {
            true => Some(self.own),
            false => self.peers.get(key).filter(|_| self.peers.may_pass_on(key)).map(|peer| peer.record()),
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let peers = self.peers.iter().filter(|(key, _)| self.peers.may_pass_on(*key));
        let peers = peers.map(|(_, peer)| Entry::of(peer.record()));
        peers.chain([Entry::of(self.own)])
    }

    fn wants(&self, entry: Entry) -> bool {
        let held = self.peers.get(entry.key).map(|peer| peer.record().record().sequence);
        // Nobody can tell a node anything new about itself.
        entry.key != self.own.record().key
            && self.peers.has_room_for(entry.key)
            && held < Some(entry.sequence)
            && self.peers.refusal(entry.key, entry.sequence).is_none()
    }

    fn silence(&self, key: PublicKey) -> Duration {
        self.peers.get(key).map_or(Duration::ZERO, |peer| peer.silence(self.now))
    }

    fn bucket_hash(&self, bucket: usize) -> BucketHash {
        let own = Entry::of(self.own);
        if bucket_of(own.key) != bucket {
            return self.peers.bucket_hash(bucket);
        }
        let (before, after): (Vec<_>, Vec<_>) =
            self.peers.bucket(bucket).partition(|entry| entry.key < own.key);
        hash_entries(before.into_iter().chain([own]).chain(after))
    }
}

/// One hash over everything that a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Summary(#[n(0)] ByteArray<16>);

impl Summary {
    /// Computes it.
    pub fn of(records: &impl Records) -> Self {
        let full = Sha256::digest(bucket_hashes(records));
        let hash: [u8; 16] = full[..16].try_into().expect("SHA-256 gives 32 bytes");
        Self(hash.into())
    }
}

/// A set of buckets, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Mask(#[n(0)] u64);

impl Mask {
    const ALL: Self = Self(u64::MAX);

    const fn has(self, bucket: usize) -> bool {
        self.0 >> bucket & 1 == 1
    }

    const fn with(self, bucket: usize) -> Self {
        Self(self.0 | 1 << bucket)
    }
}

/// What nodes say to each other. Its encoding is that of [`minicbor`]'s derived enums.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// Whether we hold the same.
    #[n(0)]
    Summary(#[n(0)] Summary),
    /// The hash of each bucket, in order.
    #[n(1)]
    Buckets(#[n(0)] Box<ByteArray<ALL_HASHES_BYTES>>),
    /// All that the sender holds of some buckets.
    #[n(2)]
    Holdings {
        /// The buckets.
        #[n(0)]
        buckets: Mask,
        /// What it holds of them.
        #[n(1)]
        entries: Vec<Entry>,
    },
    /// Records that the sender holds and the receiver may want.
    #[n(3)]
    Offer(#[n(0)] Vec<Entry>),
    /// The nodes whose records the sender wants, at most [`MAX_ASKED`].
    #[n(4)]
    Ask(#[n(0)] Vec<PublicKey>),
    /// Signed records, yet to be verified.
    #[n(5)]
    Records(#[n(0)] Vec<Told>),
}

/// A record on its way.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Told {
    /// The signed record.
    #[n(0)]
    pub record: ByteVec,
    /// For how many seconds nobody is known to have heard its node.
    #[n(1)]
    pub silence_s: u32,
}

impl Told {
    fn new(record: &SignedRecord, silence: Duration) -> Self {
        Self { record: record.as_bytes().to_vec().into(), silence_s: whole_seconds(silence) }
    }
}

/// Returns the next whole second of a silence, to tell it.
pub fn whole_seconds(silence: Duration) -> u32 {
    u32::try_from(silence.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// Returns when a node was heard, of which it was just told that it has been silent for so many seconds. It is never later
/// than that, or nodes would make each other believe that it is alive by telling each other so.
pub fn heard_at(silence_s: u32, now: Monotonic) -> Monotonic {
    now - (Duration::from_secs(silence_s.into()) + LONGEST_WAY)
}

impl Message {
    /// Makes a message that carries one record, of a node that was heard just now.
    pub fn record(record: &SignedRecord) -> Self {
        Self::Records(vec![Told::new(record, Duration::ZERO)])
    }
}

/// What follows from a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What to say back.
    pub messages: Vec<Message>,
    /// What to ask for, [`MAX_ASKED`] at a time, as fast as the asker likes.
    pub wanted: Vec<Entry>,
}

/// Answers a message with messages of at most `limit` bytes each, which must hold the hashes of all buckets.
///
/// Of a bucket that alone is longer than `limit` only the beginning is listed: in a frame of 64 KiB that happens
/// past 90,000 nodes, in a datagram past 1,000. [`Message::Records`] wants no answer: it is for the caller to verify.
pub fn answer(message: &Message, records: &impl Records, limit: usize) -> Answer {
    match message {
        Message::Summary(theirs) => answer_summary(*theirs, records, limit).into(),
        Message::Buckets(theirs) => Held::of(records).list(differing(theirs, records), limit).into(),
        Message::Holdings { buckets, entries } => answer_holdings(*buckets, entries, records, limit),
        Message::Offer(entries) => Answer { messages: Vec::new(), wanted: wanted(entries, records) },
        Message::Ask(keys) => give(keys, records, limit).into(),
        Message::Records(_) => Answer::default(),
    }
}

impl From<Vec<Message>> for Answer {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, wanted: Vec::new() }
    }
}

fn answer_summary(theirs: Summary, records: &impl Records, limit: usize) -> Vec<Message> {
    if Summary::of(records) == theirs {
        return Vec::new();
    }
    if records.entries().take(SMALL + 1).count() <= SMALL {
        return Held::of(records).list(Mask::ALL, limit);
    }
    vec![Message::Buckets(Box::new(bucket_hashes(records).into()))]
}

fn answer_holdings(buckets: Mask, theirs: &[Entry], records: &impl Records, limit: usize) -> Answer {
    let mut sorted: Vec<Entry> = theirs.to_vec();
    sorted.sort_unstable();
    let known = |key| {
        let found = sorted.binary_search_by_key(&key, |entry: &Entry| entry.key);
        found.ok().map(|position| sorted[position].sequence)
    };
    let newer: Vec<Entry> = records
        .entries()
        .filter(|entry| buckets.has(bucket_of(entry.key)) && known(entry.key) < Some(entry.sequence))
        .collect();
    let messages = newer.chunks(entries_within(limit)).map(|part| Message::Offer(part.to_vec())).collect();
    Answer { messages, wanted: wanted(theirs, records) }
}

fn wanted(entries: &[Entry], records: &impl Records) -> Vec<Entry> {
    entries.iter().copied().filter(|&entry| records.wants(entry)).collect()
}

/// Gives the records of `keys`, as many to a message as fit.
fn give(keys: &[PublicKey], records: &impl Records, limit: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut part: Vec<Told> = Vec::new();
    let mut room = limit.saturating_sub(OVERHEAD_BYTES);
    for &key in keys.iter().take(MAX_ASKED) {
        let Some(record) = records.record(key) else { continue };
        let bytes = record.as_bytes().len() + TOLD_OVERHEAD_BYTES;
        if bytes > room && !part.is_empty() {
            messages.push(Message::Records(std::mem::take(&mut part)));
            room = limit.saturating_sub(OVERHEAD_BYTES);
        }
        room = room.saturating_sub(bytes);
        part.push(Told::new(record, records.silence(key)));
    }
    if !part.is_empty() {
        messages.push(Message::Records(part));
    }
    messages
}

const fn entries_within(limit: usize) -> usize {
    let entries = limit.saturating_sub(OVERHEAD_BYTES) / ENTRY_BYTES;
    if entries == 0 { 1 } else { entries }
}

/// Returns the bucket of a key.
pub const fn bucket_of(key: PublicKey) -> usize {
    key.as_bytes()[0] as usize % BUCKETS
}

/// Hashes the entries of one bucket, which come in rising order of keys.
pub fn hash_entries(entries: impl IntoIterator<Item = Entry>) -> BucketHash {
    let mut hasher = Sha256::new();
    for entry in entries {
        hasher.update(entry.key.as_bytes());
        hasher.update(entry.sequence.0.to_be_bytes());
    }
    hasher.finalize()[..BUCKET_HASH_BYTES].try_into().expect("SHA-256 gives 32 bytes")
}

fn bucket_hashes(records: &impl Records) -> [u8; ALL_HASHES_BYTES] {
    let mut hashes = [0; ALL_HASHES_BYTES];
    for (bucket, slot) in hashes.chunks_exact_mut(BUCKET_HASH_BYTES).enumerate() {
        slot.copy_from_slice(&records.bucket_hash(bucket));
    }
    hashes
}

fn differing(theirs: &[u8; ALL_HASHES_BYTES], records: &impl Records) -> Mask {
    let ours = bucket_hashes(records);
    let pairs = ours.chunks_exact(BUCKET_HASH_BYTES).zip(theirs.chunks_exact(BUCKET_HASH_BYTES));
    let differing = pairs.enumerate().filter(|(_, (ours, theirs))| ours != theirs);
    differing.fold(Mask(0), |mask, (bucket, _)| mask.with(bucket))
}

/// What a node holds, sorted into buckets.
struct Held([Vec<Entry>; BUCKETS]);

impl Held {
    fn of(records: &impl Records) -> Self {
        let mut buckets = array::from_fn(|_| Vec::new());
        for entry in records.entries() {
            buckets[bucket_of(entry.key)].push(entry);
        }
        buckets.iter_mut().for_each(|entries: &mut Vec<Entry>| entries.sort_unstable());
        Self(buckets)
    }

    /// Lists what is held of `wanted`, whole buckets to a message.
    fn list(&self, wanted: Mask, limit: usize) -> Vec<Message> {
        let most = entries_within(limit);
        let mut messages = Vec::new();
        let mut part: Option<(Mask, Vec<Entry>)> = None;
        for (bucket, held) in self.0.iter().enumerate().filter(|&(bucket, _)| wanted.has(bucket)) {
            if let Some((buckets, entries)) = part.take_if(|(_, entries)| entries.len() + held.len() > most) {
                messages.push(Message::Holdings { buckets, entries });
            }
            let (buckets, entries) = part.get_or_insert((Mask(0), Vec::new()));
            *buckets = buckets.with(bucket);
            entries.extend(held.iter().take(most));
        }
        messages.extend(part.map(|(buckets, entries)| Message::Holdings { buckets, entries }));
        messages
    }
}

#[cfg(test)]
pub(crate) mod tests;
