//! A model of the Linux kernel as far as the daemon writes to it: one WireGuard link with its peers, addresses and
//! routes.
//!
//! It carries out the core's own [`Write`]s and is read as [`Observed`]. Like the rest of the core it has no clock:
//! call [`Kernel::handle_timeout`] at [`Kernel::poll_timeout`], and send what [`Kernel::poll_transmit`] returns.
//!
//! Invariant: an inner prefix belongs to at most one peer; giving it to one takes it from the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use ipnet::IpNet;
use wgmesh_core::kernel::{
    Device, Direction, HandshakeMessage, HandshakeSeen, Link, Observed, PeerWrite, Route, Write,
};
use wgmesh_core::key::{PublicKey, SecretKey};
use wgmesh_core::mesh::KernelTrouble;
use wgmesh_core::time::{Monotonic, Now};

use crate::random::Random;

mod routing;
pub mod wireguard;

pub use routing::Packet;
use wireguard::{Body, Context, Message, Peer};

/// A message that WireGuard wants sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From which port.
    pub port: u16,
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub message: Message,
}

/// One host's kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    link: Option<WireGuardLink>,
    links_made: u32,
    taken_ports: BTreeSet<u16>,
    random: Random,
    transmits: VecDeque<Transmit>,
    writes: u64,
    is_changed: bool,
    answered: Vec<HandshakeSeen>,
    routing: routing::Routing,
}

#[derive(Clone, Debug)]
struct WireGuardLink {
    index: u32,
    alias: Option<String>,
    up: bool,
    mtu: u32,
    private_key: Option<SecretKey>,
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: u32,
    peers: BTreeMap<PublicKey, Peer>,
    addresses: BTreeSet<IpNet>,
    routes: BTreeSet<Route>,
}

impl Kernel {
    /// Boots a kernel without any WireGuard link.
    pub fn new(random: Random) -> Self {
        Self {
            link: None,
            links_made: 0,
            taken_ports: BTreeSet::new(),
            random,
            transmits: VecDeque::new(),
            writes: 0,
            is_changed: false,
            answered: Vec::new(),
            routing: routing::Routing::default(),
        }
    }

    /// Lets another program have a UDP port.
    pub fn take_port(&mut self, port: u16) {
        self.taken_ports.insert(port);
    }

    /// Returns the kernel's state as one complete reading.
    pub fn observe(&self) -> Observed {
        let Some(link) = &self.link else { return Observed::default() };
        Observed {
            link: Link::WireGuard {
                index: link.index,
                alias: link.alias.clone(),
                up: link.up,
                mtu: link.mtu,
                ipv6: true,
            },
            device: Some(Device {
                public_key: link.public_key,
                listen_port: link.listen_port,
                fwmark: link.fwmark,
            }),
            peers: link.peers.iter().map(|(&key, peer)| (key, peer.observe())).collect(),
            addresses: link.addresses.clone(),
            routes: link.routes.clone(),
        }
    }

    /// Forgets all sessions, as WireGuard does before the machine sleeps (`wg_pm_notification`).
    pub fn forget_sessions(&mut self) {
        if let Some(link) = &mut self.link {
            link.peers.values_mut().for_each(Peer::reset);
        }
    }

    /// Returns one peer.
    pub fn peer(&self, key: PublicKey) -> Option<&Peer> {
        self.link.as_ref()?.peers.get(&key)
    }

    /// Goes through all peers in rising order of their keys.
    pub fn peers(&self) -> impl Iterator<Item = (PublicKey, &Peer)> {
        self.link.iter().flat_map(|link| link.peers.iter().map(|(&key, peer)| (key, peer)))
    }

    /// Returns the addresses of the link.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> {
        self.link.iter().flat_map(|link| link.addresses.iter().copied())
    }

    /// Returns the routes over the link.
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.link.iter().flat_map(|link| link.routes.iter().copied())
    }

    /// Returns the port that WireGuard listens on, while it does.
    pub fn open_port(&self) -> Option<u16> {
        self.link.as_ref().filter(|link| link.up).map(|link| link.listen_port)
    }

    /// Returns how many writes were carried out for the daemon since the boot.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Returns whether link, addresses or routes have changed since the last call. Linux tells of these; it never
    /// tells of a peer.
    pub const fn take_change(&mut self) -> bool {
        std::mem::replace(&mut self.is_changed, false)
    }

    /// Returns the answers to handshakes that went either way since the last call, as the daemon's eBPF program sees them.
    pub fn take_answered(&mut self) -> Vec<HandshakeSeen> {
        std::mem::take(&mut self.answered)
    }

    /// Returns the peers that packets go to and nothing comes back from, as the daemon's eBPF program tells it.
    pub fn take_unanswered(&mut self) -> Vec<PublicKey> {
        let peers = self.link.iter_mut().flat_map(|link| &mut link.peers);
        peers.filter_map(|(&key, peer)| peer.take_silence().then_some(key)).collect()
    }

    /// Carries out one write of the daemon.
    ///
    /// # Errors
    /// What Linux would refuse.
    pub fn apply(&mut self, write: &Write, now: Now) -> Result<(), KernelTrouble> {
        self.writes += 1;
        self.is_changed |=
            !matches!(write, Write::SetPeers(_) | Write::RemovePeers(_) | Write::SetDevice { .. });
        match write {
            Write::CreateLink { owner, mtu } => return self.create_link(owner.as_str(), *mtu),
            Write::DeleteLink => self.link = None,
            Write::SetPeers(peers) => peers.iter().for_each(|peer| self.set_peer(peer, now)),
            Write::SetDevice { private_key, listen_port, fwmark } => {
                return self.set_device(private_key.as_ref(), *listen_port, *fwmark);
            }
            Write::SetUp => return self.set_up(now),
            Write::MarkLink(owner) => self.existing()?.alias = Some(owner.as_str().to_owned()),
            Write::SetMtu(mtu) => self.existing()?.mtu = *mtu,
            Write::RemovePeers(keys) => self.existing()?.peers.retain(|key, _| !keys.contains(key)),
            Write::AddAddress(address) => drop(self.existing()?.addresses.insert(*address)),
            Write::RemoveAddress(address) => drop(self.existing()?.addresses.remove(address)),
            Write::AddRoute(route) => self.existing()?.add_route(*route)?,
            Write::RemoveRoute(route) => drop(self.existing()?.routes.remove(route)),
        }
        Ok(())
    }

    /// Takes in a WireGuard message.
    pub fn receive(&mut self, from: SocketAddr, message: &Message, now: Now) {
        let Some(link) = self.link.as_mut().filter(|link| link.up) else { return };
        if link.public_key != Some(message.to) {
            return;
        }
        let key = message.from;
        let is_answer = message.body.is_response();
        self.answered.extend(is_answer.then(|| answer(from, Direction::Received, now)));
        let packet = self.step(key, now, |peer, context| peer.receive(from, &message.body, context));
        self.take_packet(packet.flatten(), now);
    }

    /// Sends so many bytes of somebody's packets to a peer.
    pub fn send_data(&mut self, key: PublicKey, bytes: u64, now: Now) {
        let mtu = self.mtu_to(key);
        let mut left = bytes;
        while left > 0 {
            let packet = left.min(mtu);
            self.step(key, now, |peer, context| peer.send_data(packet, None, context));
            left -= packet;
        }
    }

    /// Returns the MTU of the routes to a peer, or else the link's.
    fn mtu_to(&self, key: PublicKey) -> u64 {
        let Some(link) = &self.link else { return u64::MAX };
        let peer = link.peers.get(&key);
        let leads_there =
            |route: &&Route| peer.is_some_and(|peer| peer.allowed_ips.contains(&route.destination));
        let routes = link.routes.iter().filter(leads_there).filter_map(|route| route.mtu);
        routes.min().unwrap_or(link.mtu).into()
    }

    /// Does what WireGuard's timers ask for.
    pub fn handle_timeout(&mut self, now: Now) {
        let Some(link) = self.link.as_ref().filter(|link| link.up) else { return };
        let is_due = |peer: &Peer| peer.poll_timeout().is_some_and(|at| at <= now.monotonic);
        let due: Vec<_> = link.peers.iter().filter(|(_, peer)| is_due(peer)).map(|(&key, _)| key).collect();
        for key in due {
            self.step(key, now, Peer::handle_timeout);
        }
    }

    /// Returns when [`Kernel::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let link = self.link.as_ref().filter(|link| link.up)?;
        link.peers.values().filter_map(Peer::poll_timeout).min()
    }

    /// Returns the next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Does what an operator does by mistake, by another program than the daemon.
    pub fn sabotage(&mut self, sabotage: &Sabotage) {
        let Some(link) = &mut self.link else { return };
        match sabotage {
            Sabotage::RemovePeer(key) => drop(link.peers.remove(key)),
            Sabotage::RemoveAddresses => link.addresses.clear(),
            Sabotage::RemoveRoutes => link.routes.clear(),
            Sabotage::SetDown => link.set_down(),
            Sabotage::DeleteLink => self.link = None,
        }
        self.is_changed |= !matches!(sabotage, Sabotage::RemovePeer(_));
    }

    fn existing(&mut self) -> Result<&mut WireGuardLink, KernelTrouble> {
        self.link.as_mut().ok_or_else(|| KernelTrouble::Other("no such device".to_owned()))
    }

    fn create_link(&mut self, alias: &str, mtu: u32) -> Result<(), KernelTrouble> {
        if self.link.is_some() {
            return Err(KernelTrouble::Other("file exists".to_owned()));
        }
        self.links_made += 1;
        self.link = Some(WireGuardLink {
            index: 100 + self.links_made,
            alias: Some(alias.to_owned()),
            up: false,
            mtu,
            private_key: None,
            public_key: None,
            listen_port: 0,
            fwmark: 0,
            peers: BTreeMap::new(),
            addresses: BTreeSet::new(),
            routes: BTreeSet::new(),
        });
        Ok(())
    }

    fn set_device(
        &mut self,
        private_key: Option<&SecretKey>,
        listen_port: Option<u16>,
        fwmark: Option<u32>,
    ) -> Result<(), KernelTrouble> {
        let is_taken = listen_port.is_some_and(|port| self.taken_ports.contains(&port));
        let link = self.existing()?;
        if link.up && is_taken {
            return Err(KernelTrouble::PortInUse);
        }
        link.listen_port = listen_port.unwrap_or(link.listen_port);
        link.fwmark = fwmark.unwrap_or(link.fwmark);
        if let Some(key) = private_key {
            link.private_key = Some(key.clone());
            link.public_key = Some(key.public());
            link.peers.remove(&key.public());
            link.peers.values_mut().for_each(Peer::reset);
        }
        Ok(())
    }

    fn set_up(&mut self, now: Now) -> Result<(), KernelTrouble> {
        let link = self.existing()?;
        if link.up {
            return Ok(());
        }
        let port = link.listen_port;
        if self.taken_ports.contains(&port) {
            return Err(KernelTrouble::PortInUse);
        }
        let link = self.existing()?;
        link.up = true;
        let kept: Vec<_> =
            link.peers.iter().filter(|(_, peer)| peer.keepalive > 0).map(|(&key, _)| key).collect();
        for key in kept {
            self.step(key, now, Peer::send_keepalive);
        }
        Ok(())
    }

    fn set_peer(&mut self, write: &PeerWrite, now: Now) {
        let Some(link) = &mut self.link else { return };
        let is_missing = !link.peers.contains_key(&write.key);
        if link.public_key == Some(write.key) || (is_missing && !write.create) {
            return;
        }
        if let Some(moved) = &write.allowed_ips {
            for (_, other) in link.peers.iter_mut().filter(|(key, _)| **key != write.key) {
                other.allowed_ips.retain(|prefix| !moved.contains(prefix));
            }
        }
        let up = link.up;
        let peer = link.peers.entry(write.key).or_default();
        if let Some(key) = &write.preshared_key {
            peer.preshared_key = Some(key.clone());
        }
        if let Some(allowed_ips) = &write.allowed_ips {
            peer.allowed_ips.extend(allowed_ips);
        }
        peer.endpoint = write.endpoint.or(peer.endpoint);
        let was_off = peer.keepalive == 0;
        peer.keepalive = write.keepalive.unwrap_or(peer.keepalive);
        if up && was_off && peer.keepalive > 0 {
            self.step(write.key, now, Peer::send_keepalive);
        }
    }

    /// Lets one peer's machine do a step, and sends what it wants sent.
    fn step<T>(
        &mut self,
        key: PublicKey,
        now: Now,
        step: impl FnOnce(&mut Peer, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let link = self.link.as_mut()?;
        let from = link.public_key?;
        let peer = link.peers.get_mut(&key)?;
        let mut outbox: Vec<(SocketAddr, Body)> = Vec::new();
        let outcome = step(peer, &mut Context { now, random: &mut self.random, outbox: &mut outbox });
        let port = link.listen_port;
        let answers = outbox.iter().filter(|(_, body)| body.is_response());
        self.answered.extend(answers.map(|(to, _)| answer(*to, Direction::Sent, now)));
        self.transmits.extend(outbox.into_iter().map(|(to, body)| Transmit {
            port,
            to,
            message: Message { from, to: key, body },
        }));
        Some(outcome)
    }
}

impl WireGuardLink {
    fn set_down(&mut self) {
        self.up = false;
        self.routes.clear();
        self.peers.values_mut().for_each(Peer::reset);
    }

    fn add_route(&mut self, route: Route) -> Result<(), KernelTrouble> {
        if !self.up {
            return Err(KernelTrouble::Other("network is down".to_owned()));
        }
        self.routes.retain(|other| (other.destination, other.metric) != (route.destination, route.metric));
        self.routes.insert(route);
        Ok(())
    }
}

/// What somebody else may do to our link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// `wg set … peer … remove`.
    RemovePeer(PublicKey),
    /// `ip address flush`.
    RemoveAddresses,
    /// `ip route flush`.
    RemoveRoutes,
    /// `ip link set … down`.
    SetDown,
    /// `ip link delete`.
    DeleteLink,
}

const fn answer(endpoint: SocketAddr, direction: Direction, now: Now) -> HandshakeSeen {
    HandshakeSeen { endpoint, message: HandshakeMessage::Response, direction, at: now.monotonic }
}

#[cfg(test)]
mod tests;
