//! What an operator asks of a node in its life: why a peer is reached as it is, to leave, and to be in two meshes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Lan, Settings, eventually};

use super::{OTHER_SECRET, PATIENCE, SECRET, mesh, mesh_ipv4, node, peers, wait_meshed};

/// Issue 4: which path, since when, what was tried, and why not something better; for people and for programs.
#[test]
fn a_peer_is_explained() {
    let lan = Lan::new("explain", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let name = node(&daemons[1], "hostname");
    eventually(Duration::from_secs(40), || {
        let told = printed(&wgmesh(&lan.hosts[0], &["explain", &name], &daemons[0]));
        println!("{told}");
        told.starts_with(&format!("{name} is direct by lan 192.0.2.2:51820"))
            && told.lines().next().unwrap().contains(", since ")
            && told.contains("there is nothing better")
    });
    let text = printed(&wgmesh(&lan.hosts[0], &["explain", "--json", &name], &daemons[0]));
    let explained: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(explained["peer"]["state"], "direct");
    assert!(explained["since_s"].as_u64().unwrap() < 60, "{explained}");

    // It moves, and it is told from where and when.
    lan.hosts[1].run(["ip", "address", "del", "192.0.2.2/24", "dev", "eth0"]);
    lan.hosts[1].run(["ip", "address", "add", "192.0.2.77/24", "dev", "eth0"]);
    let moved = || {
        let text = printed(&wgmesh(&lan.hosts[0], &["explain", "--json", &name], &daemons[0]));
        serde_json::from_str::<Value>(&text).unwrap()
    };
    eventually(Duration::from_secs(40), || {
        lan.hosts[1].pings(mesh_ipv4(&daemons[0]));
        moved()["earlier"][0]["endpoint"] == "192.0.2.2:51820"
    });
    let unknown = wgmesh(&lan.hosts[0], &["explain", "nobody"], &daemons[0]);
    assert_eq!(unknown.status.code(), Some(1));
}

/// Issue 4: goodbye, everything taken back, and not started again by systemd, which goes by the exit code.
#[test]
fn a_node_leaves_and_comes_back_as_itself_unless_it_was_to_forget() {
    let lan = Lan::new("leave", 2);
    let mut daemons = mesh(&lan, &Settings::new(SECRET));
    let host = &lan.hosts[1];
    let key = node(&daemons[1], "public_key");
    let leave = |words: &[&str], mut daemon: Daemon| {
        let told = printed(&wgmesh(host, words, &daemon));
        assert!(told.contains("has left the mesh"), "{told}");
        assert_eq!(daemon.wait_exit().code(), Some(79));
        assert!(!host.exec(["ip", "link", "show", "wgmesh0"]).status.success());
    };
    leave(&["leave"], daemons.pop().unwrap());
    eventually(Duration::from_secs(3), || peers(&daemons[0]).is_empty());

    daemons.push(host.daemon(&Settings::new(SECRET)));
    wait_meshed(&daemons);
    assert_eq!(node(&daemons[1], "public_key"), key);
    leave(&["leave", "--forget"], daemons.pop().unwrap());
    let state = fs::read_dir(host.folder().join("state")).unwrap();
    let kept: Vec<_> = state.map(|entry| entry.unwrap().file_name()).collect();
    assert!(kept.is_empty(), "{kept:?}");

    daemons.push(host.daemon(&Settings::new(SECRET)));
    wait_meshed(&daemons);
    assert_ne!(node(&daemons[1], "public_key"), key);
}

/// W-D52: the journal tells every half minute who is reached.
#[test]
fn the_state_is_told_to_the_log() {
    let lan = Lan::new("told", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let name = node(&daemons[1], "hostname");
    let told = |text: &str| lan.hosts[0].daemon_log().lines().filter(|line| line.contains(text)).count();
    eventually(Duration::from_secs(100), || told("reached=1 known=1") >= 2);
    let log = lan.hosts[0].daemon_log();
    let at: Vec<_> =
        log.lines().filter(|line| line.contains(" status reached=")).map(seconds_of_day).collect();
    for pair in at.windows(2) {
        let pause = (pair[1] - pair[0]).rem_euclid(86_400.0);
        assert!(pause > 29.0, "again after {pause} s");
    }
    let peer = format!("name=\"{name}\" address={} state=Direct path=\"lan\"", mesh_ipv4(&daemons[1]));
    eventually(Duration::from_secs(45), || told(&peer) >= 1);
    assert!(told("via=\"lan") >= 1, "each peer and its sources, where the level is `debug`");
}

/// Reads the time of day of a line like `2026-01-31T18:38:27.364718Z  INFO …`.
fn seconds_of_day(line: &str) -> f64 {
    let time = line.split_once('T').unwrap().1.split_once('Z').unwrap().0;
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

/// Issue 4, W-D49: two meshes on the same hosts know nothing of each other, and one goes without the other.
#[test]
fn hosts_are_in_two_meshes_at_once() {
    let lan = Lan::new("two", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let others: Vec<_> =
        lan.hosts.iter().map(|host| Second::start(host, "advertise_routes = [\"10.66.0.0/24\"]")).collect();
    let status = |index: usize| others[index].status(&lan.hosts[index]);
    eventually(PATIENCE, || {
        (0..2).all(|index| status(index).is_some_and(|status| status["peers"][0]["state"] == "direct"))
    });
    let address = |index: usize| -> IpAddr {
        status(index).unwrap()["node"]["mesh_ipv4"].as_str().unwrap().parse().unwrap()
    };
    assert!(lan.hosts[0].pings(address(1)) && lan.hosts[0].pings(mesh_ipv4(&daemons[1])));
    assert_ne!(status(0).unwrap()["node"]["public_key"], daemons[0].status_json()["node"]["public_key"]);
    assert_eq!(status(0).unwrap()["peers"].as_array().unwrap().len(), 1);
    assert_eq!(peers(&daemons[0]).len(), 1);
    let tables = || lan.hosts[0].run(["nft", "list", "tables"]);
    assert_eq!(tables().trim(), "table inet wgmesh-office");
    others[0].process.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !lan.hosts[0].run(["ip", "-o", "link"]).contains("office"));
    assert_eq!(tables().trim(), "");
    assert!(lan.hosts[0].pings(mesh_ipv4(&daemons[1])), "the other mesh has not noticed");
}

/// L-28, L-30, L-31: a healthy host has nothing wrong; a firewall is looked at; a dead daemon and a foreign link are found.
#[test]
fn the_doctor_finds_what_is_wrong_and_only_that() {
    let lan = Lan::new("doctor", 2);
    let mut daemons = mesh(&lan, &Settings::new(SECRET));
    let host = &lan.hosts[1];
    eventually(PATIENCE, || daemons[1].status_json()["ebpf"]["active"] == true);
    let well = wgmesh(host, &["doctor"], &daemons[1]);
    println!("{}", printed(&well));
    assert!(printed(&well).contains("ok     firewall") && !printed(&well).contains("WRONG"));
    host.feed(
        ["nft", "-f", "-"],
        "add table inet fw\nadd chain inet fw incoming { type filter hook input priority 0; policy drop; }\n\
         add rule inet fw incoming accept\n",
    );
    let guarded = printed(&wgmesh(host, &["doctor"], &daemons[1]));
    assert!(
        guarded.contains("look   firewall       the policy of nftables chain inet fw incoming drops"),
        "{guarded}"
    );
    assert!(guarded.contains("UDP 51820 (WireGuard)"), "{guarded}");

    let config = daemons[1].config().to_owned();
    daemons.pop().unwrap().stop();
    host.run(["ip", "link", "add", "wgmesh0", "type", "bridge"]);
    let ill = host.wgmesh([Path::new("doctor"), Path::new("--json"), Path::new("--config"), &config]);
    assert_eq!(ill.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&ill.stdout).unwrap();
    let wrong = findings.as_array().unwrap().iter().filter(|finding| finding["state"] == "error");
    let wrong: Vec<_> = wrong.filter_map(|finding| finding["check"].as_str()).collect();
    assert_eq!(wrong, ["interface", "daemon"], "{findings}");
}

/// A daemon of another mesh on a host that has one.
struct Second {
    process: wgmesh_lab::Process,
    config: std::path::PathBuf,
}

impl Second {
    fn start(host: &Host, more: &str) -> Self {
        let folder = host.folder().join("second");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("secret"), OTHER_SECRET).unwrap();
        host.run(["chmod", "600", folder.join("secret").to_str().unwrap()]);
        let config = folder.join("office.toml");
        let text = format!(
            "interface = \"office\"\nlisten_port = 51900\nsecret_file = {:?}\nstate_dir = {folder:?}\nruntime_dir = {folder:?}\n{more}\n",
            folder.join("secret"),
        );
        fs::write(&config, text).unwrap();
        let binary = std::env::var("WGMESH_BIN").unwrap();
        let process = host.spawn([binary.as_str(), "run", "--config", config.to_str().unwrap()]);
        Self { process, config }
    }

    fn status(&self, host: &Host) -> Option<Value> {
        let output =
            host.wgmesh([Path::new("status"), Path::new("--json"), Path::new("--config"), &self.config]);
        serde_json::from_slice(&output.stdout).ok()
    }
}

fn wgmesh(host: &Host, words: &[&str], daemon: &Daemon) -> Output {
    let config = daemon.config().to_str().unwrap();
    host.wgmesh(words.iter().copied().chain(["--config", config]))
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}
