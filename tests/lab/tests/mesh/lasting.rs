//! What lasts: over crashes, restarts and meddling; and what is left after a stop.

use std::time::Duration;

use nix::sys::signal::Signal;
use wgmesh_lab::{Daemon, Host, Lan, Settings, eventually, least_of_three};

use super::{PATIENCE, SECRET, mesh, mesh_ipv4, node, peers, wait_meshed};

/// Pings ten times a second for eight seconds while `meddle` runs, and says how many were lost.
fn lost_pings(host: &Host, to: std::net::Ipv4Addr, meddle: impl FnOnce()) -> u32 {
    let ping = host.spawn(["ping", "-n", "-i", "0.1", "-c", "80", "-W", "2", &to.to_string()]);
    std::thread::sleep(Duration::from_secs(1));
    meddle();
    let text = String::from_utf8(ping.wait().stdout).unwrap();
    let numbers = text.lines().find(|line| line.contains("packets transmitted")).unwrap();
    let number = |n: usize| numbers.split(' ').nth(n).unwrap().parse::<u32>().unwrap();
    number(0) - number(3)
}

/// Link, addresses, routes, filters and pins of a daemon that was stopped.
#[track_caller]
fn assert_nothing_is_left(host: &Host) {
    assert!(!host.exec(["ip", "link", "show", "wgmesh0"]).status.success());
    for family in ["-4", "-6"] {
        let routes = host.run(["ip", family, "route", "show", "table", "all"]);
        assert!(!routes.contains("wgmesh0") && !routes.contains("proto 87"), "{routes}");
    }
    assert_eq!(host.run(["nft", "list", "ruleset"]).trim(), "");
    assert_eq!(host.run(["find", "/sys/fs/bpf", "-mindepth", "1", "-name", "wgmesh0"]).trim(), "");
}

/// Issue "the main job", 5.
#[test]
fn a_killed_daemon_and_its_successor_lose_no_packet() {
    let lan = Lan::new("kill", 2);
    let mut daemons = mesh(&lan, &Settings::new(SECRET));
    let target = mesh_ipv4(&daemons[1]);
    let lost = least_of_three(|| {
        lost_pings(&lan.hosts[0], target, || {
            daemons.pop().unwrap().kill();
            std::thread::sleep(Duration::from_secs(2));
            daemons.push(lan.hosts[1].daemon(&Settings::new(SECRET)));
            daemons[1].wait_ready();
        })
    });
    assert_eq!(lost, 0);
    wait_meshed(&daemons);
}

/// Issue "the main job", 5: `RestartKillSignal=SIGUSR1` is what systemd sends on a restart.
#[test]
fn a_handover_loses_no_packet_and_keeps_the_node_what_it_was() {
    let lan = Lan::new("handover", 2);
    let mut daemons = mesh(&lan, &Settings::new(SECRET));
    let (target, key) = (mesh_ipv4(&daemons[1]), node(&daemons[1], "public_key"));
    let lost = least_of_three(|| {
        lost_pings(&lan.hosts[0], target, || {
            let mut old = daemons.pop().unwrap();
            old.signal(Signal::SIGUSR1);
            assert!(old.wait_exit().success());
            daemons.push(lan.hosts[1].daemon(&Settings::new(SECRET)));
            daemons[1].wait_ready();
        })
    });
    assert_eq!(lost, 0);
    wait_meshed(&daemons);
    assert_eq!((node(&daemons[1], "public_key"), mesh_ipv4(&daemons[1])), (key, target));
}

/// W-D6: link, addresses, routes, nft and pins; and the peers know at once.
#[test]
fn after_a_stop_nothing_of_ours_is_left_and_the_peers_know() {
    let lan = Lan::new("stop", 2);
    let mut daemons = mesh(&lan, &Settings::new(SECRET));
    let host = &lan.hosts[1];
    eventually(PATIENCE, || daemons[1].status_json()["ebpf"]["active"] == true);
    daemons.pop().unwrap().stop();
    assert_nothing_is_left(host);
    eventually(Duration::from_secs(3), || peers(&daemons[0]).is_empty());
}

/// W-D6: eBPF of the run before is adopted only once all is calm; a stop before that takes it along all the same.
#[test]
fn a_stop_right_after_a_restart_leaves_nothing_either() {
    let lan = Lan::new("stop-early", 1);
    let host = &lan.hosts[0];
    let mut first = host.daemon(&Settings::new(SECRET));
    eventually(PATIENCE, || first.status_json()["ebpf"]["active"] == true);
    first.signal(Signal::SIGUSR1);
    assert!(first.wait_exit().success());
    let second = host.daemon(&Settings::new(SECRET));
    second.wait_ready();
    assert_eq!(second.status_json()["ebpf"]["active"], false, "it waits for calm");
    second.stop();
    assert_nothing_is_left(host);
}

/// W-X6: a socket may join so many groups only, and on a host with many links one may have to wait for another to go.
#[test]
fn a_group_that_could_not_be_joined_is_joined_when_there_is_room() {
    let lan = Lan::new("groups", 1);
    let host = &lan.hosts[0];
    host.run(["sh", "-c", "echo 2 >/proc/sys/net/ipv4/igmp_max_memberships"]);
    for (link, address) in [("more0", "198.51.100.1/28"), ("more1", "198.51.100.17/28")] {
        host.run(["ip", "link", "add", link, "type", "dummy"]);
        host.run(["ip", "address", "add", address, "dev", link]);
        host.run(["ip", "link", "set", link, "up", "multicast", "on"]);
    }
    let is_member =
        |link: &str| host.run(["ip", "-o", "-4", "maddress", "show", "dev", link]).contains(" 239.192.");
    let daemon = host.daemon(&Settings::new(SECRET));
    daemon.wait_ready();
    eventually(PATIENCE, || is_member("eth0") && is_member("more0"));
    assert!(!is_member("more1"), "there was no room for it");
    host.run(["ip", "link", "delete", "more0"]);
    eventually(PATIENCE, || is_member("more1"));
}

/// W-D2, W-X6: nothing adds up over twenty lives, and the LAN's groups are left each time.
#[test]
fn twenty_starts_and_stops_leave_nothing_behind() {
    let lan = Lan::new("stops", 1);
    let host = &lan.hosts[0];
    let groups = || host.run(["ip", "-o", "maddress", "show", "dev", "eth0"]);
    let before = groups();
    for _ in 0..20 {
        let daemon = host.daemon(&Settings::new(SECRET));
        daemon.wait_ready();
        assert!(groups().contains(" 239.192."), "{}", groups());
        daemon.stop();
        assert_nothing_is_left(host);
        assert_eq!(groups(), before);
    }
}

/// the key is the node's own and made once, whatever the secret; the address is the mesh's.
#[test]
fn a_new_secret_keeps_the_key_and_moves_the_address() {
    let lan = Lan::new("new-secret", 1);
    let [first, second] = [SECRET, "wgmesh://v1/ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8"].map(|secret| {
        let daemon = lan.hosts[0].daemon(&Settings::new(secret));
        daemon.wait_ready();
        (node(&daemon, "public_key"), mesh_ipv4(&daemon))
    });
    assert_eq!(first.0, second.0);
    assert_ne!(first.1, second.1);
}

/// W-D10, W-D44 and the "healed within a second of the kernel's own event"; a peer's removal has no event
/// and is seen by the safety net.
#[test]
fn what_somebody_deletes_is_healed() {
    let lan = Lan::new("heal", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let (host, target) = (&lan.hosts[0], mesh_ipv4(&daemons[1]));
    let own = mesh_ipv4(&daemons[0]);
    let is_whole = || host.pings(target) && lan.hosts[1].pings(own);
    assert!(is_whole());
    let subnet = host.run(["ip", "-4", "route", "show", "dev", "wgmesh0"]);
    let subnet = subnet.split(' ').next().unwrap().to_owned();
    let has_route = || host.run(["ip", "-4", "route", "show", "dev", "wgmesh0"]).contains(&subnet);
    let has_address = || host.run(["ip", "-4", "address", "show"]).contains(&format!("{own}/"));
    let has_link = || host.run(["ip", "-o", "link"]).contains("wgmesh0") && has_address() && has_route();
    let peer = node(&daemons[1], "public_key");
    let has_peer = || host.run(["wg", "show", "wgmesh0", "peers"]).contains(&peer);
    // The best of three, because the machine may be busy: the safety net alone would take 2.5 s on average.
    let heal = |what: &str, words: &[&str], check: &dyn Fn() -> bool| {
        let tries = (0..3).map(|_| {
            host.run(words);
            let took = eventually(PATIENCE, check);
            eventually(PATIENCE, is_whole);
            took
        });
        let best = tries.min().unwrap();
        println!("{what}: healed in {} ms", best.as_millis());
        best
    };
    let second = Duration::from_secs(1);
    assert!(heal("a route", &["ip", "route", "del", &subnet, "dev", "wgmesh0"], &has_route) < second);
    assert!(heal("all addresses", &["ip", "address", "flush", "dev", "wgmesh0"], &has_address) < second);
    assert!(heal("a link set down", &["ip", "link", "set", "wgmesh0", "down"], &has_route) < second);
    assert!(heal("a link deleted", &["ip", "link", "del", "wgmesh0"], &has_link) < second);
    heal("a peer", &["wg", "set", "wgmesh0", "peer", &peer, "remove"], &has_peer);

    let put_in_place = |kind: &str| {
        // Else the daemon is quicker.
        daemons[0].signal(Signal::SIGSTOP);
        host.run(["ip", "link", "del", "wgmesh0"]);
        host.run(["ip", "link", "add", "wgmesh0", "type", kind]);
        daemons[0].signal(Signal::SIGCONT);
    };
    put_in_place("wireguard");
    eventually(PATIENCE, || has_link() && has_peer() && is_whole());
    put_in_place("bridge");
    eventually(PATIENCE, || daemons[0].status_json()["problems"].to_string().contains("bridge"));
    assert_eq!(daemons[0].status_json()["kernel"]["converged"], false);
    let warnings =
        host.daemon_log().lines().filter(|line| line.contains("WARN") && line.contains("bridge")).count();
    assert_eq!(warnings, 1, "told once, at whatever attempt");
    let link = host.run(["ip", "-d", "link", "show", "wgmesh0"]);
    assert!(link.contains("bridge") && !link.contains("alias"), "it is somebody else's: {link}");
    host.run(["ip", "link", "del", "wgmesh0"]);
    eventually(PATIENCE, || has_link() && has_peer() && is_whole());
    assert!(daemons[0].status_json()["problems"].is_null());
}

/// W-D34, W-D35, W-D36: both hosts lost power; no discovery of any kind is on.
#[test]
fn the_peer_cache_alone_brings_the_tunnel_back() {
    let lan = Lan::new("cache", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let target = mesh_ipv4(&daemons[1]);
    let cache = |host: &Host| host.folder().join("state/wgmesh0-peers.json");
    eventually(PATIENCE, || lan.hosts.iter().all(|host| has_endpoint(&cache(host))));
    daemons.into_iter().for_each(Daemon::kill);
    for host in &lan.hosts {
        host.run(["ip", "link", "del", "wgmesh0"]);
    }
    let silent = Settings::new(SECRET).with("[discovery]\nenabled_methods = []");
    let daemons = mesh(&lan, &silent);
    assert!(lan.hosts[0].pings(target));
    let sources = &peers(&daemons[0])[0]["sources"];
    let sources: Vec<&str> = sources.as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    assert!(sources.contains(&"cache") && !sources.contains(&"lan"), "{sources:?}");
}

fn has_endpoint(cache: &std::path::Path) -> bool {
    std::fs::read_to_string(cache).is_ok_and(|text| text.contains("192.0.2."))
}
