//! A second host joins one that is there already.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wgmesh_lab::{Host, Lan, Manual, Probe, Recipe, Settings, eventually};

use super::journey::{self, Milestones};
use super::sample::Sample;
use super::{PATIENCE, SECRET};

/// The last milestone.
pub(super) const ANSWERED: &str = "first ping answered";

/// Between two pings of a pair that waits for its first answer.
const PING_INTERVAL: Duration = Duration::from_millis(3);

/// How long the first host is left alone before the second one comes.
const SETTLING: Duration = Duration::from_secs(2);

const MEDIAN_GOAL: Duration = Duration::from_millis(200);
const P95_GOAL: Duration = Duration::from_millis(250);

struct Join {
    from_start: Duration,
    from_ready: Duration,
    milestones: Milestones,
}

/// Measures so many joins, each beside one made by hand, and prints them.
pub(super) fn measure(runs: usize) {
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    // The first of a boot also reads programs from the disk, which is not counted.
    for run in 0..=runs {
        let (join, manual) = (join(), join_by_hand());
        let [start, ready, hand] = [join.from_start, join.from_ready, manual].map(|time| time.as_secs_f64());
        println!("join {run:>2}: from start {start:.3} s, from READY {ready:.3} s, by hand {hand:.3} s");
        if run > 0 {
            ours.push(join);
            by_hand.push(manual);
        }
    }
    let by_hand = Sample::new(by_hand);
    let from_start = Sample::new(ours.iter().map(|join| join.from_start));
    println!();
    Sample::print_head(&format!("seconds to the first ping, {runs} joins"));
    from_start.print("from the process's start", Some(&by_hand));
    Sample::new(ours.iter().map(|join| join.from_ready)).print("from READY", None);
    by_hand.print("by hand: ip, wg setconf, ip", None);
    from_start.print_goals(MEDIAN_GOAL, P95_GOAL);
    let milestones: Vec<_> = ours.into_iter().map(|join| join.milestones).collect();
    journey::print(&milestones);
}

fn join() -> Join {
    let lan = Lan::new("join", 2);
    let settings = Settings::new(SECRET);
    let first = lan.hosts[0].daemon(&settings);
    first.wait_ready();
    eventually(PATIENCE, || first.status_json()["ebpf"]["active"] == true);
    std::thread::sleep(SETTLING);
    let status = first.status_json();
    let target = status["node"]["mesh_ipv4"].as_str().expect("a status has it");
    let answer = await_ping(&lan.hosts[1], target.parse().expect("it is an address"));
    let second = lan.hosts[1].daemon(&settings);
    let ready = second.started() + second.wait_ready();
    let answered = answer.join().expect("the hosts mesh");
    let from_start = answered - second.started();
    let mut milestones = journey::milestones(&second, &lan.hosts[1], &lan.hosts[0]);
    milestones.push((ANSWERED, from_start));
    Join { from_start, from_ready: answered.saturating_duration_since(ready), milestones }
}

fn join_by_hand() -> Duration {
    let lan = Lan::new("by-hand", 2);
    let inner = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];
    let manual = |index: usize| Manual {
        host: &lan.hosts[index],
        outer: Lan::address(index).into(),
        inner: inner[index].into(),
    };
    let recipes = Recipe::write(&[manual(0), manual(1)]);
    recipes[0].carry_out(&lan.hosts[0]);
    std::thread::sleep(SETTLING);
    let answer = await_ping(&lan.hosts[1], inner[0]);
    let started = Instant::now();
    recipes[1].carry_out(&lan.hosts[1]);
    answer.join().expect("the hosts are connected") - started
}

/// Pings from a thread of its own until the first answer.
fn await_ping(from: &Host, target: Ipv4Addr) -> std::thread::JoinHandle<Instant> {
    let mut probe = Probe::new(&[from], PING_INTERVAL);
    probe.ping(0, target);
    std::thread::spawn(move || probe.run(PATIENCE)[0].at)
}
