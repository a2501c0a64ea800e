//! Paths through NATs: pings and pongs between WireGuard ports.
//!
//! A peer that was met on a common link needs none of this. Every other one has [`Paths`]; once an address has
//! answered there, the hello exchange of [`crate::contact`] runs through it and the tunnel comes up as on a LAN.
//!
//! What others make us send is bounded: a ping is answered by one pong that is no longer, and what goes to addresses that
//! are not proved yet is a few datagrams and what the peer itself has spent ([`crate::path`]).

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng as _;

use super::kernel::SESSION_LIFETIME;
use super::{Command, Mesh, Recipient, Transmit};
use crate::contact::{Contact, Place, Via};
use crate::kernel::{Observed, SESSION_OVERDUE};
use crate::key::PublicKey;
use crate::message::{Disco, DiscoBody, PING_PADDING_BYTES, Paired as _, Token, Unproved};
use crate::nat::{Nat, NatType, Strategy};
use crate::path::{Course, Kind, Origin, Paths, Ping};
use crate::seal::{self, OVERHEAD_BYTES};
use crate::store::{Claim, Source};
use crate::time::{Monotonic, Now};

/// For this long a peer that may be met on a link is not pinged: the exchange there is quicker.
const LAN_GRACE: Duration = Duration::from_millis(500);

/// What IPv4 and UDP add to a datagram, and how much more IPv6 does.
const IPV4_BYTES: usize = 28;
const IPV6_MORE_BYTES: usize = 20;

/// For so long a peer counts as being where its last message came from.
const HEARD_LATELY: Duration = Duration::from_secs(5);

/// Bytes that WireGuard's own messages may take in the half minute between two readings: two keepalives, and where both
/// ends renew the session at once an initiation, the keepalive that confirms it, and a response. More is traffic, unless it
/// is this node's own gossip.
const QUIET_BYTES: u64 = 2 * 32 + (148 + 32) + 92;

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
        let grace = LAN_GRACE + self.lag.now(now.monotonic) * 2;
        let paths = self.reach.paths.entry(key).or_default();
        match (may_be_met, !news.is_empty()) {
            (true, _) => paths.begin_at(now.monotonic + grace),
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

    /// Follows what a reading says of paths: what the kernel uses, whether there is traffic, what has gone silent, if it is
    /// `fresh`.
    pub(super) fn follow_paths(
        &mut self,
        observed: &Observed,
        before: Option<&Observed>,
        fresh: bool,
        now: Now,
    ) {
        if !self.settings.punching {
            return;
        }
        // Before that the kernel may not yet send where we said.
        let is_settled = self.planned.applied == self.planned.generation && !self.dirty;
        for (&key, peer) in &observed.peers {
            let earlier = before.and_then(|before| before.peers.get(&key));
            let sent = earlier.map_or(0, |earlier| peer.tx_bytes.saturating_sub(earlier.tx_bytes));
            // Other reports have the counters of an earlier one.
            let has_traffic = fresh && earlier.is_some() && sent > QUIET_BYTES + self.take_gossiped(key);
            let age = peer.last_handshake.map(|at| now.wall.since(at));
            let (Some(age), Some(endpoint)) = (age, peer.endpoint) else { continue };
            let kind = self.kind_at(key, endpoint);
            let is_barred = self.is_barred(key, kind);
            let paths = self.reach.paths.entry(key).or_default();
            if !is_barred && age <= SESSION_LIFETIME && (is_settled || paths.current().is_none()) {
                let course = paths.follow_kernel(endpoint, kind, now.monotonic);
                if course == Course::Astray && self.proved.remove(&key).is_some() {
                    self.dirty = true;
                }
            }
            if has_traffic {
                paths.note_traffic(now.monotonic);
            }
            if fresh && age > SESSION_OVERDUE {
                paths.verify(now.monotonic);
            }
            self.follow_relayed(key, now);
            if fresh {
                self.follow_unheard(key, has_traffic, peer.rx_bytes, now);
            }
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
        let answers_soon = self.contacts.get(&key).is_some_and(Contact::expects_answer_on_link);
        let lag = self.lag.now(now.monotonic);
        let Some(paths) = self.reach.paths.get_mut(&key) else { return };
        paths.set_lag(lag);
        if answers_soon && paths.current().is_none() {
            paths.put_off(now.monotonic + LAN_GRACE + lag * 2);
        }
        paths.expect_nothing(hopeless);
        if works && (paths.current().is_none() || (paths.works_directly() && paths.is_resting())) {
            paths.stop();
        }
        paths.handle_timeout(now.monotonic);
        let mut pings = Vec::new();
        while let Some(ping) = paths.poll_ping(now.monotonic, || self.rng.next_u64()) {
            pings.push(ping);
        }
        if let Some(look) = paths.take_look(now.monotonic) {
            self.commands.push_back(Command::Look);
            if let Some(left) = look.held_on {
                self.release_relay(key, left, now);
            }
        }
        let lost = self.reach.paths.get_mut(&key).is_some_and(Paths::take_loss);
        let offer = self.reach.paths.get_mut(&key).is_some_and(Paths::take_offer_due);
        self.follow_mtu(key);
        self.follow_doubt(key, now);
        if lost {
            self.reach.stun.refresh(now.monotonic);
            self.on_path_lost(key, now);
        }
        if offer {
            self.introduce_myself(key, now);
        }
        for ping in pings {
            self.send_ping(key, ping, now);
        }
        if offer {
            self.send_offers(key, now);
        }
        self.drive_relay(key, now);
    }

    /// Whether nothing can be expected to pass between this node's NAT and a peer's (REQUIREMENTS section 11), or is to.
    fn is_hopeless(&self, key: PublicKey) -> bool {
        if self.is_relay_forced(key) {
            return true;
        }
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
            self.on_copy(key, from, now);
            return self.drop_input("replayed", from);
        }
        if self.relay_at(key, from).is_none() && !self.is_inner(from.ip()) {
            self.reach.heard_at.insert(key, (from, now.monotonic));
        }
        match disco.body {
            DiscoBody::Ping { padding, .. } if padding.len() < PING_PADDING_BYTES => {
                self.drop_input("malformed", from);
            }
            DiscoBody::Ping { id, padding: _ } => {
                self.on_ping(key, id, content.len() + OVERHEAD_BYTES, from, now);
            }
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
            DiscoBody::Route { peer, choice } => self.on_route(key, peer, choice.to_vec(), from, now),
            DiscoBody::Routed { peer, choice } => {
                self.on_routed(key, peer, choice.as_deref().map(Vec::as_slice), from, now);
            }
            DiscoBody::Direct { answer } => self.on_direct(key, answer, from, now),
            DiscoBody::Release { peer } => self.on_release(key, peer, from, now),
            DiscoBody::Released { peer, agreed } => self.on_released(key, peer, agreed, now),
        }
    }

    fn on_ping(&mut self, key: PublicKey, id: u64, bytes: usize, from: SocketAddr, now: Now) {
        if self.is_barred(key, self.kind_at(key, from)) {
            // Who gets no answer looks for a relay too.
            return self.drop_input("relay forced", from);
        }
        self.send_disco(key, from, DiscoBody::Pong { id, seen: from }, now);
        let is_routed = self.is_inner(from.ip()) && self.relay_at(key, from).is_some();
        if !(self.is_candidate(from) || is_routed) || !self.settings.punching {
            return;
        }
        let kind = self.kind_at(key, from);
        let paths = self.reach.paths.entry(key).or_default();
        paths.handle_ping(from, kind, now.monotonic);
        paths.follow_length(from, bytes, now.monotonic);
    }

    /// Follows the answer to a ping. Returns whether it was asked for.
    fn on_pong(&mut self, key: PublicKey, id: u64, token: Token, from: SocketAddr, now: Now) -> bool {
        if self.is_inner(from.ip()) && self.relay_at(key, from).is_none() {
            // It may have come by the peer's own tunnel.
            if !self.on_pong_through_tunnel(key, id) {
                self.drop_input("unasked", from);
            }
            return false;
        }
        let lag = self.lag.now(now.monotonic);
        let Some(paths) = self.reach.paths.get_mut(&key) else { return false };
        paths.set_lag(lag);
        let Some(answered) = paths.handle_pong(from, id, now.monotonic) else {
            self.drop_input("unasked", from);
            return false;
        };
        self.reach.targets.note_answer(from.ip(), now.monotonic);
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
        self.relays.trials.note_passed(key, from);
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
        if elsewhere {
            self.add_candidate(key, endpoint, Origin::Ping, now.monotonic);
            if let Some(paths) = self.reach.paths.get_mut(&key) {
                paths.compare(endpoint, now.monotonic);
            }
        }
    }

    /// Returns the path in use to a peer if nothing speaks against it and it leads over no common link, where the peer was just
    /// met at this endpoint: that hellos pass there says nothing of WireGuard's packets. Pings do.
    pub(super) fn works_elsewhere(&self, key: PublicKey, link: SocketAddr, now: Now) -> Option<SocketAddr> {
        let paths = self.reach.paths.get(&key)?;
        let used = paths.current().filter(|_| paths.works() && !paths.is_asked(now.monotonic))?;
        (self.endpoint_on_link(key) == Some(link)
            && self.kind_at(key, used) != Kind::Lan
            && self.live_endpoint(key, now) == Some(used))
        .then_some(used)
    }

    /// Returns where a peer's WireGuard is that has proved to be on a common link.
    fn endpoint_on_link(&self, key: PublicKey) -> Option<SocketAddr> {
        let place = self.contacts.get(&key).and_then(Contact::place_on_link)?;
        Some(place.endpoint(self.store.get(key)?.record().record().listen_port))
    }

    /// Takes the place where a peer was met on a link for the path in use, once the tunnel is up and if no other is used.
    pub(super) fn take_up_link(&mut self, key: PublicKey, now: Now) {
        let endpoint = self.endpoint_on_link(key).filter(|_| self.settings.punching);
        let Some(endpoint) = endpoint.filter(|_| self.live_endpoint(key, now).is_some()) else { return };
        let others = u32::try_from(self.store.len() - 1).unwrap_or(u32::MAX);
        let paths = self.reach.paths.entry(key).or_default();
        if paths.current().is_none_or(|current| current == endpoint) {
            paths.take_up(endpoint, Kind::Lan, others, || self.rng.next_u32(), now.monotonic);
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
        if self.is_inner(address.ip()) {
            // The peer's own tunnel has no part in it.
            return;
        }
        let (lower, retry) = (self.state.wg_pubkey < key, self.first_retry(now));
        let installed = self.observed.as_ref().is_some_and(|observed| observed.peers.contains_key(&key));
        let stamp = self.reach.last_stamps.get(&key).copied();
        let contact =
            self.contacts.entry(key).or_insert_with(|| Contact::new(place, lower, stamp, now.monotonic));
        if installed {
            contact.handle_installed(true, now.monotonic);
        }
        contact.handle_path(place, token, retry, now.monotonic);
        // The kernel may have roamed away from it meanwhile.
        self.proved.remove(&key);
        self.dirty = true;
    }

    fn send_ping(&mut self, key: PublicKey, ping: Ping, now: Now) {
        let Ping { to, id, mtu } = ping;
        // Before anything of the ping is made: stamps rise, and their length counts.
        self.bind_before_ping(key, to, now);
        let padding = self.ping_padding(key, id, mtu);
        let body = DiscoBody::Ping { id, padding: vec![0; padding].into() };
        let Some(bytes) = self.seal_disco(key, body, now) else { return };
        if !self.may_send(key, to, bytes.len(), now.monotonic) {
            return self.drop_input("ping limit", to);
        }
        self.send_from_wireguard(to, bytes);
    }

    /// Whether a datagram of so many bytes may go to where a peer is said to be.
    pub(super) fn may_send(&mut self, key: PublicKey, to: SocketAddr, bytes: usize, now: Monotonic) -> bool {
        // A hello on a link is as good a proof as an answer to a ping.
        if self.is_named_at(key, to) || self.endpoint_on_link(key) == Some(to) {
            return true;
        }
        let Some(paths) = self.reach.paths.get_mut(&key) else { return false };
        let headers = if to.is_ipv6() { IPV4_BYTES + IPV6_MORE_BYTES } else { IPV4_BYTES };
        let has_answered = paths.candidate(to).is_some_and(|one| one.answered.is_some());
        has_answered || self.reach.targets.take(to.ip(), bytes + headers, &mut paths.credit, now)
    }

    /// Notes that a peer has spent a datagram of so many bytes on this node, besides what it takes to answer it.
    pub(super) fn note_spent(&mut self, key: PublicKey, bytes: usize) {
        self.reach.paths.entry(key).or_default().credit.earn(bytes + IPV4_BYTES);
    }

    pub(super) fn send_disco(&mut self, key: PublicKey, to: SocketAddr, body: DiscoBody, now: Now) {
        if let Some(bytes) = self.seal_disco(key, body, now) {
            self.send_from_wireguard(to, bytes);
        }
    }

    fn seal_disco(&mut self, key: PublicKey, body: DiscoBody, now: Now) -> Option<Vec<u8>> {
        let pair = self.store.get(key)?.pair.clone();
        let disco = Disco { key: self.state.wg_pubkey, stamp: self.next_stamp(), token: self.token, body };
        let content = disco.encode_proved(key, &pair);
        Some(seal::seal(&self.keys, seal::Kind::Disco, &content, now, &mut self.rng))
    }

    fn send_from_wireguard(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        let to = Recipient::Node(to);
        self.commands.push_back(Command::Send(Transmit { via: Via::WireGuard, to, bytes }));
    }

    /// Returns where a peer's WireGuard answers now, unless a relay routes to it or is to be between.
    pub(super) fn live_endpoint(&self, key: PublicKey, now: Now) -> Option<SocketAddr> {
        let observed = self.observed.as_ref()?.peers.get(&key).filter(|_| self.via(key).is_none())?;
        let age = now.wall.since(observed.last_handshake?);
        let endpoint = observed.endpoint.filter(|_| age <= SESSION_LIFETIME)?;
        (!self.is_barred(key, self.kind_at(key, endpoint))).then_some(endpoint)
    }

    /// Returns where a peer's messages have come from just now. Its NAT may have moved it there, which our kernel does not
    /// notice before a packet of the tunnel comes.
    pub(super) fn heard_lately(&self, key: PublicKey, now: Now) -> Option<SocketAddr> {
        let (address, at) = *self.reach.heard_at.get(&key)?;
        (now.monotonic.since(at) < HEARD_LATELY).then_some(address)
    }

    /// Whether packets reach a peer, or soon will by what is already under way.
    pub(super) fn is_reached(&self, key: PublicKey, now: Now) -> bool {
        let paths = self.reach.paths.get(&key);
        let may_work = paths.is_some_and(|paths| paths.works() || paths.current().is_none());
        let is_routed = self.via(key).is_some() && paths.is_some_and(Paths::works);
        self.is_met_on_link(key) || is_routed || may_work && self.live_endpoint(key, now).is_some()
    }

    /// Whether a peer was met on a common link, unless no tunnel came up there or the path in use is lost: the link may be as
    /// well, whatever this host sees of it.
    pub(super) fn is_met_on_link(&self, key: PublicKey) -> bool {
        let is_lost =
            self.reach.paths.get(&key).is_some_and(|paths| paths.current().is_some() && !paths.works());
        self.contacts.get(&key).and_then(Contact::place_on_link).is_some() && !is_lost
    }

    /// Whether a peer has just proved to be on a common link, where the tunnel is about to come up.
    pub(super) fn is_meeting_on_link(&self, key: PublicKey, now: Now) -> bool {
        self.is_met_on_link(key)
            && self.live_endpoint(key, now).is_none()
            && self.contacts.get(&key).is_some_and(|one| one.is_meeting(now.monotonic))
    }

    /// Looks for another way to a peer that was met on a common link where no tunnel comes up.
    pub(super) fn doubt_link(&mut self, key: PublicKey, now: Now) {
        if self.is_met_on_link(key) && self.live_endpoint(key, now).is_none() {
            if let Some(contact) = self.contacts.get_mut(&key) {
                contact.handle_no_tunnel(now.monotonic);
            }
            self.seek(key, now);
        }
    }
}
