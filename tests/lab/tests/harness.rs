//! The lab itself: without these, nothing that the other tests say means anything.

mod nat;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wgmesh_lab::{Host, Lab, Link, Manual, Switch, eventually, wire_by_hand};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn hosts_on_one_switch_ping_each_other_until_a_cable_is_cut() {
    let pair = Pair::new("cable");
    assert!(pair.left.pings(Pair::RIGHT));
    assert!(pair.right.pings(Pair::LEFT));

    pair.link.cut();

    assert!(!pair.left.pings(Pair::RIGHT));
    pair.link.restore();
    eventually(PATIENCE, || pair.left.pings(Pair::RIGHT));
}

#[test]
fn impairments_are_seen_and_can_be_repaired() {
    let pair = Pair::new("impairments");
    pair.link.impair("loss 100%");
    assert!(!pair.left.pings(Pair::RIGHT));

    pair.link.impair("delay 100ms");
    let started = Instant::now();
    eventually(PATIENCE, || pair.left.pings(Pair::RIGHT));
    assert!(started.elapsed() >= Duration::from_millis(200), "both directions are delayed");

    pair.link.repair();
    assert!(pair.left.pings(Pair::RIGHT));
}

#[test]
fn kernel_wireguard_made_by_hand_carries_pings_which_the_wire_does_not_show() {
    let pair = Pair::new("wireguard");
    let inner = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];
    let capture = pair.left.capture(pair.link.interface(), "");

    wire_by_hand(&[
        Manual { host: &pair.left, outer: Pair::LEFT.into(), inner: inner[0].into() },
        Manual { host: &pair.right, outer: Pair::RIGHT.into(), inner: inner[1].into() },
    ]);

    eventually(PATIENCE, || pair.left.pings(inner[1]));
    pair.left.run(["ping", "-c", "1", "-p", "c0ffee11", &inner[1].to_string()]);
    let handshakes = pair.left.run(["wg", "show", "wg0", "latest-handshakes"]);
    assert!(!handshakes.trim().ends_with("\t0"), "{handshakes}");
    let wire = capture.finish();
    assert!(contains(&wire, &51820_u16.to_be_bytes()), "the capture shows WireGuard's port");
    assert!(!contains(&wire, &[0xc0, 0xff, 0xee, 0x11]), "the capture shows a ping's payload");
}

#[test]
fn a_host_keeps_its_name_links_and_files_to_itself() {
    let lab = Lab::new("apart");
    let hosts = [lab.host("one"), lab.host("two")];
    for host in &hosts {
        assert_eq!(host.run(["hostname"]).trim(), host.name());
        host.run(["ip", "link", "add", "wgmesh0", "type", "wireguard"]);
        assert!(host.namespace().run(|| fs::exists("/sys/class/net/wgmesh0").unwrap()));
        host.run(["mkdir", "/sys/fs/bpf/of-one-host"]);
    }
    assert!(!fs::exists("/sys/class/net/wgmesh0").unwrap());
    assert!(!fs::exists("/sys/fs/bpf/of-one-host").unwrap());
}

#[test]
fn a_dropped_lab_leaves_no_process_namespace_or_file() {
    let lab = Lab::new("dropped");
    let host = lab.host("one");
    let namespace = fs::read_link(format!("/proc/{}/ns/net", host.namespace().thread_id())).unwrap();
    let process = host.spawn(["sleep", "1000"]);
    let folder = lab.folder().to_owned();
    assert!(users_of(&namespace) >= 2, "the thread and its process");

    drop((process, host, lab));

    eventually(PATIENCE, || users_of(&namespace) == 0);
    assert!(!folder.exists());
}

/// Runs this very test in a second process, which builds a lab and is killed.
#[test]
fn a_killed_lab_leaves_no_process() {
    const VICTIM: &str = "WGMESH_LAB_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::new("killed");
        let host = lab.host("one");
        println!("\nnamespace {}", host.run(["readlink", "/proc/self/ns/net"]));
        host.run(["sleep", "1000"]);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "harness::a_killed_lab_leaves_no_process", "--nocapture"]);
    let mut victim = command.env(VICTIM, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    let namespace = lines.find_map(|line| line.strip_prefix("namespace ").map(str::to_owned)).unwrap();
    let namespace = namespace.trim().into();
    eventually(PATIENCE, || users_of(&namespace) >= 2);

    victim.kill().unwrap();
    victim.wait().unwrap();

    eventually(PATIENCE, || users_of(&namespace) == 0);
}

/// Two hosts on a switch, the left one's cable within reach.
struct Pair {
    left: Host,
    right: Host,
    link: Link,
    _switch: Switch,
    _lab: Lab,
}

impl Pair {
    const LEFT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (left, right, switch) = (lab.host("left"), lab.host("right"), lab.switch("lan"));
        let link = lab.link(&left, &switch, &["192.0.2.1/24"]);
        lab.link(&right, &switch, &["192.0.2.2/24"]);
        Self { left, right, link, _switch: switch, _lab: lab }
    }
}

/// Counts the threads that live in a network namespace, other threads of this process included.
fn users_of(namespace: &std::path::PathBuf) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let tasks =
        processes.filter_map(|process| fs::read_dir(process.path().join("task")).ok()).flatten().flatten();
    tasks
        .filter(|task| fs::read_link(task.path().join("ns/net")).is_ok_and(|found| found == *namespace))
        .count()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
