//! One port of a relay, for both versions of IP.
//!
//! An IPv6 socket takes IPv4 too, by addresses that stand for it (RFC 3493 §3.7); on a host without IPv6 it is an IPv4
//! one.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage,
    recvmsg, sendmsg, setsockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use wgmesh_ebpf_common::PROBE;

use super::plain;
use crate::fragment;
use crate::inbox::Inbox;

/// What waits until it is passed on; the kernel gives less where `net.core.rmem_max` says so.
const BUFFER_BYTES: usize = 1024 * 1024;

/// A packet as it came in; its content is in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Who sent it.
    pub(super) from: SocketAddr,
    /// The address of this host that it was sent to.
    pub(super) local: IpAddr,
    /// How long it is, as far as it is there.
    pub(super) length: usize,
    /// Whether the buffer was too short for it.
    pub(super) is_cut: bool,
}

/// A port.
#[derive(Debug)]
pub(super) struct RelaySocket {
    is_v4: bool,
    inbox: Inbox,
    /// Whether what is sent may be taken apart on the way, as WireGuard's packets may: what measures paths must not.
    is_fragmented: AtomicBool,
}

impl RelaySocket {
    /// Opens it on every address of the host.
    pub(super) fn open(port: u16) -> io::Result<Self> {
        let is_v4 = matches!(
            Socket::new(Domain::IPV6, Type::DGRAM, None),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT)
        );
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
        socket.set_send_buffer_size(BUFFER_BYTES)?;
        let any = if is_v4 {
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            socket.set_only_v6(false)?;
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        socket.bind(&SocketAddr::new(any, port).into())?;
        let socket = Self { is_v4, inbox: Inbox::new(socket)?, is_fragmented: AtomicBool::new(true) };
        socket.allow_fragments(true)?;
        Ok(socket)
    }

    /// Waits until something has come in. Cancel-safe.
    pub(super) async fn receive(&self) -> io::Result<()> {
        let mut nothing = [0; 1];
        self.inbox
            .read(|socket| {
                let mut parts = [IoSliceMut::new(&mut nothing)];
                let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
                recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, flags)?;
                Ok(())
            })
            .await
    }

    /// Takes a packet that has come in, or returns `None`.
    pub(super) fn take(&self, buffer: &mut [u8]) -> Option<io::Result<Packet>> {
        match self.inbox.try_read(|socket| receive_now(socket, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            received => Some(received),
        }
    }

    /// Sends from an address of this host if the socket takes it at once.
    pub(super) fn send(&self, from: IpAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let is_fragmented = !bytes.starts_with(&PROBE);
        if self.is_fragmented.swap(is_fragmented, Ordering::Relaxed) != is_fragmented {
            self.allow_fragments(is_fragmented)?;
        }
        match (from, to) {
            (IpAddr::V4(from), SocketAddr::V4(to)) if self.is_v4 => self.send_v4(from, to, bytes),
            (IpAddr::V4(from), SocketAddr::V4(to)) => {
                let to = SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0);
                self.send_v6(from.to_ipv6_mapped(), to, bytes)
            }
            (IpAddr::V6(from), SocketAddr::V6(to)) => self.send_v6(from, to, bytes),
            _ => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    fn allow_fragments(&self, are_allowed: bool) -> io::Result<()> {
        let socket = self.inbox.socket();
        fragment::allow(socket, true, are_allowed)?;
        if self.is_v4 { Ok(()) } else { fragment::allow(socket, false, are_allowed) }
    }

    fn send_v4(&self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        self.send_with(&ControlMessage::Ipv4PacketInfo(&info), &SockaddrIn::from(to), bytes)
    }

    fn send_v6(&self, from: Ipv6Addr, to: SocketAddrV6, bytes: &[u8]) -> io::Result<()> {
        let addr = libc::in6_addr { s6_addr: from.octets() };
        let info = libc::in6_pktinfo { ipi6_ifindex: to.scope_id(), ipi6_addr: addr };
        self.send_with(&ControlMessage::Ipv6PacketInfo(&info), &SockaddrIn6::from(to), bytes)
    }

    fn send_with<S: SockaddrLike>(&self, from: &ControlMessage<'_>, to: &S, bytes: &[u8]) -> io::Result<()> {
        let socket = self.inbox.socket().as_raw_fd();
        sendmsg(socket, &[IoSlice::new(bytes)], &[*from], MsgFlags::MSG_DONTWAIT, Some(to))?;
        Ok(())
    }
}

fn receive_now(socket: &Socket, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical())
        }
        _ => None,
    });
    let from = message.address.as_ref().and_then(socket_address).map(plain);
    let (length, is_cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
    let (Some(local), Some(from)) = (local, from) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet without its sender or receiver"));
    };
    Ok(Packet { from, local, length, is_cut })
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|&v4| SocketAddr::V4(SocketAddrV4::from(v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|&v6| SocketAddr::V6(SocketAddrV6::from(v6))))
}
