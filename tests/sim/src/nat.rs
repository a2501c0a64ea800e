//! A NAT box as RFC 4787 describes them: which mapping it makes, whom it lets in, which port it takes, when it
//! forgets, and whether two of its own hosts can meet at its outside.
//!
//! [`Nat`] only translates UDP endpoints; [`crate::network`] moves the packets. It has no clock and draws ports from
//! its own stream of chance.
//!
//! Invariant: an external port belongs to one internal endpoint at a time, however many mappings share it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use wgmesh_core::time::Monotonic;

use crate::random::Random;

/// On what of the remote endpoint a mapping or a filter depends (RFC 4787 §4.1, §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// Nothing: one mapping for all, everyone is let in.
    Endpoint,
    /// Its address.
    Address,
    /// Its address and its port.
    AddressAndPort,
}

/// Which external port a mapping takes (RFC 4787 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The internal one while no other endpoint has it.
    Preserving,
    /// Any.
    Random,
}

/// Everything that tells one NAT from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// When another remote endpoint gets another mapping.
    pub mapping: Dependence,
    /// Who is let in by what went out.
    pub filtering: Dependence,
    /// Which port is taken.
    pub ports: Ports,
    /// For how long silence keeps a mapping.
    pub expiry: Duration,
    /// Whether what comes in refreshes it too, as Linux does; what goes out always does (RFC 4787 §4.3).
    pub inbound_refresh: bool,
    /// Whether its own hosts reach each other at its external address (RFC 4787 §6).
    pub hairpin: bool,
}

impl Behaviour {
    /// Lets everyone in.
    pub const FULL_CONE: Self = Self {
        mapping: Dependence::Endpoint,
        filtering: Dependence::Endpoint,
        ports: Ports::Preserving,
        expiry: Duration::from_secs(120),
        inbound_refresh: true,
        hairpin: true,
    };

    /// Lets in whichever address was sent to.
    pub const ADDRESS_RESTRICTED: Self = Self { filtering: Dependence::Address, ..Self::FULL_CONE };

    /// Lets in only whichever endpoint was sent to.
    pub const PORT_RESTRICTED: Self = Self { filtering: Dependence::AddressAndPort, ..Self::FULL_CONE };

    /// Like the last, with a port that has nothing to do with the internal one.
    pub const PORT_REWRITING: Self = Self { ports: Ports::Random, ..Self::PORT_RESTRICTED };

    /// Another port for every remote endpoint, and only that one is let in.
    pub const SYMMETRIC: Self = Self { mapping: Dependence::AddressAndPort, ..Self::PORT_REWRITING };
}

/// What stands between a host and the internet, by the names that people use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing.
    None,
    /// [`Behaviour::FULL_CONE`].
    FullCone,
    /// [`Behaviour::ADDRESS_RESTRICTED`].
    AddressRestricted,
    /// [`Behaviour::PORT_RESTRICTED`].
    PortRestricted,
    /// [`Behaviour::PORT_REWRITING`].
    PortRewriting,
    /// [`Behaviour::SYMMETRIC`].
    Symmetric,
    /// A port-restricted NAT at home behind a port-rewriting one of the carrier (RFC 6888).
    Cgnat,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::PortRewriting,
        Self::Symmetric,
        Self::Cgnat,
    ];

    /// Goes through every kind with every kind.
    pub fn pairs() -> impl Iterator<Item = [Self; 2]> {
        Self::ALL.into_iter().flat_map(|one| Self::ALL.map(|other| [one, other]))
    }

    /// Returns its boxes, the one next to the host first.
    pub const fn layers(self) -> &'static [Behaviour] {
        match self {
            Self::None => &[],
            Self::FullCone => &[Behaviour::FULL_CONE],
            Self::AddressRestricted => &[Behaviour::ADDRESS_RESTRICTED],
            Self::PortRestricted => &[Behaviour::PORT_RESTRICTED],
            Self::PortRewriting => &[Behaviour::PORT_REWRITING],
            Self::Symmetric => &[Behaviour::SYMMETRIC],
            Self::Cgnat => &[Behaviour::PORT_RESTRICTED, Behaviour::PORT_REWRITING],
        }
    }
}

/// Below are the ports that need privileges; no NAT gives them out at random.
const FIRST_RANDOM_PORT: u16 = 1024;

/// One box.
#[derive(Clone, Debug)]
pub struct Nat {
    behaviour: Behaviour,
    external: Ipv4Addr,
    mappings: BTreeMap<MappingKey, Mapping>,
    random: Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MappingKey {
    internal: SocketAddr,
    /// As much of the remote endpoint as the mapping depends on.
    remote: Option<(IpAddr, Option<u16>)>,
}

#[derive(Clone, Debug)]
struct Mapping {
    port: u16,
    holes: Holes,
}

impl Nat {
    /// Installs a box with this external address.
    pub const fn new(behaviour: Behaviour, external: Ipv4Addr, random: Random) -> Self {
        Self { behaviour, external, mappings: BTreeMap::new(), random }
    }

    /// Returns how it behaves.
    pub const fn behaviour(&self) -> Behaviour {
        self.behaviour
    }

    /// Returns its external address.
    pub const fn external(&self) -> Ipv4Addr {
        self.external
    }

    /// Gives it another external address; every mapping ends with the old one.
    pub fn set_external(&mut self, external: Ipv4Addr) {
        self.external = external;
        self.flush();
    }

    /// Makes it behave otherwise from now on; what it has mapped stays.
    pub const fn set_behaviour(&mut self, behaviour: Behaviour) {
        self.behaviour = behaviour;
    }

    /// Forgets every mapping, as a restart does.
    pub fn flush(&mut self) {
        self.mappings.clear();
    }

    /// Translates the source of a packet that goes out, and opens the way back.
    pub fn outbound(&mut self, internal: SocketAddr, remote: SocketAddr, now: Monotonic) -> SocketAddr {
        let Behaviour { mapping: dependence, expiry, .. } = self.behaviour;
        self.mappings.retain(|_, mapping| mapping.holes.are_open(expiry, now));
        let key = MappingKey { internal, remote: dependence.scope(remote) };
        let port = match self.mappings.get(&key) {
            Some(mapping) => mapping.port,
            None => self.choose_port(internal),
        };
        let mapping = self.mappings.entry(key).or_insert_with(|| Mapping { port, holes: Holes::default() });
        mapping.holes.open(remote, now);
        SocketAddr::from((self.external, port))
    }

    /// Translates the destination of a packet that comes in to an external port; `None` drops it.
    pub fn inbound(&mut self, port: u16, remote: SocketAddr, now: Monotonic) -> Option<SocketAddr> {
        let Behaviour { filtering, expiry, inbound_refresh, .. } = self.behaviour;
        let admits = |mapping: &Mapping| mapping.holes.admit(filtering, remote, expiry, now);
        let mut mapped = self.mappings.iter_mut().filter(|(_, mapping)| mapping.port == port);
        let (key, mapping) = mapped.find(|(_, mapping)| admits(mapping))?;
        if inbound_refresh {
            mapping.holes.open(remote, now);
        }
        Some(key.internal)
    }

    fn choose_port(&mut self, internal: SocketAddr) -> u16 {
        let Self { behaviour, mappings, random, .. } = self;
        let is_free = |port: u16| {
            mappings.iter().all(|(key, mapping)| mapping.port != port || key.internal == internal)
        };
        let is_unused = |port: u16| mappings.values().all(|mapping| mapping.port != port);
        if behaviour.ports == Ports::Preserving && is_free(internal.port()) {
            return internal.port();
        }
        let width = u64::from(u16::MAX - FIRST_RANDOM_PORT) + 1;
        let draw = |random: &mut Random| {
            FIRST_RANDOM_PORT + u16::try_from(random.below(width)).expect("below the ports' number")
        };
        std::iter::repeat_with(|| draw(random))
            .find(|&port| is_unused(port))
            .expect("it draws until one fits")
    }
}

/// A firewall that translates nothing and lets in what answers, as home routers do for IPv6 (RFC 6092).
#[derive(Clone, Debug)]
pub struct Firewall {
    filtering: Dependence,
    expiry: Duration,
    holes: BTreeMap<SocketAddr, Holes>,
}

impl Firewall {
    /// Installs a firewall.
    pub const fn new(filtering: Dependence, expiry: Duration) -> Self {
        Self { filtering, expiry, holes: BTreeMap::new() }
    }

    /// Notes what goes out.
    pub fn outbound(&mut self, internal: SocketAddr, remote: SocketAddr, now: Monotonic) {
        self.holes.entry(internal).or_default().open(remote, now);
    }

    /// Whether a packet from `remote` may come in.
    pub fn admits(&self, internal: SocketAddr, remote: SocketAddr, now: Monotonic) -> bool {
        let holes = self.holes.get(&internal);
        holes.is_some_and(|holes| holes.admit(self.filtering, remote, self.expiry, now))
    }
}

/// Whom something was sent to, and when last.
#[derive(Clone, Debug, Default)]
struct Holes(BTreeMap<SocketAddr, Monotonic>);

impl Holes {
    fn open(&mut self, remote: SocketAddr, now: Monotonic) {
        self.0.insert(remote, now);
    }

    fn are_open(&self, expiry: Duration, now: Monotonic) -> bool {
        self.0.values().any(|&last| now.since(last) < expiry)
    }

    /// A filter that looks at no address holds as long as the mapping, whoever refreshes that.
    fn admit(&self, filtering: Dependence, remote: SocketAddr, expiry: Duration, now: Monotonic) -> bool {
        let matches = |hole: &SocketAddr| filtering.scope(*hole) == filtering.scope(remote);
        self.0.iter().any(|(hole, &last)| matches(hole) && now.since(last) < expiry)
    }
}

impl Dependence {
    /// Returns what of a remote endpoint counts.
    const fn scope(self, remote: SocketAddr) -> Option<(IpAddr, Option<u16>)> {
        match self {
            Self::Endpoint => None,
            Self::Address => Some((remote.ip(), None)),
            Self::AddressAndPort => Some((remote.ip(), Some(remote.port()))),
        }
    }
}

/// Whether two hosts have a direct path by REQUIREMENTS §11, given the boxes between each and where the two meet, the one
/// next to the host first.
///
/// Behind several boxes a host has the mapping of the most changeable one and the filter of the strictest. A mapping
/// that does not change can be told to the other side, so two such hosts open their filters for each other. A
/// mapping that changes cannot: then the other side must keep its own and not ask for the port.
pub fn direct_path_possible(one: &[Behaviour], other: &[Behaviour]) -> bool {
    match (changes(one), changes(other)) {
        (false, false) => true,
        (true, false) => strictest_filter(other) < Dependence::AddressAndPort,
        (false, true) => strictest_filter(one) < Dependence::AddressAndPort,
        (true, true) => false,
    }
}

fn changes(layers: &[Behaviour]) -> bool {
    layers.iter().any(|behaviour| behaviour.mapping != Dependence::Endpoint)
}

fn strictest_filter(layers: &[Behaviour]) -> Dependence {
    layers.iter().map(|behaviour| behaviour.filtering).max().unwrap_or(Dependence::Endpoint)
}

#[cfg(test)]
mod tests;
