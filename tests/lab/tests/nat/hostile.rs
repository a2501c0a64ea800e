//! Who knows no secret, and sends to WireGuard's port and to the exchange all the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use wgmesh_lab::{Host, NatKind, Settings, eventually};

use super::{PATIENCE, World};
use crate::mesh::peers;

/// Where the stranger is.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// The introducer's exchange.
const EXCHANGE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 51900);

/// Issue "reach any peer", 5: replayed, truncated, changed and invented datagrams to WireGuard's port are dropped and
/// counted, move nothing, and are not answered.
#[test]
fn hostile_datagrams_on_wireguards_port_move_nothing_and_get_no_answer() {
    let internet = wgmesh_lab::Internet::new("stranger");
    let stun = wgmesh_lab::StunServers::start(&internet);
    let stranger = internet.server("stranger", &[STRANGER]);
    let pair = wgmesh_lab::Pair::start(&internet, 1, [NatKind::None, NatKind::None]);
    let recording = pair.sites[0].host.capture("eth0", "udp and port 51820");
    let world = World { pair, stun, internet };
    world.wait_direct();
    // What is on its way for longer is not answered, even if it never came before.
    std::thread::sleep(Duration::from_secs(5));
    let own = sealed_datagrams(&recording.finish());
    assert!(!own.is_empty(), "the two never checked their path");
    let targets = world.pair.sites.each_ref().map(|site| site.address);
    let before = world.pair.views().map(|view| view.endpoint);
    let ours = stranger.capture("eth0", "udp and dst host 192.0.2.200");

    let sent = stranger.namespace().run(move || attack(&own, targets));

    std::thread::sleep(Duration::from_secs(3));
    let answers = ours.finish();
    let answers = frames(&answers);
    assert!(answers.is_empty(), "{sent} datagrams of a stranger got answers: {answers:x?}");
    for daemon in &world.pair.daemons {
        let status = daemon.status_json();
        assert!(status["drops"]["seal"].as_u64().unwrap_or(0) > 0, "{}", status["drops"]);
    }
    assert_eq!(world.pair.views().map(|view| view.endpoint), before);
    assert!(world.is_direct() && world.pair.sites[0].host.pings(world.pair.mesh_ipv4(1)));
}

/// W-X18, M-33: another secret is another certificate, and nobody becomes a peer by it.
#[test]
fn a_node_with_another_secret_is_refused_by_the_exchange() {
    const OTHER: &str = "wgmesh://v1/HxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4";
    let world = World::meet("another-secret", [NatKind::None, NatKind::PortRestricted]);
    let host = world.internet.server("stranger", &[STRANGER]);
    let stranger = host.daemon(&Settings::new(OTHER).over_internet(&[EXCHANGE.0]));
    stranger.wait_ready();
    std::thread::sleep(Duration::from_secs(8));
    assert!(peers(&stranger).is_empty());
    assert_eq!(peers(&world.pair.introducer).len(), 2);
    assert!(world.is_direct());
}

/// X-5, W-X19: connections that say nothing, nonsense or too much neither stop the exchange nor fill it.
#[test]
fn hostile_connections_do_not_keep_others_from_the_exchange() {
    let internet = wgmesh_lab::Internet::new("connections");
    let stun = wgmesh_lab::StunServers::start(&internet);
    let stranger = internet.server("stranger", &[STRANGER]);
    let mut pair = wgmesh_lab::Pair::start(&internet, 1, [NatKind::None, NatKind::PortRestricted]);
    pair.meet(PATIENCE);
    let silent = connect(&stranger, 200);
    nonsense(&stranger);

    // A newcomer, which knows nobody any more.
    let left = &pair.sites[0];
    let settings = Settings::new(&std::fs::read_to_string(left.host.folder().join("secret")).unwrap());
    pair.daemons[0].signal(nix::sys::signal::Signal::SIGTERM);
    pair.daemons[0].wait_exit();
    std::fs::remove_dir_all(left.host.folder().join("state")).unwrap();
    pair.daemons[0] = left.host.daemon(&settings.over_internet(&[EXCHANGE.0]));

    let world = World { pair, stun, internet };
    eventually(PATIENCE, || world.is_direct());
    drop(silent);
}

/// Finds what is no WireGuard message among the UDP payloads of a capture (pcap, Ethernet, IPv4 without options):
/// WireGuard's begin with 1 to 4 and three zeros.
fn sealed_datagrams(pcap: &[u8]) -> Vec<Vec<u8>> {
    let frames = frames(pcap);
    let payloads =
        frames.iter().filter(|frame| frame.len() > 46 && frame[12..14] == [8, 0]).map(|frame| &frame[42..]);
    let ours = payloads.filter(|payload| payload[1..4] != [0, 0, 0] && payload[0] == 1);
    ours.map(<[u8]>::to_vec).collect()
}

/// Returns the frames of a capture.
pub(super) fn frames(pcap: &[u8]) -> Vec<&[u8]> {
    let mut rest = &pcap[24..];
    let mut found = Vec::new();
    while rest.len() > 16 {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        found.push(&rest[16..16 + length]);
        rest = &rest[16 + length..];
    }
    found
}

/// Sends and returns how many datagrams that were.
fn attack(own: &[Vec<u8>], targets: [Ipv4Addr; 2]) -> usize {
    let socket = UdpSocket::bind((STRANGER, 51820)).unwrap();
    let sample = &own[0];
    let mut datagrams = own.to_vec();
    datagrams.extend((1..sample.len()).step_by(7).map(|length| sample[..length].to_vec()));
    datagrams.extend((1..sample.len()).step_by(5).map(|position| {
        let mut changed = sample.clone();
        changed[position] ^= 0x55;
        changed
    }));
    // Every kind of envelope with nothing behind it, and a STUN answer to a question that nobody asked.
    datagrams.extend((0..=u8::MAX).map(|kind| [&[1, kind][..], &[0xa5; 90]].concat()));
    datagrams.push([&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat());
    datagrams.extend([vec![1; 1400], vec![0xff; 1201]]);
    for datagram in &datagrams {
        for target in targets {
            match socket.send_to(datagram, (target, 51820)) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                outcome => drop(outcome.unwrap()),
            }
        }
    }
    datagrams.len() * targets.len()
}

/// Opens connections and says nothing.
fn connect(stranger: &Host, count: usize) -> Vec<TcpStream> {
    stranger.namespace().run(move || {
        let address = SocketAddr::from(EXCHANGE);
        let one = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok();
        (0..count).map_while(|_| one()).collect()
    })
}

/// Says what is no TLS, and a TLS record that never ends.
fn nonsense(stranger: &Host) {
    for text in [
        vec![0; 100_000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [&[22, 3, 1, 0xff, 0xff][..], &[1; 9000]].concat(),
    ] {
        for mut stream in connect(stranger, 1) {
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            stream.write_all(&text).ok();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok();
            assert!(answer.len() < 64, "an alert, and no more: {} bytes", answer.len());
        }
    }
}
