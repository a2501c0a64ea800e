//! The main job, shown: three hosts that have nothing in common but a secret; started in the lab's VM by
//! `cargo xtask demo`.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Lan, Probe, Settings, eventually};

/// What the hosts have in common.
const SECRET: &str = "wgmesh://v1/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two pings of a pair that waits for its first answer.
const PING_INTERVAL: Duration = Duration::from_millis(5);

fn main() {
    let lan = Lan::new("demo", 3);
    let hosts: Vec<&Host> = lan.hosts.iter().collect();
    println!("\nThree hosts on a switch. Each gets the same secret, and nothing else.");
    let daemons: Vec<Daemon> = hosts.iter().map(|host| host.daemon(&Settings::new(SECRET))).collect();
    let answers = Probe::until_meshed(&hosts, PING_INTERVAL, PATIENCE);
    let took = answers[answers.len() - 1].at - daemons[0].started();
    eventually(PATIENCE, || daemons.iter().all(is_counted));

    let peer = address(&daemons[1]);
    let config = daemons[0].config().display().to_string();
    show(hosts[0], &["ping", "-c", "3", "-i", "0.2", &peer.to_string()]);
    show(hosts[0], &["wgmesh", "status", "--config", &config]);
    show_counters(&daemons[0], peer);
    println!(
        "\nFrom the first daemon's start until each of the three had pinged the other two: {:.2} s.",
        took.as_secs_f64()
    );
}

fn address(daemon: &Daemon) -> Ipv4Addr {
    let status = daemon.status_json();
    status["node"]["mesh_ipv4"].as_str().and_then(|text| text.parse().ok()).expect("a status has it")
}

/// Tells whether the eBPF programs count and every tunnel is known to be up.
fn is_counted(daemon: &Daemon) -> bool {
    let status = daemon.status_json();
    let peers = status["peers"].as_array().expect("a status has it");
    status["ebpf"]["active"] == true && peers.iter().all(|peer| peer["state"] == "direct")
}

/// Runs a program on a host and prints what it prints.
fn show(host: &Host, words: &[&str]) {
    println!("\n{}$ {}", host.name(), words.join(" "));
    let output = match words {
        ["wgmesh", arguments @ ..] => host.wgmesh(arguments),
        words => host.exec(words),
    };
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn show_counters(daemon: &Daemon, peer: Ipv4Addr) {
    let status = daemon.status_json();
    let peers = status["peers"].as_array().expect("a status has it");
    let peer = peers.iter().find(|other| other["mesh_ipv4"] == peer.to_string()).expect("it is a peer");
    let seen = &peer["ebpf"];
    let number = |value: &Value| value.as_u64().expect("eBPF counts");
    println!(
        "\nWhat eBPF ({}) counted for {}: {} packets with {} bytes received, {} packets with {} bytes sent.",
        status["ebpf"]["attachment"].as_str().unwrap_or("not attached"),
        peer["hostname"].as_str().unwrap_or("that peer"),
        number(&seen["rx_packets"]),
        number(&seen["rx_bytes"]),
        number(&seen["tx_packets"]),
        number(&seen["tx_bytes"]),
    );
}
