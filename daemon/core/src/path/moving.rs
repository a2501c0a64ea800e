//! A move from a path that works to a better one.
//!
//! WireGuard sends to wherever the peer's last packet came from. What is under way on the old path when both ends take the new
//! one leads their kernels back, and what they send then leads the other end back in turn. So the kernel is looked at a
//! few times after a move, and called back. If the old path holds it even then, as it does while much is sent both ways, the
//! relay that it leads through is told so, and passes on nothing more once both ends say that.
//! Where the peer does not move, or no relay is between, both paths work all the same: the move is tried again later, and ever
//! more rarely.

use std::net::SocketAddr;
use std::time::Duration;

use super::Paths;
use crate::time::Monotonic;

/// When the kernel is looked at, each time after so many milliseconds more. What is sent at even intervals leads it to and fro
/// at even intervals too; so no two looks come at the same time within 20, 50 or 100 ms.
const LOOKS_MS: [u64; 7] = [47, 89, 183, 391, 95, 187, 381];

/// From this look on, it is not what was under way at the move that has led the kernel back.
const SETTLED_LOOK: usize = 2;

/// After so many looks, what keeps the old path in use is ended, where that can be: it is a relay's.
const PATIENT_LOOKS: usize = 4;

/// How long a path is not taken that the kernel was led back from; twice as long each time.
const FIRST_STAY: Duration = Duration::from_secs(2);
const LONGEST_STAY: Duration = Duration::from_secs(600);

/// A move that is not over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    from: SocketAddr,
    to: SocketAddr,
    /// How many looks were taken.
    looks: usize,
    last_look: Monotonic,
    /// Whether the old path keeps leading the kernel back. One look tells little, as it is led to and fro.
    is_held: bool,
}

impl Move {
    /// Begins one that was just decided.
    pub(super) fn begin(from: SocketAddr, to: SocketAddr, now: Monotonic) -> Self {
        Self { from, to, looks: 0, last_look: now, is_held: false }
    }

    const fn is_over(&self) -> bool {
        self.looks >= LOOKS_MS.len()
    }

    /// Returns when the kernel is to be looked at.
    pub(super) fn poll_timeout(&self) -> Option<Monotonic> {
        LOOKS_MS.get(self.looks).map(|&pause| self.last_look + Duration::from_millis(pause))
    }
}

/// A path that the kernel was led back from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stay {
    from: SocketAddr,
    times: u32,
    until: Monotonic,
}

/// What the kernel's endpoint means for the path that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Nothing.
    Settled,
    /// The kernel was led back to a path that was left, and is to be called from there.
    Astray,
    /// The old path was kept.
    Stays,
}

/// A look at the kernel that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The path that was left, if it keeps leading the kernel back.
    pub held_on: Option<SocketAddr>,
}

impl Paths {
    /// Whether it is time to look where the kernel sends, because the path in use was just taken.
    pub fn take_look(&mut self, now: Monotonic) -> Option<Look> {
        let is_due = |moving: &&mut Move| moving.poll_timeout().is_some_and(|at| at <= now);
        let moving = self.moving.as_mut().filter(is_due)?;
        (moving.looks, moving.last_look) = (moving.looks + 1, now);
        let is_held = moving.is_held && moving.looks > PATIENT_LOOKS;
        Some(Look { held_on: is_held.then_some(moving.from) })
    }

    /// Whether an address is not to be taken although it is better.
    pub(super) fn stays_away_from(&self, address: SocketAddr, now: Monotonic) -> bool {
        self.stay.is_some_and(|stay| stay.from == address && now < stay.until)
    }

    /// Follows a move by what a reading says of the kernel's endpoint.
    pub(super) fn follow_move(&mut self, endpoint: SocketAddr, now: Monotonic) -> Course {
        let chosen = self.current().filter(|_| self.works());
        let Some(moving) = self.moving.as_mut().filter(|moving| chosen == Some(moving.to)) else {
            self.moving = None;
            return Course::Settled;
        };
        let is_back = endpoint == moving.from;
        moving.is_held |= is_back && moving.looks >= SETTLED_LOOK;
        if !moving.is_over() {
            return if is_back { Course::Astray } else { Course::Settled };
        }
        let moving = *moving;
        self.moving = None;
        if !is_back {
            self.stay = None;
            return Course::Settled;
        }
        let times = self.stay.filter(|stay| stay.from == moving.to).map_or(0, |stay| stay.times);
        let span = FIRST_STAY.saturating_mul(1 << times.min(16)).min(LONGEST_STAY);
        self.stay = Some(Stay { from: moving.to, times: times + 1, until: now + span });
        Course::Stays
    }
}
