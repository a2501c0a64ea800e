//! What `wgmesh status --json` prints and `GET /v1/status` answers.
//!
//! The daemon writes these types and the command line reads them back, so that both always agree. Fields are
//! only ever added: scripts depend on them. A field that is `None` is left out of the JSON, never guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Hostname;
use crate::health::Counts;
use crate::kernel::InterfaceName;
use crate::key::PublicKey;

/// Everything that one daemon knows of its mesh at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's own version.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// This node.
    pub node: Node,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Where peers come from.
    pub sources: Vec<Source>,
    /// The sessions in which nodes tell each other of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<Session>,
    /// The addresses that are dialed for more of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dials: Vec<Dial>,
    /// Nodes that are not talked to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shut_out: Vec<ShutOut>,
    /// The eBPF programs.
    pub ebpf: Ebpf,
    /// What the kernel was made to hold.
    pub kernel: Kernel,
    /// What this node passes on for others.
    #[serde(default)]
    pub relay: Relay,
    /// What the slow watch over tunnels has seen since the start.
    #[serde(default)]
    pub health: Health,
    /// Who publishes whom outside the mesh, where this node or others ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Privacy>,
    /// Messages that were dropped since the start, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drops: BTreeMap<String, u64>,
    /// How often this node has left a relay through which packets to a peer went, since the start, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relays_left: BTreeMap<String, u64>,
    /// What is wrong now, each a sentence for a human.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Who publishes whom outside the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privacy {
    /// Whether another node publishes this one, to its knowledge.
    pub published_by_another: bool,
    /// How many others this node publishes.
    pub publishes: usize,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The WireGuard link.
    pub interface: InterfaceName,
    /// The WireGuard public key.
    pub public_key: PublicKey,
    /// The name in its record.
    pub hostname: Hostname,
    /// Its IPv4 address inside the mesh.
    pub mesh_ipv4: Ipv4Addr,
    /// Its IPv6 address inside the mesh.
    pub mesh_ipv6: Ipv6Addr,
    /// WireGuard's UDP port; `None` until the kernel has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// The TCP port of the exchange.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange_port: Option<u16>,
    /// What kind of NAT it is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_type: Option<String>,
    /// Its WireGuard port as the internet sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<SocketAddr>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The WireGuard public key.
    pub public_key: PublicKey,
    /// The name in its record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Hostname>,
    /// Its IPv4 address inside the mesh.
    pub mesh_ipv4: Ipv4Addr,
    /// Its IPv6 address inside the mesh.
    pub mesh_ipv6: Ipv6Addr,
    /// How it is reached now.
    pub state: PeerState,
    /// The way its packets take; `None` while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// Seconds since WireGuard's last handshake; `None` if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake_s: Option<u64>,
    /// Seconds since eBPF last saw a handshake with it answered on the wire; `None` if it has not, or does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_seen_s: Option<u64>,
    /// Bytes received, by WireGuard's own count.
    pub rx_bytes: u64,
    /// Bytes sent, by WireGuard's own count.
    pub tx_bytes: u64,
    /// What eBPF counted; `None` where eBPF does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ebpf: Option<Traffic>,
    /// How good a partner it was in sessions, from 0 to 1000; `None` until it was met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reputation: Option<u16>,
    /// Where it was learned from.
    pub sources: Vec<String>,
    /// Networks that are routed to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<IpNet>,
    /// Why it is in this state, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Known, and no handshake yet.
    Connecting,
    /// By a path of its own.
    Direct,
    /// Through another node.
    Relayed,
    /// It was reached, and no longer answers.
    Offline,
}

/// The way that a peer's packets take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// What kind of candidate won, such as `lan`.
    pub kind: String,
    /// Where WireGuard sends.
    pub endpoint: SocketAddr,
    /// The node that relays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<PublicKey>,
    /// The measured round trip in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
    /// The largest packet that the path carries, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// What eBPF counted for one peer: inner packets, without WireGuard's own overhead and keepalives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Seconds since the last packet from the peer; `None` if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rx_s: Option<u64>,
    /// Seconds since the last packet to the peer; `None` if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_tx_s: Option<u64>,
}

/// A session with another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The node at the other end.
    pub public_key: PublicKey,
    /// The other end of the stream.
    pub remote: SocketAddr,
    /// Whether this node opened it.
    pub dialed: bool,
    /// For how many seconds it has lasted.
    pub age_s: u64,
    /// How long the last question took to be answered, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
}

/// An address that is dialed for a session (P-2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// Where.
    pub address: SocketAddr,
    /// What the operator calls it: each `HOST[:PORT]`, and behind it the address in parentheses where the host has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The node that answered there, or that must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<PublicKey>,
    /// Whether there is a session with that node, whoever opened it.
    pub connected: bool,
    /// Seconds since the last attempt began; `None` if there was none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_s: Option<u64>,
    /// How long it took until a node had proved itself there or until it failed, in milliseconds; `None` while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Attempts in a row that led to no session that lasted.
    pub failures: u32,
    /// What went wrong last; `None` once a session came about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Dial {
    /// Whether it is of a host that the operator has named so.
    pub fn is_called(&self, name: &str) -> bool {
        let mut rests = self.names.iter().filter_map(|own| own.strip_prefix(name));
        rests.any(|rest| rest.is_empty() || rest.starts_with(" ("))
    }
}

/// A node that is not talked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutOut {
    /// The node.
    pub public_key: PublicKey,
    /// For how many more seconds; `None` where the operator removed it, until `wgmesh peer add` takes that back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
}

/// Something that finds peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name, as in `discovery.enabled_methods`.
    pub name: String,
    /// Whether it works.
    pub state: SourceState,
    /// Seconds since it last did its work; `None` if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ok_s: Option<u64>,
    /// What went wrong last, while it does not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// More of Mainline DHT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dht: Option<DhtStatus>,
}

/// How this node does in Mainline DHT; when it last read there is the source's `last_ok_s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtStatus {
    /// How many nodes of the DHT answered when that was last asked.
    pub nodes: usize,
    /// Seconds since this node last stored a notice of itself there; `None` if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_stored_s: Option<u64>,
}

/// Whether a source works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// It has not finished its first attempt.
    Starting,
    /// It works.
    Running,
    /// It failed and tries again by itself.
    Failing,
}

/// The eBPF programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ebpf {
    /// Whether the programs are attached and count.
    pub active: bool,
    /// How they are attached: `tcx` or `clsact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<String>,
    /// Why they are not attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many flows are relayed for others in the kernel, two for each pair.
    #[serde(default)]
    pub relayed_flows: usize,
    /// The packets that were sent on so, also of flows that have ended since the start.
    #[serde(default)]
    pub relayed_packets: u64,
    /// Their bytes, with IP headers.
    #[serde(default)]
    pub relayed_bytes: u64,
    /// Packets of theirs that were dropped because a limit was reached.
    #[serde(default)]
    pub relayed_limited: u64,
}

/// What a node passes on for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Whether it tells others that it is a relay.
    pub serving: bool,
    /// The pairs of nodes that have ports here.
    pub pairs: usize,
    /// The most of them.
    pub max_pairs: usize,
    /// The pairs of nodes between which it routes packets, and can read them.
    #[serde(default)]
    pub routed_pairs: usize,
    /// What was passed on.
    #[serde(flatten)]
    pub traffic: RelayTraffic,
}

/// What a relay has passed on since its daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayTraffic {
    /// Packets passed on.
    pub packets: u64,
    /// Their bytes, without IP and UDP.
    pub bytes: u64,
    /// Packets that came from no bound end.
    pub refused: u64,
    /// Packets that could not be sent on at once.
    pub lost: u64,
    /// Packets that were dropped because a limit was reached.
    #[serde(default)]
    pub limited: u64,
}

/// What the slow watch over tunnels has seen since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Tunnels that went stale: no handshake for 150 s, nothing heard, a probe lost.
    pub stale: u64,
    /// Probes through tunnels in doubt that were answered.
    pub probes_answered: u64,
    /// Probes that were not.
    pub probes_lost: u64,
    /// Peers that were left out for half a minute because they answered no probe.
    pub offline: u64,
    /// Peers that were given up until they give a sign of life.
    pub evicted: u64,
}

impl From<Counts> for Health {
    fn from(counts: Counts) -> Self {
        let Counts { stale, probes_answered, probes_lost, offline, evicted } = counts;
        Self { stale, probes_answered, probes_lost, offline, evicted }
    }
}

/// What the kernel was made to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// Whether the last reading showed everything as it should be.
    pub converged: bool,
    /// How often the interface was read; at rest that is each five seconds.
    pub readings: u64,
    /// How many changes were written to the kernel. It stands still on a converged node.
    pub writes: u64,
    /// Links whose IPv4 forwarding is on because of the mesh, and goes off with it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forwarding: BTreeSet<String>,
    /// What the kernel refused last, until it takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
