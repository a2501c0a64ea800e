//! What is asked of the DHT, and what comes back.

use std::fmt;
use std::net::SocketAddrV4;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::derive::MeshKeys;
use crate::time::WallClock;

const SECONDS_PER_HOUR: u64 = 3600;

/// An hour since the Unix epoch. All names in the DHT are good for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hour(pub(super) u64);

impl Hour {
    /// Returns the hours in use: that of `wall`, then the one before it.
    pub const fn current(wall: WallClock) -> [Self; 2] {
        let hour = wall.as_secs() / SECONDS_PER_HOUR;
        [Self(hour), Self(hour.saturating_sub(1))]
    }

    /// Returns the swarm of the hour.
    pub fn swarm(self, keys: &MeshKeys) -> Swarm {
        Swarm(keys.dht_name(&[b"swarm", &self.0.to_be_bytes()]))
    }
}

/// The name of a swarm, BEP 5's info-hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Swarm(pub [u8; 20]);

/// Names a mutable item of BEP 44, and is what it takes to write it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Zeroize, ZeroizeOnDrop)]
pub struct ItemKey {
    /// The seed of the Ed25519 key pair.
    pub seed: [u8; 32],
    /// The salt.
    pub salt: [u8; 8],
}

impl fmt::Debug for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ItemKey(..)")
    }
}

/// Tells requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Carries out a request; [`DhtEvent::Done`] tells of its end.
    Ask {
        /// Which request.
        id: RequestId,
        /// What it asks for.
        request: Request,
    },
    /// Tells which nodes of the DHT answer, by [`DhtEvent::Nodes`].
    ListNodes,
    /// Ends this host's node of the DHT until the next request.
    Rest,
}

/// One request to the DHT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who is in a swarm?
    FindPeers {
        /// The swarm.
        swarm: Swarm,
    },
    /// This host is in a swarm.
    Announce {
        /// The swarm.
        swarm: Swarm,
        /// The port that is announced.
        port: u16,
    },
    /// What is in an item?
    Get {
        /// The item.
        key: ItemKey,
    },
    /// This is in an item.
    Put {
        /// The item.
        key: ItemKey,
        /// Where a value is stored already, only a higher one replaces it.
        sequence: i64,
        /// The sequence of the value that is to be replaced and no other, BEP 44's `cas`.
        replaces: Option<i64>,
        /// The value.
        value: Vec<u8>,
    },
}

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Somebody else has written there meanwhile.
    Overtaken,
    /// Nothing answered, or nothing was stored; why, in words.
    Trouble(String),
}

/// What the shell tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DhtEvent {
    /// There may be somebody to ask: at the start, and whenever more nodes are known.
    Opened,
    /// Members of a swarm, as far as one node of the DHT knows.
    Peers {
        /// The request.
        id: RequestId,
        /// Their addresses.
        addresses: Vec<SocketAddrV4>,
    },
    /// What one node of the DHT has stored in an item. Its signature was checked.
    Item {
        /// The request.
        id: RequestId,
        /// Its sequence.
        sequence: i64,
        /// Its value.
        value: Vec<u8>,
    },
    /// A request is over.
    Done {
        /// The request.
        id: RequestId,
        /// Whether any node answered or stored it.
        outcome: Result<(), Failure>,
    },
    /// Nodes of the DHT that answer.
    Nodes(Vec<SocketAddrV4>),
}
