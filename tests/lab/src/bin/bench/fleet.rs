//! Many hosts start at once.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wgmesh_lab::{Daemon, Lan, Manual, Probe, Recipe, Settings};

use super::sample::Sample;
use super::{PATIENCE, SECRET};

/// Between two pings of a pair that waits for its first answer.
const PING_INTERVAL: Duration = Duration::from_millis(100);

/// Measures fleets of so many nodes, each beside one made by hand, and prints them.
pub(super) fn measure(nodes: u8, runs: usize) {
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        ours.push(Fleet::start(nodes).took);
        by_hand.push(mesh_by_hand(nodes));
        let [took, manual] = [ours[run - 1], by_hand[run - 1]].map(|duration| duration.as_secs_f64());
        println!("fleet of {nodes}, run {run}: {took:.3} s, by hand {manual:.3} s");
    }
    let (ours, by_hand) = (Sample::new(ours), Sample::new(by_hand));
    println!();
    Sample::print_head(&format!("seconds until all pairs of {nodes} ping"));
    ours.print("from the first process's start", Some(&by_hand));
    by_hand.print("by hand: ip, wg setconf, ip", None);
    // 1.5 s for 10 nodes and 3 s for 20 (DESIGN 14).
    let goal = Duration::from_millis(150) * u32::from(nodes);
    ours.print_goals(goal, goal);
    println!();
}

/// A full mesh.
pub(super) struct Fleet {
    pub(super) daemons: Vec<Daemon>,
    /// From the first process's start until every ordered pair had a ping answered.
    took: Duration,
    _lan: Lan,
}

impl Fleet {
    /// Starts all nodes at once and waits until each has reached all others.
    pub(super) fn start(nodes: u8) -> Self {
        let lan = Lan::new(&format!("fleet-{nodes}"), nodes);
        let settings = Settings::new(SECRET);
        let hosts: Vec<_> = lan.hosts.iter().collect();
        let (daemons, meshed) = std::thread::scope(|scope| {
            let starts: Vec<_> =
                lan.hosts.iter().map(|host| scope.spawn(|| host.daemon(&settings))).collect();
            let meshed = Probe::until_meshed(&hosts, PING_INTERVAL, PATIENCE);
            let started = |start: std::thread::ScopedJoinHandle<'_, Daemon>| start.join().expect("it starts");
            (starts.into_iter().map(started).collect::<Vec<_>>(), meshed)
        });
        let first = daemons.iter().map(Daemon::started).min().expect("a fleet has nodes");
        Self { daemons, took: meshed - first, _lan: lan }
    }
}

fn mesh_by_hand(nodes: u8) -> Duration {
    let lan = Lan::new(&format!("by-hand-{nodes}"), nodes);
    let inner = |index: usize| Ipv4Addr::new(10, 9, 0, Lan::address(index).octets()[3]);
    let manual =
        |(index, host)| Manual { host, outer: Lan::address(index).into(), inner: inner(index).into() };
    let recipes = Recipe::write(&lan.hosts.iter().enumerate().map(manual).collect::<Vec<_>>());
    let mut probe = Probe::new(&lan.hosts.iter().collect::<Vec<_>>(), PING_INTERVAL);
    for from in 0..lan.hosts.len() {
        (0..lan.hosts.len()).filter(|to| *to != from).for_each(|to| probe.ping(from, inner(to)));
    }
    let started = Instant::now();
    let meshed = std::thread::scope(|scope| {
        for (recipe, host) in recipes.iter().zip(&lan.hosts) {
            scope.spawn(|| recipe.carry_out(host));
        }
        probe.run(PATIENCE)
    });
    meshed.expect("the hosts are connected") - started
}
