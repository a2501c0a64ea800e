//! When the plan is made anew, and from what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Command, Mesh, memory};
use crate::contact::Contact;
use crate::kernel::OwnerMark;
use crate::key::PublicKey;
use crate::plan::{self, Inputs, PlannedPeer, Reach};
use crate::store::Peer;
use crate::time::{Monotonic, Now};

impl Mesh {
    /// Recomputes the plan if anything it depends on has changed, and hands it to the applier if it differs.
    ///
    /// Waits until the applier has reported on the last one: a plan costs time with every peer, and the applier could
    /// not take up another sooner. So a fleet that starts at once costs a plan per round of the applier, not one per
    /// hello.
    pub(super) fn replan(&mut self, now: Now) {
        if self.planned.answered < self.planned.generation
            || self.observed.is_none()
            || !std::mem::take(&mut self.dirty)
        {
            return;
        }
        self.keep_address(now);
        let desired = plan::desired(&self.plan_inputs(now));
        if self.planned.desired.as_deref() == Some(&desired) {
            return;
        }
        self.planned.generation += 1;
        let desired = Arc::new(desired);
        self.planned.desired = Some(Arc::clone(&desired));
        self.commands
            .push_back(Command::Apply { generation: self.planned.generation, desired: Some(desired) });
    }

    /// Takes the next address that is free if a lower key has this node's.
    fn keep_address(&mut self, now: Now) {
        let free = plan::free_nonce(&self.plan_inputs(now));
        let had_none = std::mem::replace(&mut self.planned.has_no_address, free.is_none());
        match free {
            Some(nonce) if nonce == self.state.nonce => {}
            Some(nonce) => {
                self.state.nonce = nonce;
                let addresses = self.addresses();
                tracing::warn!(ipv4 = %addresses.v4, ipv6 = %addresses.v6, "a lower key has our mesh address; taking the next");
                self.renew_record(now);
            }
            None if !had_none => {
                tracing::error!(subnet = %self.subnets.v4, "lower keys have all addresses; others reach this node by IPv6 only");
            }
            None => {}
        }
    }

    /// Takes the operator's word on routes: what is accepted counts from the next plan on, which comes with this event,
    /// and what is advertised is told at once. What is as it was causes nothing.
    pub(super) fn reconfigure(
        &mut self,
        advertise_routes: BTreeSet<IpNet>,
        accept_routes: BTreeSet<IpNet>,
        now: Now,
    ) {
        if self.settings.accept_routes != accept_routes {
            self.settings.accept_routes = accept_routes;
            self.dirty = true;
        }
        if self.settings.advertise_routes != advertise_routes {
            self.settings.advertise_routes = advertise_routes;
            self.dirty = true;
            self.renew_record(now);
        }
    }

    fn plan_inputs(&self, now: Now) -> Inputs<'_> {
        let planned = |(key, peer): (PublicKey, &'_ Peer)| (key, self.reach(key, peer, now));
        let reaches: BTreeMap<_, _> = self.store.iter().map(planned).collect();
        Inputs {
            interface: &self.settings.interface,
            owner: OwnerMark::new(self.keys.owner_tag()),
            private_key: &self.state.wg_private_key,
            public_key: self.state.wg_pubkey,
            nonce: self.state.nonce,
            listen_port: self.listen_port,
            network_id: self.keys.network_id(),
            subnets: self.subnets,
            advertise_routes: &self.settings.advertise_routes,
            routed_pairs: &self.relays.routed_pairs,
            accept_routes: &self.settings.accept_routes,
            own_networks: self.own_networks(),
            peers: self
                .store
                .iter()
                .map(|(key, peer)| {
                    let record = peer.record().record();
                    let (preshared_key, mtu) = (&peer.pair.preshared, self.route_mtu(key));
                    (
                        key,
                        PlannedPeer { record, preshared_key, reach: reaches[&key], mtu, via: self.via(key) },
                    )
                })
                .collect(),
            orphans: &self.orphans,
        }
    }

    /// Returns where a peer is inside the mesh: by IPv4, unless its address there is not ours to send to, or the plan gives it to
    /// a lower key, or this node has none itself.
    pub(super) fn inner_ip(&self, key: PublicKey) -> Option<IpAddr> {
        let record = self.store.get(key)?.record().record();
        let (both, v6) = plan::addresses_of(record, self.keys.network_id(), self.subnets);
        let has_v4 = !self.planned.has_no_address;
        let v4 = both.map(|both| IpAddr::from(both.v4)).filter(|v4| has_v4 && self.goes_to(key, *v4));
        Some(v4.unwrap_or(v6))
    }

    /// Whether the plan sends what is for an address of a peer to it, or to the relay that routes to it.
    pub(super) fn goes_to(&self, key: PublicKey, address: IpAddr) -> bool {
        let carrier = self.via(key).unwrap_or(key);
        let peer = self.planned.desired.as_ref().and_then(|desired| desired.peers.get(&carrier));
        peer.is_none_or(|peer| peer.allowed_ips.contains(&IpNet::from(address)))
    }

    pub(super) fn own_networks(&self) -> BTreeSet<IpNet> {
        self.underlay.iter().flat_map(|link| link.addresses.iter().map(IpNet::trunc)).collect()
    }

    /// Says how a peer should be reached, by these criteria in order: given up; to be begun anew; proved somewhere, and ours to
    /// begin or begun before, unless a path that works leads elsewhere; already talking to our kernel; talking until its
    /// tunnel went stale; about to be met on a link; remembered.
    fn reach(&self, key: PublicKey, peer: &Peer, now: Now) -> Reach {
        if self.is_given_up(key) {
            return Reach::Gone;
        }
        if self.is_left_out(key) {
            return Reach::Not;
        }
        let contact = self.contacts.get(&key);
        let observed = self.observed.as_ref().and_then(|observed| observed.peers.get(&key));
        let talking = observed.filter(|observed| observed.last_handshake.is_some());
        let begun = contact.filter(|contact| contact.is_active() || talking.is_some());
        if let Some(place) = begun.and_then(Contact::proved_place) {
            let endpoint = place.endpoint(peer.record().record().listen_port);
            if let Some(used) = self.works_elsewhere(key, endpoint, now) {
                return Reach::Known(used);
            }
            return match self.proved.get(&key) {
                Some(&applied) if applied == endpoint => Reach::Known(endpoint),
                Some(_) | None => Reach::Proved(endpoint),
            };
        }
        if let Some(endpoint) = talking.and_then(|observed| observed.endpoint) {
            return Reach::Known(endpoint);
        }
        if let Some(endpoint) = self.reach.tunnels.health.last_endpoint(key) {
            return Reach::Known(endpoint);
        }
        if contact.is_some() || now.monotonic < self.cache_trusted_at() {
            return Reach::Passive;
        }
        peer.best_candidate(now.monotonic).map_or(Reach::Passive, Reach::Known)
    }

    /// Returns when remembered addresses are tried: at once where there is no LAN to meet peers on.
    pub(super) fn cache_trusted_at(&self) -> Monotonic {
        if self.settings.lan { self.started + memory::CACHE_GRACE } else { self.started }
    }
}
