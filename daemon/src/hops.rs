//! The routers between this host and the internet, by their own words: what a router says of a packet whose time to live ends
//! with it (RFC 792 type 11, RFC 1812 §5.3.1). Sockets get that in their error queue (`IP_RECVERR`, ip(7)), so it takes no
//! privilege.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use tokio::time::{Instant, sleep_until};

/// As far as a provider's NAT can be: the home's routers, the provider's, and one more.
const HOPS: u32 = 5;

/// How long routers may take; some send few errors a second.
const PATIENCE: Duration = Duration::from_secs(1);

/// `ICMP_TIME_EXCEEDED` of `linux/icmp.h`.
const TIME_EXCEEDED: u8 = 11;

/// Packets on their way, one to each of the first routers.
pub struct Hops {
    sockets: Vec<UdpSocket>,
    until: Instant,
}

impl Hops {
    /// Sends an empty datagram as far as each of the first routers towards `target`.
    ///
    /// # Errors
    /// Where there is no way there, or no socket to be had.
    pub fn send(target: SocketAddrV4) -> io::Result<Self> {
        let sockets = (1..=HOPS).map(|hops| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            socket.set_ttl(hops)?;
            socket.send_to(&[], target)?;
            Ok(socket)
        });
        Ok(Self { sockets: sockets.collect::<io::Result<_>>()?, until: Instant::now() + PATIENCE })
    }

    /// Waits until they had their time, and returns what each router called itself; `None` for one that said nothing. The
    /// last one did say something.
    pub async fn routers(self) -> Vec<Option<Ipv4Addr>> {
        sleep_until(self.until).await;
        let mut routers: Vec<_> = self.sockets.iter().map(who_dropped).collect();
        let known = routers.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        routers.truncate(known);
        routers
    }
}

/// Returns the router with which a socket's packet has ended.
fn who_dropped(socket: &UdpSocket) -> Option<Ipv4Addr> {
    let mut space = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    loop {
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let mut nothing = [0; 64];
        let mut buffer = [IoSliceMut::new(&mut nothing)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut buffer, Some(&mut space), flags) {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(_) => return None,
        };
        let offender = message.cmsgs().ok()?.find_map(|one| match one {
            ControlMessageOwned::Ipv4RecvErr(error, offender) => {
                let is_router = error.ee_origin == libc::SO_EE_ORIGIN_ICMP && error.ee_type == TIME_EXCEEDED;
                offender.filter(|_| is_router)
            }
            _ => None,
        });
        if let Some(offender) = offender {
            return Some(Ipv4Addr::from(u32::from_be(offender.sin_addr.s_addr)));
        }
    }
}
