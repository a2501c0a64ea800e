//! Paths through NATs: they are found, they last, and what changes under them is healed.
//!
//! That every pair of kinds meets is shown by `cargo xtask lab nat-matrix`; here stands what can change afterwards.

mod bad_relays;
mod changes;
mod hostile;
mod lives;
mod member;
mod neighbours;
mod pool;
mod relays;
mod routed;

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use wgmesh_lab::{Internet, NatKind, Pair, Pings, StunServers, eventually, show};

/// Longer than any meeting takes, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(40);

/// Within this time what has changed should be healed. Shown beside each time; a busy machine may miss it.
const GOAL: Duration = Duration::from_secs(5);

/// By then it must be healed, on whatever machine: long before the slow ways, WireGuard's own and STUN's refresh.
const LIMIT: Duration = Duration::from_secs(18);

/// For how long it is watched.
const WATCHED: Duration = Duration::from_secs(20);

/// Between two pings of a path that is watched.
const PING_INTERVAL: Duration = Duration::from_millis(200);

/// What such a ping carries, as by default.
const PING_BYTES: u32 = 56;

/// A pair on an internet of its own.
struct World {
    pair: Pair,
    stun: StunServers,
    internet: Internet,
}

impl World {
    /// Starts a pair and waits until both sides are direct.
    fn meet(name: &str, kinds: [NatKind; 2]) -> Self {
        let internet = Internet::new(name);
        let stun = StunServers::start(&internet);
        let pair = Pair::start(&internet, 1, kinds);
        let outcome = pair.meet(PATIENCE);
        assert!(outcome.from_start.is_some(), "{outcome:?}");
        let world = Self { pair, stun, internet };
        world.wait_direct();
        world
    }

    fn wait_direct(&self) {
        eventually(PATIENCE, || self.is_direct());
    }

    fn is_direct(&self) -> bool {
        self.pair.views().iter().all(|view| view.is_direct && view.state == "direct")
    }

    /// Pings from left to right while something changes, shows how long no answer came, and fails where it stayed away.
    fn heals(&mut self, what: &str, change: impl FnOnce(&mut Self)) {
        let target = self.pair.mesh_ipv4(1);
        let pings = Pings::start(&self.pair.sites[0].host, target, PING_INTERVAL, PING_BYTES);
        std::thread::sleep(Duration::from_secs(2));
        let before = SystemTime::now();
        change(self);
        std::thread::sleep(WATCHED);
        let silence = pings.finish().longest_silence(before);
        let verdict = if silence < GOAL { "" } else { ", goal of 5 s MISSED" };
        show(&format!("{what}: healed in {:.2} s{verdict}", silence.as_secs_f64()));
        assert!(silence < LIMIT, "{what}: silent for {silence:?}; {:?}", self.pair.views());
    }
}

/// M-30, W-X22, W-X23, W-X24, W-X34, W-X35, W-X37: three daemons, nothing known but the introducer; X-18 names the source.
#[test]
fn two_hosts_behind_nats_meet_through_an_introducer() {
    let world = World::meet("meet", [NatKind::PortRestricted, NatKind::PortRewriting]);
    for index in [0, 1] {
        let status = world.pair.daemons[index].status_json();
        let node = &status["node"];
        assert_eq!(node["nat_type"], "port-restricted", "{status}");
        let mapped: std::net::SocketAddr = node["mapped"].as_str().unwrap().parse().unwrap();
        assert_eq!(mapped.ip(), world.pair.sites[index].public());
        assert!(world.pair.views()[1 - index].endpoint == Some(mapped), "{:?}", world.pair.views());
        let other = world.pair.daemons[1 - index].status_json()["node"]["public_key"].clone();
        let peer =
            status["peers"].as_array().unwrap().iter().find(|peer| peer["public_key"] == other).unwrap();
        let sources = peer["sources"].as_array().unwrap();
        assert!(sources.iter().any(|source| source == "dht-rendezvous"), "{peer}");
    }
}

/// No server is needed once two have met, and none to stay in touch.
#[test]
fn introducer_and_stun_servers_may_go_once_two_have_met() {
    let World { pair, stun, internet } =
        World::meet("gone", [NatKind::PortRestricted, NatKind::PortRestricted]);
    let Pair { introducer, daemons, sites, introducer_host, .. } = pair;
    drop(stun);
    introducer.kill();
    introducer_host.run(["ip", "link", "set", "eth0", "down"]);
    let status = daemons[1].status_json();
    let target: Ipv4Addr = status["node"]["mesh_ipv4"].as_str().unwrap().parse().unwrap();
    let pings = Pings::start(&sites[0].host, target, PING_INTERVAL, PING_BYTES);
    let before = SystemTime::now();
    std::thread::sleep(Duration::from_secs(30));
    let silence = pings.finish().longest_silence(before);
    assert!(silence < GOAL, "silent for {silence:?}");
    drop((daemons, sites, introducer_host, internet));
}

/// DESIGN 6: what nobody uses stays open, although routers forget within half a minute.
#[test]
fn a_quiet_path_keeps_its_mappings() {
    let mut world = World::meet("quiet-path", [NatKind::PortRestricted, NatKind::PortRestricted]);
    for site in &mut world.pair.sites {
        site.nat.as_mut().unwrap().set_mapping_lifetime(Duration::from_secs(30));
    }
    let host = &world.pair.sites[0].host;
    let target = world.pair.mesh_ipv4(1);
    eventually(PATIENCE, || host.pings(target));
    std::thread::sleep(Duration::from_secs(70));
    assert!(host.pings(target), "{:?}", world.pair.views());
}
