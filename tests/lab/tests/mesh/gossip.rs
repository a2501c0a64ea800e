//! Records over the mesh itself, on sockets that only the mesh reaches.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use wgmesh_lab::{Daemon, Host, Lan, Settings, eventually};

use super::{PATIENCE, SECRET, direct_peers, mesh_ipv4, node, peers};

/// How soon one node must learn of another through a third.
const GOAL: Duration = Duration::from_secs(20);

/// Three hosts that look for nobody, of which the first is told of the other two.
fn acquainted_by_the_first(lan: &Lan) -> Vec<Daemon> {
    let settings = Settings::new(SECRET)
        .with("[discovery]\nenabled_methods = [\"manual\", \"gossip\"]\n[nat]\nstun_servers = []");
    let daemons: Vec<_> = lan.hosts[..3].iter().map(|host| host.daemon(&settings)).collect();
    for daemon in &daemons {
        daemon.wait_ready();
    }
    for (number, daemon) in daemons.iter().enumerate().skip(1) {
        let peer = format!("{}@192.0.2.{}:51820", node(daemon, "public_key"), number + 1);
        let config = daemons[0].config().to_str().unwrap();
        let added = lan.hosts[0].wgmesh(["peer", "add", &peer, "--config", config]);
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    }
    daemons
}

/// Returns the port of a node's gossip, which another program reads from the kernel, with the link it is bound to.
fn gossip_port(host: &Host, daemon: &Daemon) -> u16 {
    let sockets = host.run(["ss", "-Hlun"]);
    let bound = format!("{}%wgmesh0:", mesh_ipv4(daemon));
    let found = sockets.lines().find_map(|line| line.split_once(&bound));
    let (_, rest) = found.unwrap_or_else(|| panic!("{bound} is not in {sockets}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

fn strangers(daemon: &Daemon) -> u64 {
    daemon.status_json()["drops"]["gossip of a stranger"].as_u64().unwrap_or(0)
}

/// Sends something from one address of a host to another host's mesh address.
fn send(host: &Host, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    host.namespace().run(move || {
        let socket = UdpSocket::bind(from).unwrap();
        socket.send_to(&[1; 40], to).unwrap();
    });
}

/// W-X13, W-X14, W-X15: nothing else could have told them.
#[test]
fn two_nodes_learn_of_each_other_only_through_a_third_and_meet() {
    let lan = Lan::new("gossip", 3);
    let daemons = acquainted_by_the_first(&lan);
    eventually(PATIENCE, || direct_peers(&daemons[0]) == 2);
    let begin = Instant::now();
    eventually(3 * GOAL, || direct_peers(&daemons[1]) == 2 && direct_peers(&daemons[2]) == 2);
    println!("met through a third after {:.2?}, goal {GOAL:?}", begin.elapsed());
    for (daemon, other) in [(&daemons[1], &daemons[2]), (&daemons[2], &daemons[1])] {
        let key = node(other, "public_key");
        let found = peers(daemon).into_iter().find(|peer| peer["public_key"] == key.as_str()).unwrap();
        let sources = found["sources"].to_string();
        assert!(sources.contains("gossip-transitive") && !sources.contains("lan"), "{sources}");
    }
    let sources = daemons[1].status_json()["sources"].to_string();
    assert!(sources.contains("\"gossip\"") && sources.contains("running"), "{sources}");
}

/// W-X13, W-X16, X-6: not from the underlay, not from another port, not in another node's name.
#[test]
fn gossip_is_taken_from_nobody_but_a_node_in_its_own_name() {
    let lan = Lan::new("spoof", 4);
    let daemons = acquainted_by_the_first(&lan);
    eventually(3 * GOAL, || daemons.iter().all(|daemon| direct_peers(daemon) == 2));
    let [target, other, liar] = [0, 1, 2].map(|number| mesh_ipv4(&daemons[number]));
    let port = gossip_port(&lan.hosts[0], &daemons[0]);
    let before = strangers(&daemons[0]);

    // The sockets do hear what comes in the mesh, or nothing below would show anything.
    send(&lan.hosts[2], (liar, 4000), (target, port));
    eventually(PATIENCE, || strangers(&daemons[0]) == before + 1);

    lan.hosts[2].run(["ip", "address", "add", &format!("{other}/32"), "dev", "lo"]);
    send(&lan.hosts[2], (other, port), (target, port));
    let outsider = &lan.hosts[3];
    outsider.run(["ip", "route", "add", &format!("{target}/32"), "via", "192.0.2.1"]);
    send(outsider, (Ipv4Addr::new(192, 0, 2, 4), port), (target, port));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(strangers(&daemons[0]), before + 1, "what another sent was heard");
    assert_eq!(daemons[0].status_json()["drops"]["malformed gossip"].as_u64(), None);
}
