//! The maps that say which address belongs to which peer, and that count.
//!
//! The counters are keyed by the peer's public key itself, so whatever an earlier run left in the pinned maps still
//! says whose it is. What the prefix maps hold is mirrored here, so that a sync without a change makes no call.
//! Bounds: [`MAX_PEERS`](wgmesh_ebpf_common::MAX_PEERS) peers and
//! [`MAX_PREFIXES`](wgmesh_ebpf_common::MAX_PREFIXES) prefixes of a family. What does not fit is not counted: who is
//! there stays, newcomers wait for a place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError, PerCpuHashMap};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use wgmesh_core::kernel::PeerTraffic;
use wgmesh_core::key::PublicKey;
use wgmesh_ebpf_common::{Counters, Flow, PeerKey};

use super::EbpfError;
use super::object::Loaded;

/// The tables of one mesh.
pub(super) struct Tables {
    v4: LpmTrie<MapData, [u8; 4], PeerKey>,
    v6: LpmTrie<MapData, [u8; 16], PeerKey>,
    traffic: PerCpuHashMap<MapData, PeerKey, Counters>,
    prefixes: BTreeMap<IpNet, PeerKey>,
    counted: BTreeSet<PeerKey>,
}

impl Tables {
    /// Takes the maps and reads what an earlier run left in them.
    pub(super) fn new(loaded: &mut Loaded) -> Result<Self, EbpfError> {
        let v4: LpmTrie<_, [u8; 4], PeerKey> = loaded.take_map("PREFIXES_V4")?;
        let v6: LpmTrie<_, [u8; 16], PeerKey> = loaded.take_map("PREFIXES_V6")?;
        let traffic: PerCpuHashMap<_, PeerKey, Counters> = loaded.take_map("TRAFFIC")?;
        let mut prefixes = BTreeMap::new();
        for entry in v4.iter() {
            let (key, peer) = entry?;
            let net = Ipv4Net::new(key.data().into(), key.prefix_len() as u8);
            prefixes.extend(net.ok().map(|net| (IpNet::V4(net), peer)));
        }
        for entry in v6.iter() {
            let (key, peer) = entry?;
            let net = Ipv6Net::new(key.data().into(), key.prefix_len() as u8);
            prefixes.extend(net.ok().map(|net| (IpNet::V6(net), peer)));
        }
        let counted = traffic.keys().collect::<Result<_, _>>()?;
        Ok(Self { v4, v6, traffic, prefixes, counted })
    }

    /// Makes the tables say what `peers` says; counters of peers that stay are kept, those of others removed.
    pub(super) fn sync(&mut self, peers: &BTreeMap<PublicKey, BTreeSet<IpNet>>) -> Result<(), EbpfError> {
        let wanted = owners(peers);
        let keys: BTreeSet<PeerKey> = peers.keys().map(peer_key).collect();
        // Those who leave go first, so that their places are free.
        let leaving: Vec<IpNet> =
            self.prefixes.keys().filter(|net| !wanted.contains_key(*net)).copied().collect();
        for net in leaving {
            self.remove_prefix(net)?;
        }
        for key in self.counted.difference(&keys).copied().collect::<Vec<_>>() {
            ignore(self.traffic.remove(&key), Errno::ENOENT)?;
            self.counted.remove(&key);
        }
        for key in keys.difference(&self.counted).copied().collect::<Vec<_>>() {
            if !fitted(self.traffic.insert(key, zeros()?, 0))? {
                tracing::debug!("no place for the counters of more peers");
                break;
            }
            self.counted.insert(key);
        }
        for (net, key) in wanted {
            if self.prefixes.get(&net) != Some(&key) && !self.insert_prefix(net, key)? {
                tracing::debug!("no place for the prefixes of more peers");
                break;
            }
        }
        Ok(())
    }

    /// Reads every peer's counters, summed over the processors.
    pub(super) fn traffic(&self) -> Result<BTreeMap<PublicKey, PeerTraffic>, EbpfError> {
        let now = boot_time();
        let mut all = BTreeMap::new();
        for key in &self.counted {
            let mut sum = Counters::default();
            for one in self.traffic.get(key, 0)?.iter() {
                add(&mut sum.received, one.received);
                add(&mut sum.sent, one.sent);
            }
            all.insert(PublicKey::from_bytes(key.0), peer_traffic(&sum, now));
        }
        Ok(all)
    }

    fn insert_prefix(&mut self, net: IpNet, peer: PeerKey) -> Result<bool, EbpfError> {
        let result = match net {
            IpNet::V4(net) => self.v4.insert(&v4_key(net), peer, 0),
            IpNet::V6(net) => self.v6.insert(&v6_key(net), peer, 0),
        };
        let inserted = fitted(result)?;
        if inserted {
            self.prefixes.insert(net, peer);
        }
        Ok(inserted)
    }

    fn remove_prefix(&mut self, net: IpNet) -> Result<(), EbpfError> {
        let result = match net {
            IpNet::V4(net) => self.v4.remove(&v4_key(net)),
            IpNet::V6(net) => self.v6.remove(&v6_key(net)),
        };
        ignore(result, Errno::ENOENT)?;
        self.prefixes.remove(&net);
        Ok(())
    }
}

/// Turns "peer → prefixes" round. Of two peers that want one prefix the later key has it, as good as any: the kernel's
/// cryptokey routing gives it to one of them only, and the plan never asks for it twice.
fn owners(peers: &BTreeMap<PublicKey, BTreeSet<IpNet>>) -> BTreeMap<IpNet, PeerKey> {
    let pairs = peers.iter().flat_map(|(key, nets)| nets.iter().map(|net| (net.trunc(), peer_key(key))));
    pairs.collect()
}

fn peer_key(key: &PublicKey) -> PeerKey {
    PeerKey(*key.as_bytes())
}

fn v4_key(net: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(net.prefix_len().into(), net.addr().octets())
}

fn v6_key(net: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(net.prefix_len().into(), net.addr().octets())
}

fn zeros() -> Result<aya::maps::PerCpuValues<Counters>, EbpfError> {
    let processors = aya::util::nr_cpus().map_err(|(_, source)| EbpfError::Processors(source))?;
    vec![Counters::default(); processors].try_into().map_err(EbpfError::Processors)
}

/// Tells whether an insert found a place (`E2BIG` from hash maps, `ENOSPC` from tries).
fn fitted(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Err(error) if [Some(Errno::E2BIG), Some(Errno::ENOSPC)].contains(&errno(&error)) => Ok(false),
        other => other.map(|()| true),
    }
}

fn ignore(result: Result<(), MapError>, ignored: Errno) -> Result<(), MapError> {
    match result {
        Err(error) if errno(&error) == Some(ignored) => Ok(()),
        other => other,
    }
}

fn errno(error: &MapError) -> Option<Errno> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error().map(Errno::from_raw),
        MapError::KeyNotFound => Some(Errno::ENOENT),
        _ => None,
    }
}

/// The clock that the programs stamp with: it runs on while the host sleeps.
fn boot_time() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

fn add(sum: &mut Flow, one: Flow) {
    sum.bytes = sum.bytes.wrapping_add(one.bytes);
    sum.packets = sum.packets.wrapping_add(one.packets);
    sum.last_seen = sum.last_seen.max(one.last_seen);
}

fn peer_traffic(sum: &Counters, now: Duration) -> PeerTraffic {
    let age = |at: u64| (at != 0).then(|| now.saturating_sub(Duration::from_nanos(at)));
    PeerTraffic {
        rx_bytes: sum.received.bytes,
        rx_packets: sum.received.packets,
        tx_bytes: sum.sent.bytes,
        tx_packets: sum.sent.packets,
        rx_age: age(sum.received.last_seen),
        tx_age: age(sum.sent.last_seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_summed_and_the_latest_packet_gives_the_age() {
        let mut sum = Counters::default();
        add(&mut sum.received, Flow { bytes: 100, packets: 1, last_seen: 5_000_000_000 });
        add(&mut sum.received, Flow { bytes: 50, packets: 2, last_seen: 3_000_000_000 });

        let traffic = peer_traffic(&sum, Duration::from_secs(7));

        assert_eq!((traffic.rx_bytes, traffic.rx_packets), (150, 3));
        assert_eq!(traffic.rx_age, Some(Duration::from_secs(2)));
        assert_eq!(traffic.tx_age, None);
    }

    #[test]
    fn a_packet_stamped_after_the_reading_began_is_as_old_as_nothing() {
        let mut sum = Counters::default();
        add(&mut sum.sent, Flow { bytes: 1, packets: 1, last_seen: 9_000_000_000 });
        assert_eq!(peer_traffic(&sum, Duration::from_secs(8)).tx_age, Some(Duration::ZERO));
    }

    #[test]
    fn prefixes_are_masked_and_lead_to_their_peer() {
        let key = PublicKey::from_bytes([7; 32]);
        let nets = ["10.1.2.3/24", "fd00::5/128"].map(|net| net.parse().unwrap());
        let owners = owners(&BTreeMap::from([(key, BTreeSet::from(nets))]));

        let expected = ["10.1.2.0/24", "fd00::5/128"].map(|net| (net.parse().unwrap(), PeerKey([7; 32])));
        assert_eq!(owners, BTreeMap::from(expected));
    }
}
