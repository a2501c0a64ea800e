//! Noticing WireGuard's handshake messages on the links below the mesh.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, RingBuf};
use aya_ebpf::programs::TcContext;
use wgmesh_ebpf_common::{HandshakeEvent, INITIATION, RECEIVED, RESPONSE, RING_BYTES};

use crate::packet::{self, IPV4, IPV4_HEADER, IPV6, IPV6_HEADER, UDP, UDP_HEADER};

/// WireGuard's own UDP port, which the daemon may change. Zero, which no packet has, means none yet.
#[map]
static LISTEN_PORT: Array<u32> = Array::with_max_entries(1, 0);

/// Whether the daemon waits for some peer's first session: only then it is woken for a handshake.
#[map]
static AWAITED: Array<u32> = Array::with_max_entries(1, 0);

/// Where the events go. A full ring loses the newest events, which is harmless: the reader looks at WireGuard's
/// own state, and one event is enough to make it look.
#[map]
static HANDSHAKES: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Bytes of a handshake initiation (whitepaper §5.4.2).
const INITIATION_LENGTH: u32 = 148;
/// Bytes of a handshake response (whitepaper §5.4.3).
const RESPONSE_LENGTH: u32 = 92;

/// The shortest packet that can hold a handshake message.
const SHORTEST: u32 = IPV4_HEADER + UDP_HEADER + RESPONSE_LENGTH;
/// The longest: with an Ethernet header, two VLAN tags and all of IPv4's options. Nearly every packet of a busy
/// link is shorter or longer and costs two comparisons.
const LONGEST: u32 = 14 + 8 + 60 + UDP_HEADER + INITIATION_LENGTH;

/// A UDP header and the first four bytes after it.
const UDP_AND_TYPE: usize = UDP_HEADER as usize + 4;

/// Reports the packet if it is a handshake message from or to WireGuard's port; `None` otherwise.
#[inline(always)]
pub(crate) fn note(context: &TcContext, direction: u8) -> Option<()> {
    let length = context.len();
    if !(SHORTEST..=LONGEST).contains(&length) {
        return None;
    }
    let received = direction == RECEIVED;
    let (address, udp_offset) = match context.skb.protocol() {
        IPV4 => ipv4(context, received)?,
        IPV6 => ipv6(context, received)?,
        _ => return None,
    };
    let udp: [u8; UDP_AND_TYPE] = packet::read(context, udp_offset)?;
    let source = u16::from_be_bytes([udp[0], udp[1]]);
    let destination = u16::from_be_bytes([udp[2], udp[3]]);
    let (ours, port) = if received { (destination, source) } else { (source, destination) };
    if *LISTEN_PORT.get(0)? != u32::from(ours) {
        return None;
    }
    let message = message(&udp)?;
    let event = HandshakeEvent {
        // SAFETY: the helper has no precondition.
        at: unsafe { bpf_ktime_get_boot_ns() },
        address,
        // SAFETY: the context is the `__sk_buff` that the kernel handed us.
        interface: unsafe { (*context.skb.skb).ifindex },
        port,
        message,
        direction,
    };
    let is_awaited = message == RESPONSE && *AWAITED.get(0)? != 0;
    let is_urgent = is_awaited || HANDSHAKES.query(BPF_RB_AVAIL_DATA.into()) > u64::from(RING_BYTES / 2);
    tell(&event, is_urgent)
}

/// Tells of an event. One that is not urgent is read with the next one that is, or when the daemon is awake anyway.
#[inline(always)]
pub(crate) fn tell(event: &HandshakeEvent, is_urgent: bool) -> Option<()> {
    // Left to itself the kernel wakes a reader only for the first event that was not read.
    let wake = if is_urgent { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    HANDSHAKES.output::<HandshakeEvent>(event, wake.into()).ok()
}

/// Returns the other end's address and where UDP starts, if this is an unfragmented UDP packet.
#[inline(always)]
fn ipv4(context: &TcContext, received: bool) -> Option<([u8; 16], u32)> {
    let header: [u8; IPV4_HEADER as usize] = packet::read(context, 0)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header[9] != UDP || fragment != 0 {
        return None;
    }
    let mut address = [0; 16];
    [address[10], address[11]] = [0xff; 2];
    address[12..].copy_from_slice(if received { &header[12..16] } else { &header[16..] });
    Some((address, packet::ipv4_header_length(header[0])))
}

/// The same for IPv6. WireGuard sends no extension headers.
#[inline(always)]
fn ipv6(context: &TcContext, received: bool) -> Option<([u8; 16], u32)> {
    let header: [u8; IPV6_HEADER as usize] = packet::read(context, 0)?;
    if header[6] != UDP {
        return None;
    }
    let mut address = [0; 16];
    address.copy_from_slice(if received { &header[8..24] } else { &header[24..40] });
    Some((address, IPV6_HEADER))
}

/// Returns the type of a handshake message: the type's byte, three reserved zeros, and the one length it has.
#[inline(always)]
fn message(udp: &[u8; UDP_AND_TYPE]) -> Option<u8> {
    let length = u32::from(u16::from_be_bytes([udp[4], udp[5]]));
    match (udp[8], udp[9], udp[10], udp[11], length) {
        (INITIATION, 0, 0, 0, l) if l == UDP_HEADER + INITIATION_LENGTH => Some(INITIATION),
        (RESPONSE, 0, 0, 0, l) if l == UDP_HEADER + RESPONSE_LENGTH => Some(RESPONSE),
        _ => None,
    }
}
