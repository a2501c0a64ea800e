//! Whom the operator has named with `wgmesh peer add`: kept by the daemon beside its other state, so that nobody has to
//! edit a configuration file on a running host, and none is ever rewritten.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wgmesh_core::key::PublicKey;

use crate::config::{BootstrapNode, StaticPeer};

/// One that was named: a peer by its key, or a host to dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pin {
    /// `KEY` or `KEY@ADDRESS:PORT`.
    Peer(StaticPeer),
    /// `HOST`, `HOST:PORT`, either with `#KEY`.
    Node(BootstrapNode),
}

impl FromStr for Pin {
    type Err = String;

    /// Every key ends with `=`, which is in no host's name: so what was meant is clear, and so is the complaint.
    fn from_str(text: &str) -> Result<Self, String> {
        let before = text.split(['@', '#']).next().unwrap_or_default();
        match before.ends_with('=') || text.contains('@') {
            true => StaticPeer::try_from(text.to_owned()).map(Self::Peer),
            false => BootstrapNode::try_from(text.to_owned()).map(Self::Node),
        }
    }
}

impl TryFrom<String> for Pin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Node(node) => node.fmt(f),
        }
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

/// Who is no longer wanted: a peer by its key, a host that was named, or both where one word may mean either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The peer.
    pub key: Option<PublicKey>,
    /// The host; without a port, whatever port was named with it.
    pub node: Option<BootstrapNode>,
}

/// All that were named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Peers that are always wanted.
    #[serde(default)]
    pub static_peers: Vec<StaticPeer>,
    /// Nodes whose exchange is dialled.
    #[serde(default)]
    pub bootstrap_nodes: Vec<BootstrapNode>,
}

impl Pins {
    /// Adds one. What was named before for the same key, or the same host and port, gives way.
    pub fn add(&mut self, pin: Pin) {
        match pin {
            Pin::Peer(peer) => {
                self.static_peers.retain(|other| other.key != peer.key);
                self.static_peers.push(peer);
            }
            Pin::Node(node) => {
                self.bootstrap_nodes.retain(|other| (&other.host, other.port) != (&node.host, node.port));
                self.bootstrap_nodes.push(node);
            }
        }
    }

    /// Removes every one that is meant. Returns whether there was one.
    pub fn remove(&mut self, removal: &Removal) -> bool {
        let before = self.static_peers.len() + self.bootstrap_nodes.len();
        if let Some(key) = removal.key {
            self.static_peers.retain(|peer| peer.key != key);
            self.bootstrap_nodes.retain(|node| node.key != Some(key));
        }
        if let Some(meant) = &removal.node {
            let is_meant = |node: &BootstrapNode| {
                node.host == meant.host && (meant.port.is_none() || node.port == meant.port)
            };
            self.bootstrap_nodes.retain(|node| !is_meant(node));
        }
        before > self.static_peers.len() + self.bootstrap_nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";

    fn pin(text: &str) -> Pin {
        text.parse().unwrap()
    }

    fn listed(pins: &Pins) -> Vec<String> {
        let peers = pins.static_peers.iter().map(ToString::to_string);
        peers.chain(pins.bootstrap_nodes.iter().map(ToString::to_string)).collect()
    }

    fn removal(key: Option<&str>, node: Option<&str>) -> Removal {
        Removal {
            key: key.map(|key| key.parse().unwrap()),
            node: node.map(|node| node.to_owned().try_into().unwrap()),
        }
    }

    /// M-4: one word says who is meant, and how to reach them.
    #[test]
    fn a_word_is_a_peer_or_a_node() {
        for text in [KEY, &format!("{KEY}@203.0.113.7:51820")] {
            assert!(matches!(pin(text), Pin::Peer(_)), "{text}");
            assert_eq!(pin(text).to_string(), text);
        }
        for text in ["mesh1", "203.0.113.7:51900", &format!("mesh1#{KEY}")] {
            assert!(matches!(pin(text), Pin::Node(_)), "{text}");
            assert_eq!(pin(text).to_string(), text);
        }
        assert!("short=".parse::<Pin>().unwrap_err().starts_with("\"short=\" is no public key"));
        assert!("x@203.0.113.7:1".parse::<Pin>().unwrap_err().starts_with("\"x\" is no public key"));
        assert!("a b".parse::<Pin>().unwrap_err().starts_with("\"a b\" is no host"));
    }

    #[test]
    fn the_last_word_on_a_peer_or_a_node_counts() {
        let mut pins = Pins::default();
        let moved = format!("{KEY}@203.0.113.7:51820");
        for text in [KEY, &moved, "mesh1", "mesh1:1", &format!("mesh1:1#{KEY}"), "mesh1"] {
            pins.add(pin(text));
        }
        assert_eq!(listed(&pins), [moved, format!("mesh1:1#{KEY}"), "mesh1".to_owned()]);
    }

    /// M-5: whoever is removed is dropped wherever they were named.
    #[test]
    fn removing_drops_every_mention() {
        let mut pins = Pins::default();
        for text in [KEY, "mesh1", "mesh1:1", &format!("mesh2#{KEY}"), "mesh3"] {
            pins.add(pin(text));
        }
        assert!(!pins.remove(&removal(None, Some("mesh1:2"))));
        assert!(pins.remove(&removal(Some(KEY), None)));
        assert_eq!(listed(&pins), ["mesh1", "mesh1:1", "mesh3"]);
        assert!(pins.remove(&removal(None, Some("mesh1:1"))));
        assert_eq!(listed(&pins), ["mesh1", "mesh3"]);
        assert!(pins.remove(&removal(None, Some("mesh3"))));
        assert!(!pins.remove(&removal(Some(KEY), Some("mesh3"))));
    }

    /// M-27: what was saved is loaded.
    #[test]
    fn pins_survive_a_file() {
        let mut pins = Pins::default();
        [KEY, "[2001:db8::7]:51900"].map(pin).into_iter().for_each(|pin| pins.add(pin));
        let text = serde_json::to_string(&pins).unwrap();
        assert_eq!(
            text,
            format!("{{\"static_peers\":[\"{KEY}\"],\"bootstrap_nodes\":[\"[2001:db8::7]:51900\"]}}")
        );
        assert_eq!(serde_json::from_str::<Pins>(&text).unwrap(), pins);
        assert_eq!(serde_json::from_str::<Pins>("{}").unwrap(), Pins::default());
    }
}
