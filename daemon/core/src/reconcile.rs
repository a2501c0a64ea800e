//! Decides which writes turn the kernel we see into the kernel we want.
//!
//! [`diff`] and [`withdraw`] are pure: the same pair gives the same writes, and a kernel that already holds what
//! is wanted gives none (W-D10). [`apply_to`] says what the writes would leave behind, so that an applier need
//! not read back what it has just written.
//!
//! Invariants:
//! - Only what is ours is changed. A link of another kind, or a WireGuard link that somebody else configured, is
//!   refused ([`Refusal`]) before a single write.
//! - Peers are added, changed and removed one by one; nothing ever replaces the whole list, because that would end
//!   every session.
//! - No inner address that a peer keeps is ever taken from it, not even for a moment: packets would be dropped. What it is
//!   to lose goes to [`NOBODY`], who is then removed; what another peer is to have is moved there.
//! - An endpoint that the kernel moved by itself is left alone unless the plan sets another ([`Endpoint`]).
//!
//! Order: peers that must go leave first, so that a link taken over from another mesh never serves its old peers
//! under the new key. Peers are set before the link comes up, so that the first packet finds its way. An address
//! or route that replaces another is added before the other is taken away, so that no packet falls between.

mod effect;
mod ownership;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

pub use effect::apply_to;
pub use ownership::Refusal;
use ownership::{Owner, owner_of};

use crate::kernel::{
    Desired, DesiredPeer, Device, Endpoint, Link, Observed, ObservedPeer, OwnerMark, PeerWrite, Route, Write,
};
use crate::key::PublicKey;

/// The metric that the kernel gives an IPv6 route that asks for none (`IP6_RT_PRIO_USER`).
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// A peer that nobody is, for inner addresses that are to be without a peer. WireGuard can only take a single one from a
/// peer by giving it to another (before Linux 6.16, `WGALLOWEDIP_F_REMOVE_ME`).
pub const NOBODY: PublicKey = PublicKey::from_bytes([0x77; 32]);

/// Returns the writes that make `observed` into `desired`, in the order in which they must be done.
///
/// # Errors
/// [`Refusal`] if a link of that name is there and is not ours.
pub fn diff(desired: &Desired, observed: &Observed) -> Result<Vec<Write>, Refusal> {
    let mut writes = Vec::new();
    link_writes(desired, observed, &mut writes)?;
    let current = observed.device.clone().unwrap_or_default();
    let wanted = wanted_peers(desired, &current);
    let gone: Vec<_> = observed.peers.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
    if !gone.is_empty() {
        writes.push(Write::RemovePeers(gone));
    }
    writes.extend(device_write(desired, &current));
    writes.extend(given_up(&wanted, observed).into_iter().flatten());
    let changed: Vec<_> =
        wanted.iter().filter_map(|(key, peer)| peer_write(*key, peer, observed.peers.get(key))).collect();
    if !changed.is_empty() {
        writes.push(Write::SetPeers(changed));
    }
    address_writes(desired, observed, &mut writes);
    if !matches!(observed.link, Link::WireGuard { up: true, .. }) {
        writes.push(Write::SetUp);
    }
    route_writes(desired, observed, &mut writes);
    Ok(writes)
}

/// Returns the writes that take away all that is ours: the marked link, and with it its peers, addresses and
/// routes. What is not ours stays, so there is nothing to refuse.
pub fn withdraw(observed: &Observed, owner: &OwnerMark) -> Vec<Write> {
    match owner_of(observed, owner) {
        Owner::Us | Owner::Nobody => vec![Write::DeleteLink],
        Owner::NoLink | Owner::OtherMesh | Owner::Foreign(_) => Vec::new(),
    }
}

fn link_writes(desired: &Desired, observed: &Observed, writes: &mut Vec<Write>) -> Result<(), Refusal> {
    match owner_of(observed, &desired.owner) {
        Owner::NoLink => {
            writes.push(Write::CreateLink { owner: desired.owner.clone(), mtu: desired.mtu });
        }
        Owner::Us => {}
        Owner::Nobody | Owner::OtherMesh => writes.push(Write::MarkLink(desired.owner.clone())),
        Owner::Foreign(found) => {
            return Err(Refusal { interface: desired.interface.clone(), found });
        }
    }
    match observed.link {
        Link::WireGuard { mtu, .. } if mtu != desired.mtu => writes.push(Write::SetMtu(desired.mtu)),
        Link::Missing | Link::OtherKind { .. } | Link::WireGuard { .. } => {}
    }
    Ok(())
}

/// A peer as it is wanted, after the plan's ambiguities are settled.
struct WantedPeer<'a> {
    plan: &'a DesiredPeer,
    allowed_ips: BTreeSet<IpNet>,
}

/// Gives each inner prefix to one peer only, the one with the lowest key: WireGuard would move a prefix named twice
/// to and fro forever. Leaves out our own key, which WireGuard takes as a peer without a word and never keeps.
fn wanted_peers<'a>(desired: &'a Desired, device: &Device) -> BTreeMap<PublicKey, WantedPeer<'a>> {
    let mut taken = BTreeSet::new();
    let others = desired.peers.iter().filter(|(key, _)| device.public_key != Some(**key));
    others
        .map(|(key, plan)| {
            let prefixes = plan.allowed_ips.iter().map(IpNet::trunc);
            (
                *key,
                WantedPeer { plan, allowed_ips: prefixes.filter(|prefix| taken.insert(*prefix)).collect() },
            )
        })
        .collect()
}

/// Takes from peers that stay what no peer is to have.
fn given_up(wanted: &BTreeMap<PublicKey, WantedPeer<'_>>, observed: &Observed) -> Option<[Write; 2]> {
    let taken: BTreeSet<_> = wanted.values().flat_map(|peer| &peer.allowed_ips).collect();
    let kept = observed.peers.iter().filter(|(key, _)| wanted.contains_key(key));
    let held = kept.flat_map(|(_, peer)| &peer.allowed_ips);
    let lost: BTreeSet<IpNet> = held.filter(|prefix| !taken.contains(prefix)).copied().collect();
    let write = PeerWrite {
        key: NOBODY,
        create: true,
        preshared_key: None,
        endpoint: None,
        keepalive: None,
        allowed_ips: Some(lost),
    };
    let is_needed = write.allowed_ips.as_ref().is_some_and(|lost| !lost.is_empty());
    is_needed.then(|| [Write::SetPeers(vec![write]), Write::RemovePeers(vec![NOBODY])])
}

fn device_write(desired: &Desired, device: &Device) -> Option<Write> {
    let fwmark = desired.fwmark.unwrap_or(0);
    let has_key = device.public_key.is_some_and(|key| key == desired.private_key.public());
    let private_key = (!has_key).then(|| desired.private_key.clone());
    let listen_port = (device.listen_port != desired.listen_port).then_some(desired.listen_port);
    let fwmark = (device.fwmark != fwmark).then_some(fwmark);
    let differs = private_key.is_some() || listen_port.is_some() || fwmark.is_some();
    differs.then_some(Write::SetDevice { private_key, listen_port, fwmark })
}

fn peer_write(key: PublicKey, wanted: &WantedPeer<'_>, observed: Option<&ObservedPeer>) -> Option<PeerWrite> {
    let create = observed.is_none();
    let blank = ObservedPeer::default();
    let current = observed.unwrap_or(&blank);
    let endpoint = endpoint_write(wanted.plan.endpoint, current.endpoint);
    // Without an endpoint a keepalive could only fail; it is turned on as soon as there is one.
    let can_send = endpoint.is_some() || current.endpoint.is_some();
    let keepalive = if can_send { wanted.plan.keepalive } else { 0 };
    let stored = current.preshared_key.as_ref().map_or(&[0; 32], |key| key.as_bytes());
    let preshared_key = wanted.plan.preshared_key.clone().filter(|key| key.as_bytes() != stored);
    let keepalive = (keepalive != current.keepalive).then_some(keepalive);
    let missing: BTreeSet<_> = wanted.allowed_ips.difference(&current.allowed_ips).copied().collect();
    let allowed_ips = (!missing.is_empty()).then_some(missing);
    let differs =
        endpoint.is_some() || preshared_key.is_some() || keepalive.is_some() || allowed_ips.is_some();
    (create || differs).then_some(PeerWrite { key, create, preshared_key, endpoint, keepalive, allowed_ips })
}

fn endpoint_write(wanted: Endpoint, current: Option<SocketAddr>) -> Option<SocketAddr> {
    match wanted {
        Endpoint::Keep => None,
        Endpoint::IfUnset(address) => current.is_none().then(|| plain(address)),
        Endpoint::Set(address) => (current.map(plain) != Some(plain(address))).then(|| plain(address)),
    }
}

/// Writes an IPv4-mapped IPv6 address as IPv4, and drops the flow label, which the kernel does not report back.
fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(mut v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => {
                v6.set_flowinfo(0);
                SocketAddr::V6(v6)
            }
        },
    }
}

fn address_writes(desired: &Desired, observed: &Observed, writes: &mut Vec<Write>) {
    let possible = desired.addresses.iter().filter(|address| takes(observed, address.addr()));
    writes.extend(possible.filter(|a| !observed.addresses.contains(a)).map(|a| Write::AddAddress(*a)));
    writes.extend(observed.addresses.difference(&desired.addresses).map(|a| Write::RemoveAddress(*a)));
}

/// Adds what is missing first. A route that keeps destination and metric and changes its gateway is one `AddRoute`.
fn route_writes(desired: &Desired, observed: &Observed, writes: &mut Vec<Write>) {
    let possible = desired.routes.iter().filter(|route| takes(observed, route.destination.addr()));
    let wanted: BTreeSet<Route> = possible.map(normal).collect();
    let kept: BTreeSet<_> = wanted.iter().map(|route| (route.destination, route.metric)).collect();
    writes.extend(wanted.difference(&observed.routes).map(|route| Write::AddRoute(*route)));
    let stale = observed.routes.iter().filter(|route| !kept.contains(&(route.destination, route.metric)));
    writes.extend(stale.map(|route| Write::RemoveRoute(*route)));
}

/// Returns the route as the kernel reports it: host bits cleared, and IPv6's default metric spelt out.
fn normal(route: &Route) -> Route {
    let metric = match (route.destination, route.metric) {
        (IpNet::V6(_), 0) => IPV6_DEFAULT_METRIC,
        (IpNet::V4(_) | IpNet::V6(_), metric) => metric,
    };
    Route { destination: route.destination.trunc(), metric, ..*route }
}

/// Returns whether the link can hold something of the address's family. A link that is still to be made is given
/// the benefit of the doubt.
fn takes(observed: &Observed, address: IpAddr) -> bool {
    match observed.link {
        Link::WireGuard { ipv6, .. } => address.is_ipv4() || ipv6,
        Link::Missing | Link::OtherKind { .. } => true,
    }
}

#[cfg(test)]
mod tests;
