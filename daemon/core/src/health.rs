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

/// How often tunnels are judged (seed 003, W-D21). It needs no timer: the kernel is read more often than that anyway.
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

/// The state of every tunnel.
#[derive(Clone, Debug, Default)]
pub struct Health {
    checked: Option<Monotonic>,
    tunnels: BTreeMap<PublicKey, Tunnel>,
    patients: BTreeMap<PublicKey, Patient>,
    counts: Counts,
}

impl Health {
    /// Follows a reading of the kernel, of all peers that are known. Returns what has become of which.
    pub fn follow(
        &mut self,
        readings: &BTreeMap<PublicKey, Reading>,
        now: Monotonic,
    ) -> Vec<(PublicKey, Verdict)> {
        let mut verdicts = self.follow_patients(readings, now);
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
        tunnel.probes_lost = 0;
        patient.trouble = Trouble::Offline(now + OFFLINE_FOR);
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

    fn follow_patients(
        &mut self,
        readings: &BTreeMap<PublicKey, Reading>,
        now: Monotonic,
    ) -> Vec<(PublicKey, Verdict)> {
        let mut verdicts = Vec::new();
        let tunnels = &self.tunnels;
        self.patients.retain(|&key, patient| {
            let reading = readings.get(&key);
            let before = tunnels.get(&key).map(|tunnel| tunnel.received);
            let has_grown = reading.zip(before).is_some_and(|(reading, before)| reading.received > before);
            if has_grown || reading.is_some_and(Reading::is_fresh) {
                verdicts.push((key, Verdict::Recovered));
                return false;
            }
            if let Trouble::Offline(until) = patient.trouble
                && until <= now
            {
                patient.trouble = Trouble::Reconnecting;
                verdicts.push((key, Verdict::Restored));
            }
            true
        });
        verdicts
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
            let is_tried = match patient.trouble {
                Trouble::Reconnecting | Trouble::Offline(_) => true,
                Trouble::Removing | Trouble::Restoring | Trouble::Evicted => false,
            };
            if is_tried
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
mod tests {
    use super::*;

    const ONE: PublicKey = PublicKey::from_bytes([1; 32]);
    const OTHER: PublicKey = PublicKey::from_bytes([2; 32]);

    fn at(seconds: u64) -> Monotonic {
        Monotonic::default() + Duration::from_secs(1000 + seconds)
    }

    /// A kernel with two peers, read each five seconds. The other peer is heard all the time.
    struct Kernel {
        health: Health,
        second: u64,
        received: u64,
        handshake: Option<u64>,
        holds: bool,
        other_is_heard: bool,
        is_pinned: bool,
        answers_pings: bool,
        /// How many probes are lost between two readings.
        probes: u32,
        verdicts: Vec<(u64, Verdict)>,
    }

    impl Kernel {
        /// The peer has shaken hands in second zero and nothing comes of it any more.
        fn new() -> Self {
            Self {
                health: Health::default(),
                second: 0,
                received: 92,
                handshake: Some(0),
                holds: true,
                other_is_heard: true,
                is_pinned: false,
                answers_pings: false,
                probes: 1,
                verdicts: Vec::new(),
            }
        }

        /// Lets time pass until some second, doing as the verdicts say.
        fn run(&mut self, until: u64) {
            while self.second < until {
                self.second += 5;
                let reading = |age, received| Reading {
                    handshake_age: age,
                    received,
                    endpoint: Some("192.0.2.1:51820".parse().unwrap()),
                    answers_pings: self.answers_pings,
                    is_pinned: self.is_pinned,
                };
                let age = self.handshake.map(|at| Duration::from_secs(self.second - at));
                let heard = if self.other_is_heard { self.second } else { 0 };
                let mut readings = BTreeMap::from([(OTHER, reading(Some(Duration::ZERO), heard))]);
                if self.holds {
                    readings.insert(ONE, reading(age, self.received));
                }
                for (key, verdict) in self.health.follow(&readings, at(self.second)) {
                    assert_eq!(key, ONE);
                    self.take(verdict);
                }
                let holds = self.holds;
                for _ in self.health.follow_removals(|key| key == OTHER || holds) {
                    self.take(Verdict::Restored);
                }
                if self.is_probed() {
                    self.lose_probes(self.probes);
                }
            }
        }

        fn is_probed(&self) -> bool {
            self.health.probed(at(self.second)).any(|key| key == ONE)
        }

        fn take(&mut self, verdict: Verdict) {
            self.verdicts.push((self.second, verdict));
            match verdict {
                Verdict::Stale | Verdict::Offline => {
                    (self.holds, self.handshake, self.received) = (false, None, 0)
                }
                Verdict::Evicted => {
                    self.health.evict(ONE, at(self.second));
                    (self.holds, self.handshake, self.received) = (false, None, 0);
                }
                Verdict::Restored => self.holds = true,
                Verdict::Recovered => {}
            }
        }

        fn lose_probes(&mut self, count: u32) {
            for _ in 0..count {
                if let Some(verdict) = self.health.handle_probe(ONE, None, at(self.second)) {
                    self.take(verdict);
                }
            }
        }

        fn trouble(&self) -> Option<Trouble> {
            self.health.trouble(ONE).map(|(trouble, _)| trouble)
        }
    }

    /// W-D21, W-D22, W-D23: stale at the first check after 150 s, begun anew at once, and evicted at the next.
    #[test]
    fn who_stays_silent_is_begun_with_anew_and_then_evicted() {
        let mut kernel = Kernel::new();
        kernel.run(150);
        assert_eq!(kernel.verdicts, []);
        kernel.run(600);
        let verdicts = [(165, Verdict::Stale), (165, Verdict::Restored), (185, Verdict::Evicted)];
        assert_eq!(kernel.verdicts, verdicts);
        assert_eq!(kernel.trouble(), Some(Trouble::Evicted));
        assert!(!kernel.is_probed());
    }

    /// W-D22: both must be so, an old handshake and counters that stand still.
    #[test]
    fn whoever_is_still_heard_is_not_stale() {
        let mut kernel = Kernel::new();
        for second in 1..60 {
            kernel.received += 32;
            kernel.run(second * 25);
        }
        assert_eq!(kernel.verdicts, []);
    }

    /// W-D23: beginning anew is often enough.
    #[test]
    fn a_handshake_after_the_new_beginning_ends_the_trouble() {
        let mut kernel = Kernel::new();
        kernel.run(170);
        assert_eq!(kernel.trouble(), Some(Trouble::Reconnecting));
        (kernel.handshake, kernel.received) = (Some(171), 92);
        kernel.run(300);
        assert_eq!(kernel.verdicts.last(), Some(&(175, Verdict::Recovered)));
        assert_eq!(kernel.trouble(), None);
    }

    /// A host whose own uplink is dead must not forget everybody.
    #[test]
    fn nobody_is_evicted_while_nobody_is_heard() {
        let mut kernel = Kernel::new();
        kernel.other_is_heard = false;
        kernel.run(900);
        assert!(matches!(kernel.trouble(), Some(Trouble::Reconnecting | Trouble::Offline(_))));
        kernel.other_is_heard = true;
        kernel.run(925);
        assert_eq!(kernel.trouble(), Some(Trouble::Evicted));
    }

    /// W-D19, P-9: the operator's word counts for more.
    #[test]
    fn whom_the_operator_named_is_never_evicted() {
        let mut kernel = Kernel::new();
        kernel.is_pinned = true;
        kernel.run(900);
        assert!(matches!(kernel.trouble(), Some(Trouble::Reconnecting | Trouble::Offline(_))));
    }

    /// W-D24, W-D27: eight in a row, and thirty seconds; then it is tried again.
    #[test]
    fn eight_lost_probes_leave_a_peer_out_for_half_a_minute() {
        let mut kernel = Kernel::new();
        (kernel.other_is_heard, kernel.probes) = (false, 0);
        kernel.run(150);
        assert!(!kernel.is_probed(), "its handshake is fresh");
        kernel.run(155);
        assert!(kernel.is_probed());
        kernel.lose_probes(1);
        kernel.run(175);
        kernel.lose_probes(7);
        assert_eq!(kernel.trouble(), Some(Trouble::Reconnecting));
        kernel.lose_probes(1);
        assert_eq!(kernel.trouble(), Some(Trouble::Offline(at(175) + OFFLINE_FOR)));
        kernel.run(200);
        assert!(!kernel.is_probed(), "it is left out");
        kernel.run(205);
        assert_eq!(kernel.verdicts.last(), Some(&(205, Verdict::Restored)));
        kernel.run(210);
        assert!(kernel.is_probed());
    }

    /// W-D56: a probe alone shows that a tunnel works, and one is enough for a while.
    #[test]
    fn a_probe_that_is_answered_ends_the_doubt() {
        let mut kernel = Kernel::new();
        (kernel.other_is_heard, kernel.probes) = (false, 0);
        kernel.run(155);
        assert!(kernel.is_probed());
        assert_eq!(kernel.health.handle_probe(ONE, Some(Duration::from_millis(3)), at(156)), None);
        assert_eq!(kernel.health.rtt(ONE), Some(Duration::from_millis(3)));
        kernel.run(180);
        assert!(!kernel.is_probed() && kernel.verdicts.is_empty());
        kernel.run(190);
        kernel.lose_probes(1);
        kernel.run(215);
        assert_eq!(kernel.trouble(), Some(Trouble::Reconnecting));
        let answered = kernel.health.handle_probe(ONE, Some(Duration::from_millis(3)), at(216));
        assert_eq!(answered, Some(Verdict::Recovered));
        let counts = Counts { stale: 1, probes_answered: 2, probes_lost: 1, ..Counts::default() };
        assert_eq!((kernel.trouble(), kernel.health.counts()), (None, counts));
    }

    /// The session lasts for 180 s, and that is when the excuse ends.
    #[test]
    fn nobody_is_probed_whose_path_answers_pings() {
        let mut kernel = Kernel::new();
        kernel.answers_pings = true;
        kernel.run(175);
        assert!(!kernel.is_probed() && kernel.verdicts.is_empty());
        kernel.answers_pings = false;
        kernel.run(180);
        assert!(kernel.is_probed());
    }

    /// A firewall that drops the probes alone must not end a tunnel that carries packets.
    #[test]
    fn lost_probes_end_no_tunnel_that_is_heard() {
        let mut kernel = Kernel::new();
        for second in 1..40 {
            kernel.received += 32;
            kernel.run(second * 5);
        }
        assert!(!kernel.is_probed());
        kernel.lose_probes(100);
        assert_eq!(kernel.trouble(), None);
    }

    /// X-16.
    #[test]
    fn a_sign_of_life_ends_every_trouble() {
        let mut kernel = Kernel::new();
        kernel.run(600);
        assert_eq!(kernel.trouble(), Some(Trouble::Evicted));
        assert!(kernel.health.handle_sign_of_life(ONE));
        assert_eq!(kernel.trouble(), None);
        assert!(!kernel.health.handle_sign_of_life(ONE));
    }

    /// W-D25, X-15: each finds the other's port by its record, wherever WireGuard listens.
    #[test]
    fn the_port_of_probes_follows_that_of_wireguard() {
        assert_eq!(probe_port(51820), 53820);
        assert_eq!(probe_port(65535), 63535);
        assert_eq!(probe_port(1), 2001);
    }
}
