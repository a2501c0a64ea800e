//! The sockets of gossip: UDP on this node's mesh addresses, and on the mesh link only.
//!
//! They are bound to the addresses and to the link (`SO_BINDTODEVICE`), so that nothing from the underlay reaches them,
//! whatever address it is sent to. They follow the link and the addresses as readings of the kernel show them; until
//! both are there, and where another program has the port, there is no gossip, and [`Gossip::trouble`] says why.
//!
//! Receiving is cancel-safe: a datagram is either returned or still in the socket.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use ipnet::IpNet;
use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use wgmesh_core::gossip::MAX_GOSSIP_BYTES;
use wgmesh_core::kernel::InterfaceName;

use crate::inbox::Inbox;
use crate::lan::socket_address;

/// One byte more than we take, so that a longer datagram is seen to be too long.
const BUFFER_BYTES: usize = MAX_GOSSIP_BYTES + 1;

/// A datagram as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// What was sent, cut off past the longest datagram that anyone of us sends.
    pub bytes: Vec<u8>,
}

/// The gossip sockets of one mesh.
#[derive(Debug)]
pub struct Gossip {
    interface: InterfaceName,
    port: u16,
    /// The link and addresses that the sockets were opened for.
    place: Option<(u32, BTreeSet<IpAddr>)>,
    sockets: Vec<(IpAddr, Inbox)>,
    trouble: Option<String>,
}

impl Gossip {
    /// Makes it for a link; nothing is open yet.
    pub const fn new(interface: InterfaceName, port: u16) -> Self {
        Self { interface, port, place: None, sockets: Vec::new(), trouble: None }
    }

    /// Follows the link and its addresses as the kernel has them. Must be called within a tokio runtime.
    pub fn follow(&mut self, index: u32, addresses: &BTreeSet<IpNet>) {
        let place = Some((index, addresses.iter().map(IpNet::addr).collect::<BTreeSet<_>>()));
        if self.place == place && self.trouble.is_none() {
            return;
        }
        self.sockets.clear();
        let before = self.trouble.take();
        for &address in place.iter().flat_map(|(_, addresses)| addresses) {
            match self.open(address) {
                Ok(socket) => self.sockets.push((address, socket)),
                Err(error) => {
                    let trouble =
                        format!("cannot listen on {}: {error}", SocketAddr::new(address, self.port));
                    if before.as_ref() != Some(&trouble) {
                        tracing::warn!(%trouble, "no gossip there");
                    }
                    self.trouble = Some(trouble);
                }
            }
        }
        self.place = place;
    }

    /// Waits for the next datagram.
    pub async fn receive(&self) -> io::Result<Received> {
        let mut sockets = self.sockets.iter();
        match (sockets.next(), sockets.next()) {
            (Some((_, one)), Some((_, other))) => tokio::select! {
                received = one.read(receive_now) => received,
                received = other.read(receive_now) => received,
            },
            (Some((_, only)), None) => only.read(receive_now).await,
            (None, _) => std::future::pending().await,
        }
    }

    /// Returns a datagram that waits already, or `None`.
    pub fn try_receive(&self) -> Option<io::Result<Received>> {
        self.sockets.iter().find_map(|(_, socket)| match socket.try_read(receive_now) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            received => Some(received),
        })
    }

    /// Sends a datagram if the socket takes it at once; otherwise it is lost, as the network might lose it.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        let socket = self.sockets.iter().find(|(address, _)| address.is_ipv4() == to.is_ipv4());
        let Some((_, socket)) = socket else { return };
        if let Err(error) = socket.socket().send_to(bytes, &SockAddr::from(to)) {
            tracing::debug!(%to, %error, "cannot send gossip");
        }
    }

    /// Returns why some or all of it does not work, in words.
    pub const fn trouble(&self) -> Option<&String> {
        self.trouble.as_ref()
    }

    fn open(&self, address: IpAddr) -> io::Result<Inbox> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind_device(Some(self.interface.as_str().as_bytes()))?;
        socket.bind(&SocketAddr::new(address, self.port).into())?;
        Inbox::new(socket)
    }
}

fn receive_now(socket: &Socket) -> io::Result<Received> {
    let mut buffer = [0; BUFFER_BYTES];
    let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
    let from = from.as_ref().and_then(socket_address);
    let from =
        from.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a datagram without its sender"))?;
    Ok(Received { from, bytes: buffer[..length].to_vec() })
}
