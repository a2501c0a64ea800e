//! The paths to one peer: the addresses at which its WireGuard may answer, which of them do, and which is best.
//!
//! Every candidate is pinged from WireGuard's own port, all side by side; the pings of both sides open the holes of
//! the NATs between them. Only an address that has answered is taken for a path.
//!
//! - **Effort** is bounded: an attempt sends at most [`PINGS_PER_CANDIDATE`] pings to each of [`MAX_CANDIDATES`]
//!   addresses within [`ATTEMPT`], and rests between attempts, from [`FIRST_REST`] up to [`LONGEST_REST`], or up to
//!   [`HOPELESS_REST`] where the two NATs are known to let nothing through, or did not when [`FAIR_ATTEMPTS`] were introduced.
//! - **A path that is used is watched**: as long as traffic flows it is pinged each [`WATCH_INTERVAL`], quicker once a
//!   ping was missed, and counts as lost after some two seconds without an answer. A path at rest costs nothing.
//! - **A working path is only left for a better one**: of a better [`Kind`] and not slower by 10 ms, of a worse one and
//!   quicker by that, or of the same kind and quicker by a fifth or 10 ms, seen [`CHECKS`] times. A lost one is left for the first that answers.
//! - **What may be better is looked at again**: a candidate of a better kind that lost the comparison, or did not answer at all, is
//!   compared a few times more, ever later. Its router may have come up after its address.
//! - **A relay is only a stopgap**: attempts go on beside it, and any direct path that answers [`CHECKS`] times replaces it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::message::Stamp;
use crate::time::Monotonic;
use crate::timed::Deadline;

mod candidate;
mod history;
mod moving;
mod mtu;
mod schedule;
mod unproved;
mod watch;
mod window;

pub(crate) use candidate::is_quicker;
pub use candidate::{Answered, Candidate, Kind, LastAnswer, Origin, Ping};
use candidate::{FARTHER, Sent};
use history::History;
pub use history::PastAttempt;
pub use moving::{Course, Look};
use moving::{Move, Stay};
use mtu::PathMtu;
pub use mtu::probe_bytes;
pub use schedule::PINGS_PER_CANDIDATE;
use schedule::Schedule;
pub(crate) use unproved::{Credit, Targets};
use watch::Current;
pub use watch::{USED_FOR, WATCH_INTERVAL};
use window::ReplayWindow;

/// The most addresses that are tried for one peer; of the others the least trusted, then the oldest, makes room for a new one.
pub const MAX_CANDIDATES: usize = 12;

/// How long an attempt lasts.
pub const ATTEMPT: Duration = Duration::from_secs(4);

/// For this long a direct path is looked for before a relay is.
pub const RELAY_GRACE: Duration = Duration::from_secs(1);

/// The rest after the first attempt that failed; doubled after each next one.
pub const FIRST_REST: Duration = Duration::from_secs(3);

/// The longest rest between two attempts.
pub const LONGEST_REST: Duration = Duration::from_secs(30);

/// After so many attempts in a row that both sides made at once, none is expected to succeed: some four minutes.
const FAIR_ATTEMPTS: u32 = 8;

/// The longest rest between two attempts that nobody expects to succeed: NATs may be other than they seem.
pub const HOPELESS_REST: Duration = Duration::from_secs(300);

/// How often a challenger must be seen to be better.
const CHECKS: u32 = 3;

/// How often the kernel is called back from a path that was left. The peer may hold to it, and moves us by its packets.
const MAX_RECALLS: u8 = 3;

/// A candidate that has not answered for this long is no proof of anything.
const PROOF_LIFETIME: Duration = Duration::from_secs(10);

/// Pings to one candidate that may be unanswered and still count when answered.
const OUTSTANDING: usize = 32;

/// What is being done to find a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Effort {
    /// Nothing.
    #[default]
    None,
    /// Every candidate is pinged, until then.
    Attempt { until: Monotonic },
    /// The next attempt is to begin then.
    Rest { until: Monotonic },
}

/// The paths to one peer.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    candidates: BTreeMap<SocketAddr, Candidate>,
    current: Option<Current>,
    effort: Effort,
    failures: u32,
    used_until: Option<Monotonic>,
    offer_due: bool,
    was_lost: bool,
    /// Whether everything is to be pinged once the path is used: there may be a better one.
    look_when_used: bool,
    /// An address that answers pings and leads nowhere.
    shunned: Option<SocketAddr>,
    /// How often the kernel had to be called back from there.
    recalls: u8,
    moving: Option<Move>,
    stay: Option<Stay>,
    introduced: bool,
    /// Whether the last attempt found nobody to introduce the two.
    without_introducer: bool,
    hopeless: bool,
    last_answer: Option<LastAnswer>,
    history: History,
    mtu: PathMtu,
    /// How late this node is to be expected to do what is due.
    lag: Duration,
    window: ReplayWindow,
    pub(crate) credit: Credit,
}

impl Paths {
    /// Takes note of an address at which the peer may answer. Returns whether it is new.
    pub fn add(&mut self, address: SocketAddr, origin: Origin, kind: Kind, now: Monotonic) -> bool {
        let is_new = !self.candidates.contains_key(&address);
        let attempting = matches!(self.effort, Effort::Attempt { .. });
        let candidate = self.candidates.entry(address).or_insert_with(|| Candidate {
            origin,
            kind,
            named: now,
            answered: None,
            rtt: None,
            better: 0,
            looks: 0,
            pings: Vec::new(),
            schedule: attempting.then_some(Schedule::at(now)),
        });
        candidate.origin = candidate.origin.max(origin);
        if !candidate.kind.is_relayed() {
            candidate.kind = kind;
        }
        candidate.named = now;
        if origin == Origin::Relay && self.shunned == Some(address) {
            self.shunned = None;
        }
        while self.candidates.len() > MAX_CANDIDATES {
            let used = self.current.map(|current| current.address);
            let others = self.candidates.iter().filter(|(one, _)| **one != address && Some(**one) != used);
            let weakest = others.min_by_key(|(_, candidate)| (candidate.trust(now), candidate.named));
            let weakest = *weakest.expect("there are more than MAX_CANDIDATES").0;
            self.candidates.remove(&weakest);
        }
        is_new
    }

    /// Begins an attempt, unless one is under way; `now` also ends a rest.
    pub fn begin(&mut self, now: Monotonic) {
        if !matches!(self.effort, Effort::Attempt { .. }) {
            self.attempt(now);
        }
    }

    /// Begins an attempt at `at`, unless one begins before.
    pub fn begin_at(&mut self, at: Monotonic) {
        if self.effort == Effort::None {
            self.effort = Effort::Rest { until: at };
        }
    }

    /// Has an attempt that is still to begin do so at `at` at the earliest.
    pub fn put_off(&mut self, at: Monotonic) {
        if let Effort::Rest { until } = &mut self.effort {
            *until = at.max(*until);
        }
    }

    /// Has an attempt begin once the path is used: where this host is has changed, and what works need not be best.
    pub const fn look_when_used(&mut self) {
        self.look_when_used = true;
    }

    /// Notes that there is nothing to look for: the peer is reached by other means.
    pub const fn stop(&mut self) {
        self.effort = Effort::None;
        self.failures = 0;
    }

    /// Whether everything that is known is being pinged.
    pub const fn is_attempting(&self) -> bool {
        matches!(self.effort, Effort::Attempt { .. })
    }

    /// Whether the next attempt is still to begin.
    pub const fn is_resting(&self) -> bool {
        matches!(self.effort, Effort::Rest { .. })
    }

    /// Whether a message with this stamp is the first of its kind. Forgets nothing that matters: stamps rise.
    pub fn is_new(&mut self, stamp: Stamp, now: Monotonic) -> bool {
        self.window.take(stamp, now)
    }

    /// Follows a ping of the peer: what it came from is worth an answer and a ping of our own.
    pub fn handle_ping(&mut self, from: SocketAddr, kind: Kind, now: Monotonic) {
        self.add(from, Origin::Ping, kind, now);
        let works = self.current.is_some_and(|current| !current.lost);
        let Some(candidate) = self.candidates.get_mut(&from) else { return };
        let proved = candidate.answered.is_some_and(|at| now.since(at) < PROOF_LIFETIME);
        let is_current = self.current.is_some_and(|current| current.address == from);
        if !(candidate.is_pinged(now) || proved || works && is_current) {
            candidate.schedule = Some(Schedule::at(now));
        }
    }

    /// Follows an answer. Returns `None` if it answers no ping of ours to that address.
    pub fn handle_pong(&mut self, from: SocketAddr, id: u64, now: Monotonic) -> Option<Answered> {
        let candidate = self.candidates.get_mut(&from)?;
        let place = candidate.pings.iter().position(|ping| ping.id == id)?;
        let Sent { at, mtu, .. } = candidate.pings.swap_remove(place);
        let rtt = now.since(at);
        candidate.answered = Some(now);
        // What delays one answer, such as a neighbour that had to be found first, says nothing of the way.
        candidate.rtt = Some(candidate.rtt.map_or(rtt, |old| rtt.min((old * 7 + rtt * 3) / 10)));
        if let Some(mtu) = mtu {
            self.mtu.on_answer(from, mtu, now);
        }
        let switched = self.choose(from, mtu, now);
        self.last_answer = Some(LastAnswer { at: now, from, rtt });
        Some(Answered { rtt, switched })
    }

    /// Follows the kernel, which sends to `address` because the peer was heard there or because we said so. What it
    /// uses is what is watched. Packets that were under way when a path was taken lead it back to the one before;
    /// then the two are compared again.
    ///
    /// Returns what that means for a move that is not over, and for a path that was left.
    pub fn follow_kernel(&mut self, address: SocketAddr, kind: Kind, now: Monotonic) -> Course {
        let chosen = self.current.map(|current| current.address);
        let course = self.follow_move(address, now);
        // What is routed goes by the kernel's tunnel to the relay, whatever that has for the peer itself.
        if chosen == Some(address) || self.is_routed() {
            return Course::Settled;
        }
        if self.shunned == Some(address) {
            let is_astray = self.works() && self.recalls < MAX_RECALLS;
            self.recalls += u8::from(is_astray);
            return if is_astray { Course::Astray } else { Course::Settled };
        }
        if course == Course::Astray {
            return course;
        }
        self.add(address, Origin::Kernel, kind, now);
        let next_ping = self.current.and_then(|current| current.next_ping);
        self.current = Some(Current::new(address, next_ping));
        if self.is_relayed() {
            self.begin_at(now + FIRST_REST);
        }
        if let Some(chosen) = chosen.filter(|_| course != Course::Stays) {
            self.compare(chosen, now);
        }
        course
    }

    /// Does what is due. Call it before [`Paths::poll_ping`].
    pub fn handle_timeout(&mut self, now: Monotonic) {
        match self.effort {
            Effort::Attempt { until } if until <= now => self.end_attempt(now),
            Effort::Rest { until } if until <= now => self.attempt(now),
            Effort::None | Effort::Attempt { .. } | Effort::Rest { .. } => {}
        }
    }

    /// Returns a ping that is due, under the id that `new_id` makes, and notes it as sent.
    pub fn poll_ping(&mut self, now: Monotonic, new_id: impl FnOnce() -> u64) -> Option<Ping> {
        let watch = self.watched_due(now).or_else(|| self.measuring_due(now));
        let (to, mtu) = watch.or_else(|| self.scheduled_due(now).map(|address| (address, None)))?;
        let id = new_id();
        let candidate = self.candidates.get_mut(&to)?;
        if candidate.pings.len() >= OUTSTANDING {
            candidate.pings.remove(0);
        }
        candidate.pings.push(Sent { id, at: now, mtu });
        Some(Ping { to, id, mtu })
    }

    /// Takes note of how late this node comes to do what is due: then answers may take longer, and fewer are asked for.
    pub const fn set_lag(&mut self, lag: Duration) {
        self.lag = lag;
    }

    /// Whether an attempt has begun that the peer should hear of.
    pub const fn take_offer_due(&mut self) -> bool {
        std::mem::replace(&mut self.offer_due, false)
    }

    /// Returns the path in use.
    pub fn current(&self) -> Option<SocketAddr> {
        self.current.map(|current| current.address)
    }

    /// Whether there is a path and it was not lost.
    pub fn works(&self) -> bool {
        self.current.is_some_and(|current| !current.lost)
    }

    /// Whether there is a path that leads to the peer itself, and it was not lost.
    pub fn works_directly(&self) -> bool {
        self.works() && !self.is_relayed()
    }

    /// Returns the path in use if it leads to the peer itself and has just been proved.
    pub fn just_proved(&self, now: Monotonic) -> Option<SocketAddr> {
        let address = self.current().filter(|_| self.works_directly())?;
        let answered = self.candidates.get(&address)?.answered?;
        (now.since(answered) < PROOF_LIFETIME).then_some(address)
    }

    /// Whether the path in use leads through a relay.
    pub fn is_relayed(&self) -> bool {
        self.current_kind().is_some_and(Kind::is_relayed)
    }

    /// Whether the path in use leads through a relay that routes.
    pub fn is_routed(&self) -> bool {
        self.current_kind() == Some(Kind::Routed)
    }

    fn current_kind(&self) -> Option<Kind> {
        Some(self.candidates.get(&self.current?.address)?.kind)
    }

    /// Returns since when, or from when on, the peer is worth a relay: at once where a path was lost, an attempt has
    /// failed or none can succeed, otherwise [`RELAY_GRACE`] after an attempt has begun. `None` while there is a path or
    /// nobody looks for one.
    pub fn wants_relay_at(&self) -> Option<Monotonic> {
        let is_sure = self.current.is_some() || self.hopeless || self.failures > 0;
        match self.effort {
            _ if self.works() => None,
            Effort::Attempt { until } if is_sure => Some(until - ATTEMPT),
            Effort::Attempt { until } => Some(until - (ATTEMPT - RELAY_GRACE)),
            Effort::Rest { .. } if is_sure => Some(Monotonic::default()),
            Effort::None | Effort::Rest { .. } => None,
        }
    }

    /// Returns what is known of an address.
    pub fn candidate(&self, address: SocketAddr) -> Option<&Candidate> {
        self.candidates.get(&address)
    }

    /// Forgets an address, unless it is the path in use.
    pub fn remove(&mut self, address: SocketAddr) {
        if self.current() != Some(address) {
            self.candidates.remove(&address);
        }
    }

    /// Goes through everything that was named.
    pub fn candidates(&self) -> impl Iterator<Item = (SocketAddr, &Candidate)> {
        self.candidates.iter().map(|(&address, candidate)| (address, candidate))
    }

    /// Notes whether an attempt has found somebody to introduce the two.
    pub const fn note_introducers(&mut self, found: bool) {
        self.introduced |= found;
        self.without_introducer = !found;
    }

    /// Notes whether the two NATs are known to let nothing through.
    pub const fn expect_nothing(&mut self, hopeless: bool) {
        self.hopeless = hopeless;
    }

    fn attempt(&mut self, now: Monotonic) {
        self.effort = Effort::Attempt { until: now + ATTEMPT };
        self.history.begin(now);
        self.offer_due = true;
        for candidate in self.candidates.values_mut() {
            (candidate.schedule, candidate.looks) = (Some(Schedule::at(now)), 0);
        }
    }

    fn end_attempt(&mut self, now: Monotonic) {
        for candidate in self.candidates.values_mut() {
            // What was named in the meantime, such as a relay's port, has pings of its own to come.
            candidate.schedule = candidate.schedule.filter(|schedule| schedule.begun + ATTEMPT > now);
        }
        if self.works_directly() {
            return self.stop();
        }
        let is_met_in_vain = self.failures >= FAIR_ATTEMPTS && !self.without_introducer;
        let longest = if self.hopeless || is_met_in_vain { HOPELESS_REST } else { LONGEST_REST };
        let rest = FIRST_REST.saturating_mul(1 << self.failures.min(8)).min(longest);
        self.failures += 1;
        self.effort = Effort::Rest { until: now + rest };
    }

    /// Decides which path to use after `from` has answered. Returns whether it is another, or works again.
    fn choose(&mut self, from: SocketAddr, mtu: Option<u16>, now: Monotonic) -> bool {
        if self.shunned == Some(from) {
            return false;
        }
        let Some(current) = self.current.filter(|current| !current.lost) else {
            self.use_path(from, now);
            return true;
        };
        if current.address == from {
            self.follow_answer_of_current(mtu, now);
            return false;
        }
        let is_better = self.is_better(from, current.address) && !self.stays_away_from(from, now);
        let Some(challenger) = self.candidates.get_mut(&from) else { return false };
        challenger.better = if is_better { challenger.better + 1 } else { 0 };
        if challenger.better < CHECKS {
            return false;
        }
        self.use_path(from, now);
        self.moving = Some(Move::begin(current.address, from, now));
        true
    }

    fn use_path(&mut self, address: SocketAddr, now: Monotonic) {
        let is_used = self.is_used(now);
        let next_ping = is_used.then_some(now + WATCH_INTERVAL);
        self.current = Some(Current::new(address, next_ping));
        if self.is_attempting() {
            self.history.find(address, now);
        }
        self.candidates.values_mut().for_each(|candidate| candidate.better = 0);
        if !self.is_relayed() {
            self.failures = 0;
        }
        self.ensure_mtu(now);
    }

    fn is_better(&self, challenger: SocketAddr, current: SocketAddr) -> bool {
        let (Some(challenger), Some(current)) =
            (self.candidates.get(&challenger), self.candidates.get(&current))
        else {
            return true;
        };
        let Some(rtt) = challenger.rtt else { return false };
        if challenger.kind.is_relayed() != current.kind.is_relayed() {
            return current.kind.is_relayed();
        }
        let Some(rtt_now) = current.rtt else { return challenger.kind <= current.kind };
        match challenger.kind.cmp(&current.kind) {
            Ordering::Less => rtt < rtt_now + FARTHER,
            Ordering::Equal => is_quicker(rtt, rtt_now),
            Ordering::Greater => rtt + FARTHER <= rtt_now,
        }
    }
}

impl Deadline for Paths {
    /// Returns when [`Paths::handle_timeout`] or [`Paths::poll_ping`] has something to do.
    fn deadline(&self) -> Option<Monotonic> {
        let effort = match self.effort {
            Effort::None => None,
            Effort::Attempt { until } | Effort::Rest { until } => Some(until),
        };
        let schedules = self.candidates.values().filter_map(|candidate| candidate.schedule?.due());
        let watch = self.current.and_then(|current| current.next_ping);
        let look = self.moving.and_then(|moving| moving.poll_timeout());
        schedules.chain(effort).chain(watch).chain(look).chain(self.mtu.poll_timeout()).min()
    }
}

#[cfg(test)]
mod tests;
