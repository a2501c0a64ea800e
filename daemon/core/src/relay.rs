//! Relays: a third node that passes on the packets of two that cannot reach each other, and can read none of them.
//!
//! A relay has two UDP ports for each pair that it serves. What the first node's WireGuard sends to the one leaves from
//! the other to the second node, and the other way round; to the kernels of both the relay is one more endpoint. Where an
//! end is, a relay only learns from a sealed, proved `Bind` that the node sends from WireGuard's port.
//!
//! [`Server`] is the relay's side and [`Seeker`] that of a node that wants one. A node may also have its packets routed by
//! a relay, which can read them then ([`Router`], DESIGN 7). [`Forwarding`] is what the shell must carry
//! out; nothing here forwards anything.
//!
//! Invariants:
//! - Nothing is passed on before both ends are bound, and nothing from an address that is not bound.
//! - The table given to the shell is whole: what is not in it is not forwarded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::key::PublicKey;

mod router;
mod seeker;
mod server;
mod trial;

pub use router::Router;
pub use seeker::{Seeker, Step};
pub use server::{Bound, Limits, Released, Server};
pub use trial::{Doubt, Lie};

/// The most relays that one offer names.
pub const MAX_OFFERED: usize = 4;

/// Why a relay does not serve a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Refusal {
    /// It serves nobody.
    #[n(0)]
    NotServing,
    /// It does not reach the other node itself.
    #[n(1)]
    Unreached,
    /// It serves as many pairs as it may.
    #[n(2)]
    Full,
}

/// Why a node leaves a relay through which packets to a peer go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Pings through it are not answered any more.
    Dead,
    /// Pings through it are answered, and those through the tunnel are not, which the peer may just not take.
    Suspect,
    /// It passes on pings, and none of the packets.
    Lies,
    /// No session comes about through it.
    Mute,
    /// It sends the same again and again.
    Floods,
    /// The peer has left it.
    Unwanted,
}

impl Fault {
    /// Returns its name in the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Suspect => "suspect",
            Self::Lies => "lies",
            Self::Mute => "mute",
            Self::Floods => "floods",
            Self::Unwanted => "unwanted",
        }
    }

    /// Whether a relay has it on purpose.
    pub const fn is_grave(self) -> bool {
        matches!(self, Self::Lies | Self::Floods)
    }
}

/// A relay that a node reaches, and how far away it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reached {
    /// Which one.
    #[n(0)]
    pub relay: PublicKey,
    /// The round trip to it in microseconds.
    #[n(1)]
    pub rtt_us: u32,
}

impl Reached {
    /// Takes note of a relay at this distance.
    pub fn new(relay: PublicKey, rtt: Duration) -> Self {
        Self { relay, rtt_us: u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX) }
    }

    /// Returns the round trip.
    pub const fn rtt(self) -> Duration {
        Duration::from_micros(self.rtt_us as u64)
    }
}

/// Where one of a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayEnd {
    /// Where its WireGuard is seen, with the port.
    pub peer: SocketAddr,
    /// The relay's own address that it sends to: what goes to it must leave from there.
    pub local: IpAddr,
}

/// What is passed on between two nodes. The node of `pair[n]` sends to `ports[n]` and is at `ends[n]`; what comes from
/// there leaves from the other port to the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    /// The nodes, the lower key first.
    pub pair: [PublicKey; 2],
    /// The relay's two UDP ports.
    pub ports: [u16; 2],
    /// Where the nodes are, as far as they have bound.
    pub ends: [Option<RelayEnd>; 2],
}

impl Forwarding {
    /// Returns both ends once both are known.
    pub fn bound(&self) -> Option<[RelayEnd; 2]> {
        let [one, other] = self.ends;
        Some([one?, other?])
    }
}
