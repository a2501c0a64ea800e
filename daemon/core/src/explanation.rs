//! What `wgmesh explain PEER` tells: how a peer is reached, since when, what was tried, and why not something better.
//!
//! Written and read by the same types, as [`crate::status`] is.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::key::PublicKey;
use crate::status::Peer;

/// Everything that is known of the ways to one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The peer as `status` shows it.
    pub peer: Peer,
    /// For how many seconds WireGuard has sent where it sends now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_s: Option<u64>,
    /// Where WireGuard sent before that, the newest first.
    pub earlier: Vec<Earlier>,
    /// Relays that did not do what they should for this peer, lately.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_relays: Vec<LeftRelay>,
    /// Every address that is known, the best first.
    pub candidates: Vec<Tried>,
    /// What is being done to find another path.
    pub search: String,
    /// The attempts to find one so far, the newest first.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// Why nothing better is used.
    pub reasons: Vec<String>,
}

/// An endpoint that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Whose endpoint it is, where that node routed the packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routed_by: Option<PublicKey>,
    /// How many seconds ago it was left.
    pub left_s: u64,
}

/// A relay that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftRelay {
    /// The relay.
    pub relay: PublicKey,
    /// How often it has failed; what it does on purpose counts six times.
    pub times: u32,
    /// For how many seconds it is not asked again.
    pub rests_s: u64,
}

/// An attempt to find a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// How many seconds ago it began.
    pub begun_s: u64,
    /// The first path that it found; `None` if it found none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<SocketAddr>,
    /// How many milliseconds that took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

/// An address at which the peer may answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The address.
    pub address: SocketAddr,
    /// What kind of address it is, by the names of `status`.
    pub kind: String,
    /// Who named it.
    pub named_by: String,
    /// Whether WireGuard sends there now.
    pub in_use: bool,
    /// How many seconds ago it last answered a ping; `None` if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_s: Option<u64>,
    /// The measured round trip in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
}
