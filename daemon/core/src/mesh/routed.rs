//! Relays that route (DESIGN 7): what belongs to a peer is sent to the relay's tunnel, and the relay's kernel sends it on.
//!
//! Such a path is proved and watched by the same pings as any other ([`crate::path`]); they go to the peer's mesh address,
//! and so take the way of the packets. They can pass only once both ends have given the peer's networks to the relay, so
//! this is done first, for a peer that no packet reaches anyway, and undone where no answer comes.
//!
//! Invariants:
//! - Nothing is given to a relay that was not asked by this node, or by the peer as its own proved word says.
//! - Networks go back to the peer itself when both ends know that the tunnel is up between them: the kernel takes packets of
//!   a node from one peer only, so what one end sends before the other is ready would be lost.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::kernel::REPORT_INTERVAL;
use super::{Command, Mesh};
use crate::kernel::{Observed, SESSION_OVERDUE};
use crate::key::PublicKey;
use crate::message::{Choice, DiscoBody, Paired as _, Unproved};
use crate::path::{Kind, Origin, Paths};
use crate::relay::{Refusal, Seeker};
use crate::time::{Monotonic, Now};

impl Mesh {
    /// Takes up the pairs that an earlier run routed for. Call it before the first event.
    pub fn restore_routed(&mut self, pairs: &[[PublicKey; 2]], now: Now) {
        if self.routes_for_others() {
            self.relays.router.restore(pairs, now.monotonic);
        }
    }

    /// Returns the relay to which the plan gives what belongs to a peer.
    pub(super) fn via(&self, key: PublicKey) -> Option<PublicKey> {
        self.relays.via.get(&key).copied()
    }

    /// Returns the relay that routes packets to a peer, once the peer has answered through it.
    pub(super) fn routed_by(&self, key: PublicKey) -> Option<PublicKey> {
        let works = self.reach.paths.get(&key).is_some_and(|paths| paths.works() && paths.is_routed());
        self.via(key).filter(|_| works)
    }

    /// Whether an address is one inside the mesh.
    pub(super) fn is_inner(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => self.subnets.v4.contains(&ip),
            IpAddr::V6(ip) => self.subnets.v6.contains(&ip),
        }
    }

    /// Whether relays for a peer are to route: both ends are set to it.
    pub(super) fn is_to_be_routed(&self, key: PublicKey) -> bool {
        self.settings.relay.routes() && self.relays.seekers.get(&key).is_some_and(Seeker::is_routed)
    }

    /// Has the plan follow the relays that are tried and used.
    pub(super) fn follow_routed(&mut self) {
        if !self.settings.relay.routes() {
            return;
        }
        let subnets = self.subnets;
        let is_inner = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => subnets.v4.contains(&ip),
            IpAddr::V6(ip) => subnets.v6.contains(&ip),
        };
        let routed = |(&key, seeker): (&PublicKey, &Seeker)| Some((key, seeker.relay_where(is_inner)?));
        let via: BTreeMap<_, _> = self.relays.seekers.iter().filter_map(routed).collect();
        if via != self.relays.via {
            self.relays.via = via;
            self.dirty = true;
        }
    }

    /// Asks a relay to route between this node and a peer, or to go on with it. The lower key does so for both.
    pub(super) fn ask_to_route(&mut self, key: PublicKey, relay: PublicKey, now: Now) {
        let endpoint = self.direct_endpoint(relay, now).filter(|_| self.state.wg_pubkey < key);
        let (Some(endpoint), Some(peer)) = (endpoint, self.store.get(key)) else { return };
        let pair = peer.pair.clone();
        let choice = Choice { key: self.state.wg_pubkey, stamp: self.next_stamp(), relay };
        let choice = choice.encode_proved(key, &pair).into();
        self.send_disco(relay, endpoint, DiscoBody::Route { peer: key, choice }, now);
    }

    /// Routes between a node and another for which it asks, and tells both.
    pub(super) fn on_route(
        &mut self,
        key: PublicKey,
        peer: PublicKey,
        choice: Vec<u8>,
        from: SocketAddr,
        now: Now,
    ) {
        if !self.take_carry(key, now) {
            return self.drop_input("carry limit", from);
        }
        // A daemon that hung answers no pings, but its kernel goes on: what works is not refused.
        let known = || self.live_endpoint(peer, now).filter(|_| self.relays.router.serves(key, peer));
        let outcome = match self.direct_endpoint(peer, now).or_else(known) {
            _ if !self.routes_for_others() => Err(Refusal::NotServing),
            Some(endpoint) if peer != key => {
                self.relays.router.take(key, peer, now.monotonic).map(|()| endpoint)
            }
            Some(_) | None => Err(Refusal::Unreached),
        };
        match outcome {
            Ok(endpoint) => {
                self.send_disco(key, from, DiscoBody::Routed { peer, choice: None }, now);
                let choice = Some(choice.into());
                self.send_disco(peer, endpoint, DiscoBody::Routed { peer: key, choice }, now);
            }
            Err(refusal) => self.refuse_relay(key, peer, refusal, from, now),
        }
    }

    /// Follows a relay that says that it routes between this node and a peer.
    pub(super) fn on_routed(
        &mut self,
        relay: PublicKey,
        peer: PublicKey,
        choice: Option<&[u8]>,
        from: SocketAddr,
        now: Now,
    ) {
        let is_relay = self.store.get(relay).is_some_and(|peer| peer.record().record().relay);
        let is_fit = self.settings.relay.routes() && self.direct_endpoint(relay, now).is_some();
        let address = self.inner_endpoint(peer).filter(|_| is_relay && is_fit && peer != relay);
        let Some(address) = address else { return self.drop_input("unasked", from) };
        if choice.is_some_and(|choice| !self.is_choice(relay, peer, choice, from, now)) {
            return;
        }
        let works = self.reach.paths.get(&peer).is_some_and(Paths::works_directly);
        if (works || self.is_met_on_link(peer)) && self.via(peer).is_none() {
            self.relays.seekers.entry(peer).or_default().leave(relay);
            return;
        }
        let seeker = self.relays.seekers.entry(peer).or_default();
        let is_news = match choice {
            Some(_) => seeker.take_choice(relay, address, now.monotonic),
            None => seeker.handle_allocated(relay, address, false, now.monotonic),
        };
        if is_news {
            let paths = self.reach.paths.entry(peer).or_default();
            paths.add(address, Origin::Relay, Kind::Routed, now.monotonic);
            paths.compare(address, now.monotonic);
            self.drive(peer, now);
        }
    }

    /// Whether it is the peer itself that has chosen a relay for this node too.
    fn is_choice(
        &mut self,
        relay: PublicKey,
        peer: PublicKey,
        bytes: &[u8],
        from: SocketAddr,
        now: Now,
    ) -> bool {
        let reason = match (Unproved::<Choice>::decode(bytes), self.store.get(peer)) {
            (None, _) => "malformed",
            (Some(_), None) => "no record",
            (Some(unproved), Some(stored)) => {
                let own = self.state.wg_pubkey;
                let proved = unproved.prove(own, &stored.pair);
                let paths = self.reach.paths.entry(peer).or_default();
                match proved.filter(|choice| choice.key == peer && choice.relay == relay && peer < own) {
                    Some(choice) if paths.is_new(choice.stamp, now.monotonic) => return true,
                    Some(_) => "replayed",
                    None => "forged",
                }
            }
        };
        self.drop_input(reason, from);
        false
    }

    /// Follows a peer's word that the tunnel to it is up.
    pub(super) fn on_direct(&mut self, key: PublicKey, answer: bool, from: SocketAddr, now: Now) {
        if self.via(key).is_none() {
            if !answer && self.live_endpoint(key, now).is_some() {
                self.send_disco(key, from, DiscoBody::Direct { answer: true }, now);
            }
            return;
        }
        if let Some(seeker) = self.relays.seekers.get_mut(&key) {
            seeker.hear_direct(now.monotonic);
        }
        self.come_back(key, now);
        if self.via(key).is_some() {
            // Whether it is up here too.
            self.commands.push_back(Command::Look);
        }
    }

    /// Leaves the relay that routes to a peer once the tunnel to the peer itself is up at both ends.
    pub(super) fn come_back(&mut self, key: PublicKey, now: Now) {
        let relay = self.via(key);
        let endpoint = relay.and_then(|_| self.tunnel_endpoint(key, now));
        let Some(seeker) = self.relays.seekers.get_mut(&key) else { return };
        let has_heard = seeker.has_heard_direct(now.monotonic);
        let is_told = seeker.take_telling(endpoint.is_some(), now.monotonic);
        let (Some(relay), Some(endpoint)) = (relay, endpoint) else { return };
        if has_heard {
            tracing::info!(peer = %key, %relay, %endpoint, "no relay need route any more");
            seeker.leave(relay);
            self.follow_routed();
        }
        if has_heard || is_told {
            self.send_disco(key, endpoint, DiscoBody::Direct { answer: has_heard }, now);
        }
    }

    /// Returns the proved endpoint of a peer with which the kernel has a session. One that was renewed in time is told of with
    /// the next report that is due anyway.
    fn tunnel_endpoint(&self, key: PublicKey, now: Now) -> Option<SocketAddr> {
        let current = self.reach.paths.get(&key).filter(|paths| paths.works_directly())?.current();
        let observed = self.observed.as_ref()?.peers.get(&key)?;
        let age = now.wall.since(observed.last_handshake?);
        observed.endpoint.filter(|_| observed.endpoint == current && age <= SESSION_OVERDUE + REPORT_INTERVAL)
    }

    /// Takes up the relays that route for this node since an earlier run, as the kernel has them.
    pub(super) fn adopt_routed(&mut self, observed: &Observed, now: Monotonic) {
        if !self.settings.relay.routes() {
            return;
        }
        let owned =
            observed.peers.iter().flat_map(|(&key, peer)| peer.allowed_ips.iter().map(move |&ip| (ip, key)));
        let owners: BTreeMap<_, _> = owned.collect();
        for key in self.store.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            let Some(address) = self.inner_endpoint(key) else { continue };
            let owner = owners.get(&address.ip().into()).copied();
            if let Some(relay) = owner.filter(|&owner| owner != key && self.store.get(owner).is_some()) {
                self.relays.seekers.entry(key).or_default().adopt(relay, address, now);
                let paths = self.reach.paths.entry(key).or_default();
                paths.follow_kernel(address, Kind::Routed, now);
                paths.verify(now);
            }
        }
    }

    /// Hands on the pairs for which this node routes, where they have changed.
    pub(super) fn drive_router(&mut self, now: Now) {
        self.relays.router.handle_timeout(now.monotonic);
        let pairs = self.relays.router.pairs();
        if pairs != self.relays.routed_pairs {
            tracing::info!(pairs = pairs.len(), "routing between other nodes");
            self.commands.push_back(Command::SaveRouted(pairs.iter().copied().collect()));
            self.relays.routed_pairs = pairs;
            self.dirty = true;
        }
    }

    const fn routes_for_others(&self) -> bool {
        self.settings.relay.routes() && self.may_serve()
    }

    /// Returns where WireGuard's port of a peer is inside the mesh.
    pub(super) fn inner_endpoint(&self, key: PublicKey) -> Option<SocketAddr> {
        let record = self.store.get(key)?.record().record();
        Some(SocketAddr::new(self.inner_ip(key)?, record.listen_port))
    }
}
