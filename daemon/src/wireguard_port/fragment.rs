//! Keeps what a socket sends in one piece: by this host and by every router on the way (RFC 8899 §4.2).
//!
//! The kernel's "probe" mode also leaves aside what the host believes of the path: anybody can forge the ICMP message
//! that it learned that from, and what we send is there to find out.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6DontFrag;
use socket2::Socket;

/// Forbids that packets of a raw socket are taken apart.
///
/// # Errors
/// What the kernel says, which it has no reason to.
pub(super) fn forbid(socket: &Socket, is_v4: bool) -> io::Result<()> {
    let (level, option, mode) = match is_v4 {
        true => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        false => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    let length = libc::socklen_t::try_from(size_of_val(&mode)).expect("an integer has few bytes");
    // SAFETY: both options take an integer, which lives through the call, and the length is its own.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const mode).cast(), length) };
    Errno::result(result)?;
    if !is_v4 {
        setsockopt(socket, Ipv6DontFrag, &true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// Loopback takes 64 KiB, so only the option itself can be looked at: the lab shows what it does.
    #[test]
    fn both_versions_of_ip_take_the_options() {
        for (address, is_v4) in [("127.0.0.1:0", true), ("[::1]:0", false)] {
            let Ok(socket) = UdpSocket::bind(address) else { continue };
            forbid(&socket.into(), is_v4).unwrap();
        }
    }
}
