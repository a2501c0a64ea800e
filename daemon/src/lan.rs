//! The sockets on which peers of common links are met: one bound to the mesh's multicast group, one to a port of
//! this node, for each IP version.
//!
//! The group's socket is bound to the group's address, so another mesh's announces on the same port never reach
//! us, and shares its port with whoever wants it. The node's socket sends everything and takes the answers; its
//! port is its own, so several meshes live on one host. A version of IP that the host lacks is left out.
//!
//! Receiving is cancel-safe: a datagram is either returned or still in the socket.

use std::collections::BTreeSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
    sendmsg, setsockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::kernel::Underlay;
use wgmesh_core::mesh::Recipient;
use wgmesh_core::seal::MAX_DATAGRAM_BYTES;

use crate::inbox::Inbox;

/// The UDP port of every mesh's multicast group (seed 000).
pub const GROUP_PORT: u16 = 51830;

/// How far above WireGuard's port the node's own port lies, if that is free: 51831 by default, so that a
/// firewall rule can name it.
const NODE_PORT_OFFSET: u16 = 11;

/// One byte more than we take, so that a longer datagram is seen to be too long.
const BUFFER_BYTES: usize = MAX_DATAGRAM_BYTES + 1;

/// A datagram as it came in.
#[derive(Debug)]
pub struct Received {
    /// The index of the link.
    pub interface: u32,
    /// Who sent it.
    pub from: SocketAddr,
    /// What was sent, cut off past the longest datagram that anyone of us sends.
    pub bytes: Vec<u8>,
}

/// The sockets of one mesh.
pub struct Lan {
    v4: Option<Pair>,
    v6: Option<Pair>,
}

/// Returns the port that hellos come to, if it is free; `None` with `listen_port = 0`, where it may be any.
pub const fn node_port(listen_port: u16) -> Option<u16> {
    match listen_port {
        0 => None,
        port => Some(port.saturating_add(NODE_PORT_OFFSET)),
    }
}

struct Pair {
    group: IpAddr,
    group_socket: Inbox,
    node_socket: Inbox,
    /// The links on which the group is joined.
    joined: BTreeSet<u32>,
}

impl Lan {
    /// Opens the sockets of the mesh's groups, one pair for each version of IP that the host has.
    ///
    /// # Errors
    /// The error of IPv4's if neither version's sockets could be opened.
    pub fn open(keys: &MeshKeys, listen_port: u16) -> io::Result<Self> {
        let node_port = node_port(listen_port).unwrap_or(0);
        let v4 = Pair::open(keys.multicast_v4().into(), node_port);
        let v6 = Pair::open(keys.multicast_v6().into(), node_port);
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(Self { v4: v4.ok(), v6: v6.ok() }),
        }
    }

    /// Joins the groups on new links, and on those where that has failed before, and leaves them on links that are gone.
    pub fn follow(&mut self, underlay: &[Underlay]) {
        let wanted: BTreeSet<u32> =
            underlay.iter().filter(|link| link.multicast).map(|link| link.index).collect();
        self.v4.iter_mut().chain(&mut self.v6).for_each(|pair| pair.follow(&wanted));
    }

    /// Waits for the next datagram.
    pub async fn receive(&self) -> io::Result<Received> {
        tokio::select! {
            received = receive_pair(self.v4.as_ref()) => received,
            received = receive_pair(self.v6.as_ref()) => received,
        }
    }

    /// Returns a datagram that waits already, or `None`.
    pub fn try_receive(&self) -> Option<io::Result<Received>> {
        let pairs = self.v4.iter().chain(&self.v6);
        let mut sockets = pairs.flat_map(|pair| [&pair.group_socket, &pair.node_socket]);
        sockets.find_map(|socket| match socket.try_read(receive_now) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            received => Some(received),
        })
    }

    /// Sends a datagram if the socket takes it at once. A full buffer or a link that is gone loses it, as the
    /// network might; whoever needs an answer repeats itself.
    pub fn send(&self, interface: u32, to: Recipient, bytes: &[u8]) {
        let pair = |v4: bool| if v4 { self.v4.as_ref() } else { self.v6.as_ref() };
        let (pair, to) = match to {
            Recipient::GroupV4 => (pair(true), None),
            Recipient::GroupV6 => (pair(false), None),
            Recipient::Node(address) => (pair(address.is_ipv4()), Some(address)),
        };
        let Some(pair) = pair else { return };
        let to = to.unwrap_or_else(|| SocketAddr::new(pair.group, GROUP_PORT));
        if let Err(error) = pair.send(interface, to, bytes) {
            tracing::debug!(%to, interface, %error, "cannot send on a link");
        }
    }
}

impl Pair {
    fn open(group: IpAddr, node_port: u16) -> io::Result<Self> {
        let group_socket = new_socket(group)?;
        group_socket.set_reuse_address(true)?;
        group_socket.bind(&SocketAddr::new(group, GROUP_PORT).into())?;
        let node_socket = new_socket(group)?;
        let any = match group {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        node_socket
            .bind(&SocketAddr::new(any, node_port).into())
            .or_else(|_| node_socket.bind(&SocketAddr::new(any, 0).into()))?;
        match group {
            IpAddr::V4(_) => node_socket.set_multicast_loop_v4(false)?,
            IpAddr::V6(_) => node_socket.set_multicast_loop_v6(false)?,
        }
        let (group_socket, node_socket) = (Inbox::new(group_socket)?, Inbox::new(node_socket)?);
        Ok(Self { group, group_socket, node_socket, joined: BTreeSet::new() })
    }

    /// Is a member on these links, as far as the kernel lets it: a socket may join 20 (`igmp_max_memberships`), so the old
    /// ones are left first.
    fn follow(&mut self, wanted: &BTreeSet<u32>) {
        for &index in self.joined.difference(wanted) {
            // A link that is gone has taken its memberships with it: that error is expected.
            self.leave(index).ok();
        }
        self.joined.retain(|index| wanted.contains(index));
        for &index in wanted {
            if self.joined.contains(&index) {
                continue;
            }
            match self.join(index) {
                Ok(()) => drop(self.joined.insert(index)),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    tracing::warn!(index, group = %self.group, "no more groups to join; raise net.ipv4.igmp_max_memberships");
                }
                Err(error) => {
                    tracing::debug!(index, group = %self.group, %error, "cannot join the group on a link");
                }
            }
        }
    }

    fn join(&self, index: u32) -> io::Result<()> {
        let socket = self.group_socket.socket();
        match self.group {
            IpAddr::V4(group) => socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index)),
            IpAddr::V6(group) => socket.join_multicast_v6(&group, index),
        }
    }

    fn leave(&self, index: u32) -> io::Result<()> {
        let socket = self.group_socket.socket();
        match self.group {
            IpAddr::V4(group) => socket.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index)),
            IpAddr::V6(group) => socket.leave_multicast_v6(&group, index),
        }
    }

    async fn receive(&self) -> io::Result<Received> {
        tokio::select! {
            received = self.group_socket.read(receive_now) => received,
            received = self.node_socket.read(receive_now) => received,
        }
    }

    fn send(&self, interface: u32, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        match to {
            SocketAddr::V4(to) => send_v4(self.node_socket.socket(), interface, to, bytes),
            SocketAddr::V6(to) => send_v6(self.node_socket.socket(), interface, to, bytes),
        }
    }
}

fn new_socket(group: IpAddr) -> io::Result<Socket> {
    let domain = if group.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if group.is_ipv4() {
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
    } else {
        socket.set_only_v6(true)?;
        setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    }
    Ok(socket)
}

async fn receive_pair(pair: Option<&Pair>) -> io::Result<Received> {
    match pair {
        Some(pair) => pair.receive().await,
        None => std::future::pending().await,
    }
}

fn receive_now(socket: &Socket) -> io::Result<Received> {
    let mut buffer = [0; BUFFER_BYTES];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let interface = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_ifindex),
        _ => None,
    });
    let from = message.address.as_ref().and_then(socket_address);
    let length = message.bytes;
    let (Some(interface), Some(from)) = (interface, from) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a datagram without its link or sender"));
    };
    Ok(Received { interface, from, bytes: buffer[..length].to_vec() })
}

/// Returns the address of IP that the kernel has told.
pub(crate) fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|&v4| SocketAddr::V4(SocketAddrV4::from(v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|&v6| SocketAddr::V6(SocketAddrV6::from(v6))))
}

fn send_v4(socket: &Socket, interface: u32, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
    let index = i32::try_from(interface).map_err(io::Error::other)?;
    let info = libc::in_pktinfo {
        ipi_ifindex: index,
        ipi_spec_dst: libc::in_addr { s_addr: 0 },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    send_with(socket, &control, &SockaddrIn::from(to), bytes)
}

fn send_v6(socket: &Socket, interface: u32, to: SocketAddrV6, bytes: &[u8]) -> io::Result<()> {
    let info = libc::in6_pktinfo { ipi6_ifindex: interface, ipi6_addr: libc::in6_addr { s6_addr: [0; 16] } };
    let control = [ControlMessage::Ipv6PacketInfo(&info)];
    send_with(socket, &control, &SockaddrIn6::from(to), bytes)
}

fn send_with<S: nix::sys::socket::SockaddrLike>(
    socket: &Socket,
    control: &[ControlMessage<'_>],
    to: &S,
    bytes: &[u8],
) -> io::Result<()> {
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_DONTWAIT, Some(to))?;
    Ok(())
}
