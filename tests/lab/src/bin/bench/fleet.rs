//! Many hosts start at once.

use std::net::Ipv4Addr;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use wgmesh_lab::{Answer, Daemon, Lan, Manual, Probe, Recipe, Settings, Usage};

use super::sample::Sample;
use super::{PATIENCE, SECRET};

/// Between two pings of a pair that waits for its first answer: 100 ms, and more where so many pairs would leave little of
/// the machine to what is measured. All of them together send two thousand pings a second at most.
fn ping_interval(nodes: u8) -> Duration {
    let pairs = u32::from(nodes) * u32::from(nodes.saturating_sub(1));
    (Duration::from_micros(500) * pairs).max(Duration::from_millis(100))
}

/// The goals of DESIGN 14 as shares of what it took by hand in the VM in which they were set: 1.5 s of 1.9 s for ten nodes,
/// 3 s of 3.8 s for twenty.
const SHARE_GOAL: f64 = 0.79;

/// So long after an initiation that nobody answered WireGuard sends another (`REKEY_TIMEOUT` of its `messages.h`): hosts
/// that are made one by one by hand are not all there for the first.
const RETRY: Duration = Duration::from_secs(5);

/// Measures fleets of so many nodes, each beside one made by hand, and prints them; with `logs`, also what the two
/// hosts logged that found each other last.
pub(super) fn measure(nodes: u8, runs: usize, logs: bool) {
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let fleet = Fleet::start(nodes, logs);
        println!("fleet of {nodes}, run {run}: {}", fleet.progress());
        if logs {
            fleet.print_last_logs();
        }
        ours.push(fleet.took());
        drop(fleet);
        let manual = mesh_by_hand(nodes);
        println!("fleet of {nodes}, run {run}, by hand: {:.3} s", manual.as_secs_f64());
        by_hand.push(manual);
    }
    let retried = by_hand.iter().filter(|took| **took >= RETRY).count();
    let (ours, by_hand) = (Sample::new(ours), Sample::new(by_hand));
    println!();
    Sample::print_head(&format!("seconds until all pairs of {nodes} ping"));
    ours.print("from the first process's start", Some(&by_hand));
    by_hand.print("by hand: ip, wg setconf, ip", None);
    println!("  of these waited for a handshake that WireGuard began anew: {retried} of {runs}");
    // 1.5 s for 10 nodes and 3 s for 20 (DESIGN 14).
    let goal = Duration::from_millis(150) * u32::from(nodes);
    ours.print_goals(goal, goal);
    ours.print_share_goal(&by_hand, SHARE_GOAL);
    println!();
}

/// A full mesh.
pub(super) struct Fleet {
    pub(super) daemons: Vec<Daemon>,
    /// The first answer of every ordered pair.
    answers: Vec<Answer>,
    pub(super) lan: Lan,
}

impl Fleet {
    /// Starts all nodes at once and waits until each has reached all others; `logs` has them log everything.
    pub(super) fn start(nodes: u8, logs: bool) -> Self {
        let lan = Lan::new(&format!("fleet-{nodes}"), nodes);
        let settings = Settings::new(SECRET);
        let settings = if logs { settings } else { settings.with_usual_log() };
        let hosts: Vec<_> = lan.hosts.iter().collect();
        let (daemons, answers) = std::thread::scope(|scope| {
            let starts: Vec<_> =
                lan.hosts.iter().map(|host| scope.spawn(|| host.daemon(&settings))).collect();
            let answers = Probe::until_meshed(&hosts, ping_interval(nodes), PATIENCE);
            let started = |start: ScopedJoinHandle<'_, Daemon>| start.join().expect("it starts");
            (starts.into_iter().map(started).collect(), answers)
        });
        Self { daemons, answers, lan }
    }

    /// Returns the time from the first process's start until the last pair's answer.
    fn took(&self) -> Duration {
        self.until(self.answers.len())
    }

    /// Returns the time from the first process's start until so many pairs had their answers.
    fn until(&self, pairs: usize) -> Duration {
        let first = self.daemons.iter().map(Daemon::started).min().expect("a fleet has nodes");
        self.answers[pairs - 1].at - first
    }

    /// Tells how the mesh grew and what that took, pings and handshakes included.
    fn progress(&self) -> String {
        let all = self.answers.len();
        let [half, most, all] = [all / 2, all * 9 / 10, all].map(|pairs| self.until(pairs).as_secs_f64());
        let sent: u64 = self.daemons.iter().map(|daemon| Usage::of(daemon.id()).sent.packets).sum();
        let sent = sent / self.daemons.len() as u64;
        let own: Duration = self.daemons.iter().map(|daemon| Usage::of(daemon.id()).processor).sum();
        let own = own.as_secs_f64() / self.daemons.len() as f64;
        format!(
            "{all:.3} s; half of the pairs after {half:.3} s, nine of ten after {most:.3} s; {sent} packets sent and \
             {own:.3} s of processor time per node"
        )
    }

    fn print_last_logs(&self) {
        let last = self.answers[self.answers.len() - 1];
        let to = last.target;
        println!("the last answer came to {} from {to}", self.lan.hosts[last.from].name());
        for (host, daemon) in self.lan.hosts.iter().zip(&self.daemons) {
            let status = daemon.status_json();
            let is_target = status["node"]["mesh_ipv4"] == to.to_string();
            if is_target || std::ptr::eq(host, &self.lan.hosts[last.from]) {
                println!("--- {} {} ---\n{}", host.name(), status["node"], host.daemon_log());
            }
        }
    }
}

fn mesh_by_hand(nodes: u8) -> Duration {
    let lan = Lan::new(&format!("by-hand-{nodes}"), nodes);
    let inner = |index: usize| Ipv4Addr::new(10, 9, 0, Lan::address(index).octets()[3]);
    let manual =
        |(index, host)| Manual { host, outer: Lan::address(index).into(), inner: inner(index).into() };
    let recipes = Recipe::write(&lan.hosts.iter().enumerate().map(manual).collect::<Vec<_>>());
    let mut probe = Probe::new(&lan.hosts.iter().collect::<Vec<_>>(), ping_interval(nodes));
    for from in 0..lan.hosts.len() {
        (0..lan.hosts.len()).filter(|to| *to != from).for_each(|to| probe.ping(from, inner(to)));
    }
    let started = Instant::now();
    let answers = std::thread::scope(|scope| {
        for (recipe, host) in recipes.iter().zip(&lan.hosts) {
            scope.spawn(|| recipe.carry_out(host));
        }
        probe.run(PATIENCE)
    });
    answers[answers.len() - 1].at - started
}
