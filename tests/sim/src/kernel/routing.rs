//! Packets inside the mesh: to which peer each goes, whether what comes is for this host, and what it passes on.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::key::PublicKey;
use wgmesh_core::time::{Monotonic, Now};

use super::Kernel;

/// What a probe through the mesh carries, and its answer. The other host's kernel answers, whether or not a daemon runs
/// there: refused is answered, too.
const PROBE: &[u8] = b"ping\n";
const ANSWER: &[u8] = b"pong\n";

/// How long both are with the headers of IPv4 and TCP.
const PROBE_BYTES: u64 = 57;

/// A packet inside the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// A daemon's datagram; `None` for what users send.
    pub datagram: Option<Arc<[u8]>>,
}

/// What the kernel passes on, and what has come for this host.
#[derive(Clone, Debug, Default)]
pub(super) struct Routing {
    forwarding: Forwarding,
    /// Datagrams for the daemon.
    inbox: VecDeque<Packet>,
    /// How many packets of users have come from each address.
    heard: BTreeMap<IpAddr, u64>,
    /// When each address has answered a probe.
    answered: BTreeMap<IpAddr, Monotonic>,
}

impl Kernel {
    /// Returns the inner address that packets to another leave from.
    pub fn inner_source(&self, to: IpAddr) -> Option<IpAddr> {
        let own = self.addresses().find(|net| net.contains(&to))?;
        Some(own.addr())
    }

    /// Returns the peer to which packets to an inner address go.
    pub fn owner(&self, address: IpAddr) -> Option<PublicKey> {
        self.peers().find(|(_, peer)| peer.owns(address)).map(|(key, _)| key)
    }

    /// Passes on from now on what is wanted, and nothing else.
    pub fn set_forwarding(&mut self, forwarding: Forwarding) {
        self.routing.forwarding = forwarding;
    }

    /// Whether packets from one inner address to another are passed on.
    pub fn forwards(&self, from: IpAddr, to: IpAddr) -> bool {
        let mut ways = self.routing.forwarding.between.iter();
        ways.any(|(source, destination)| source.contains(&from) && destination.contains(&to))
    }

    /// Whether it passes on anything.
    pub fn is_router(&self) -> bool {
        !self.routing.forwarding.between.is_empty()
    }

    /// Whether packets from an inner address are passed on.
    pub fn forwards_from(&self, from: IpAddr) -> bool {
        self.routing.forwarding.between.iter().any(|(source, _)| source.contains(&from))
    }

    /// Returns how many packets of users have come from an inner address.
    pub fn heard_from(&self, address: IpAddr) -> u64 {
        self.routing.heard.get(&address).copied().unwrap_or_default()
    }

    /// Sends so many bytes to an inner address, in pieces that the route takes.
    pub fn send_to(&mut self, packet: &Packet, bytes: u64, now: Now) {
        let Some(key) = self.owner(packet.to.ip()) else { return };
        let mtu = self.mtu_to(key);
        let mut left = bytes;
        while left > 0 {
            let (piece, packet) = (left.min(mtu), packet.clone());
            self.step(key, now, |peer, context| peer.send_data(piece, Some(packet), context));
            left -= piece;
        }
    }

    /// Probes an inner address.
    pub fn probe(&mut self, to: SocketAddr, now: Now) {
        if let Some(from) = self.inner_source(to.ip()) {
            let packet = Packet { from: SocketAddr::new(from, 0), to, datagram: Some(PROBE.into()) };
            self.send_to(&packet, PROBE_BYTES, now);
        }
    }

    /// Returns when an inner address has answered a probe since the last call.
    pub fn take_probe_answer(&mut self, of: IpAddr) -> Option<Monotonic> {
        self.routing.answered.remove(&of)
    }

    /// Returns the next datagram for the daemon.
    pub fn poll_packet(&mut self) -> Option<Packet> {
        self.routing.inbox.pop_front()
    }

    /// Takes in a packet that a peer has sent: it is for this host, or passed on, or lost.
    pub(super) fn take_packet(&mut self, packet: Option<Packet>, now: Now) {
        let Some(packet) = packet else { return };
        let is_own = self.addresses().any(|net| net.addr() == packet.to.ip());
        match &packet.datagram {
            Some(bytes) if is_own && **bytes == *PROBE => {
                let answer = Packet { from: packet.to, to: packet.from, datagram: Some(ANSWER.into()) };
                self.send_to(&answer, PROBE_BYTES, now);
            }
            Some(bytes) if is_own && **bytes == *ANSWER => {
                self.routing.answered.insert(packet.from.ip(), now.monotonic);
            }
            Some(_) if is_own => self.routing.inbox.push_back(packet),
            None if is_own => *self.routing.heard.entry(packet.from.ip()).or_default() += 1,
            datagram if self.forwards(packet.from.ip(), packet.to.ip()) => {
                let bytes = datagram.as_ref().map_or(84, |bytes| bytes.len() as u64);
                self.send_to(&packet, bytes, now);
            }
            Some(_) | None => {}
        }
    }
}
