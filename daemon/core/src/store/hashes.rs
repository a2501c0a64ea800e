//! The hashes of synchronisation's buckets, kept until something in the bucket changes.

use std::array;
use std::sync::OnceLock;

use super::PeerStore;
use crate::key::PublicKey;
use crate::sync::{self, BUCKETS, BucketHash, Entry, bucket_of};

/// One hash for each bucket, where it is known.
pub(super) struct BucketHashes([OnceLock<BucketHash>; BUCKETS]);

impl BucketHashes {
    pub(super) const fn new() -> Self {
        Self([const { OnceLock::new() }; BUCKETS])
    }

    /// Forgets the hash that this node's record is part of.
    pub(super) fn forget(&mut self, key: PublicKey) {
        self.0[bucket_of(key)] = OnceLock::new();
    }

    pub(super) fn of(&self, bucket: usize, compute: impl FnOnce() -> BucketHash) -> BucketHash {
        *self.0[bucket].get_or_init(compute)
    }
}

impl PeerStore {
    /// Goes through the records of one of synchronisation's buckets in rising order of keys, without those withheld.
    pub fn bucket(&self, bucket: usize) -> impl Iterator<Item = Entry> {
        first_keys(bucket)
            .flat_map(|(first, byte)| {
                self.peers.range(first..).take_while(move |(key, _)| key.as_bytes()[0] == byte)
            })
            .filter(|(key, _)| self.may_pass_on(**key))
            .map(|(_, peer)| Entry::of(&peer.record))
    }

    /// Returns the hash of one of synchronisation's buckets, computed anew only after a change in it.
    pub fn bucket_hash(&self, bucket: usize) -> BucketHash {
        self.hashes.of(bucket, || sync::hash_entries(self.bucket(bucket)))
    }
}

/// Returns the lowest key of each range of keys that a bucket is made of, with the first byte that they share.
fn first_keys(bucket: usize) -> impl Iterator<Item = (PublicKey, u8)> {
    (0..=u8::MAX).filter(move |&byte| usize::from(byte) % BUCKETS == bucket).map(|byte| {
        let bytes = array::from_fn(|place| if place == 0 { byte } else { 0 });
        (PublicKey::from_bytes(bytes), byte)
    })
}
