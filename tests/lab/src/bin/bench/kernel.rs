//! What the kernel layer costs: setting many peers beside the bare netlink cost of the same messages, what a converged
//! applier does, and throughput with and without eBPF.

mod bare;
mod throughput;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use wgmesh::applier::{Applier, Goal, Report, Want};
use wgmesh::kernel::Kernel;
use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{Desired, DesiredPeer, Endpoint, OwnerMark};
use wgmesh_core::key::{PresharedKey, PublicKey, SecretKey};
use wgmesh_lab::Lab;

use super::sample::Sample;
use bare::BarePeer;

const INTERFACE: &str = "wgmesh0";
const PRIVATE_KEY: [u8; 32] = [7; 32];
/// The most that an apply may take, in bare costs (DESIGN 14).
const GOAL: f64 = 1.2;
/// How many readings of a converged device are watched for writes.
const READINGS: usize = 20;

/// Measures everything and prints it.
pub(super) fn measure(peers: &[u16], runs: usize, seconds: u64) {
    for &count in peers {
        apply(count, runs);
    }
    throughput::measure(runs, Duration::from_secs(seconds));
}

/// Sets so many peers, by the applier and bare in turns, each time on a fresh link.
fn apply(count: u16, runs: usize) {
    let (mut ours, mut bare, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let both = [0, 1].map(|turn| (run + turn) % 2 == 0);
        for is_ours in both {
            let lab = Lab::new("apply");
            let host = lab.host("one");
            if is_ours {
                let (applied, readings) = host.namespace().run(move || in_runtime(by_applier(count)));
                ours.push(applied);
                quiet.extend(readings);
            } else {
                host.run(["ip", "link", "add", INTERFACE, "type", "wireguard"]);
                host.run(["ip", "link", "set", INTERFACE, "up"]);
                bare.push(host.namespace().run(move || bare::set(INTERFACE, &PRIVATE_KEY, &planned(count))));
            }
            let set = host.run(["wg", "show", INTERFACE, "peers"]).lines().count();
            assert_eq!(set, usize::from(count), "the kernel holds every peer");
        }
    }
    let pairs = ours.iter().zip(&bare).map(|(ours, bare)| ours.as_secs_f64() / bare.as_secs_f64());
    let mut ratios: Vec<f64> = pairs.collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let (ours, bare, quiet) = (Sample::new(ours), Sample::new(bare), Sample::new(quiet));
    println!();
    Sample::print_head(&format!("seconds to set {count} peers"));
    ours.print("applier, from the goal to its report", Some(&bare));
    bare.print("the same messages, bare", None);
    let (median, most) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    let verdict = if median <= GOAL { "met" } else { "MISSED" };
    println!("ratio of each pair of runs: median {median:.3}, most {most:.3}; goal {GOAL}: {verdict}");
    quiet.print(&format!("reading {count} peers, {READINGS} times: 0 writes"), None);
}

fn in_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a test machine has room for a runtime").block_on(future)
}

/// Makes the link, then times the peers; then lets the kernel be read again and again, and demands that nothing is
/// written.
async fn by_applier(count: u16) -> (Duration, Vec<Duration>) {
    let kernel = Kernel::open(name()).expect("root has netlink");
    let watcher = kernel.watch().expect("root has netlink");
    let notices = watcher.changes().mesh;
    tokio::spawn(watcher.run());
    let (goals, wanted) = watch::channel(goal(1, 0));
    let applier = Applier::new(kernel, owner(), wanted, Arc::clone(&notices));
    let (mut reports, pulse) = (applier.reports(), applier.pulse());
    tokio::spawn(applier.run());
    settle(&mut reports, 1).await;
    // The link's own notices are read before the clock starts.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let next = goal(2, count);
    let begin = Instant::now();
    goals.send_replace(next);
    settle(&mut reports, 2).await;
    let took = begin.elapsed();
    let (writes, mut readings) = (pulse.writes(), Vec::new());
    while readings.len() < READINGS {
        reports.mark_unchanged();
        let begin = Instant::now();
        notices.notify_one();
        reports.changed().await.expect("the applier lives");
        readings.push(begin.elapsed());
    }
    assert_eq!(pulse.writes(), writes, "a converged device is written to");
    (took, readings)
}

async fn settle(reports: &mut watch::Receiver<Report>, generation: u64) {
    let done = |report: &Report| {
        report.generation == generation && report.result.as_ref().is_ok_and(|done| done.failures.is_empty())
    };
    reports.wait_for(done).await.expect("the applier lives");
}

fn goal(generation: u64, count: u16) -> Goal {
    let peers = planned(count).into_iter().map(|peer| {
        let desired = DesiredPeer {
            preshared_key: Some(PresharedKey::from_bytes(peer.preshared_key)),
            endpoint: Endpoint::Set(peer.endpoint),
            keepalive: peer.keepalive,
            allowed_ips: peer.addresses.map(Into::into).into(),
        };
        (PublicKey::from_bytes(peer.key), desired)
    });
    let desired = Desired {
        interface: name(),
        owner: owner(),
        private_key: SecretKey::from_random(PRIVATE_KEY),
        listen_port: 51820,
        fwmark: None,
        mtu: 1420,
        addresses: [].into(),
        peers: peers.collect(),
        routes: [].into(),
        forwarding: Forwarding::default(),
    };
    Goal { generation, want: Want::Present(Arc::new(desired)) }
}

/// The peers that are set, whoever sets them.
pub(super) fn planned(count: u16) -> Vec<BarePeer> {
    let peer = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let mut key = [9; 32];
        key[..2].copy_from_slice(&[high, low]);
        let addresses: [IpAddr; 2] = [[10, 77, high, low].into(), [0xfd77, 0, 0, 0, 0, 0, 1, number].into()];
        // The network of no host: a handshake that is tried goes nowhere.
        let endpoint = (IpAddr::from([192, 0, 2, 1]), 51820).into();
        BarePeer { key, preshared_key: [5; 32], endpoint, keepalive: 0, addresses }
    };
    (1..=count).map(peer).collect()
}

pub(super) fn name() -> wgmesh_core::kernel::InterfaceName {
    INTERFACE.parse().expect("it is a name")
}

fn owner() -> OwnerMark {
    OwnerMark::new([1, 2, 3, 4])
}
