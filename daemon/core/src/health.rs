//! The slow, sure watch over tunnels: which are stale, which peers are left out for a while, and which are let go of.
//!
//! Two signals that know nothing of each other (seed 003): WireGuard's own handshakes and counters, judged each
//! [`CHECK_INTERVAL`], and probes over TCP through the tunnel, of which the shell makes one each [`PROBE_INTERVAL`] to
//! whoever has neither a fresh handshake nor was heard lately. The quick watch over paths ([`crate::path`]) stands before
//! both.
//!
//! Of two WireGuards at rest only one sends keepalives, because each packet puts off the other's next one; and where the
//! other one has begun the session, that renews it after some 175 s only. So an old handshake and a counter that stands
//! still are no fault yet: a probe must have been lost too. While the path answers pings nobody is probed until the session
//! ends, so that nodes at rest stay at rest.
//!
//! ```text
//!   well ──no handshake for 150 s, nothing heard──▶ reconnecting ──nothing at the next check──▶ evicted
//!    ▲                                               │        ▲                                   │
//!    │                                     8 probes lost    30 s over                             │
//!    │                                               ▼        │                                   │
//!    └──────────── any sign of life ──────────────── offline ─┴───────────────────────────────────┘
//! ```
//!
//! Reconnecting means that the kernel lets go of the peer and takes it again, because a new peer makes WireGuard begin at
//! once. A peer that is offline or evicted is neither in the kernel nor has it routes.
//!
//! Invariants:
//! - Only a tunnel that was up is judged: whoever never shook hands is for [`crate::path`] to find.
//! - Nobody is evicted while nobody else is heard: then the trouble is this host's own, or the link's.
//! - Who was evicted stays in the store until its time there is over, and is still looked for. A message of its own brings
//!   it back, or a newer record; what others tell of it does not (X-16).
//! - What is kept is bounded: one entry for each peer that the kernel holds, and one for each troubled peer of the store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::key::PublicKey;
use crate::time::Monotonic;

/// How often tunnels are judged (seed 003, W-D21). While a session is overdue the kernel is read more often than that anyway;
/// while somebody is tried again a reading is asked for.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(20);

/// A handshake is fresh for this long (seed 003, W-D22): whoever has begun the session and sends renews it after 120 s,
/// with a keepalive after 145 s at the latest.
pub const FRESH_FOR: Duration = Duration::from_secs(150);

/// A tunnel is quiet when nothing has come for this long: a keepalive, and the time between two readings.
pub const QUIET_AFTER: Duration = Duration::from_secs(30);

/// How often a peer without a fresh handshake is probed (seed 003, W-D24).
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a probe may take to be answered (the first program's limit for a dial, W-D24).
pub const PROBE_PATIENCE: Duration = Duration::from_millis(1200);

/// So many probes in a row without an answer make a peer count as offline (seed 003, W-D27).
pub const PROBES_LOST: u32 = 8;

/// For how long (seed 003, W-D27).
pub const OFFLINE_FOR: Duration = Duration::from_secs(30);

/// How far the port of probes is from WireGuard's (seed 003, W-D25, X-15).
const PROBE_PORT_DISTANCE: u16 = 2000;

/// Returns the TCP port on which a node answers probes; its record tells the port of its WireGuard.
pub const fn probe_port(listen_port: u16) -> u16 {
    match listen_port.checked_add(PROBE_PORT_DISTANCE) {
        Some(port) => port,
        None => listen_port - PROBE_PORT_DISTANCE,
    }
}

/// What the kernel says of one tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// How long ago the last handshake was; `None` if there was none since the kernel has the peer.
    pub handshake_age: Option<Duration>,
    /// Bytes received.
    pub received: u64,
    /// Where the kernel sends.
    pub endpoint: Option<SocketAddr>,
    /// Whether the session still lasts and its path has just answered a ping.
    pub answers_pings: bool,
    /// Whether it must never be evicted.
    pub is_pinned: bool,
}

impl Reading {
    fn is_fresh(&self) -> bool {
        self.handshake_age.is_some_and(|age| age <= FRESH_FOR)
    }

    fn is_beyond_doubt(&self) -> bool {
        self.is_fresh() || self.answers_pings
    }
}

/// What has become of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its tunnel is stale: let the kernel go of it.
    Stale,
    /// Let the kernel have it again.
    Restored,
    /// Leave it out for a while.
    Offline,
    /// Let go of it, and call [`Health::evict`].
    Evicted,
    /// It answers again.
    Recovered,
}

/// What is wrong with a peer's tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is stale, and the kernel is letting go of it.
    Removing,
    /// The kernel is taking it again.
    Restoring,
    /// The kernel has it again.
    Reconnecting,
    /// It is left out until then.
    Offline(Monotonic),
    /// It is left out until it tells of itself.
    Evicted,
}

/// How often each has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tunnels that were stale.
    pub stale: u64,
    /// Probes that were answered.
    pub probes_answered: u64,
    /// Probes that were not.
    pub probes_lost: u64,
    /// Peers that were left out for a while.
    pub offline: u64,
    /// Peers that were evicted.
    pub evicted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tunnel {
    received: u64,
    /// When something last came; `None` if nothing did since the kernel has the peer.
    heard: Option<Monotonic>,
    is_in_doubt: bool,
    probes_lost: u32,
    /// How long the last probe took that was answered.
    rtt: Option<Duration>,
}

impl Tunnel {
    fn is_quiet(&self, now: Monotonic) -> bool {
        self.heard.is_none_or(|at| now.since(at) >= QUIET_AFTER)
    }
}

#[derive(Clone, Copy, Debug)]
struct Patient {
    since: Monotonic,
    /// Where the kernel sent when the trouble began.
    endpoint: Option<SocketAddr>,
    is_pinned: bool,
    trouble: Trouble,
}

impl Patient {
    /// Whether its tunnel is one to be judged.
    const fn is_tried(&self) -> bool {
        match self.trouble {
            Trouble::Reconnecting | Trouble::Offline(_) => true,
            Trouble::Removing | Trouble::Restoring | Trouble::Evicted => false,
        }
    }

    const fn left_out_until(&self) -> Option<Monotonic> {
        match self.trouble {
            Trouble::Offline(until) => Some(until),
            Trouble::Removing | Trouble::Restoring | Trouble::Reconnecting | Trouble::Evicted => None,
        }
    }
}

/// The state of every tunnel.
#[derive(Clone, Debug, Default)]
pub struct Health {
    checked: Option<Monotonic>,
    /// When a reading was asked for to judge by.
    asked: Option<Monotonic>,
    tunnels: BTreeMap<PublicKey, Tunnel>,
    patients: BTreeMap<PublicKey, Patient>,
    counts: Counts,
}

impl Health {
    /// Returns when to call [`Health::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let over = self.patients.values().filter_map(Patient::left_out_until).min();
        over.into_iter().chain(self.next_check()).min()
    }

    /// Returns the peers that have been left out for long enough, for the kernel to take again, and whether it is to be read,
    /// because it is time to judge.
    pub fn handle_timeout(&mut self, now: Monotonic) -> (Vec<PublicKey>, bool) {
        let wants_reading = self.next_check().is_some_and(|at| at <= now);
        if wants_reading {
            self.asked = Some(now);
        }
        let is_over = |patient: &Patient| patient.left_out_until().is_some_and(|until| until <= now);
        let over = self.patients.iter_mut().filter(|(_, patient)| is_over(patient));
        let over = over.map(|(&key, patient)| {
            patient.trouble = Trouble::Reconnecting;
            key
        });
        (over.collect(), wants_reading)
    }

    /// Follows a reading of the kernel, of all peers that are known. Returns what has become of which.
    pub fn follow(
        &mut self,
        readings: &BTreeMap<PublicKey, Reading>,
        now: Monotonic,
    ) -> Vec<(PublicKey, Verdict)> {
        let mut verdicts = self.follow_patients(readings);
        self.follow_tunnels(readings, now);
        if self.checked.is_none_or(|at| now.since(at) >= CHECK_INTERVAL) {
            self.checked = Some(now);
            verdicts.extend(self.check(readings, now));
        }
        verdicts
    }

    /// Follows what the kernel is known to hold now. Returns the peers that it has let go of, for it to take again.
    pub fn follow_removals(&mut self, holds: impl Fn(PublicKey) -> bool) -> Vec<PublicKey> {
        let mut removed = Vec::new();
        for (&key, patient) in &mut self.patients {
            match patient.trouble {
                Trouble::Removing if !holds(key) => {
                    patient.trouble = Trouble::Restoring;
                    // Its counters begin anew.
                    self.tunnels.remove(&key);
                    removed.push(key);
                }
                Trouble::Restoring if holds(key) => patient.trouble = Trouble::Reconnecting,
                Trouble::Removing
                | Trouble::Restoring
                | Trouble::Reconnecting
                | Trouble::Offline(_)
                | Trouble::Evicted => {}
            }
        }
        removed
    }

    /// Follows a probe: after how long it was answered, or that it was not.
    pub fn handle_probe(
        &mut self,
        key: PublicKey,
        answered: Option<Duration>,
        now: Monotonic,
    ) -> Option<Verdict> {
        let tunnel = self.tunnels.get_mut(&key)?;
        if answered.is_some() {
            self.counts.probes_answered += 1;
            (tunnel.heard, tunnel.probes_lost, tunnel.rtt) = (Some(now), 0, answered);
            return self.patients.remove(&key).map(|_| Verdict::Recovered);
        }
        self.counts.probes_lost += 1;
        tunnel.probes_lost += 1;
        if tunnel.probes_lost < PROBES_LOST || !tunnel.is_quiet(now) {
            return None;
        }
        // First it is begun with anew.
        let patient = self.patients.get_mut(&key)?;
        patient.trouble = Trouble::Offline(now + OFFLINE_FOR);
        self.tunnels.remove(&key);
        self.counts.offline += 1;
        Some(Verdict::Offline)
    }

    /// Follows a message of a peer's own. Returns whether it had been in trouble.
    pub fn handle_sign_of_life(&mut self, key: PublicKey) -> bool {
        self.patients.remove(&key).is_some()
    }

    /// Holds a peer evicted until it gives a sign of life.
    pub fn evict(&mut self, key: PublicKey, now: Monotonic) {
        self.counts.evicted += 1;
        self.tunnels.remove(&key);
        let patient = Patient { since: now, endpoint: None, is_pinned: false, trouble: Trouble::Evicted };
        self.patients.insert(key, patient);
    }

    /// Forgets a peer.
    pub fn forget(&mut self, key: PublicKey) {
        self.tunnels.remove(&key);
        self.patients.remove(&key);
    }

    /// Returns what is wrong with a peer, and since when.
    pub fn trouble(&self, key: PublicKey) -> Option<(Trouble, Monotonic)> {
        self.patients.get(&key).map(|patient| (patient.trouble, patient.since))
    }

    /// Returns where the kernel sent to a peer that has trouble when that began.
    pub fn last_endpoint(&self, key: PublicKey) -> Option<SocketAddr> {
        self.patients.get(&key)?.endpoint
    }

    /// Returns the peers to probe.
    pub fn probed(&self, now: Monotonic) -> impl Iterator<Item = PublicKey> {
        let in_doubt = move |tunnel: &Tunnel| tunnel.is_in_doubt && tunnel.is_quiet(now);
        self.tunnels.iter().filter(move |(_, tunnel)| in_doubt(tunnel)).map(|(&key, _)| key)
    }

    /// Returns how long the last probe to a peer took that was answered.
    pub fn rtt(&self, key: PublicKey) -> Option<Duration> {
        self.tunnels.get(&key)?.rtt
    }

    /// Returns how often each has happened since the start.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns when a reading is to be asked for, so as to judge in time those that are being tried.
    fn next_check(&self) -> Option<Monotonic> {
        let last = self.checked.max(self.asked)?;
        self.patients.values().any(Patient::is_tried).then_some(last + CHECK_INTERVAL)
    }

    fn follow_patients(&mut self, readings: &BTreeMap<PublicKey, Reading>) -> Vec<(PublicKey, Verdict)> {
        let tunnels = &self.tunnels;
        let recovers = |key: &PublicKey, _: &mut Patient| {
            let reading = readings.get(key);
            let before = tunnels.get(key).map(|tunnel| tunnel.received);
            let has_grown = reading.zip(before).is_some_and(|(reading, before)| reading.received > before);
            has_grown || reading.is_some_and(Reading::is_fresh)
        };
        let recovered = self.patients.extract_if(.., recovers);
        recovered.map(|(key, _)| (key, Verdict::Recovered)).collect()
    }

    fn follow_tunnels(&mut self, readings: &BTreeMap<PublicKey, Reading>, now: Monotonic) {
        self.tunnels.retain(|key, _| readings.contains_key(key));
        for (&key, reading) in readings {
            if reading.handshake_age.is_none() && !self.patients.contains_key(&key) {
                self.tunnels.remove(&key);
                continue;
            }
            let begun = || Tunnel {
                received: reading.received,
                heard: reading.handshake_age.map(|_| now),
                is_in_doubt: false,
                probes_lost: 0,
                rtt: None,
            };
            let tunnel = self.tunnels.entry(key).or_insert_with(begun);
            if reading.received > tunnel.received {
                (tunnel.heard, tunnel.probes_lost) = (Some(now), 0);
            }
            (tunnel.received, tunnel.is_in_doubt) = (reading.received, !reading.is_beyond_doubt());
        }
    }

    fn check(
        &mut self,
        readings: &BTreeMap<PublicKey, Reading>,
        now: Monotonic,
    ) -> Vec<(PublicKey, Verdict)> {
        let is_anybody_heard = self.tunnels.values().any(|tunnel| !tunnel.is_quiet(now));
        let mut verdicts = Vec::new();
        for (key, patient) in &self.patients {
            if patient.is_tried()
                && is_anybody_heard
                && !patient.is_pinned
                && now.since(patient.since) >= CHECK_INTERVAL
            {
                verdicts.push((*key, Verdict::Evicted));
            }
        }
        for (&key, tunnel) in &self.tunnels {
            let Some(reading) = readings.get(&key) else { continue };
            let is_stale = tunnel.is_in_doubt && tunnel.is_quiet(now) && tunnel.probes_lost > 0;
            if is_stale && !self.patients.contains_key(&key) {
                let &Reading { endpoint, is_pinned, .. } = reading;
                self.patients
                    .insert(key, Patient { since: now, endpoint, is_pinned, trouble: Trouble::Removing });
                self.counts.stale += 1;
                verdicts.push((key, Verdict::Stale));
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests;
