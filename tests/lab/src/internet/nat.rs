//! The kinds of NAT (RFC 4787), each a Linux router or two.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::router::{Router, Traffic};
use super::rules::{Filtering, Mapping};
use super::{Internet, public_address};
use crate::{Host, Link};

/// What stands between a host and the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatKind {
    /// Nothing: the host has a public address.
    None,
    /// One mapping for all destinations, open to everybody; keeps ports.
    FullCone,
    /// One mapping, open to the addresses that the host has sent to; keeps ports.
    AddressRestricted,
    /// One mapping, open to the addresses and ports that the host has sent to; keeps ports.
    PortRestricted,
    /// As port-restricted, but the public port is another one, and again another one after a flush.
    PortRewriting,
    /// A mapping with a random port for every destination, open to that destination.
    Symmetric,
    /// Two layers: port-restricted at home, port-rewriting at the provider.
    Cgnat,
}

impl NatKind {
    /// All kinds, from the most open to the most closed.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::PortRewriting,
        Self::Symmetric,
        Self::Cgnat,
    ];

    /// Returns every pair of kinds once, whichever comes first.
    pub fn pairs() -> Vec<[Self; 2]> {
        let all = Self::ALL.iter().enumerate();
        all.flat_map(|(index, left)| Self::ALL[index..].iter().map(|right| [*left, *right])).collect()
    }

    /// Tells whether two hosts behind such NATs can reach each other without help, once both know where the other one
    /// is seen by third parties: only a symmetric NAT's port, which nobody can know, against a filter that looks at
    /// ports makes it impossible.
    pub fn can_reach(self, other: Self) -> bool {
        let hidden = |kind| kind == Self::Symmetric;
        let looks_at_ports =
            |kind| matches!(kind, Self::PortRestricted | Self::PortRewriting | Self::Symmetric | Self::Cgnat);
        !(hidden(self) && looks_at_ports(other) || hidden(other) && looks_at_ports(self))
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::None => "none",
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::PortRewriting => "port-rewriting",
            Self::Symmetric => "symmetric",
            Self::Cgnat => "CGNAT",
        })
    }
}

/// A host in a private network.
pub struct Member {
    /// The host.
    pub host: Host,
    /// Its cable.
    pub link: Link,
    /// Its private address.
    pub address: Ipv4Addr,
}

/// The routers of one site.
pub struct Nat {
    /// The router with the public address.
    outer: Router,
    /// The one at home, where there are two.
    inner: Option<Router>,
}

impl Nat {
    pub(super) fn new(internet: &Internet, name: &str, kind: NatKind, number: u8, network: u8) -> Self {
        let (mapping, filtering) = match kind {
            NatKind::FullCone => (Mapping::Keeping, Filtering::None),
            NatKind::AddressRestricted => (Mapping::Keeping, Filtering::Address),
            NatKind::PortRestricted => (Mapping::Keeping, Filtering::AddressAndPort),
            NatKind::PortRewriting | NatKind::Cgnat => (Mapping::Rewriting, Filtering::AddressAndPort),
            NatKind::Symmetric => (Mapping::Random, Filtering::AddressAndPort),
            NatKind::None => panic!("there is no router without a NAT"),
        };
        let (host, public) = (internet.lab.host(&format!("{name}-nat")), public_address(number));
        let uplink = internet.connect(&host, &[public]);
        // Addresses differ even where networks do not.
        let home = [(192, 168, network), (172, 16, number)].map(|(a, b, c)| Ipv4Addr::new(a, b, c, number));
        let is_outer = kind == NatKind::Cgnat;
        let provider = [Ipv4Addr::new(100, 64, number, 1)];
        let networks = if is_outer { &provider[..] } else { &home };
        let mut outer = Router::new(host, uplink, public, (mapping, filtering), networks);
        let inner = is_outer.then(|| {
            let host = internet.lab.host(&format!("{name}-home"));
            let (uplink, address) = outer.plug(&host, 0);
            let kind = (Mapping::Keeping, Filtering::AddressAndPort);
            Router::new(host, uplink, address, kind, &home)
        });
        Self { outer, inner }
    }

    /// Returns the address that the internet sees.
    pub fn public(&self) -> Ipv4Addr {
        self.outer.public()
    }

    /// Adds a host to one of the two private networks, 0 or 1, which reach each other only by hairpinning.
    pub fn member(&mut self, internet: &Internet, name: &str, lan: usize) -> Member {
        let host = internet.lab.host(name);
        let (link, address) = self.home().plug(&host, lan);
        Member { host, link, address }
    }

    /// Plugs a second cable into a host, whose default route stays what it is: the new one is worse.
    pub fn join(&mut self, host: &Host) -> (Link, Ipv4Addr) {
        self.home().plug(host, 0)
    }

    /// Gives the site another public address, as providers do at night; what was mapped is gone.
    pub fn change_public_address(&mut self, address: Ipv4Addr) {
        self.outer.change_public_address(address);
    }

    /// Forgets all mappings, as a router does that starts again. Where ports are not kept, the next mappings are
    /// others.
    pub fn flush_mappings(&mut self) {
        self.routers().for_each(Router::flush_mappings);
    }

    /// Lets hosts of the private networks reach each other by their public mappings, or not. Mappings are forgotten.
    ///
    /// # Panics
    /// Where the NAT does not keep ports.
    pub fn set_hairpin(&mut self, on: bool) {
        self.outer.set_hairpin(on);
    }

    /// Sets after how long without a packet a UDP mapping goes; two minutes, or half of one before the first answer,
    /// unless it is set.
    pub fn set_mapping_lifetime(&mut self, lifetime: Duration) {
        self.routers().for_each(|router| router.set_mapping_lifetime(lifetime));
    }

    /// Returns what the site has sent so far by UDP to others than servers.
    pub fn traffic(&self) -> Traffic {
        self.outer.traffic()
    }

    pub(super) fn ipv6_up(&self, number: u8) -> &'static str {
        assert!(self.inner.is_none(), "the lab has IPv6 behind one router, not behind two");
        self.outer.ipv6_up(number)
    }

    fn home(&mut self) -> &mut Router {
        self.inner.as_mut().unwrap_or(&mut self.outer)
    }

    fn routers(&mut self) -> impl Iterator<Item = &mut Router> {
        std::iter::once(&mut self.outer).chain(&mut self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::NatKind;

    /// REQUIREMENTS 11.
    #[test]
    fn only_a_symmetric_nat_against_a_filter_on_ports_is_impossible() {
        let all = NatKind::ALL;
        let pairs = all
            .iter()
            .enumerate()
            .flat_map(|(index, left)| all[index..].iter().map(move |right| (left, right)));
        let impossible: Vec<_> = pairs.filter(|(left, right)| !left.can_reach(**right)).collect();
        let other = [NatKind::PortRestricted, NatKind::PortRewriting, NatKind::Symmetric, NatKind::Cgnat];
        assert_eq!(impossible.len(), other.len());
        for kind in other {
            assert!(!kind.can_reach(NatKind::Symmetric) && !NatKind::Symmetric.can_reach(kind));
        }
    }
}
