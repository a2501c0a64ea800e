//! The addresses that this node wants a session with, and when to dial each.
//!
//! A target whose node is known is at rest while any session with that node lives, whoever dialed it. Otherwise it
//! is dialed at once, then after 1, 2, 4 … 60 seconds, or 300 if only others told of it, each changed by up to a quarter so that a fleet does not
//! come back as one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;

use super::{SessionId, Target};
use crate::key::PublicKey;
use crate::time::Monotonic;

/// The most targets at a time; more are left out.
pub const MAX_TARGETS: usize = 64;

/// The most dials at a time.
const MAX_DIALING: usize = 16;

const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait for what the operator named: after an outage of whatever length it is back soon.
const LONGEST_WAIT_NAMED: Duration = Duration::from_secs(60);

/// The longest wait for what others told of (M-34).
const LONGEST_WAIT_LEARNED: Duration = Duration::from_secs(300);

/// A session that lived this long was good: after it, waiting begins anew.
const GOOD_LIFE: Duration = Duration::from_secs(300);

/// Within this time everyone who lost a session to a node comes back to it.
const RETURN_SPREAD: Duration = Duration::from_secs(1);

/// How far a target has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// It is dialed then, unless there is a session with its node.
    Waiting(Monotonic),
    /// It is being dialed.
    Dialing,
    /// It was dialed, and this session lives.
    Open(SessionId),
}

/// What is known of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    /// The node that must answer there.
    pub expected: Option<PublicKey>,
    /// The node that did answer there.
    pub met: Option<PublicKey>,
    /// How far it has come.
    pub state: TargetState,
    /// What went wrong last, cleared by a session.
    pub error: Option<String>,
    /// When it was last dialed, and how long that took until a node had proved itself there or until it failed (P-2).
    pub tried: Option<(Monotonic, Option<Duration>)>,
    /// Attempts in a row that led to no good session.
    pub failures: u32,
    longest_wait: Duration,
}

#[derive(Default)]
pub(super) struct Targets(BTreeMap<SocketAddr, TargetView>);

impl Targets {
    /// Replaces the whole list; what stays keeps its state. What the operator named comes before what others told of.
    pub(super) fn want(&mut self, named: Vec<Target>, learned: Vec<Target>, now: Monotonic) {
        let named = named.into_iter().map(|target| (target, LONGEST_WAIT_NAMED));
        let learned = learned.into_iter().map(|target| (target, LONGEST_WAIT_LEARNED));
        let mut next = BTreeMap::new();
        for (Target { address, expected }, longest_wait) in named.chain(learned) {
            if next.len() == MAX_TARGETS {
                break;
            }
            let kept = self.0.remove(&address).filter(|target| target.expected == expected);
            let state = TargetState::Waiting(now);
            let fresh = TargetView {
                expected,
                met: None,
                state,
                error: None,
                tried: None,
                failures: 0,
                longest_wait,
            };
            next.entry(address).or_insert_with(|| TargetView { longest_wait, ..kept.unwrap_or(fresh) });
        }
        self.0 = next;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SocketAddr, &TargetView)> {
        self.0.iter().map(|(&address, target)| (address, target))
    }

    /// Returns a target to dial now, and takes it for dialing.
    pub(super) fn dial_next(
        &mut self,
        is_connected: impl Fn(PublicKey) -> bool,
        now: Monotonic,
    ) -> Option<Target> {
        if self.dialing() >= MAX_DIALING {
            return None;
        }
        let due = |target: &TargetView| target.waits_until(&is_connected).is_some_and(|at| at <= now);
        let (&address, target) = self.0.iter_mut().find(|(_, target)| due(target))?;
        target.state = TargetState::Dialing;
        target.tried = Some((now, None));
        Some(Target { address, expected: target.expected })
    }

    /// Returns when [`Targets::dial_next`] has something to give.
    pub(super) fn next_dial(&self, is_connected: impl Fn(PublicKey) -> bool) -> Option<Monotonic> {
        if self.dialing() >= MAX_DIALING {
            return None;
        }
        self.0.values().filter_map(|target| target.waits_until(&is_connected)).min()
    }

    pub(super) fn on_opened(&mut self, address: SocketAddr, id: SessionId) {
        if let Some(target) = self.0.get_mut(&address) {
            target.state = TargetState::Open(id);
        }
    }

    pub(super) fn on_met(&mut self, address: SocketAddr, key: PublicKey, now: Monotonic) {
        if let Some(target) = self.0.get_mut(&address) {
            target.note_end(now);
            target.met = Some(key);
            target.error = None;
        }
    }

    /// Returns which node has answered at an address.
    pub(super) fn node_at(&self, address: SocketAddr) -> Option<PublicKey> {
        self.0.get(&address).and_then(TargetView::node)
    }

    /// Notes that a dial failed, or that the session that came of it ended after `lived`.
    pub(super) fn on_ended(
        &mut self,
        address: SocketAddr,
        lived: Duration,
        error: String,
        now: Monotonic,
        rng: &mut ChaCha8Rng,
    ) {
        let Some(target) = self.0.get_mut(&address) else { return };
        target.note_end(now);
        if lived >= GOOD_LIFE {
            target.failures = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << target.failures.min(9)).min(target.longest_wait);
        target.failures = target.failures.saturating_add(1);
        target.state = TargetState::Waiting(now + wait * 3 / 4 + random_below(wait / 2, rng));
        target.error = Some(error);
    }

    /// Lets a target that was just dialed rest until then.
    pub(super) fn rest(&mut self, address: SocketAddr, until: Monotonic) {
        if let Some(target) = self.0.get_mut(&address) {
            target.state = TargetState::Waiting(until);
        }
    }

    /// Notes that the last session with a node is gone, whoever had dialed it.
    pub(super) fn on_down(&mut self, key: PublicKey, now: Monotonic, rng: &mut ChaCha8Rng) {
        for target in self.0.values_mut().filter(|target| target.node() == Some(key)) {
            if let TargetState::Waiting(at) = &mut target.state {
                *at = (*at).max(now + random_below(RETURN_SPREAD, rng));
            }
        }
    }

    fn dialing(&self) -> usize {
        self.0.values().filter(|target| target.state == TargetState::Dialing).count()
    }
}

impl TargetView {
    /// Returns the node that must answer there, or else the one that did.
    pub fn node(&self) -> Option<PublicKey> {
        self.expected.or(self.met)
    }

    /// Whether the last attempt failed and none has worked since.
    pub const fn is_failing(&self) -> bool {
        match self.state {
            TargetState::Waiting(_) | TargetState::Dialing => self.error.is_some(),
            TargetState::Open(_) => false,
        }
    }

    /// Notes how long the last attempt took, unless that is known already.
    fn note_end(&mut self, now: Monotonic) {
        if let Some((begun, took @ None)) = &mut self.tried {
            *took = Some(now.since(*begun));
        }
    }

    fn waits_until(&self, is_connected: &impl Fn(PublicKey) -> bool) -> Option<Monotonic> {
        match self.state {
            TargetState::Waiting(at) => (!self.node().is_some_and(is_connected)).then_some(at),
            TargetState::Dialing | TargetState::Open(_) => None,
        }
    }
}

/// Returns a random span from zero to `most`.
pub(super) fn random_below(most: Duration, rng: &mut ChaCha8Rng) -> Duration {
    most.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
}
