//! Two hosts that share no network, and a third that is in both of theirs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nix::net::if_::if_nametoindex;
use wgmesh_core::kernel::Underlay;
use wgmesh_core::key::PublicKey;
use wgmesh_core::relay::{Forwarding, RelayEnd};

use crate::{Host, Lab, Switch};

/// The relay's ports for the left and the right host.
pub const RELAY_PORTS: [u16; 2] = [40_001, 40_002];
/// WireGuard's port on both.
pub const WIREGUARD_PORT: u16 = 51_820;
/// Addresses of the left and the right host in the mesh.
pub const INNER: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

/// The version of IP that carries the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The hosts. WireGuard is configured by hand, and no daemon runs.
pub struct Relayed {
    /// One host, with the relay's `eth0` beyond its `eth0`.
    pub left: Host,
    /// The host between; it forwards nothing by itself.
    pub relay: Host,
    /// The other host, with the relay's `eth1` beyond its `eth0`.
    pub right: Host,
    direct: Switch,
    _sides: [Switch; 2],
    lab: Lab,
}

impl Family {
    /// Returns the addresses of the left host, of the relay on either side, and of the right host.
    pub fn outer(self) -> [IpAddr; 4] {
        let texts = match self {
            Self::V4 => ["192.0.2.1", "192.0.2.9", "198.51.100.9", "198.51.100.1"],
            Self::V6 => ["2001:db8:1::1", "2001:db8:1::9", "2001:db8:2::9", "2001:db8:2::1"],
        };
        texts.map(|text| text.parse().expect("these are addresses"))
    }

    /// Returns what the relay is to pass on.
    pub fn forwarding(self) -> Forwarding {
        let [left, by_left, by_right, right] = self.outer();
        let end = |peer, local| RelayEnd { peer: SocketAddr::new(peer, WIREGUARD_PORT), local };
        Forwarding {
            pair: [PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32])],
            ports: RELAY_PORTS,
            ends: [Some(end(left, by_left)), Some(end(right, by_right))],
        }
    }

    /// Returns where the left and the right host find each other through the relay.
    pub fn endpoints(self) -> [SocketAddr; 2] {
        let [_, by_left, by_right, _] = self.outer();
        [SocketAddr::new(by_left, RELAY_PORTS[0]), SocketAddr::new(by_right, RELAY_PORTS[1])]
    }

    fn with_prefix(self, index: usize) -> String {
        let length = match self {
            Self::V4 => 24,
            Self::V6 => 64,
        };
        format!("{}/{length}", self.outer()[index])
    }
}

impl Relayed {
    /// Makes the hosts with addresses of both families.
    pub fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let (left, relay, right) = (lab.host("left"), lab.host("relay"), lab.host("right"));
        let sides = [lab.switch("one"), lab.switch("other")];
        for (host, side, index) in [(&left, 0, 0), (&relay, 0, 1), (&relay, 1, 2), (&right, 1, 3)] {
            let addresses = [Family::V4, Family::V6].map(|family| family.with_prefix(index));
            lab.link(host, &sides[side], &addresses.each_ref().map(String::as_str));
        }
        Self { left, relay, right, direct: lab.switch("direct"), _sides: sides, lab }
    }

    /// Plugs both hosts into one switch too, and returns where they find each other there.
    pub fn connect_directly(&self) -> [SocketAddr; 2] {
        self.lab.link(&self.left, &self.direct, &["203.0.113.1/24"]);
        self.lab.link(&self.right, &self.direct, &["203.0.113.2/24"]);
        ["203.0.113.2", "203.0.113.1"]
            .map(|address| SocketAddr::new(address.parse().expect("these are addresses"), WIREGUARD_PORT))
    }

    /// Returns the relay's links.
    pub fn underlay(&self) -> Vec<Underlay> {
        self.relay.namespace().run(|| {
            let link = |name: &str| Underlay {
                index: if_nametoindex(name).expect("the relay has it"),
                name: name.to_owned(),
                multicast: true,
                ethernet: true,
                addresses: BTreeSet::new(),
            };
            ["eth0", "eth1"].map(link).to_vec()
        })
    }

    /// Makes WireGuard anew on both hosts, each of which finds the other one at its endpoint.
    #[track_caller]
    pub fn wire(&self, endpoints: [SocketAddr; 2]) {
        let hosts = [&self.left, &self.right];
        let private = hosts.map(|host| host.run(["wg", "genkey"]));
        let public = [0, 1].map(|at| hosts[at].feed(["wg", "pubkey"], &private[at]).trim().to_owned());
        for (at, host) in hosts.into_iter().enumerate() {
            host.exec(["ip", "link", "del", "wg0"]);
            host.run(["ip", "link", "add", "wg0", "type", "wireguard"]);
            let (private, public, inner) = (&private[at], &public[1 - at], INNER[1 - at]);
            let config = format!(
                "[Interface]\nListenPort = {WIREGUARD_PORT}\nPrivateKey = {private}\n\
                 [Peer]\nPublicKey = {public}\nEndpoint = {}\nAllowedIPs = {inner}/32\n",
                endpoints[at]
            );
            host.feed(["wg", "setconf", "wg0", "/proc/self/fd/0"], &config);
            host.run(["ip", "address", "add", &format!("{}/24", INNER[at]), "dev", "wg0"]);
            host.run(["ip", "link", "set", "wg0", "up"]);
        }
    }
}
