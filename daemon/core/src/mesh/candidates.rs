//! Which addresses are worth a ping, and which of its own a node names to others.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::Mesh;
use crate::kernel::Underlay;
use crate::key::PublicKey;
use crate::nat::NatType;
use crate::path::{Kind, Origin};
use crate::record::{MAX_CANDIDATES, may_be_an_endpoint};
use crate::store::Peer;
use crate::time::Monotonic;

impl Mesh {
    /// Adds what the record and earlier claims say of a peer. Returns what of it is new.
    pub(super) fn add_recorded_candidates(&mut self, key: PublicKey, now: Monotonic) -> Vec<SocketAddr> {
        let Some(peer) = self.store.get(key) else { return Vec::new() };
        let recorded = peer.record().record().candidates.iter().map(|&address| (address, Origin::Record));
        let heard = peer.candidates.keys().map(|&address| (address, Origin::Cache));
        let mut named: Vec<_> = recorded.chain(heard).collect();
        self.add_named_candidate(key, now);
        named.retain(|&(address, origin)| self.add_candidate(key, address, origin, now));
        named.into_iter().map(|(address, _)| address).collect()
    }

    /// Adds an address if it is worth a ping. Returns whether it is new.
    pub(super) fn add_candidate(
        &mut self,
        key: PublicKey,
        address: SocketAddr,
        origin: Origin,
        now: Monotonic,
    ) -> bool {
        let kind = match origin {
            Origin::Relay => Kind::Relay,
            Origin::Cache
            | Origin::Record
            | Origin::Offer
            | Origin::Ping
            | Origin::Kernel
            | Origin::Static => self.kind_of(address.ip()),
        };
        self.is_candidate(address)
            && !self.is_barred(key, kind)
            && self.reach.paths.entry(key).or_default().add(address, origin, kind, now)
    }

    /// Whether a peer is not to be reached by such a path although it might work: the operator wants a relay between
    /// (`relay.force`).
    pub(super) fn is_barred(&self, key: PublicKey, kind: Kind) -> bool {
        matches!(kind, Kind::Ipv4 | Kind::Ipv6) && self.is_relay_forced(key)
    }

    /// Whether nothing but a relay is to lead to a peer, but for a common link: neither of the two is public.
    pub(super) fn is_relay_forced(&self, key: PublicKey) -> bool {
        let is_private = |peer: &Peer| !(peer.record().record().introducer || peer.record().record().relay);
        self.settings.relay.force
            && self.uses_relays()
            && self.nat_type() != NatType::Open
            && !self.serves()
            && self.store.get(key).is_some_and(is_private)
    }

    /// Whether an address that somebody named is worth a ping: no host of the mesh answers at it as an inner address,
    /// no route leads to it through the mesh, it is not this host, and this host has an address of its kind. Pings that do
    /// not even leave would be missing once it has one.
    pub(super) fn is_candidate(&self, address: SocketAddr) -> bool {
        let own = || self.underlay.iter().flat_map(|link| &link.addresses).map(IpNet::addr);
        let is_routable = |own: IpAddr| !matches!(own, IpAddr::V6(own) if own.is_unicast_link_local());
        may_be_an_endpoint(address)
            && !self.is_inner(address.ip())
            && own().any(|own| own.is_ipv6() == address.is_ipv6() && is_routable(own))
            && own().all(|own| own != address.ip())
            && !self.is_behind_a_peer(address.ip())
    }

    /// Whether packets to an address would go through the mesh: a tunnel inside a tunnel, that ends with the outer one.
    fn is_behind_a_peer(&self, address: IpAddr) -> bool {
        let on_link = self.underlay.iter().flat_map(|link| &link.addresses).any(|net| net.contains(&address));
        let routes = self.planned.desired.iter().flat_map(|desired| &desired.routes);
        // The host's own default route stands before one of ours.
        let mut through = routes.filter(|route| route.destination.prefix_len() > 0);
        !on_link && through.any(|route| route.destination.contains(&address))
    }

    pub(super) fn kind_of(&self, address: IpAddr) -> Kind {
        let networks = self.underlay.iter().flat_map(|link| &link.addresses);
        match address {
            _ if networks.into_iter().any(|net| net.contains(&address)) => Kind::Lan,
            IpAddr::V6(_) => Kind::Ipv6,
            IpAddr::V4(_) => Kind::Ipv4,
        }
    }
}

/// Returns where a node's WireGuard may answer: as the internet sees it, then by its own addresses, public ones first.
pub(super) fn own_candidates(
    mapped: &[SocketAddr],
    underlay: &[Underlay],
    listen_port: u16,
) -> Vec<SocketAddr> {
    let own: BTreeSet<_> = underlay
        .iter()
        .flat_map(|link| &link.addresses)
        .map(|net| (is_private(net.addr()), SocketAddr::new(net.addr(), listen_port)))
        .collect();
    let mut seen = BTreeSet::new();
    let own = own.into_iter().map(|(_, address)| address);
    mapped
        .iter()
        .copied()
        .chain(own)
        .filter(|address| may_be_an_endpoint(*address) && seen.insert(*address))
        .take(MAX_CANDIDATES)
        .collect()
}

const fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_private() || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64,
        IpAddr::V6(ip) => ip.segments()[0] & 0xfe00 == 0xfc00,
    }
}
