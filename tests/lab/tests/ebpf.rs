//! The eBPF programs beside the kernel's own counters and `wg`'s own handshake times.

mod awaited;
mod relay;
mod silence;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aya::maps::{Array, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::sched::{CloneFlags, setns};
use wgmesh::ebpf::{EbpfSettings, EbpfTraffic, Handshakes};
use wgmesh::traffic::{Change, Traffic};
use wgmesh_core::kernel::{Direction, HandshakeMessage, HandshakeSeen, PeerTraffic};
use wgmesh_core::key::PublicKey;
use wgmesh_lab::eventually;

/// Links of eBPF end with the last copy of their descriptor, and a program that another test starts just now has one until
/// `execve`.
const PATIENCE: Duration = Duration::from_secs(20);

const BETWEEN_PINGS: Duration = Duration::from_millis(50);

/// C-5: what the programs count is what was sent, in both directions and families.
#[test]
fn each_peers_packets_and_bytes_are_counted_exactly() {
    let pair = Pair::new("ebcnt");
    pair.in_a(|| {
        let mut ebpf = pair.load();
        assert_eq!(pair.traffic(&ebpf), PeerTraffic::default());
        ping("10.77.0.2", 20, 100);
        ping("fd77::2", 10, 200);
        // A network behind the peer.
        run("ip", "route add 10.88.0.0/24 dev wg0");
        run("ip", &format!("-n {} address add 10.88.0.1/32 dev lo", pair.b));
        ping("10.88.0.1", 5, 300);

        let traffic = pair.traffic(&ebpf);

        let bytes = 20 * (20 + 8 + 100) + 10 * (40 + 8 + 200) + 5 * (20 + 8 + 300);
        assert_eq!((traffic.rx_packets, traffic.rx_bytes), (35, bytes));
        assert_eq!((traffic.tx_packets, traffic.tx_bytes), (35, bytes));
        assert!(traffic.rx_age.unwrap() < Duration::from_secs(5), "{traffic:?}");
        ebpf.sync_peers(&BTreeMap::new()).unwrap();
        assert_eq!(ebpf.traffic().unwrap(), BTreeMap::new());
        ebpf.sync_peers(&pair.peers()).unwrap();
        assert_eq!(pair.traffic(&ebpf), PeerTraffic::default(), "who comes back starts at zero");
        ebpf.withdraw().unwrap();
    });
}

/// C-5, X-53: a bulk transfer, which the kernel moves in aggregates, agrees with WireGuard's own count. That counts
/// 32 bytes more for each packet, and up to 15 of padding, and some handshakes.
#[test]
fn a_bulk_transfer_agrees_with_wireguards_own_counters() {
    let pair = Pair::new("ebblk");
    const BYTES: usize = 4_000_000;
    let server = pair.b.clone();
    let (ready, wait) = std::sync::mpsc::channel();
    let receiver = thread::spawn(move || {
        inside(&server, || {
            let listener = TcpListener::bind("10.77.0.2:7777").unwrap();
            ready.send(()).unwrap();
            let mut received = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
            received.len()
        })
    });
    wait.recv().unwrap();
    pair.in_a(|| {
        let ebpf = pair.load();
        TcpStream::connect("10.77.0.2:7777").unwrap().write_all(&vec![7; BYTES]).unwrap();
        assert_eq!(receiver.join().unwrap(), BYTES);
        thread::sleep(Duration::from_millis(300));

        let ours = pair.traffic(&ebpf);
        let (received, sent) = wireguard_transfer();

        assert!(ours.tx_bytes > BYTES as u64 && ours.tx_packets > BYTES as u64 / 1420, "{ours:?}");
        for (ours, packets, theirs) in
            [(ours.tx_bytes, ours.tx_packets, sent), (ours.rx_bytes, ours.rx_packets, received)]
        {
            let least = ours + 32 * packets;
            assert!((least..least + 15 * packets + 1000).contains(&theirs), "{ours} {packets} {theirs}");
        }
        ebpf.withdraw().unwrap();
    });
}

/// C-5: both messages in both directions are seen, with the endpoint that WireGuard itself has.
#[test]
fn handshakes_are_seen_in_both_directions_and_families() {
    use Direction::{Received, Sent};
    use HandshakeMessage::{Initiation, Response};
    let pair = Pair::new("ebhs");
    pair.in_a(|| {
        let mut ebpf = pair.load();
        ebpf.set_listen_port(51820).unwrap();
        ebpf.await_handshakes(true).unwrap();
        ebpf.attach_underlay("eth0", index_of("eth0")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut handshakes = runtime.block_on(async { ebpf.handshakes().unwrap().unwrap() });
        let read = |seen: Vec<HandshakeSeen>| {
            seen.into_iter().map(|seen| (seen.endpoint, seen.message, seen.direction))
        };
        let gather = |handshakes: &mut Handshakes, count: usize| {
            let mut all = Vec::new();
            runtime.block_on(async {
                while all.len() < count {
                    let batch = tokio::time::timeout(Duration::from_secs(10), handshakes.next_batch());
                    all.extend(read(batch.await.expect("no handshake was seen").unwrap()));
                }
            });
            all
        };

        ping("10.77.0.2", 1, 8);
        let seen = gather(&mut handshakes, 2);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let expected = |endpoint: &str, pairs: [(HandshakeMessage, Direction); 2]| {
            let endpoint: SocketAddr = endpoint.parse().unwrap();
            pairs.map(|(message, direction)| (endpoint, message, direction)).to_vec()
        };
        assert_eq!(seen, expected("192.0.2.2:51820", [(Initiation, Sent), (Response, Received)]));
        assert!(latest_handshake().abs_diff(clock) <= 1);

        // The other side starts, over IPv6 link-local addresses.
        run("ip netns exec", &format!("{} wg set wg0 peer {} remove", pair.b, pair.key_a));
        let endpoint_of_a = format!("[fe80::1%{}]:51820", index_in(&pair.b, "eth0"));
        pair.add_peer(&pair.b, &pair.key_a, &endpoint_of_a, "10.77.0.1/32,fd77::1/128");
        run("ip netns exec", &format!("{} ping -q -c 1 -W 5 10.77.0.1", pair.b));
        let seen = gather(&mut handshakes, 2);
        let endpoint = format!("[fe80::2%{}]:51820", index_of("eth0"));
        assert_eq!(seen, expected(&endpoint, [(Initiation, Received), (Response, Sent)]));

        // Nobody waits: then nobody is woken, and all is there to be read.
        ebpf.await_handshakes(false).unwrap();
        run("ip netns exec", &format!("{} wg set wg0 peer {} remove", pair.b, pair.key_a));
        pair.add_peer(&pair.b, &pair.key_a, &endpoint_of_a, "10.77.0.1/32,fd77::1/128");
        run("ip netns exec", &format!("{} ping -q -c 1 -W 5 10.77.0.1", pair.b));
        let woken = async { tokio::time::timeout(Duration::from_secs(1), handshakes.next_batch()).await };
        assert!(runtime.block_on(woken).is_err(), "nobody waits");
        let seen: Vec<_> = read(handshakes.waiting()).collect();
        assert_eq!(seen, expected(&endpoint, [(Initiation, Received), (Response, Sent)]));
        ebpf.withdraw().unwrap();
    });
}

/// A daemon that is replaced, killed, or finds its interface made anew goes on counting where it was.
#[test]
fn counters_outlive_the_daemon_and_nothing_is_counted_twice() {
    let pair = Pair::new("ebkeep");
    pair.in_a(|| {
        let mut first = pair.load();
        first.attach_underlay("eth0", index_of("eth0")).unwrap();
        ping("10.77.0.2", 3, 8);
        // As `kill -9` would leave it.
        std::mem::forget(first);
        ping("10.77.0.2", 4, 8);
        let mut second = pair.load();
        second.attach_underlay("eth0", index_of("eth0")).unwrap();
        ping("10.77.0.2", 5, 8);
        assert_eq!(pair.traffic(&second).rx_packets, 12);

        drop(second);
        let third = pair.load();
        ping("10.77.0.2", 6, 8);
        assert_eq!(pair.traffic(&third).tx_packets, 18);
        pair.make_wireguard(&pair.a, 1, &pair.private_a);
        pair.add_peer(&pair.a, &pair.key_b, "192.0.2.2:51820", "10.77.0.2/32,fd77::2/128,10.88.0.0/24");
        let mut third = third;
        third.attach_mesh().unwrap();
        ping("10.77.0.2", 7, 8);
        assert_eq!(pair.traffic(&third).rx_packets, 25);
        third.withdraw().unwrap();
    });
}

/// Found in a review: a link that was made anew between loading and the first look at it was not counted on.
#[test]
fn a_link_that_is_made_anew_while_the_programs_load_is_counted_on() {
    let pair = Pair::new("ebload");
    pair.in_a(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut traffic = Traffic::start(pair.settings());
            traffic.follow_link(index_of("wg0"));
            // Loading begins with the first look after three seconds of calm, and there is no second one before the link went.
            tokio::time::sleep(Duration::from_millis(3100)).await;
            let begun = tokio::time::timeout(Duration::ZERO, traffic.changed()).await;
            assert!(begun.is_err(), "{begun:?}");
            eventually(PATIENCE, || attached("wg0") == 2);
            pair.make_wireguard(&pair.a, 1, &pair.private_a);
            traffic.follow_link(index_of("wg0"));
            assert_eq!(attached("wg0"), 0);

            assert!(matches!(traffic.changed().await, Change::State));

            assert_eq!(attached("wg0"), 2);
            traffic.withdraw().await;
            eventually(PATIENCE, || attached("wg0") == 0);
        });
    });
}

/// What others put on the same interfaces stays, what is ours goes.
#[test]
fn withdrawing_leaves_nothing_of_ours_and_everything_of_others() {
    let pair = Pair::new("ebgone");
    pair.in_a(|| {
        run("tc", "qdisc add dev eth0 clsact");
        run("tc", "filter add dev eth0 ingress prio 5 protocol ip flower dst_ip 203.0.113.9 action drop");
        let foreign = filters("eth0");
        let mut ebpf = pair.load();
        ebpf.attach_underlay("eth0", index_of("eth0")).unwrap();
        assert_eq!(attached("wg0") + attached("eth0"), 4);

        ebpf.withdraw().unwrap();

        eventually(PATIENCE, || attached("wg0") + attached("eth0") == 0);
        assert_eq!(filters("eth0"), foreign);
        assert!(!pair.pins.exists());
    });
}

/// An upgrade may change the layout of a map.
#[test]
fn a_pinned_map_of_another_layout_is_made_anew() {
    let pair = Pair::new("eblay");
    pair.in_a(|| {
        std::fs::create_dir_all(&pair.pins).unwrap();
        for name in ["TRAFFIC", "NO_LONGER_USED"] {
            let old: Array<MapData, u64> = Array::create(3, 0).unwrap();
            old.pin(pair.pins.join(name)).unwrap();
        }

        let ebpf = pair.load();
        ping("10.77.0.2", 2, 8);

        assert_eq!(pair.traffic(&ebpf).rx_packets, 2);
        ebpf.withdraw().unwrap();
        assert!(!pair.pins.exists());
    });
}

/// A host without bpffs, or a folder that is not ours, is an error and no harm.
#[test]
fn without_a_place_for_pins_loading_fails_with_the_folder_in_the_message() {
    let interface = "wg0".parse().unwrap();
    let settings =
        EbpfSettings { pin_directory: PathBuf::from("/proc/wgmesh"), ..EbpfSettings::new(interface) };
    let error = EbpfTraffic::load(&settings).err().expect("/proc takes no folders");
    assert!(error.to_string().contains("/proc/wgmesh"), "{error}");
}

/// Two hosts on one cable, their WireGuard links configured by hand. The test stands in the first.
struct Pair {
    a: String,
    b: String,
    private_a: String,
    key_a: String,
    key_b: String,
    pins: PathBuf,
}

impl Pair {
    fn new(name: &str) -> Self {
        let (a, b) = (format!("{name}a"), format!("{name}b"));
        for space in [&a, &b] {
            run("ip", &format!("netns add {space}"));
        }
        run("ip", &format!("link add eth0 netns {a} type veth peer name eth0 netns {b}"));
        for (space, number) in [(&a, 1), (&b, 2)] {
            run("ip", &format!("-n {space} link set lo up"));
            run("ip", &format!("-n {space} address add 192.0.2.{number}/24 dev eth0"));
            run("ip", &format!("-n {space} link set eth0 addrgenmode none"));
            run("ip", &format!("-n {space} link set eth0 up"));
            run("ip", &format!("-n {space} address add fe80::{number}/64 dev eth0 nodad"));
        }
        let (private_a, private_b) = (run("wg", "genkey"), run("wg", "genkey"));
        let pair = Self {
            key_a: public_of(&private_a),
            key_b: public_of(&private_b),
            pins: Path::new("/sys/fs/bpf/wgmesh").join(name),
            private_a,
            a,
            b,
        };
        pair.make_wireguard(&pair.a, 1, &pair.private_a);
        pair.make_wireguard(&pair.b, 2, &private_b);
        pair.add_peer(&pair.a, &pair.key_b, "192.0.2.2:51820", "10.77.0.2/32,fd77::2/128,10.88.0.0/24");
        pair.add_peer(&pair.b, &pair.key_a, "192.0.2.1:51820", "10.77.0.1/32,fd77::1/128");
        pair
    }

    /// Makes the link, anew if it is there.
    fn make_wireguard(&self, space: &str, number: u8, private: &str) {
        let _ = Command::new("ip").args(["-n", space, "link", "del", "wg0"]).output();
        run("ip", &format!("-n {space} link add wg0 type wireguard"));
        let file = format!("/tmp/{space}.key");
        std::fs::write(&file, private).unwrap();
        run("ip netns exec", &format!("{space} wg set wg0 listen-port 51820 private-key {file}"));
        run("ip", &format!("-n {space} address add 10.77.0.{number}/24 dev wg0"));
        run("ip", &format!("-n {space} address add fd77::{number}/64 dev wg0 nodad"));
        run("ip", &format!("-n {space} link set wg0 up"));
    }

    fn add_peer(&self, space: &str, key: &str, endpoint: &str, allowed: &str) {
        let peer = format!("{space} wg set wg0 peer {key} endpoint {endpoint} allowed-ips {allowed}");
        run("ip netns exec", &peer);
    }

    fn in_a<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        inside(&self.a, body)
    }

    fn peers(&self) -> BTreeMap<PublicKey, BTreeSet<ipnet::IpNet>> {
        let nets = ["10.77.0.2/32", "fd77::2/128", "10.88.0.0/24"].map(|net| net.parse().unwrap());
        BTreeMap::from([(self.key_b.parse().unwrap(), BTreeSet::from(nets))])
    }

    fn settings(&self) -> EbpfSettings {
        let interface = "wg0".parse().unwrap();
        EbpfSettings { pin_directory: self.pins.clone(), ..EbpfSettings::new(interface) }
    }

    fn load(&self) -> EbpfTraffic {
        let start = Instant::now();
        let mut ebpf = EbpfTraffic::load(&self.settings()).unwrap();
        let loaded = start.elapsed();
        ebpf.sync_peers(&self.peers()).unwrap();
        ebpf.attach_mesh().unwrap();
        println!("eBPF: loaded in {loaded:?}, attached by {} in {:?}", ebpf.hook(), start.elapsed() - loaded);
        ebpf
    }

    fn traffic(&self, ebpf: &EbpfTraffic) -> PeerTraffic {
        ebpf.traffic().unwrap()[&self.key_b.parse().unwrap()]
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for space in [&self.a, &self.b] {
            let _ = Command::new("ip").args(["netns", "del", space]).output();
        }
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

/// Runs the body in a thread inside the namespace.
fn inside<R: Send>(space: &str, body: impl FnOnce() -> R + Send) -> R {
    let namespace = File::open(format!("/run/netns/{space}")).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a command in the caller's namespace and returns what it printed.
fn run(program: &str, arguments: &str) -> String {
    let line = format!("{program} {arguments}");
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn public_of(private: &str) -> String {
    let mut child = Command::new("wg")
        .arg("pubkey")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(private.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

/// Sends pings and demands an answer to each. One after the other, since `ping` waits for the last of several only twice as
/// long as the others took.
fn ping(address: &str, count: u32, size: u32) {
    for _ in 0..count {
        run("ping", &format!("-q -c 1 -W 5 -s {size} {address}"));
        std::thread::sleep(BETWEEN_PINGS);
    }
}

fn index_of(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}

fn index_in(space: &str, interface: &str) -> u32 {
    inside(space, || index_of(interface))
}

/// Bytes received and sent by the only peer, as WireGuard counts them.
fn wireguard_transfer() -> (u64, u64) {
    let line = run("wg show", "wg0 transfer");
    let numbers: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    (numbers[0], numbers[1])
}

fn latest_handshake() -> u64 {
    run("wg show", "wg0 latest-handshakes").split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How many programs of ours are on the interface, by whichever hook.
fn attached(interface: &str) -> usize {
    let tcx = [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| {
        let programs = SchedClassifier::query_tcx(interface, direction).map(|(_, programs)| programs);
        let ours = |program: &aya::programs::ProgramInfo| program.name().starts_with(b"wgmesh_");
        programs.map_or(0, |programs| programs.iter().filter(|program| ours(program)).count())
    });
    tcx.iter().sum::<usize>() + filters(interface).matches("direct-action").count()
}

fn filters(interface: &str) -> String {
    ["ingress", "egress"]
        .map(|direction| run("tc", &format!("filter show dev {interface} {direction}")))
        .concat()
}
