//! The maps that say which address belongs to which peer, and that count.
//!
//! Packets are counted per single address, because one exact lookup is what a program does fastest; a peer's traffic
//! is the sum over its addresses. Networks behind a peer count under the first of its addresses, and every node of a
//! mesh has one. Who owns an address is kept beside the counters in a map of its own, so that a later run knows whose
//! the pinned counters are, and an address that changes hands starts at zero.
//!
//! What the maps hold is mirrored here, so a sync without a change makes no call. Bounds:
//! [`MAX_PREFIXES`](wgmesh_ebpf_common::MAX_PREFIXES) addresses and as many networks of each family. What does not fit
//! is not counted: who is there stays, newcomers wait for a place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use wgmesh_core::kernel::PeerTraffic;
use wgmesh_core::key::PublicKey;
use wgmesh_ebpf_common::{Counters, Flow, PeerKey};

use super::EbpfError;
use super::object::Loaded;
use crate::clock;

/// How often an insert is tried again. The kernel keeps a small stock of elements for such maps and refills it
/// behind our back; a thousand peers at once can outrun it.
const ATTEMPTS: u32 = 50;

/// The pause before it is tried again.
const REFILL: Duration = Duration::from_millis(1);

/// The tables of one mesh.
pub(super) struct Tables {
    maps: Maps,
    /// What [`Maps::owners`] and [`Maps::traffic`] hold.
    owners: BTreeMap<Ipv6Addr, PeerKey>,
    /// What the tries hold.
    networks: BTreeMap<IpNet, Ipv6Addr>,
}

struct Maps {
    traffic: PerCpuHashMap<MapData, [u8; 16], Counters>,
    owners: HashMap<MapData, [u8; 16], PeerKey>,
    v4: LpmTrie<MapData, [u8; 4], [u8; 16]>,
    v6: LpmTrie<MapData, [u8; 16], [u8; 16]>,
}

impl Tables {
    /// Takes the maps and reads what an earlier run left in them.
    pub(super) fn new(loaded: &mut Loaded) -> Result<Self, EbpfError> {
        let mut maps = Maps {
            traffic: loaded.take_map("TRAFFIC")?,
            owners: loaded.take_map("OWNERS")?,
            v4: loaded.take_map("NETWORKS_V4")?,
            v6: loaded.take_map("NETWORKS_V6")?,
        };
        let (owners, networks) = (maps.read_owners()?, maps.read_networks()?);
        Ok(Self { maps, owners, networks })
    }

    /// Makes the tables say what `peers` says; counters of addresses that stay with their peer are kept.
    pub(super) fn sync(&mut self, peers: &BTreeMap<PublicKey, BTreeSet<IpNet>>) -> Result<(), EbpfError> {
        let wanted = Wanted::by(peers);
        // What leaves goes first, so that its place is free.
        let leaving = self.networks.keys().filter(|net| !wanted.networks.contains_key(net));
        for net in leaving.copied().collect::<Vec<_>>() {
            self.maps.remove_network(net)?;
            self.networks.remove(&net);
        }
        let leaving = self.owners.iter().filter(|(address, owner)| wanted.owners.get(address) != Some(owner));
        for address in leaving.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.maps.remove_address(address)?;
            self.owners.remove(&address);
        }
        for (address, owner) in wanted.owners {
            if !self.owners.contains_key(&address) && self.maps.insert_address(address, owner)? {
                self.owners.insert(address, owner);
            }
        }
        for (net, account) in wanted.networks {
            if self.networks.get(&net) != Some(&account) && self.maps.insert_network(net, account)? {
                self.networks.insert(net, account);
            }
        }
        Ok(())
    }

    /// Returns the peers that have these addresses.
    pub(super) fn owners<'a>(&'a self, addresses: &'a [Ipv6Addr]) -> impl Iterator<Item = PublicKey> + 'a {
        let owners = addresses.iter().filter_map(|address| self.owners.get(address));
        owners.map(|key| PublicKey::from_bytes(key.0))
    }

    /// Reads every peer's counters, summed over its addresses and the processors.
    pub(super) fn traffic(&self) -> Result<BTreeMap<PublicKey, PeerTraffic>, EbpfError> {
        let now = clock::since_boot();
        let mut sums: BTreeMap<PeerKey, Counters> = BTreeMap::new();
        for (address, owner) in &self.owners {
            let sum = sums.entry(*owner).or_default();
            for one in self.maps.traffic.get(&address.octets(), 0)?.iter() {
                add(&mut sum.received, one.received);
                add(&mut sum.sent, one.sent);
            }
        }
        Ok(sums.iter().map(|(key, sum)| (PublicKey::from_bytes(key.0), peer_traffic(sum, now))).collect())
    }
}

impl Maps {
    /// Reads whose the counters are. An owner without counters was left by a run that was killed in between.
    fn read_owners(&mut self) -> Result<BTreeMap<Ipv6Addr, PeerKey>, EbpfError> {
        let counted: BTreeSet<[u8; 16]> = self.traffic.keys().collect::<Result<_, _>>()?;
        let mut owners: BTreeMap<[u8; 16], PeerKey> = self.owners.iter().collect::<Result<_, _>>()?;
        for address in owners.keys().filter(|address| !counted.contains(*address)) {
            self.owners.remove(address)?;
        }
        owners.retain(|address, _| counted.contains(address));
        Ok(owners.into_iter().map(|(address, owner)| (address.into(), owner)).collect())
    }

    fn read_networks(&self) -> Result<BTreeMap<IpNet, Ipv6Addr>, EbpfError> {
        let mut networks = BTreeMap::new();
        for entry in self.v4.iter() {
            let (key, account) = entry?;
            let net = Ipv4Net::new(key.data().into(), key.prefix_len() as u8);
            networks.extend(net.ok().map(|net| (IpNet::V4(net), account.into())));
        }
        for entry in self.v6.iter() {
            let (key, account) = entry?;
            let net = Ipv6Net::new(key.data().into(), key.prefix_len() as u8);
            networks.extend(net.ok().map(|net| (IpNet::V6(net), account.into())));
        }
        Ok(networks)
    }

    fn insert_address(&mut self, address: Ipv6Addr, owner: PeerKey) -> Result<bool, EbpfError> {
        let processors = aya::util::nr_cpus().map_err(|(_, source)| EbpfError::Processors(source))?;
        let zeros =
            || PerCpuValues::try_from(vec![Counters::default(); processors]).map_err(MapError::IoError);
        // The owner first: counters without one would look like nobody's for ever.
        Ok(fitted(|| self.owners.insert(address.octets(), owner, 0))?
            && fitted(|| self.traffic.insert(address.octets(), zeros()?, 0))?)
    }

    fn remove_address(&mut self, address: Ipv6Addr) -> Result<(), EbpfError> {
        present(self.traffic.remove(&address.octets()))?;
        Ok(present(self.owners.remove(&address.octets()))?)
    }

    fn insert_network(&mut self, net: IpNet, account: Ipv6Addr) -> Result<bool, EbpfError> {
        let account = account.octets();
        Ok(fitted(|| match net {
            IpNet::V4(net) => self.v4.insert(&v4_key(net), account, 0),
            IpNet::V6(net) => self.v6.insert(&v6_key(net), account, 0),
        })?)
    }

    fn remove_network(&mut self, net: IpNet) -> Result<(), EbpfError> {
        Ok(present(match net {
            IpNet::V4(net) => self.v4.remove(&v4_key(net)),
            IpNet::V6(net) => self.v6.remove(&v6_key(net)),
        })?)
    }
}

/// What the tables should say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    owners: BTreeMap<Ipv6Addr, PeerKey>,
    networks: BTreeMap<IpNet, Ipv6Addr>,
}

impl Wanted {
    /// Sorts each peer's prefixes into addresses and networks. Of two peers that want the same one the later has it;
    /// the kernel's cryptokey routing gives it to one only, and the plan never asks for it twice.
    fn by(peers: &BTreeMap<PublicKey, BTreeSet<IpNet>>) -> Self {
        let mut wanted = Self::default();
        for (key, nets) in peers {
            let is_host = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
            let (hosts, networks): (Vec<&IpNet>, Vec<&IpNet>) = nets.iter().partition(is_host);
            let hosts: Vec<Ipv6Addr> = hosts.into_iter().map(|net| mapped(net.addr())).collect();
            wanted.owners.extend(hosts.iter().map(|host| (*host, PeerKey(*key.as_bytes()))));
            let account = hosts.first().copied();
            wanted.networks.extend(networks.into_iter().filter_map(|net| Some((net.trunc(), account?))));
        }
        wanted
    }
}

/// The form in which the programs look an address up.
pub(super) fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn v4_key(net: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(net.prefix_len().into(), net.addr().octets())
}

fn v6_key(net: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(net.prefix_len().into(), net.addr().octets())
}

/// Inserts, and tells whether there was a place (`E2BIG` from hash maps, `ENOSPC` from tries).
pub(super) fn fitted(mut insert: impl FnMut() -> Result<(), MapError>) -> Result<bool, MapError> {
    for _ in 0..ATTEMPTS {
        match insert() {
            Err(error) => match errno(&error) {
                Some(Errno::E2BIG | Errno::ENOSPC) => return Ok(false),
                Some(Errno::ENOMEM) => thread::sleep(REFILL),
                _ => return Err(error),
            },
            Ok(()) => return Ok(true),
        }
    }
    insert().map(|()| true)
}

/// Takes "was not there" for success.
pub(super) fn present(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if errno(&error) == Some(Errno::ENOENT) => Ok(()),
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
    fn addresses_have_owners_and_networks_count_under_their_peers_first_address() {
        let nets = ["10.1.2.3/24", "10.77.0.5/32", "fd00::5/128"].map(|net| net.parse().unwrap());
        let wanted = Wanted::by(&BTreeMap::from([(PublicKey::from_bytes([7; 32]), BTreeSet::from(nets))]));

        let addresses: [Ipv6Addr; 2] =
            ["::ffff:10.77.0.5", "fd00::5"].map(|address| address.parse().unwrap());
        assert_eq!(wanted.owners, BTreeMap::from(addresses.map(|address| (address, PeerKey([7; 32])))));
        assert_eq!(wanted.networks, BTreeMap::from([("10.1.2.0/24".parse().unwrap(), addresses[0])]));
    }

    #[test]
    fn an_insert_waits_for_memory_and_a_full_map_is_no_error() {
        let failing = |errno: Errno| {
            MapError::SyscallError(aya::sys::SyscallError {
                call: "bpf_map_update_elem",
                io_error: errno.into(),
            })
        };
        let mut answers = [Err(failing(Errno::ENOMEM)), Err(failing(Errno::ENOMEM)), Ok(())].into_iter();
        assert!(fitted(|| answers.next().unwrap()).unwrap());
        assert!(!fitted(|| Err(failing(Errno::E2BIG))).unwrap());
        assert!(fitted(|| Err(failing(Errno::EPERM))).is_err());
    }
}
