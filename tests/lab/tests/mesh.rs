//! The main job: hosts that share a secret become a mesh, whatever happens to them.

mod gossip;
mod hostile;
mod lasting;
mod lifecycle;
mod reload;
mod routes;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Lan, Process, Settings, WITHOUT_EBPF, eventually};

pub(crate) const SECRET: &str = "wgmesh://v1/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
const OTHER_SECRET: &str = "wgmesh://v1/HxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4";

/// Longer than anything takes that works, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a daemon on every host and waits until all are meshed.
pub(crate) fn mesh(lan: &Lan, settings: &Settings) -> Vec<Daemon> {
    let daemons: Vec<_> = lan.hosts.iter().map(|host| host.daemon(settings)).collect();
    for daemon in &daemons {
        daemon.wait_ready();
    }
    wait_meshed(&daemons);
    daemons
}

pub(crate) fn node(daemon: &Daemon, field: &str) -> String {
    daemon.status_json()["node"][field].as_str().unwrap().to_owned()
}

pub(crate) fn mesh_ipv4(daemon: &Daemon) -> Ipv4Addr {
    node(daemon, "mesh_ipv4").parse().unwrap()
}

pub(crate) fn peers(daemon: &Daemon) -> Vec<Value> {
    daemon.status_json()["peers"].as_array().unwrap().clone()
}

pub(crate) fn direct_peers(daemon: &Daemon) -> usize {
    peers(daemon).iter().filter(|peer| peer["state"] == "direct").count()
}

/// Waits until every daemon reaches all the others directly.
pub(crate) fn wait_meshed(daemons: &[Daemon]) {
    for daemon in daemons {
        eventually(PATIENCE, || direct_peers(daemon) == daemons.len() - 1);
    }
}

/// W-D1, W-X2, W-X3, W-X5, W-D5, W-D9, C-4: knowing only the secret.
#[test]
fn three_hosts_that_share_a_secret_become_a_full_mesh() {
    let lan = Lan::new("three", 3);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    for host in &lan.hosts {
        for daemon in &daemons {
            for family in ["mesh_ipv4", "mesh_ipv6"] {
                assert!(host.pings(node(daemon, family).parse::<IpAddr>().unwrap()));
            }
        }
    }
    let table = lan.hosts[0].wgmesh(["status", "--config", daemons[0].config().to_str().unwrap()]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(daemons[1..].iter().all(|daemon| table.contains(&mesh_ipv4(daemon).to_string())), "{table}");
}

/// C-1, C-3: another implementation of WireGuard's netlink interface finds in the kernel what `status` tells.
#[test]
fn an_independent_reader_of_the_kernel_agrees_with_status() {
    let lan = Lan::new("oracle", 3);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let device = lan.hosts[0].namespace().run(|| {
        let mut socket = wireguard_uapi::WgSocket::connect().unwrap();
        socket.get_device(wireguard_uapi::DeviceInterface::from_name("wgmesh0")).unwrap()
    });
    let status = daemons[0].status_json();
    assert_eq!(status["node"]["listen_port"], device.listen_port);
    assert_eq!(base64(&node(&daemons[0], "public_key")), device.public_key.unwrap());
    assert_eq!(device.peers.len(), 2);
    for peer in status["peers"].as_array().unwrap() {
        let key = base64(peer["public_key"].as_str().unwrap());
        let found = device.peers.iter().find(|found| found.public_key[..] == key).unwrap();
        let endpoint = found.endpoint.unwrap().to_string();
        assert_eq!(peer["path"]["endpoint"], endpoint);
        let mut allowed: Vec<_> = found.allowed_ips.iter().map(|net| (net.ipaddr, net.cidr_mask)).collect();
        allowed.sort_unstable();
        let address = |field: &str| peer[field].as_str().unwrap().parse::<IpAddr>().unwrap();
        assert_eq!(allowed, [(address("mesh_ipv4"), 32), (address("mesh_ipv6"), 128)]);
        assert_ne!(found.preshared_key, [0; 32]);
    }
}

/// Issue "the main job", 4: no tunnel, and not a useful byte on the wire.
#[test]
fn a_host_with_another_secret_gets_no_tunnel_and_learns_nothing_from_the_wire() {
    let lan = Lan::new("secrets", 3);
    let announces = lan.hosts[2].capture(lan.links[2].interface(), "udp");
    // Whatever a member says to another: hellos, pings, handshakes, sessions.
    let talk = lan.hosts[0].capture(lan.links[0].interface(), "ip or ip6");
    let outsider = lan.hosts[2].daemon(&Settings::new(OTHER_SECRET));
    outsider.wait_ready();
    let member = Settings::new(SECRET).with("hostname = \"nobody-else-may-know\"");
    let members: Vec<_> = lan.hosts[..2].iter().map(|host| host.daemon(&member)).collect();
    for member in &members {
        member.wait_ready();
    }
    wait_meshed(&members);
    std::thread::sleep(Duration::from_secs(6));
    assert!(peers(&outsider).is_empty());
    assert!(members.iter().all(|member| peers(member).len() == 1));
    assert!(lan.hosts[0].pings(mesh_ipv4(&members[1])));
    for (wire, port) in [(announces.finish(), 51830_u16), (talk.finish(), 51820)] {
        let shows = |needle: &[u8]| wire.windows(needle.len()).any(|window| window == needle);
        assert!(shows(&port.to_be_bytes()), "the capture saw what goes to port {port}");
        for member in &members {
            let key = node(member, "public_key");
            assert!(!shows(key.as_bytes()) && !shows(&base64(&key)), "a public key is on the wire");
            let inner: Ipv6Addr = node(member, "mesh_ipv6").parse().unwrap();
            let is_shown = shows(&mesh_ipv4(member).octets()) || shows(&inner.octets());
            assert!(!is_shown, "a mesh address is on the wire");
            assert!(!shows(node(member, "hostname").as_bytes()), "a name is on the wire");
        }
    }
}

/// C-5: eBPF stamps a handshake's answer at the second from which the kernel counts the session, on both ends.
#[test]
fn ebpf_sees_handshakes_when_the_kernel_does() {
    let lan = Lan::new("stamps", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    // The first handshake is over by then.
    eventually(PATIENCE, || daemons.iter().all(|daemon| daemon.status_json()["ebpf"]["active"] == true));
    lan.hosts[0].run(["wg", "set", "wgmesh0", "peer", &node(&daemons[1], "public_key"), "remove"]);
    let seen = |daemon: &Daemon| peers(daemon)[0]["handshake_seen_s"].as_u64();
    eventually(PATIENCE, || {
        lan.hosts[0].exec(["ping", "-c", "1", "-W", "1", &mesh_ipv4(&daemons[1]).to_string()]);
        daemons.iter().all(|daemon| seen(daemon).is_some())
    });
    std::thread::sleep(Duration::from_secs(5));
    for (host, daemon) in lan.hosts.iter().zip(&daemons) {
        let told = host.run(["wg", "show", "wgmesh0", "latest-handshakes"]);
        let told: u64 = told.split_whitespace().nth(1).unwrap().parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (seen, told) = (seen(daemon).unwrap(), now - told);
        assert!(seen >= 4 && seen.abs_diff(told) <= 2, "eBPF: {seen} s ago, WireGuard: {told} s ago");
    }
}

/// W-D28, W-D30: in six addresses somebody collides, and everybody ends with one of its own.
#[test]
fn colliding_addresses_are_resolved() {
    let lan = Lan::new("collide", 5);
    let daemons = mesh(&lan, &Settings::new(SECRET).with("subnet = \"10.99.0.0/29\""));
    eventually(PATIENCE, || {
        let mut addresses: Vec<_> = daemons.iter().map(mesh_ipv4).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.len() == daemons.len()
    });
    for daemon in &daemons {
        let address = mesh_ipv4(daemon);
        eventually(PATIENCE, || lan.hosts.iter().all(|host| host.pings(address)));
    }
}

/// Issue "the main job", 3, and W-D10: nothing is written once everything is as it should be.
#[test]
fn a_converged_node_writes_nothing_to_the_kernel() {
    let lan = Lan::new("quiet", 3);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    std::thread::sleep(Duration::from_secs(6));
    let monitor = lan.hosts[0].spawn(["ip", "monitor", "link", "address", "route"]);
    let writes = |daemon: &Daemon| daemon.status_json()["kernel"]["writes"].as_u64().unwrap();
    let before: Vec<_> = daemons.iter().map(writes).collect();
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(daemons.iter().map(writes).collect::<Vec<_>>(), before);
    let seen = String::from_utf8(monitor.interrupt().stdout).unwrap();
    assert!(!seen.contains("wgmesh0"), "{seen}");
}

/// X-2, C-3: a start, a mesh, a status and a stop, and not one process made.
#[test]
fn the_daemon_never_starts_a_process() {
    let lan = Lan::new("forks", 2);
    let first = lan.hosts[0].daemon(&Settings::new(SECRET));
    first.wait_ready();
    let trace = lan.hosts[1].folder().join("trace");
    let words = ["strace", "-f", "-e", "trace=execve,execveat,fork,vfork", "-o", trace.to_str().unwrap()];
    let (traced, _) = run_by(&lan.hosts[1], &words);
    eventually(PATIENCE, || direct_peers(&first) == 1);
    std::thread::sleep(Duration::from_secs(6));
    lan.hosts[1].run(["pkill", "-TERM", "-f", "^[^ ]*wgmesh run --config .*forks"]);
    traced.wait();
    let text = std::fs::read_to_string(trace).unwrap();
    let starts = text.lines().filter(|line| line.contains("exec") || line.contains("fork(")).count();
    assert_eq!(starts, 1, "the one that strace itself made: {text}");
}

/// C-5: where the kernel lets nobody load programs the mesh works all the same, and `status` says what is missing.
#[test]
fn without_ebpf_the_daemon_runs_and_says_so() {
    let lan = Lan::new("no-ebpf", 2);
    let first = lan.hosts[0].daemon(&Settings::new(SECRET));
    first.wait_ready();
    let (running, config) = run_by(&lan.hosts[1], &["setpriv", "--bounding-set", WITHOUT_EBPF]);
    let status = || -> Option<Value> {
        let told = lan.hosts[1].wgmesh(["status", "--json", "--config", &config]).stdout;
        serde_json::from_slice(&told).ok()
    };
    eventually(PATIENCE, || status().is_some_and(|status| status["ebpf"]["error"].is_string()));
    let ebpf = status().unwrap()["ebpf"].clone();
    assert_eq!(ebpf["active"], false);
    assert!(ebpf["error"].as_str().unwrap().contains("ermi"), "{ebpf}");
    eventually(PATIENCE, || direct_peers(&first) == 1);
    assert!(lan.hosts[1].pings(mesh_ipv4(&first)));
    let peer = status().unwrap()["peers"][0].clone();
    assert!(peer["rx_bytes"].as_u64().is_some_and(|bytes| bytes > 0) && peer["ebpf"].is_null(), "{peer}");
    let table = lan.hosts[1].wgmesh(["status", "--config", &config]).stdout;
    assert!(String::from_utf8_lossy(&table).contains("eBPF      off: "), "it is shown");
    running.interrupt();
}

/// Has another program run a daemon. Returns it, and the daemon's configuration.
fn run_by(host: &Host, program: &[&str]) -> (Process, String) {
    // Only for its files: dropped, it is killed.
    let config = host.daemon(&Settings::new(SECRET)).config().to_str().unwrap().to_owned();
    let binary = std::env::var("WGMESH_BIN").unwrap();
    (host.spawn(program.iter().chain(&[binary.as_str(), "run", "--config", &config])), config)
}

fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits: Vec<u8> = text.trim_end_matches('=').bytes().map(value).collect();
    bits.chunks(4)
        .flat_map(|group| {
            let joined =
                group.iter().fold(0_u32, |sum, &bits| sum << 6 | u32::from(bits)) << (6 * (4 - group.len()));
            joined.to_be_bytes()[1..group.len()].to_vec()
        })
        .collect()
}
