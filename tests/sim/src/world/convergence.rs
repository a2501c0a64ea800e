//! When a world counts as meshed, and as quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use wgmesh_core::key::PublicKey;

use super::{Violation, World};
use crate::host::Host;
use crate::network::HostId;

impl World {
    /// Whether every node that runs can send to every other one of its mesh that it shares a segment with, whose NATs
    /// let the two have a direct path, or with whom it has a relay in common.
    ///
    /// Cheap to ask after every event: it remembers the pair that was missing last and looks there first.
    pub fn is_meshed(&mut self) -> bool {
        if self.unmeshed.is_some_and(|(one, other)| self.lacks(one, other).is_some()) {
            return false;
        }
        self.unmeshed = self.find_unmeshed().map(|(one, other, _)| (one, other));
        self.unmeshed.is_none()
    }

    /// Says for a pair that cannot talk what is missing.
    pub fn why_unmeshed(&self) -> Option<String> {
        let (one, other, missing) = self.find_unmeshed()?;
        Some(format!("from node-{} to node-{}: {missing}", one.0, other.0))
    }

    /// Lets time pass until the world is meshed, and fails if that takes longer than `limit`. Returns how long it
    /// took.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn run_until_meshed(&mut self, limit: Duration) -> Result<Duration, Violation> {
        match self.run_until(limit, Self::is_meshed)? {
            Some(span) => {
                self.check_addresses()?;
                Ok(span)
            }
            None => {
                let (one, other, missing) = self.find_unmeshed().expect("it is not meshed");
                Err(self.violation(
                    one,
                    format!("after {limit:?} still no tunnel to node-{}: {missing}", other.0),
                ))
            }
        }
    }

    /// Lets time pass and fails if any node does more than beacon: no write to a kernel, no hello.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check_quiet(&mut self, span: Duration) -> Result<(), Violation> {
        let work = |world: &Self| -> Vec<_> {
            world.hosts.iter().map(|host| (host.kernel.writes(), host.totals.hellos)).collect()
        };
        let before = work(self);
        self.run_for(span)?;
        for (number, (before, after)) in before.into_iter().zip(work(self)).enumerate() {
            if before != after {
                let what = format!("it should rest: (writes, hellos) went from {before:?} to {after:?}");
                return Err(self.violation(HostId(number), what));
            }
        }
        Ok(())
    }

    /// Fails unless all kernels agree on which inner address belongs to which peer.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check_addresses(&self) -> Result<(), Violation> {
        let mut owners: BTreeMap<(u8, IpNet), PublicKey> = BTreeMap::new();
        let routers: Vec<_> = self.hosts.iter().filter(|host| host.kernel.is_router()).collect();
        let is_routed = |net: IpNet, key| {
            routers.iter().any(|host| host.public_key() == key && host.kernel.forwards_from(net.addr()))
        };
        for (id, host) in self.running() {
            let own = host.kernel.addresses().map(|net| (single(net), host.public_key()));
            let peers = host.kernel.peers();
            let peers = peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |&net| (net, key)));
            for (net, key) in own.chain(peers).filter(|&(net, key)| !is_routed(net, key)) {
                let owner = *owners.entry((host.plan.secret, net)).or_insert(key);
                if owner != key {
                    return Err(self.violation(id, format!("{net} is {key}'s here and {owner}'s elsewhere")));
                }
            }
        }
        Ok(())
    }

    fn running(&self) -> impl Iterator<Item = (HostId, &Host)> {
        self.hosts().filter(|(_, host)| host.mesh().is_some())
    }

    fn find_unmeshed(&self) -> Option<(HostId, HostId, &'static str)> {
        self.running().find_map(|(one, _)| {
            self.running().find_map(|(other, _)| Some((one, other, self.lacks(one, other)?)))
        })
    }

    /// Says what one node lacks to send to another, if the two should be able to.
    fn lacks(&self, one: HostId, other: HostId) -> Option<&'static str> {
        let (from, to) = (self.host(one), self.host(other));
        let is_expected = one != other
            && from.plan.secret == to.plan.secret
            && from.mesh().is_some()
            && to.mesh().is_some()
            && (self.network.are_connected(one, other) || self.share_relay(one, other));
        if !is_expected {
            return None;
        }
        self.missing(one, other)
    }

    /// Says what one node lacks to send to another right now.
    pub(super) fn missing(&self, one: HostId, other: HostId) -> Option<&'static str> {
        let (from, to) = (self.host(one), self.host(other));
        let Some(peer) = from.kernel.peer(to.public_key()) else { return Some("no peer in its kernel") };
        let addresses: BTreeSet<IpNet> = to.kernel.addresses().map(single).collect();
        let carrier = addresses.first().and_then(|net| from.kernel.owner(net.addr()));
        if let Some(relay) = carrier.filter(|carrier| *carrier != to.public_key()) {
            return self.missing_routed(one, other, relay);
        }
        if addresses.is_empty() || !peer.allowed_ips.is_superset(&addresses) {
            return Some("its kernel does not send the peer's addresses there");
        }
        if !from.kernel.routes().any(|route| addresses.iter().any(|net| route.destination.contains(net))) {
            return Some("no route");
        }
        let Some(endpoint) = peer.endpoint else { return Some("no endpoint") };
        if !self.leads_to(one, endpoint, other) {
            return Some("its endpoint does not lead to the peer");
        }
        let Some(session) = peer.sending_session(from.now(self.now).monotonic) else {
            return Some("no session");
        };
        let back = to.kernel.peer(from.public_key());
        if !back.is_some_and(|back| back.takes_session(session, to.now(self.now).monotonic)) {
            return Some("its session is unknown to the peer");
        }
        None
    }

    /// Says what one node lacks to send to another through a relay that routes.
    fn missing_routed(&self, one: HostId, other: HostId, relay: PublicKey) -> Option<&'static str> {
        let Some((relay, host)) = self.hosts().find(|(_, host)| host.public_key() == relay) else {
            return Some("its kernel sends the peer's addresses to nobody");
        };
        let v4 = |id: HostId| self.host(id).kernel.addresses().find(|net| net.addr().is_ipv4());
        let (Some(from), Some(to)) = (v4(one), v4(other)) else { return Some("no address") };
        if !host.kernel.forwards(from.addr(), to.addr()) {
            return Some("the relay does not route");
        }
        if self.host(other).kernel.owner(from.addr()) != Some(host.public_key()) {
            return Some("the peer does not take from the relay");
        }
        self.missing(one, relay).or_else(|| self.missing(relay, other))
    }

    /// Whether what one host's WireGuard sends to an endpoint would reach the other's now.
    fn leads_to(&self, one: HostId, endpoint: SocketAddr, other: HostId) -> bool {
        let listens = self.host(other).kernel.open_port();
        // On a common link this is enough, and cheap.
        if self.network.share_link(one, other) && self.network.is_address_of(endpoint.ip(), other, false) {
            return listens == Some(endpoint.port());
        }
        let Some(port) = self.host(one).kernel.open_port() else { return false };
        let Some(trial) = self.network.trial(one, port, endpoint, self.now) else { return false };
        let (host, from, to) = (trial.host, trial.datagram.from, trial.datagram.to);
        match self.host(host).relayed(to.port(), from) {
            Some((port, next)) => {
                let onward = self.network.trial(host, port, next, self.now);
                onward.is_some_and(|last| last.host == other && listens == Some(last.datagram.to.port()))
            }
            None => host == other && listens == Some(to.port()),
        }
    }
}

fn single(net: IpNet) -> IpNet {
    IpNet::from(net.addr())
}
