//! `wgmesh peers` and `wgmesh peer add|remove`: who is in the mesh, and whom the operator wants there.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use wgmesh_core::config::Hostname;
use wgmesh_core::key::PublicKey;
use wgmesh_core::status::{Dial, Peer, ShutOut, Status};

use super::peer::{self, Unclear};
use super::{Error, status};
use crate::api::client;
use crate::config::{BootstrapNode, File};
use crate::pins::{Pin, Pins, Removal};

/// How long a host that was named has until its node has proved itself, and how often the daemon is asked.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Who was added.
#[derive(Debug, Serialize)]
struct Added<'a> {
    named: &'a Pin,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<PublicKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<Hostname>,
}

impl fmt::Display for Added<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "added {}", self.named)?;
        match (self.named, &self.public_key, &self.hostname) {
            (Pin::Node(_), Some(key), Some(hostname)) => write!(f, ": it is {hostname}, {key}"),
            (Pin::Node(_), Some(key), None) => write!(f, ": it is {key}"),
            (Pin::Node(_), None, _) | (Pin::Peer(_), ..) => Ok(()),
        }
    }
}

/// What is printed for programs.
#[derive(Debug, Serialize)]
struct Listed {
    peers: Vec<Peer>,
    /// Whom `wgmesh peer add` has named.
    named: Pins,
    /// Who is not talked to.
    shut_out: Vec<ShutOut>,
}

pub(super) fn list(config: &File, json: bool, wide: bool) -> Result<(), Error> {
    let socket = config.socket_path();
    let status = client::status(&socket)?;
    let listed = Listed { peers: status.peers, named: client::pins(&socket)?, shut_out: status.shut_out };
    let mut out = io::stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, &listed).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let style = status::Style { wide, colour: status::may_colour(out.is_terminal()) };
    let lines = status::peers_explained(&listed.peers, style).into_iter().chain(named(&listed.named));
    let lines = lines.chain(listed.shut_out.iter().map(shut_out));
    Ok(out.write_all((lines.collect::<Vec<_>>().join("\n") + "\n").as_bytes())?)
}

fn named(pins: &Pins) -> Vec<String> {
    let peers = pins.static_peers.iter().map(|peer| format!("named peer  {peer}"));
    let nodes = pins.bootstrap_nodes.iter().map(|node| format!("named node  {node}"));
    let lines: Vec<String> = peers.chain(nodes).collect();
    if lines.is_empty() { lines } else { [vec![String::new()], lines].concat() }
}

fn shut_out(ShutOut { public_key, left_s }: &ShutOut) -> String {
    match left_s {
        Some(left) => format!("shut out    {public_key} for {} min more: it misbehaved", left / 60),
        None => format!("removed     {public_key} until `wgmesh peer add`"),
    }
}

pub(super) fn add(config: &File, pin: &Pin, wait: bool, json: bool) -> Result<(), Error> {
    let socket = config.socket_path();
    client::add_peer(&socket, pin)?;
    let added = match pin {
        Pin::Peer(peer) => Added { named: pin, public_key: Some(peer.key), hostname: None },
        Pin::Node(node) if wait => {
            let (public_key, hostname) = await_node(&socket, node)?;
            Added { named: pin, public_key, hostname }
        }
        Pin::Node(_) => Added { named: pin, public_key: None, hostname: None },
    };
    let mut out = io::stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, &added).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    Ok(writeln!(out, "{added}")?)
}

/// Waits until a node has proved itself where a host was named, and returns its key and what it is called.
fn await_node(socket: &Path, node: &BootstrapNode) -> Result<(Option<PublicKey>, Option<Hostname>), Error> {
    let end = Instant::now() + PATIENCE;
    let name = node.place();
    loop {
        let status = client::status(socket)?;
        let mut dials = status.dials.iter().filter(|dial| dial.is_called(&name));
        let is_meant = |dial: &&Dial| node.key.is_none_or(|key| dial.public_key == Some(key));
        if let Some(met) = dials.clone().filter(is_meant).find(|dial| dial.connected) {
            let peer = status.peers.iter().find(|peer| Some(peer.public_key) == met.public_key);
            return Ok((met.public_key, peer.and_then(|peer| peer.hostname.clone())));
        }
        if Instant::now() >= end {
            let error = dials.find_map(|dial| dial.error.clone());
            let error = error.unwrap_or_else(|| "nobody has answered".to_owned());
            return Err(Error::NotReached(name, error));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

pub(super) fn remove(config: &File, name: &str) -> Result<(), Error> {
    let socket = config.socket_path();
    let status = client::status(&socket)?;
    if !client::remove_peer(&socket, &removal(&status, name)?)? {
        return Err(Unclear::unknown(&status, name).into());
    }
    Ok(writeln!(io::stdout(), "removed {name}")?)
}

/// Finds out who is meant: a peer, a key that was named and is not known yet, or a host that was named.
fn removal(status: &Status, name: &str) -> Result<Removal, Unclear> {
    let node = BootstrapNode::try_from(name.to_owned()).ok();
    match peer::find(status, name) {
        Ok(peer) => Ok(Removal { key: Some(peer.public_key), node }),
        Err(Unclear::Unknown { .. }) => Ok(Removal { key: name.parse().ok(), node }),
        Err(unclear) => Err(unclear),
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::example;
    use super::*;

    const STRANGER: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    /// M-5: a peer goes by any of its names, a key or host that was named by what was typed then.
    #[test]
    fn who_is_to_be_removed_is_found_by_what_was_typed() {
        let status = example();
        let db1 = status.peers[0].public_key;
        for name in ["db1", "10.42.0.2", &db1.to_string()] {
            assert_eq!(removal(&status, name).unwrap().key, Some(db1), "{name}");
        }
        let stranger = Removal { key: Some(STRANGER.parse().unwrap()), node: None };
        assert_eq!(removal(&status, STRANGER).unwrap(), stranger);
        let host = removal(&status, "mesh1.example.org:51900").unwrap();
        assert_eq!((host.key, host.node.unwrap().port), (None, Some(51900)));
        assert!(matches!(removal(&status, "web1"), Err(Unclear::Own { .. })));
    }

    /// M-6: whoever was named is listed too, known or not.
    #[test]
    fn those_named_are_listed_below_the_peers() {
        let mut pins = Pins::default();
        assert!(named(&pins).is_empty());
        pins.add(STRANGER.parse().unwrap());
        pins.add("mesh1:51900".parse().unwrap());
        let expected =
            ["".to_owned(), format!("named peer  {STRANGER}"), "named node  mesh1:51900".to_owned()];
        assert_eq!(named(&pins), expected);
    }

    /// M-5, X-29.
    #[test]
    fn those_shut_out_are_listed_with_the_reason() {
        let line = |left_s| shut_out(&ShutOut { public_key: STRANGER.parse().unwrap(), left_s });
        assert_eq!(line(None), format!("removed     {STRANGER} until `wgmesh peer add`"));
        assert_eq!(line(Some(7200)), format!("shut out    {STRANGER} for 120 min more: it misbehaved"));
    }

    #[test]
    fn the_json_has_the_documented_names() {
        let json = serde_json::to_value(Listed {
            peers: example().peers,
            named: Pins::default(),
            shut_out: Vec::new(),
        })
        .unwrap();
        assert_eq!(json["peers"][0]["hostname"], "db1");
        assert!(json["named"]["static_peers"].is_array() && json["named"]["bootstrap_nodes"].is_array());
    }
}
