//! Forgets a router's flows, and with them its mappings.

use std::io::{self, Read, Write};

use socket2::{Domain, Protocol, Socket, Type};

/// The protocol number of `NETLINK_NETFILTER` (linux/netlink.h).
const NETFILTER: i32 = 12;

/// A request with no more than a head: delete what fits the tuple, which is not given, so everything does
/// (`IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`, to be acknowledged).
const DELETE_ALL: [u8; 20] = [20, 0, 0, 0, 2, 1, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Forgets all flows of the calling thread's network namespace.
///
/// # Errors
/// The kernel's, where it refuses.
pub(super) fn flush() -> io::Result<()> {
    let domain = Domain::from(nix::libc::AF_NETLINK);
    let mut socket = Socket::new(domain, Type::DGRAM, Some(Protocol::from(NETFILTER)))?;
    socket.write_all(&DELETE_ALL)?;
    let mut answer = [0; 64];
    let length = socket.read(&mut answer)?;
    // After the answer's head of 16 bytes comes the error number, negative.
    let code = answer.get(16..20).filter(|_| length >= 20).ok_or(io::ErrorKind::UnexpectedEof)?;
    match i32::from_ne_bytes(code.try_into().expect("four bytes were taken")) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
