//! What the tables of the older iptables, which nf_tables does not show, do to forwarded packets.
//!
//! Only looked at where such a table is in use already: asking for one that is not would make it.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::libc;

use super::Hook;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, and the same of IPv6 (`linux/netfilter_ipv4/ip_tables.h`).
const GET_INFO: c_int = 64;
const GET_ENTRIES: c_int = 65;

/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;

/// Bytes of `struct ipt_getinfo`: the name, the valid hooks, an entry and an underflow for each of five hooks, the number
/// of entries, their size.
const INFO: usize = NAME + 4 + 5 * 4 + 5 * 4 + 4 + 4;

/// Where the underflows are in it: for each hook the rule that is the chain's policy.
const UNDERFLOWS: usize = NAME + 4 + 5 * 4;

/// Where the entries' size is in it.
const SIZE: usize = INFO - 4;

/// Bytes of `struct ipt_get_entries` before the entries, which are aligned to 8.
const HEADER: usize = NAME + 8;

/// Bytes of `struct xt_entry_target` before a standard target's verdict.
const TARGET: usize = 32;

/// The verdict `NF_DROP` as a standard target holds it.
const DROP: i32 = -1;

/// One family's iptables.
struct Family {
    /// Beneath the process itself: with `ProcSubset=pid` there is no other.
    names: &'static str,
    module: &'static str,
    level: c_int,
    /// Where an entry says at which of its bytes the target begins.
    target_offset: usize,
}

const IPV4: Family = Family {
    names: "/proc/self/net/ip_tables_names",
    module: "/sys/module/iptable_filter",
    level: libc::SOL_IP,
    target_offset: 88,
};

const IPV6: Family = Family {
    names: "/proc/self/net/ip6_tables_names",
    module: "/sys/module/ip6table_filter",
    level: libc::SOL_IPV6,
    target_offset: 140,
};

/// Whether the chain of the table `filter` at a hook drops what no rule of it knows.
///
/// # Errors
/// If there is such a table and it cannot be read.
pub(super) fn drops(ipv6: bool, hook: Hook) -> io::Result<bool> {
    let family = if ipv6 { IPV6 } else { IPV4 };
    if !is_in_use(&family) {
        return Ok(false);
    }
    let socket = UdpSocket::bind(if ipv6 { "[::1]:0" } else { "127.0.0.1:0" })?;
    let info = ask(socket.as_fd(), family.level, GET_INFO, request(INFO))?;
    let size = number(&info, SIZE)?;
    let mut entries = request(HEADER + size);
    entries[NAME..NAME + 4].copy_from_slice(&info[SIZE..]);
    let entries = ask(socket.as_fd(), family.level, GET_ENTRIES, entries)?;
    // `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
    let hook = match hook {
        Hook::Input => 1,
        Hook::Forward => 2,
    };
    let policy = entries.get(HEADER + number(&info, UNDERFLOWS + 4 * hook)?..).ok_or_else(malformed)?;
    let target = policy.get(family.target_offset..family.target_offset + 2).ok_or_else(malformed)?;
    let target = usize::from(u16::from_ne_bytes([target[0], target[1]]));
    let verdict = policy.get(target + TARGET..).and_then(|rest| rest.first_chunk()).ok_or_else(malformed)?;
    Ok(i32::from_ne_bytes(*verdict) == DROP)
}

/// Only root may read the list of tables; for others that the module is there is as good a sign as there is.
fn is_in_use(family: &Family) -> bool {
    match fs::read_to_string(family.names) {
        Ok(names) => names.lines().any(|name| name == "filter"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::exists(family.module).unwrap_or(false)
        }
        Err(_) => false,
    }
}

fn request(bytes: usize) -> Vec<u8> {
    let mut request = vec![0; bytes];
    request[..6].copy_from_slice(b"filter");
    request
}

fn ask(socket: BorrowedFd<'_>, level: c_int, option: c_int, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| malformed())?;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel writes at most `length` bytes into the buffer,
    // which has that many and lives as long as the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(buffer) }
}

fn number(bytes: &[u8], at: usize) -> io::Result<usize> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(malformed)?;
    usize::try_from(u32::from_ne_bytes(*four)).map_err(|_| malformed())
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the table makes no sense")
}
