//! Hosts behind one and the same NAT.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Internet, Member, NatKind, Pair, Settings, Site, StunServers, eventually};

use super::PATIENCE;
use crate::mesh::{SECRET, mesh_ipv4, node};

/// A NAT with two hosts, and an introducer; dropped in this order.
struct House {
    daemons: Vec<Daemon>,
    member: Member,
    site: Site,
    _introducer: (Daemon, Host),
    _stun: StunServers,
    _internet: Internet,
}

impl House {
    /// Builds it and starts all daemons. The second host is in a network of its own or in the first one's.
    fn new(name: &str, kind: NatKind, lan: usize) -> Self {
        let internet = Internet::new(name);
        let stun = StunServers::start(&internet);
        let address = Pair::introducer_address(1);
        let introducer = internet.server("introducer", &[address]);
        // What is looked for here are direct paths.
        let settings = Settings::new(SECRET).over_internet(&[]).with("[relay]\nserve = false");
        let daemon = introducer.daemon(&settings);
        daemon.wait_ready();
        let mut site = internet.site("left", kind);
        let member = site.nat.as_mut().unwrap().member(&internet, "right", lan);
        let ports = [(&site.host, 51820), (&member.host, 51821)];
        let start = |(host, port): (&Host, u16)| {
            let settings = Settings::new(SECRET).with(&format!("listen_port = {port}"));
            host.daemon(&settings.over_internet(&[address]))
        };
        let daemons = ports.map(start);
        for daemon in &daemons {
            daemon.wait_ready();
        }
        let daemons = daemons.into();
        Self { daemons, member, site, _introducer: (daemon, introducer), _stun: stun, _internet: internet }
    }

    /// Returns how one of the two sees the other one.
    fn peer(&self, own: usize) -> Option<Value> {
        let key = node(&self.daemons[1 - own], "public_key");
        let status = self.daemons[own].status_json();
        let peers = status["peers"].as_array().unwrap();
        peers.iter().find(|peer| peer["public_key"] == *key).cloned()
    }

    fn is_direct(&self) -> bool {
        [0, 1].iter().all(|own| self.peer(*own).is_some_and(|peer| peer["state"] == "direct"))
    }

    /// Returns where one of the two sends what is for the other one.
    fn endpoint(&self, own: usize) -> String {
        self.peer(own).unwrap()["path"]["endpoint"].as_str().unwrap().to_owned()
    }

    /// Returns what `netcheck` tells of the NAT's hairpinning.
    fn hairpin(&self) -> Value {
        let config = self.daemons[0].config().to_str().unwrap();
        let told = self.site.host.wgmesh(["netcheck", "--json", "--config", config]);
        serde_json::from_slice::<Value>(&told.stdout).unwrap()["hairpin"].clone()
    }

    fn pings(&self) -> bool {
        self.site.host.pings(mesh_ipv4(&self.daemons[1]))
    }
}

/// The private addresses travel in the records; nothing announces them on the link.
#[test]
fn two_hosts_behind_one_nat_use_their_own_network() {
    for kind in [NatKind::PortRestricted, NatKind::Symmetric] {
        let house = House::new("one-network", kind, 0);
        eventually(PATIENCE, || house.is_direct());
        eventually(PATIENCE, || {
            house.endpoint(0) == format!("{}:51821", house.member.address)
                && house.endpoint(1) == format!("{}:51820", house.site.address)
        });
        assert!(house.pings());
    }
}

/// RFC 4787 §6: two networks behind one NAT reach each other only where it reflects, and `netcheck` says whether it does.
#[test]
fn hairpinning_decides_whether_two_networks_of_one_nat_get_a_direct_path() {
    let mut house = House::new("hairpin", NatKind::PortRestricted, 1);
    eventually(PATIENCE, || [0, 1].iter().all(|own| house.peer(*own).is_some()));
    std::thread::sleep(Duration::from_secs(10));
    assert!(!house.is_direct() && !house.pings());
    eventually(PATIENCE, || house.hairpin() == false);
    eventually(PATIENCE, || [0, 1].iter().all(|own| house.peer(*own).unwrap()["why"].is_string()));

    house.site.nat.as_mut().unwrap().set_hairpin(true);

    eventually(PATIENCE * 2, || house.is_direct());
    let public: Ipv4Addr = house.site.public();
    eventually(PATIENCE, || house.hairpin() == true);
    assert_eq!([0, 1].map(|own| house.endpoint(own)), [format!("{public}:51821"), format!("{public}:51820")]);
    assert!(house.pings());
}
