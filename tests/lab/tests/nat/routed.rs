//! Pairs that no packet can join directly, and a relay that routes between them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use wgmesh_lab::NatKind::{None, PortRestricted, Symmetric};
use wgmesh_lab::{Host, Internet, Link, NatKind, Pair, Settings, StunServers, Switch, eventually, show};

use super::PATIENCE;
use super::relays::{back_to_direct, block};
use crate::mesh::SECRET;

/// The network behind the second host, and a host in it.
const NETWORK: &str = "10.77.0.0/24";
const INSIDER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// A table of somebody else.
const FOREIGN: &str =
    "add table inet foreign\nadd chain inet foreign c { type filter hook forward priority 5; }\n";

/// A pair whose relay routes, and a network behind the second host.
struct World {
    pair: Pair,
    insider: Host,
    _cables: [Link; 2],
    _inside: Switch,
    _stun: StunServers,
    _internet: Internet,
}

impl World {
    /// Starts them and waits until the relay routes; `before` comes once they run.
    fn meet(name: &str, kinds: [NatKind; 2], before: impl FnOnce(&Pair)) -> Self {
        let internet = Internet::new(name);
        let stun = StunServers::start(&internet);
        let pair = Pair::start_as(&internet, 1, kinds, &settings());
        before(&pair);
        let (lab, inside) = (internet.lab(), internet.lab().switch("inside"));
        let insider = lab.host("insider");
        let cables = [
            lab.link(&pair.sites[1].host, &inside, &["10.77.0.1/24"]),
            lab.link(&insider, &inside, &["10.77.0.9/24"]),
        ];
        insider.run(["ip", "route", "add", "default", "via", "10.77.0.1"]);
        let world =
            Self { pair, insider, _cables: cables, _inside: inside, _stun: stun, _internet: internet };
        eventually(PATIENCE, || world.is_routed());
        let outcome = world.pair.meet(PATIENCE);
        assert!(outcome.from_start.is_some(), "{outcome:?}");
        show(&format!("{name}: first ping {:?} after the start", outcome.from_start));
        world
    }

    fn is_routed(&self) -> bool {
        self.pair.views().iter().all(|view| view.state == "relayed" && view.path == "routed")
    }
}

/// Settings of a pair whose second host has a network behind it, and of a relay that routes.
pub(super) fn settings() -> [Settings; 3] {
    let lines = ["accept_routes", "advertise_routes", "accept_routes"];
    let introducers: [&[Ipv4Addr]; 3] = [&[Pair::introducer_address(1)], &[Pair::introducer_address(1)], &[]];
    [0, 1, 2].map(|index: usize| {
        let settings = Settings::new(SECRET).with(&format!("{} = [\"{NETWORK}\"]", lines[index]));
        settings.over_internet(introducers[index]).with("[relay]\nmode = \"routed\"")
    })
}

/// Issue 4, 4; W-D11, W-D45, W-D46: a host and a network behind it are reached through the relay, which lets nothing else
/// through and takes back what it has done.
#[test]
fn a_host_and_a_network_behind_it_are_reached_through_a_relay_that_routes() {
    let world = World::meet("routed", [Symmetric, Symmetric], |pair| {
        pair.introducer_host.feed(["nft", "-f", "-"], FOREIGN);
    });
    let Pair { sites, introducer_host: relay, introducer, .. } = &world.pair;
    let [left, right] = [0, 1].map(|index| world.pair.mesh_ipv4(index));
    eventually(PATIENCE, || sites[0].host.pings(INSIDER));
    assert!(world.insider.pings(left) && sites[1].host.pings(left) && sites[0].host.pings(right));

    let status = introducer.status_json();
    let (key, gateway) = (text(&status, "public_key"), text(&status, "mesh_ipv4"));
    assert!(world.pair.views().iter().all(|view| view.relay == key), "{:?}", world.pair.views());
    let allowed = sites[0].host.run(["wg", "show", "wgmesh0", "allowed-ips"]);
    let of_relay = allowed.lines().find(|line| line.starts_with(&key)).unwrap_or_default();
    assert!(of_relay.contains(&format!("{right}/32")) && of_relay.contains(NETWORK), "{allowed}");
    for target in [right, INSIDER] {
        let route = sites[0].host.run(["ip", "route", "get", &target.to_string()]);
        assert!(route.contains(&format!("via {gateway} dev wgmesh0")), "{route}");
    }

    let table = relay.run(["nft", "list", "table", "inet", "wgmesh-wgmesh0"]);
    println!("{table}");
    for (from, to) in [(left, right), (right, left)] {
        assert!(table.contains(&format!("between peers, {from}/32 to {to}/32")), "{table}");
    }
    assert!(table.contains(&format!("between peers, {left}/32 to {NETWORK}")), "{table}");
    let switches = switches(relay);
    assert_eq!((&switches["wgmesh0"][..], &switches["eth0"][..]), ("1", "0"));
    assert_eq!(status["relay"]["routed_pairs"], 1);
    let name = sites[1].host.name();
    let told = sites[0].host.wgmesh(["explain", name, "--config", config(&world.pair, 0)]);
    let told = String::from_utf8(told.stdout).unwrap();
    println!("{told}");
    assert!(told.contains("is relayed (routed) by routed"), "{told}");

    let World { pair: Pair { introducer, introducer_host: relay, sites, .. }, .. } = world;
    introducer.stop();
    assert!(!relay.run(["nft", "list", "tables"]).contains("inet wgmesh-wgmesh0"));
    assert!(relay.run(["nft", "list", "ruleset"]).contains("table inet foreign"));
    assert!(!sites[0].host.pings(right), "nobody is between them any more");
}

/// Issue 4, 4: what Docker and an older iptables forbid on the relay stays forbidden, and is said.
#[test]
fn firewalls_of_others_on_a_relay_are_left_alone_and_reported() {
    let world = World::meet("routed-docker", [Symmetric, Symmetric], |_| {});
    let Pair { sites, introducer_host: relay, introducer, .. } = &world.pair;
    let right = world.pair.mesh_ipv4(1);
    assert!(sites[0].host.pings(right));
    relay.forbid_forwarding();
    let before = relay.foreign_rules();
    let problems = || introducer.status_json()["problems"].to_string();
    eventually(PATIENCE, || problems().contains("iptables-legacy chain filter FORWARD"));
    eventually(PATIENCE, || problems().contains("nftables chain ip filter FORWARD"));
    println!("{}", problems());
    assert!(!sites[0].host.pings(right), "the policies hold");
    assert_eq!(relay.foreign_rules(), before);
    relay.run(["iptables-legacy", "-P", "FORWARD", "ACCEPT"]);
    relay.run(["nft", "add", "rule", "ip", "filter", "FORWARD", "accept"]);
    eventually(PATIENCE, || sites[0].host.pings(right));
    eventually(PATIENCE, || world.is_routed() || world.pair.views().iter().all(|view| view.relay.is_empty()));
}

/// Issue 4, 2; W-D12: once nothing is in the way any more both ends take the direct path at the same time.
#[test]
fn a_direct_path_that_opens_is_taken_from_a_relay_that_routes() {
    let world = World::meet("routed-back", [None, PortRestricted], block);
    let summary = back_to_direct(&world.pair);
    show(&format!("from a relay that routes to the direct path: {summary}"));
    let received: u32 = summary.split(' ').nth(3).and_then(|word| word.parse().ok()).unwrap();
    assert!(received >= 480, "{summary}");
    assert!(world.pair.views().iter().all(|view| view.is_direct), "{:?}", world.pair.views());
}

fn text(status: &serde_json::Value, name: &str) -> String {
    status["node"][name].as_str().unwrap().to_owned()
}

fn config(pair: &Pair, index: usize) -> &str {
    pair.daemons[index].config().to_str().unwrap()
}

/// Returns the IPv4 switches of a host's links.
fn switches(host: &Host) -> BTreeMap<String, String> {
    let text = host.run(["sh", "-c", "cd /proc/sys/net/ipv4/conf; grep -H . */forwarding"]);
    let lines = text.lines().filter_map(|line| line.split_once("/forwarding:"));
    lines.map(|(link, value)| (link.to_owned(), value.to_owned())).collect()
}
