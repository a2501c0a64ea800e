//! The watch over the path in use: whether it still works, while anything depends on it.
//!
//! A ping each [`WATCH_INTERVAL`] tells that it does. One that is not answered in time raises a suspicion: then pings
//! follow quickly, so that either an answer clears it or enough of them are missed to be sure.
//!
//! Pings of the watch are as long as the path's MTU allows, every second one of a quick series excepted: so a path that
//! still carries short packets but no longer long ones shows too.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Candidate, Paths};
use crate::time::Monotonic;

/// How often a path is pinged while it is used.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// For how long a path counts as used after traffic was seen on it: four readings of the kernel's counters, since a little
/// traffic is told of by the third only.
pub const USED_FOR: Duration = Duration::from_secs(20);

/// A path is lost once nothing has answered for this long after the first ping that was missed, and for a round trip
/// more. With [`WATCH_INTERVAL`] before it, that calls a cut within some two seconds.
const LOST_AFTER: Duration = Duration::from_millis(1250);

/// But not before so many pings went unanswered: at a loss of 30 % each way that happens by chance to one series in two
/// hundred, and the eleven that fit into [`LOST_AFTER`] on a short path are missed once in an hour.
const MISSES: u32 = 8;

/// So many pings of the path's own MTU without an answer, while shorter ones are answered, have it measured anew; where
/// packets through the tunnel are unanswered too, one is enough.
const LONG_MISSES: u32 = 3;

/// After a ping that was missed others follow each quarter of a round trip, within these bounds.
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
    /// Whether packets through the tunnel are unanswered too.
    is_suspected: bool,
    pub(super) lost: bool,
}

/// A series of pings without an answer.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    since: Monotonic,
    pings: u32,
    /// How many of them were as long as the path's MTU, and when the last of these was sent.
    long: u32,
    last_long: Monotonic,
    /// Whether shorter ones are answered.
    short_pass: bool,
}

/// What is to be done when the watch is due.
enum Due {
    /// A ping, to prove this MTU.
    Ping(Option<u16>),
    /// Something else: the path is lost.
    Lost,
    /// Something else: its MTU is not what it was.
    TooLong,
}

impl Current {
    pub(super) const fn new(address: SocketAddr, next_ping: Option<Monotonic>) -> Self {
        Self { address, next_ping, unanswered: None, is_suspected: false, lost: false }
    }

    fn ask(&mut self, candidate: &Candidate, mtu: Option<u16>, lag: Duration, now: Monotonic) -> Due {
        let round_trip = candidate.rtt.unwrap_or_default().min(LONGEST_ROUND_TRIP);
        let patience = candidate.patience() + lag;
        let Some(unanswered) = &mut self.unanswered else {
            let long = u32::from(mtu.is_some());
            self.unanswered =
                Some(Unanswered { since: now, pings: 1, long, last_long: now, short_pass: false });
            self.next_ping = Some(now + patience);
            return Due::Ping(mtu);
        };
        if unanswered.pings >= MISSES && now.since(unanswered.since) >= LOST_AFTER + round_trip + lag * 2 {
            self.next_ping = None;
            return Due::Lost;
        }
        let long_misses = if self.is_suspected { 1 } else { LONG_MISSES };
        let has_judged = unanswered.long >= long_misses && now.since(unanswered.last_long) >= patience;
        if has_judged && unanswered.short_pass {
            *self = Self::new(self.address, Some(now + WATCH_INTERVAL));
            return Due::TooLong;
        }
        unanswered.pings += 1;
        let is_long = unanswered.pings % 2 == 1 && unanswered.long < LONG_MISSES;
        let mtu = mtu.filter(|_| is_long);
        if mtu.is_some() {
            (unanswered.long, unanswered.last_long) = (unanswered.long + 1, now);
        }
        self.next_ping = Some(now + (round_trip / 4).max(lag / 2).clamp(QUICKEST_PAUSE, SLOWEST_PAUSE));
        Due::Ping(mtu)
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

    /// Makes sure of a path that leaves packets unanswered, and that it carries long ones.
    pub fn suspect(&mut self, now: Monotonic) {
        self.verify(now);
        self.ensure_mtu(now);
        if let Some(current) = &mut self.current {
            current.is_suspected = true;
        }
    }

    /// Whether the path in use counts as working, and has missed a ping.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let unanswered = self.current.filter(|current| !current.lost).and_then(|current| current.unanswered);
        unanswered.is_some_and(|unanswered| unanswered.pings > 1)
    }

    /// Whether it is just being asked whether the path in use works.
    pub(crate) fn is_asked(&self, now: Monotonic) -> bool {
        self.current.is_some_and(|current| {
            current.unanswered.is_some() || current.next_ping.is_some_and(|at| at <= now)
        })
    }

    /// Takes note that the peer's kernel answers over the path in use, whatever its daemon does.
    pub(crate) fn note_kernel_answer(&mut self, now: Monotonic) {
        if self.works() {
            self.follow_answer_of_current(None, now);
        }
    }

    /// Returns how long an answer from an address may take before it is missed.
    pub(crate) fn patience(&self, address: SocketAddr) -> Option<Duration> {
        self.candidates.get(&address).map(Candidate::patience)
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
        self.ensure_mtu(now);
        if std::mem::take(&mut self.look_when_used) {
            self.begin(now);
        }
    }

    /// Counts the path in use as lost although it answers pings, and takes it no more until it is named anew as a relay.
    pub fn shun_current(&mut self, now: Monotonic) {
        if let Some(current) = &mut self.current {
            (self.shunned, self.recalls) = (Some(current.address), 0);
            (current.next_ping, current.lost) = (None, true);
            self.attempt(now);
        }
    }

    /// Whether traffic was seen lately, or may be there unseen: packets that a relay routes count as the relay's.
    pub fn is_used(&self, now: Monotonic) -> bool {
        self.is_routed() || self.used_until.is_some_and(|until| now < until)
    }

    /// Whether the path in use was lost since this was last asked.
    pub const fn take_loss(&mut self) -> bool {
        std::mem::replace(&mut self.was_lost, false)
    }

    /// Returns the path in use if it is due for a ping, and judges it if the last was not answered in time.
    pub(super) fn watched_due(&mut self, now: Monotonic) -> Option<(SocketAddr, Option<u16>)> {
        let current = self.current.as_mut()?;
        current.next_ping.filter(|&at| at <= now)?;
        let candidate = self.candidates.get(&current.address)?;
        match current.ask(candidate, self.mtu.of(current.address), self.lag, now) {
            Due::Ping(mtu) => return Some((current.address, mtu)),
            Due::TooLong => self.mtu.search(current.address, now),
            Due::Lost if !std::mem::replace(&mut current.lost, true) => {
                self.was_lost = true;
                self.attempt(now);
            }
            Due::Lost => {}
        }
        None
    }

    /// Follows an answer over the path in use; `mtu` says whether the ping was a long one.
    pub(super) fn follow_answer_of_current(&mut self, mtu: Option<u16>, now: Monotonic) {
        let next_ping = self.is_used(now).then_some(now + WATCH_INTERVAL + self.lag * 2);
        let Some(current) = &mut self.current else { return };
        match &mut current.unanswered {
            Some(unanswered) if mtu.is_none() && unanswered.long > 0 => {
                (unanswered.since, unanswered.pings, unanswered.short_pass) = (now, 0, true);
            }
            Some(_) | None => *current = Current::new(current.address, next_ping),
        }
    }
}
