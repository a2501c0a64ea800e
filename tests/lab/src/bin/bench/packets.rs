//! What the eBPF programs take for each packet, by the kernel's own measure (`BPF_PROG_TEST_RUN`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{SchedClassifier, loaded_programs};
use aya::{TestRun, TestRunOptions};
use wgmesh::ebpf::{EbpfSettings, EbpfTraffic};
use wgmesh_core::key::PublicKey;
use wgmesh_ebpf_common::{RelayHop, RelayKey};
use wgmesh_lab::Lab;

/// The most nanoseconds that a program may take (DESIGN 14).
const GOAL: u32 = 100;
/// Packets of one measurement; the kernel says the mean.
const REPEAT: u32 = 200_000;
/// A relayed packet has one hop less to live each time.
const HOPS: u32 = 250;
/// Measurements of each; the least is what the program takes, the others what disturbed it.
const RUNS: usize = 15;
/// Peers of the mesh in which it is measured.
const PEERS: u16 = 1000;

/// An address that belongs to a peer, and one behind a peer.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 244);
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 9);

/// Measures each program with the packets that it sees most, and prints a line for each.
pub(super) fn measure() {
    let lab = Lab::new("packets");
    let host = lab.host("one");
    let lines = host.namespace().run(|| {
        let settings = EbpfSettings::new(super::kernel::name());
        let mut ebpf = EbpfTraffic::load(&settings).expect("the kernel takes the programs");
        ebpf.sync_peers(&peers()).expect("the maps hold them");
        ebpf.set_listen_port(51820).expect("the map holds it");
        let pinned = MapData::from_pin(settings.pin_directory.join("RELAYED")).expect("it is pinned");
        let relayed = Map::from_map_data(pinned).expect("it is a map");
        let mut relayed: HashMap<_, RelayKey, RelayHop> = relayed.try_into().expect("it is of this type");
        [false, true].into_iter().for_each(|v6| {
            let (key, hop) = to_itself(v6);
            relayed.insert(key, hop, 0).expect("there is a place");
        });
        let lines = cases().map(|case| (case.name, case.run()));
        ebpf.withdraw().expect("what was loaded can go");
        lines
    });
    println!("\nnanoseconds of eBPF for each packet, {PEERS} peers");
    println!("{:<58} {:>6} {:>6}", "", "least", "median");
    for (name, (least, median, repeat)) in lines {
        let verdict = if least <= GOAL { "met" } else { "MISSED" };
        println!("{name:<58} {least:>6} {median:>6}  of {repeat} packets; goal {GOAL}: {verdict}");
    }
}

struct Case {
    name: &'static str,
    program: &'static str,
    frame: Vec<u8>,
    repeat: u32,
    action: u32,
}

/// No opinion, and sent on.
const PASSED: u32 = u32::MAX;
const REDIRECTED: u32 = 7;

fn cases() -> [Case; 9] {
    let other = Ipv4Addr::new(10, 77, 0, 1);
    let case = |name, program, frame| Case { name, program, frame, repeat: REPEAT, action: PASSED };
    let relayed =
        |name, frame| Case { repeat: HOPS, action: REDIRECTED, ..case(name, "wgmesh_relay", frame) };
    [
        case("counted: from a peer, IPv4", "wgmesh_rx", v4(PEER, other, UDP)),
        case("counted: to a peer, IPv4", "wgmesh_tx", v4(other, PEER, UDP)),
        case("counted: from a peer, IPv6", "wgmesh_rx", v6(500, 0)),
        case("counted: to a peer, IPv6", "wgmesh_tx", v6(0, 500)),
        case("counted: to a network behind a peer, IPv4", "wgmesh_tx", v4(other, BEHIND, UDP)),
        case("underlay: no handshake", "wgmesh_hs_rx", v4(other, PEER, UDP)),
        case("underlay of a relay: not relayed, UDP over IPv4", "wgmesh_relay", v4(PEER, other, UDP)),
        relayed("underlay of a relay: relayed, IPv4", v4(RELAYED_FROM, RELAYED_TO, UDP)),
        relayed("underlay of a relay: relayed, IPv6", v6(1001, 1002)),
    ]
}

impl Case {
    /// Returns the least and the median mean, and how many packets each is of.
    fn run(&self) -> (u32, u32, u32) {
        let program = program(self.program);
        let mut means: Vec<u32> = (0..RUNS).map(|_| self.run_once(&program)).collect();
        means.sort_unstable();
        (means[0], means[RUNS / 2], self.repeat)
    }

    fn run_once(&self, program: &SchedClassifier) -> u32 {
        let mut changed = vec![0; self.frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            data_out: Some(&mut changed),
            repeat: self.repeat,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).expect("the kernel runs it");
        assert_eq!(result.return_value, self.action, "{}", self.name);
        u32::try_from(result.duration.as_nanos()).expect("a packet takes less than seconds")
    }
}

/// Finds the program that was loaded last under this name.
fn program(name: &'static str) -> SchedClassifier {
    let found = loaded_programs().flatten().filter(|program| program.name() == name.as_bytes());
    let newest = found.max_by_key(aya::programs::ProgramInfo::id).expect("it was loaded");
    SchedClassifier::from_program_info(newest, name.into()).expect("it is a tc program")
}

fn peers() -> BTreeMap<PublicKey, std::collections::BTreeSet<ipnet::IpNet>> {
    let mut peers: BTreeMap<_, _> = super::kernel::planned(PEERS)
        .into_iter()
        .map(|peer| (PublicKey::from_bytes(peer.key), peer.addresses.map(ipnet::IpNet::from).into()))
        .collect();
    let behind: &mut std::collections::BTreeSet<_> = peers.values_mut().next().expect("there are many");
    behind.insert("10.88.0.0/24".parse().expect("it is a network"));
    peers
}

const RELAYED_FROM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const RELAYED_TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const PORTS: [u8; 4] = [0xca, 0x6c, 0x9c, 0x41];
const UDP: u8 = 17;

/// A flow that leaves as it came, so that the next packet is of it too.
fn to_itself(is_v6: bool) -> (RelayKey, RelayHop) {
    let words = |bytes: [u8; 16]| {
        std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte])))
    };
    let [source, destination] = match is_v6 {
        false => [RELAYED_FROM, RELAYED_TO].map(|address| words(address.to_ipv6_mapped().octets())),
        true => [1001, 1002].map(|number| words(peer_v6(number))),
    };
    let ports = u32::from_ne_bytes(PORTS);
    let hop = RelayHop { source, destination, ports, interface: 1, longest: 1500, ..RelayHop::default() };
    (RelayKey { source, destination, ports }, hop)
}

fn peer_v6(number: u16) -> [u8; 16] {
    std::net::Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, number).octets()
}

/// The payload of a full packet: one of WireGuard's data messages.
fn datagram() -> Vec<u8> {
    let mut datagram = PORTS.to_vec();
    datagram.extend([0x05, 0x60, 0x12, 0x34]);
    datagram.extend([4, 0, 0, 0]);
    datagram.resize(1376, 7);
    datagram
}

fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0x05, 0x74, 0, 0, 0, 0, 255, protocol, 0x12, 0x34]);
    frame.extend([source.octets(), destination.octets()].concat());
    frame.extend(datagram());
    frame
}

fn v6(source: u16, destination: u16) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0x05, 0x60, UDP, 255]);
    frame.extend([peer_v6(source), peer_v6(destination)].concat());
    frame.extend(datagram());
    frame
}
