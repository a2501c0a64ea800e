//! The session pool on real hosts: few sessions are enough for many nodes, and one that is lost is replaced.

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Internet, Settings, StunServers, eventually, secret, show};

use super::PATIENCE;
use crate::mesh::direct_peers;

/// Longer than a stream that leads nowhere lasts, and than it takes to look for another.
const REPLACED: Duration = Duration::from_secs(90);

/// M-23, M-31, M-32: two sessions each for five hosts that know one of them to begin with.
#[test]
fn hosts_with_two_sessions_each_are_one_mesh_and_replace_whom_they_lose() {
    let internet = Internet::new("pool");
    let _stun = StunServers::start(&internet);
    let address = |number: u8| Ipv4Addr::new(192, 0, 2, 20 + number);
    let hosts: Vec<Host> =
        (0..5).map(|number| internet.server(&format!("pool{number}"), &[address(number)])).collect();
    let start = |number: usize| {
        let known: &[Ipv4Addr] = if number == 0 { &[] } else { &[address(0)] };
        hosts[number]
            .daemon(&Settings::new(&secret(1)).over_internet_with(known, "target_peers = 2\nmax_peers = 2"))
    };
    let mut daemons: Vec<Daemon> = (0..5).map(start).collect();
    for daemon in &daemons {
        daemon.wait_ready();
    }
    // Who finds no room tries again after 1, 2, 4 … seconds.
    let whole = eventually(4 * PATIENCE, || daemons.iter().all(|daemon| direct_peers(daemon) == 4));
    eventually(PATIENCE, || daemons.iter().all(|daemon| !sessions(daemon).is_empty()));
    show(&format!(
        "two sessions each: five hosts are one mesh {:.2} s after they were ready",
        whole.as_secs_f64()
    ));
    let most = daemons.iter().map(|daemon| sessions(daemon).len()).max();
    assert!(most <= Some(2), "{most:?}");

    let mut gone = daemons.remove(4);
    let key = gone.status_json()["node"]["public_key"].clone();
    gone.signal(Signal::SIGKILL);
    gone.wait_exit();
    hosts[4].run(["ip", "link", "set", "eth0", "down"]);
    let replaced = eventually(REPLACED, || {
        let all: Vec<_> = daemons.iter().map(sessions).collect();
        all.iter().all(|held| (1..=2).contains(&held.len()) && held.iter().all(|one| *one != key))
    });
    show(&format!("its sessions are replaced {:.2} s after a host is gone", replaced.as_secs_f64()));
    assert!(daemons.iter().all(|daemon| direct_peers(daemon) >= 3), "the others keep their tunnels");
}

/// Returns the keys of those with whom a daemon has sessions.
fn sessions(daemon: &Daemon) -> Vec<Value> {
    let status = daemon.status_json();
    status["sessions"].as_array().into_iter().flatten().map(|one| one["public_key"].clone()).collect()
}
