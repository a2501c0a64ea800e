//! Sockets of the tests' own process.

use std::io::ErrorKind;
use std::net::{ToSocketAddrs, UdpSocket};
use std::time::Duration;

use crate::poll::wait_for;

/// Longer than any program takes from `fork` to `execve`.
const PATIENCE: Duration = Duration::from_secs(20);

/// Binds a UDP socket in the calling thread's network namespace, as soon as its port is free: whatever another test starts
/// just now holds a copy of all sockets of this process, closed ones included, until `execve`.
///
/// # Panics
/// Where it can't be bound.
#[track_caller]
pub fn bind_udp(address: impl ToSocketAddrs) -> UdpSocket {
    wait_for(PATIENCE, || match UdpSocket::bind(&address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => None,
        bound => Some(bound.expect("the address is the host's")),
    })
}
