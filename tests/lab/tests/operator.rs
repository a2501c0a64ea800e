//! What an operator asks a running daemon and tells it: `netcheck`, `ping`, `peers`, `peer add` and `peer remove`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use wgmesh_core::secret::MeshSecret;
use wgmesh_lab::{Daemon, Host, Internet, NatKind, Pair, Settings, StunServers, eventually, wait_for};

/// Longer than any meeting takes, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(40);

/// Where the two of [`two_strangers`] are.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

/// The exchange's port in the lab.
const EXCHANGE_PORT: u16 = 51900;

/// P-17, P-18, X-21: `netcheck` and `ping` tell what is really there, for people, programs and scripts.
#[test]
fn an_operator_learns_what_the_nat_does_and_how_far_away_a_peer_is() {
    let internet = Internet::new("operator-ask");
    let stun = StunServers::start(&internet);
    let pair = Pair::start(&internet, 1, [NatKind::PortRestricted, NatKind::PortRestricted]);
    assert!(pair.meet(PATIENCE).from_start.is_some());
    let config = pair.daemons[0].config().to_owned();

    let node = Node { host: &pair.sites[0].host, config: &config };
    // A server that answers late, as on a busy machine, has not answered.
    let has_heard_all = |report: &Value| report["nat_type"] == "port-restricted";
    let report = wait_for(PATIENCE, || Some(node.json(&["netcheck", "--json"])).filter(has_heard_all));
    println!("{report}");
    assert_eq!(report["checking"], false);
    let mapped: SocketAddr = report["mapped_v4"].as_str().unwrap().parse().unwrap();
    assert_eq!(mapped.ip(), IpAddr::from(pair.sites[0].public()));
    assert_eq!(
        report["introducers"].as_array().map(Vec::len),
        Some(2),
        "the introducer, and the other by now"
    );
    eventually(PATIENCE, || node.text(&["netcheck"]).contains("a NAT that is symmetric: they need a relay"));
    let [a, b, c, _] = pair.sites[0].address.octets();
    assert_eq!((&report["cgnat"], &report["routers"][0]), (&false.into(), &format!("{a}.{b}.{c}.1").into()));

    let right = pair.mesh_ipv4(1).to_string();
    let pings = node.json(&["ping", &right, "-n", "3", "--json"]);
    println!("{pings}");
    assert_eq!((&pings["sent"], &pings["received"], &pings["direct"]), (&3.into(), &3.into(), &true.into()));
    println!("{}", node.text(&["ping", &right, "-n", "1"]));

    let unknown = node.ask(&["ping", "10.255.255.254"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no peer is called"), "{unknown:?}");

    drop(stun);
    let asked = Instant::now();
    let silent = node.json(&["netcheck", "--json"]);
    println!("{silent} after {:?}", asked.elapsed());
    assert_eq!(silent["nat_type"], "unknown", "that nobody answers is no error");
    assert!(asked.elapsed() < Duration::from_secs(20));

    pair.daemons[1].signal(Signal::SIGKILL);
    let lost = node.ask(&["ping", &right, "-n", "1"]);
    println!("{}", String::from_utf8_lossy(&lost.stderr));
    assert_eq!(lost.status.code(), Some(1), "{lost:?}");
}

/// P-17: a provider's NAT behind the home's own router, which has a private address on both sides of this host.
#[test]
fn an_operator_learns_of_the_providers_nat() {
    let internet = Internet::new("operator-cgnat");
    let stun = StunServers::start(&internet);
    let pair = Pair::start(&internet, 1, [NatKind::Cgnat, NatKind::None]);
    let node = Node { host: &pair.sites[0].host, config: pair.daemons[0].config() };
    pair.daemons[0].wait_ready();

    let report = node.json(&["netcheck", "--json"]);

    println!("{report}");
    assert_eq!(report["cgnat"], true);
    assert!(report["routers"][1].as_str().is_some_and(|router| router.starts_with("100.64.")));
    assert!(node.text(&["netcheck"]).contains("behind one of the provider"));
    drop(stun);
}

/// M-4, M-5, M-6, M-26, P-9: a node that is named to a running daemon is met at once and over restarts; one that is
/// removed is gone from the kernel.
#[test]
fn a_node_that_the_operator_names_is_met_and_one_removed_is_gone() {
    let internet = Internet::new("operator-name");
    let (hosts, [first, second]) = two_strangers(&internet);
    let config = first.config().to_owned();
    let node = Node { host: &hosts[0], config: &config };
    let name = format!("{}:{EXCHANGE_PORT}", ADDRESSES[1]);

    let added = node.json(&["peer", "add", &name, "--json"]);

    let key = |daemon: &Daemon| daemon.status_json()["node"]["public_key"].clone();
    assert_eq!(added["public_key"], key(&second), "{added}");
    meet(&first);
    assert_eq!(node.json(&["peers", "--json"])["named"]["bootstrap_nodes"][0], name.as_str());

    first.stop();
    std::fs::remove_file(hosts[0].folder().join("state/wgmesh0-peers.json")).ok();
    let first = hosts[0].daemon(&settings());
    first.wait_ready();
    meet(&first);

    let key = first.status_json()["peers"][0]["public_key"].as_str().unwrap().to_owned();
    node.text(&["peer", "remove", &name]);
    second.kill();
    node.text(&["peer", "remove", &key]);
    assert_eq!(node.json(&["peers", "--json"])["named"]["bootstrap_nodes"].as_array().unwrap().len(), 0);
    eventually(PATIENCE, || !hosts[0].run(["wg", "show", "all", "peers"]).contains(&key));
    assert_eq!(node.ask(&["peer", "remove", &key]).status.code(), Some(1));
}

/// P-9: a peer is met by its key and the address of its WireGuard alone.
#[test]
fn a_peer_named_by_key_and_address_is_met() {
    let internet = Internet::new("operator-key");
    let (hosts, [first, second]) = two_strangers(&internet);
    let key = second.status_json()["node"]["public_key"].as_str().unwrap().to_owned();
    let node = Node { host: &hosts[0], config: first.config() };

    node.text(&["peer", "add", &format!("{key}@{}:51820", ADDRESSES[1])]);

    meet(&first);
}

/// M-4, M-33, X-41: who answers where another was named or met is refused, and told of, until the operator names it anew.
#[test]
fn a_node_with_another_key_than_expected_is_refused_by_name() {
    let internet = Internet::new("operator-pin");
    let (hosts, [first, second]) = two_strangers(&internet);
    let node = Node { host: &hosts[0], config: first.config() };
    let name = format!("{}:{EXCHANGE_PORT}", ADDRESSES[1]);
    let key = |daemon: &Daemon| daemon.status_json()["node"]["public_key"].as_str().unwrap().to_owned();
    let is_refused = |count: u64| {
        let status = first.status_json();
        let sources = status["sources"].as_array().unwrap();
        let is_told =
            sources.iter().any(|source| source["error"].as_str().is_some_and(|text| text.contains(&name)));
        is_told && status["drops"]["session wrong key"].as_u64().is_some_and(|drops| drops >= count)
    };

    let refused = node.ask(&["peer", "add", &format!("{name}#{}", key(&first))]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && told.contains(&name), "{refused:?}");
    println!("{told}");
    eventually(PATIENCE, || is_refused(1));
    assert_eq!(first.status_json()["peers"].as_array().unwrap().len(), 0);

    node.text(&["peer", "add", &format!("{name}#{}", key(&second))]);
    meet(&first);
    assert_eq!(first.status_json()["peers"][0]["public_key"], key(&second).as_str());
}

/// Starts two public nodes that do not know of each other.
fn two_strangers(internet: &Internet) -> ([Host; 2], [Daemon; 2]) {
    let hosts = ADDRESSES.map(|address| internet.server(&format!("node{}", address.octets()[3]), &[address]));
    let daemons = hosts.each_ref().map(|host| host.daemon(&settings()));
    for daemon in &daemons {
        daemon.wait_ready();
    }
    (hosts, daemons)
}

/// Returns settings of a node that knows nobody.
fn settings() -> Settings {
    Settings::new(&MeshSecret::from_random([7; 32]).to_uri()).over_internet(&[])
}

fn meet(daemon: &Daemon) {
    eventually(PATIENCE, || daemon.status_json()["peers"][0]["state"] == "direct");
}

/// A daemon as the command line reaches it.
struct Node<'a> {
    host: &'a Host,
    config: &'a Path,
}

impl Node<'_> {
    fn ask(&self, words: &[&str]) -> Output {
        let config = self.config.to_str().unwrap();
        self.host.wgmesh(words.iter().copied().chain(["--config", config]))
    }

    #[track_caller]
    fn text(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.text(words)).unwrap()
    }
}
