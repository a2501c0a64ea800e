//! Keeps a step of the wall clock from making sessions look older or younger than they are.
//!
//! The kernel notes a handshake by the wall clock of that moment. Whoever sets the clock afterwards, by hand or by NTP after a
//! boot, would make every session of the host look dead or newborn. So a step is noticed beside the clock that never
//! steps, and what was noted before it is told in the time that the wall clock shows now.
//!
//! A host that sleeps, or a daemon that was stopped, hears nobody. So it is noticed too when a call comes long after it was
//! due: no peer counts as silent for as long as nobody listened, and whatever may have changed meanwhile is looked at.
//!
//! WireGuard forgets its keys before the machine sleeps (`wg_pm_notification`), however shortly, and still tells of the
//! handshakes. So sessions that are older than the sleep are none: something is said through every tunnel, and where no other
//! session comes about, say because both ends woke and their initiations crossed, it is begun anew as any first one is.
//!
//! What is kept is one entry for each peer that the kernel held when the clock was set, until its next handshake.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::kernel::REPORT_INTERVAL;
use super::lag::Lag;
use super::{Command, Mesh};
use crate::kernel::Observed;
use crate::key::PublicKey;
use crate::time::{Monotonic, Now, WallClock};

/// A difference that is no more than this is the clock being steered, not set.
const STEP: Duration = Duration::from_secs(1);

/// Whoever is called so much later than it was due has stood still.
const STANDSTILL: Duration = Duration::from_secs(7);

/// The wall clock as it ran so far.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Option<Now>,
    /// Whether it was set since the kernel was last read.
    is_stepped: bool,
    /// The handshakes that were noted before a step: as the kernel says, and in the time of now.
    shifted: BTreeMap<PublicKey, (WallClock, WallClock)>,
    /// When the machine last fell asleep.
    slept_at: Option<WallClock>,
}

impl Mesh {
    /// Follows both clocks.
    pub(super) fn follow_clocks(&mut self, now: Now) {
        let gap = self.standstill(now.monotonic);
        self.clock.follow(&mut self.observed, now);
        if let Some(gap) = gap {
            tracing::info!(seconds = gap.as_secs(), "this daemon stood still");
            self.lag = Lag::default();
            self.store.skip(gap);
            self.restart_stun(now);
            self.verify_paths(now);
            self.hurry_dht(now);
            self.announce_soon(now);
            self.dirty = true;
        }
    }

    /// Returns how long nobody listened, if this call comes late.
    pub(super) fn standstill(&self, now: Monotonic) -> Option<Duration> {
        let last = self.clock.last?.monotonic;
        let gap = Some(now.since(last)).filter(|&gap| gap >= STANDSTILL)?;
        let reported = last + REPORT_INTERVAL;
        let due = self.poll_timeout().map_or(reported, |(at, _)| reported.min(at));
        (now.since(due) >= STANDSTILL).then_some(gap)
    }

    /// Has every session made anew: the kernel has forgotten them, and others go on with theirs, up to 15 s in vain, until this
    /// end says something.
    pub(super) fn on_woke(&mut self, slept: Duration, now: Now) {
        tracing::info!(milliseconds = %slept.as_millis(), "this host was asleep");
        self.lag = Lag::default();
        let until_sleep =
            now.wall.as_millis().saturating_sub(u64::try_from(slept.as_millis()).unwrap_or(u64::MAX));
        self.clock.slept_at = Some(WallClock::from_millis(until_sleep));
        let Some(observed) = self.observed.clone() else { return };
        let tunnels = observed.peers.iter().filter(|(_, peer)| peer.last_handshake.is_some());
        tunnels.for_each(|(&key, _)| self.gossip_with(key, now));
        self.commands.push_back(Command::Look);
    }

    /// Whether a handshake may still have a session: it is not older than the last sleep.
    pub(super) fn outlived_sleep(&self, handshake: WallClock) -> bool {
        self.clock.slept_at.is_none_or(|slept_at| handshake > slept_at)
    }
}

impl Clock {
    /// Follows the time. If the wall clock was set, what is known of the kernel is shifted with it.
    fn follow(&mut self, observed: &mut Option<Arc<Observed>>, now: Now) {
        let Some(last) = self.last.replace(now) else { return };
        let expected = millis(last.wall)
            + i128::try_from(now.monotonic.since(last.monotonic).as_millis()).unwrap_or(i128::MAX);
        let step = millis(now.wall) - expected;
        if step.unsigned_abs() <= STEP.as_millis() {
            return;
        }
        tracing::info!(milliseconds = %step, "the wall clock was set");
        self.is_stepped = true;
        let shifted = |at: WallClock| WallClock::from_millis(u64::try_from(millis(at) + step).unwrap_or(0));
        self.slept_at = self.slept_at.map(shifted);
        let Some(observed) = observed else { return };
        for (&key, peer) in &mut Arc::make_mut(observed).peers {
            if let Some(handshake) = &mut peer.last_handshake {
                let noted = self.shifted.get(&key).map_or(*handshake, |(noted, _)| *noted);
                *handshake = shifted(*handshake);
                self.shifted.insert(key, (noted, *handshake));
            }
        }
    }

    /// Tells the handshakes of a reading in the time of now.
    pub(super) fn correct(&mut self, mut observed: Arc<Observed>, now: Now) -> Arc<Observed> {
        let is_stepped = std::mem::take(&mut self.is_stepped);
        if !is_stepped && self.shifted.is_empty() {
            return observed;
        }
        let noted = |key: &PublicKey| observed.peers.get(key).and_then(|peer| peer.last_handshake);
        self.shifted.retain(|key, (before, _)| noted(key) == Some(*before));
        for (&key, peer) in &mut Arc::make_mut(&mut observed).peers {
            let Some(handshake) = &mut peer.last_handshake else { continue };
            if is_stepped
                && !self.shifted.contains_key(&key)
                && now.wall.since(*handshake) + ahead(*handshake, now) > STEP
            {
                // It was made between two readings, and so was the step: which came first is not known, but it is new.
                self.shifted.insert(key, (*handshake, now.wall));
            }
            if let Some((_, shown)) = self.shifted.get(&key) {
                *handshake = *shown;
            }
        }
        observed
    }
}

fn ahead(at: WallClock, now: Now) -> Duration {
    at.since(now.wall)
}

fn millis(at: WallClock) -> i128 {
    i128::from(at.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::ObservedPeer;

    fn key() -> PublicKey {
        PublicKey::from_bytes([1; 32])
    }

    /// Seconds since the begin, by the clock that never steps, and by the wall clock.
    fn at(monotonic: u64, wall: u64) -> Now {
        Now {
            monotonic: Monotonic::from_nanos(monotonic * 1_000_000_000),
            wall: WallClock::from_millis(wall * 1000),
        }
    }

    fn reading(handshake: u64) -> Arc<Observed> {
        let peer = ObservedPeer { last_handshake: Some(at(0, handshake).wall), ..ObservedPeer::default() };
        Arc::new(Observed { peers: [(key(), peer)].into(), ..Observed::default() })
    }

    fn age(observed: &Observed, now: Now) -> u64 {
        now.wall.since(observed.peers[&key()].last_handshake.unwrap()).as_secs()
    }

    /// Issue 4, L-28: a clock that is set, to and fro, makes no session older or younger.
    #[test]
    fn a_session_keeps_its_age_whatever_the_wall_clock_does() {
        for step in [100_000_u64, 3] {
            let mut clock = Clock::default();
            let mut observed = Some(reading(50_000));
            clock.follow(&mut observed, at(10, 50_010));
            // An hour or so ahead, or most of a day back.
            let now = at(12, step + 50_012 - 3_000);
            clock.follow(&mut observed, now);
            assert_eq!(age(observed.as_ref().unwrap(), now), 12);
            let later = at(17, step + 50_017 - 3_000);
            clock.follow(&mut observed, later);
            let read = clock.correct(reading(50_000), later);
            assert_eq!(age(&read, later), 17, "as the kernel tells it, still by the old clock");
            observed = Some(read);
            let back = at(20, 50_020);
            clock.follow(&mut observed, back);
            assert_eq!(age(observed.as_ref().unwrap(), back), 20);
            assert_eq!(age(&clock.correct(reading(50_000), back), back), 20);
        }
    }

    #[test]
    fn a_handshake_after_the_step_is_what_it_says() {
        let mut clock = Clock::default();
        let mut observed = Some(reading(50_000));
        clock.follow(&mut observed, at(10, 50_010));
        clock.follow(&mut observed, at(11, 90_011));
        drop(clock.correct(reading(50_000), at(12, 90_012)));
        let new = clock.correct(reading(90_050), at(55, 90_055));
        assert_eq!(age(&new, at(55, 90_055)), 5);
        assert!(clock.shifted.is_empty());
    }

    #[test]
    fn a_handshake_in_the_moment_of_the_step_is_new() {
        let mut clock = Clock::default();
        let mut observed = Some(reading(50_000));
        clock.follow(&mut observed, at(10, 50_010));
        let now = at(13, 20_013);
        clock.follow(&mut observed, now);
        let read = clock.correct(reading(50_012), now);
        assert_eq!(age(&read, now), 0);
        assert_eq!(age(&clock.correct(reading(50_012), at(20, 20_020)), at(20, 20_020)), 7);
    }
}
