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

use std::array;

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use sha2::{Digest as _, Sha256};

use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::store::PeerStore;

/// Into how many buckets keys are sorted, by their first byte: 16 entries each at 1,000 nodes.
pub const BUCKETS: usize = 64;

/// The most keys in one [`Message::Ask`]: as many records, of 900 bytes at most, as fit a frame of 64 KiB.
pub const MAX_ASKED: usize = 64;

/// An encoded [`Entry`] at its longest: array head, 34 bytes of key, nine of sequence.
const ENTRY_BYTES: usize = 44;

/// What a message needs besides its entries or records: heads of arrays and the mask.
const OVERHEAD_BYTES: usize = 32;

const BUCKET_HASH_BYTES: usize = 8;
const ALL_HASHES_BYTES: usize = BUCKETS * BUCKET_HASH_BYTES;

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

    const fn bucket(&self) -> usize {
        bucket(self.key)
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
}

/// A node's own record and those of its peers.
#[derive(Clone, Copy)]
pub struct RecordView<'a> {
    /// Its own.
    pub own: &'a SignedRecord,
    /// Those of its peers.
    pub peers: &'a PeerStore,
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
}

/// One hash over everything that a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Summary(#[n(0)] ByteArray<16>);

impl Summary {
    /// Computes it.
    pub fn of(records: &impl Records) -> Self {
        Held::of(records).summary()
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
    Records(#[n(0)] Vec<ByteVec>),
}

impl Message {
    /// Makes a message that carries one record.
    pub fn record(record: &SignedRecord) -> Self {
        Self::Records(vec![record.as_bytes().to_vec().into()])
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
        Message::Buckets(theirs) => {
            let held = Held::of(records);
            held.list(held.differing(theirs), limit).into()
        }
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
    let held = Held::of(records);
    if held.summary() == theirs {
        return Vec::new();
    }
    if held.len() <= SMALL {
        return held.list(Mask::ALL, limit);
    }
    vec![Message::Buckets(Box::new(held.hashes().into()))]
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
        .filter(|entry| buckets.has(entry.bucket()) && known(entry.key) < Some(entry.sequence))
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
    let mut part: Vec<ByteVec> = Vec::new();
    let mut room = limit.saturating_sub(OVERHEAD_BYTES);
    for record in keys.iter().take(MAX_ASKED).filter_map(|&key| records.record(key)) {
        let bytes = record.as_bytes().len() + 3;
        if bytes > room && !part.is_empty() {
            messages.push(Message::Records(std::mem::take(&mut part)));
            room = limit.saturating_sub(OVERHEAD_BYTES);
        }
        room = room.saturating_sub(bytes);
        part.push(record.as_bytes().to_vec().into());
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

const fn bucket(key: PublicKey) -> usize {
    key.as_bytes()[0] as usize % BUCKETS
}

/// What a node holds, sorted into buckets.
struct Held([Vec<Entry>; BUCKETS]);

impl Held {
    fn of(records: &impl Records) -> Self {
        let mut buckets = array::from_fn(|_| Vec::new());
        for entry in records.entries() {
            buckets[entry.bucket()].push(entry);
        }
        buckets.iter_mut().for_each(|entries: &mut Vec<Entry>| entries.sort_unstable());
        Self(buckets)
    }

    fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    fn hashes(&self) -> [u8; ALL_HASHES_BYTES] {
        let mut hashes = [0; ALL_HASHES_BYTES];
        for (slot, entries) in hashes.chunks_exact_mut(BUCKET_HASH_BYTES).zip(&self.0) {
            let mut hasher = Sha256::new();
            for entry in entries {
                hasher.update(entry.key.as_bytes());
                hasher.update(entry.sequence.0.to_be_bytes());
            }
            slot.copy_from_slice(&hasher.finalize()[..BUCKET_HASH_BYTES]);
        }
        hashes
    }

    fn summary(&self) -> Summary {
        let full = Sha256::digest(self.hashes());
        let hash: [u8; 16] = full[..16].try_into().expect("SHA-256 gives 32 bytes");
        Summary(hash.into())
    }

    fn differing(&self, theirs: &[u8; ALL_HASHES_BYTES]) -> Mask {
        let ours = self.hashes();
        let pairs = ours.chunks_exact(BUCKET_HASH_BYTES).zip(theirs.chunks_exact(BUCKET_HASH_BYTES));
        let differing = pairs.enumerate().filter(|(_, (ours, theirs))| ours != theirs);
        differing.fold(Mask(0), |mask, (bucket, _)| mask.with(bucket))
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
