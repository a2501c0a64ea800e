//! The flows that this host relays for others in the kernel: which they are, where they go, and on which links the
//! program stands that sends them on.
//!
//! A pair is relayed here once both its ends are bound, seen by the same version of IP, and reached through links of
//! the underlay; the daemon's sockets do it for all others, and for whatever the program lets pass. What the map holds
//! is mirrored, and ways are remembered, so a sync without a change makes no call. They are found anew when the underlay
//! changes, and every [`CHECK`]: of rules there is no notice, and of routes a router has one for each of its thousands.
//! There are at most [`MAX_RELAYED`](wgmesh_ebpf_common::MAX_RELAYED) flows: newcomers wait for a place, in userspace.
//!
//! Map and links are pinned, so relayed packets flow on while the daemon is being replaced or has died. A daemon that
//! starts knows nothing of those flows, so it leaves them for [`GRACE`], by when every peer has bound its end anew or
//! found another path. A flow whose port is given to another pair goes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use tokio::time::Instant;
use wgmesh_core::kernel::Underlay;
use wgmesh_core::relay::{Forwarding, RelayEnd};
use wgmesh_ebpf_common::{Meter, RelayHop, RelayKey};

use super::attach::{AttachError, Hook, Role};
use super::object::{self, Loaded};
use super::tables::{fitted, mapped, present};
use super::{EbpfError, EbpfSettings};
use crate::kernel::{KernelError, Router, Way};

/// How long flows are kept that an earlier run left: as long as an allocation lives without being renewed.
const GRACE: Duration = Duration::from_secs(180);

/// How long a flow may go where no route leads any more.
const CHECK: Duration = Duration::from_secs(5);

/// What was relayed in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// The flows that there are, two for each pair.
    pub flows: usize,
    /// Packets of those and of flows that have ended.
    pub packets: u64,
    /// Their bytes, with IP headers.
    pub bytes: u64,
    /// Packets that were dropped because a limit was reached.
    pub limited: u64,
}

impl Relayed {
    /// Counts in what has come of a flow.
    const fn add(&mut self, hop: &RelayHop) {
        self.packets = self.packets.saturating_add(hop.packets);
        self.bytes = self.bytes.saturating_add(hop.bytes);
        self.limited = self.limited.saturating_add(hop.limited);
    }
}

/// The relaying of one mesh.
pub(super) struct Relay {
    hook: Hook,
    program: SchedClassifier,
    map: HashMap<MapData, RelayKey, RelayHop>,
    /// How much of each flow passes.
    meter: Meter,
    /// What the map holds; the counters are as they were when a flow was last written.
    flows: BTreeMap<RelayKey, RelayHop>,
    /// What has come of the flows that ended.
    ended: Relayed,
    /// Flows that an earlier run left and nobody asked for yet.
    left: BTreeSet<RelayKey>,
    /// Until when those stay.
    left_until: Instant,
    /// When all ways are to be found anew.
    check_at: Instant,
    /// What was last asked for.
    pairs: Vec<Forwarding>,
    underlay: Vec<Underlay>,
    /// Links by index, and whether they carry the program; of others an earlier run may have left that open.
    links: BTreeMap<u32, (String, bool)>,
    pins: PathBuf,
    /// The ways from an address of ours to an end, of those that are asked for.
    ways: BTreeMap<(IpAddr, IpAddr), Option<Way>>,
    /// Opened when there is something to relay.
    router: Option<Router>,
}

impl Relay {
    /// Takes the program and the map, and reads what an earlier run left in it.
    pub(super) fn new(loaded: &mut Loaded, settings: &EbpfSettings) -> Result<Self, EbpfError> {
        let EbpfSettings { interface, pin_directory, rates, serves } = settings;
        // The program has it for as long as it is loaded.
        let mut all: Array<MapData, Meter> = loaded.take_map(object::RELAY_METER)?;
        all.set(0, rates.meter_of_all(), 0)?;
        let map: HashMap<MapData, RelayKey, RelayHop> = loaded.take_map("RELAYED")?;
        let flows: BTreeMap<RelayKey, RelayHop> = map.iter().collect::<Result<_, _>>()?;
        Ok(Self {
            hook: Hook::choose(interface.as_str(), Role::Relay),
            program: loaded.take_program("wgmesh_relay")?,
            map,
            meter: rates.meter_of_flow(),
            left: flows.keys().copied().filter(|_| *serves).collect(),
            left_until: Instant::now() + GRACE,
            check_at: Instant::now() + CHECK,
            flows,
            ended: Relayed::default(),
            pairs: Vec::new(),
            underlay: Vec::new(),
            links: BTreeMap::new(),
            pins: pin_directory.clone(),
            ways: BTreeMap::new(),
            router: None,
        })
    }

    /// Relays for exactly these pairs.
    pub(super) fn follow_pairs(&mut self, pairs: &[Forwarding]) -> Result<(), EbpfError> {
        pairs.clone_into(&mut self.pairs);
        self.sync()
    }

    /// Finds every way anew: a link, an address or a route has changed.
    pub(super) fn follow_underlay(&mut self, underlay: &[Underlay]) -> Result<(), EbpfError> {
        underlay.clone_into(&mut self.underlay);
        self.ways.clear();
        self.sync()
    }

    /// Returns when [`Self::check`] is due: never while nothing is relayed.
    pub(super) fn check_at(&self) -> Option<Instant> {
        let is_idle = self.flows.is_empty() && self.pairs.is_empty();
        (!is_idle).then_some(self.check_at)
    }

    /// Finds every way anew, and ends relaying what an earlier run left and nobody has asked for in time.
    pub(super) fn check(&mut self) -> Result<(), EbpfError> {
        let now = Instant::now();
        self.check_at = now + CHECK;
        if now >= self.left_until {
            self.left.clear();
        }
        self.ways.clear();
        self.sync()
    }

    /// Makes the kernel relay what is asked for, and besides only what an earlier run left.
    fn sync(&mut self) -> Result<(), EbpfError> {
        let wanted = self.wanted()?;
        let taken: BTreeSet<u16> = self.pairs.iter().flat_map(|pair| pair.ports).collect();
        self.left.retain(|key| !wanted.contains_key(key) && !taken.contains(&port(key)));
        let stays = |key: &&RelayKey| wanted.contains_key(key) || self.left.contains(key);
        let leaving = self.flows.keys().filter(|key| !stays(key));
        for key in leaving.copied().collect::<Vec<_>>() {
            let counted = self.map.get(&key, 0).unwrap_or_default();
            present(self.map.remove(&key))?;
            self.flows.remove(&key);
            self.ended.add(&counted);
        }
        for (key, hop) in wanted {
            self.write(key, hop)?;
        }
        self.attach()
    }

    /// Sums up what was relayed.
    pub(super) fn relayed(&self) -> Result<Relayed, EbpfError> {
        let mut sum = Relayed { flows: self.flows.len(), ..self.ended };
        for key in self.flows.keys() {
            sum.add(&self.map.get(key, 0)?);
        }
        Ok(sum)
    }

    /// Says what the map should hold, but for counters.
    fn wanted(&mut self) -> Result<BTreeMap<RelayKey, RelayHop>, EbpfError> {
        let bound: Vec<_> = self.pairs.iter().filter_map(|pair| Some((pair.ports, pair.bound()?))).collect();
        let asked: BTreeSet<_> = bound.iter().flat_map(|(_, ends)| ends.each_ref().map(question)).collect();
        self.ways.retain(|question, _| asked.contains(question));
        let mut wanted = BTreeMap::new();
        for (ports, ends) in bound.into_iter().filter(|(_, ends)| fits(ends)) {
            let [Some(first), Some(second)] = [self.way(&ends[0])?, self.way(&ends[1])?] else { continue };
            let hop = |end, port, way| RelayHop { meter: self.meter, ..hop(end, port, way) };
            wanted.insert(key(&ends[0], ports[0]), hop(&ends[1], ports[1], second));
            wanted.insert(key(&ends[1], ports[1]), hop(&ends[0], ports[0], first));
        }
        Ok(wanted)
    }

    /// Finds the way to an end; `None` where there is none, or none through the underlay.
    fn way(&mut self, end: &RelayEnd) -> Result<Option<Way>, EbpfError> {
        if let Some(known) = self.ways.get(&question(end)) {
            return Ok(*known);
        }
        let router = match &mut self.router {
            Some(router) => router,
            none => none.insert(Router::open()?),
        };
        let way = match router.find(end.local, end.peer.ip()) {
            Ok(way) => self.underlay.iter().any(|link| link.index == way.interface).then_some(way),
            // Whoever cannot be reached now is tried again with the next check.
            Err(KernelError::Refused { .. } | KernelError::Malformed { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        self.ways.insert(question(end), way);
        Ok(way)
    }

    fn write(&mut self, key: RelayKey, wanted: RelayHop) -> Result<(), EbpfError> {
        let held = self.flows.get(&key);
        if held.is_some_and(|held| after(held, wanted) == *held) {
            return Ok(());
        }
        // The flow changes its way, not its history.
        let counted = if held.is_some() { self.map.get(&key, 0)? } else { RelayHop::default() };
        let wanted = after(&counted, wanted);
        if fitted(|| self.map.insert(key, wanted, 0))? {
            self.flows.insert(key, wanted);
        }
        Ok(())
    }

    /// Puts the program on all links of the underlay while there is something to relay, and takes it from them after
    /// that. One link that refuses does not keep it from the others.
    fn attach(&mut self) -> Result<(), EbpfError> {
        let is_needed = !self.flows.is_empty();
        let wanted: BTreeMap<u32, (String, bool)> = self
            .underlay
            .iter()
            .map(|link| (link.index, (link.name.clone(), is_needed && link.ethernet)))
            .collect();
        self.links.retain(|index, (name, carries)| {
            let stays = wanted.get(index).is_some_and(|(current, _)| current == name);
            if !stays && *carries {
                self.hook.detach_lasting(name, TcAttachType::Ingress, &pin(&self.pins, *index));
            }
            stays
        });
        let mut failed = None;
        for (index, (name, carry)) in wanted {
            match self.switch(index, &name, carry) {
                Ok(()) => drop(self.links.insert(index, (name, carry))),
                Err(source) => failed = Some(EbpfError::Attach { interface: name, source }),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn switch(&mut self, index: u32, name: &str, carry: bool) -> Result<(), AttachError> {
        let pin = pin(&self.pins, index);
        match (self.links.get(&index), carry) {
            (Some((_, carries)), _) if *carries == carry => Ok(()),
            (_, true) => self.hook.attach_lasting(&mut self.program, name, TcAttachType::Ingress, &pin),
            (_, false) => {
                self.hook.detach_lasting(name, TcAttachType::Ingress, &pin);
                Ok(())
            }
        }
    }
}

/// What the kernel is asked to find the way to an end.
fn question(end: &RelayEnd) -> (IpAddr, IpAddr) {
    (end.local, end.peer.ip())
}

/// Whether the program can pass packets between these ends: one version of IP, and no address that means something else
/// on every link.
fn fits(ends: &[RelayEnd; 2]) -> bool {
    let is_local = |address: IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let addresses = ends.map(|end| [end.peer.ip(), end.local]).concat();
    let same_version = addresses.iter().all(|address| address.is_ipv4() == addresses[0].is_ipv4());
    same_version && !addresses.into_iter().any(is_local)
}

/// Which packets come from an end: those that it sends to the pair's port that is its own.
fn key(end: &RelayEnd, port: u16) -> RelayKey {
    let [s0, s1] = end.peer.port().to_be_bytes();
    let [d0, d1] = port.to_be_bytes();
    RelayKey {
        source: words(end.peer.ip()),
        destination: words(end.local),
        ports: u32::from_ne_bytes([s0, s1, d0, d1]),
    }
}

/// How packets reach an end: from the pair's port that is its own.
fn hop(end: &RelayEnd, port: u16, way: Way) -> RelayHop {
    let [s0, s1] = port.to_be_bytes();
    let [d0, d1] = end.peer.port().to_be_bytes();
    RelayHop {
        source: words(end.local),
        destination: words(end.peer.ip()),
        ports: u32::from_ne_bytes([s0, s1, d0, d1]),
        interface: way.interface,
        longest: way.mtu,
        ..RelayHop::default()
    }
}

/// Returns a flow with the history of what it was before.
fn after(counted: &RelayHop, wanted: RelayHop) -> RelayHop {
    let &RelayHop { packets, bytes, limited, meter: Meter { clock, .. }, .. } = counted;
    RelayHop { packets, bytes, limited, meter: Meter { clock, ..wanted.meter }, ..wanted }
}

/// Returns our port of a flow.
fn port(key: &RelayKey) -> u16 {
    let [_, _, d0, d1] = key.ports.to_ne_bytes();
    u16::from_be_bytes([d0, d1])
}

/// Returns an address as the program reads it from a packet.
fn words(address: IpAddr) -> [u32; 4] {
    let bytes = mapped(address).octets();
    std::array::from_fn(|word| {
        let [a, b, c, d] = std::array::from_fn(|byte| bytes[word * 4 + byte]);
        u32::from_ne_bytes([a, b, c, d])
    })
}

/// Where the link of the program on an interface is pinned. Names of interfaces may hold dots, which bpffs takes for
/// none of its own.
fn pin(pins: &Path, index: u32) -> PathBuf {
    pins.join(format!("relay_{index}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(peer: &str, local: &str) -> RelayEnd {
        RelayEnd { peer: peer.parse().unwrap(), local: local.parse().unwrap() }
    }

    #[test]
    fn a_flow_is_known_by_who_sends_to_which_of_our_ports() {
        let key = key(&end("192.0.2.7:51820", "198.51.100.1"), 0x1234);
        assert_eq!(key.source.map(u32::to_ne_bytes).concat()[12..], [192, 0, 2, 7]);
        assert_eq!(key.destination.map(u32::to_ne_bytes).concat()[10..], [0xff, 0xff, 198, 51, 100, 1]);
        assert_eq!(key.ports.to_ne_bytes(), [0xca, 0x6c, 0x12, 0x34]);
        assert_eq!(port(&key), 0x1234);
    }

    #[test]
    fn packets_to_an_end_leave_from_its_own_port() {
        let hop = hop(&end("[2001:db8::7]:51820", "2001:db8::1"), 0x1234, Way { interface: 3, mtu: 1280 });
        assert_eq!(hop.ports.to_ne_bytes(), [0x12, 0x34, 0xca, 0x6c]);
        assert_eq!((hop.interface, hop.longest), (3, 1280));
    }

    #[test]
    fn ends_of_two_versions_and_link_local_ones_are_left_to_the_sockets() {
        let v4 = end("192.0.2.7:1", "198.51.100.1");
        let v6 = end("[2001:db8::7]:1", "2001:db8::1");
        assert!(fits(&[v4, v4]) && fits(&[v6, v6]));
        assert!(!fits(&[v4, v6]));
        assert!(!fits(&[v6, end("[fe80::7]:1", "fe80::1")]));
    }
}
