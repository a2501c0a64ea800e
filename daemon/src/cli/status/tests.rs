use wgmesh_core::key::SecretKey;
use wgmesh_core::status::{DhtStatus, Dial, Ebpf, Kernel, Node, Relay, RelayTraffic, Source};

use super::*;

pub(crate) fn example() -> Status {
    let key = |seed| SecretKey::from_random([seed; 32]).public();
    let peer = |seed, name: &str, state| Peer {
        public_key: key(seed),
        hostname: Some(name.parse().unwrap()),
        mesh_ipv4: [10, 42, 0, seed].into(),
        mesh_ipv6: format!("fd00::{seed}").parse().unwrap(),
        state,
        path: None,
        last_handshake_s: None,
        handshake_seen_s: None,
        rx_bytes: 0,
        tx_bytes: 0,
        ebpf: None,
        reputation: None,
        sources: vec!["lan".into()],
        routes: Vec::new(),
        why: None,
    };
    let direct = Peer {
        path: Some(Path {
            kind: "lan".into(),
            endpoint: "192.168.7.2:51820".parse().unwrap(),
            relay: None,
            rtt_ms: None,
            mtu: None,
        }),
        last_handshake_s: Some(12),
        rx_bytes: 3_500_000,
        tx_bytes: 924,
        ebpf: Some(Traffic {
            rx_bytes: 3_400_000,
            rx_packets: 2_500,
            tx_bytes: 840,
            tx_packets: 10,
            ..Traffic::default()
        }),
        sources: vec!["lan".into(), "cache".into()],
        ..peer(2, "db1", PeerState::Direct)
    };
    Status {
        version: "0.1.0".into(),
        uptime_s: 185,
        node: Node {
            interface: "wgmesh0".parse().unwrap(),
            public_key: key(1),
            hostname: "web1".parse().unwrap(),
            mesh_ipv4: [10, 42, 0, 1].into(),
            mesh_ipv6: "fd00::1".parse().unwrap(),
            listen_port: Some(51820),
            exchange_port: Some(51900),
            nat_type: Some("port-restricted".into()),
            mapped: Some("198.51.100.7:51820".parse().unwrap()),
        },
        peers: vec![direct, peer(3, "db2", PeerState::Connecting), peer(4, "db3", PeerState::Offline)],
        sources: vec![Source {
            name: "lan".into(),
            state: SourceState::Running,
            last_ok_s: Some(1),
            error: None,
            dht: None,
        }],
        sessions: Vec::new(),
        dials: Vec::new(),
        shut_out: Vec::new(),
        privacy: None,
        ebpf: Ebpf { active: true, attachment: Some("tcx".into()), ..Ebpf::default() },
        kernel: Kernel {
            release: "6.12.9".into(),
            converged: true,
            readings: 9,
            writes: 7,
            ..Kernel::default()
        },
        relay: Relay::default(),
        health: Health::default(),
        drops: [("seal".to_owned(), 3)].into(),
        relays_left: BTreeMap::new(),
        problems: Vec::new(),
    }
}

/// W-D57: the account that an operator reads, to the letter.
#[test]
fn the_account_reads_like_this() {
    let expected = "\
web1 on wgmesh0, up 3 min 5 s
  address   10.42.0.1, fd00::1
  key       pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=
  port      51820
  exchange  TCP port 51900
  NAT       port-restricted, seen at 198.51.100.7:51820
  kernel    6.12.9, as it should be (7 writes)
  eBPF      counting (tcx)
  sources   lan
  dropped   seal 3

NAME  ADDRESS    STATE       PATH                   HANDSHAKE  RECEIVED   SENT  EBPF IN/OUT                  VIA
db1   10.42.0.2  direct      lan 192.168.7.2:51820   12 s ago   3.3 MiB  924 B  3.2 MiB (2500) / 840 B (10)  lan, cache
db2   10.42.0.3  connecting  -                          never       0 B    0 B  -                            lan
db3   10.42.0.4  offline     -                          never       0 B    0 B  -                            lan
";
    assert_eq!(render(&example(), Style::default()), expected);
}

/// W-D21, W-D27: what the slow watch had to do is told once there was anything.
#[test]
fn tunnels_that_were_stale_are_counted() {
    let mut status = example();
    status.health = Health { stale: 2, probes_answered: 1, probes_lost: 9, offline: 1, evicted: 1 };
    let text = render(&status, Style::default());
    let line = "\n  health    2 tunnels stale, 1 peers given up, 1 left out for a while, 9 probes lost\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn the_wide_account_has_whole_keys() {
    let text = render(&example(), Style { wide: true, colour: false });
    for peer in example().peers {
        assert!(text.contains(&peer.public_key.to_string()), "{text}");
        assert!(text.contains(&peer.mesh_ipv6.to_string()), "{text}");
    }
}

/// W-D57: a peer that cannot be reached says why, below the table; a long list is cut unless all is asked for.
#[test]
fn what_is_wrong_with_a_peer_is_told_below_the_table() {
    let mut status = example();
    status.peers[1].why = Some("both NATs are symmetric".into());
    let text = render(&status, Style::default());
    assert!(text.ends_with("\n\ndb2: both NATs are symmetric\n"), "{text}");

    status.peers = (0..12)
        .map(|_| Peer { why: Some("it has not answered".into()), ..status.peers[1].clone() })
        .collect();
    let text = render(&status, Style::default());
    assert_eq!(text.matches("db2: it has not answered").count(), 10, "{text}");
    assert!(text.ends_with("\n... and 2 more: see `wgmesh status --wide`\n"), "{text}");
    let text = render(&status, Style { wide: true, colour: false });
    assert_eq!(text.matches("db2: it has not answered").count(), 12, "{text}");
}

/// What a relay does for others is told where it does or would do anything.
#[test]
fn what_is_passed_on_for_others_is_told() {
    let mut status = example();
    assert!(!render(&status, Style::default()).contains("relay"));
    let traffic = RelayTraffic { packets: 10, bytes: 2048, ..RelayTraffic::default() };
    status.relay = Relay { serving: true, pairs: 2, max_pairs: 1024, routed_pairs: 3, traffic };
    let text = render(&status, Style::default());
    let expected =
        "\n  relay     for 2 of at most 1024 pairs, 2.0 KiB passed on in 10 packets, routing for 3 pairs\n";
    assert!(text.contains(expected), "{text}");
}

/// Issue 4, 3: counted for whoever wonders why packets took another way.
#[test]
fn relays_that_were_left_are_told_by_why() {
    let mut status = example();
    assert!(!render(&status, Style::default()).contains("left"));
    status.relays_left = [("dead".to_owned(), 1), ("floods".to_owned(), 2)].into();
    let text = render(&status, Style::default());
    assert!(text.contains("\n  left      relays: dead 1, floods 2\n"), "{text}");
}

#[test]
fn what_is_not_known_of_the_nat_is_left_out() {
    let mut status = example();
    (status.node.exchange_port, status.node.nat_type, status.node.mapped) = (None, None, None);
    let text = render(&status, Style::default());
    assert!(!text.contains("exchange") && !text.contains("NAT"), "{text}");
    status.node.nat_type = Some("unknown".into());
    assert!(render(&status, Style::default()).contains("\n  NAT       unknown\n"));
}

#[test]
fn what_the_kernel_relays_for_others_is_told_where_it_does() {
    let mut status = example();
    assert!(!render(&status, Style::default()).contains("relaying"));
    (status.ebpf.relayed_flows, status.ebpf.relayed_packets) = (4, 1234);
    let text = render(&status, Style::default());
    assert!(text.contains("\n  eBPF      counting (tcx), relaying 4 flows (1234 packets)\n"), "{text}");
}

#[test]
fn of_the_dht_it_is_told_how_many_nodes_answer() {
    let mut status = example();
    status.sources[0].name = "dht".into();
    status.sources[0].dht = Some(DhtStatus { nodes: 21, last_stored_s: Some(40) });
    let text = render(&status, Style::default());
    assert!(text.contains("\n  sources   dht (21 nodes answer)\n"), "{text}");
}

#[test]
fn only_a_terminal_sees_colours_and_every_colour_ends() {
    assert!(!render(&example(), Style::default()).contains('\x1b'));
    let text = render(&example(), Style { wide: false, colour: true });
    assert!(text.contains(&format!("{RED}db3")), "{text:?}");
    assert!(text.lines().all(|line| !line.contains('\x1b') || line.ends_with(PLAIN)), "{text:?}");
}

#[test]
fn trouble_is_told_in_words() {
    let mut status = example();
    status.peers.clear();
    status.ebpf = Ebpf { error: Some("no permission".into()), ..Ebpf::default() };
    status.kernel = Kernel { error: Some("port 51820 is taken".into()), converged: false, ..status.kernel };
    status.sources[0] =
        Source { state: SourceState::Failing, error: Some("no link".into()), ..status.sources[0].clone() };
    status.problems = vec!["port 51820 is in use".into()];
    let text = render(&status, Style::default());
    for line in [
        "  eBPF      off: no permission",
        "  kernel    6.12.9, refuses: port 51820 is taken (7 writes)",
        "  sources   lan (failing: no link)",
        "  problem   port 51820 is in use",
        "No peers yet.",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line:?} in {text}");
    }
}

/// M-4: a host that was named with `peer add` goes by that name, whichever of its addresses is dialed, and by each that it has.
#[test]
fn a_dial_goes_by_the_names_of_its_host() {
    let called = |name: &str| Dial { names: vec!["mesh9".to_owned(), name.to_owned()], ..in_vain() };
    assert!(called("mesh1").is_called("mesh1") && called("mesh1 (192.0.2.1)").is_called("mesh1"));
    assert!(!called("mesh12").is_called("mesh1") && !in_vain().is_called(""));
}

/// Found in a review: what failed of eBPF while the rest counted was to be seen in the JSON only.
#[test]
fn a_part_of_ebpf_that_fails_is_shown() {
    let mut status = example();
    (status.ebpf.active, status.ebpf.error) = (true, Some("no room".to_owned()));
    let text = render(&status, Style::default());
    assert!(text.contains("; not all of it: no room\n"), "{text}");
}

fn in_vain() -> Dial {
    Dial {
        names: Vec::new(),
        address: "203.0.113.7:51900".parse().unwrap(),
        public_key: None,
        connected: false,
        tried_s: Some(12),
        took_ms: Some(40),
        failures: 3,
        error: Some("connection refused".to_owned()),
    }
}

/// P-2: an address that is dialed in vain is shown, with what was tried and how long that took; others are not.
#[test]
fn dials_in_vain_are_shown() {
    let mut status = example();
    let dial = in_vain();
    let good = Dial { connected: true, failures: 1, ..dial.clone() };
    let fresh = Dial { failures: 0, tried_s: None, took_ms: None, error: None, ..dial.clone() };
    status.dials = vec![good, fresh, dial];
    let text = render(&status, Style::default());
    let lines: Vec<_> = text.lines().filter(|line| line.contains("dials")).collect();
    let expected =
        "  dials     203.0.113.7:51900 3 times in vain, last 12 s ago for 40 ms: connection refused";
    assert_eq!(lines, [expected]);
}

/// The field names that scripts depend on (DESIGN 11).
#[test]
fn the_json_has_the_documented_names() {
    let json = serde_json::to_value(example()).unwrap();
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(json["node"]["public_key"].is_string());
    for name in ["hostname", "mesh_ipv4", "mesh_ipv6", "listen_port"] {
        assert!(names(&json["node"]).contains(&name.to_owned()), "{name}");
    }
    let peer = &json["peers"][0];
    for name in ["public_key", "hostname", "mesh_ipv4", "mesh_ipv6", "state", "path", "last_handshake_s"] {
        assert!(names(peer).contains(&name.to_owned()), "{name}");
    }
    assert_eq!(peer["state"], "direct");
    assert_eq!(names(&peer["path"]), ["endpoint", "kind"]);
    assert!(
        !names(&json["peers"][1]).contains(&"last_handshake_s".to_owned()),
        "what is unknown is left out"
    );
    assert_eq!(json["sources"][0]["state"], "running");
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), example());
}

/// W-D11: whoever reads the table sees that a relay may read.
#[test]
fn a_peer_behind_a_relay_that_routes_is_told_from_one_behind_a_sealed_one() {
    let mut peer = example().peers[0].clone();
    peer.state = PeerState::Relayed;
    assert_eq!(state(&peer), "relayed");
    peer.path.as_mut().unwrap().kind = "routed".into();
    assert_eq!(state(&peer), "relayed (routed)");
}
