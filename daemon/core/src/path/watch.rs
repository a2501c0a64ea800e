//! The watch over the path in use: whether it still works, while anything depends on it.
//!
//! A ping each [`WATCH_INTERVAL`] tells that it does. One that is not answered in time raises a suspicion: then pings
//! follow quickly, so that either an answer clears it or enough of them are missed to be sure.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Candidate, Paths};
use crate::time::Monotonic;

/// How often a path is pinged while it is used.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// For how long a path counts as used after traffic was seen on it: three readings of the kernel's counters.
pub const USED_FOR: Duration = Duration::from_secs(15);

/// A path is lost once nothing has answered for this long after the first ping that was missed, and for a round trip
/// more. With [`WATCH_INTERVAL`] before it, that calls a cut within some two seconds.
const LOST_AFTER: Duration = Duration::from_millis(1250);

/// But not before so many pings went unanswered: at a loss of 30 % each way that happens by chance to one series in two
/// hundred, and the eleven that fit into [`LOST_AFTER`] on a short path are missed once in an hour.
const MISSES: u32 = 8;

/// After a ping that was missed others follow each half a round trip, within these bounds.
const QUICKEST_PAUSE: Duration = Duration::from_millis(100);
const SLOWEST_PAUSE: Duration = Duration::from_millis(500);

/// The longest round trip that [`LOST_AFTER`] makes allowance for.
const LONGEST_ROUND_TRIP: Duration = Duration::from_secs(1);

/// The path in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) address: SocketAddr,
    pub(super) next_ping: Option<Monotonic>,
    /// The pings of the watch that are unanswered, if any is.
    unanswered: Option<Unanswered>,
    pub(super) lost: bool,
}

/// A series of pings without an answer.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    since: Monotonic,
    pings: u32,
}

impl Current {
    pub(super) const fn new(address: SocketAddr, next_ping: Option<Monotonic>) -> Self {
        Self { address, next_ping, unanswered: None, lost: false }
    }

    /// Counts a ping that is sent now. Returns false if there were enough, and the path is lost.
    fn ask(&mut self, candidate: &Candidate, now: Monotonic) -> bool {
        let round_trip = candidate.rtt.unwrap_or_default().min(LONGEST_ROUND_TRIP);
        let Some(unanswered) = &mut self.unanswered else {
            self.unanswered = Some(Unanswered { since: now, pings: 1 });
            self.next_ping = Some(now + candidate.patience());
            return true;
        };
        if unanswered.pings >= MISSES && now.since(unanswered.since) >= LOST_AFTER + round_trip {
            self.next_ping = None;
            return false;
        }
        unanswered.pings += 1;
        self.next_ping = Some(now + (round_trip / 2).clamp(QUICKEST_PAUSE, SLOWEST_PAUSE));
        true
    }
}

impl Paths {
    /// Makes sure soon that the path in use still works.
    pub fn verify(&mut self, now: Monotonic) {
        if let Some(current) = &mut self.current {
            let at = current.next_ping.map_or(now, |at| at.min(now));
            current.next_ping = Some(at);
        }
    }

    /// Takes note of traffic with the peer: for a while, the path in use is watched.
    pub fn note_traffic(&mut self, now: Monotonic) {
        self.used_until = Some(now + USED_FOR);
        if let Some(current) = &mut self.current
            && current.next_ping.is_none()
            && !current.lost
        {
            current.next_ping = Some(now);
        }
        if std::mem::take(&mut self.look_when_used) {
            self.begin(now);
        }
    }

    /// Whether traffic was seen lately.
    pub fn is_used(&self, now: Monotonic) -> bool {
        self.used_until.is_some_and(|until| now < until)
    }

    /// Whether the path in use was lost since this was last asked.
    pub const fn take_loss(&mut self) -> bool {
        std::mem::replace(&mut self.was_lost, false)
    }

    /// Returns the path in use if it is due for a ping, and judges it if the last was not answered in time.
    pub(super) fn watched_due(&mut self, now: Monotonic) -> Option<SocketAddr> {
        let current = self.current.as_mut()?;
        current.next_ping.filter(|&at| at <= now)?;
        let candidate = self.candidates.get(&current.address)?;
        if !current.ask(candidate, now) {
            if !std::mem::replace(&mut current.lost, true) {
                self.was_lost = true;
                self.attempt(now);
            }
            return None;
        }
        Some(current.address)
    }

    pub(super) fn follow_answer_of_current(&mut self, now: Monotonic) {
        let is_used = self.is_used(now);
        if let Some(current) = &mut self.current {
            *current = Current::new(current.address, is_used.then_some(now + WATCH_INTERVAL));
        }
    }
}
