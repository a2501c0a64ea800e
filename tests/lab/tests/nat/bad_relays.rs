//! Relays that drop, lie, repeat or flood, on a real kernel: left, or worth no more than their nuisance.
//!
//! The relay's daemon is an honest one; what it sends for the pair is spoiled on its way out of its link.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use wgmesh_ebpf_common::PROBE;
use wgmesh_lab::NatKind::Symmetric;
use wgmesh_lab::{Host, Pair, Pings, eventually, show};

use super::hostile::frames;
use super::relays::{World, ports};
use super::{PATIENCE, PING_BYTES, PING_INTERVAL, WATCHED};

/// DESIGN 14: so long may a pair be parted when its path is lost.
const GOAL: Duration = Duration::from_secs(3);

/// What carries packets: WireGuard's fourth type, behind the headers of IPv4 and UDP.
const DATA: &str = "match u8 0x04 0xff at 28";

/// What makes sessions: WireGuard's first two types.
const HANDSHAKES: [&str; 2] = ["match u8 0x01 0xff at 28", "match u8 0x02 0xff at 28"];

/// For how long a relay floods: as long as a hundred pings take.
const FLOOD: Duration = Duration::from_secs(10);

/// By then the pair must be joined again by the other relay, on whatever machine.
const LIMIT: Duration = Duration::from_secs(18);

/// Issue 4, 3: a relay that passes on nothing is left within seconds, though it answers for itself.
#[test]
fn a_relay_that_drops_everything_is_left() {
    is_left("relay-drops", "", "dead");
}

/// Issue 4, 3: so is one that passes on what nodes say to each other and WireGuard's handshakes, and no packet.
#[test]
fn a_relay_that_passes_on_pings_only_is_left() {
    is_left("relay-lies", DATA, "lies");
}

/// Issue 4, 3: also one that never passed on a packet is left, and for good: the tunnel that it lets come up says nothing.
#[test]
fn a_relay_that_lies_from_the_start_is_left() {
    is_left_from_the_start("relay-lied", &[DATA]);
}

/// Issue 4, 3: so is one that only passes on what nodes say to each other, so that no tunnel comes up.
#[test]
fn a_relay_that_passes_on_pings_only_from_the_start_is_left() {
    is_left_from_the_start("relay-mute", &[DATA, HANDSHAKES[0], HANDSHAKES[1]]);
}

fn is_left_from_the_start(name: &str, of_these: &[&str]) {
    let world = World::meet(name, [Symmetric; 2], 2, |pair| {
        let host = &pair.introducer_host;
        discipline(host, "netem loss 100%");
        // Its own tunnels are its own affair.
        filter(host, 1, "match ip sport 51820 0xffff", "1:1");
        of_these.iter().for_each(|these| filter(host, 2, these, "1:4"));
        // It is tried before there is another.
        eventually(PATIENCE, || spoiled(host) > 0);
    });
    let liar = world.pair.introducer.status_json()["node"]["public_key"].clone();
    let drops = spoiled(&world.pair.introducer_host);
    show(&format!("{name}: it kept {drops} packets before it was left"));
    for _ in 0..30 {
        std::thread::sleep(Duration::from_secs(1));
        assert!(world.pair.sites[0].host.pings(world.pair.mesh_ipv4(1)), "{:?}", world.pair.views());
    }
    assert!(world.is_relayed() && relay_of(&world.pair) != liar, "{:?}", world.pair.views());
}

/// Issue 4, 3: one that sends old packets again, as quickly as the machine lets it, ends no tunnel and is left; what the
/// daemons see of it is counted.
#[test]
fn a_relay_that_floods_is_left_and_ends_no_tunnel() {
    let world = World::meet("relay-floods", [Symmetric; 2], 2, |_| {});
    eventually(PATIENCE, || world.knows_all());
    let first = relay_of(&world.pair);
    let (host, daemon) = world.relay();
    let target = world.pair.mesh_ipv4(1).to_string();
    let ping = |count: &str| ["ping", "-n", "-q", "-i", "0.1", "-c", count, &target].map(str::to_owned);
    let sources: Vec<_> = ports(host, daemon).iter().map(|port| format!("src port {port}")).collect();
    let recording = host.capture("eth0", &format!("udp and ({})", sources.join(" or ")));
    // Long enough for the two to check their path.
    world.pair.sites[0].host.run(ping("200"));
    let old: Vec<_> = frames(&recording.finish()).into_iter().map(<[u8]>::to_vec).collect();
    let old: Vec<_> = old.into_iter().filter(|frame| frame.len() > 44 && frame[12..14] == [8, 0]).collect();
    let probes = old.iter().filter(|frame| frame[42..44] == PROBE).count();
    assert!(probes > 0, "the two never checked their path: {} packets", old.len());
    let before = world.replayed();
    let pings = world.pair.sites[0].host.spawn(ping("100"));
    let sent = host.namespace().run(move || flood(&old));
    let printed = String::from_utf8(pings.wait().stdout).unwrap();
    let summary = printed.lines().find(|line| line.contains("received")).unwrap_or_default();
    let counted = world.replayed() - before;
    show(&format!("through a relay that floods ({sent} packets, {counted} counted): {summary}"));
    let received: u32 = summary.split(' ').nth(3).and_then(|word| word.parse().ok()).unwrap();
    assert!(received >= 95, "{printed}");
    assert!(counted > 100, "{counted}");
    assert!(world.is_relayed() && relay_of(&world.pair) != first, "{:?}", world.pair.views());
    let left = world.left("floods");
    assert!(left > 0, "{:?}", world.pair.views());
}

/// Sends old frames once more and once more for [`FLOOD`], and returns how many.
fn flood(frames: &[Vec<u8>]) -> usize {
    // IPPROTO_RAW: what is sent has a header of its own.
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    let begun = Instant::now();
    let mut sent = 0;
    for frame in frames.iter().cycle() {
        let mut packet = frame[14..].to_vec();
        // What a virtual link was given is not summed up yet; zero says that there is no checksum (RFC 768).
        packet[26..28].fill(0);
        let to: [u8; 4] = packet[16..20].try_into().unwrap();
        drop(socket.send_to(&packet, &SocketAddr::from((to, 0)).into()));
        sent += 1;
        if sent % 5 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if begun.elapsed() > FLOOD {
            break;
        }
    }
    sent
}

/// Has the relay in use spoil what it passes on, and shows how long the pair is parted until another takes over.
fn is_left(name: &str, of_these: &str, why: &str) {
    let world = World::meet(name, [Symmetric; 2], 2, |_| {});
    let target = world.pair.mesh_ipv4(1);
    // Under emulation eBPF takes some seconds to load, and it is what tells of packets that nobody answers.
    eventually(PATIENCE, || world.knows_all() && world.have_ebpf());
    let pings = Pings::start(&world.pair.sites[0].host, target, PING_INTERVAL, PING_BYTES);
    std::thread::sleep(Duration::from_secs(3));
    let first = relay_of(&world.pair);
    let before = SystemTime::now();
    let (host, daemon) = world.relay();
    spoil(host, &ports(host, daemon), of_these, "netem loss 100%");
    std::thread::sleep(WATCHED);
    let silence = pings.finish().longest_silence(before);
    let verdict = if silence < GOAL { "" } else { ", goal of 3 s MISSED" };
    show(&format!("{name}: joined by another after {:.2} s{verdict}", silence.as_secs_f64()));
    assert!(silence < LIMIT, "{:?}", world.pair.views());
    assert!(world.is_relayed() && relay_of(&world.pair) != first, "{:?}", world.pair.views());
    assert!(world.left(why) > 0, "nobody has counted it: {:?}", world.pair.views());
    let drops = spoiled(host);
    assert!(drops > 0, "the relay did send something: {drops}");
}

/// Issue 4, 3: one that sends each packet twice ends no tunnel, costs no ping, and nobody sees anything twice.
#[test]
fn a_relay_that_repeats_packets_ends_no_tunnel() {
    let world = World::meet("relay-repeats", [Symmetric; 2], 1, |_| {});
    let (host, daemon) = world.relay();
    spoil(host, &ports(host, daemon), "", "netem duplicate 100%");
    let target = world.pair.mesh_ipv4(1).to_string();
    let printed = world.pair.sites[0].host.run(["ping", "-n", "-q", "-i", "0.05", "-c", "400", &target]);
    let summary = printed.lines().find(|line| line.contains("received")).unwrap_or_default();
    show(&format!("through a relay that repeats: {summary}"));
    let received: u32 = summary.split(' ').nth(3).and_then(|word| word.parse().ok()).unwrap();
    assert!(received >= 396 && !printed.contains("duplicates"), "{printed}");
    assert!(world.is_relayed(), "{:?}", world.pair.views());
}

/// Has what a relay's ports send meet a queueing discipline, all of it or what fits.
fn spoil(host: &Host, ports: &[u64], of_these: &str, kind: &str) {
    discipline(host, kind);
    for port in ports {
        filter(host, 1, &format!("match ip sport {port} 0xffff {of_these}"), "1:4");
    }
}

/// Adds a queueing discipline to a host's way out, for what a filter leads to `1:4`.
fn discipline(host: &Host, kind: &str) {
    tc(host, "qdisc add dev eth0 root handle 1: prio bands 4 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0");
    tc(host, &format!("qdisc add dev eth0 parent 1:4 handle 40: {kind}"));
}

/// Leads the UDP packets that fit to a class, unless a filter of a lower number does.
fn filter(host: &Host, number: u32, of_these: &str, class: &str) {
    tc(
        host,
        &format!(
            "filter add dev eth0 parent 1: protocol ip prio {number} u32 match ip protocol 17 0xff {of_these} flowid {class}"
        ),
    );
}

fn tc(host: &Host, words: &str) {
    host.run(std::iter::once("tc").chain(words.split_whitespace()));
}

/// Returns how many packets have met their end there.
fn spoiled(host: &Host) -> u64 {
    let shown = host.run(["tc", "-s", "-j", "qdisc", "show", "dev", "eth0"]);
    let all: Value = serde_json::from_str(&shown).unwrap();
    let found = all.as_array().unwrap().iter().find(|one| one["handle"] == "40:");
    found.and_then(|one| one["drops"].as_u64()).unwrap_or_default()
}

fn relay_of(pair: &Pair) -> String {
    pair.views()[0].relay.clone()
}
