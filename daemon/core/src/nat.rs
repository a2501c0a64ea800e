//! What a node's NAT lets through, and what that means for a pair of nodes.
//!
//! Inside, six types are told apart (RFC 4787 mapping and filtering, by the names of RFC 3489); records and people
//! see three. A type decides what to try first and what to expect, never what is allowed: whatever answers wins.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, decode};
use serde::{Deserialize, Serialize};

/// How a node's NAT maps and filters UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", from = "String")]
pub enum NatType {
    /// No NAT, and nothing is filtered: anyone reaches the node.
    Open,
    /// One mapping for all, through which anyone reaches the node.
    FullCone,
    /// One mapping for all; only addresses that were sent to may answer, from any port.
    Restricted,
    /// One mapping for all; only address and port that were sent to may answer.
    PortRestricted,
    /// A mapping of its own for each destination.
    Symmetric,
    /// Nobody told, or what was told fits nothing.
    #[default]
    Unknown,
}

impl NatType {
    /// Every type.
    pub const ALL: [Self; 6] =
        [Self::Open, Self::FullCone, Self::Restricted, Self::PortRestricted, Self::Symmetric, Self::Unknown];

    /// Returns the name that files and people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::FullCone => "full-cone",
            Self::Restricted => "restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::Unknown => "unknown",
        }
    }

    /// Returns what records tell of it.
    pub const fn coarse(self) -> Nat {
        match self {
            Self::Open | Self::FullCone | Self::Restricted | Self::PortRestricted => Nat::Cone,
            Self::Symmetric => Nat::Symmetric,
            Self::Unknown => Nat::Unknown,
        }
    }
}

impl fmt::Display for NatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that this version does not know is [`NatType::Unknown`], never an error.
impl From<String> for NatType {
    fn from(name: String) -> Self {
        Self::ALL.into_iter().find(|one| one.name() == name).unwrap_or_else(|| {
            tracing::debug!(name, "no NAT type that is known here");
            Self::Unknown
        })
    }
}

/// What a record says of its node's NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Encode)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Nat {
    /// Its mapped address is the same for every destination.
    #[n(0)]
    Cone,
    /// Its mapped address differs from destination to destination.
    #[n(1)]
    Symmetric,
    /// It could not be told.
    #[default]
    #[n(2)]
    #[serde(other)]
    Unknown,
}

/// An index that a later version may send is [`Nat::Unknown`].
impl<'b, C> Decode<'b, C> for Nat {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Ok(match decoder.u64()? {
            0 => Self::Cone,
            1 => Self::Symmetric,
            _ => Self::Unknown,
        })
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cone => "cone",
            Self::Symmetric => "symmetric",
            Self::Unknown => "unknown",
        })
    }
}

/// What leads two nodes to each other. Everything is tried at once whatever it is; pairs that only a relay can join are tried
/// again less often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One side reaches the other by just sending.
    Direct,
    /// Both must send at about the same time.
    Punch,
    /// Nothing gets through: packets go by way of a third node.
    Relay,
    /// Not known: simply send, then punch, and use a relay meanwhile.
    TryAll,
}

impl Strategy {
    /// Returns what fits a pair of NATs, whichever is named first.
    pub const fn of(one: NatType, other: NatType) -> Self {
        use NatType::{FullCone, Open, PortRestricted, Restricted, Symmetric, Unknown};
        match (one, other) {
            (Open | FullCone, _) | (_, Open | FullCone) => Self::Direct,
            (Unknown, _) | (_, Unknown) => Self::TryAll,
            // A filter that ignores ports also lets a symmetric NAT's unforeseeable port in.
            (Restricted, _) | (_, Restricted) | (PortRestricted, PortRestricted) => Self::Punch,
            (PortRestricted, Symmetric) | (Symmetric, PortRestricted | Symmetric) => Self::Relay,
        }
    }

    /// Whether packets can be expected to go between the two nodes themselves.
    pub const fn is_direct_possible(self) -> bool {
        match self {
            Self::Direct | Self::Punch | Self::TryAll => true,
            Self::Relay => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// REQUIREMENTS section 11, P-20, X-20: the whole table, from both sides.
    #[test]
    fn each_pair_of_types_has_its_strategy() {
        use Strategy::{Direct as D, Punch as P, Relay as R, TryAll as T};
        let table = [
            [D, D, D, D, D, D],
            [D, D, D, D, D, D],
            [D, D, P, P, P, T],
            [D, D, P, P, R, T],
            [D, D, P, R, R, T],
            [D, D, T, T, T, T],
        ];
        for (one, row) in NatType::ALL.into_iter().zip(table) {
            for (other, expected) in NatType::ALL.into_iter().zip(row) {
                assert_eq!(Strategy::of(one, other), expected, "{one} and {other}");
                assert_eq!(Strategy::of(one, other), Strategy::of(other, one), "{one} and {other}");
                assert_eq!(expected.is_direct_possible(), expected != R);
            }
        }
    }

    /// P-16, L-11: names go out and come back, and one of a later version is unknown.
    #[test]
    fn names_are_read_and_strange_ones_are_unknown() {
        for one in NatType::ALL {
            let text = serde_json::to_string(&one).unwrap();
            assert_eq!(text, format!("\"{one}\""));
            assert_eq!(serde_json::from_str::<NatType>(&text).unwrap(), one);
        }
        assert_eq!(serde_json::from_str::<NatType>("\"carrier-pigeon\"").unwrap(), NatType::Unknown);
        for one in [Nat::Cone, Nat::Symmetric, Nat::Unknown] {
            let text = serde_json::to_string(&one).unwrap();
            assert_eq!(text, format!("\"{one}\""));
            assert_eq!(serde_json::from_str::<Nat>(&text).unwrap(), one);
        }
        assert_eq!(serde_json::from_str::<Nat>("\"wormhole\"").unwrap(), Nat::Unknown);
    }

    /// X-21, W-X11: six types inside are three outside.
    #[test]
    fn six_types_are_three_for_others() {
        let coarse = NatType::ALL.map(NatType::coarse);
        assert_eq!(coarse, [Nat::Cone, Nat::Cone, Nat::Cone, Nat::Cone, Nat::Symmetric, Nat::Unknown]);
    }

    /// L-11: on the wire too.
    #[test]
    fn an_index_of_a_later_version_is_unknown() {
        for one in [Nat::Cone, Nat::Symmetric, Nat::Unknown] {
            assert_eq!(minicbor::decode::<Nat>(&minicbor::to_vec(one).unwrap()).unwrap(), one);
        }
        assert_eq!(minicbor::decode::<Nat>(&minicbor::to_vec(200u8).unwrap()).unwrap(), Nat::Unknown);
        assert!(minicbor::decode::<Nat>(&minicbor::to_vec("cone").unwrap()).is_err());
    }
}
