//! Paths that die without a word: traffic goes on within seconds, and packets that are too long are none that vanish.
//!
//! Times stand beside their goal; a busy machine may take longer.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use wgmesh_lab::{Cut, Pings, Settings, TwoLinks, eventually};

use crate::mesh::SECRET;

/// Issue 4: within this time traffic is to be back.
const GOAL: Duration = Duration::from_secs(3);

/// By then it must be, on whatever machine: long before WireGuard or the next look at the kernel would see to it.
const LIMIT: Duration = Duration::from_secs(12);

/// For how long a cut lasts.
const CUT: Duration = Duration::from_secs(14);

/// As long as fills a packet of the tunnel: 1,400 bytes with the headers of IPv4 and ICMP.
const LARGE: u32 = 1372;

const INTERVAL: Duration = Duration::from_millis(100);

/// DESIGN 10, W-D56: two who met on a link, which then carries nothing, or nothing one way or the other,
/// and never goes down.
#[test]
fn a_tunnel_leaves_a_link_that_dies_without_a_word() {
    let pair = TwoLinks::meet("silent", &Settings::new(SECRET), |_| ());
    for cut in [Cut::Both, Cut::There, Cut::Back] {
        let pings = Pings::start(&pair.hosts[0], pair.mesh_address(1, "mesh_ipv4"), INTERVAL, 56);
        std::thread::sleep(Duration::from_secs(3));
        let before = SystemTime::now();
        let link = pair.cut(cut);
        std::thread::sleep(CUT);
        let moved = pair.link_in_use(0);
        pair.heal();
        let silence = pings.finish().longest_silence(before);
        show(cut.name(), silence);
        assert!(silence < LIMIT, "{}: silent for {silence:?}", cut.name());
        assert_ne!(moved, link, "it uses the link that is cut");
    }
}

/// A path at rest is not watched: eBPF tells of packets that go out and are not answered.
#[test]
fn a_tunnel_that_was_at_rest_moves_as_quickly() {
    let pair = TwoLinks::meet("at-rest", &Settings::new(SECRET), |_| ());
    eventually(Duration::from_secs(60), || {
        pair.daemons.iter().all(|daemon| daemon.status_json()["ebpf"]["active"] == true)
    });
    std::thread::sleep(Duration::from_secs(20));
    pair.cut(Cut::Both);
    let before = SystemTime::now();
    let pings = Pings::start(&pair.hosts[0], pair.mesh_address(1, "mesh_ipv4"), INTERVAL, 56);
    std::thread::sleep(CUT);
    pair.heal();
    let silence = pings.finish().longest_silence(before);
    show("both directions, at rest before", silence);
    assert!(silence < LIMIT, "silent for {silence:?}");
}

/// Issue 4: a way that begins to swallow packets of more than 1,280 bytes, in either family of the mesh.
#[test]
fn a_way_that_becomes_narrow_gets_routes_with_its_mtu() {
    let pair = TwoLinks::meet("narrowing", &Settings::new(SECRET), |_| ());
    let targets = ["mesh_ipv4", "mesh_ipv6"].map(|family| pair.mesh_address(1, family));
    let streams = targets.map(|target| Pings::start(&pair.hosts[0], target, INTERVAL, LARGE));
    eventually(Duration::from_secs(20), || pair.mtu(0) == Some(1420));
    let before = SystemTime::now();
    for link in ["eth0", "eth1"] {
        cut_large(pair.hosts.each_ref(), link);
    }
    std::thread::sleep(CUT);
    for (stream, family) in streams.into_iter().zip(["IPv4", "IPv6"]) {
        let silence = stream.finish().longest_silence(before);
        show(&format!("only large packets, {family}"), silence);
        assert!(silence < LIMIT, "{family}: silent for {silence:?}");
    }
    for (index, target) in [(0, targets[0]), (0, targets[1])] {
        check_route(&pair, index, target);
    }
}

/// Issue 4: a way that was narrow from the beginning.
#[test]
fn a_narrow_way_never_becomes_a_black_hole() {
    let pair = TwoLinks::meet("narrow", &Settings::new(SECRET), |hosts| {
        for link in ["eth0", "eth1"] {
            cut_large(hosts, link);
        }
    });
    let target = pair.mesh_address(1, "mesh_ipv4");
    let before = SystemTime::now();
    let pings = Pings::start(&pair.hosts[0], target, INTERVAL, LARGE);
    std::thread::sleep(CUT);
    let silence = pings.finish().longest_silence(before);
    show("large packets on a way that is narrow from the beginning", silence);
    assert!(silence < LIMIT, "silent for {silence:?}");
    check_route(&pair, 0, target);
}

fn cut_large(hosts: [&wgmesh_lab::Host; 2], link: &str) {
    Cut::Large.begin_as(&format!("cut_{link}"), hosts, [link; 2], [""; 2]);
}

/// The kernel itself says what it does with packets to an address.
fn check_route(pair: &TwoLinks, index: usize, target: IpAddr) {
    // It may just be measured anew.
    eventually(Duration::from_secs(10), || {
        let route = pair.hosts[index].run(["ip", "route", "get", &target.to_string()]);
        let mtu = pair.mtu(index).expect("it was measured");
        assert!((1200..=1220).contains(&mtu), "{mtu}");
        route.contains(&format!("mtu {mtu}"))
    });
}

/// Prints a figure, also where the test passes: the runner only keeps back what `println!` prints.
fn show(what: &str, silence: Duration) {
    let verdict = if silence < GOAL { "" } else { ", goal of 3 s MISSED" };
    wgmesh_lab::show(&format!("{what}: traffic is back after {:.2} s{verdict}", silence.as_secs_f64()));
}
