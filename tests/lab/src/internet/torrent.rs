//! A node of Mainline DHT that is not ours and shares no code with us: Transmission's.
//!
//! The rest of the lab's network is of the crate `mainline`, which as a server is peculiar: it answers only queries whose
//! transaction id has four bytes, so libtorrent, whose ids have two, never gets into it; and it names 20 nodes where BEP 5
//! has 8, of which Transmission was seen to learn none. So Transmission is told of all of them itself. What daemons do is not
//! touched by either: they only ask.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use super::Internet;
use super::dht::{DhtNodes, PORT};
use crate::host::{Host, Process};
use crate::poll::eventually;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);

/// Longer than it takes to get to know the others.
const PATIENCE: Duration = Duration::from_secs(120);

/// As many nodes as an answer holds (BEP 5); it names only those that it has heard.
const ENOUGH: usize = 8;

/// How often it is asked.
const BETWEEN_QUERIES: Duration = Duration::from_millis(500);

/// What an answer says of one node: its id, address and port.
const NODE_BYTES: usize = 26;

/// What it is told: to be a node of the DHT, and nothing else.
const SETTINGS: &str = r#"{
    "bind-address-ipv4": "198.18.1.1", "peer-port": 6881, "dht-enabled": true, "lpd-enabled": false, "pex-enabled": false,
    "port-forwarding-enabled": false, "rpc-enabled": false, "utp-enabled": false
}"#;

/// The node; it ends when dropped.
pub struct TorrentNode {
    /// The machine.
    pub host: Host,
    _process: Process,
}

impl TorrentNode {
    /// Where it answers.
    pub const ENDPOINT: SocketAddrV4 = SocketAddrV4::new(ADDRESS, PORT);

    /// Starts it and waits until it tells of other nodes.
    ///
    /// # Panics
    /// Where it never does.
    #[track_caller]
    pub fn start(internet: &Internet) -> Self {
        let host = internet.server("torrent", &[ADDRESS]);
        let folder = host.folder().join("transmission");
        let begin_with: String =
            DhtNodes::all().map(|node| format!("{} {}\n", node.ip(), node.port())).collect();
        for (name, text) in [("settings.json", SETTINGS), ("dht.bootstrap", &begin_with)] {
            fs::create_dir_all(&folder)
                .and_then(|()| fs::write(folder.join(name), text))
                .expect("the folder is the lab's own");
        }
        let folder = folder.to_str().expect("the lab's own names are text");
        let process = host.spawn(["transmission-daemon", "--foreground", "--config-dir", folder]);
        let node = Self { host, _process: process };
        eventually(PATIENCE, || {
            // Whoever asks too often gets no answer.
            std::thread::sleep(BETWEEN_QUERIES);
            node.told_nodes() >= ENOUGH
        });
        node
    }

    /// Asks it for nodes near to some id, in BEP 5's own words, and returns how many it names.
    pub fn told_nodes(&self) -> usize {
        let query =
            b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q9:find_node1:t2:aa1:y1:qe";
        let answer = self.host.namespace().run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("some port is free");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a second is a valid timeout");
            let mut answer = vec![0; 1500];
            socket.send_to(query, Self::ENDPOINT).ok()?;
            let length = socket.recv(&mut answer).ok()?;
            answer.truncate(length);
            Some(answer)
        });
        let answer = answer.unwrap_or_default();
        let length = answer.windows(7).position(|key| key == b"5:nodes").and_then(|at| {
            let text: Vec<u8> = answer[at + 7..].iter().copied().take_while(u8::is_ascii_digit).collect();
            String::from_utf8(text).ok()?.parse::<usize>().ok()
        });
        length.unwrap_or_default() / NODE_BYTES
    }
}
