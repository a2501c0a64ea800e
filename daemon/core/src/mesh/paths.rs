//! Paths through NATs: pings and pongs between WireGuard ports.
//!
//! A peer that was met on a common link needs none of this. Every other one has [`Paths`]; once an address has
//! answered there, the hello exchange of [`crate::contact`] runs through it and the tunnel comes up as on a LAN.
//!
//! What others make us send is bounded: a ping is answered by one pong that is no longer, and candidates that nobody has
//! proved share a bucket per address.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng as _;

use super::kernel::SESSION_LIFETIME;
use super::{Command, Mesh, Recipient, Transmit};
use crate::bucket::AddressBuckets;
use crate::contact::{Contact, Place, Via};
use crate::kernel::Observed;
use crate::key::PublicKey;
use crate::message::{Disco, DiscoBody, PING_PADDING_BYTES, Paired as _, Token, Unproved};
use crate::nat::{Nat, NatType, Strategy};
use crate::path::{Kind, Origin, Paths, Ping};
use crate::seal;
use crate::store::{Claim, Source};
use crate::time::{Monotonic, Now};

/// For this long a peer that may be met on a link is not pinged: the exchange there is quicker.
const LAN_GRACE: Duration = Duration::from_millis(500);

/// Pings to one address at which nobody has answered yet: 128 at once, then two a second. Whenever a peer answers there,
/// which nobody can do for a stranger, the next 128 are free: a site with many peers behind one address is soon known.
const TARGET_BURST: u32 = 128;
const TARGET_INTERVAL: Duration = Duration::from_millis(500);

/// A session this old should have been renewed by a keepalive (`REKEY_AFTER_TIME`, 120 s, and some seconds to do it).
const SESSION_OVERDUE: Duration = Duration::from_secs(135);

/// Bytes that WireGuard's own keepalives and handshakes may take between two readings; more is traffic, unless it is
/// this node's own gossip.
const QUIET_BYTES: u64 = 300;

impl Mesh {
    /// Looks for a path to a peer that has become known, unless it is met on a link.
    pub(super) fn seek(&mut self, key: PublicKey, now: Now) {
        let news = self.add_recorded_candidates(key, now.monotonic);
        if !self.settings.punching || self.is_reached(key, now) {
            return self.compare_all(key, &news, now);
        }
        let Some(peer) = self.store.get(key) else { return };
        // Whoever was told of by another is at no link as far as we know: the same private networks are in every house.
        let of_our_links = |source: &Source| matches!(source, Source::Lan | Source::Cache);
        let may_be_met = self.settings.lan && peer.sources.keys().all(of_our_links);
        let paths = self.reach.paths.entry(key).or_default();
        match (may_be_met, !news.is_empty()) {
            (true, _) => paths.begin_at(now.monotonic + LAN_GRACE),
            (false, true) => paths.begin(now.monotonic),
            (false, false) => paths.begin_at(now.monotonic),
        }
    }

    /// Tries new addresses of a peer that is reached, unless it is met on a link.
    fn compare_all(&mut self, key: PublicKey, addresses: &[SocketAddr], now: Now) {
        if !self.settings.punching || self.is_met_on_link(key) {
            return;
        }
        if let Some(paths) = self.reach.paths.get_mut(&key).filter(|paths| paths.current().is_some()) {
            // A peer with a new address may have lost the old one.
            if !addresses.is_empty() {
                paths.verify(now.monotonic);
            }
            addresses.iter().for_each(|&address| paths.compare(address, now.monotonic));
        }
    }

    /// Returns what is known of the paths to a peer.
    pub fn paths(&self, key: PublicKey) -> Option<&Paths> {
        self.reach.paths.get(&key)
    }

    pub(super) fn ping(&mut self, key: PublicKey, now: Now) {
        if self.store.get(key).is_none() {
            return;
        }
        self.add_recorded_candidates(key, now.monotonic);
        let endpoint = self.live_endpoint(key, now);
        let kind = endpoint.map(|endpoint| self.kind_at(key, endpoint));
        let paths = self.reach.paths.entry(key).or_default();
        if let (Some(endpoint), Some(kind)) = (endpoint, kind) {
            paths.follow_kernel(endpoint, kind, now.monotonic);
        }
        paths.ping_now(now.monotonic);
    }

    /// Has every path looked at anew: this host's links, addresses or routes are not what they were.
    pub(super) fn verify_paths(&mut self, now: Now) {
        let keys: Vec<_> = self.store.iter().map(|(key, _)| key).collect();
        let mut somebody_rests = false;
        for key in keys {
            self.add_recorded_candidates(key, now.monotonic);
            let on_link = self.is_met_on_link(key);
            let Some(paths) = self.reach.paths.get_mut(&key) else { continue };
            paths.verify(now.monotonic);
            if on_link {
                continue;
            }
            if paths.current().is_none() || paths.is_used(now.monotonic) {
                paths.begin(now.monotonic);
            } else {
                paths.look_when_used();
                somebody_rests = true;
            }
        }
        if somebody_rests {
            // Whether it really does: the last reading may be older than the traffic.
            self.commands.push_back(Command::Look);
        }
    }

    /// Follows what a reading says of paths: what the kernel uses, whether there is traffic, what has gone silent.
    pub(super) fn follow_paths(&mut self, observed: &Observed, before: Option<&Observed>, now: Now) {
        if !self.settings.punching {
            return;
        }
        // Before that the kernel may not yet send where we said.
        let is_settled = self.planned.applied == self.planned.generation && !self.dirty;
        for (&key, peer) in &observed.peers {
            let earlier = before.and_then(|before| before.peers.get(&key));
            let sent = earlier.map_or(0, |earlier| peer.tx_bytes.saturating_sub(earlier.tx_bytes));
            let quiet = QUIET_BYTES + self.take_gossiped(key);
            let has_traffic = earlier.is_some() && sent > quiet;
            let age = peer.last_handshake.map(|at| now.wall.since(at));
            let (Some(age), Some(endpoint)) = (age, peer.endpoint) else { continue };
            let kind = self.kind_at(key, endpoint);
            let paths = self.reach.paths.entry(key).or_default();
            if age <= SESSION_LIFETIME && (is_settled || paths.current().is_none()) {
                paths.follow_kernel(endpoint, kind, now.monotonic);
            }
            if has_traffic {
                paths.note_traffic(now.monotonic);
            }
            if age > SESSION_OVERDUE {
                paths.verify(now.monotonic);
            }
            self.follow_relayed(key, has_traffic, peer.rx_bytes, now);
        }
    }

    /// Does what is due for every path: pings, offers.
    pub(super) fn drive_paths(&mut self, now: Now) {
        for key in self.reach.paths.due(now.monotonic) {
            if !self.settings.punching || self.store.get(key).is_none() {
                self.reach.paths.remove(&key);
                continue;
            }
            self.drive(key, now);
        }
    }

    pub(super) fn drive(&mut self, key: PublicKey, now: Now) {
        let works = self.is_reached(key, now);
        let hopeless = self.is_hopeless(key);
        let Some(paths) = self.reach.paths.get_mut(&key) else { return };
        paths.expect_nothing(hopeless);
        if works && (paths.current().is_none() || (paths.works_directly() && paths.is_resting())) {
            paths.stop();
        }
        paths.handle_timeout(now.monotonic);
        let mut pings = Vec::new();
        while let Some(ping) = paths.poll_ping(now.monotonic, || self.rng.next_u64()) {
            pings.push(ping);
        }
        let lost = self.reach.paths.get_mut(&key).is_some_and(Paths::take_loss);
        let offer = self.reach.paths.get_mut(&key).is_some_and(Paths::take_offer_due);
        self.follow_mtu(key);
        if lost {
            self.reach.stun.refresh(now.monotonic);
            self.on_path_lost(key, now);
        }
        for ping in pings {
            self.send_ping(key, ping, now);
        }
        if offer {
            self.send_offers(key, now);
            self.introduce_myself(key, now);
        }
        self.drive_relay(key, now);
    }

    /// Whether nothing can be expected to pass between this node's NAT and a peer's (REQUIREMENTS section 11).
    fn is_hopeless(&self, key: PublicKey) -> bool {
        let theirs = match self.store.get(key).map(|peer| peer.record().record().nat) {
            Some(Nat::Symmetric) => NatType::Symmetric,
            // A cone may be one that lets anybody in.
            Some(Nat::Cone | Nat::Unknown) | None => return false,
        };
        !Strategy::of(self.nat_type(), theirs).is_direct_possible()
    }

    /// Follows a datagram that came to WireGuard's port with a proof to check.
    pub(super) fn on_disco(&mut self, content: &[u8], from: SocketAddr, now: Now) {
        let Some(unproved) = Unproved::<Disco>::decode(content) else {
            return self.drop_input("malformed", from);
        };
        let key = unproved.claimed_key();
        if key == self.state.wg_pubkey {
            return self.drop_input("self", from);
        }
        let Some(peer) = self.store.get(key) else { return self.drop_input("no record", from) };
        let Some(disco) = unproved.prove(self.state.wg_pubkey, &peer.pair) else {
            return self.drop_input("forged", from);
        };
        if !self.reach.paths.entry(key).or_default().is_new(disco.stamp, now.monotonic) {
            return self.drop_input("replayed", from);
        }
        match disco.body {
            DiscoBody::Ping { padding, .. } if padding.len() < PING_PADDING_BYTES => {
                self.drop_input("malformed", from);
            }
            DiscoBody::Ping { id, padding: _ } => self.on_ping(key, id, from, now),
            DiscoBody::Pong { id, seen } => {
                // What came by a relay tells where the relay is.
                if self.on_pong(key, id, disco.token, from, now) && self.relay_at(key, from).is_none() {
                    self.on_seen(key, seen, now);
                }
            }
            DiscoBody::Carry { to, offer } => self.carry(key, to, offer.to_vec(), from, now),
            DiscoBody::Carried { from: origin, offer } => self.on_offer(key, origin, &offer, from, now),
            DiscoBody::Allocate { peer } => self.on_allocate(key, peer, from, now),
            DiscoBody::Allocated { peer, port } => self.on_allocated(key, peer, port, from, now),
            DiscoBody::Refused { peer, refusal } => self.on_refused(key, peer, refusal, now),
        }
    }

    fn on_ping(&mut self, key: PublicKey, id: u64, from: SocketAddr, now: Now) {
        self.send_disco(key, from, DiscoBody::Pong { id, seen: from }, now);
        if !self.is_candidate(from) || !self.settings.punching {
            return;
        }
        let kind = self.kind_at(key, from);
        self.reach.paths.entry(key).or_default().handle_ping(from, kind, now.monotonic);
    }

    /// Follows the answer to a ping. Returns whether it was asked for.
    fn on_pong(&mut self, key: PublicKey, id: u64, token: Token, from: SocketAddr, now: Now) -> bool {
        self.follow_link_contact(key, now.monotonic);
        let Some(paths) = self.reach.paths.get_mut(&key) else { return false };
        let Some(answered) = paths.handle_pong(from, id, now.monotonic) else {
            self.drop_input("unasked", from);
            return false;
        };
        self.reach.targets.refill(from.ip());
        if let Some(peer) = self.store.get(key) {
            let claim = Claim {
                record: peer.record().clone(),
                source: Source::Incoming,
                endpoint: Some(from).filter(|from| self.relay_at(key, *from).is_none()),
                fresh: true,
            };
            let place = Place { via: Via::WireGuard, address: from };
            self.claim(claim, place, now);
        }
        if let Some(seeker) = self.relays.seekers.get_mut(&key) {
            seeker.handle_answer(from, now.monotonic);
        }
        if answered.switched {
            self.use_path(key, from, token, now);
        }
        true
    }

    /// Tries the link on which a peer has announced itself that is reached over no common one.
    pub(super) fn compare_with_link(&mut self, key: PublicKey, place: Place, now: Now) {
        let Some(peer) = self.store.get(key) else { return };
        let endpoint = place.endpoint(peer.record().record().listen_port);
        let paths = self.reach.paths.get(&key);
        let elsewhere = paths
            .and_then(|paths| paths.candidate(paths.current()?))
            .is_some_and(|current| current.kind != Kind::Lan);
        if elsewhere && !self.is_met_on_link(key) {
            self.add_candidate(key, endpoint, Origin::Ping, now.monotonic);
            if let Some(paths) = self.reach.paths.get_mut(&key) {
                paths.compare(endpoint, now.monotonic);
            }
        }
    }

    /// Takes the place where a peer was met on a link for the path in use, if there is none yet.
    fn follow_link_contact(&mut self, key: PublicKey, now: Monotonic) {
        let place = self.contacts.get(&key).and_then(Contact::proved_place);
        let place = place.filter(|place| matches!(place.via, Via::Link(_)));
        let (Some(place), Some(peer)) = (place, self.store.get(key)) else { return };
        let endpoint = place.endpoint(peer.record().record().listen_port);
        if let Some(paths) = self.reach.paths.get_mut(&key)
            && paths.current().is_none()
        {
            paths.follow_kernel(endpoint, Kind::Lan, now);
        }
    }

    /// Has the tunnel take a path that was proved.
    fn use_path(&mut self, key: PublicKey, address: SocketAddr, token: Token, now: Now) {
        let place = Place { via: Via::WireGuard, address };
        let (path, relay) = (self.kind_at(key, address).name(), self.relay_at(key, address));
        match relay {
            Some(relay) => tracing::info!(peer = %key, endpoint = %address, path, %relay, "found a path"),
            None => tracing::info!(peer = %key, endpoint = %address, path, "found a path"),
        }
        let lower = self.state.wg_pubkey < key;
        let installed = self.observed.as_ref().is_some_and(|observed| observed.peers.contains_key(&key));
        let contact = self.contacts.entry(key).or_insert_with(|| Contact::new(place, lower, now.monotonic));
        if installed {
            contact.handle_installed(true, now.monotonic);
        }
        contact.handle_path(place, token, now.monotonic);
        // The kernel may have roamed away from it meanwhile.
        self.proved.remove(&key);
        self.dirty = true;
    }

    fn send_ping(&mut self, key: PublicKey, ping: Ping, now: Now) {
        let Ping { to, id, mtu } = ping;
        let proved = self
            .reach
            .paths
            .get(&key)
            .and_then(|paths| paths.candidate(to))
            .is_some_and(|one| one.answered.is_some());
        if !proved && !self.reach.targets.take(to.ip(), now.monotonic) {
            return self.drop_input("ping limit", to);
        }
        self.bind_before_ping(key, to, now);
        let padding = self.ping_padding(key, id, mtu);
        self.send_disco(key, to, DiscoBody::Ping { id, padding: vec![0; padding].into() }, now);
    }

    pub(super) fn send_disco(&mut self, key: PublicKey, to: SocketAddr, body: DiscoBody, now: Now) {
        let Some(peer) = self.store.get(key) else { return };
        let pair = peer.pair.clone();
        let disco = Disco { key: self.state.wg_pubkey, stamp: self.next_stamp(), token: self.token, body };
        let content = disco.encode_proved(key, &pair);
        let bytes = seal::seal(&self.keys, seal::Kind::Disco, &content, now, &mut self.rng);
        self.commands.push_back(Command::Send(Transmit {
            via: Via::WireGuard,
            to: Recipient::Node(to),
            bytes,
        }));
    }

    /// Returns where a peer's WireGuard answers now.
    pub(super) fn live_endpoint(&self, key: PublicKey, now: Now) -> Option<SocketAddr> {
        let observed = self.observed.as_ref()?.peers.get(&key)?;
        let age = now.wall.since(observed.last_handshake?);
        observed.endpoint.filter(|_| age <= SESSION_LIFETIME)
    }

    /// Whether packets reach a peer, or soon will by what is already under way.
    pub(super) fn is_reached(&self, key: PublicKey, now: Now) -> bool {
        let works =
            self.reach.paths.get(&key).is_some_and(|paths| paths.works() || paths.current().is_none());
        self.is_met_on_link(key) || works && self.live_endpoint(key, now).is_some()
    }

    pub(super) fn is_met_on_link(&self, key: PublicKey) -> bool {
        let place = self.contacts.get(&key).and_then(Contact::proved_place);
        place.is_some_and(|place| matches!(place.via, Via::Link(_)))
    }
}

/// Makes the account of pings to addresses at which nobody has answered yet.
pub(super) const fn target_buckets() -> AddressBuckets {
    AddressBuckets::new(TARGET_BURST, TARGET_INTERVAL)
}
