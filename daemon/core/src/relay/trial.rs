//! Whether a relay that passes on pings passes on the packets of the tunnel too.
//!
//! Where packets to a peer stay unanswered though the path answers, pings go both beside the tunnel and through it, at the
//! same time and equally often. A peer that is heard beside it and not through it is behind a relay that lies. Traffic that
//! only goes one way is no reason to leave a relay: the pings through the tunnel are answered there.
//!
//! A peer may be set to take no such pings, so the first relay that seems to lie is left on mere suspicion, where there is
//! another, and no second one before the peer was heard to answer through the tunnel once. Both ends may have suspected
//! different relays, one of them only because the other end was not there yet; so one that is met again is tried again.
//!
//! Invariants: at most [`PINGS`] pings go through the tunnel for each trial, and only one trial is held at a time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::time::Monotonic;

/// Pings through the tunnel for each trial: at a loss of 30 % each way all of them are lost once in fifty trials.
const PINGS: usize = 6;

/// The pause between two. All of them are sent within half a second, which leaves time to find another relay within three.
const PAUSE: Duration = Duration::from_millis(80);

/// So many pings beside the tunnel must be answered meanwhile; otherwise the path itself is bad, which its watch sees to.
const PASSED: u32 = 3;

/// What is known of the packets that go to one peer through relays.
#[derive(Clone, Debug, Default)]
pub struct Doubt {
    trial: Option<Trial>,
    /// Whether the peer was heard to answer pings through its tunnel.
    answers: bool,
    /// Where the relay is that falls under mere suspicion.
    suspect: Option<IpAddr>,
}

#[derive(Clone, Debug)]
struct Trial {
    /// The path that is in doubt.
    address: SocketAddr,
    sent: Vec<u64>,
    passed: u32,
    next: Monotonic,
}

/// What came of a trial: the relay lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lie {
    /// Whether there is no doubt of it.
    pub is_certain: bool,
}

impl Doubt {
    /// Begins a trial of the path over an address, unless one is under way or could prove nothing. Suspicion is renewed only
    /// where there is another relay.
    pub fn begin(&mut self, address: SocketAddr, has_other: bool, now: Monotonic) {
        let is_under_way = self.trial.as_ref().is_some_and(|trial| trial.address == address);
        let may_suspect = self.suspect.is_none() || has_other && self.suspects(address);
        if !is_under_way && (self.answers || may_suspect) {
            self.trial = Some(Trial { address, sent: Vec::new(), passed: 0, next: now });
        }
    }

    /// Whether the relay at an address falls under suspicion.
    pub fn suspects(&self, address: SocketAddr) -> bool {
        !self.answers && self.suspect == Some(address.ip())
    }

    /// Ends the trial of any other path.
    pub fn follow(&mut self, current: Option<SocketAddr>) {
        self.trial = self.trial.take().filter(|trial| Some(trial.address) == current);
    }

    /// Returns the id of a ping through the tunnel if one is due beside another over the path itself. The last has so long
    /// to be answered.
    pub fn poll_ping(
        &mut self,
        patience: Duration,
        now: Monotonic,
        new_id: impl FnOnce() -> u64,
    ) -> Option<u64> {
        let trial = self.trial.as_mut().filter(|trial| trial.next <= now && trial.sent.len() < PINGS)?;
        let id = new_id();
        trial.sent.push(id);
        trial.next = now + if trial.sent.len() < PINGS { PAUSE } else { patience };
        Some(id)
    }

    /// Follows an answer through the tunnel. Returns whether it was asked for.
    pub fn handle_answer(&mut self, id: u64) -> bool {
        let is_asked = self.trial.as_ref().is_some_and(|trial| trial.sent.contains(&id));
        if is_asked {
            self.trial = None;
            self.answers = true;
        }
        is_asked
    }

    /// Takes note of an answer over an address beside the tunnel.
    pub fn note_passed(&mut self, address: SocketAddr) {
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.address == address) {
            trial.passed += 1;
        }
    }

    /// Ends a trial whose time is over, and says what came of it if the relay lies.
    pub fn poll_lie(&mut self, now: Monotonic) -> Option<Lie> {
        let trial = self.trial.take_if(|trial| trial.next <= now && trial.sent.len() >= PINGS)?;
        if trial.passed < PASSED {
            return None;
        }
        if !self.answers {
            self.suspect = Some(trial.address.ip());
        }
        Some(Lie { is_certain: self.answers })
    }

    /// Returns when [`Doubt::poll_ping`] or [`Doubt::poll_lie`] has something to do.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        self.trial.as_ref().map(|trial| trial.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(250);

    fn address(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 50000))
    }

    fn at(millis: u64) -> Monotonic {
        Monotonic::default() + Duration::from_millis(millis)
    }

    /// Lets two seconds pass. Returns how many pings went through the tunnel, and when the relay was found to lie.
    fn run(doubt: &mut Doubt, begun: u64, passes: bool, answers: bool) -> (usize, Option<(u64, Lie)>) {
        run_at(doubt, address(1), begun, passes, answers)
    }

    fn run_at(
        doubt: &mut Doubt,
        address: SocketAddr,
        begun: u64,
        passes: bool,
        answers: bool,
    ) -> (usize, Option<(u64, Lie)>) {
        doubt.begin(address, true, at(begun));
        let mut sent = 0;
        for millis in begun..begun + 2000 {
            let now = at(millis);
            if let Some(id) = doubt.poll_ping(PATIENCE, now, || millis) {
                sent += 1;
                if passes {
                    doubt.note_passed(address);
                }
                if answers {
                    assert!(doubt.handle_answer(id));
                }
            }
            if let Some(lie) = doubt.poll_lie(now) {
                return (sent, Some((millis - begun, lie)));
            }
        }
        assert_eq!(doubt.poll_timeout(), None, "the trial is over");
        (sent, None)
    }

    #[test]
    fn a_relay_that_passes_pings_only_is_found_out_within_a_second() {
        let mut doubt = Doubt::default();
        assert_eq!(run(&mut doubt, 0, true, true), (1, None), "the first answer is enough");
        let (sent, lie) = run(&mut doubt, 5000, true, false);
        let (after, lie) = lie.expect("it lies");
        assert!(after < 1000 && sent == PINGS, "{after} ms, {sent} pings");
        assert!(lie.is_certain);
    }

    #[test]
    fn a_path_that_passes_nothing_proves_no_lie() {
        assert_eq!(run(&mut Doubt::default(), 0, false, false), (PINGS, None));
    }

    #[test]
    fn a_peer_that_takes_no_pings_through_its_tunnel_costs_one_relay_and_no_more() {
        let mut doubt = Doubt::default();
        let (_, lie) = run(&mut doubt, 0, true, false);
        assert!(lie.is_some_and(|(_, lie)| !lie.is_certain));
        assert_eq!(run_at(&mut doubt, address(2), 5000, true, false), (0, None));
    }

    #[test]
    fn a_suspect_that_is_met_again_is_suspected_again() {
        let mut doubt = Doubt::default();
        for begun in [0, 5000] {
            let (_, lie) = run(&mut doubt, begun, true, false);
            assert!(lie.is_some_and(|(_, lie)| !lie.is_certain));
        }
    }

    #[test]
    fn suspicion_is_renewed_only_where_there_is_another_relay() {
        let mut doubt = Doubt::default();
        doubt.begin(address(1), false, at(0));
        assert!(doubt.poll_timeout().is_some(), "the first time it is worth knowing");
        assert!(run(&mut doubt, 0, true, false).1.is_some() && doubt.suspects(address(1)));
        doubt.begin(address(1), false, at(5000));
        assert_eq!(doubt.poll_timeout(), None);
        assert_eq!(run(&mut doubt, 5000, true, true), (1, None));
        assert!(!doubt.suspects(address(1)));
        doubt.begin(address(1), false, at(9000));
        assert!(doubt.poll_timeout().is_some(), "it is known to answer");
    }

    #[test]
    fn a_trial_ends_with_its_path() {
        let mut doubt = Doubt::default();
        doubt.begin(address(1), true, at(0));
        assert_eq!(doubt.poll_ping(PATIENCE, at(0), || 7), Some(7));
        doubt.follow(Some(address(2)));
        assert!(!doubt.handle_answer(7));
        assert_eq!(doubt.poll_timeout(), None);
    }

    #[test]
    fn what_nobody_asked_for_proves_nothing() {
        let mut doubt = Doubt::default();
        doubt.begin(address(1), true, at(0));
        assert_eq!(doubt.poll_ping(PATIENCE, at(0), || 7), Some(7));
        assert!(!doubt.handle_answer(8));
        assert!(doubt.poll_timeout().is_some());
    }
}
