//! What the kernel should hold, from everything that is known: one pure function, [`desired`].
//!
//! Routes of a peer are taken by these criteria, in order:
//! 1. It lies inside one of the operator's `accept_routes`.
//! 2. It is no part of the mesh's own subnets.
//! 3. It is not the default route, does not cover the mesh and overlaps no network of this host, unless the
//!    operator named just this route.
//! 4. Of several peers with the same route the lowest key gets it, so that every node decides alike; but none that is gone.
//!
//! What belongs to a peer behind a routed relay is the relay's as far as the kernel is concerned, and its routes name the
//! relay's mesh address as their gateway (W-D45). The peer itself stays, without any address, so that it can be reached
//! directly again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::address::{AddressNonce, MeshAddresses, MeshSubnets, derive_mesh_addresses, detect_collisions};
use crate::forwarding::Forwarding;
use crate::kernel::{Desired, DesiredPeer, Endpoint, InterfaceName, ObservedPeer, OwnerMark, Route};
use crate::key::{PresharedKey, PublicKey, SecretKey};
use crate::record::Record;

/// Persistent keepalive in seconds: below the 30 s after which the quickest common NATs forget a UDP flow
/// (RFC 4787 §4.3 asks for 120 s, many give 30), and what WireGuard's own documentation advises.
pub const KEEPALIVE_S: u16 = 25;

/// The link's MTU in bytes: an Ethernet packet less WireGuard's overhead over IPv6 (80 bytes).
pub const MTU: u32 = 1420;

/// So many nonces are tried, some milliseconds' work: of 254 addresses the last free one is found among them.
const MAX_NONCES: usize = 4096;

/// The most pairs of networks that packets are passed on between for others, counted in both directions: 64 pairs of peers with
/// four networks each take 2,048.
pub const MAX_BETWEEN: usize = 4096;

/// `RTA_PRIORITY` of our routes. Explicit, because the kernel turns a v6 metric of zero into 1024.
pub const ROUTE_METRIC: u32 = 1024;

/// What the plan is made from.
pub struct Inputs<'a> {
    /// The link's name.
    pub interface: &'a InterfaceName,
    /// How the link is marked.
    pub owner: OwnerMark,
    /// This node's key.
    pub private_key: &'a SecretKey,
    /// The public half of it.
    pub public_key: PublicKey,
    /// This node's address nonce.
    pub nonce: AddressNonce,
    /// WireGuard's port.
    pub listen_port: u16,
    /// The mesh.
    pub network_id: &'a [u8; 32],
    /// Where its addresses come from.
    pub subnets: MeshSubnets,
    /// The networks behind this node.
    pub advertise_routes: &'a BTreeSet<IpNet>,
    /// The pairs of peers between which this node routes packets.
    pub routed_pairs: &'a BTreeSet<[PublicKey; 2]>,
    /// Which of the peers' routes to take.
    pub accept_routes: &'a BTreeSet<IpNet>,
    /// The networks that this host is in.
    pub own_networks: BTreeSet<IpNet>,
    /// The peers.
    pub peers: BTreeMap<PublicKey, PlannedPeer<'a>>,
    /// Peers that an earlier run left in the kernel and that nobody has told us of yet: kept as they are.
    pub orphans: &'a BTreeMap<PublicKey, ObservedPeer>,
}

/// One peer, as far as the plan needs it.
pub struct PlannedPeer<'a> {
    /// Its newest record.
    pub record: &'a Record,
    /// The pair's symmetric key.
    pub preshared_key: &'a PresharedKey,
    /// How it should be reached.
    pub reach: Reach,
    /// The largest packet in bytes that its path carries, where that is less than [`MTU`].
    pub mtu: Option<u32>,
    /// The peer that routes packets to it and from it.
    pub via: Option<PublicKey>,
}

/// How a peer should be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Not now: the kernel lets go of it for a moment.
    Not,
    /// Not until it gives a sign of life: nothing is routed to it either.
    Gone,
    /// We answer its handshake and do not begin one.
    Passive,
    /// Its endpoint is known: keep to what the kernel has, or use this.
    Known(SocketAddr),
    /// It was just proved to be here.
    Proved(SocketAddr),
}

/// Returns what the kernel should hold.
pub fn desired(inputs: &Inputs<'_>) -> Desired {
    let claimed = claimed_addresses(inputs);
    let addresses = surviving_addresses(inputs, &claimed);
    let routes = peer_routes(inputs);
    let networks = networks_of_peers(&addresses, &routes);
    let mut allowed_ips: BTreeMap<_, BTreeSet<IpNet>> = BTreeMap::new();
    for (&key, networks) in &networks {
        allowed_ips.entry(carrier(inputs, key)).or_default().extend(networks);
    }
    let installed = inputs.peers.iter().filter(|(_, peer)| !matches!(peer.reach, Reach::Not | Reach::Gone));
    let mut peers: BTreeMap<_, _> = installed
        .map(|(&key, peer)| (key, desired_peer(peer, allowed_ips.remove(&key).unwrap_or_default())))
        .collect();
    let taken: BTreeSet<IpNet> = peers.values().flat_map(|peer| peer.allowed_ips.iter().copied()).collect();
    for (&key, orphan) in inputs.orphans {
        peers.entry(key).or_insert_with(|| kept_as_is(orphan, &taken));
    }
    Desired {
        interface: inputs.interface.clone(),
        owner: inputs.owner.clone(),
        private_key: inputs.private_key.clone(),
        listen_port: inputs.listen_port,
        fwmark: None,
        mtu: MTU,
        addresses: own_addresses(inputs, &claimed),
        peers,
        routes: kernel_routes(inputs, &addresses, routes),
        forwarding: Forwarding {
            networks: inputs.advertise_routes.clone(),
            between: between_peers(inputs.routed_pairs, &networks),
        },
    }
}

/// Returns the mesh addresses of a node, or `None` for its IPv4 one if it draws it from another subnet than we.
pub fn addresses_of(
    record: &Record,
    network_id: &[u8; 32],
    subnets: MeshSubnets,
) -> (Option<MeshAddresses>, IpAddr) {
    let addresses = derive_mesh_addresses(network_id, subnets, record.key, record.nonce);
    ((record.subnet == subnets.v4).then_some(addresses), addresses.v6.into())
}

/// Returns the first nonce, from this node's own on, with whose addresses it loses none to a lower key; `None` if none of
/// the next [`MAX_NONCES`] is one, because lower keys have all addresses of a small subnet or nearly all.
pub fn free_nonce(inputs: &Inputs<'_>) -> Option<AddressNonce> {
    let mut lower = claimed_addresses(inputs);
    lower.split_off(&inputs.public_key);
    for loser in detect_collisions(&lower) {
        lower.remove(&loser);
    }
    let taken: BTreeSet<IpAddr> = lower.into_values().flat_map(MeshAddresses::both).collect();
    let nonces = std::iter::successors(Some(inputs.nonce), |nonce| Some(nonce.next())).take(MAX_NONCES);
    nonces.into_iter().find(|&nonce| {
        let own = derive_mesh_addresses(inputs.network_id, inputs.subnets, inputs.public_key, nonce);
        own.both().iter().all(|address| !taken.contains(address))
    })
}

/// Returns what each node of the mesh derives, this one included; without nodes of another IPv4 subnet.
fn claimed_addresses(inputs: &Inputs<'_>) -> BTreeMap<PublicKey, MeshAddresses> {
    let own = derive_mesh_addresses(inputs.network_id, inputs.subnets, inputs.public_key, inputs.nonce);
    inputs
        .peers
        .iter()
        .filter_map(|(&key, peer)| {
            addresses_of(peer.record, inputs.network_id, inputs.subnets).0.map(|addresses| (key, addresses))
        })
        .chain([(inputs.public_key, own)])
        .collect()
}

/// Returns the addresses that each peer may have: none that a lower key derives too. Who loses its IPv4 address is reached
/// by IPv6 until it has another, or for good where there is no other.
fn surviving_addresses(
    inputs: &Inputs<'_>,
    claimed: &BTreeMap<PublicKey, MeshAddresses>,
) -> BTreeMap<PublicKey, Vec<IpAddr>> {
    let losers: BTreeSet<_> = detect_collisions(claimed).into_iter().collect();
    let is_lost =
        |key: PublicKey, v6: IpAddr| claimed.range(..key).any(|(_, lower)| IpAddr::from(lower.v6) == v6);
    let addresses = inputs.peers.iter().map(|(&key, peer)| {
        let addresses = match addresses_of(peer.record, inputs.network_id, inputs.subnets) {
            (Some(addresses), _) if !losers.contains(&key) => addresses.both().to_vec(),
            (Some(_), v6) if is_lost(key, v6) => Vec::new(),
            (Some(_) | None, v6) => vec![v6],
        };
        (key, addresses)
    });
    addresses.filter(|(_, addresses)| !addresses.is_empty()).collect()
}

fn peer_routes(inputs: &Inputs<'_>) -> BTreeMap<IpNet, PublicKey> {
    let mut routes = BTreeMap::new();
    for (&key, peer) in inputs.peers.iter().filter(|(_, peer)| peer.reach != Reach::Gone) {
        for &route in peer.record.routes.iter().filter(|route| is_accepted(**route, inputs)) {
            // Peers come in rising order of keys, so the first is the lowest.
            routes.entry(route).or_insert(key);
        }
    }
    routes
}

/// Returns who gets the packets for a peer: itself, or the relay that routes them, as long as that is reached by itself.
fn carrier(inputs: &Inputs<'_>, key: PublicKey) -> PublicKey {
    let carries = |relay: &PublicKey| {
        inputs.peers.get(relay).is_some_and(|peer| peer.via.is_none() && peer.reach != Reach::Not)
    };
    inputs.peers.get(&key).and_then(|peer| peer.via).filter(carries).unwrap_or(key)
}

/// Returns what is behind each peer, its own addresses among it.
fn networks_of_peers(
    addresses: &BTreeMap<PublicKey, Vec<IpAddr>>,
    routes: &BTreeMap<IpNet, PublicKey>,
) -> BTreeMap<PublicKey, BTreeSet<IpNet>> {
    let hosts = addresses.iter().map(|(&key, all)| (key, all.iter().map(|&one| IpNet::from(one)).collect()));
    let mut networks: BTreeMap<_, BTreeSet<IpNet>> = hosts.collect();
    for (&route, &key) in routes {
        networks.entry(key).or_default().insert(route);
    }
    networks
}

/// Returns what may pass from one peer of a pair to the other, both ways. A pair that would make it more than
/// [`MAX_BETWEEN`] passes nothing: its ends find another way.
fn between_peers(
    pairs: &BTreeSet<[PublicKey; 2]>,
    networks: &BTreeMap<PublicKey, BTreeSet<IpNet>>,
) -> BTreeSet<(IpNet, IpNet)> {
    let mut between = BTreeSet::new();
    for [one, other] in pairs {
        let (Some(one), Some(other)) = (networks.get(one), networks.get(other)) else { continue };
        let both = one.iter().flat_map(|&one| other.iter().map(move |&other| (one, other)));
        let alike = both.filter(|(one, other)| one.addr().is_ipv4() == other.addr().is_ipv4());
        let of_pair: Vec<_> = alike.flat_map(|(one, other)| [(one, other), (other, one)]).collect();
        if between.len() + of_pair.len() <= MAX_BETWEEN {
            between.extend(of_pair);
        }
    }
    between
}

/// Returns the mesh's own routes, those of the peers, and one to each address of a peer whose path carries less than the
/// link, so that nothing is sent to it that would be lost on the way, or that is behind a relay.
fn kernel_routes(
    inputs: &Inputs<'_>,
    addresses: &BTreeMap<PublicKey, Vec<IpAddr>>,
    routes: BTreeMap<IpNet, PublicKey>,
) -> BTreeSet<Route> {
    let route_to = |destination: IpNet, key: PublicKey| {
        let carrier = carrier(inputs, key);
        let is_of_family = |address: &&IpAddr| address.is_ipv4() == destination.addr().is_ipv4();
        let relay = addresses.get(&carrier).filter(|_| carrier != key);
        let gateway = relay.and_then(|relay| relay.iter().find(is_of_family).copied());
        Route { gateway, ..on_link(destination, inputs.peers.get(&carrier).and_then(|peer| peer.mtu)) }
    };
    let hosts = addresses.iter().flat_map(|(&key, all)| all.iter().map(move |&one| (one.into(), key)));
    let hosts = hosts.map(|(address, key)| route_to(address, key));
    let apart = hosts.filter(|route| route.mtu.is_some() || route.gateway.is_some());
    let own = subnets(inputs.subnets).into_iter().map(|subnet| on_link(subnet, None));
    let networks = routes.into_iter().map(|(route, owner)| route_to(route, owner));
    own.chain(networks).chain(apart).collect()
}

fn is_accepted(route: IpNet, inputs: &Inputs<'_>) -> bool {
    let inside = inputs.accept_routes.iter().any(|accepted| accepted.contains(&route));
    let named = inputs.accept_routes.contains(&route);
    let mut mesh = subnets(inputs.subnets).into_iter();
    let of_the_mesh = mesh.clone().any(|subnet| subnet.contains(&route));
    let covers_mesh = mesh.any(|subnet| route.contains(&subnet));
    let ours = inputs.own_networks.iter().any(|own| own.contains(&route) || route.contains(own));
    inside && !of_the_mesh && (named || !(covers_mesh || ours || route.prefix_len() == 0))
}

fn desired_peer(peer: &PlannedPeer<'_>, allowed_ips: BTreeSet<IpNet>) -> DesiredPeer {
    let (endpoint, keepalive) = match peer.reach {
        Reach::Not | Reach::Gone | Reach::Passive => (Endpoint::Keep, 0),
        Reach::Known(address) => (Endpoint::IfUnset(address), KEEPALIVE_S),
        Reach::Proved(address) => (Endpoint::Set(address), KEEPALIVE_S),
    };
    DesiredPeer { preshared_key: Some(peer.preshared_key.clone()), endpoint, keepalive, allowed_ips }
}

fn kept_as_is(orphan: &ObservedPeer, taken: &BTreeSet<IpNet>) -> DesiredPeer {
    DesiredPeer {
        preshared_key: None,
        endpoint: Endpoint::Keep,
        keepalive: orphan.keepalive,
        allowed_ips: orphan.allowed_ips.difference(taken).copied().collect(),
    }
}

/// Returns this node's addresses, without the IPv4 one that a lower key has: what it sends from there nobody takes from it, and
/// what is for the other it would take for its own.
fn own_addresses(inputs: &Inputs<'_>, claimed: &BTreeMap<PublicKey, MeshAddresses>) -> BTreeSet<IpNet> {
    let own = derive_mesh_addresses(inputs.network_id, inputs.subnets, inputs.public_key, inputs.nonce);
    let v4 = Ipv4Net::new(own.v4, inputs.subnets.v4.prefix_len()).expect("a subnet's own prefix length");
    let v6 = Ipv6Net::new(own.v6, inputs.subnets.v6.prefix_len()).expect("a subnet's own prefix length");
    let is_lost = claimed.range(..inputs.public_key).any(|(_, lower)| lower.v4 == own.v4);
    [IpNet::V4(v4), IpNet::V6(v6)].into_iter().filter(|net| net.addr().is_ipv6() || !is_lost).collect()
}

fn subnets(subnets: MeshSubnets) -> [IpNet; 2] {
    [subnets.v4.into(), subnets.v6.into()]
}

const fn on_link(destination: IpNet, mtu: Option<u32>) -> Route {
    Route { destination, gateway: None, metric: ROUTE_METRIC, mtu }
}

#[cfg(test)]
mod tests;
