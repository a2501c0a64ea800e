//! A configuration that changes while the daemon runs with it: what counts at once, and that no packet notices.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use wgmesh_lab::{Daemon, Host, Lan, Pings, Settings, eventually, least_of_three};

use super::{PATIENCE, SECRET, mesh, mesh_ipv4, peers};

/// A network behind the first host, and its own address there.
const BEHIND: &str = "10.77.0.0/24";
const ADDRESS: &str = "10.77.0.1";

/// Between two pings while something is done.
const PING_INTERVAL: Duration = Duration::from_millis(10);

/// W-D7, W-D9, W-D39, W-D44, X-52: offered, accepted and withdrawn by each of the ways to reload.
#[test]
fn routes_change_on_running_hosts_without_a_lost_packet() {
    let lan = Lan::new("reload", 2);
    let (offering, accepting) = (&lan.hosts[0], &lan.hosts[1]);
    offering.run(["ip", "link", "add", "behind", "type", "veth", "peer", "name", "inside"]);
    offering.run(["ip", "address", "add", &format!("{ADDRESS}/24"), "dev", "behind"]);
    offering.run(["ip", "link", "set", "inside", "up"]);
    offering.run(["ip", "link", "set", "behind", "up"]);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let [first, second] = &daemons[..] else { unreachable!("two hosts, two daemons") };
    let indices = || lan.hosts.iter().map(index).collect::<Vec<_>>();
    let before = indices();

    let lost = least_of_three(|| {
        lost_pings(accepting, mesh_ipv4(first), || {
            let configured = (text(first), text(second));
            add(first, &format!("advertise_routes = [\"{BEHIND}\"]"));
            first.signal(Signal::SIGHUP);
            first.wait_notification("RELOADING=1");
            first.wait_notification("READY=1");
            assert!(!has_route(accepting), "nobody accepts it yet");
            add(second, "accept_routes = [\"10.77.0.0/16\"]");
            assert_eq!(printed(&reload(accepting, second)), "changed: accept_routes\n");
            eventually(PATIENCE, || has_route(accepting));
            assert!(accepting.pings(ADDRESS.parse::<std::net::Ipv4Addr>().unwrap()));

            let set_beside = offering.folder().join("state/wgmesh0.reload");
            fs::write(&set_beside, "# for now\nadvertise-routes=\n").unwrap();
            assert_eq!(printed(&reload(offering, first)), "changed: advertise_routes\n");
            eventually(PATIENCE, || !has_route(accepting));

            fs::remove_file(set_beside).unwrap();
            fs::write(first.config(), configured.0).unwrap();
            fs::write(second.config(), configured.1).unwrap();
            assert_eq!(printed(&reload(offering, first)), "nothing has changed\n");
            assert_eq!(printed(&reload(accepting, second)), "changed: accept_routes\n");
        })
    });

    assert_eq!(lost, 0);
    assert_eq!(indices(), before, "the interfaces were never made anew");
    let endpoint = peers(second)[0]["path"]["endpoint"].clone();
    assert!(endpoint.as_str().unwrap().starts_with("192.0.2.1:"), "outside the tunnel: {endpoint}");
}

/// W-D7: what is wrong with a file is said, with its place, and the daemon goes on with what it has.
#[test]
fn a_bad_file_changes_nothing_and_nor_does_the_same_file() {
    let lan = Lan::new("reload-bad", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET).with(&format!("accept_routes = [\"{BEHIND}\"]")));
    let (host, daemon) = (&lan.hosts[0], &daemons[0]);
    let good = text(daemon);
    add(daemon, &format!("advertise_routes = [\"{BEHIND}\"]"));
    assert_eq!(printed(&reload(host, daemon)), "changed: advertise_routes\n");
    eventually(PATIENCE, || has_route(&lan.hosts[1]));
    // Until everything is as it should be.
    std::thread::sleep(Duration::from_secs(6));
    let writes = || daemons.iter().map(|daemon| daemon.status_json()["kernel"]["writes"].clone());
    let before: Vec<_> = writes().collect();

    fs::write(daemon.config(), format!("{good}advertise_routs = []\n")).unwrap();
    let place = format!(
        "{}:{}:1: `advertise_routs`: unknown key",
        daemon.config().display(),
        good.lines().count() + 1
    );
    let refused = reload(host, daemon);
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&place), "{refused:?}");
    daemon.signal(Signal::SIGHUP);
    eventually(PATIENCE, || {
        let log = host.daemon_log();
        log.contains(&place) && log.contains("everything stays as it was")
    });
    assert!(has_route(&lan.hosts[1]));

    fs::write(daemon.config(), format!("{good}advertise_routes = [\"{BEHIND}\"]\nlisten_port = 7\n"))
        .unwrap();
    assert_eq!(printed(&reload(host, daemon)), "nothing has changed\nneeds a restart: listen_port\n");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(writes().collect::<Vec<_>>(), before);
    assert!(has_route(&lan.hosts[1]));
}

/// Pings a hundred times a second while something is done, and says how many were lost.
fn lost_pings(host: &Host, to: Ipv4Addr, act: impl FnOnce()) -> usize {
    let started = SystemTime::now();
    let pings = Pings::start(host, to, PING_INTERVAL, 56);
    act();
    assert!(host.pings(to));
    std::thread::sleep(PING_INTERVAL * 5);
    let replies = pings.finish();
    assert_eq!(replies.replies.first().map(|reply| reply.sequence), Some(1), "the first one is answered");
    let lost = replies.lost_after(started);
    println!("{lost} of {} pings were lost", replies.sent());
    lost
}

fn reload(host: &Host, daemon: &Daemon) -> Output {
    host.wgmesh([Path::new("reload"), Path::new("--config"), daemon.config()])
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn text(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.config()).unwrap()
}

/// Adds a line to a daemon's configuration.
fn add(daemon: &Daemon, line: &str) {
    fs::write(daemon.config(), format!("{}{line}\n", text(daemon))).unwrap();
}

fn has_route(host: &Host) -> bool {
    host.run(["ip", "-4", "route", "show", "dev", "wgmesh0"]).contains(BEHIND)
}

fn index(host: &Host) -> String {
    host.run(["cat", "/sys/class/net/wgmesh0/ifindex"])
}
