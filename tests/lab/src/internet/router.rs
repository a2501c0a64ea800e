//! A Linux router with one cable to the outside and up to two private networks.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::Sub;
use std::time::Duration;

use serde_json::Value;

use super::rules::{Filtering, Mapping, Rules};
use super::{GATEWAY, conntrack};
use crate::{Host, Link};

/// After how long without a packet Linux forgets a UDP flow that was answered.
const LIFETIME: Duration = Duration::from_secs(120);

/// What a site has sent by UDP to others than servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Flows: pairs of an inner and an outer address and port.
    pub flows: u64,
}

impl Sub for Traffic {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { packets: self.packets - earlier.packets, flows: self.flows - earlier.flows }
    }
}

pub(super) struct Router {
    host: Host,
    uplink: Link,
    rules: Rules,
    /// The last address that was given in each private network; the first one is the router's.
    networks: Vec<Ipv4Addr>,
    ports: u8,
}

impl Router {
    pub(super) fn new(
        host: Host,
        uplink: Link,
        public: Ipv4Addr,
        (mapping, filtering): (Mapping, Filtering),
        networks: &[Ipv4Addr],
    ) -> Self {
        let rules = Rules { mapping, filtering, public, hairpin: false, lifetime: LIFETIME, generation: 0 };
        let mut batch = String::new();
        for (number, network) in networks.iter().enumerate() {
            let [a, b, c, _] = network.octets();
            write!(
                batch,
                "link add lan{number} type bridge forward_delay 0 mcast_snooping 0\n\
                 address add {a}.{b}.{c}.1/24 dev lan{number}\nlink set lan{number} up\n"
            )
            .expect("a string takes all");
        }
        host.feed(["ip", "-batch", "-"], &batch);
        forward(&host);
        let router = Self { host, uplink, rules, networks: networks.to_vec(), ports: 0 };
        router.apply();
        router
    }

    /// Plugs a cable into a host and gives it an address of the private network and the way out.
    pub(super) fn plug(&mut self, host: &Host, lan: usize) -> (Link, Ipv4Addr) {
        self.ports += 1;
        let [a, b, c, last] = self.networks[lan].octets();
        let address = Ipv4Addr::new(a, b, c, last + 1);
        self.networks[lan] = address;
        let (interface, port) = (host.next_link(), format!("port{}", self.ports));
        let attach = format!("link set {port} master lan{lan} up\n");
        let configure = format!(
            "link set {interface} up\naddress add {address}/24 dev {interface}\n\
             route add default via {a}.{b}.{c}.1 dev {interface} metric {}\n",
            host.links()
        );
        (Link::plug(host, interface, &self.host, port, &attach, &configure), address)
    }

    pub(super) fn public(&self) -> Ipv4Addr {
        self.rules.public
    }

    pub(super) fn change_public_address(&mut self, address: Ipv4Addr) {
        let old = std::mem::replace(&mut self.rules.public, address);
        let (interface, port) = (self.uplink.interface(), self.uplink.port());
        self.uplink.far(&format!("route add {address}/32 dev {port}\nroute del {old}/32 dev {port}\n"));
        // Without any address left, Linux would forget the routes.
        let batch = format!(
            "address add {address}/32 dev {interface}\naddress del {old}/32 dev {interface}\n\
             route replace default via {GATEWAY} dev {interface} onlink metric {}\n",
            self.host.links()
        );
        self.host.feed(["ip", "-batch", "-"], &batch);
        self.flush_mappings();
    }

    pub(super) fn flush_mappings(&mut self) {
        self.rules.generation += 1;
        self.apply();
        self.host.namespace().run(conntrack::flush).expect("the kernel flushes its flows for root");
    }

    pub(super) fn set_hairpin(&mut self, on: bool) {
        self.rules.hairpin = on;
        self.flush_mappings();
    }

    pub(super) fn set_mapping_lifetime(&mut self, lifetime: Duration) {
        self.rules.lifetime = lifetime;
        self.flush_mappings();
        self.host.namespace().run(move || {
            for name in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
                let seconds = lifetime.as_secs().to_string();
                fs::write(format!("/proc/sys/net/netfilter/{name}"), seconds)
                    .expect("root may write its own settings");
            }
        });
    }

    /// Gives the first private network a prefix of IPv6, and returns its gateway.
    pub(super) fn ipv6_up(&self, number: u8) -> &'static str {
        let (interface, port) = (self.uplink.interface(), self.uplink.port());
        let batch = format!(
            "address replace fe80::2/64 dev {interface} nodad\nroute replace ::/0 via fe80::1 dev {interface}\n\
             address replace fe80::1/64 dev lan0 nodad\nroute replace 2001:db8:{number:x}::/64 dev lan0\n"
        );
        self.host.feed(["ip", "-batch", "-"], &batch);
        self.uplink.far(&format!("route replace 2001:db8:{number:x}::/64 via fe80::2 dev {port}\n"));
        "fe80::1"
    }

    pub(super) fn traffic(&self) -> Traffic {
        let text = self.host.run(["nft", "-j", "list", "counters", "table", "ip", "lab"]);
        let list: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        let count = |name: &str| {
            let mut counters =
                list["nftables"].as_array().into_iter().flatten().map(|entry| &entry["counter"]);
            let counter = counters.find(|counter| counter["name"] == name);
            counter.and_then(|counter| counter["packets"].as_u64()).expect("the rules have this counter")
        };
        Traffic { packets: count("sent_packets"), flows: count("sent_flows") }
    }

    fn apply(&self) {
        let file = self.host.folder().join("rules.nft");
        fs::write(&file, self.rules.text()).expect("the host's folder is ours");
        self.host.run(["nft", "-f", &file.display().to_string()]);
    }
}

/// Lets a host pass on what is not for itself.
pub(super) fn forward(host: &Host) {
    host.namespace().run(|| {
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{family}"), "1").expect("root may write its own settings");
        }
    });
}
