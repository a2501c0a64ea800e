//! Counting what goes through the mesh interface, per peer and direction.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{HashMap, LpmTrie, PerCpuHashMap};
use aya_ebpf::programs::TcContext;
use wgmesh_ebpf_common::{Counters, MAX_PREFIXES, PeerKey, RECEIVED};

use crate::packet::{self, Address, IPV4, IPV4_HEADER, IPV6, IPV6_HEADER, TCP, UDP, UDP_HEADER};
use crate::silence;

/// The counters of each single address that the daemon gave to a peer; IPv4 addresses are mapped into IPv6. One
/// lookup finds them for nearly every packet, at a cost that does not grow with the mesh. Not preallocated: a mesh of
/// ten pays for ten.
#[map]
static TRAFFIC: PerCpuHashMap<Address, Counters> =
    PerCpuHashMap::with_max_entries(MAX_PREFIXES, BPF_F_NO_PREALLOC);

/// Whose address it is. Only the daemon reads this, to know after a restart what it finds in [`TRAFFIC`].
#[map]
static OWNERS: HashMap<Address, PeerKey> = HashMap::with_max_entries(MAX_PREFIXES, BPF_F_NO_PREALLOC);

/// Under which address the packets of an IPv4 network behind a peer are counted.
#[map]
static NETWORKS_V4: LpmTrie<u32, Address> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

/// The same for IPv6.
#[map]
static NETWORKS_V6: LpmTrie<Address, Address> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

/// Where the addresses stand in the two headers.
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;

/// Adds the packet to its peer's counters; `None` where no peer owns the address, or nothing else is to be done.
#[inline(always)]
pub(crate) fn count(context: &TcContext, direction: u8) -> Option<()> {
    let received = direction == RECEIVED;
    let (account, counters) = match context.skb.protocol() {
        IPV4 => {
            let offset = if received { IPV4_SOURCE } else { IPV4_DESTINATION };
            let [address] = packet::read_words(context, offset)?;
            account(packet::mapped(address), || NETWORKS_V4.get(Key::new(32, address)))?
        }
        IPV6 => {
            let offset = if received { IPV6_SOURCE } else { IPV6_DESTINATION };
            let address: Address = packet::read_words(context, offset)?;
            account(address, || NETWORKS_V6.get(Key::new(128, address)))?
        }
        _ => return None,
    };
    // SAFETY: this CPU's own copy, and tc runs a direction's programs with bottom halves off: no other writer.
    let counters = unsafe { &mut *counters };
    let flow = if received { &mut counters.received } else { &mut counters.sent };
    let (bytes, packets) = size(context);
    flow.bytes = flow.bytes.wrapping_add(bytes);
    flow.packets = flow.packets.wrapping_add(packets);
    // SAFETY: the helper takes nothing and returns a number.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    flow.last_seen = now;
    silence::note(&account, counters, direction, now)
}

/// Returns under which address a packet of this one is counted, and the counters.
#[inline(always)]
fn account<'a>(
    address: Address,
    network: impl FnOnce() -> Option<&'a Address>,
) -> Option<(Address, *mut Counters)> {
    match TRAFFIC.get_ptr_mut(address) {
        Some(counters) => Some((address, counters)),
        None => {
            let account = *network()?;
            Some((account, TRAFFIC.get_ptr_mut(account)?))
        }
    }
}

/// Returns bytes and packets as they were, or will be, on the wire: an aggregate (GSO, GRO) carries the headers
/// once and stands for several packets.
#[inline(always)]
fn size(context: &TcContext) -> (u64, u64) {
    let bytes = u64::from(context.len());
    // SAFETY: the context is the `__sk_buff` that the kernel handed us.
    let segments = u64::from(unsafe { (*context.skb.skb).gso_segs });
    if segments <= 1 {
        return (bytes, 1);
    }
    let headers = header_length(context).unwrap_or(0);
    (bytes + (segments - 1) * u64::from(headers), segments)
}

/// Returns the length of the IP and transport headers that each packet of an aggregate has.
#[inline(always)]
fn header_length(context: &TcContext) -> Option<u32> {
    let (network, transport) = match context.skb.protocol() {
        IPV4 => {
            let header: [u8; IPV4_HEADER as usize] = packet::read(context, 0)?;
            (packet::ipv4_header_length(header[0]), header[9])
        }
        IPV6 => {
            let header: [u8; IPV6_HEADER as usize] = packet::read(context, 0)?;
            (IPV6_HEADER, header[6])
        }
        _ => return None,
    };
    match transport {
        TCP => {
            let [data_offset] = packet::read(context, network + 12)?;
            Some(network + u32::from(data_offset >> 4) * 4)
        }
        UDP => Some(network + UDP_HEADER),
        _ => None,
    }
}
