//! What an operator may set, already parsed and checked. Reading TOML is the daemon's business.
//!
//! Where and whether a source of peers runs is the daemon's business too: the core only sees what they yield.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::kernel::InterfaceName;
use crate::pool::Places;
use crate::store::MIN_AGE;
use crate::sync::{LONGEST_WAIT, MAX_ASKED};

/// One mesh as its operator wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The WireGuard link's name.
    pub interface: InterfaceName,
    /// What this node calls itself in its record.
    pub hostname: Hostname,
    /// The UDP port of WireGuard; zero takes any that is free.
    pub listen_port: u16,
    /// The mesh's IPv4 network; `None` derives it from the mesh key.
    pub subnet: Option<Ipv4Net>,
    /// Networks behind this node that others may reach through it.
    pub advertise_routes: BTreeSet<IpNet>,
    /// The networks inside which routes of peers are taken; empty takes none.
    pub accept_routes: BTreeSet<IpNet>,
    /// Whether peers are looked for on common links.
    pub lan: bool,
    /// Whether paths through NATs are looked for (`nat.punching`).
    pub punching: bool,
    /// Whether records are exchanged over TLS (`discovery.enabled_methods` has `exchange`).
    pub exchange: bool,
    /// The TCP port of the exchange; `None` takes the mesh's own.
    pub exchange_port: Option<u16>,
    /// Whether peers are looked for in Mainline DHT (`discovery.enabled_methods` has `dht`).
    pub dht: bool,
    /// Whether only other nodes publish this node's record in the DHT (`privacy.dandelion`).
    pub dandelion: bool,
    /// How it has to do with relays.
    pub relay: RelaySettings,
    /// Whether records are gossiped over the mesh (`discovery.enabled_methods` has `gossip`).
    pub gossip: bool,
    /// The most peers to hold; more are refused (seed 003, W-D19).
    pub max_peers: usize,
    /// How many sessions to hold (M-21).
    pub sessions: Places,
    /// What is told of other nodes, how soon and how often (P-11).
    pub sharing: Sharing,
}

/// What a node tells others of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// The most records that are asked for, or given, at once in an exchange; at most [`MAX_ASKED`].
    pub max: usize,
    /// For how long a peer that only others told of may have to wait until it is passed on.
    pub min_age: Duration,
    /// The longest pause until nodes whose stores stay different look again.
    pub interval: Duration,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { max: MAX_ASKED, min_age: MIN_AGE, interval: LONGEST_WAIT }
    }
}

/// How a node has to do with relays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySettings {
    /// How peers are reached that have no path of their own.
    pub mode: RelayMode,
    /// Whether it is a relay for others; `None` if it is where nothing is between it and the internet.
    pub serve: Option<bool>,
    /// The most pairs of nodes that it is a relay for.
    pub max_pairs: usize,
    /// Whether peers on no common link are reached through relays alone, unless one of the two is public (W-D12).
    pub force: bool,
}

impl RelaySettings {
    /// Whether it looks for relays.
    pub const fn is_wanted(&self) -> bool {
        matches!(self.mode, RelayMode::Sealed | RelayMode::Routed)
    }

    /// Whether it has relays route packets, which they can read, and does so for others.
    pub const fn routes(&self) -> bool {
        matches!(self.mode, RelayMode::Routed)
    }
}

/// How peers are reached that have no path of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayMode {
    /// Through nodes that pass on what they cannot read.
    Sealed,
    /// Through nodes that route packets and can read them, where both ends and the relay are set to this; otherwise as
    /// [`RelayMode::Sealed`].
    Routed,
    /// Not at all.
    Off,
}

/// A host's name as others display it: 1 to 63 of `A-Z a-z 0-9 . _ -`, a letter or digit first. Short enough
/// for a record, and harmless in a terminal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

/// A name that cannot go into a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host name: it takes 1 to 63 of A-Z a-z 0-9 . _ - and starts with a letter or digit")]
pub struct InvalidHostname(String);

impl Hostname {
    /// The most bytes that a name may have, RFC 1035 §2.3.4's length of one label.
    pub const MAX_BYTES: usize = 63;

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes the nearest acceptable name of what the host calls itself, or `node` if nothing is left.
    pub fn from_system(name: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
        let mut kept: String = name.trim().chars().map(plain).collect();
        kept = kept.trim_start_matches(['.', '_', '-']).to_owned();
        kept.truncate(Self::MAX_BYTES);
        kept.parse().unwrap_or_else(|_| Self("node".to_owned()))
    }
}

impl FromStr for Hostname {
    type Err = InvalidHostname;

    fn from_str(name: &str) -> Result<Self, InvalidHostname> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && name.len() <= Self::MAX_BYTES && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidHostname(name.to_owned()))
        }
    }
}

impl TryFrom<String> for Hostname {
    type Error = InvalidHostname;

    fn try_from(name: String) -> Result<Self, InvalidHostname> {
        name.parse()
    }
}

impl From<Hostname> for String {
    fn from(name: Hostname) -> Self {
        name.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_harm_a_terminal_are_refused() {
        for name in ["", "-a", ".a", "a b", "a\u{1b}[2J", "ü", &"a".repeat(64)] {
            assert!(name.parse::<Hostname>().is_err(), "{name:?}");
        }
        assert_eq!("db-1.eu_west".parse::<Hostname>().unwrap().as_str(), "db-1.eu_west");
    }

    #[test]
    fn any_system_name_yields_an_acceptable_one() {
        let cases = [
            ("db1.example.org\n", "db1.example.org"),
            ("my host", "my-host"),
            ("--x", "x"),
            ("", "node"),
            ("\u{1b}[2J", "2J"),
        ];
        for (system, expected) in cases {
            assert_eq!(Hostname::from_system(system).as_str(), expected);
        }
        assert_eq!(Hostname::from_system(&"a".repeat(300)).as_str().len(), 63);
    }
}
