//! Tells of one peer which way its packets take, since when, what was tried, and why nothing better is used.
//!
//! It decides nothing: it only looks. What it keeps beside the paths is where WireGuard has sent, for each peer that the
//! kernel holds or that is reached by a relay that routes, so it is bounded as the peers are.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::Mesh;
use crate::explanation::{Attempt, Earlier, Explanation, LeftRelay, Tried};
use crate::kernel::Observed;
use crate::key::PublicKey;
use crate::path::{Candidate, Kind, PastAttempt, Paths};
use crate::relay::Seeker;
use crate::status::PeerState;
use crate::time::{Monotonic, Now};

/// How many endpoints that were left are remembered for each peer.
const EARLIER: usize = 8;

/// Where WireGuard has sent, by peer.
#[derive(Default)]
pub(super) struct Journeys(BTreeMap<PublicKey, Journey>);

struct Journey {
    way: Way,
    since: Monotonic,
    earlier: VecDeque<(Way, Monotonic)>,
}

/// Where WireGuard sends what is for a peer: to whom it routes, if not to the peer itself, and to which endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    by: Option<PublicKey>,
    endpoint: SocketAddr,
}

impl Mesh {
    /// Follows a reading of the kernel.
    pub(super) fn follow_journeys(&mut self, observed: &Observed, now: Monotonic) {
        let endpoint_of = |key: &PublicKey| observed.peers.get(key).and_then(|peer| peer.endpoint);
        let keys = observed.peers.keys().chain(self.relays.via.keys()).copied();
        let ways: BTreeMap<_, _> = keys
            .filter_map(|key| {
                let by = self.routed_by(key);
                Some((key, Way { by, endpoint: endpoint_of(&by.unwrap_or(key))? }))
            })
            .collect();
        let journeys = &mut self.journeys.0;
        journeys.retain(|key, _| ways.contains_key(key) || observed.peers.contains_key(key));
        for (key, way) in ways {
            let fresh = || Journey { way, since: now, earlier: VecDeque::new() };
            let journey = journeys.entry(key).or_insert_with(fresh);
            if journey.way != way {
                journey.earlier.push_front((journey.way, now));
                journey.earlier.truncate(EARLIER);
                (journey.way, journey.since) = (way, now);
            }
        }
    }

    /// Explains how a peer is reached. `None` if it is not known.
    pub fn explain(&self, key: PublicKey, now: Now) -> Option<Explanation> {
        let peer = self.peer_status(key, self.store.get(key)?, now);
        let paths = self.reach.paths.get(&key);
        let journey = self.journeys.0.get(&key);
        let in_use = match self.routed_by(key) {
            Some(_) => paths.and_then(Paths::current),
            None => peer.path.as_ref().map(|path| path.endpoint),
        };
        let mut candidates: Vec<_> = paths.into_iter().flat_map(Paths::candidates).collect();
        candidates.sort_by_key(|&(address, candidate)| {
            (Some(address) != in_use, candidate.answered.is_none(), candidate.kind, candidate.rtt)
        });
        let seconds = |at: Monotonic| now.monotonic.since(at).as_secs();
        let tried = |&(address, candidate): &(SocketAddr, &Candidate)| Tried {
            address,
            kind: candidate.kind.name().to_owned(),
            named_by: candidate.origin.name().to_owned(),
            in_use: Some(address) == in_use,
            answered_s: candidate.answered.map(seconds),
            rtt_us: candidate.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        };
        let earlier = journey.map(|journey| &journey.earlier).into_iter().flatten();
        let before = |&(way, left): &(Way, Monotonic)| Earlier {
            endpoint: way.endpoint,
            routed_by: way.by,
            left_s: seconds(left),
        };
        let seeker = self.relays.seekers.get(&key).into_iter();
        let left = seeker.flat_map(Seeker::failures).map(|(relay, times, until)| LeftRelay {
            relay,
            times,
            rests_s: until.since(now.monotonic).as_secs(),
        });
        Some(Explanation {
            since_s: journey.map(|journey| seconds(journey.since)),
            earlier: earlier.map(before).collect(),
            left_relays: left.collect(),
            search: self.search(key, now.monotonic),
            attempts: paths
                .into_iter()
                .flat_map(Paths::attempts)
                .map(|one| attempt(one, now.monotonic))
                .collect(),
            reasons: self.reasons(key, peer.state, peer.why.as_deref(), in_use, &candidates),
            candidates: candidates.iter().map(tried).collect(),
            peer,
        })
    }

    fn search(&self, key: PublicKey, now: Monotonic) -> String {
        if !self.settings.punching {
            return "`nat.punching` is off, so no path is looked for".to_owned();
        }
        let Some(paths) = self.reach.paths.get(&key) else {
            return "nothing: it was met on a common link".to_owned();
        };
        let failures = match paths.failures() {
            0 => String::new(),
            1 => "; the last attempt has failed".to_owned(),
            failures => format!("; the last {failures} attempts have failed"),
        };
        match paths.next_attempt() {
            Some(at) if at > now => {
                let wait = at.since(now).as_secs_f64();
                format!("the next attempt begins in {wait:.0} s{failures}")
            }
            Some(_) => format!("an attempt is about to begin{failures}"),
            None if paths.is_attempting() => format!("an attempt is under way{failures}"),
            None => format!("nothing: the path in use is watched while there is traffic{failures}"),
        }
    }

    fn reasons(
        &self,
        key: PublicKey,
        state: PeerState,
        why: Option<&str>,
        in_use: Option<SocketAddr>,
        candidates: &[(SocketAddr, &Candidate)],
    ) -> Vec<String> {
        let mut reasons: Vec<_> = why.map(str::to_owned).into_iter().collect();
        let kind = in_use.map(|address| self.kind_of(address.ip()));
        match (state, kind) {
            (PeerState::Direct, Some(Kind::Lan)) => {
                reasons.push(
                    "it is reached in a network that both hosts are in: there is nothing better".to_owned(),
                );
            }
            (PeerState::Direct, Some(_)) => {
                let current = candidates.iter().find(|(address, _)| Some(*address) == in_use);
                let rtt = current.and_then(|(_, candidate)| candidate.rtt);
                let others = candidates.iter().filter(|(address, _)| Some(*address) != in_use);
                reasons.extend(others.map(|&(address, candidate)| not_taken(address, candidate, rtt)));
            }
            (PeerState::Relayed, _) => {
                reasons.extend(self.why_relayed(key).filter(|reason| why != Some(reason.as_str())));
            }
            (PeerState::Direct | PeerState::Connecting | PeerState::Offline, _) => {}
        }
        reasons
    }
}

fn attempt(attempt: &PastAttempt, now: Monotonic) -> Attempt {
    let (found, took) = attempt.found.unzip();
    let millis = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    Attempt { begun_s: now.since(attempt.begun).as_secs(), found, took_ms: took.map(millis) }
}

fn not_taken(address: SocketAddr, candidate: &Candidate, rtt_in_use: Option<Duration>) -> String {
    let kind = candidate.kind.name();
    match (candidate.answered, candidate.rtt, rtt_in_use) {
        (None, ..) => format!("{address} ({kind}) has never answered"),
        (Some(_), Some(rtt), Some(used)) if rtt > used => {
            let (rtt, used) = (rtt.as_secs_f64() * 1000.0, used.as_secs_f64() * 1000.0);
            format!(
                "{address} ({kind}) answers, and takes {rtt:.1} ms where the path in use takes {used:.1} ms"
            )
        }
        (Some(_), ..) => {
            format!("{address} ({kind}) answers, and is not so much better that a change would pay")
        }
    }
}
