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

/// Reads `N` bytes at `offset` from the network header on; `None` where the packet is shorter.
#[inline(always)]
pub(crate) fn read<const N: usize>(context: &TcContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: the buffer has the length that is passed, and the helper fills it whole or fails.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            context.skb.skb.cast(),
            offset,
            bytes.as_mut_ptr().cast(),
            N as u32,
            BPF_HDR_START_NET,
        )
    };
    // SAFETY: the helper succeeded, so it wrote all `N` bytes.
    (result == 0).then(|| unsafe { bytes.assume_init() })
}

/// Returns the length of the IPv4 header that starts with this byte.
#[inline(always)]
pub(crate) fn ipv4_header_length(first: u8) -> u32 {
    u32::from(first & 0x0f) * 4
}

/// Returns the IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2).
#[inline(always)]
pub(crate) fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
