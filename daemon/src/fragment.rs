//! Whether what a socket sends may be taken apart, by this host and by every router on the way (RFC 8899 §4.2).
//!
//! The kernel's "probe" mode, which forbids it, also leaves aside what the host believes of the path: anybody can forge the ICMP message
//! that it learned that from, and what we send is there to find out.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6DontFrag;

/// Forbids or allows that packets of a socket over this version of IP are taken apart. An IPv6 socket that takes IPv4 too has
/// both options.
///
/// # Errors
/// What the kernel says, which it has no reason to.
pub(crate) fn allow(socket: &impl AsFd, is_v4: bool, is_allowed: bool) -> io::Result<()> {
    let (level, option, mode) = match (is_v4, is_allowed) {
        (true, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (true, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (false, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        (false, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
    };
    let length = libc::socklen_t::try_from(size_of_val(&mode)).expect("an integer has few bytes");
    // SAFETY: both options take an integer, which lives through the call, and the length is its own.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const mode).cast(), length)
    };
    Errno::result(result)?;
    if !is_v4 {
        setsockopt(socket, Ipv6DontFrag, &!is_allowed)?;
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
            allow(&socket, is_v4, false).unwrap();
            allow(&socket, is_v4, true).unwrap();
        }
    }
}
