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
            if self.health.poll_timeout().is_some_and(|due| due <= at(self.second)) {
                for key in self.health.handle_timeout(at(self.second)).0 {
                    assert_eq!(key, ONE);
                    self.take(Verdict::Restored);
                }
            }
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

///
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
