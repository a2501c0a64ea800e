//! Relays that pass on pings and drop the packets, and relays that flood: found out, and left.
//!
//! Where packets through a relay stay unanswered, and before there are any as soon as the tunnel leads through it, pings
//! through the tunnel tell within a second ([`Doubt`]); such a ping is one to the peer's own mesh address. Behind that
//! stand the kernel's counters, for a peer that takes no such pings ([`UNHEARD`]). A relay that lets no tunnel come up is
//! found out by [`super::handshakes`].
//!
//! A relay that sends what nodes say to each other again and again does no harm but the load, since nothing is taken twice.
//! Where there is another it is left ([`COPIES`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng as _;

use super::Mesh;
use crate::bucket::TokenBucket;
use crate::key::PublicKey;
use crate::message::{DiscoBody, PING_PADDING_BYTES};
use crate::relay::{Doubt, Fault, Lie};
use crate::time::{Monotonic, Now};

/// Whoever gets packets answers within 10 s (`KEEPALIVE_TIMEOUT`, WireGuard whitepaper §6.5). If nothing comes back for
/// this long, which is longer by a reading of the counters, the packets do not get there.
const UNHEARD: Duration = Duration::from_secs(15);

/// So many copies of a peer's messages may come from one relay, and one more each second. A network that doubles packets
/// stays far below: at rest there is a message every few seconds.
const COPIES: u32 = 50;
const COPY_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of the packets through relays. At most one entry of each kind for each peer.
#[derive(Default)]
pub(super) struct Trials {
    doubts: BTreeMap<PublicKey, Doubt>,
    unheard: BTreeMap<PublicKey, Unheard>,
    copies: BTreeMap<PublicKey, Copies>,
}

/// What may still come twice from the relay at an address.
#[derive(Clone, Copy, Debug)]
struct Copies {
    address: SocketAddr,
    left: TokenBucket,
}

/// What was sent to a peer through a relay, from one reading to the next, while nothing came back.
#[derive(Clone, Copy, Debug)]
struct Unheard {
    /// Since when.
    since: Monotonic,
    /// What the kernel had received from the peer by then.
    received: u64,
}

impl Trials {
    pub(super) fn forget(&mut self, key: PublicKey) {
        self.doubts.remove(&key);
        self.unheard.remove(&key);
        self.copies.remove(&key);
    }

    /// Takes note of a message of a peer that has come once more from the relay at an address. Returns whether that is
    /// one too many; then it begins anew.
    fn note_copy(&mut self, key: PublicKey, address: SocketAddr, now: Monotonic) -> bool {
        let fresh = Copies { address, left: TokenBucket::new(COPIES, COPY_INTERVAL, now) };
        let copies = self.copies.entry(key).or_insert(fresh);
        if copies.address != address {
            *copies = fresh;
        }
        let is_flood = !copies.left.take(now);
        if is_flood {
            self.copies.remove(&key);
        }
        is_flood
    }

    /// Takes note of an answer over an address beside the tunnel.
    pub(super) fn note_passed(&mut self, key: PublicKey, address: SocketAddr) {
        if let Some(doubt) = self.doubts.get_mut(&key) {
            doubt.note_passed(address);
        }
    }

    /// Returns when something is due.
    pub(super) fn poll_timeout(&self) -> Option<Monotonic> {
        self.doubts.values().filter_map(Doubt::poll_timeout).min()
    }

    fn due(&self, now: Monotonic) -> Vec<PublicKey> {
        let is_due = |doubt: &Doubt| doubt.poll_timeout().is_some_and(|at| at <= now);
        self.doubts.iter().filter(|(_, doubt)| is_due(doubt)).map(|(&key, _)| key).collect()
    }
}

impl Mesh {
    /// Puts the relay on trial through which packets to a peer go that nobody answers. Another is looked for at the same time,
    /// so that it is known when the trial ends.
    pub(super) fn try_relay(&mut self, key: PublicKey, now: Now) {
        let address = self.sealed_path(key).filter(|_| self.live_endpoint(key, now).is_some());
        if let Some(address) = address {
            let has_other = self.look_for_another_relay(key, now);
            self.relays.trials.doubts.entry(key).or_default().begin(address, has_other, now.monotonic);
        }
    }

    /// Puts the relay in use to a peer on trial again if it falls under suspicion: there is another by now, perhaps.
    pub(super) fn try_suspect(&mut self, key: PublicKey, now: Now) {
        let doubt = self.relays.trials.doubts.get(&key);
        if self.sealed_path(key).zip(doubt).is_some_and(|(address, doubt)| doubt.suspects(address)) {
            self.try_relay(key, now);
        }
    }

    /// Does what is due for the relays that are on trial.
    pub(super) fn drive_trials(&mut self, now: Now) {
        for key in self.relays.trials.due(now.monotonic) {
            let current = self.sealed_path(key);
            let patience = self.reach.paths.get(&key).and_then(|paths| paths.patience(current?));
            let Some(doubt) = self.relays.trials.doubts.get_mut(&key) else { continue };
            doubt.follow(current);
            let ping = doubt.poll_ping(patience.unwrap_or_default(), now.monotonic, || self.rng.next_u64());
            let lie = doubt.poll_lie(now.monotonic);
            if let Some(id) = ping {
                self.ping_beside_and_through(key, id, now);
            }
            match lie {
                Some(Lie { is_certain: true }) => self.leave_relay(key, Fault::Lies, now),
                Some(Lie { is_certain: false }) if self.look_for_another_relay(key, now) => {
                    self.leave_relay(key, Fault::Suspect, now);
                }
                Some(Lie { is_certain: false }) | None => {}
            }
        }
    }

    /// Follows an answer that has come through a peer's own tunnel. Returns whether it was asked for.
    pub(super) fn on_pong_through_tunnel(&mut self, key: PublicKey, id: u64) -> bool {
        self.relays.trials.doubts.get_mut(&key).is_some_and(|doubt| doubt.handle_answer(id))
    }

    /// Leaves the relay at an endpoint over which a peer answers pings and WireGuard does not, if there is another to try:
    /// whose fault it is nobody knows.
    pub(super) fn leave_relay_in_vain(&mut self, key: PublicKey, endpoint: SocketAddr, now: Now) {
        if self.sealed_path(key) == Some(endpoint) && self.look_for_another_relay(key, now) {
            self.leave_relay(key, Fault::Mute, now);
        }
    }

    /// Returns whether there is another relay than the one in use. If none is known, the peer is asked: it reaches others by
    /// now, perhaps, and says so by itself only where no path works.
    pub(super) fn look_for_another_relay(&mut self, key: PublicKey, now: Now) -> bool {
        if !self.uses_relays() {
            return false;
        }
        let current = self.sealed_path(key).and_then(|address| self.relay_at(key, address));
        let is_held = self.relays.seekers.get(&key).is_some_and(|seeker| seeker.holds_another(current));
        if is_held || self.choose_relay(key, now).is_some() {
            return true;
        }
        if self.relays.seekers.entry(key).or_default().take_inquiry(now.monotonic) {
            tracing::debug!(peer = %key, "no other relay is known; asking the peer");
            self.send_offers(key, now);
        }
        false
    }

    /// Leaves the relay in use to a peer if it sends the peer's messages again and again, and there is another to try.
    pub(super) fn on_copy(&mut self, key: PublicKey, from: SocketAddr, now: Now) {
        let is_flood =
            self.sealed_path(key) == Some(from) && self.relays.trials.note_copy(key, from, now.monotonic);
        if is_flood && self.look_for_another_relay(key, now) {
            self.leave_relay(key, Fault::Floods, now);
        }
    }

    /// Follows a peer that the kernel has moved to a relay.
    pub(super) fn follow_relayed(&mut self, key: PublicKey, now: Now) {
        if self.sealed_path(key).is_some() && !self.relays.seekers.contains_key(&key) {
            self.drive_relay(key, now);
        }
    }

    /// Follows what a reading says of packets through relays: sent ones that nobody answers were never passed on.
    pub(super) fn follow_unheard(&mut self, key: PublicKey, sent: bool, received: u64, now: Now) {
        // What is routed counts as the relay's own.
        let is_relayed = self.sealed_path(key).is_some();
        let trials = &mut self.relays.trials;
        let before = trials.unheard.get(&key).filter(|before| before.received == received).copied();
        let unheard = match (is_relayed, before, sent) {
            (false, ..) | (true, _, false) => None,
            (true, None, true) => Some(Unheard { since: now.monotonic, received }),
            (true, Some(before), true) => Some(before),
        };
        match unheard {
            Some(unheard) if now.monotonic.since(unheard.since) >= UNHEARD => {
                trials.unheard.remove(&key);
                self.leave_relay(key, Fault::Lies, now);
            }
            Some(unheard) => {
                trials.unheard.insert(key, unheard);
                if before.is_some() {
                    self.try_relay(key, now);
                }
            }
            None => drop(trials.unheard.remove(&key)),
        }
    }

    /// Returns the path in use to a peer if it leads through a relay that cannot read.
    pub(super) fn sealed_path(&self, key: PublicKey) -> Option<SocketAddr> {
        let paths = self.reach.paths.get(&key)?;
        paths.current().filter(|_| paths.works() && paths.is_relayed() && !paths.is_routed())
    }

    fn ping_beside_and_through(&mut self, key: PublicKey, id: u64, now: Now) {
        if let Some(paths) = self.reach.paths.get_mut(&key) {
            paths.ping_now(now.monotonic);
            self.drive(key, now);
        }
        if let Some(inside) = self.inner_endpoint(key) {
            let body = DiscoBody::Ping { id, padding: vec![0; PING_PADDING_BYTES].into() };
            self.send_disco(key, inside, body, now);
        }
    }

    pub(super) fn leave_relay(&mut self, key: PublicKey, fault: Fault, now: Now) {
        self.fail_relay_in_use(key, fault, now);
        if let Some(paths) = self.reach.paths.get_mut(&key) {
            paths.shun_current(now.monotonic);
        }
        self.drive(key, now);
    }
}
