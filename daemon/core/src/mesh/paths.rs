//! Paths through NATs: pings and pongs between WireGuard ports, and the rendezvous that lets both sides ping at once.
//!
//! A peer that was met on a common link needs none of this. Every other one has [`Paths`]; once an address has
//! answered there, the hello exchange of [`crate::contact`] runs through it and the tunnel comes up as on a LAN.
//!
//! A rendezvous needs no clock and no server: whoever begins an attempt sends an [`Offer`] with its candidates by way of
//! up to [`INTRODUCERS`] peers that it does reach. The one that gets it begins its own attempt at once and answers the
//! same way. Introducers carry offers between their peers and learn nothing that the records do not say.
//!
//! What others make us send is bounded: a ping is answered by one pong of the same size, candidates that nobody has
//! proved share a [`TokenBucket`] per address, and an introducer has one per peer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::Rng as _;

use super::kernel::SESSION_LIFETIME;
use super::{Command, Mesh, Recipient, Transmit};
use crate::bucket::TokenBucket;
use crate::contact::{Contact, Place, Via};
use crate::kernel::{Observed, Underlay};
use crate::key::PublicKey;
use crate::message::{Disco, DiscoBody, Offer, Paired as _, Token, Unproved};
use crate::path::{Kind, Origin, Paths};
use crate::record::{MAX_CANDIDATES, may_be_an_endpoint};
use crate::seal;
use crate::store::{Claim, Source};
use crate::time::{Monotonic, Now};

/// For this long a peer that may be met on a link is not pinged: the exchange there is quicker.
const LAN_GRACE: Duration = Duration::from_millis(500);

/// How many peers are asked to carry an offer.
const INTRODUCERS: usize = 3;

/// Offers of one peer that are carried: 16 at once, then four a second.
pub(super) const CARRY_BURST: u32 = 16;
pub(super) const CARRY_INTERVAL: Duration = Duration::from_millis(250);

/// Pings to one address at which nobody has answered yet: 128 at once, then 25 a second.
const TARGET_BURST: u32 = 128;
const TARGET_INTERVAL: Duration = Duration::from_millis(40);

/// The most such addresses that are kept account of; beyond, none is pinged.
const MAX_TARGETS: usize = 4096;

/// A session this old should have been renewed by a keepalive (`REKEY_AFTER_TIME`, 120 s, and some seconds to do it).
const SESSION_OVERDUE: Duration = Duration::from_secs(135);

/// Bytes that WireGuard's own keepalives and handshakes may take between two readings; more is traffic.
const QUIET_BYTES: u64 = 300;

impl Mesh {
    /// Looks for a path to a peer that has become known, unless it is met on a link.
    pub(super) fn seek(&mut self, key: PublicKey, now: Now) {
        let has_news = self.add_recorded_candidates(key, now.monotonic);
        if !self.settings.punching || self.is_reached(key, now) {
            return;
        }
        let paths = self.paths.entry(key).or_default();
        let may_be_met = self.settings.lan && paths.candidates().any(|(_, one)| one.kind == Kind::Lan);
        match (may_be_met, has_news) {
            (true, _) => paths.begin_at(now.monotonic + LAN_GRACE),
            (false, true) => paths.begin(now.monotonic),
            (false, false) => paths.begin_at(now.monotonic),
        }
    }

    /// Returns what is known of the paths to a peer.
    pub fn paths(&self, key: PublicKey) -> Option<&Paths> {
        self.paths.get(&key)
    }

    pub(super) fn ping(&mut self, key: PublicKey, now: Now) {
        if self.store.get(key).is_none() {
            return;
        }
        self.add_recorded_candidates(key, now.monotonic);
        let endpoint = self.live_endpoint(key, now);
        let kind = endpoint.map(|endpoint| self.kind_of(endpoint.ip()));
        let paths = self.paths.entry(key).or_default();
        if let (Some(endpoint), Some(kind)) = (endpoint, kind) {
            paths.follow_kernel(endpoint, kind, now.monotonic);
        }
        paths.ping_now(now.monotonic);
    }

    /// Has every path looked at anew: this host's links, addresses or routes are not what they were.
    pub(super) fn verify_paths(&mut self, now: Now) {
        let keys: Vec<_> = self.store.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.add_recorded_candidates(key, now.monotonic);
            let on_link = self.is_met_on_link(key);
            let Some(paths) = self.paths.get_mut(&key) else { continue };
            paths.verify(now.monotonic);
            if !on_link && (paths.current().is_none() || paths.is_used(now.monotonic)) {
                paths.begin(now.monotonic);
            }
        }
    }

    /// Follows what a reading says of paths: what the kernel uses, whether there is traffic, what has gone silent.
    pub(super) fn follow_paths(&mut self, observed: &Observed, before: Option<&Observed>, now: Now) {
        for (&key, peer) in &observed.peers {
            let earlier = before.and_then(|before| before.peers.get(&key));
            let sent = earlier.map_or(0, |earlier| peer.tx_bytes.saturating_sub(earlier.tx_bytes));
            let has_traffic = earlier.is_some() && sent > QUIET_BYTES;
            let age = peer.last_handshake.map(|at| now.wall.since(at));
            let (Some(age), Some(endpoint)) = (age, peer.endpoint) else { continue };
            let kind = self.kind_of(endpoint.ip());
            let paths = self.paths.entry(key).or_default();
            if age <= SESSION_LIFETIME {
                paths.follow_kernel(endpoint, kind, now.monotonic);
            }
            if has_traffic {
                paths.note_traffic(now.monotonic);
            }
            if age > SESSION_OVERDUE {
                paths.verify(now.monotonic);
            }
        }
    }

    /// Does what is due for every path: pings, offers.
    pub(super) fn drive_paths(&mut self, now: Now) {
        let due = |paths: &Paths| paths.poll_timeout().is_some_and(|at| at <= now.monotonic);
        let keys: Vec<_> = self.paths.iter().filter(|(_, paths)| due(paths)).map(|(&key, _)| key).collect();
        for key in keys {
            if !self.settings.punching || self.store.get(key).is_none() {
                self.paths.remove(&key);
                continue;
            }
            self.drive(key, now);
        }
    }

    fn drive(&mut self, key: PublicKey, now: Now) {
        let works = self.is_reached(key, now);
        let Some(paths) = self.paths.get_mut(&key) else { return };
        if works && paths.current().is_none() {
            paths.stop();
        }
        paths.handle_timeout(now.monotonic);
        let mut pings = Vec::new();
        while let Some(ping) = paths.poll_ping(now.monotonic, || self.rng.next_u64()) {
            pings.push(ping);
        }
        let lost = self.paths.get_mut(&key).is_some_and(Paths::take_loss);
        let offer = self.paths.get_mut(&key).is_some_and(Paths::take_offer_due);
        if lost {
            self.stun.refresh(now.monotonic);
        }
        for (address, id) in pings {
            self.send_ping(key, address, id, now);
        }
        if offer {
            self.send_offers(key, now);
        }
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
        if !self.paths.entry(key).or_default().is_new(disco.stamp) {
            return self.drop_input("replayed", from);
        }
        match disco.body {
            DiscoBody::Ping { id } => self.on_ping(key, id, from, now),
            DiscoBody::Pong { id, seen } => {
                if self.on_pong(key, id, disco.token, from, now) {
                    self.on_seen(key, seen, now);
                }
            }
            DiscoBody::Carry { to, offer } => self.carry(key, to, offer.to_vec(), from, now),
            DiscoBody::Carried { from: origin, offer } => self.on_offer(key, origin, &offer, from, now),
        }
    }

    fn on_ping(&mut self, key: PublicKey, id: u64, from: SocketAddr, now: Now) {
        self.send_disco(key, from, DiscoBody::Pong { id, seen: from }, now);
        if !self.is_candidate(from) || !self.settings.punching {
            return;
        }
        let kind = self.kind_of(from.ip());
        self.paths.entry(key).or_default().handle_ping(from, kind, now.monotonic);
    }

    /// Follows the answer to a ping. Returns whether it was asked for.
    fn on_pong(&mut self, key: PublicKey, id: u64, token: Token, from: SocketAddr, now: Now) -> bool {
        self.follow_link_contact(key, now.monotonic);
        let Some(paths) = self.paths.get_mut(&key) else { return false };
        let Some(answered) = paths.handle_pong(from, id, now.monotonic) else {
            self.drop_input("unasked", from);
            return false;
        };
        if let Some(peer) = self.store.get(key) {
            let claim = Claim {
                record: peer.record().clone(),
                source: Source::Incoming,
                endpoint: Some(from),
                fresh: true,
            };
            let place = Place { via: Via::WireGuard, address: from };
            self.claim(claim, place, now);
        }
        if answered.switched {
            self.use_path(key, from, token, now);
        }
        true
    }

    /// Tries the link on which a peer that is reached elsewhere has announced itself.
    pub(super) fn compare_with_link(&mut self, key: PublicKey, place: Place, now: Now) {
        let Some(peer) = self.store.get(key) else { return };
        let endpoint = place.endpoint(peer.record().record().listen_port);
        let elsewhere =
            self.paths.get(&key).and_then(Paths::current).is_some_and(|current| current != endpoint);
        if elsewhere && !self.is_met_on_link(key) {
            self.add_candidate(key, endpoint, Origin::Ping, now.monotonic);
            if let Some(paths) = self.paths.get_mut(&key) {
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
        if let Some(paths) = self.paths.get_mut(&key)
            && paths.current().is_none()
        {
            paths.follow_kernel(endpoint, Kind::Lan, now);
        }
    }

    /// Has the tunnel take a path that was proved.
    fn use_path(&mut self, key: PublicKey, address: SocketAddr, token: Token, now: Now) {
        let place = Place { via: Via::WireGuard, address };
        tracing::info!(peer = %key, endpoint = %address, "found a path");
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

    /// Follows an offer that `introducer` has carried here.
    pub(super) fn on_offer(
        &mut self,
        introducer: PublicKey,
        origin: PublicKey,
        bytes: &[u8],
        from: SocketAddr,
        now: Now,
    ) {
        let Some(unproved) = Unproved::<Offer>::decode(bytes) else {
            return self.drop_input("malformed", from);
        };
        let Some(peer) = self.store.get(origin) else { return self.drop_input("no record", from) };
        let proved = unproved.prove(self.state.wg_pubkey, &peer.pair).filter(|offer| offer.key == origin);
        let Some(offer) = proved else { return self.drop_input("forged", from) };
        if offer.candidates.len() > MAX_CANDIDATES
            || !self.paths.entry(origin).or_default().is_new(offer.stamp)
        {
            return self.drop_input("replayed", from);
        }
        for address in offer.candidates {
            self.add_candidate(origin, address, Origin::Offer, now.monotonic);
        }
        if !self.settings.punching || self.is_met_on_link(origin) {
            return;
        }
        if let Some(paths) = self.paths.get_mut(&origin) {
            paths.note_introduction();
            paths.begin(now.monotonic);
            // The other side has begun: it wants an answer, and no offer of ours besides.
            paths.take_offer_due();
        }
        if !offer.answer {
            self.send_offer(origin, introducer, true, now);
        }
        self.drive(origin, now);
    }

    /// Notes where a tunnel came up that introducers have helped into being (W-X24).
    pub(super) fn note_rendezvous(&mut self, key: PublicKey, endpoint: SocketAddr, now: Now) {
        let introduced = self.paths.get(&key).is_some_and(Paths::was_introduced) && !self.is_met_on_link(key);
        if let (true, Some(peer)) = (introduced, self.store.get(key)) {
            let record = peer.record().clone();
            let claim = Claim { record, source: Source::Rendezvous, endpoint: Some(endpoint), fresh: true };
            self.claim(claim, Place { via: Via::WireGuard, address: endpoint }, now);
        }
    }

    fn send_offers(&mut self, key: PublicKey, now: Now) {
        for introducer in self.introducers(key, now) {
            if let Some(paths) = self.paths.get_mut(&key) {
                paths.note_introduction();
            }
            self.send_offer(key, introducer, false, now);
        }
    }

    /// Tells the peers to which no path works where this node is now.
    pub(super) fn offer_to_unreached(&mut self, now: Now) {
        let unreached = |key: &PublicKey| !self.is_reached(*key, now);
        let keys: Vec<_> = self.paths.keys().copied().filter(unreached).collect();
        for key in keys {
            if let Some(paths) = self.paths.get_mut(&key) {
                paths.begin(now.monotonic);
                paths.take_offer_due();
            }
            self.send_offers(key, now);
        }
    }

    fn send_offer(&mut self, key: PublicKey, introducer: PublicKey, answer: bool, now: Now) {
        let Some(peer) = self.store.get(key) else { return };
        let pair = peer.pair.clone();
        let candidates = own_candidates(&self.mapped(), &self.underlay, self.listen_port);
        let offer = Offer {
            key: self.state.wg_pubkey,
            stamp: self.next_stamp(),
            token: self.token,
            candidates,
            answer,
        };
        let offer = offer.encode_proved(key, &pair);
        if let Some(endpoint) = self.live_endpoint(introducer, now) {
            self.send_disco(introducer, endpoint, DiscoBody::Carry { to: key, offer: offer.into() }, now);
        } else {
            self.forward(introducer, self.state.wg_pubkey, key, offer);
        }
    }

    /// Returns whom to ask to carry offers to a peer: those that say that anyone reaches them, then the others, each in an order
    /// that both ends of the pair find by themselves.
    fn introducers(&self, to: PublicKey, now: Now) -> Vec<PublicKey> {
        let (own, other) = (*self.state.wg_pubkey.as_bytes(), *to.as_bytes());
        let turn =
            own.iter().zip(other).fold(0_u8, |sum, (one, other)| sum.wrapping_add(*one).wrapping_add(other));
        let mut keys: Vec<_> = self
            .store
            .iter()
            .filter(|(key, _)| {
                *key != to && (self.live_endpoint(*key, now).is_some() || self.has_session(*key))
            })
            .map(|(key, peer)| {
                (!peer.record().record().introducer, key.as_bytes()[0].wrapping_sub(turn), key)
            })
            .collect();
        keys.sort_unstable();
        keys.into_iter().take(INTRODUCERS).map(|(_, _, key)| key).collect()
    }

    fn send_ping(&mut self, key: PublicKey, to: SocketAddr, id: u64, now: Now) {
        let proved = self
            .paths
            .get(&key)
            .and_then(|paths| paths.candidate(to))
            .is_some_and(|one| one.answered.is_some());
        if !proved && !self.may_ping(to.ip(), now.monotonic) {
            return self.drop_input("ping limit", to);
        }
        self.send_disco(key, to, DiscoBody::Ping { id }, now);
    }

    fn may_ping(&mut self, target: IpAddr, now: Monotonic) -> bool {
        if self.targets.len() >= MAX_TARGETS && !self.targets.contains_key(&target) {
            self.targets.retain(|_, bucket| !bucket.is_full(now));
            if self.targets.len() >= MAX_TARGETS {
                return false;
            }
        }
        let bucket = || TokenBucket::new(TARGET_BURST, TARGET_INTERVAL, now);
        self.targets.entry(target).or_insert_with(bucket).take(now)
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
    fn is_reached(&self, key: PublicKey, now: Now) -> bool {
        let works = self.paths.get(&key).is_some_and(|paths| paths.works() || paths.current().is_none());
        self.is_met_on_link(key) || works && self.live_endpoint(key, now).is_some()
    }

    fn is_met_on_link(&self, key: PublicKey) -> bool {
        let place = self.contacts.get(&key).and_then(Contact::proved_place);
        place.is_some_and(|place| matches!(place.via, Via::Link(_)))
    }

    /// Adds what the record and earlier claims say of a peer. Returns whether anything of it is new.
    fn add_recorded_candidates(&mut self, key: PublicKey, now: Monotonic) -> bool {
        let Some(peer) = self.store.get(key) else { return false };
        let recorded = peer.record().record().candidates.iter().map(|&address| (address, Origin::Record));
        let heard = peer.candidates.keys().map(|&address| (address, Origin::Cache));
        let named: Vec<_> = recorded.chain(heard).collect();
        self.add_named_candidate(key, now);
        let mut has_news = false;
        for (address, origin) in named {
            has_news |= self.add_candidate(key, address, origin, now);
        }
        has_news
    }

    /// Adds an address if it is worth a ping. Returns whether it is new.
    pub(super) fn add_candidate(
        &mut self,
        key: PublicKey,
        address: SocketAddr,
        origin: Origin,
        now: Monotonic,
    ) -> bool {
        let kind = self.kind_of(address.ip());
        self.is_candidate(address) && self.paths.entry(key).or_default().add(address, origin, kind, now)
    }

    /// Whether an address that somebody named is worth a ping: no host of the mesh answers at it as an inner address,
    /// and it is not this host.
    pub(super) fn is_candidate(&self, address: SocketAddr) -> bool {
        let inside = match address.ip() {
            IpAddr::V4(ip) => self.subnets.v4.contains(&ip),
            IpAddr::V6(ip) => self.subnets.v6.contains(&ip),
        };
        let ours =
            self.underlay.iter().flat_map(|link| &link.addresses).any(|net| net.addr() == address.ip());
        may_be_an_endpoint(address) && !inside && !ours
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
