//! Pairs that no packet can join directly, and the relays between them.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;
use wgmesh_core::seal;
use wgmesh_ebpf_common::PROBE;
use wgmesh_lab::NatKind::{None, PortRestricted, Symmetric};
use wgmesh_lab::{
    Daemon, GATEWAY, Host, Internet, NatKind, Pair, Pings, Settings, StunServers, eventually, secret, show,
};

use super::hostile::frames;
use super::{PATIENCE, PING_BYTES, PING_INTERVAL, WATCHED};

/// DESIGN 14: so long may a pair be parted when its path is lost.
const GOAL: Duration = Duration::from_secs(3);

/// By then it must be joined again, on whatever machine.
const LIMIT: Duration = Duration::from_secs(18);

/// As long as fills a packet of the tunnel: 1,400 bytes with the headers of IPv4 and ICMP.
const LARGE: u32 = 1372;

/// What the pings carry: it must be seen nowhere on the way.
const PLAINTEXT: &[u8] = b"wgmeshplain";

/// A pair and its relays; the introducer is one of them.
pub(super) struct World {
    pub(super) pair: Pair,
    others: Vec<(Host, Daemon)>,
    _stun: StunServers,
    internet: Internet,
}

impl World {
    /// Starts a pair with so many relays, and waits until it is joined by one.
    pub(super) fn meet(name: &str, kinds: [NatKind; 2], relays: u8, before: impl FnOnce(&Pair)) -> Self {
        let world = Self::meet_as(name, kinds, relays, before);
        eventually(PATIENCE, || world.is_relayed());
        world
    }

    /// Starts a pair with so many relays, and waits until it is joined, whether by one of them or directly.
    fn meet_as(name: &str, kinds: [NatKind; 2], relays: u8, before: impl FnOnce(&Pair)) -> Self {
        let internet = Internet::new(name);
        let stun = StunServers::start(&internet);
        let pair = Pair::start_relayed(&internet, 1, kinds);
        before(&pair);
        let others =
            (1..relays).map(|number| pair.relay(&internet, Pair::introducer_address(1), number)).collect();
        let world = Self { pair, others, internet, _stun: stun };
        let outcome = world.pair.meet(PATIENCE);
        assert!(outcome.from_start.is_some(), "{outcome:?}");
        show(&format!("{name}: first ping {:?} after the start", outcome.from_start));
        world
    }

    pub(super) fn is_relayed(&self) -> bool {
        self.pair.views().iter().all(|view| view.state == "relayed" && view.path == "relay")
    }

    /// Returns the host that is the relay now, with its daemon.
    pub(super) fn relay(&self) -> (&Host, &Daemon) {
        let key = self.pair.views()[0].relay.clone();
        let Pair { introducer, introducer_host, .. } = &self.pair;
        let others = self.others.iter().map(|(host, daemon)| (host, daemon));
        let mut all = others.chain([(introducer_host, introducer)]);
        let found = all.find(|(_, daemon)| daemon.status_json()["node"]["public_key"] == *key);
        found.expect("the relay is one of them")
    }

    /// Returns how many datagrams both hosts of the pair have dropped because they came before.
    pub(super) fn replayed(&self) -> u64 {
        let dropped = |daemon: &Daemon| daemon.status_json()["drops"]["replayed"].as_u64().unwrap_or(0);
        self.pair.daemons.iter().map(dropped).sum()
    }

    /// Returns how often the hosts of the pair have left a relay for this reason.
    pub(super) fn left(&self, why: &str) -> u64 {
        let left = |daemon: &Daemon| daemon.status_json()["relays_left"][why].as_u64().unwrap_or(0);
        self.pair.daemons.iter().map(left).sum()
    }

    /// Whether eBPF is at work on both hosts of the pair.
    pub(super) fn have_ebpf(&self) -> bool {
        self.pair.daemons.iter().all(|daemon| daemon.status_json()["ebpf"]["active"] == true)
    }

    /// Whether both hosts of the pair have a tunnel to everybody.
    pub(super) fn knows_all(&self) -> bool {
        let everybody = self.others.len() + 2;
        self.pair.daemons.iter().all(|daemon| {
            let status = daemon.status_json();
            let peers = status["peers"].as_array().unwrap();
            peers.iter().filter(|peer| peer["state"] != "connecting").count() == everybody
        })
    }
}

/// Issue "stay up", 1: the relay passes on what it cannot read, and its own WireGuard has no part in it.
#[test]
fn two_symmetric_nats_are_joined_by_a_relay_that_can_read_nothing() {
    let world = World::meet("sealed", [Symmetric, Symmetric], 1, |_| {});
    reads_nothing(&world);
    eventually(PATIENCE, || world.pair.introducer.status_json()["ebpf"]["relayed_flows"] == 2);
    follows_routes(&world);
}

/// Issue "stay up", 1: as a firewall between two sites may have it.
#[test]
fn hosts_between_which_udp_is_blocked_are_joined_by_a_relay() {
    let world = World::meet("blocked", [None, None], 1, block);
    reads_nothing(&world);
}

/// W-D12: a pair that could do without a relay has one where only one of the two wants it.
#[test]
fn a_relay_is_between_two_where_one_of_them_wants_it() {
    let internet = Internet::new("forced");
    let stun = StunServers::start(&internet);
    let introducer = Settings::new(&secret(1)).over_internet(&[]);
    let plain = Settings::new(&secret(1)).over_internet(&[Pair::introducer_address(1)]);
    let forced = plain.clone().with("[relay]\nforce = true");
    let pair = Pair::start_as(&internet, 1, [PortRestricted; 2], &[forced, plain, introducer]);
    let world = World { pair, others: Vec::new(), internet, _stun: stun };
    assert!(world.pair.meet(PATIENCE).from_start.is_some());
    eventually(PATIENCE, || world.is_relayed());
    reads_nothing(&world);
    assert!(world.is_relayed());
}

/// Issue "stay up", 1: a relay on which eBPF is not to be had passes on what it cannot read by itself, and nothing while its
/// daemon is away; a new one goes on where the old one stopped.
#[test]
fn a_relay_without_ebpf_passes_packets_on_by_itself() {
    let internet = Internet::new("userspace");
    let stun = StunServers::start(&internet);
    let introducer = Settings::new(&secret(1)).over_internet(&[]).without_ebpf();
    let node = Settings::new(&secret(1)).over_internet(&[Pair::introducer_address(1)]);
    let settings = [node.clone(), node, introducer];
    let pair = Pair::start_as(&internet, 1, [Symmetric; 2], &settings);
    let mut world = World { pair, others: Vec::new(), internet, _stun: stun };
    assert!(world.pair.meet(PATIENCE).from_start.is_some());
    eventually(PATIENCE, || world.is_relayed());
    reads_nothing(&world);
    let status = world.pair.introducer.status_json();
    assert_eq!(status["ebpf"]["active"], false);
    assert_eq!(status["ebpf"]["relayed_packets"], 0);
    let pings = Pings::start(&world.pair.sites[0].host, world.pair.mesh_ipv4(1), PING_INTERVAL, PING_BYTES);
    std::thread::sleep(Duration::from_secs(1));
    let before = SystemTime::now();
    let Pair { introducer, introducer_host, .. } = &mut world.pair;
    introducer.signal(Signal::SIGKILL);
    introducer.wait_exit();
    *introducer = introducer_host.daemon(&settings[2]);
    let ready = introducer.wait_ready();
    std::thread::sleep(WATCHED);
    let silence = pings.finish().longest_silence(before);
    show(&format!(
        "userspace relay: silent for {silence:?} where its daemon crashes and is ready {ready:?} later"
    ));
    assert!(silence < LIMIT, "{:?}", world.pair.views());
    assert!(world.is_relayed());
}

/// Pings both ways, and looks at everything that the relay gets to see of it.
fn reads_nothing(world: &World) {
    let Pair { sites, introducer_host: relay, introducer, .. } = &world.pair;
    let inner = [0, 1].map(|index| world.pair.mesh_ipv4(index));
    let before = transferred(relay);
    let passed = passed_on(introducer);
    let outside = relay.capture("eth0", "udp");
    let inside = relay.capture("wgmesh0", "ip");
    for (from, to) in [(0, 1), (1, 0)] {
        let pattern: String = PLAINTEXT.iter().map(|byte| format!("{byte:02x}")).collect();
        let to = inner[to].to_string();
        // `ping` does not wait for the last answers, which come late where the machine is busy: so there are more of them.
        let words = ["ping", "-n", "-i", "0.02", "-c", "150", "-s", "1000", "-p", &pattern, &to];
        let printed = sites[from].host.spawn(words).wait().stdout;
        let printed = String::from_utf8(printed).unwrap();
        let is_lost = |number: &u32| !printed.contains(&format!("icmp_seq={number} "));
        assert_eq!((1..=100).filter(is_lost).collect::<Vec<_>>(), [0; 0], "{printed}");
    }
    let (outside, inside) = (outside.finish(), inside.finish());
    assert!(outside.len() > 4 * 100 * 1000, "all of it passes the relay, twice: {} bytes", outside.len());
    assert!(!contains(&outside, PLAINTEXT), "nothing of it can be read");
    let addresses = [inner[0].octets(), inner[1].octets()].concat();
    let reversed = [inner[1].octets(), inner[0].octets()].concat();
    for found in [&addresses, &reversed] {
        assert!(!contains(&outside, found) && !contains(&inside, found), "nor from whom to whom");
    }
    let sealed = count_sealed(&outside, &ports(relay, introducer));
    assert!(sealed > 4 * 100, "{sealed} packets");
    let grown = transferred(relay) - before;
    assert!(grown < 60_000, "the relay's own WireGuard has carried {grown} bytes meanwhile");
    let status = introducer.status_json();
    assert!(passed_on(introducer) >= passed + 400, "{status}");
    assert_eq!(status["relay"]["pairs"], 1);
}

/// Found in a review: where a route to an end moved, eBPF went on sending by the link of before.
fn follows_routes(world: &World) {
    let Pair { sites, introducer_host: relay, .. } = &world.pair;
    let _cable = world.internet.connect(relay, &[Ipv4Addr::new(192, 0, 2, 200)]);
    // That is a change of the underlay, which has every way found anew; the one of the route is not.
    std::thread::sleep(Duration::from_secs(2));
    let [end, gateway] = [format!("{}/32", sites[0].public()), GATEWAY.to_string()];
    relay.run(["ip", "route", "replace", &end, "via", &gateway, "dev", "eth1", "onlink"]);
    let sent =
        || relay.run(["cat", "/sys/class/net/eth1/statistics/tx_packets"]).trim().parse::<u64>().unwrap();
    let before = sent();
    let pings = Pings::start(&sites[1].host, world.pair.mesh_ipv4(0), Duration::from_millis(10), PING_BYTES);
    // The relay's own packets to that end are fewer by far.
    eventually(PATIENCE, || sent() >= before + 500);
    drop(pings);
    let sum = &world.pair.introducer.status_json()["ebpf"];
    assert_eq!(sum["relayed_flows"], 2, "{sum}");
}

/// Issue "stay up": a line of 1,280 bytes in the middle, which swallows what is longer on its way there and takes apart what is
/// longer on its way back, on a direct path through a NAT and on one through a relay.
#[test]
fn a_narrow_line_in_the_middle_never_becomes_a_black_hole() {
    for (name, is_relayed) in [("narrow-direct", false), ("narrow-relayed", true)] {
        let world = World::meet_as(name, [None, PortRestricted], 1, |pair| {
            pair.sites[0].link.narrow(1280);
            if is_relayed {
                block(pair);
            }
        });
        let wanted = if is_relayed { "relayed" } else { "direct" };
        eventually(PATIENCE, || world.pair.views().iter().all(|view| view.state == wanted));
        for (own, other) in [(0, 1), (1, 0)] {
            let (host, target) = (&world.pair.sites[own].host, world.pair.mesh_ipv4(other));
            let before = SystemTime::now();
            let pings = Pings::start(host, target, PING_INTERVAL, LARGE);
            std::thread::sleep(WATCHED);
            let silence = pings.finish().longest_silence(before);
            let verdict = if silence < GOAL { "" } else { ", goal of 3 s MISSED" };
            show(&format!("{name}: large packets pass after {:.2} s{verdict}", silence.as_secs_f64()));
            assert!(silence < LIMIT, "{:?}", world.pair.views());
            // It may just be measured anew.
            eventually(PATIENCE, || {
                let route = host.run(["ip", "route", "get", &target.to_string()]);
                let mtu = world.pair.daemons[own].status_json()["peers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|peer| peer["mesh_ipv4"] == target.to_string())
                    .and_then(|peer| peer["path"]["mtu"].as_u64());
                mtu.is_some_and(|mtu| (1200..=1220).contains(&mtu) && route.contains(&format!("mtu {mtu}")))
            });
        }
        assert!(world.pair.views().iter().all(|view| view.state == wanted), "{:?}", world.pair.views());
    }
}

/// L-15, X-19: of two relays the one that is 10 ms away is taken over the one that is 80 ms away, though the pair has met by that
/// one; and when the other is the nearer one that is taken, once and for all.
#[test]
fn the_nearer_of_two_relays_is_taken() {
    let delay = |host: &Host, act: &str, delay: &str| {
        host.run(["tc", "qdisc", act, "dev", "eth0", "root", "netem", "delay", delay]);
    };
    let world = World::meet("nearer", [Symmetric; 2], 2, |pair| delay(&pair.introducer_host, "add", "80ms"));
    let Pair { introducer, introducer_host, sites, .. } = &world.pair;
    let (other_host, other) = &world.others[0];
    delay(other_host, "add", "10ms");
    let is_relay = |daemon: &Daemon| {
        let key = daemon.status_json()["node"]["public_key"].as_str().unwrap().to_owned();
        world.is_relayed() && world.pair.views().iter().all(|view| view.relay == key)
    };
    // Packets that are under way on the slow one lead both kernels back to it.
    let pings = Pings::start(&sites[0].host, world.pair.mesh_ipv4(1), Duration::from_millis(50), PING_BYTES);
    let began = SystemTime::now();
    let first = eventually(Duration::from_secs(240), || is_relay(other));
    delay(other_host, "change", "80ms");
    delay(introducer_host, "change", "10ms");
    let second = eventually(Duration::from_secs(240), || is_relay(introducer));
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(250));
        assert!(is_relay(introducer), "{:?}", world.pair.views());
    }
    let replies = pings.finish();
    let (lost, silence) = (replies.lost_after(began), replies.longest_silence(began));
    show(&format!(
        "the nearer relay is taken after {:.0} s, and the other after {:.0} s when that is: {lost} of {} pings lost, silent for \
         {silence:?} at most",
        first.as_secs_f64(),
        second.as_secs_f64(),
        replies.sent(),
    ));
    assert!(silence < Duration::from_secs(1), "{:?}", world.pair.views());
}

/// Issue "stay up", 3: another relay takes over.
#[test]
fn a_pair_whose_relay_is_cut_off_moves_to_another() {
    let world = World::meet("relay-killed", [Symmetric, Symmetric], 2, |_| {});
    let target = world.pair.mesh_ipv4(1);
    eventually(PATIENCE, || world.knows_all() && world.have_ebpf());
    let pings = Pings::start(&world.pair.sites[0].host, target, PING_INTERVAL, PING_BYTES);
    std::thread::sleep(Duration::from_secs(3));
    let first = world.pair.views()[0].relay.clone();
    let before = SystemTime::now();
    // Its daemon alone would not be missed: what eBPF relays outlives it.
    world.relay().0.run(["ip", "link", "set", "eth0", "down"]);
    std::thread::sleep(WATCHED);
    let silence = pings.finish().longest_silence(before);
    let verdict = if silence < GOAL { "" } else { ", goal of 3 s MISSED" };
    show(&format!("relay cut off: joined by another after {:.2} s{verdict}", silence.as_secs_f64()));
    assert!(silence < LIMIT, "{:?}", world.pair.views());
    assert!(world.is_relayed() && world.pair.views()[0].relay != first, "{:?}", world.pair.views());
}

/// Issue "stay up", 2; W-D12: once nothing is in the way any more the pair is direct, and no ping was lost.
#[test]
fn a_direct_path_that_opens_is_taken_without_a_loss() {
    let world = World::meet("restored", [None, PortRestricted], 1, block);
    let summary = back_to_direct(&world.pair);
    show(&format!("back to the direct path: {summary}"));
    assert!(summary.contains("500 packets transmitted, 500 received"));
    assert!(world.pair.views().iter().all(|view| view.is_direct), "{:?}", world.pair.views());
}

/// Opens the direct path of a pair under 500 pings, ten a second; returns what `ping` says of them at the end.
pub(super) fn back_to_direct(pair: &Pair) -> String {
    let target = pair.mesh_ipv4(1).to_string();
    let ping = pair.sites[0].host.spawn(["ping", "-n", "-q", "-i", "0.1", "-c", "500", &target]);
    std::thread::sleep(Duration::from_secs(3));
    unblock(pair);
    eventually(Duration::from_secs(45), || pair.views().iter().all(|view| view.state == "direct"));
    let printed = String::from_utf8(ping.wait().stdout).unwrap();
    printed.lines().find(|line| line.contains("received")).unwrap_or_default().to_owned()
}

/// Has each of a pair drop all UDP from and to the other's address.
pub(super) fn block(pair: &Pair) {
    for (own, other) in [(0, 1), (1, 0)] {
        let other: Ipv4Addr = pair.sites[other].public();
        let rules = format!(
            "table inet between {{\n chain incoming {{ type filter hook input priority -200; ip saddr {other} meta l4proto udp drop; }}\n \
             chain outgoing {{ type filter hook output priority -200; ip daddr {other} meta l4proto udp drop; }}\n}}\n"
        );
        pair.sites[own].host.feed(["nft", "-f", "-"], &rules);
    }
}

fn unblock(pair: &Pair) {
    for site in &pair.sites {
        site.host.run(["nft", "delete", "table", "inet", "between"]);
    }
}

/// Returns how many packets a relay has passed on, by its sockets or by eBPF.
fn passed_on(relay: &Daemon) -> u64 {
    let status = relay.status_json();
    status["relay"]["packets"].as_u64().unwrap() + status["ebpf"]["relayed_packets"].as_u64().unwrap()
}

/// Returns how many bytes a host's WireGuard has carried for all its peers.
fn transferred(host: &Host) -> u64 {
    let lines = host.run(["wg", "show", "wgmesh0", "transfer"]);
    lines.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// Returns the relay's ports for its pairs.
pub(super) fn ports(host: &Host, daemon: &Daemon) -> Vec<u64> {
    let interface = daemon.status_json()["node"]["interface"].as_str().unwrap().to_owned();
    let path = host.folder().join("state").join(format!("{interface}-relay.json"));
    let table: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let pairs = table.as_array().unwrap().iter();
    pairs.flat_map(|pair| pair["ports"].as_array().unwrap()).filter_map(Value::as_u64).collect()
}

/// Returns how many packets of a capture come to a relay's ports or leave from them.
///
/// # Panics
/// Where one of them is neither a message of WireGuard (whitepaper §5.4) nor sealed.
fn count_sealed(pcap: &[u8], ports: &[u64]) -> usize {
    let mut found = 0;
    for frame in frames(pcap).into_iter().filter(|frame| frame.len() > 46 && frame[12..14] == [8, 0]) {
        let port = |at: usize| u64::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        if ports.contains(&port(34)) || ports.contains(&port(36)) {
            let payload = &frame[42..];
            let is_sealed = payload[..2] == PROBE || seal::is_bind(payload);
            assert!(is_sealed || matches!(payload, [1..=4, 0, 0, 0, ..]), "{:x?}", &payload[..4]);
            found += 1;
        }
    }
    found
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
