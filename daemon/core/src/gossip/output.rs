//! What comes of gossip: what is to be said and taken, and what is not.

use crate::key::PublicKey;
use crate::record::{InvalidRecord, SignedRecord};
use crate::sync::Entry;
use crate::time::Monotonic;

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The shell sends a datagram to a peer's mesh address.
    Send {
        /// The peer.
        to: PublicKey,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// A record whose signature holds and that is news, or the sender's own.
    Record {
        /// The record.
        record: SignedRecord,
        /// Who sent it.
        from: PublicKey,
        /// When anybody is known to have heard its node.
        heard_at: Monotonic,
    },
    /// Somebody has heard a peer.
    Heard {
        /// The peer.
        key: PublicKey,
        /// When.
        at: Monotonic,
    },
    /// A peer wants a record published, whose signature holds.
    Stem {
        /// The record.
        record: SignedRecord,
        /// Who sent it.
        from: PublicKey,
        /// How many nodes it was sent to.
        hops: u8,
    },
    /// A record that was sent to a peer to be published is published.
    Done {
        /// Which.
        entry: Entry,
        /// The peer.
        from: PublicKey,
    },
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The sender says more than any honest node.
    #[error("it says too much")]
    Flood,
    /// It is no gossip of this version.
    #[error("it is no gossip")]
    Malformed,
    /// A record in it is none.
    #[error("a record in it is refused: {0}")]
    Record(#[from] InvalidRecord),
}

impl Refused {
    /// Returns the reason under which it is counted.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flood => "gossip flood",
            Self::Malformed => "malformed gossip",
            Self::Record(_) => "bad record in gossip",
        }
    }
}
