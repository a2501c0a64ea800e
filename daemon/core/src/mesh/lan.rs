//! Meeting peers on common links: announces to the mesh's group, hellos to single nodes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::Rng as _;

use super::{Command, Mesh, Recipient, Transmit};
use crate::contact::{Contact, HelloPlan, Ignored, Place, Via, first_retry};
use crate::derive::PairKeys;
use crate::identity::Sequence;
use crate::kernel::Underlay;
use crate::key::PublicKey;
use crate::message::{Announce, Hello, Paired as _, Phase, Token, Unproved, attach};
use crate::record::{InvalidRecord, Record, SignedRecord};
use crate::seal::{Kind, OVERHEAD_BYTES, Unopened, seal};
use crate::store::{Claim, Outcome, Refused, Source};
use crate::time::{Monotonic, Now};

/// The pace of announces of a node that knows nobody (seed 000, W-X3). After a start or a change it is doubled from announce
/// to announce, up to twice this for each peer: so whoever listens at rest is woken as often by many as by one.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);

/// The slowest pace of announces: newcomers are answered at once anyway, so this only bounds how long two halves
/// of a link that was cut take to notice each other. The first announce of any node does that.
const MAX_ANNOUNCE_INTERVAL: Duration = Duration::from_secs(120);

/// After a start or a change the record itself goes out this often, the second time after
/// [`REPEAT_ANNOUNCE`]; later announces only name its sequence.
const ANNOUNCES_IN_FULL: u32 = 2;

/// How soon the second full announce follows: before anyone is missed for long if the first was lost.
const REPEAT_ANNOUNCE: Duration = Duration::from_secs(1);

/// The most last words of peers that were let go which are kept under one token.
const MAX_STAMPS: usize = 1024;

/// Strangers' announces that are answered: 256 at once, then 100 a second.
pub(super) const LEAD_BURST: u32 = 256;
pub(super) const LEAD_INTERVAL: Duration = Duration::from_millis(10);

/// Of each address, 20 at once, then ten a second (P-15).
pub(super) const STRANGER_BURST: u32 = 20;
pub(super) const STRANGER_INTERVAL: Duration = Duration::from_millis(100);

/// How far another host's clock may be off before its record looks expired.
pub(super) const CLOCK_TOLERANCE: Duration = Duration::from_secs(24 * 3600);

impl Mesh {
    pub(super) fn on_underlay(&mut self, underlay: Vec<Underlay>, now: Now) {
        if self.underlay == underlay {
            // The notice was of a default route, which no list of links shows.
            self.restart_stun(now);
            self.verify_paths(now);
            return;
        }
        self.underlay = underlay;
        self.restart_stun(now);
        let left_behind = self.leave_links_that_went();
        self.verify_paths(now);
        for key in left_behind {
            self.seek(key, now);
        }
        self.hurry_dht(now);
        self.dirty = true;
        match self.whereabouts().candidates == self.record.record().candidates {
            true => self.announce_soon(now),
            false => self.renew_record(now),
        }
    }

    /// Lets go of the contacts on links that are there no more, and returns whose they were.
    fn leave_links_that_went(&mut self) -> Vec<PublicKey> {
        let links: Vec<u32> = self.underlay.iter().map(|link| link.index).collect();
        let went = |contact: &Contact| match contact.proved_place().map(|place| place.via) {
            Some(Via::Link(index)) => !links.contains(&index),
            Some(Via::WireGuard) | None => false,
        };
        let left: Vec<_> =
            self.contacts.iter().filter(|(_, contact)| went(contact)).map(|(&key, _)| key).collect();
        for &key in &left {
            self.contacts.remove(&key);
            self.handshakes.forget(key);
        }
        if !left.is_empty() {
            // Peers that still look for us on the link that went must begin anew where they hear us now.
            self.renew_token();
        }
        left
    }

    pub(super) fn announce_soon(&mut self, now: Now) {
        self.announcing.since_change = 0;
        self.announcing.announce_at = Some(now.monotonic);
    }

    /// Has the record go out once. Whoever misses that asks for it at the next announce.
    pub(super) fn announce_renewal(&mut self, now: Now) {
        self.announcing.is_renewed = true;
        self.announcing.announce_at = Some(now.monotonic);
    }

    pub(super) fn announce_if_due(&mut self, now: Now) {
        if self.announcing.announce_at.is_none_or(|at| now.monotonic < at) {
            return;
        }
        let is_news = std::mem::take(&mut self.announcing.is_renewed)
            || self.announcing.since_change < ANNOUNCES_IN_FULL;
        let record = is_news.then(|| attach(&self.record)).flatten();
        self.announcing.since_change += 1;
        self.announce(self.record.record().sequence, record, now);
        self.announcing.last_announce = Some(now.monotonic);
        self.announcing.announce_at = Some(now.monotonic + self.announce_pause());
    }

    /// Tells every link that this node leaves: a record with a lifetime of zero that nobody else can sign.
    pub(super) fn say_goodbye(&mut self, now: Now) {
        self.state.sequence = self.state.sequence.advance(now.wall);
        let farewell = Record {
            sequence: self.state.sequence,
            issued: now.wall,
            lifetime_s: 0,
            ..self.record.record().clone()
        };
        let secret = &self.state.wg_private_key;
        let farewell = SignedRecord::sign(farewell, secret, self.keys.network_id(), &mut self.rng);
        self.save_state();
        self.announce(self.state.sequence, attach(&farewell), now);
        self.tell(&farewell, None, now);
        self.tell_at_once(now);
        self.gossip_at_once(now);
    }

    pub(super) fn on_datagram(&mut self, place: Place, bytes: &[u8], now: Now) {
        let Place { via, address: from } = place;
        if let Via::Link(index) = via
            && !self.is_on_link(index, from.ip())
        {
            return self.drop_input("off-link", from);
        }
        if via == Via::WireGuard && self.take_stun(from, bytes, now) {
            return;
        }
        match self.opener.open(&self.keys, bytes, now) {
            Ok((Kind::Announce, _)) if via == Via::WireGuard => self.drop_input("off-link", from),
            Ok((Kind::Announce, content)) => self.on_announce(&content, place, now),
            Ok((Kind::Hello, content)) => self.on_hello(&content, place, now),
            Ok((Kind::Disco, content)) => self.on_disco(&content, from, now),
            Ok((Kind::Bind | Kind::Notice, _)) => self.drop_input("misplaced", from),
            Err(Unopened::Size) => self.drop_input("size", from),
            Err(Unopened::Version) => self.drop_input("version", from),
            Err(Unopened::Tag) => self.drop_input("tag", from),
            Err(Unopened::Seal) => self.drop_input("seal", from),
        }
    }

    /// Sends every hello that is due.
    pub(super) fn send_hellos(&mut self, now: Now) {
        let (sequence, retry) = (self.record.record().sequence, self.first_retry(now));
        for key in self.contacts.due(now.monotonic) {
            let contact = self.contacts.get_mut(&key);
            let Some(plan) = contact.and_then(|contact| contact.poll_hello(sequence, retry, now.monotonic))
            else {
                continue;
            };
            let Some(peer) = self.store.get(key) else { continue };
            let (pair, known) = (peer.pair.clone(), peer.record().record().sequence);
            self.send_hello(key, &pair, Some(known), plan, now);
        }
    }

    /// Returns how long to wait for the first answer of a peer.
    pub(super) fn first_retry(&self, now: Now) -> Duration {
        let being_met = self.contacts.iter().filter(|(_, contact)| contact.is_being_met()).count();
        first_retry(being_met) + self.lag.now(now.monotonic) * 2
    }

    fn announce(&mut self, sequence: Sequence, record: Option<minicbor::bytes::ByteVec>, now: Now) {
        if !self.settings.lan {
            return;
        }
        let announce = Announce { key: self.state.wg_pubkey, sequence, token: self.token, record };
        let bytes = seal(&self.keys, Kind::Announce, &announce.encode(), now, &mut self.rng);
        for link in self.underlay.iter().filter(|link| link.multicast) {
            let has = |v4: bool| link.addresses.iter().any(|net| net.addr().is_ipv4() == v4);
            let to = match (has(true), has(false)) {
                (true, _) => Recipient::GroupV4,
                (false, true) => Recipient::GroupV6,
                (false, false) => continue,
            };
            let transmit = Transmit { via: Via::Link(link.index), to, bytes: bytes.clone() };
            self.commands.push_back(Command::Send(transmit));
        }
    }

    /// Returns how long to wait after an announce: the pace that fits the number of peers is come down to by steps.
    fn announce_pause(&mut self) -> Duration {
        let Some(step) = self.announcing.since_change.checked_sub(ANNOUNCES_IN_FULL) else {
            return REPEAT_ANNOUNCE;
        };
        let peers = u32::try_from(self.store.len()).unwrap_or(u32::MAX);
        let multiple = peers.saturating_mul(2).max(1).min(1_u32.checked_shl(step).unwrap_or(u32::MAX));
        let pause = ANNOUNCE_INTERVAL.saturating_mul(multiple).min(MAX_ANNOUNCE_INTERVAL);
        // Nodes that started at once would else speak at once for ever.
        pause - pause / 8 * (self.rng.next_u32() % 1000) / 1000
    }

    fn is_on_link(&self, interface: u32, address: IpAddr) -> bool {
        let Some(link) = self.underlay.iter().find(|link| link.index == interface) else { return false };
        link.addresses.iter().any(|net| net.contains(&address))
    }

    fn on_announce(&mut self, content: &[u8], place: Place, now: Now) {
        let from = place.address;
        let Some(announce) = Announce::decode(content) else { return self.drop_input("malformed", from) };
        let key = announce.key;
        if key == self.state.wg_pubkey {
            return self.drop_input("self", from);
        }
        self.announcing.last_heard = Some(now.monotonic);
        let known = self.store.get(key).map(|peer| peer.record().record().sequence);
        let is_new_here = announce.record.is_some();
        let fresh_record = announce.record.filter(|_| known.is_none_or(|known| known < announce.sequence));
        if let Some(bytes) = fresh_record {
            if known.is_none() && !self.strangers.take(from.ip(), now.monotonic) {
                return self.drop_input("busy", from);
            }
            let Some(record) = self.verify_record(&bytes, key, from) else { return };
            if record.record().is_expired(now.wall, CLOCK_TOLERANCE) {
                return self.drop_input("expired", from);
            }
            self.claim(Claim { record, source: Source::Lan, endpoint: None, fresh: false }, place, now);
        }
        let held = self.store.get(key).map(|peer| peer.record().record().sequence);
        if held.is_none() && !is_new_here && self.store.refusal(key, announce.sequence).is_none() {
            self.announce_again(now);
        }
        match held {
            Some(held) if held >= announce.sequence => self.greet(key, place, announce.token, now),
            Some(_) | None => self.ask_stranger(key, announce.sequence, place, announce.token, now),
        }
    }

    /// Makes itself known to a node that is unknown and yet no newcomer, whose first announces would carry its record: two
    /// halves of a link have become one again, and those of the other half should hear of all of this one.
    fn announce_again(&mut self, now: Now) {
        let last = self.announcing.last_announce;
        if last.is_none_or(|last| now.monotonic.since(last) >= ANNOUNCE_INTERVAL) {
            self.announce_soon(now);
        }
    }

    fn on_hello(&mut self, content: &[u8], place: Place, now: Now) {
        let from = place.address;
        let Some(unproved) = Unproved::<Hello>::decode(content) else {
            return self.drop_input("malformed", from);
        };
        let key = unproved.claimed_key();
        if key == self.state.wg_pubkey {
            return self.drop_input("self", from);
        }
        let pair = match self.store.get(key) {
            Some(peer) => peer.pair.clone(),
            None if self.strangers.take(from.ip(), now.monotonic) && self.leads.take(now.monotonic) => {
                self.pair_with(key)
            }
            None => return self.drop_input("busy", from),
        };
        let Some(hello) = unproved.prove(self.state.wg_pubkey, &pair) else {
            return self.drop_input("forged", from);
        };
        self.announcing.last_heard = Some(now.monotonic);
        self.follow_hello(&hello, content.len() + OVERHEAD_BYTES, place, now);
    }

    /// Acts on a hello of so many bytes whose sender is proved.
    fn follow_hello(&mut self, hello: &Hello, bytes: usize, place: Place, now: Now) {
        let (key, from) = (hello.key, place.address);
        let source = match place.via {
            Via::Link(_) => Source::Lan,
            Via::WireGuard => Source::Incoming,
        };
        let known = self.store.get(key).map(|peer| peer.record().record().sequence);
        if let Some(bytes) = &hello.record
            && known.is_none_or(|known| known < hello.stamp.sequence)
        {
            let Some(record) = self.verify_record(bytes, key, from) else { return };
            let fresh = hello.echo == Some(self.token);
            self.claim(Claim { record, source, endpoint: None, fresh }, place, now);
        }
        let Some(peer) = self.store.get(key) else { return self.drop_input("no record", from) };
        let record = peer.record().clone();
        let (lower, retry) = (self.state.wg_pubkey < key, self.first_retry(now));
        let stamp = self.reach.last_stamps.get(&key).copied();
        let contact =
            self.contacts.entry(key).or_insert_with(|| Contact::new(place, lower, stamp, now.monotonic));
        let reach = |contact: &Contact| (contact.is_active(), contact.proved_place());
        let before = reach(contact);
        if self.observed.as_ref().is_some_and(|observed| observed.peers.contains_key(&key)) {
            contact.handle_installed(true, now.monotonic);
        }
        let outcome = contact.handle_hello(hello, place, self.token, retry, now.monotonic);
        let has_moved = reach(contact) != before;
        if place.via == Via::WireGuard && outcome != Err(Ignored::Replayed) {
            self.note_spent(key, bytes);
        }
        match outcome {
            Ok(()) => {
                self.dirty |= has_moved;
                let endpoint = Some(place.endpoint(record.record().listen_port));
                let endpoint = endpoint.filter(|endpoint| self.relay_at(key, *endpoint).is_none());
                self.claim(Claim { record, source, endpoint, fresh: true }, place, now);
                self.take_up_link(key, now);
                if has_moved && matches!(place.via, Via::Link(_)) {
                    self.compare_with_link(key, place, now);
                }
            }
            Err(Ignored::Replayed) => self.drop_input("replayed", from),
            Err(Ignored::NotFresh) => {}
        }
    }

    /// Lets go of what was said to a peer and by it, but for what makes a copy of it known as one.
    pub(super) fn let_contact_go(&mut self, key: PublicKey) {
        let Some(stamp) = self.contacts.remove(&key).and_then(|contact| contact.last_stamp()) else { return };
        self.reach.last_stamps.insert(key, stamp);
        if self.reach.last_stamps.len() > MAX_STAMPS {
            self.renew_token();
        }
    }

    /// Makes whatever was said to this node so far a thing of the past.
    fn renew_token(&mut self) {
        self.token = Token(self.rng.next_u64());
        self.reach.last_stamps.clear();
    }

    /// Answers the announce of a peer whose record we hold.
    fn greet(&mut self, key: PublicKey, place: Place, token: Token, now: Now) {
        let (lower, retry) = (self.state.wg_pubkey < key, self.first_retry(now));
        let stamp = self.reach.last_stamps.get(&key).copied();
        let contact =
            self.contacts.entry(key).or_insert_with(|| Contact::new(place, lower, stamp, now.monotonic));
        if self.observed.as_ref().is_some_and(|observed| observed.peers.contains_key(&key)) {
            contact.handle_installed(true, now.monotonic);
        }
        contact.handle_announce(place, token, retry, now.monotonic);
        self.compare_with_link(key, place, now);
    }

    /// Answers the announce of a node whose record we lack, so that it sends it. Keeps nothing.
    fn ask_stranger(&mut self, key: PublicKey, sequence: Sequence, place: Place, token: Token, now: Now) {
        if self.store.refusal(key, sequence).is_some()
            || !self.strangers.take(place.address.ip(), now.monotonic)
            || !self.leads.take(now.monotonic)
        {
            return self.drop_input("busy", place.address);
        }
        let plan = HelloPlan {
            place,
            echo: Some(token),
            phase: Phase::Heard,
            seen: None,
            ask: true,
            with_record: true,
        };
        let known = self.store.get(key).map(|peer| peer.record().record().sequence);
        self.send_hello(key, &self.pair_with(key), known, plan, now);
    }

    pub(super) fn send_hello(
        &mut self,
        key: PublicKey,
        pair: &PairKeys,
        known: Option<Sequence>,
        plan: HelloPlan,
        now: Now,
    ) {
        let hello = Hello {
            key: self.state.wg_pubkey,
            stamp: self.next_stamp(),
            token: self.token,
            echo: plan.echo,
            phase: plan.phase,
            seen: plan.seen,
            known,
            ask: plan.ask,
            record: plan.with_record.then(|| attach(&self.record)).flatten(),
        };
        let bytes = seal(&self.keys, Kind::Hello, &hello.encode_proved(key, pair), now, &mut self.rng);
        let Place { via, address } = plan.place;
        if via == Via::WireGuard && !self.may_send(key, address, bytes.len(), now.monotonic) {
            return self.drop_input("ping limit", address);
        }
        let transmit = Transmit { via, to: Recipient::Node(address), bytes };
        self.commands.push_back(Command::Send(transmit));
    }

    fn verify_record(&mut self, bytes: &[u8], key: PublicKey, from: SocketAddr) -> Option<SignedRecord> {
        let reason = match SignedRecord::verify(bytes, self.keys.network_id()) {
            Ok(record) if record.record().key == key => return Some(record),
            Ok(_) => "another's record",
            Err(InvalidRecord::TooLong | InvalidRecord::Malformed) => "malformed",
            Err(InvalidRecord::Signature) => "signature",
            Err(InvalidRecord::Meaning(_)) => "meaning",
        };
        self.drop_input(reason, from);
        None
    }

    pub(super) fn claim(&mut self, claim: Claim, place: Place, now: Now) {
        self.claim_heard(claim, now.monotonic, place, now);
    }

    /// Takes in a claim about a node that anybody has last heard at `heard_at`.
    pub(super) fn claim_heard(&mut self, claim: Claim, heard_at: Monotonic, place: Place, now: Now) {
        let record = claim.record.record().clone();
        let (source, news, is_fresh) = (claim.source.name(), claim.record.clone(), claim.fresh);
        let held = self.store.get(record.key).map(|peer| peer.record().record());
        let is_renewal =
            held.is_some_and(|held| record.is_renewal_of(held)) && self.is_reached(record.key, now);
        let Self { store, keys, state, .. } = self;
        let pair = || keys.pair(&state.wg_private_key, state.wg_pubkey, record.key);
        let outcome = store.claim_heard(claim, heard_at, pair, now.monotonic);
        self.note_claim(record.key, outcome, is_fresh);
        match outcome {
            Outcome::New => {
                tracing::info!(peer = %record.key, hostname = %record.hostname, source, "found a peer");
                self.orphans.remove(&record.key);
                for key in self.store.take_evicted() {
                    tracing::info!(peer = %key, "let go of a peer that only others told of: there are too many");
                    self.forget(key);
                }
                self.note_addresses(&record);
                self.seek(record.key, now);
                self.tell(&news, None, now);
                self.on_peers_changed(now);
            }
            Outcome::Updated if is_renewal => self.tell_of_renewal(&news, now),
            Outcome::Updated => {
                tracing::info!(peer = %record.key, hostname = %record.hostname, "a peer has news");
                self.forget_addresses(record.key);
                self.note_addresses(&record);
                self.seek(record.key, now);
                self.tell(&news, None, now);
                self.on_peers_changed(now);
            }
            Outcome::Refreshed => {}
            Outcome::Departed => {
                tracing::info!(peer = %record.key, hostname = %record.hostname, "a peer has left");
                self.forget(record.key);
                self.tell(&news, None, now);
                self.on_peers_changed(now);
            }
            Outcome::Refused(Refused::Stale) => self.drop_input("old record", place.address),
            Outcome::Refused(Refused::Departed) => self.drop_input("departed", place.address),
            Outcome::Refused(Refused::Unwanted) => self.drop_input("removed", place.address),
            Outcome::Refused(Refused::Full) => self.drop_input("peer limit", place.address),
        }
    }

    pub(super) fn pair_with(&self, key: PublicKey) -> PairKeys {
        self.keys.pair(&self.state.wg_private_key, self.state.wg_pubkey, key)
    }
}
