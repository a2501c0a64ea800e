//! What a host has done, counted.

use wgmesh_core::mesh::{Recipient, Transmit, Via};

use super::Host;
use crate::network::HEADER_BYTES;

/// What a host has sent and done since its world began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The daemon's datagrams to groups.
    pub announces: u64,
    /// The daemon's datagrams to single nodes.
    pub hellos: u64,
    /// The daemon's datagrams from WireGuard's port.
    pub probes: u64,
    /// The bytes of all three, with IP and UDP headers.
    pub bytes: u64,
    /// The bytes of its sessions, with the headers of IP, TCP and TLS.
    pub session_bytes: u64,
    /// The daemon's datagrams inside the mesh.
    pub gossip: u64,
    /// Their bytes, with IP and UDP headers but without WireGuard's.
    pub gossip_bytes: u64,
    /// Packets that were passed on for others.
    pub relayed: u64,
    /// Datagrams that came while the daemon's socket was full.
    pub overflows: u64,
}

impl Totals {
    /// Counts a datagram that the daemon sends.
    pub const fn count(&mut self, transmit: &Transmit) {
        let counter = match (transmit.via, transmit.to) {
            (Via::WireGuard, _) => &mut self.probes,
            (Via::Link(_), Recipient::GroupV4 | Recipient::GroupV6) => &mut self.announces,
            (Via::Link(_), Recipient::Node(_)) => &mut self.hellos,
        };
        *counter += 1;
        self.bytes += HEADER_BYTES + transmit.bytes.len() as u64;
    }
}

impl Host {
    /// Whether the node asks to be called again at once, again and again: a busy loop.
    pub const fn spins(&self) -> bool {
        self.calls_at_once > 10
    }
}
