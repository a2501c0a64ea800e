//! Networks behind nodes: who reaches them, what the host is made to pass on for that, and what is left alone.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Lab, Link, Settings, Switch, eventually, least_of_three};

use super::{PATIENCE, SECRET, mesh_ipv4, node, wait_meshed};

/// The networks behind the first node, and the host in them.
const NETWORK: &str = "10.77.0.0/24";
const NETWORK_V6: &str = "fd77::/64";
const INSIDER: &str = "10.77.0.9";
const INSIDER_V6: &str = "fd77::9";

/// A table of somebody else.
const FOREIGN: &str =
    "add table inet foreign\nadd chain inet foreign c { type filter hook forward priority 5; }\n";

/// Three nodes on one switch, and behind the first a network with a host that knows no way but through it.
struct Site {
    nodes: Vec<Host>,
    insider: Host,
    _cables: Vec<Link>,
    _switches: [Switch; 2],
    _lab: Lab,
}

impl Site {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (outside, inside) = (lab.switch("lan"), lab.switch("inside"));
        let mut cables = Vec::new();
        let mut nodes = Vec::new();
        for number in 1..=3 {
            let host = lab.host(&format!("h{number}"));
            cables.push(lab.link(&host, &outside, &[&format!("192.0.2.{number}/24")]));
            nodes.push(host);
        }
        cables.push(lab.link(&nodes[0], &inside, &["10.77.0.1/24", "fd77::1/64"]));
        let insider = lab.host("insider");
        cables.push(lab.link(&insider, &inside, &["10.77.0.9/24", "fd77::9/64"]));
        insider.run(["ip", "route", "add", "default", "via", "10.77.0.1"]);
        insider.run(["ip", "-6", "route", "add", "default", "via", "fd77::1"]);
        Self { nodes, insider, _cables: cables, _switches: [outside, inside], _lab: lab }
    }

    /// Starts a daemon on each node; the first one advertises, the others accept.
    fn start(&self, advertised: &str, accepted: &str) -> Vec<Daemon> {
        let daemons: Vec<_> = (0..self.nodes.len())
            .map(|index| {
                let more = if index == 0 {
                    format!("advertise_routes = [{advertised}]")
                } else {
                    format!("accept_routes = [{accepted}]")
                };
                self.nodes[index].daemon(&Settings::new(SECRET).with(&more))
            })
            .collect();
        for daemon in &daemons {
            daemon.wait_ready();
        }
        wait_meshed(&daemons);
        daemons
    }

    fn reaches_insider(&self, node: usize) -> bool {
        self.nodes[node].pings(INSIDER.parse::<Ipv4Addr>().unwrap())
    }
}

fn both() -> String {
    format!("\"{NETWORK}\", \"{NETWORK_V6}\"")
}

/// Issue 4, 5, W-D9, W-D44, W-D45, W-D46: from every node, over both families, while it runs, and gone after a stop.
#[test]
fn a_network_behind_a_node_is_reached_from_every_node_until_it_stops() {
    let site = Site::new("behind");
    let first = &site.nodes[0];
    sysctl(first, "ipv6/conf/all/forwarding", "1");
    first.feed(["nft", "-f", "-"], FOREIGN);
    let before = switches(first);
    assert_eq!(before["eth1"], "0");
    let mut daemons = site.start(&both(), &both());

    for index in [1, 2] {
        eventually(PATIENCE, || site.reaches_insider(index));
        assert!(site.nodes[index].pings(INSIDER_V6.parse::<IpAddr>().unwrap()));
    }
    assert!(site.insider.pings(mesh_ipv4(&daemons[1])), "the way back is one of its own");
    let table = first.run(["nft", "list", "table", "inet", "wgmesh-wgmesh0"]);
    println!("{table}");
    assert!(table.contains("ip daddr 10.77.0.0/24 accept comment \"to 10.77.0.0/24\""), "{table}");
    let now = switches(first);
    assert_eq!((&now["eth1"][..], &now["wgmesh0"][..], &now["eth0"][..]), ("1", "1", "0"));
    let status = daemons[0].status_json();
    assert_eq!(status["kernel"]["forwarding"], serde_json::json!(["eth1", "wgmesh0"]));
    assert!(status.get("problems").is_none(), "{status}");

    // Nobody reaches through the first node what it does not advertise.
    let second = &site.nodes[1];
    let key = node(&daemons[0], "public_key");
    sysctl(&site.nodes[2], "ipv4/ip_forward", "0");
    let mesh = mesh_ipv4(&daemons[0]).to_string();
    let others = "198.51.100.0/24";
    first.run(["ip", "address", "add", "198.51.100.1/24", "dev", "eth1"]);
    site.insider.run(["ip", "address", "add", "198.51.100.9/24", "dev", "eth0"]);
    second.run([
        "wg",
        "set",
        "wgmesh0",
        "peer",
        &key,
        "allowed-ips",
        &format!("{mesh}/32,{others},{NETWORK}"),
    ]);
    second.run(["ip", "route", "add", others, "dev", "wgmesh0"]);
    assert!(!second.pings("198.51.100.9".parse::<Ipv4Addr>().unwrap()), "that network is not offered");

    // A table that is flushed with everything else comes back.
    first.run(["nft", "flush", "ruleset"]);
    eventually(PATIENCE, || has_table(first));
    first.feed(["nft", "-f", "-"], FOREIGN);

    daemons.remove(0).stop();
    assert!(!has_table(first));
    assert_eq!(switches(first), before, "what was switched on is off again");
    assert!(first.run(["nft", "list", "ruleset"]).contains("table inet foreign"));
    for host in &site.nodes[1..] {
        eventually(PATIENCE, || !has_route(host, NETWORK) && !has_route(host, NETWORK_V6));
    }
}

/// Issue 4, 5: changed by SIGHUP while a transfer runs; neither the transfer nor the interface notices.
#[test]
fn a_route_changes_under_a_transfer_that_does_not_notice() {
    let site = Site::new("sighup");
    let daemons = site.start(&format!("\"{NETWORK}\""), "\"10.76.0.0/15\"");
    let (first, second) = (&site.nodes[0], &site.nodes[1]);
    eventually(PATIENCE, || site.reaches_insider(1));
    // Before 6.6 Linux drops what is sent while a hook is added to a link.
    eventually(PATIENCE, || daemons.iter().all(|daemon| daemon.status_json()["ebpf"]["active"] == true));
    let index = || {
        site.nodes[..2]
            .iter()
            .map(|host| host.run(["cat", "/sys/class/net/wgmesh0/ifindex"]))
            .collect::<Vec<_>>()
    };
    let before = index();
    let transfer = second.spawn(["ping", "-n", "-q", "-i", "0.05", "-c", "200", "-W", "2", INSIDER]);
    let configured = fs::read_to_string(daemons[0].config()).unwrap();
    let advertise = |routes: &str| {
        let changed = configured.replace(&format!("\"{NETWORK}\""), routes);
        fs::write(daemons[0].config(), changed).unwrap();
        daemons[0].signal(Signal::SIGHUP);
    };
    advertise(&format!("\"{NETWORK}\", \"10.76.5.0/24\""));
    eventually(PATIENCE, || has_route(second, "10.76.5.0/24"));
    eventually(PATIENCE, || first.run(["nft", "list", "ruleset"]).contains("10.76.5.0/24"));
    advertise(&format!("\"{NETWORK}\""));
    eventually(PATIENCE, || !has_route(second, "10.76.5.0/24"));
    let report = String::from_utf8(transfer.wait().stdout).unwrap();
    println!("{report}");
    assert!(report.contains("200 received"), "{report}");
    assert_eq!(index(), before);
}

/// Issue 4, 5, W-D9: the default route, our LAN, the mesh's own subnet and another node's address, inside of what is
/// accepted; and a route of somebody else's where ours would stand.
#[test]
fn a_greedy_peer_gets_nothing_and_foreign_routes_stay() {
    let site = Site::new("greedy");
    let greedy =
        "\"0.0.0.0/0\", \"::/0\", \"192.0.2.0/24\", \"192.0.2.2/32\", \"10.0.0.0/8\", \"10.77.0.0/24\"";
    site.nodes[1].run(["ip", "route", "add", "blackhole", NETWORK, "metric", "1024"]);
    let daemons =
        site.start(greedy, "\"10.76.0.0/15\", \"192.0.0.0/16\", \"10.0.0.0/7\", \"::/1\", \"fc00::/7\"");
    eventually(PATIENCE, || site.reaches_insider(2));
    let (second, key) = (&site.nodes[1], node(&daemons[0], "public_key"));
    for host in &site.nodes[1..] {
        let allowed = host.run(["wg", "show", "wgmesh0", "allowed-ips"]);
        let of_first = allowed.lines().find(|line| line.starts_with(&key)).unwrap();
        let nets: Vec<_> = of_first
            .split_whitespace()
            .skip(1)
            .filter(|net| !net.ends_with("/32") && !net.ends_with("/128"))
            .collect();
        assert_eq!(nets, [NETWORK], "{of_first}");
        assert!(!of_first.contains("192.0.2"), "{of_first}");
        let routes = host.run(["ip", "route", "show", "dev", "wgmesh0"]);
        assert!(
            !routes.contains("default") && !routes.contains("192.0.2") && !routes.contains("10.0.0.0/8"),
            "{routes}"
        );
    }
    assert!(
        second.run(["ip", "route", "show", NETWORK]).contains("blackhole"),
        "a foreign route is not replaced"
    );
    let error = daemons[1].status_json()["kernel"]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains(NETWORK) && error.contains("belongs to something else"), "{error}");
    second.run(["ip", "route", "del", "blackhole", NETWORK, "metric", "1024"]);
    eventually(PATIENCE, || has_route(second, NETWORK));

    // What belongs to the mesh itself: its whole network, half of it, and the addresses of another node.
    let status = daemons[2].status_json();
    let [v4, v6] = ["mesh_ipv4", "mesh_ipv6"].map(|key| status["node"][key].as_str().unwrap().to_owned());
    let half = format!("{}.0.0/17", v4.split('.').take(2).collect::<Vec<_>>().join("."));
    let whole = half.replace("/17", "/16");
    let stolen =
        format!("\"{v4}/32\", \"{v6}/128\", \"{half}\", \"{whole}\", \"10.76.9.0/24\", \"{NETWORK}\"");
    let configured = fs::read_to_string(daemons[0].config()).unwrap();
    fs::write(daemons[0].config(), configured.replace(greedy, &stolen)).unwrap();
    daemons[0].signal(Signal::SIGHUP);
    eventually(PATIENCE, || has_route(second, "10.76.9.0/24"));
    let allowed = second.run(["wg", "show", "wgmesh0", "allowed-ips"]);
    let of_first = allowed.lines().find(|line| line.starts_with(&key)).unwrap();
    for net in [&format!("{v4}/32"), &format!("{v6}/128"), &half, &whole] {
        assert!(!of_first.split_whitespace().any(|found| found == net), "{net}: {of_first}");
    }
    assert!(second.pings(mesh_ipv4(&daemons[2])), "its address is still its own");
}

/// Issue 4, 4: what Docker and an older iptables forbid stays forbidden, and is said.
#[test]
fn firewalls_of_others_are_left_alone_and_reported() {
    let site = Site::new("docker");
    let first = &site.nodes[0];
    first.forbid_forwarding();
    let before = first.foreign_rules();
    let daemons = site.start(&format!("\"{NETWORK}\""), &format!("\"{NETWORK}\""));
    eventually(PATIENCE, || has_route(&site.nodes[1], NETWORK));
    eventually(PATIENCE, || problems(&daemons[0]).len() == 2);
    let problems = problems(&daemons[0]);
    println!("{problems:#?}");
    assert!(problems[0].contains("iptables-legacy chain filter FORWARD"), "{problems:?}");
    assert!(problems[1].contains("nftables chain ip filter FORWARD"), "{problems:?}");
    assert!(first.daemon_log().contains("packets of the mesh may not be passed on"));
    assert!(!site.reaches_insider(1), "the policies hold");
    assert_eq!(first.foreign_rules(), before);
    first.run(["iptables-legacy", "-P", "FORWARD", "ACCEPT"]);
    first.run(["nft", "add", "rule", "ip", "filter", "FORWARD", "accept"]);
    eventually(PATIENCE, || site.reaches_insider(1));
}

/// W-D46, DESIGN 8: after a crash the packets still flow, and the next daemon knows what to take back.
#[test]
fn what_a_crashed_daemon_switched_on_its_successor_takes_back() {
    let site = Site::new("crash");
    let first = &site.nodes[0];
    let before = switches(first);
    let mut daemons = site.start(&format!("\"{NETWORK}\""), &format!("\"{NETWORK}\""));
    eventually(PATIENCE, || site.reaches_insider(1));
    let mut last = daemons.remove(0);
    // A machine that is busy with other tests drops a packet now and then.
    let lost = least_of_three(|| {
        let ping = site.nodes[1].spawn(["ping", "-n", "-i", "0.1", "-c", "60", "-W", "2", INSIDER]);
        last.signal(Signal::SIGKILL);
        last.wait_exit();
        std::thread::sleep(Duration::from_secs(1));
        assert!(has_table(first));
        last = first.daemon(&Settings::new(SECRET).with(&format!("advertise_routes = [\"{NETWORK}\"]")));
        last.wait_ready();
        let report = String::from_utf8(ping.wait().stdout).unwrap();
        60 - u32::try_from(report.lines().filter(|line| line.contains("bytes from")).count()).unwrap()
    });
    assert_eq!(lost, 0);
    last.stop();
    assert!(!has_table(first));
    assert_eq!(switches(first), before);
}

fn problems(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status_json();
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Returns the IPv4 switches of a host's links, the mesh's own left out where there is none.
fn switches(host: &Host) -> std::collections::BTreeMap<String, String> {
    let text = host.run(["sh", "-c", "cd /proc/sys/net/ipv4/conf; grep -H . */forwarding"]);
    let lines = text.lines().filter_map(|line| line.split_once("/forwarding:"));
    lines.map(|(link, value)| (link.to_owned(), value.to_owned())).collect()
}

fn sysctl(host: &Host, name: &str, value: &str) {
    host.run(["sh", "-c", &format!("echo {value} >/proc/sys/net/{name}")]);
}

fn has_table(host: &Host) -> bool {
    host.run(["nft", "list", "tables"]).contains("inet wgmesh-wgmesh0")
}

fn has_route(host: &Host, network: &str) -> bool {
    let family = if network.contains(':') { "-6" } else { "-4" };
    host.run(["ip", family, "route", "show", "dev", "wgmesh0"]).contains(network)
}
