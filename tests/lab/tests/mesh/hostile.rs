//! Bad input: from the disk, from the host, from the wire.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use wgmesh_lab::{Host, Lan, Settings};

use super::{SECRET, direct_peers, mesh, mesh_ipv4, node, peers, wait_meshed};

/// Runs a daemon that must refuse to start, and returns its log.
fn refusal(host: &Host, settings: &Settings) -> String {
    let mut daemon = host.daemon(settings);
    assert!(!daemon.wait_exit().success());
    let log = fs::read_to_string(host.folder().join("daemon.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    log
}

#[test]
fn a_foreign_interface_of_our_name_is_refused_and_left_alone() {
    let lan = Lan::new("foreign", 1);
    let host = &lan.hosts[0];
    for make in [
        vec!["ip", "link", "add", "wgmesh0", "type", "bridge"],
        vec!["ip", "link", "add", "wgmesh0", "up", "type", "wireguard"],
    ] {
        host.run(make);
        let before = host.run(["ip", "-d", "link", "show", "wgmesh0"]);
        let log = refusal(host, &Settings::new(SECRET));
        assert!(log.contains("wgmesh0"), "{log}");
        assert_eq!(host.run(["ip", "-d", "link", "show", "wgmesh0"]), before);
        host.run(["ip", "link", "del", "wgmesh0"]);
        println!("{}", log.lines().last().unwrap());
    }
}

#[test]
fn a_bad_configuration_and_a_bad_secret_are_named() {
    let lan = Lan::new("config", 1);
    let log = refusal(&lan.hosts[0], &Settings::new(SECRET).with("listen_prot = 51820"));
    assert!(log.contains("listen_prot") && log.contains("listen_port"), "{log}");
    let log = refusal(&lan.hosts[0], &Settings::new("too short"));
    assert!(log.contains("9 characters") && !log.contains("too short"), "{log}");
}

/// W-D43.
#[test]
fn a_port_in_use_is_reported_and_the_next_one_taken() {
    let lan = Lan::new("port", 2);
    let taken = lan.hosts[0].namespace().run(|| UdpSocket::bind("0.0.0.0:51820").unwrap());
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let status = daemons[0].status_json();
    assert_eq!(status["node"]["listen_port"], 51821);
    assert!(status["problems"][0].as_str().unwrap().contains("51820"), "{status}");
    assert!(lan.hosts[1].pings(mesh_ipv4(&daemons[0])));
    drop(taken);
}

/// L-8: kept aside, never lost.
#[test]
fn broken_state_files_are_kept_aside_and_the_node_starts_anew() {
    let lan = Lan::new("corrupt", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let key = node(&daemons[0], "public_key");
    let state = lan.hosts[0].folder().join("state");
    daemons.into_iter().for_each(wgmesh_lab::Daemon::stop);
    for name in ["wgmesh0.json", "wgmesh0-peers.json"] {
        let whole = fs::read(state.join(name)).unwrap();
        fs::write(state.join(name), &whole[..whole.len() / 2]).unwrap();
    }
    let daemons = mesh(&lan, &Settings::new(SECRET));
    assert_ne!(node(&daemons[0], "public_key"), key, "the key was in the half that is gone");
    let kept = fs::read_dir(&state).unwrap().flatten();
    let kept = kept.filter(|file| file.file_name().to_string_lossy().contains("corrupt")).count();
    assert_eq!(kept, 2);
    assert!(lan.hosts[1].pings(mesh_ipv4(&daemons[0])));
}

/// Truncated, oversized, random, replayed and self-sent datagrams: dropped, counted, and nothing moves. An announce that is
/// replayed is no more than old news.
#[test]
fn hostile_datagrams_are_counted_and_move_nothing() {
    let lan = Lan::new("hostile", 3);
    let (members, outsider) = (&lan.hosts[..2], &lan.hosts[2]);
    let recording = outsider.capture(lan.links[2].interface(), "udp and dst net 239.0.0.0/8");
    let hellos = members[0].capture(lan.links[0].interface(), "udp port 51831");
    let daemons: Vec<_> = members.iter().map(|host| host.daemon(&Settings::new(SECRET))).collect();
    for daemon in &daemons {
        daemon.wait_ready();
    }
    wait_meshed(&daemons);
    std::thread::sleep(Duration::from_secs(2));
    let announces = announces(&recording.finish());
    assert!(announces.len() >= 2, "both announced");
    let group = announces[0].0;
    let hellos = payloads(&hellos.finish());
    assert!(hellos.len() >= 2, "both said hello");
    outsider.namespace().run(move || attack(group, &announces, &hellos));
    std::thread::sleep(Duration::from_secs(2));
    for (number, daemon) in daemons.iter().enumerate() {
        let status = daemon.status_json();
        let drops = &status["drops"];
        for reason in ["size", "seal", "self", "replayed"] {
            assert!(drops[reason].as_u64().unwrap_or(0) > 0, "{reason}: {drops}");
        }
        let other = format!("192.0.2.{}:51820", 2 - number);
        assert_eq!(peers(daemon)[0]["path"]["endpoint"], other, "{status}");
        assert_eq!(direct_peers(daemon), 1);
    }
    assert!(members[0].pings(mesh_ipv4(&daemons[1])));
}

/// Finds the datagrams to a mesh's group in a capture file (pcap, Ethernet, IPv4 without options).
fn announces(pcap: &[u8]) -> Vec<(Ipv4Addr, Vec<u8>)> {
    let mut rest = &pcap[24..];
    let mut found = Vec::new();
    while rest.len() > 16 {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let frame = &rest[16..16 + length];
        let group: [u8; 4] = frame[30..34].try_into().unwrap();
        found.push((Ipv4Addr::from(group), frame[42..].to_vec()));
        rest = &rest[16 + length..];
    }
    found
}

/// Finds what UDP carried in a capture file of either version of IP, without options and extension headers.
fn payloads(pcap: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = &pcap[24..];
    let mut found = Vec::new();
    while rest.len() > 16 {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let frame = &rest[16..16 + length];
        let is_ipv6 = frame[12..14] == [0x86, 0xdd];
        found.push(frame[if is_ipv6 { 62 } else { 42 }..].to_vec());
        rest = &rest[16 + length..];
    }
    found
}

fn attack(group: Ipv4Addr, announces: &[(Ipv4Addr, Vec<u8>)], hellos: &[Vec<u8>]) {
    let socket = UdpSocket::bind("192.0.2.3:0").unwrap();
    let targets: Vec<SocketAddr> = vec![
        (group, 51830).into(),
        (Ipv4Addr::new(192, 0, 2, 1), 51831).into(),
        (Ipv4Addr::new(192, 0, 2, 2), 51831).into(),
    ];
    let mut datagrams: Vec<Vec<u8>> = announces.iter().map(|(_, bytes)| bytes.clone()).collect();
    datagrams.extend_from_slice(hellos);
    let sample = datagrams[0].clone();
    datagrams.extend((0..sample.len()).step_by(7).map(|length| sample[..length].to_vec()));
    datagrams.extend((0..sample.len()).step_by(5).map(|position| {
        let mut changed = sample.clone();
        changed[position] ^= 0x55;
        changed
    }));
    datagrams.extend([vec![1; 1400], vec![0xff; 1201], vec![0; 60]]);
    for target in targets {
        for datagram in &datagrams {
            match socket.send_to(datagram, target) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                outcome => drop(outcome.unwrap()),
            }
        }
    }
}
