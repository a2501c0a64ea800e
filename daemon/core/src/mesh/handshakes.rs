//! Handshakes: those that have just been answered, and those that do not come about.
//!
//! Of a first handshake eBPF tells at once, of the session only a reading of the kernel. Whoever has answered has a session
//! with the peer's next packet, a round trip later, so there are several readings ([`NextLook`]).
//!
//! WireGuard repeats a lost initiation only after five seconds (`REKEY_TIMEOUT`), but a peer that it was just given
//! begins at once. So where it is ours to begin and no session comes about, the peer is taken out of the kernel and put
//! back: soon, then more slowly, [`MAX_TRIES`] times in all, and soon again where the path has become another since. A relay
//! through which pings pass and no session comes about is left, if there is another. A working session is never touched: a
//! peer is taken out only after a reading that was made for this purpose showed none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::kernel::SESSION_LIFETIME;
use super::{Command, Mesh};
use crate::kernel::{HandshakeMessage, HandshakeSeen, Observed, ObservedPeer};
use crate::key::PublicKey;
use crate::path::Paths;
use crate::time::{Monotonic, Now};

/// The first wait for a session: several times what a handshake takes between continents.
const FIRST_WAIT: Duration = Duration::from_millis(1500);

/// After a session has lapsed WireGuard's next keepalive brings another, within 25 seconds and what a handshake takes. It lapses
/// where only the end that did not begin it sends: then it is renewed from 165 seconds on, by a packet that may come late.
const LAPSE: Duration = Duration::from_secs(28);

/// The wait where the path has become another: WireGuard sends its initiation to the new address only when it repeats it.
const NEW_PATH_WAIT: Duration = Duration::from_millis(250);

/// How much longer each next wait is.
const LONGER_EACH_TIME: Duration = Duration::from_millis(500);

/// How much longer the higher key waits, so that two sides that both begin do not undo each other's initiation twice.
const HIGHER_KEY_WAITS: Duration = Duration::from_millis(500);

/// After so many tries the wait would be as long as WireGuard's own, which goes on.
const MAX_TRIES: u32 = 7;

/// The pause between the first two looks for a session whose handshake was answered; each next one is three times as long,
/// and beyond the longest there is none.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is done about sessions that are to come.
#[derive(Default)]
pub(super) struct Handshakes {
    attempts: BTreeMap<PublicKey, Attempt>,
    next_look: Option<NextLook>,
    /// When eBPF last saw a handshake answered by or to whoever is at an address.
    stamps: BTreeMap<SocketAddr, Monotonic>,
}

impl Handshakes {
    /// Lets go of a peer.
    pub(super) fn forget(&mut self, key: PublicKey) {
        self.attempts.remove(&key);
    }

    /// Notes when handshakes were answered. What is noted of addresses that no peer has is gone with the next reading, and
    /// until then there is little room for it.
    fn stamp(&mut self, answers: &[(SocketAddr, Monotonic)], max_peers: usize) {
        for &(endpoint, at) in answers {
            if self.stamps.len() < 2 * max_peers || self.stamps.contains_key(&endpoint) {
                self.stamps.insert(endpoint, at);
            }
        }
    }
}

/// When to look again for sessions whose handshakes were answered, and how long after the last time that is.
#[derive(Clone, Copy, Debug)]
struct NextLook {
    at: Monotonic,
    pause: Duration,
}

/// A peer that should have a session and has none yet.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    step: Step,
    tries: u32,
    /// Where the kernel has sent its initiation.
    endpoint: Option<SocketAddr>,
    /// What the kernel had received of the peer by then, handshakes included.
    received: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// WireGuard is given time.
    Waiting { until: Monotonic },
    /// A reading was asked for.
    Looking,
    /// The plan leaves the peer out until the kernel has let go of it.
    Removing,
    /// The plan has the peer again.
    Restoring,
    /// There is nothing left to try.
    Exhausted,
}

impl Mesh {
    /// Whether the plan must leave a peer out for now.
    pub(super) fn is_left_out(&self, key: PublicKey) -> bool {
        self.handshakes.attempts.get(&key).is_some_and(|attempt| matches!(attempt.step, Step::Removing))
            || self.is_let_go(key)
    }

    /// Whether a peer's absence from the kernel is our own doing.
    pub(super) fn is_being_put_back(&self, key: PublicKey) -> bool {
        let begins_anew = |attempt: &Attempt| matches!(attempt.step, Step::Removing | Step::Restoring);
        self.handshakes.attempts.get(&key).is_some_and(begins_anew) || self.is_coming_back(key)
    }

    /// Follows what a reading says of the sessions; `fresh` says whether it shows them as they are now.
    pub(super) fn follow_handshakes(&mut self, observed: &Observed, fresh: bool, now: Now) {
        if !self.handshakes.stamps.is_empty() {
            let endpoints: BTreeSet<_> = observed.peers.values().filter_map(|peer| peer.endpoint).collect();
            self.handshakes.stamps.retain(|endpoint, _| endpoints.contains(endpoint));
        }
        let (mut vain, mut overdue) = (Vec::new(), Vec::new());
        for (&key, contact) in self.contacts.iter() {
            let peer = observed.peers.get(&key);
            let session = peer.and_then(|peer| peer.last_handshake).filter(|&at| self.outlived_sleep(at));
            let is_live = session.is_some_and(|at| now.wall.since(at) <= SESSION_LIFETIME);
            let paths = self.reach.paths.get(&key);
            let is_routed = self.relays.via.contains_key(&key) && !paths.is_some_and(Paths::works_directly);
            if !contact.is_active() || is_live || is_routed {
                self.handshakes.attempts.remove(&key);
                continue;
            }
            let is_set = self.proved.contains_key(&key);
            let lower = self.state.wg_pubkey < key;
            match self.handshakes.attempts.get_mut(&key) {
                None if is_set => {
                    let age = session.map_or(Duration::MAX, |at| now.wall.since(at));
                    self.handshakes.attempts.insert(key, Attempt::begin(age, lower, peer, now.monotonic));
                }
                Some(attempt) => match attempt.step {
                    Step::Looking if fresh => {
                        tracing::debug!(peer = %key, tries = attempt.tries, "no session came about; beginning anew");
                        attempt.step = Step::Removing;
                        vain.extend(attempt.unheard_at(peer).map(|endpoint| (key, endpoint)));
                        overdue.push(key);
                        self.dirty = true;
                    }
                    Step::Removing if peer.is_none() => {
                        attempt.step = Step::Restoring;
                        self.proved.remove(&key);
                        self.dirty = true;
                    }
                    Step::Restoring if is_set => attempt.wait_again(lower, peer, now.monotonic),
                    Step::Waiting { until } if endpoint_of(peer) != attempt.endpoint => {
                        attempt.step = Step::Waiting { until: until.min(now.monotonic + NEW_PATH_WAIT) };
                    }
                    Step::Exhausted if endpoint_of(peer) != attempt.endpoint => {
                        *attempt = Attempt::begin_elsewhere(peer, now.monotonic);
                    }
                    // WireGuard goes on by itself, but over the same relay.
                    Step::Exhausted => {
                        vain.extend(attempt.unheard_at(peer).map(|endpoint| (key, endpoint)));
                        overdue.push(key);
                    }
                    Step::Looking | Step::Removing | Step::Restoring | Step::Waiting { .. } => {}
                },
                None => {}
            }
        }
        for (key, endpoint) in vain {
            self.leave_relay_in_vain(key, endpoint, now);
        }
        for key in overdue {
            self.doubt_link(key, now);
        }
    }

    /// Looks at once, and again later, where a handshake may be a peer's first. A renewal can wait for the next reading.
    pub(super) fn on_handshakes(&mut self, seen: &[HandshakeSeen], now: Monotonic) {
        let answers = seen.iter().filter(|seen| seen.message == HandshakeMessage::Response);
        let answers: Vec<_> = answers.map(|seen| (seen.endpoint, seen.at)).collect();
        self.handshakes.stamp(&answers, self.settings.max_peers);
        let Some(observed) = &self.observed else { return };
        let had_session = |endpoint: &SocketAddr| {
            let peers = observed.peers.values().filter(|peer| peer.last_handshake.is_some());
            peers.filter_map(|peer| peer.endpoint).any(|known| known == *endpoint)
        };
        if self.awaits_handshake() && !answers.iter().all(|(endpoint, _)| had_session(endpoint)) {
            self.commands.push_back(Command::Look);
            self.handshakes.next_look = Some(NextLook { at: now + FIRST_PAUSE, pause: FIRST_PAUSE });
        }
    }

    /// Returns when eBPF last saw a handshake with a peer answered, which the kernel's own word may confirm or not.
    pub(super) fn handshake_seen(&self, key: PublicKey) -> Option<Monotonic> {
        let endpoint = self.observed.as_ref()?.peers.get(&key)?.endpoint?;
        self.handshakes.stamps.get(&endpoint).copied()
    }

    /// Whether some peer of the kernel's has never answered a handshake.
    fn awaits_handshake(&self) -> bool {
        let Some(observed) = &self.observed else { return false };
        observed.peers.values().any(|peer| peer.last_handshake.is_none())
    }

    /// Asks for a reading where a session is overdue, or may be there by now.
    pub(super) fn look_for_sessions(&mut self, now: Monotonic) {
        let mut overdue = false;
        if let Some(look) = self.handshakes.next_look.take_if(|look| look.at <= now) {
            overdue = self.awaits_handshake();
            let pause = look.pause * 3;
            if overdue && pause <= LONGEST_PAUSE {
                self.handshakes.next_look = Some(NextLook { at: now + pause, pause });
            }
        }
        for attempt in self.handshakes.attempts.values_mut() {
            if matches!(attempt.step, Step::Waiting { until } if until <= now) {
                attempt.step = Step::Looking;
                overdue = true;
            }
        }
        if overdue {
            self.commands.push_back(Command::Look);
        }
    }

    /// Returns when [`Mesh::look_for_sessions`] has something to do.
    pub(super) fn next_look(&self) -> Option<Monotonic> {
        let until = |attempt: &Attempt| match attempt.step {
            Step::Waiting { until } => Some(until),
            Step::Looking | Step::Removing | Step::Restoring | Step::Exhausted => None,
        };
        let again = self.handshakes.next_look.map(|look| look.at);
        self.handshakes.attempts.values().filter_map(until).chain(again).min()
    }
}

impl Attempt {
    /// Begins where the last session, if there was one, is that old.
    fn begin(session_age: Duration, lower: bool, peer: Option<&ObservedPeer>, now: Monotonic) -> Self {
        let until_renewed = (SESSION_LIFETIME + LAPSE).saturating_sub(session_age);
        let step = Step::Waiting { until: now + wait(0, lower).max(until_renewed) };
        Self { step, tries: 0, endpoint: endpoint_of(peer), received: received_of(peer) }
    }

    /// Begins on another path than the one on which all tries were in vain.
    fn begin_elsewhere(peer: Option<&ObservedPeer>, now: Monotonic) -> Self {
        let step = Step::Waiting { until: now + NEW_PATH_WAIT };
        Self { step, tries: 0, endpoint: endpoint_of(peer), received: received_of(peer) }
    }

    fn wait_again(&mut self, lower: bool, peer: Option<&ObservedPeer>, now: Monotonic) {
        self.tries += 1;
        (self.endpoint, self.received) = (endpoint_of(peer), received_of(peer));
        self.step = match self.tries {
            MAX_TRIES.. => Step::Exhausted,
            tries => Step::Waiting { until: now + wait(tries, lower) },
        };
    }

    /// Returns where the kernel has sent all the while and nothing of WireGuard's has come back. Initiations that cross undo
    /// each other, but they are heard.
    fn unheard_at(&self, peer: Option<&ObservedPeer>) -> Option<SocketAddr> {
        self.endpoint.filter(|_| endpoint_of(peer) == self.endpoint && received_of(peer) == self.received)
    }
}

fn endpoint_of(peer: Option<&ObservedPeer>) -> Option<SocketAddr> {
    peer.and_then(|peer| peer.endpoint)
}

fn received_of(peer: Option<&ObservedPeer>) -> u64 {
    peer.map_or(0, |peer| peer.rx_bytes)
}

fn wait(tries: u32, lower: bool) -> Duration {
    let once = if lower { FIRST_WAIT } else { FIRST_WAIT + HIGHER_KEY_WAITS };
    once + LONGER_EACH_TIME * tries
}
