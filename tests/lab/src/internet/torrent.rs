//! A node of Mainline DHT that is not ours and shares no code with us: libtorrent.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::Internet;
use super::dht::{DhtNodes, PORT};
use crate::host::{Host, Process};
use crate::poll::eventually;

/// What runs it.
const PROGRAM: &str = include_str!("torrent.py");

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);

/// Longer than it takes to get to know the others.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many nodes it should know.
const ENOUGH: u64 = 8;

/// The node; it ends when dropped.
pub struct TorrentNode {
    /// The machine.
    pub host: Host,
    report: PathBuf,
    _process: Process,
}

impl TorrentNode {
    /// Where it answers.
    pub const ENDPOINT: SocketAddrV4 = SocketAddrV4::new(ADDRESS, PORT);

    /// Starts it and waits until it knows other nodes of the DHT.
    ///
    /// # Panics
    /// Where it never does.
    #[track_caller]
    pub fn start(internet: &Internet) -> Self {
        let host = internet.server("torrent", &[ADDRESS]);
        let report = host.folder().join("counters");
        let begin_with: Vec<_> = DhtNodes::bootstrap().map(|node| node.to_string()).collect();
        let (address, file) = (ADDRESS.to_string(), report.to_str().expect("the lab's own names are text"));
        let process = host.spawn(["python3", "-c", PROGRAM, &address, &begin_with.join(","), file]);
        let node = Self { host, report, _process: process };
        eventually(PATIENCE, || node.counter("dht_nodes") >= ENOUGH);
        node
    }

    /// Returns one of libtorrent's counters of the DHT; 0 before the first report.
    pub fn counter(&self, name: &str) -> u64 {
        let text = std::fs::read(&self.report).unwrap_or_default();
        let counters: Value = serde_json::from_slice(&text).unwrap_or_default();
        counters[format!("dht.{name}")].as_u64().unwrap_or_default()
    }
}
