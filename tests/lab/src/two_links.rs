//! Two hosts with two links in common.

use std::net::{IpAddr, SocketAddr};

use crate::{Cut, Daemon, Host, Lab, Link, Settings, Switch, eventually};

/// Longer than a meeting takes on a machine that is busy with other tests.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Two hosts, each with a cable into two switches.
pub struct TwoLinks {
    /// Their daemons.
    pub daemons: [Daemon; 2],
    /// The hosts.
    pub hosts: [Host; 2],
    _links: Vec<Link>,
    _switches: [Switch; 2],
    /// Dropped last, so that it still prints every log where something went wrong.
    _lab: Lab,
}

impl TwoLinks {
    /// Builds it, lets `prepare` change the hosts, starts the daemons and waits until they reach each other.
    pub fn meet(name: &str, settings: &Settings, prepare: impl FnOnce([&Host; 2])) -> Self {
        let lab = Lab::new(name);
        let switches = ["one", "other"].map(|name| lab.switch(name));
        let hosts = ["h1", "h2"].map(|name| lab.host(name));
        let mut links = Vec::new();
        for (number, host) in (1..).zip(&hosts) {
            for (switch, network) in switches.iter().zip(["192.0.2", "198.51.100"]) {
                links.push(lab.link(host, switch, &[&format!("{network}.{number}/24")]));
            }
        }
        prepare(hosts.each_ref());
        let daemons = hosts.each_ref().map(|host| host.daemon(settings));
        for daemon in &daemons {
            daemon.wait_ready();
        }
        let pair = Self { daemons, hosts, _links: links, _switches: switches, _lab: lab };
        eventually(PATIENCE, || pair.is_direct());
        pair
    }

    /// Whether each says that it reaches the other directly.
    pub fn is_direct(&self) -> bool {
        self.daemons.iter().all(|daemon| daemon.status_json()["peers"][0]["state"] == "direct")
    }

    /// Returns an address in the mesh of one of the two: `mesh_ipv4` or `mesh_ipv6`.
    ///
    /// # Panics
    /// Where `status` has none.
    pub fn mesh_address(&self, index: usize, family: &str) -> IpAddr {
        let status = self.daemons[index].status_json();
        status["node"][family].as_str().and_then(|text| text.parse().ok()).expect("a status has it")
    }

    /// Returns the MTU that one of the two says its path to the other has.
    pub fn mtu(&self, index: usize) -> Option<u64> {
        self.daemons[index].status_json()["peers"][0]["path"]["mtu"].as_u64()
    }

    /// Returns where the kernel of one of the two sends to the other.
    pub fn endpoint(&self, index: usize) -> Option<SocketAddr> {
        let dump = self.hosts[index].run(["wg", "show", "wgmesh0", "endpoints"]);
        dump.split_whitespace().nth(1)?.parse().ok()
    }

    /// Returns the link by which the kernel of one of the two sends to the other.
    ///
    /// # Panics
    /// Where it has no endpoint.
    pub fn link_in_use(&self, index: usize) -> &'static str {
        let endpoint = self.endpoint(index).expect("the two have met");
        let route = self.hosts[index].run(["ip", "route", "get", &endpoint.ip().to_string()]);
        let scope =
            matches!(endpoint, SocketAddr::V6(v6) if v6.scope_id() == 3) || route.contains("dev eth1");
        if scope { "eth1" } else { "eth0" }
    }

    /// Cuts the link by which the first sends to the second, and returns its name.
    pub fn cut(&self, cut: Cut) -> &'static str {
        let link = self.link_in_use(0);
        cut.begin(self.hosts.each_ref(), [link; 2], [""; 2]);
        link
    }

    /// Ends the cut.
    pub fn heal(&self) {
        Cut::end(self.hosts.each_ref());
    }
}
