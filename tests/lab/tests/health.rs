//! The slow, sure watch over tunnels on the real kernel: who is gone is given up and comes back, and who only hangs is not.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Lan, Pings, Settings, eventually};

use crate::mesh::{PATIENCE, SECRET, mesh_ipv4, node, peers, wait_meshed};

/// WireGuard's default port and 2000.
const PROBE_PORT: u16 = 53820;

/// A handshake may be fresh for 150 s; then come up to two checks of 20 s, and readings of 5 s.
const GOAL: Duration = Duration::from_secs(200);

/// By then it must be so, on whatever machine.
const LIMIT: Duration = Duration::from_secs(320);

/// Says a word to a port and returns what comes back.
fn ask(host: &Host, address: IpAddr, port: u16) -> io::Result<String> {
    host.namespace().run(move || {
        let patience = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"ping\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })
}

fn peer(of: &Daemon, key: &str) -> Value {
    peers(of).into_iter().find(|peer| peer["public_key"] == key).unwrap_or_default()
}

/// W-D24, W-D25, W-D26, X-15: inside the mesh every node answers, on a port that follows WireGuard's; outside nobody does.
#[test]
fn probes_are_answered_inside_the_mesh_only() {
    let lan = Lan::new("probes", 3);
    let settings = [Settings::new(SECRET), Settings::new(SECRET).with("listen_port = 50123")];
    let daemons: Vec<_> =
        lan.hosts.iter().zip(&settings).map(|(host, settings)| host.daemon(settings)).collect();
    for daemon in &daemons {
        daemon.wait_ready();
    }
    wait_meshed(&daemons);
    for family in ["mesh_ipv4", "mesh_ipv6"] {
        let addresses = [0, 1].map(|index| node(&daemons[index], family).parse::<IpAddr>().unwrap());
        assert_eq!(ask(&lan.hosts[0], addresses[1], 52123).unwrap(), "pong\n");
        assert_eq!(ask(&lan.hosts[1], addresses[0], PROBE_PORT).unwrap(), "pong\n");
    }
    let inner = mesh_ipv4(&daemons[0]);
    let outsider = &lan.hosts[2];
    outsider.run(["ip", "route", "add", &inner.to_string(), "via", &Lan::address(0).to_string()]);
    for address in [Lan::address(0), inner] {
        let refused = ask(outsider, address.into(), PROBE_PORT);
        assert!(refused.is_err(), "{address} answers an outsider: {refused:?}");
    }
}

/// W-D21, W-D22, W-D23, W-D27, W-D56, issue 4: one host is gone, another one's daemon hangs all the while.
#[test]
fn a_host_that_is_gone_is_given_up_and_comes_back_and_one_that_hangs_stays() {
    let lan = Lan::new("gone", 3);
    let mut daemons = crate::mesh::mesh(&lan, &Settings::new(SECRET));
    let [hung, gone] = [1, 2].map(|index| node(&daemons[index], "public_key"));
    let addresses = [1, 2].map(|index| mesh_ipv4(&daemons[index]));
    daemons[1].signal(Signal::SIGSTOP);
    daemons.pop().unwrap().kill();
    let host = &lan.hosts[2];
    host.run(["ip", "link", "del", "wgmesh0"]);
    host.run(["ip", "link", "set", "eth0", "down"]);
    let began = Instant::now();
    let pings = Pings::start(&lan.hosts[0], addresses[0], Duration::from_secs(1), 56);

    let told = |text: &str| {
        let peer = peer(&daemons[0], &gone);
        peer["state"] == "offline" && peer["why"].as_str().is_some_and(|why| why.contains(text))
    };
    let in_kernel = |key: &str| lan.hosts[0].run(["wg", "show", "wgmesh0", "peers"]).contains(key);
    eventually(LIMIT, || told("given up"));
    show("a host that is gone is given up", began.elapsed(), GOAL);
    eventually(PATIENCE, || !in_kernel(&gone));
    let health = daemons[0].status_json()["health"].clone();
    println!("{health}");
    assert!(
        health["stale"] == 1 && health["evicted"] == 1 && health["probes_lost"].as_u64() > Some(0),
        "{health}"
    );

    assert!(in_kernel(&hung));
    assert_eq!(peer(&daemons[0], &hung)["state"], "direct");
    let replies = pings.finish();
    let (first, last) = (replies.replies.first().unwrap(), replies.replies.last().unwrap());
    let lost = replies.lost_after(first.at - Duration::from_millis(1));
    println!("{} pings to the one that hangs, {lost} lost", last.sequence);
    assert_eq!(lost, 0, "the kernel goes on without its daemon");

    host.run(["ip", "link", "set", "eth0", "up"]);
    let back = host.daemon(&Settings::new(SECRET));
    back.wait_ready();
    let took = eventually(PATIENCE, || lan.hosts[0].pings(addresses[1]));
    show("it is reached again once it is back", took, Duration::from_secs(2));
    assert_eq!(peer(&daemons[0], &gone)["state"], "direct");
    daemons[1].signal(Signal::SIGCONT);
    daemons.push(back);
    wait_meshed(&daemons);
}

/// Prints a figure, also where the test passes.
fn show(what: &str, took: Duration, goal: Duration) {
    let verdict = if took < goal { "" } else { ", goal MISSED" };
    wgmesh_lab::show(&format!("{what}: {:.1} s{verdict} (goal {} s)", took.as_secs_f64(), goal.as_secs()));
}
