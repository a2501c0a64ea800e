//! Reading a packet from its network header on, wherever the link's own header ends.
//!
//! `bpf_skb_load_bytes_relative` finds the network header by itself, so the same program serves Ethernet, tunnels
//! and other links without a link-layer header.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::programs::TcContext;

/// `ETH_P_IP` as `__sk_buff::protocol` holds it, in network byte order.
pub(crate) const IPV4: u32 = 0x0800_u16.to_be() as u32;
/// `ETH_P_IPV6`, likewise.
pub(crate) const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// The protocol number of TCP in an IP header.
pub(crate) const TCP: u8 = 6;
/// The protocol number of UDP.
pub(crate) const UDP: u8 = 17;

/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_HEADER: u32 = 20;
/// Bytes of an IPv6 header.
pub(crate) const IPV6_HEADER: u32 = 40;
/// Bytes of a UDP header.
pub(crate) const UDP_HEADER: u32 = 8;

/// An IPv6 address, or an IPv4 one mapped into IPv6 (RFC 4291 §2.5.5.2), in words as on the wire. As a key of a map it
/// is the same as 16 bytes, at a quarter of the instructions.
pub(crate) type Address = [u32; 4];

/// What stands before a mapped IPv4 address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Reads `N` words at `offset` from the network header on; `None` where the packet is shorter.
#[inline(always)]
pub(crate) fn read_words<const N: usize>(context: &TcContext, offset: u32) -> Option<[u32; N]> {
    load(context, offset)
}

/// Reads `N` bytes at `offset` from the network header on; `None` where the packet is shorter.
#[inline(always)]
pub(crate) fn read<const N: usize>(context: &TcContext, offset: u32) -> Option<[u8; N]> {
    load(context, offset)
}

/// Reads an array of bytes or words.
#[inline(always)]
fn load<T: Copy>(context: &TcContext, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the buffer has the length that is passed, and the helper fills it whole or fails.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            context.skb.skb.cast(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET,
        )
    };
    // SAFETY: the helper succeeded, so it wrote all of an array of integers.
    (result == 0).then(|| unsafe { value.assume_init() })
}

/// Returns the length of the IPv4 header that starts with this byte.
#[inline(always)]
pub(crate) fn ipv4_header_length(first: u8) -> u32 {
    u32::from(first & 0x0f) * 4
}

/// Returns the IPv4-mapped IPv6 address.
#[inline(always)]
pub(crate) fn mapped(address: u32) -> Address {
    [0, 0, MAPPED, address]
}

/// Returns an address byte by byte.
#[inline(always)]
pub(crate) fn bytes(address: Address) -> [u8; 16] {
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = address.map(u32::to_ne_bytes);
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}
