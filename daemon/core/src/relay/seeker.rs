//! The side of a node that wants a relay to one peer: which relay to ask, and what became of it.
//!
//! ```text
//!   ask ──Allocated──▶ try: bind, ping the peer ──pong──▶ proved: bind each minute ──unused──▶ gone
//!    │                  │                                   │
//!    └──no answer───────┴──no pong──────────────────────────┴──lost──▶ failed: rests, then ranks behind the others
//! ```
//!
//! The node with the lower key chooses, by these criteria in order: a relay that both nodes reach and that has not just
//! failed; the fewest failures of late; one that the caller prefers; the smallest sum of both round trips; a hash of pair and
//! relay. So a relay that is dead, lies or drops is left for another, and comes up again only after all that do not.
//!
//! Invariants:
//! - At most [`MAX_LEASES`] relays are asked or held at a time, at most [`MAX_FAILURES`] failures remembered.
//! - Nothing here makes a relay the path: only an answer of the peer through it does ([`crate::path`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::Reached;
use crate::key::PublicKey;
use crate::time::Monotonic;

/// The one in use, and another that may be better or take its place.
const MAX_LEASES: usize = 2;

/// Failures that are remembered; the one that rests for the shortest time makes room.
const MAX_FAILURES: usize = 8;

/// When a relay is asked again that has not answered; then it has failed.
const ASK_AGAIN_MS: [u64; 3] = [200, 400, 600];

/// How long the peer has to answer through a relay: several binds and pings of both sides.
const TRIAL: Duration = Duration::from_secs(2);

/// How often a relay is told where this node is.
const BIND_INTERVAL: Duration = Duration::from_secs(60);

/// For how long a relay is kept that is not used: a direct path may turn out to be none.
const KEPT_UNUSED: Duration = Duration::from_secs(60);

/// When the peer is told again that the tunnel is up, and for how long its own word on that counts.
const TELL_AGAIN: Duration = Duration::from_millis(250);
const BELIEVED: Duration = Duration::from_secs(10);

/// The rest of a relay after it has failed once; doubled after each next time.
const FIRST_REST: Duration = Duration::from_secs(1);

/// The longest rest of a relay, after which its failures are forgotten.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// How soon another try begins where there was no relay to ask; doubled after each next one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is to be done about a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask it for a port.
    Ask(PublicKey),
    /// Tell it where this node is.
    Bind(PublicKey, SocketAddr),
    /// It has not kept what it promised: ask nothing more of it.
    Failed(PublicKey, Option<SocketAddr>),
    /// It is of no use any more.
    Release(PublicKey, SocketAddr),
}

/// What one node does to have a relay to one peer.
#[derive(Clone, Debug, Default)]
pub struct Seeker {
    /// The relays that the peer reaches.
    theirs: BTreeMap<PublicKey, Duration>,
    /// Whether the peer takes relays that route.
    is_routed: bool,
    leases: BTreeMap<PublicKey, Lease>,
    failures: BTreeMap<PublicKey, Failure>,
    /// Until the next try where there was no relay to ask.
    turn: Option<Pause>,
    /// Until the peer is asked again for another relay than the one in use.
    inquiry: Option<Pause>,
    comeback: Comeback,
}

/// How far the pair has come to do without a relay that routes: both must leave it at the same time, because the kernel
/// takes packets of a node from one peer only.
#[derive(Clone, Copy, Debug, Default)]
struct Comeback {
    /// When the peer is told again that the tunnel is up here.
    tell_at: Option<Monotonic>,
    /// Until when the peer's word counts that it is up there.
    heard_until: Option<Monotonic>,
}

#[derive(Clone, Copy, Debug)]
enum Lease {
    /// It was asked for a port.
    Asked { tries: usize, next: Monotonic },
    /// The peer has yet to answer through it.
    Tried { address: SocketAddr, until: Monotonic },
    /// The peer has answered through it.
    Proved { address: SocketAddr, bind_at: Monotonic, used: Monotonic },
}

impl Lease {
    const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Asked { .. } => None,
            Self::Tried { address, .. } | Self::Proved { address, .. } => Some(address),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    times: u32,
    until: Monotonic,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Monotonic,
    length: Duration,
}

impl Pause {
    /// Whether it is over, or there is none. If so, a longer one begins.
    fn take(pause: &mut Option<Self>, now: Monotonic) -> bool {
        if pause.is_some_and(|pause| now < pause.until) {
            return false;
        }
        let length = pause.map_or(FIRST_PAUSE, |pause| (pause.length * 2).min(LONGEST_PAUSE));
        *pause = Some(Self { until: now + length, length });
        true
    }
}

impl Seeker {
    /// Takes note of the relays that the peer says it reaches, and whether it takes such that route.
    pub fn hear(&mut self, theirs: &[Reached], is_routed: bool) {
        self.is_routed = is_routed;
        self.theirs = theirs.iter().map(|one| (one.relay, one.rtt())).collect();
    }

    /// Returns the relays that the peer says it reaches.
    pub fn reached_by_peer(&self) -> impl Iterator<Item = PublicKey> {
        self.theirs.keys().copied()
    }

    /// Whether a relay besides this one is asked, tried or held.
    pub fn holds_another(&self, relay: Option<PublicKey>) -> bool {
        self.leases.keys().any(|held| Some(*held) != relay)
    }

    /// Returns the best relay of those that both reach and that are not held, for the nodes of `pair`.
    pub fn choose(
        &self,
        ours: &BTreeMap<PublicKey, Duration>,
        preferred: &[PublicKey],
        pair: [PublicKey; 2],
        now: Monotonic,
    ) -> Option<PublicKey> {
        let is_free = |relay: &PublicKey| !self.leases.contains_key(relay) && !self.is_resting(*relay, now);
        let common = ours.keys().copied().filter(|relay| self.theirs.contains_key(relay) && is_free(relay));
        common.min_by_key(|&relay| {
            let is_any = !preferred.contains(&relay);
            (self.times_failed(relay, now), is_any, self.distance(relay, ours), tie(pair, relay))
        })
    }

    /// Returns how far the peer is through a relay, if both reach it.
    pub fn distance(&self, relay: PublicKey, ours: &BTreeMap<PublicKey, Duration>) -> Option<Duration> {
        Some(*self.theirs.get(&relay)? + *ours.get(&relay)?)
    }

    /// Begins to ask a relay for a port. Returns whether there is room for it.
    pub fn ask(&mut self, relay: PublicKey, now: Monotonic) -> bool {
        let has_room = self.leases.len() < MAX_LEASES && !self.leases.contains_key(&relay);
        if has_room {
            self.leases.insert(relay, Lease::Asked { tries: 0, next: now });
        }
        has_room
    }

    /// Follows a relay that has a port for this pair, at `address`. Returns whether it is to be tried: what nobody has
    /// asked for is, too, if `unasked` and there is room, because the peer may have.
    pub fn handle_allocated(
        &mut self,
        relay: PublicKey,
        address: SocketAddr,
        unasked: bool,
        now: Monotonic,
    ) -> bool {
        let is_news = match self.leases.get(&relay) {
            Some(lease) => lease.address() != Some(address),
            None => unasked && self.leases.len() < MAX_LEASES && !self.is_resting(relay, now),
        };
        if is_news {
            self.leases.insert(relay, Lease::Tried { address, until: now + TRIAL });
        }
        is_news
    }

    /// Whether the peer has said that it takes relays that route.
    pub const fn is_routed(&self) -> bool {
        self.is_routed
    }

    /// Takes the relay that the peer has chosen, in place of every other. Returns whether it is another.
    pub fn take_choice(&mut self, relay: PublicKey, address: SocketAddr, now: Monotonic) -> bool {
        let is_news = self.relay_at(address) != Some(relay);
        if is_news {
            self.leases = [(relay, Lease::Tried { address, until: now + TRIAL })].into();
            self.comeback = Comeback::default();
        }
        is_news
    }

    /// Lets go of a relay of which nothing bad is known. Returns the address that it had.
    pub fn leave(&mut self, relay: PublicKey) -> Option<SocketAddr> {
        self.comeback = Comeback::default();
        self.leases.remove(&relay)?.address()
    }

    /// Notes that the peer says that the tunnel is up there.
    pub fn hear_direct(&mut self, now: Monotonic) {
        self.comeback.heard_until = Some(now + BELIEVED);
    }

    /// Whether the peer has said lately that the tunnel is up there.
    pub fn has_heard_direct(&self, now: Monotonic) -> bool {
        self.comeback.heard_until.is_some_and(|until| now < until)
    }

    /// Whether the peer is to be told now that the tunnel is up here, if it is, and notes it as done.
    pub fn take_telling(&mut self, is_up: bool, now: Monotonic) -> bool {
        let is_due = is_up && self.comeback.tell_at.is_none_or(|at| at <= now);
        if is_due || !is_up {
            self.comeback.tell_at = is_up.then(|| now + TELL_AGAIN);
        }
        is_due
    }

    /// Takes up a relay that packets of the peer come through, whoever has begun with it.
    pub fn adopt(&mut self, relay: PublicKey, address: SocketAddr, now: Monotonic) {
        if self.relay_at(address).is_none() {
            self.leases.insert(relay, Lease::Proved { address, bind_at: now, used: now });
        }
    }

    /// Follows an answer of the peer that has come through a relay.
    pub fn handle_answer(&mut self, address: SocketAddr, now: Monotonic) {
        for lease in self.leases.values_mut() {
            if let Lease::Tried { address: tried, .. } = *lease
                && tried == address
            {
                *lease = Lease::Proved { address, bind_at: now + BIND_INTERVAL, used: now };
                self.turn = None;
            }
        }
    }

    /// Takes note of the path in use.
    pub fn note_use(&mut self, current: Option<SocketAddr>, now: Monotonic) {
        for lease in self.leases.values_mut() {
            if let Lease::Proved { address, used, .. } = lease
                && Some(*address) == current
            {
                *used = now;
            }
        }
    }

    /// Leaves a relay that does not do what it should; `gravely` if it does so on purpose. Returns the address that it
    /// had.
    pub fn fail(&mut self, relay: PublicKey, gravely: bool, now: Monotonic) -> Option<SocketAddr> {
        let times = self.times_failed(relay, now) + if gravely { 6 } else { 1 };
        let rest = FIRST_REST.saturating_mul(1 << (times - 1).min(9)).min(LONGEST_REST);
        self.failures.insert(relay, Failure { times, until: now + rest });
        while self.failures.len() > MAX_FAILURES {
            let least = self.failures.iter().min_by_key(|(_, failure)| failure.until);
            let least = *least.expect("there are more than MAX_FAILURES").0;
            self.failures.remove(&least);
        }
        self.leases.remove(&relay)?.address()
    }

    /// Returns the relays that have failed, how often, and until when each is not asked again.
    pub fn failures(&self) -> impl Iterator<Item = (PublicKey, u32, Monotonic)> {
        self.failures.iter().map(|(&relay, failure)| (relay, failure.times, failure.until))
    }

    /// Has every relay that is held show anew that the peer answers through it.
    pub fn doubt(&mut self, now: Monotonic) {
        for lease in self.leases.values_mut() {
            if let Lease::Proved { address, .. } = *lease {
                *lease = Lease::Tried { address, until: now + TRIAL };
            }
        }
    }

    /// Returns the relay behind an address of the peer.
    pub fn relay_at(&self, address: SocketAddr) -> Option<PublicKey> {
        self.relay_where(|one| one == address)
    }

    /// Returns the relay that is tried or used for an address of this kind.
    pub fn relay_where(&self, fits: impl Fn(SocketAddr) -> bool) -> Option<PublicKey> {
        let found = self.leases.iter().find(|(_, lease)| lease.address().is_some_and(&fits));
        found.map(|(&relay, _)| relay)
    }

    /// Whether a relay is held or asked, of which nothing bad is known yet.
    pub fn is_under_way(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Whether a relay must not be asked because it has just failed.
    pub fn is_resting(&self, relay: PublicKey, now: Monotonic) -> bool {
        self.failures.get(&relay).is_some_and(|failure| now < failure.until)
    }

    /// Whether it is time for another try where there was no relay to ask. If so, the next comes after a longer pause.
    pub fn take_turn(&mut self, now: Monotonic) -> bool {
        Pause::take(&mut self.turn, now)
    }

    /// Whether it is time to ask the peer for another relay than the one in use. If so, the next time is after a longer pause.
    pub fn take_inquiry(&mut self, now: Monotonic) -> bool {
        Pause::take(&mut self.inquiry, now)
    }

    /// Returns something that is due, and notes it as done.
    pub fn poll_step(&mut self, now: Monotonic) -> Option<Step> {
        let due =
            self.leases.iter().find(|(_, lease)| lease.due() <= now).map(|(&relay, &lease)| (relay, lease));
        let (relay, lease) = due?;
        Some(match lease {
            Lease::Asked { tries, .. } => match ASK_AGAIN_MS.get(tries) {
                Some(&wait) => {
                    let next = now + Duration::from_millis(wait);
                    self.leases.insert(relay, Lease::Asked { tries: tries + 1, next });
                    Step::Ask(relay)
                }
                None => Step::Failed(relay, self.fail(relay, false, now)),
            },
            Lease::Tried { .. } => Step::Failed(relay, self.fail(relay, false, now)),
            Lease::Proved { address, used, .. } if now.since(used) >= KEPT_UNUSED => {
                self.leases.remove(&relay);
                Step::Release(relay, address)
            }
            Lease::Proved { address, used, .. } => {
                self.leases.insert(relay, Lease::Proved { address, bind_at: now + BIND_INTERVAL, used });
                Step::Bind(relay, address)
            }
        })
    }

    /// Returns when [`Seeker::poll_step`] has something to do.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        self.leases.values().map(Lease::due).chain(self.comeback.tell_at).min()
    }

    /// Returns when [`Seeker::take_turn`] says yes.
    pub fn next_turn(&self) -> Option<Monotonic> {
        self.turn.map(|pause| pause.until)
    }

    fn times_failed(&self, relay: PublicKey, now: Monotonic) -> u32 {
        let failure = self.failures.get(&relay).filter(|failure| now < failure.until + LONGEST_REST);
        failure.map_or(0, |failure| failure.times)
    }
}

impl Lease {
    fn due(&self) -> Monotonic {
        match *self {
            Self::Asked { next, .. } => next,
            Self::Tried { until, .. } => until,
            Self::Proved { bind_at, used, .. } => bind_at.min(used + KEPT_UNUSED),
        }
    }
}

/// Says which of two relays goes first that are equally near, alike on both sides (X-19).
fn tie(pair: [PublicKey; 2], relay: PublicKey) -> [u8; 32] {
    let [one, other] = pair;
    let parts = [one.min(other), one.max(other), relay];
    parts.iter().fold(Sha256::new(), |hash, key| hash.chain_update(key.as_bytes())).finalize().into()
}

#[cfg(test)]
mod tests;
