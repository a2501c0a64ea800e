//! Where other hosts are, as an operator writes it: names, addresses, ports and keys in one word.
//!
//! Each type prints what it was read from, so that what `wgmesh peer add` was told is kept as it was said.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use wgmesh_core::key::PublicKey;
use wgmesh_core::record::may_be_an_endpoint;

/// The UDP port of STUN (RFC 8489 §18.6).
pub(super) const STUN_PORT: u16 = 3478;

/// The UDP port that nodes of Mainline DHT usually have.
const DHT_PORT: u16 = 6881;

/// A node to dial: `host`, `host:port`, and `#KEY` where only the holder of that key will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootstrapNode {
    /// Its name or address.
    pub host: String,
    /// Its exchange's port; `None` for the mesh's own.
    pub port: Option<u16>,
    /// The only key that is accepted there.
    pub key: Option<PublicKey>,
}

impl TryFrom<String> for BootstrapNode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (place, key) = match text.split_once('#') {
            Some((place, key)) => (place, Some(parse_key(key)?)),
            None => (text.as_str(), None),
        };
        let (host, port) = split_port(place)?;
        Ok(Self { host, port, key })
    }
}

impl BootstrapNode {
    /// Returns what the place is called, whoever must be there.
    pub fn place(&self) -> String {
        Self { key: None, ..self.clone() }.to_string()
    }
}

impl fmt::Display for BootstrapNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host)?,
            Some(port) => write!(f, "{}:{port}", self.host)?,
            None => f.write_str(&self.host)?,
        }
        self.key.map_or(Ok(()), |key| write!(f, "#{key}"))
    }
}

impl From<BootstrapNode> for String {
    fn from(node: BootstrapNode) -> Self {
        node.to_string()
    }
}

/// A name whose zone lists nodes: `host` or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSeed {
    /// The name.
    pub host: String,
    /// The port of the exchange of all of them; `None` for the mesh's own.
    pub port: Option<u16>,
}

impl TryFrom<String> for DnsSeed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (host, port) = split_port(&text)?;
        Ok(Self { host, port })
    }
}

/// A peer by its key, `KEY`, and where its WireGuard is known to answer, `KEY@address:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StaticPeer {
    /// Whose it is.
    pub key: PublicKey,
    /// Where its WireGuard answers.
    pub endpoint: Option<SocketAddr>,
}

impl TryFrom<String> for StaticPeer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (key, endpoint) = match text.split_once('@') {
            Some((key, at)) => (key, Some(parse_endpoint(at)?)),
            None => (text.as_str(), None),
        };
        Ok(Self { key: parse_key(key)?, endpoint })
    }
}

impl fmt::Display for StaticPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        self.endpoint.map_or(Ok(()), |endpoint| write!(f, "@{endpoint}"))
    }
}

impl From<StaticPeer> for String {
    fn from(peer: StaticPeer) -> Self {
        peer.to_string()
    }
}

/// A server by name or address, with its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StunServer {
    /// Its name or address.
    pub host: String,
    /// Its UDP port.
    pub port: u16,
}

impl TryFrom<String> for StunServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (host, port) = split_port(&text)?;
        Ok(Self { host, port: port.unwrap_or(STUN_PORT) })
    }
}

/// A node of Mainline DHT by name or address, with its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhtHost {
    /// Its name or address.
    pub host: String,
    /// Its UDP port.
    pub port: u16,
}

impl TryFrom<String> for DhtHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (host, port) = split_port(&text)?;
        Ok(Self { host, port: port.unwrap_or(DHT_PORT) })
    }
}

fn parse_key(text: &str) -> Result<PublicKey, String> {
    text.parse().map_err(|error| format!("{text:?} is no public key: {error}"))
}

fn parse_endpoint(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().map_err(|_| format!("{text:?} is no IP address with a port"))?;
    if may_be_an_endpoint(address) { Ok(address) } else { Err(format!("no other host answers at {address}")) }
}

/// Splits `host:port`, `[v6]:port`, or a host alone.
fn split_port(text: &str) -> Result<(String, Option<u16>), String> {
    let malformed = || format!("{text:?} is no host, nor a host with a port");
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok((address.to_string(), None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().map_err(|_| format!("{port:?} is no port"))?)),
        None => (text, None),
    };
    if port == Some(0) {
        return Err("0 is no port that anyone listens on".to_owned());
    }
    if let Some(inside) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: IpAddr = inside.parse().map_err(|_| malformed())?;
        return Ok((address.to_string(), port));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.chars().all(plain) {
        return Err(malformed());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";

    /// M-14, P-1: what may be written for a node to dial, and that it is printed as it was read.
    #[test]
    fn nodes_are_read_and_written() {
        for (text, host, port, pinned) in [
            ("mesh1.example.org", "mesh1.example.org", None, false),
            ("mesh1:51900", "mesh1", Some(51900), false),
            ("203.0.113.7", "203.0.113.7", None, false),
            ("203.0.113.7:1", "203.0.113.7", Some(1), false),
            ("2001:db8::7", "2001:db8::7", None, false),
            ("[2001:db8::7]:51900", "2001:db8::7", Some(51900), false),
            (&format!("mesh1:51900#{KEY}"), "mesh1", Some(51900), true),
            (&format!("2001:db8::7#{KEY}"), "2001:db8::7", None, true),
        ] {
            let node = BootstrapNode::try_from(text.to_owned()).unwrap();
            assert_eq!((node.host.as_str(), node.port, node.key.is_some()), (host, port, pinned), "{text}");
            assert_eq!(node.to_string(), text);
        }
        let bracketed = BootstrapNode::try_from("[2001:db8::7]".to_owned()).unwrap();
        assert_eq!((bracketed.host.as_str(), bracketed.port), ("2001:db8::7", None));
    }

    #[test]
    fn nodes_that_cannot_be_dialled_are_refused() {
        for (text, complaint) in [
            ("", "\"\" is no host"),
            ("a b", "\"a b\" is no host"),
            ("host:", "\"\" is no port"),
            ("host:70000", "\"70000\" is no port"),
            ("host:0", "0 is no port"),
            (":51900", "\":51900\" is no host"),
            ("[mesh1]:51900", "\"[mesh1]:51900\" is no host"),
            ("https://mesh1", "\"//mesh1\" is no port"),
            ("mesh1#short", "\"short\" is no public key: a WireGuard key is 32 bytes in base64"),
            ("#", "\"\" is no public key"),
        ] {
            let error = BootstrapNode::try_from(text.to_owned()).unwrap_err();
            assert!(error.starts_with(complaint), "{text}: {error}");
        }
    }

    /// P-9: what may be written for a peer, and that it is printed as it was read.
    #[test]
    fn peers_are_read_and_written() {
        for text in [KEY.to_owned(), format!("{KEY}@203.0.113.7:51820"), format!("{KEY}@[2001:db8::7]:51820")]
        {
            let peer = StaticPeer::try_from(text.clone()).unwrap();
            assert_eq!(peer.endpoint.is_some(), text.contains('@'));
            assert_eq!(peer.to_string(), text);
        }
        for (text, complaint) in [
            ("mesh1", "\"mesh1\" is no public key"),
            (&format!("{KEY}@mesh1:51820"), "\"mesh1:51820\" is no IP address with a port"),
            (&format!("{KEY}@203.0.113.7"), "\"203.0.113.7\" is no IP address with a port"),
            (&format!("{KEY}@203.0.113.7:0"), "no other host answers at 203.0.113.7:0"),
            (&format!("{KEY}@127.0.0.1:51820"), "no other host answers at 127.0.0.1:51820"),
            (&format!("{KEY}@[fe80::1]:51820"), "no other host answers at [fe80::1]:51820"),
        ] {
            let error = StaticPeer::try_from(text.to_owned()).unwrap_err();
            assert!(error.starts_with(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn a_server_without_a_port_has_the_one_of_stun() {
        let server = StunServer::try_from("stun.example.org".to_owned()).unwrap();
        assert_eq!((server.host.as_str(), server.port), ("stun.example.org", 3478));
        let server = StunServer::try_from("[2001:db8::7]:19302".to_owned()).unwrap();
        assert_eq!((server.host.as_str(), server.port), ("2001:db8::7", 19302));
        let node = DhtHost::try_from("dht.example.org".to_owned()).unwrap();
        assert_eq!((node.host.as_str(), node.port), ("dht.example.org", 6881));
    }
}
