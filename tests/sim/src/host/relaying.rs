//! A host as a relay: what its daemon passes on for others.

use std::net::{IpAddr, SocketAddr};

use wgmesh_core::mesh::{BindReceived, Event};
use wgmesh_core::relay::RelayEnd;

use super::{Host, SOCKET_DATAGRAMS};

/// What a relay does with the packets of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relaying {
    /// It passes on all.
    Honest,
    /// It passes on none.
    Nothing,
    /// It passes on what nodes say to each other, and nothing of WireGuard's.
    Messages,
    /// It passes on what nodes say to each other and WireGuard's handshakes, and none of its packets.
    Handshakes,
    /// It passes on nothing of WireGuard's to one of the two, the one with the higher key; what goes to the other it passes on.
    Half,
    /// It passes on each packet a hundred times.
    Flood,
}

impl Host {
    /// Whether one of its daemon's relay ports is this.
    pub fn has_relay_port(&self, port: u16) -> bool {
        self.forwardings.iter().any(|pair| pair.ports.contains(&port))
    }

    /// Whether one of its relay ports is that of a pair's higher key.
    pub fn is_higher_port(&self, port: u16) -> bool {
        self.forwardings.iter().any(|pair| pair.ports[1] == port)
    }

    /// Puts what came through the mesh into the daemon's socket on WireGuard's port.
    pub(super) fn read_packets(&mut self) {
        while let Some(packet) = self.kernel.poll_packet() {
            if let Some(bytes) = &packet.datagram {
                self.receive(0, packet.from, packet.to.port(), bytes);
            }
        }
    }

    /// Puts a bind into the daemon's socket for one of its relay ports.
    pub fn receive_bind(&mut self, local: IpAddr, from: SocketAddr, port: u16, bytes: &[u8]) {
        let Some(process) = &mut self.process else { return };
        if process.inbox.len() < SOCKET_DATAGRAMS {
            process.inbox.push_back(Event::Bind(BindReceived { port, local, from, bytes: bytes.to_vec() }));
        }
    }

    /// Returns where to pass on what comes to a relay port from there: from which port, and to whom.
    pub fn relayed(&self, port: u16, from: SocketAddr) -> Option<(u16, SocketAddr)> {
        self.forwardings.iter().find_map(|pair| {
            let side = pair.ports.iter().position(|own| *own == port)?;
            let [lower, higher] = pair.bound()?;
            let (own, other): (RelayEnd, RelayEnd) =
                if side == 0 { (lower, higher) } else { (higher, lower) };
            (own.peer == from).then_some((pair.ports[1 - side], other.peer))
        })
    }
}
