//! Says what writes leave behind: the kernel's own rules, as far as [`super::diff`] relies on them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::kernel::{Device, Link, Observed, ObservedPeer, PeerWrite, Route, Write};
use crate::key::PublicKey;

/// Changes `observed` as the kernel changes when `writes` are done in order. An unknown link index stays zero.
pub fn apply_to(observed: &mut Observed, writes: &[Write]) {
    for write in writes {
        apply_one(observed, write);
    }
}

fn apply_one(observed: &mut Observed, write: &Write) {
    match write {
        Write::CreateLink { owner, mtu } => create_link(observed, owner.as_str(), *mtu),
        Write::MarkLink(owner) => {
            if let Link::WireGuard { alias, .. } = &mut observed.link {
                *alias = Some(owner.as_str().to_owned());
            }
        }
        Write::SetMtu(wanted) => {
            if let Link::WireGuard { mtu, .. } = &mut observed.link {
                *mtu = *wanted;
            }
        }
        Write::SetUp => {
            if let Link::WireGuard { up, .. } = &mut observed.link {
                *up = true;
            }
        }
        Write::DeleteLink => *observed = Observed::default(),
        Write::SetDevice { private_key, listen_port, fwmark } => {
            let device = observed.device.get_or_insert_default();
            if let Some(key) = private_key {
                let public_key = key.public();
                device.public_key = Some(public_key);
                observed.peers.remove(&public_key);
            }
            device.listen_port = listen_port.unwrap_or(device.listen_port);
            device.fwmark = fwmark.unwrap_or(device.fwmark);
        }
        Write::RemovePeers(keys) => {
            for key in keys {
                observed.peers.remove(key);
            }
        }
        Write::SetPeers(peers) => set_peers(observed, peers),
        Write::AddAddress(address) => drop(observed.addresses.insert(*address)),
        Write::RemoveAddress(address) => drop(observed.addresses.remove(address)),
        Write::AddRoute(route) => add_route(observed, *route),
        Write::RemoveRoute(route) => drop(observed.routes.remove(route)),
    }
}

fn create_link(observed: &mut Observed, alias: &str, mtu: u32) {
    let link = Link::WireGuard { index: 0, alias: Some(alias.to_owned()), up: false, mtu, ipv6: true };
    *observed = Observed { link, device: Some(Device::default()), ..Observed::default() };
}

/// A prefix belongs to one peer: giving it to one takes it from the other.
fn set_peers(observed: &mut Observed, writes: &[PeerWrite]) {
    let named: BTreeSet<IpNet> =
        writes.iter().filter_map(|write| write.allowed_ips.as_ref()).flatten().copied().collect();
    let held =
        observed.peers.iter().flat_map(|(&key, peer)| peer.allowed_ips.iter().map(move |&net| (net, key)));
    let mut holders: BTreeMap<IpNet, PublicKey> = held.filter(|(prefix, _)| named.contains(prefix)).collect();
    let own = observed.device.as_ref().and_then(|device| device.public_key);
    for write in writes {
        let is_known = write.create || observed.peers.contains_key(&write.key);
        if !is_known || own == Some(write.key) {
            continue;
        }
        for &prefix in write.allowed_ips.iter().flatten() {
            let before = holders.insert(prefix, write.key).and_then(|key| observed.peers.get_mut(&key));
            if let Some(before) = before {
                before.allowed_ips.remove(&prefix);
            }
        }
        let peer: &mut ObservedPeer = observed.peers.entry(write.key).or_default();
        if let Some(key) = &write.preshared_key {
            peer.preshared_key = Some(key.clone());
        }
        peer.allowed_ips.extend(write.allowed_ips.iter().flatten());
        peer.endpoint = write.endpoint.or(peer.endpoint);
        peer.keepalive = write.keepalive.unwrap_or(peer.keepalive);
    }
}

fn add_route(observed: &mut Observed, route: Route) {
    observed.routes.retain(|other| (other.destination, other.metric) != (route.destination, route.metric));
    observed.routes.insert(route);
}
