//! The rendezvous: both sides of a pair that has no path get to know where the other is, and ping at once.
//!
//! It needs no clock and no server: whoever begins an attempt sends an [`Offer`] with its candidates by way of up to
//! [`INTRODUCERS`] peers that it does reach, through the mesh's own datagrams or a session. The one that gets it begins
//! its own attempt at once and answers the same way. Introducers carry offers between their peers and learn nothing
//! that the records do not say; what they carry for each peer is bounded.
//!
//! There is no common start, which would take clocks or a round trip more: the pings of either side open its own NAT and are
//! repeated. And there is no guessing of ports beside the one that was told (W-X22): a NAT that gives another port to each
//! destination makes it one of thousands, and what is sent to ports that nobody named falls on whoever has them.
//!
//! Nothing is punched over TCP. What a session between two nodes behind NATs would carry is records and offers. Where
//! a datagram passes between the two, they talk through the tunnel; where none does, records reach both by way of those
//! that each holds a session or a tunnel with, and offers by an introducer, within a second or two. So a stream of their own
//! would save one hop; and where UDP is blocked altogether there is no WireGuard that it could help.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Mesh, candidates};
use crate::bucket::TokenBucket;
use crate::contact::{Place, Via};
use crate::key::PublicKey;
use crate::message::{DiscoBody, Offer, Paired as _, Unproved};
use crate::path::{Origin, Paths};
use crate::record::{MAX_CANDIDATES, may_be_an_endpoint};
use crate::relay::MAX_OFFERED;
use crate::store::{Claim, Source};
use crate::time::Now;

/// How many peers are asked to carry an offer.
const INTRODUCERS: usize = 3;

/// Offers of one peer that are carried: 16 at once, then four a second.
const CARRY_BURST: u32 = 16;
const CARRY_INTERVAL: Duration = Duration::from_millis(250);

/// What it takes to have an offer carried, besides its own bytes, whether in a datagram or in a session: the envelope, and
/// the key of the node that it is for.
const CARRYING_BYTES: usize = 96;

impl Mesh {
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
        if offer.candidates.len() > MAX_CANDIDATES || offer.relays.len() > MAX_OFFERED {
            return self.drop_input("malformed", from);
        }
        if !self.reach.paths.entry(origin).or_default().is_new(offer.stamp, now.monotonic) {
            return self.drop_input("replayed", from);
        }
        self.note_spent(origin, bytes.len() + CARRYING_BYTES);
        for &address in &offer.candidates {
            match may_be_an_endpoint(address) {
                true => drop(self.add_candidate(origin, address, Origin::Offer, now.monotonic)),
                false => self.drop_input("bad address", from),
            }
        }
        if !self.settings.punching || self.is_meeting_on_link(origin, now) {
            return;
        }
        if let Some(paths) = self.reach.paths.get_mut(&origin) {
            paths.note_introducers(true);
            paths.begin(now.monotonic);
            // What still seems to work here may be what the other side has lost.
            paths.verify(now.monotonic);
            // The other side has begun: it wants an answer, and no offer of ours besides.
            paths.take_offer_due();
        }
        if !offer.answer {
            self.send_offer(origin, introducer, true, now);
        }
        self.hear_relays(origin, &offer, now);
        self.drive(origin, now);
    }

    /// Notes where a tunnel came up that introducers have helped into being (W-X24).
    pub(super) fn note_rendezvous(&mut self, key: PublicKey, endpoint: SocketAddr, now: Now) {
        let introduced = self.reach.paths.get(&key).is_some_and(Paths::was_introduced)
            && !self.is_met_on_link(key)
            && self.relay_at(key, endpoint).is_none();
        if let (true, Some(peer)) = (introduced, self.store.get(key)) {
            let record = peer.record().clone();
            let claim = Claim { record, source: Source::Rendezvous, endpoint: Some(endpoint), fresh: true };
            self.claim(claim, Place { via: Via::WireGuard, address: endpoint }, now);
        }
    }

    pub(super) fn send_offers(&mut self, key: PublicKey, now: Now) {
        let introducers = self.introducers(key, now);
        if let Some(paths) = self.reach.paths.get_mut(&key) {
            paths.note_introducers(!introducers.is_empty());
        }
        for introducer in introducers {
            self.send_offer(key, introducer, false, now);
        }
        self.note_asked(key, now);
    }

    /// Begins anew with the peers to whom nobody could introduce this node when it tried: somebody has come up.
    pub(super) fn retry_with_introducer(&mut self, now: Now) {
        self.begin_with_offers(Paths::lacks_introducer, now);
    }

    /// Tells the peers to which no path works where this node is now.
    pub(super) fn offer_to_unreached(&mut self, now: Now) {
        self.begin_with_offers(|_| true, now);
    }

    /// Begins with the unreached peers that fit, and tells them so even in the middle of an attempt.
    fn begin_with_offers(&mut self, fits: impl Fn(&Paths) -> bool, now: Now) {
        let lacks = |key: PublicKey, paths: &Paths| paths.is_relayed() || !self.is_reached(key, now);
        let waiting = |(key, paths): &(&PublicKey, &Paths)| fits(paths) && lacks(**key, paths);
        let keys: Vec<_> = self.reach.paths.iter().filter(waiting).map(|(&key, _)| key).collect();
        for key in keys {
            if let Some(paths) = self.reach.paths.get_mut(&key) {
                paths.begin(now.monotonic);
                paths.take_offer_due();
            }
            self.send_offers(key, now);
        }
    }

    fn send_offer(&mut self, key: PublicKey, introducer: PublicKey, answer: bool, now: Now) {
        let Some(peer) = self.store.get(key) else { return };
        let pair = peer.pair.clone();
        let candidates = candidates::own_candidates(&self.mapped(), &self.underlay, self.listen_port);
        let offer = Offer {
            key: self.state.wg_pubkey,
            stamp: self.next_stamp(),
            token: self.token,
            candidates,
            answer,
            relays: self.offered_relays(key, now),
            wants_relay: self.wants_relay(key, now),
            routed: self.settings.relay.routes(),
        };
        let offer = offer.encode_proved(key, &pair);
        if let Some(endpoint) = self.live_endpoint(introducer, now) {
            self.send_disco(introducer, endpoint, DiscoBody::Carry { to: key, offer: offer.into() }, now);
        } else {
            self.forward(introducer, self.state.wg_pubkey, key, offer);
        }
    }

    /// Returns whom to ask to carry offers to a peer: those that say that anyone reaches them, then the others, each in an order
    /// that both ends of the pair find by themselves (W-X35).
    pub(super) fn introducers(&self, to: PublicKey, now: Now) -> Vec<PublicKey> {
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

    /// Whether a peer may have this node send something to others now.
    pub(super) fn take_carry(&mut self, key: PublicKey, now: Now) -> bool {
        let full = || TokenBucket::new(CARRY_BURST, CARRY_INTERVAL, now.monotonic);
        // What is kept for others than peers nobody would forget.
        self.store.get(key).is_some()
            && self.reach.carries.entry(key).or_insert_with(full).take(now.monotonic)
    }

    /// Carries an offer from one peer to another, if it may and can.
    pub(super) fn carry(
        &mut self,
        origin: PublicKey,
        to: PublicKey,
        offer: Vec<u8>,
        from: SocketAddr,
        now: Now,
    ) {
        if !self.take_carry(origin, now) {
            return self.drop_input("carry limit", from);
        }
        if let Some(endpoint) = self.heard_lately(to, now).or_else(|| self.live_endpoint(to, now)) {
            self.send_disco(to, endpoint, DiscoBody::Carried { from: origin, offer: offer.into() }, now);
        } else if !self.forward(to, origin, to, offer) {
            self.drop_input("cannot carry", from);
        }
    }
}
