//! One address at which a peer may answer, and the pings to it.

use std::net::SocketAddr;
use std::time::Duration;

use super::schedule::Schedule;
use crate::time::Monotonic;

/// By how much a round trip must differ to say that a path is longer, whatever kind it is of.
pub(super) const FARTHER: Duration = Duration::from_millis(10);

/// For so long nobody need say again that a peer is at an address: twice the longest rest between attempts, which say so.
const FRESH: Duration = Duration::from_secs(60);

/// A ping is missed after three round trips, but not before this.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(250);

/// A ping is missed after this at the latest.
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);

/// Who named a candidate. The declared order is the order of trust, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// An earlier run of this node.
    Cache,
    /// The peer, in its record.
    Record,
    /// The peer, in an offer.
    Offer,
    /// A ping of the peer that came from there.
    Ping,
    /// A relay that both sides have agreed on.
    Relay,
    /// Our kernel, which sends there.
    Kernel,
    /// The operator.
    Static,
}

impl Origin {
    /// Returns the name that `explain` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Record => "record",
            Self::Offer => "offer",
            Self::Ping => "ping",
            Self::Relay => "relay",
            Self::Kernel => "kernel",
            Self::Static => "operator",
        }
    }
}

/// What kind of address a candidate is. The declared order is the order of preference, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// In a network that this host is in too.
    Lan,
    /// Any other IPv6 address: seldom behind a NAT.
    Ipv6,
    /// Any other IPv4 address.
    Ipv4,
    /// A port of a third node that passes packets on. Left for any other that answers, and never preferred to one.
    Relay,
    /// The peer's own mesh address, to which a relay routes packets. Left like the other kind of relay. Packets to it say
    /// nothing of the peer's tunnel.
    Routed,
}

impl Kind {
    /// Whether a third node passes packets on.
    pub const fn is_relayed(self) -> bool {
        matches!(self, Self::Relay | Self::Routed)
    }

    /// Returns the name that `status` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Ipv6 => "direct-ipv6",
            Self::Ipv4 => "direct",
            Self::Relay => "relay",
            Self::Routed => "routed",
        }
    }
}

/// One address and what is known of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who named it, the most trusted of them.
    pub origin: Origin,
    /// What kind of address it is.
    pub kind: Kind,
    /// When it was last named.
    pub named: Monotonic,
    /// When it last answered.
    pub answered: Option<Monotonic>,
    /// The round trip, smoothed.
    pub rtt: Option<Duration>,
    /// How often in a row its answers have shown it to be better than the path in use.
    pub(super) better: u32,
    /// How often it was to be compared once more since it was named or the last attempt began.
    pub(super) looks: u32,
    /// Pings on their way.
    pub(super) pings: Vec<Sent>,
    pub(super) schedule: Option<Schedule>,
}

/// A ping to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Where to.
    pub to: SocketAddr,
    /// To tell the answer by.
    pub id: u64,
    /// The MTU in bytes that it is to prove: then it is as long as [`super::probe_bytes`] says.
    pub mtu: Option<u16>,
}

/// A ping that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) id: u64,
    pub(super) at: Monotonic,
    pub(super) mtu: Option<u16>,
}

/// The last ping that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastAnswer {
    /// When the answer came.
    pub at: Monotonic,
    /// From where.
    pub from: SocketAddr,
    /// After how long.
    pub rtt: Duration,
}

/// What an answer to a ping has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The round trip of this ping.
    pub rtt: Duration,
    /// Whether the path in use is another now, or works again.
    pub switched: bool,
}

impl Candidate {
    /// Returns how many pings to it are without an answer.
    pub const fn unanswered(&self) -> usize {
        self.pings.len()
    }

    /// Returns how much the word for it counts among addresses that are not in use. What nobody has said for a while, but the
    /// operator, is as good as what an earlier run has heard.
    pub(super) fn trust(&self, now: Monotonic) -> Origin {
        match self.origin {
            Origin::Static => Origin::Static,
            origin if now.since(self.named) < FRESH => origin,
            _ => Origin::Cache,
        }
    }

    pub(super) fn patience(&self) -> Duration {
        let three = self.rtt.map_or(SHORTEST_PATIENCE, |rtt| rtt * 3);
        three.clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE)
    }
}

/// Whether a path is quicker than another by a fifth or by 10 ms; below a millisecond the difference is noise.
pub(crate) fn is_quicker(one: Duration, other: Duration) -> bool {
    let gain = other.saturating_sub(one);
    gain >= FARTHER || (gain >= Duration::from_millis(1) && gain * 5 >= other)
}
