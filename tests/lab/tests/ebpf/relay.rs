//! Two hosts that share no network, and a third one that relays between them in eBPF alone: no daemon runs, no
//! forwarding is switched on, and nothing listens to the relay's ports unless a test says so.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use wgmesh::ebpf::{EbpfSettings, EbpfTraffic, Relayed as Sum};
use wgmesh::relay::Rates;
use wgmesh_lab::{Family, Host, INNER, Pings, RELAY_PORTS, Relayed, WIREGUARD_PORT, bind_udp, eventually};

/// WireGuard flows through a relay whose kernel alone carries it, whoever fills in the checksums.
#[test]
fn wireguard_flows_through_a_relay_in_both_families_with_and_without_offloaded_checksums() {
    let relayed = Relayed::new("erflow");
    for family in [Family::V4, Family::V6] {
        // Of the other version of IP, whose flows end.
        let (before, ebpf) = with(&relayed, load(&relayed, family), |ebpf| ebpf.relayed().unwrap().packets);
        relayed.wire(family.endpoints());
        let mut expected = before;
        for (sender, relay) in [("on", "on"), ("on", "off"), ("off", "off"), ("off", "on")] {
            relayed.left.run(["ethtool", "-K", "eth0", "tx", sender]);
            relayed.right.run(["ethtool", "-K", "eth0", "tx", sender]);
            relayed.relay.run(["ethtool", "-K", "eth0", "tx", relay]);
            relayed.relay.run(["ethtool", "-K", "eth1", "tx", relay]);
            // 56 bytes fill one sealed message, 1,392 the mesh's MTU.
            for size in ["56", "1392"] {
                ping(&relayed, 10, size);
                expected += 20;
            }
        }
        let (sum, _ebpf) = with(&relayed, ebpf, |ebpf| ebpf.relayed().unwrap());
        println!("relayed over {family:?}: {sum:?}");
        assert_eq!(sum.flows, 2);
        // Beside the pings: two handshake messages, and at most some keepalives and one more handshake.
        assert!((expected + 2..expected + 12).contains(&sum.packets), "{sum:?} for {expected} pings");
        for host in [&relayed.left, &relayed.relay, &relayed.right] {
            assert_eq!(
                unserved(host),
                0,
                "packets that found no socket, or had a bad checksum, on {}",
                host.name()
            );
        }
    }
}

/// Relayed packets flow on while the relay's daemon is killed, away, and back, and end when it stops.
#[test]
fn relayed_packets_outlive_the_daemon_until_it_withdraws() {
    let relayed = Relayed::new("erkeep");
    let ebpf = load(&relayed, Family::V4);
    relayed.wire(Family::V4.endpoints());
    ping(&relayed, 2, "56");
    let began = SystemTime::now();
    let right = INNER[1].parse::<IpAddr>().unwrap();
    let pings = Pings::start(&relayed.left, right, Duration::from_millis(10), 56);
    // As `kill -9` leaves it; then as a daemon begins that knows of no pair.
    relayed.relay.namespace().run(|| std::mem::forget(ebpf));
    let underlay = relayed.underlay();
    let ebpf = relayed.relay.namespace().run(move || {
        let mut ebpf = EbpfTraffic::load(&settings()).unwrap();
        ebpf.relay_through(&underlay).unwrap();
        ebpf.relay_for(&[]).unwrap();
        ebpf
    });
    let pairs = [Family::V4.forwarding()];
    let (sum, ebpf) = with(&relayed, ebpf, move |ebpf| {
        ebpf.relay_for(&pairs).unwrap();
        ebpf.relayed().unwrap()
    });
    ping(&relayed, 2, "56");
    let replies = pings.finish();
    assert_eq!(replies.replies.first().map(|reply| reply.sequence), Some(1), "the first one is answered");
    assert_eq!(replies.lost_after(began), 0, "of {}", replies.sent());
    assert!(sum.packets > 4, "the counts go on: {sum:?}");
    let (flows, ebpf) = with(&relayed, ebpf, |ebpf| {
        ebpf.relay_for(&[]).unwrap();
        let ended = ebpf.relayed().unwrap();
        ebpf.relay_for(&[Family::V4.forwarding()]).unwrap();
        [ended, ebpf.relayed().unwrap()]
    });
    assert_eq!(flows.map(|sum| sum.flows), [0, 2], "what is known again ends with its pair");
    assert!(flows.iter().all(|later| later.packets > sum.packets), "{flows:?} after {sum:?}");

    relayed.relay.namespace().run(move || ebpf.withdraw().unwrap());

    relayed.relay.namespace().run(|| {
        eventually(super::PATIENCE, || super::attached("eth0") + super::attached("eth1") == 0);
        assert!(!settings().pin_directory.exists());
    });
    assert!(!relayed.left.pings(right));
}

/// `[relay] serve = false` counts from the restart that takes it up, for what the run before has left in the kernel as well.
#[test]
fn a_host_that_relays_no_longer_ends_what_was_left() {
    let relayed = Relayed::new("erend");
    let ebpf = load(&relayed, Family::V4);
    relayed.wire(Family::V4.endpoints());
    ping(&relayed, 2, "56");
    relayed.relay.namespace().run(|| std::mem::forget(ebpf));
    let underlay = relayed.underlay();
    let (flows, ebpf) = relayed.relay.namespace().run(move || {
        let mut ebpf = EbpfTraffic::load(&EbpfSettings { serves: false, ..settings() }).unwrap();
        ebpf.relay_through(&underlay).unwrap();
        ebpf.relay_for(&[]).unwrap();
        (ebpf.relayed().unwrap().flows, ebpf)
    });
    assert_eq!(flows, 0);
    assert!(!relayed.left.pings(INNER[1].parse::<IpAddr>().unwrap()));
    relayed.relay.namespace().run(move || ebpf.withdraw().unwrap());
}

/// The kernel sends on what is surely right. The daemon gets the rest, binds and strangers first of all.
#[test]
fn what_is_odd_or_for_the_daemon_reaches_its_socket_unchanged() {
    let relayed = Relayed::new("erodd");
    let ebpf = load(&relayed, Family::V4);
    let there = Family::V4.endpoints()[0];
    let socket = |host: &Host, port| host.namespace().run(move || bound(port));
    let (left, right) = (socket(&relayed.left, WIREGUARD_PORT), socket(&relayed.right, WIREGUARD_PORT));
    let (stranger, daemon) =
        (socket(&relayed.left, WIREGUARD_PORT + 1), socket(&relayed.relay, RELAY_PORTS[0]));
    let send = |socket: &UdpSocket, start: [u8; 4], length: usize| {
        let datagram = [start.as_slice(), &vec![7; length - 4]].concat();
        socket.send_to(&datagram, there).unwrap();
        datagram
    };
    let (wireguard, probe, bind) = ([4, 0, 0, 0], [1, 3, 9, 9], [1, 4, 9, 9]);

    for start in [wireguard, probe, [1, 0, 0, 0]] {
        let sent = send(&left, start, 1400);
        assert_eq!(received(&right), Some((Family::V4.endpoints()[1], sent)));
    }
    for start in [bind, [5, 0, 0, 0], [4, 0, 0, 1], [0; 4]] {
        let sent = send(&left, start, 100);
        assert_eq!(received(&daemon).map(|(_, datagram)| datagram), Some(sent), "{start:?}");
    }
    let sent = send(&stranger, wireguard, 100);
    assert_eq!(received(&daemon).map(|(_, datagram)| datagram), Some(sent), "another source port");
    let sent = send(&left, wireguard, 3000);
    assert_eq!(received(&daemon).map(|(_, datagram)| datagram), Some(sent), "fragments");
    left.set_ttl(1).unwrap();
    let sent = send(&left, wireguard, 100);
    assert_eq!(received(&daemon).map(|(_, datagram)| datagram), Some(sent), "nothing left to live");
    left.set_ttl(64).unwrap();
    without_checksums(&left, true);
    let sent = send(&left, wireguard, 100);
    assert_eq!(received(&daemon).map(|(_, datagram)| datagram), Some(sent), "no checksum");
    without_checksums(&left, false);

    relayed.relay.run(["ip", "link", "set", "eth1", "mtu", "1300"]);
    let underlay = relayed.underlay();
    let ((), _ebpf) = with(&relayed, ebpf, move |ebpf| ebpf.relay_through(&underlay).unwrap());
    let sent = send(&left, wireguard, 1300 - 28 + 1);
    assert_eq!(received(&daemon).map(|(_, datagram)| datagram), Some(sent), "too long for the way out");
    let sent = send(&left, wireguard, 1300 - 28);
    assert_eq!(received(&right).map(|(_, datagram)| datagram), Some(sent), "as long as the way out takes");
    assert_eq!(received(&daemon), None);
}

/// W-D12: of data no more is passed on than the limit says, be it that of a flow or of all; a probe comes through then too.
#[test]
fn what_is_beyond_a_limit_is_dropped_and_counted() {
    let relayed = Relayed::new("errate");
    let slow = NonZeroU32::new(1);
    for rates in [Rates { flow: slow, all: None }, Rates { flow: None, all: slow }] {
        for (family, any) in [(Family::V4, "0.0.0.0"), (Family::V6, "::")] {
            let mut ebpf = load_with(&relayed, family, rates);
            let socket = |host: &Host| host.namespace().run(move || bound_to(any, WIREGUARD_PORT));
            let (left, right) = (socket(&relayed.left), socket(&relayed.right));
            let there = family.endpoints()[0];
            let (mut sent, mut sum) = (0, Sum::default());
            while sum.limited == 0 {
                assert!(sent < 10_000, "the limit holds nothing back: {sum:?} with {rates:?}");
                for _ in 0..10 {
                    left.send_to(&[&[4, 0, 0, 0], [7; 1_396].as_slice()].concat(), there).unwrap();
                    sent += 1;
                }
                (sum, ebpf) = with(&relayed, ebpf, |ebpf| ebpf.relayed().unwrap());
            }
            println!("{rates:?} over {family:?}: of {sent} packets {sum:?}");
            // What passes at once is a fifth of a second's worth.
            assert!(sum.packets >= 17, "{sum:?} of {sent}");
            left.send_to(&[1, 3, 9, 9], there).unwrap();
            while received(&right).expect("the probe comes").1 != [1, 3, 9, 9] {}
            relayed.relay.namespace().run(move || ebpf.withdraw().unwrap());
        }
    }
}

/// Relays as the daemon would.
fn load(relayed: &Relayed, family: Family) -> EbpfTraffic {
    load_with(relayed, family, Rates::default())
}

fn load_with(relayed: &Relayed, family: Family, rates: Rates) -> EbpfTraffic {
    let (underlay, pairs) = (relayed.underlay(), [family.forwarding()]);
    relayed.relay.namespace().run(move || {
        let mut ebpf = EbpfTraffic::load(&EbpfSettings { rates, ..settings() }).unwrap();
        ebpf.relay_through(&underlay).unwrap();
        ebpf.relay_for(&pairs).unwrap();
        ebpf
    })
}

/// Runs something with the programs where they are.
fn with<T: Send + 'static>(
    relayed: &Relayed,
    mut ebpf: EbpfTraffic,
    body: impl FnOnce(&mut EbpfTraffic) -> T + Send + 'static,
) -> (T, EbpfTraffic) {
    relayed.relay.namespace().run(move || (body(&mut ebpf), ebpf))
}

/// Sends pings and demands an answer to each: one after the other, as [`super::ping`] does.
fn ping(relayed: &Relayed, count: u32, size: &str) {
    for _ in 0..count {
        relayed.left.run(["ping", "-q", "-c", "1", "-W", "5", "-s", size, INNER[1]]);
    }
}

fn settings() -> EbpfSettings {
    EbpfSettings::new("wgmesh0".parse().unwrap())
}

fn bound(port: u16) -> UdpSocket {
    bound_to("0.0.0.0", port)
}

fn bound_to(address: &str, port: u16) -> UdpSocket {
    let socket = bind_udp((address, port));
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn received(socket: &UdpSocket) -> Option<(SocketAddr, Vec<u8>)> {
    let mut buffer = vec![0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    buffer.truncate(length);
    Some((from, buffer))
}

/// Sends packets whose UDP checksum is zero, which in IPv4 means that there is none (RFC 768).
fn without_checksums(socket: &UdpSocket, without: bool) {
    use std::os::fd::AsRawFd as _;
    let value = nix::libc::c_int::from(without);
    // SAFETY: the option takes an int, which is passed with its size, and the socket is open.
    let result = unsafe {
        nix::libc::setsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            nix::libc::SO_NO_CHECK,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(result, 0);
}

/// UDP packets of both families that found no socket or had a wrong checksum, as the kernel counts them.
fn unserved(host: &Host) -> u64 {
    let counters = host.run(["cat", "/proc/net/snmp6"]);
    let v6 = counters.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next()?, "Udp6NoPorts" | "Udp6InCsumErrors")
            .then(|| words.next()?.parse::<u64>().ok())?
    });
    let table = host.run(["cat", "/proc/net/snmp"]);
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let v4 = names
        .split(' ')
        .zip(values.split(' '))
        .filter(|(name, _)| ["NoPorts", "InCsumErrors"].contains(name));
    v6.sum::<u64>() + v4.map(|(_, value)| value.parse::<u64>().unwrap()).sum::<u64>()
}
