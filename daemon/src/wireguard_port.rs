//! Raw sockets that send from, and listen on, the UDP port that the kernel's WireGuard owns.
//!
//! A NAT's mapping belongs to a port, so whatever finds, opens or keeps the mapping of WireGuard's port must leave from
//! that port. A raw socket may do so while WireGuard keeps it: sending writes the UDP header by hand, and a filter in
//! the kernel hands us what is not WireGuard's own. WireGuard gets those packets too, and drops them.
//!
//! # Invariants
//! - WireGuard's traffic never wakes us: the filter ends it in the kernel.
//! - Opening takes CAP_NET_RAW; an open socket needs nothing.
//! - A version of IP that the host lacks is left out.
//! - Nothing that is sent may be taken apart on the way ([`crate::fragment`]): what is too long is lost, and that is how the MTU
//!   of a path is measured.
//! - Receiving is cancel-safe: a datagram is either returned or still in the socket.

mod packet;

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, recvfrom, sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};
use wgmesh_core::seal::MAX_PROBE_BYTES;

use crate::fragment;
use crate::inbox::Inbox;

/// What waits until it is read: some two hundred of our datagrams, fewer than a flood would bring.
const RECEIVE_BUFFER_BYTES: usize = 256 * 1024;

/// One byte more than we take, so that a longer datagram is seen not to be whole.
const BUFFER_BYTES: usize = packet::MAX_IPV4_HEADER_BYTES + packet::UDP_HEADER_BYTES + MAX_PROBE_BYTES + 1;

/// A datagram as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// What was sent: at most [`MAX_PROBE_BYTES`].
    pub bytes: Vec<u8>,
}

/// The sockets of one WireGuard port.
#[derive(Debug)]
pub struct WireguardPort {
    port: u16,
    v4: Option<RawSocket>,
    v6: Option<RawSocket>,
}

#[derive(Debug)]
struct RawSocket {
    is_v4: bool,
    socket: Inbox,
}

impl WireguardPort {
    /// Opens the sockets for WireGuard's port. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If neither version of IP could be opened: mostly a lack of CAP_NET_RAW.
    pub fn open(port: u16) -> io::Result<Self> {
        match (RawSocket::open(true, port), RawSocket::open(false, port)) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(Self { port, v4: v4.ok(), v6: v6.ok() }),
        }
    }

    /// Returns the port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Follows WireGuard to another port. What still waits from the old one is skipped when it is read.
    ///
    /// # Errors
    /// If the kernel refused the filter; then the old port stays.
    pub fn set_port(&mut self, port: u16) -> io::Result<()> {
        for socket in self.v4.iter().chain(&self.v6) {
            socket.attach_filter(port)?;
        }
        self.port = port;
        Ok(())
    }

    /// Waits for the next datagram.
    ///
    /// # Errors
    /// What the kernel says of the socket.
    pub async fn receive(&self) -> io::Result<Received> {
        tokio::select! {
            received = receive_from(self.v4.as_ref(), self.port) => received,
            received = receive_from(self.v6.as_ref(), self.port) => received,
        }
    }

    /// Returns a datagram that waits already, or `None`.
    pub fn try_receive(&self) -> Option<io::Result<Received>> {
        self.v4.iter().chain(&self.v6).find_map(|socket| socket.try_receive(self.port))
    }

    /// Sends a datagram from WireGuard's port if the socket takes it at once. What cannot be sent is lost, as the
    /// network might lose it; whoever needs an answer repeats itself.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let Some(socket) = socket else { return };
        // The first error may be that of an earlier datagram, which a router has refused as too long meanwhile.
        let sent = socket.send(self.port, to, bytes).or_else(|_| socket.send(self.port, to, bytes));
        if let Err(error) = sent {
            tracing::debug!(%to, %error, "cannot send from WireGuard's port");
        }
    }
}

impl RawSocket {
    fn open(is_v4: bool, port: u16) -> io::Result<Self> {
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        fragment::allow(&socket, is_v4, false)?;
        let socket = Self { is_v4, socket: Inbox::new(socket)? };
        socket.attach_filter(port)?;
        Ok(socket)
    }

    fn attach_filter(&self, port: u16) -> io::Result<()> {
        self.socket.socket().attach_filter(&packet::filter(self.is_v4, port))
    }

    async fn receive(&self, port: u16) -> io::Result<Received> {
        loop {
            let received = self.socket.read(|socket| self.receive_now(socket, port)).await?;
            if let Some(received) = received {
                return Ok(received);
            }
        }
    }

    fn try_receive(&self, port: u16) -> Option<io::Result<Received>> {
        loop {
            match self.socket.try_read(|socket| self.receive_now(socket, port)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => return Some(Err(error)),
                Ok(Some(received)) => return Some(Ok(received)),
                Ok(None) => {}
            }
        }
    }

    /// Takes one packet from the socket, which is `None` where it makes no sense.
    fn receive_now(&self, socket: &Socket, port: u16) -> io::Result<Option<Received>> {
        let mut buffer = [0; BUFFER_BYTES];
        let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
        let from = from.as_ref().and_then(address);
        let datagram = packet::read_udp(self.is_v4, port, &buffer[..length]);
        let (Some(mut from), Some((from_port, bytes))) = (from, datagram) else { return Ok(None) };
        from.set_port(from_port);
        let is_sound = packet::is_sender(from.ip()) && bytes.len() <= MAX_PROBE_BYTES;
        Ok(is_sound.then(|| Received { from, bytes: bytes.to_vec() }))
    }

    fn send(&self, port: u16, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let from = SocketAddr::new(source_for(to)?, port);
        let packet = packet::write_udp(from, to, bytes).ok_or(io::ErrorKind::InvalidInput)?;
        match (from.ip(), to) {
            (IpAddr::V4(from), SocketAddr::V4(to)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
                self.send_with(&ControlMessage::Ipv4PacketInfo(&info), &to, &packet)
            }
            (IpAddr::V6(from), SocketAddr::V6(to)) => {
                let info = libc::in6_pktinfo {
                    ipi6_ifindex: 0,
                    ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                };
                // The kernel takes a raw socket's destination port for a protocol.
                let to = SocketAddrV6::new(*to.ip(), 0, to.flowinfo(), to.scope_id());
                self.send_with(&ControlMessage::Ipv6PacketInfo(&info), &SockaddrIn6::from(to), &packet)
            }
            _ => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    fn send_with<S: SockaddrLike>(
        &self,
        source: &ControlMessage<'_>,
        to: &S,
        packet: &[u8],
    ) -> io::Result<()> {
        let socket = self.socket.socket().as_raw_fd();
        sendmsg(socket, &[IoSlice::new(packet)], &[*source], MsgFlags::MSG_DONTWAIT, Some(to))?;
        Ok(())
    }
}

async fn receive_from(socket: Option<&RawSocket>, port: u16) -> io::Result<Received> {
    match socket {
        Some(socket) => socket.receive(port).await,
        None => std::future::pending().await,
    }
}

/// Returns the address that routing chooses for a destination. The checksum covers it, so it must be known before.
fn source_for(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), 0));
    v4.or_else(|| address.as_sockaddr_in6().map(|&v6| SocketAddr::V6(v6.into())))
}
