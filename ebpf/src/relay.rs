//! Relaying: packets of flows that the daemon named leave again with other addresses and ports, without waking it.
//!
//! The daemon says for each flow where it goes and through which interface; the kernel's own routing finds the gateway
//! and the neighbour there at every packet, so neither is ever stale and this host needs no forwarding switched on.
//!
//! Only what is surely right is sent on here: whole UDP packets for us, without options, tags or extension headers,
//! with a checksum and time to live, short enough for the way out, and with one of WireGuard's messages or a sealed
//! probe in them. Everything else passes, and the daemon's socket takes it: the messages with which a peer binds its
//! end, and whatever is odd. A packet that is already changed in part is dropped where the rest of the change fails, and
//! so is one beyond the limit of its flow or of all together.

use aya_ebpf::bindings::{
    BPF_F_MARK_MANGLED_0, BPF_F_NO_PREALLOC, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_redirect_neigh};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::TcContext;
use wgmesh_ebpf_common::{DATA, MAX_RELAYED, Meter, PROBE, RelayHop, RelayKey};

use crate::packet::{self, Address, IPV4, IPV4_HEADER, IPV6, IPV6_HEADER, UDP};

/// The flows.
#[map]
static RELAYED: HashMap<RelayKey, RelayHop> = HashMap::with_max_entries(MAX_RELAYED, BPF_F_NO_PREALLOC);

/// How much of all flows together passes.
#[map]
static RELAY_METER: Array<Meter> = Array::with_max_entries(1, 0);

/// Bytes of an Ethernet header: the program is put on no other kind of link.
const ETHERNET: usize = 14;

/// `PACKET_HOST`: the link layer says that the packet is for us.
const FOR_US: u32 = 0;

/// The first byte of an IPv4 header without options.
const PLAIN_IPV4: u8 = 0x45;

/// All of an IPv4 header's fragment field but "don't fragment".
const FRAGMENT: u16 = 0xbfff;

/// From here on an IPv4 header is changed: time to live, protocol, checksum, and both addresses.
const IPV4_CHANGED: usize = 8;
/// From here on an IPv6 header is: payload length, next header, hop limit, and both addresses.
const IPV6_CHANGED: usize = 4;

/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// Sends the packet on if it is of a relayed flow; `None` where it is to pass unchanged.
#[inline(always)]
pub(crate) fn forward(context: &TcContext) -> Option<i32> {
    // SAFETY: the context is the `__sk_buff` that the kernel handed us.
    let skb = unsafe { &*context.skb.skb };
    if skb.pkt_type != FOR_US || skb.vlan_present != 0 || skb.gso_segs > 1 {
        return None;
    }
    match skb.protocol {
        IPV4 => ipv4(context),
        IPV6 => ipv6(context),
        _ => None,
    }
}

#[inline(always)]
fn ipv4(context: &TcContext) -> Option<i32> {
    let [first, second, third, source, destination]: [u32; 5] = packet::read_words(context, 0)?;
    let ([version, ..], [_, _, f0, f1]) = (first.to_ne_bytes(), second.to_ne_bytes());
    let [life, protocol, c0, c1] = third.to_ne_bytes();
    let is_fragment = u16::from_be_bytes([f0, f1]) & FRAGMENT != 0;
    if version != PLAIN_IPV4 || protocol != UDP || is_fragment || life <= 1 {
        return None;
    }
    let flow = Flow::find(context, IPV4_HEADER, packet::mapped(source), packet::mapped(destination))?;
    if !flow.is_admitted() {
        return Some(TC_ACT_SHOT as i32);
    }
    let [.., new_source] = flow.hop.source;
    let [.., new_destination] = flow.hop.destination;

    let old = [u32::from_ne_bytes([life, protocol, 0, 0]), source, destination];
    let mut new = [u32::from_ne_bytes([life - 1, protocol, 0, 0]), new_source, new_destination];
    let sum = folded(difference(&old, &new, u32::from(!u16::from_ne_bytes([c0, c1]))));
    let [c0, c1] = (!sum).to_ne_bytes();
    new[0] = u32::from_ne_bytes([life - 1, protocol, c0, c1]);
    let addresses = difference(&[source, destination], &[new_source, new_destination], 0);
    // The new checksum makes up for the rest: the sum over the header stays what it was.
    context.store(ETHERNET + IPV4_CHANGED, &new, 0).ok()?;
    Some(flow.finish(context, addresses))
}

#[inline(always)]
fn ipv6(context: &TcContext) -> Option<i32> {
    let [second, s0, s1, s2, s3, d0, d1, d2, d3]: [u32; 9] =
        packet::read_words(context, IPV6_CHANGED as u32)?;
    let [l0, l1, next, life] = second.to_ne_bytes();
    if next != UDP || life <= 1 {
        return None;
    }
    let flow = Flow::find(context, IPV6_HEADER, [s0, s1, s2, s3], [d0, d1, d2, d3])?;
    if !flow.is_admitted() {
        return Some(TC_ACT_SHOT as i32);
    }
    let [n0, n1, n2, n3] = flow.hop.source;
    let [m0, m1, m2, m3] = flow.hop.destination;

    let old = [s0, s1, s2, s3, d0, d1, d2, d3];
    let addresses = difference(&old, &[n0, n1, n2, n3, m0, m1, m2, m3], 0);
    let second = u32::from_ne_bytes([l0, l1, next, life - 1]);
    let new = [second, n0, n1, n2, n3, m0, m1, m2, m3];
    context.store(ETHERNET + IPV6_CHANGED, &new, u64::from(BPF_F_RECOMPUTE_CSUM)).ok()?;
    Some(flow.finish(context, addresses))
}

/// A packet's flow, and what of its UDP header is needed to change it.
struct Flow {
    hop: RelayHop,
    counted: *mut RelayHop,
    /// Both ports as they are.
    ports: u32,
    /// Where UDP starts in the frame.
    udp: usize,
    length: u64,
    is_data: bool,
}

impl Flow {
    /// Looks the packet's flow up; `None` where it has none, or may not be sent on here.
    #[inline(always)]
    fn find(context: &TcContext, header: u32, source: Address, destination: Address) -> Option<Self> {
        let [ports, length_and_checksum, message]: [u32; 3] = packet::read_words(context, header)?;
        let [_, _, c0, c1] = length_and_checksum.to_ne_bytes();
        // Without a checksum one cannot tell a packet that has none from one whose checksum is yet to be made.
        let message = message.to_ne_bytes();
        if [c0, c1] == [0, 0] || !is_sealed(message) {
            return None;
        }
        let key = RelayKey { source, destination, ports };
        let counted = RELAYED.get_ptr_mut(key)?;
        let length = context.len().checked_sub(ETHERNET as u32)?;
        // SAFETY: an element of the map stays in place while the program runs, and the daemon never writes into one
        // but replaces it whole.
        let hop = unsafe { *counted };
        if length > hop.longest {
            return None;
        }
        let (udp, is_data) = (ETHERNET + header as usize, message[0] == DATA);
        Some(Self { hop, counted, ports, udp, length: length.into(), is_data })
    }

    /// Whether the limits let the packet pass. Takes note of it either way. Where two processors do so at the same moment
    /// one of two packets is not noted: the limit of all may be passed by a few in a hundred, cheaper than a lock for each.
    #[inline(always)]
    fn is_admitted(&self) -> bool {
        // SAFETY: the helper has no precondition.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        // SAFETY: as where the packets are counted.
        let hop = unsafe { &mut *self.counted };
        let is_admitted = hop.meter.admit(self.length, self.is_data, now)
            && RELAY_METER.get_ptr_mut(0).is_none_or(|all| {
                // SAFETY: the map's own memory; any two words in it are a meter.
                let all = unsafe { &mut *all };
                all.admit(self.length, self.is_data, now)
            });
        if !is_admitted {
            hop.limited = hop.limited.wrapping_add(1);
        }
        is_admitted
    }

    /// Changes ports and checksum of a packet whose addresses are changed already, counts it, and sends it on.
    #[inline(always)]
    fn finish(&self, context: &TcContext, addresses: u32) -> i32 {
        let (old, new) = (u64::from(self.ports), u64::from(self.hop.ports));
        let checksum = self.udp + UDP_CHECKSUM;
        let nonzero = u64::from(BPF_F_MARK_MANGLED_0);
        // Where the checksum is left to the interface that sends, it covers the addresses only so far.
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | nonzero;
        let changed = context
            .l4_csum_replace(checksum, 0, addresses.into(), pseudo)
            .and_then(|()| context.l4_csum_replace(checksum, old, new, size_of::<u32>() as u64 | nonzero))
            .and_then(|()| context.store(self.udp, &self.hop.ports, 0));
        if changed.is_err() {
            return TC_ACT_SHOT as i32;
        }
        // SAFETY: as where it was looked up. Packets of one flow come by one receive queue and so on one processor;
        // where a flow changes queues, one of two counts at the same moment is lost, cheaper than a lock for each.
        let hop = unsafe { &mut *self.counted };
        hop.packets = hop.packets.wrapping_add(1);
        hop.bytes = hop.bytes.wrapping_add(self.length);
        // SAFETY: without parameters the helper takes a null pointer and no length.
        unsafe { bpf_redirect_neigh(self.hop.interface, core::ptr::null_mut(), 0, 0) as i32 }
    }
}

/// Whether a message that starts so is one of WireGuard's (whitepaper §5.4) or a sealed probe.
#[inline(always)]
fn is_sealed([kind, second, third, fourth]: [u8; 4]) -> bool {
    [kind, second] == PROBE || (matches!(kind, 1..=4) && [second, third, fourth] == [0; 3])
}

/// Returns what the change of some words adds to a checksum that covers them, together with `sum` (RFC 1624).
#[inline(always)]
fn difference<const N: usize>(old: &[u32; N], new: &[u32; N], sum: u32) -> u32 {
    let length = size_of::<[u32; N]>() as u32;
    // SAFETY: both arrays have the length that is passed, and the helper only reads them.
    let sum = unsafe { bpf_csum_diff(old.as_ptr().cast_mut(), length, new.as_ptr().cast_mut(), length, sum) };
    sum as u32
}

/// Adds the two halves of a sum until it fits one.
#[inline(always)]
fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}
