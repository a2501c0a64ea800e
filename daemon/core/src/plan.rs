//! What the kernel should hold, from everything that is known: one pure function, [`desired`].
//!
//! Routes of a peer are taken by these criteria, in order:
//! 1. It lies inside one of the operator's `accept_routes`.
//! 2. It is no part of the mesh's own subnets.
//! 3. It is not the default route, does not cover the mesh and overlaps no network of this host, unless the
//!    operator named just this route.
//! 4. Of several peers with the same route the lowest key gets it, so that every node decides alike; but none that is gone.

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
    let addresses = surviving_addresses(inputs);
    let routes = peer_routes(inputs);
    let mut peers: BTreeMap<_, _> = inputs
        .peers
        .iter()
        .filter(|(_, peer)| !matches!(peer.reach, Reach::Not | Reach::Gone))
        .map(|(&key, peer)| {
            let mut allowed_ips: BTreeSet<IpNet> =
                addresses.get(&key).into_iter().flatten().map(|&address| IpNet::from(address)).collect();
            allowed_ips.extend(routes.iter().filter(|(_, owner)| **owner == key).map(|(&route, _)| route));
            (key, desired_peer(peer, allowed_ips))
        })
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
        addresses: own_addresses(inputs),
        peers,
        routes: kernel_routes(inputs, &addresses, routes),
        forwarding: Forwarding { networks: inputs.advertise_routes.clone(), between_peers: false },
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

/// Whether this node has lost its address to a lower key and must take its next nonce.
pub fn has_lost_address(inputs: &Inputs<'_>) -> bool {
    detect_collisions(&claimed_addresses(inputs)).contains(&inputs.public_key)
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

/// Returns the addresses that each peer may have: none that a lower key derives too.
fn surviving_addresses(inputs: &Inputs<'_>) -> BTreeMap<PublicKey, Vec<IpAddr>> {
    let losers: BTreeSet<_> = detect_collisions(&claimed_addresses(inputs)).into_iter().collect();
    inputs
        .peers
        .iter()
        .filter(|(key, _)| !losers.contains(key))
        .map(|(&key, peer)| {
            let addresses = match addresses_of(peer.record, inputs.network_id, inputs.subnets) {
                (Some(addresses), _) => addresses.both().to_vec(),
                (None, v6) => vec![v6],
            };
            (key, addresses)
        })
        .collect()
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

/// Returns the mesh's own routes, those of the peers, and one to each address of a peer whose path carries less than the
/// link: so nothing is sent to it that would be lost on the way.
fn kernel_routes(
    inputs: &Inputs<'_>,
    addresses: &BTreeMap<PublicKey, Vec<IpAddr>>,
    routes: BTreeMap<IpNet, PublicKey>,
) -> BTreeSet<Route> {
    let mtu = |key: &PublicKey| inputs.peers.get(key).and_then(|peer| peer.mtu);
    let narrow = addresses.iter().filter(|(key, _)| mtu(key).is_some());
    let hosts = narrow.flat_map(|(key, addresses)| {
        let mtu = mtu(key);
        addresses.iter().map(move |&address| (IpNet::from(address), mtu))
    });
    let own = subnets(inputs.subnets).into_iter().map(|subnet| (subnet, None));
    let networks = routes.into_iter().map(|(route, owner)| (route, mtu(&owner)));
    own.chain(networks).chain(hosts).map(|(destination, mtu)| on_link(destination, mtu)).collect()
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

fn own_addresses(inputs: &Inputs<'_>) -> BTreeSet<IpNet> {
    let own = derive_mesh_addresses(inputs.network_id, inputs.subnets, inputs.public_key, inputs.nonce);
    let v4 = Ipv4Net::new(own.v4, inputs.subnets.v4.prefix_len()).expect("a subnet's own prefix length");
    let v6 = Ipv6Net::new(own.v6, inputs.subnets.v6.prefix_len()).expect("a subnet's own prefix length");
    [IpNet::V4(v4), IpNet::V6(v6)].into()
}

fn subnets(subnets: MeshSubnets) -> [IpNet; 2] {
    [subnets.v4.into(), subnets.v6.into()]
}

const fn on_link(destination: IpNet, mtu: Option<u32>) -> Route {
    Route { destination, gateway: None, metric: ROUTE_METRIC, mtu }
}

#[cfg(test)]
mod tests;
