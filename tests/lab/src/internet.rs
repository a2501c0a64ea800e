//! A public internet, and the private networks behind its NATs.
//!
//! Servers stand in `192.0.2.0/24`; sites get one address each in `198.51.100.0/24`, and in `203.0.113.0/24` when it
//! changes. Each has a cable of its own to one router in the middle, so nothing but unicast passes between two of them,
//! and what is sent to a private address is lost without a word.

mod conntrack;
mod dht;
mod nat;
mod router;
mod rules;
mod stun;
mod torrent;

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

pub use dht::DhtNodes;
pub use nat::{Member, Nat, NatKind};
pub use router::Traffic;
pub use stun::StunServers;
pub use torrent::TorrentNode;

use crate::{Host, Lab, Link};

/// The middle's own address, the gateway of everybody.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

/// Networks that no internet carries (RFC 1918, RFC 6598).
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];

/// The middle of the network.
pub struct Internet {
    core: Host,
    sites: AtomicU8,
    /// Dropped last, so that it still prints every log where something went wrong.
    lab: Lab,
}

impl Internet {
    /// Makes an internet without anybody.
    pub fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let core = lab.host("core");
        router::forward(&core);
        let mut batch = format!("address add {GATEWAY}/32 dev lo\n");
        for network in PRIVATE {
            writeln!(batch, "route add blackhole {network}").expect("a string takes all");
        }
        core.feed(["ip", "-batch", "-"], &batch);
        Self { core, sites: AtomicU8::new(1), lab }
    }

    /// Returns the lab to which everything here belongs.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Adds a server with public addresses, chosen by the caller from `192.0.2.0/24`.
    pub fn server(&self, name: &str, addresses: &[Ipv4Addr]) -> Host {
        let host = self.lab.host(name);
        self.connect(&host, addresses);
        host
    }

    /// Adds a site with one host, in a private network that no other site has.
    ///
    /// # Panics
    /// Where there are 200 sites already.
    pub fn site(&self, name: &str, kind: NatKind) -> Site {
        self.numbered(name, kind, |number| number)
    }

    /// Adds a site with one host, in a private network of the same addresses as that of every other such site: most
    /// homes have the same.
    ///
    /// # Panics
    /// Where there are 200 sites already.
    pub fn usual_site(&self, name: &str, kind: NatKind) -> Site {
        self.numbered(name, kind, |_| 0)
    }

    fn numbered(&self, name: &str, kind: NatKind, network: impl FnOnce(u8) -> u8) -> Site {
        let number = self.sites.fetch_add(1, Ordering::Relaxed);
        assert!(number <= 200, "there are addresses for 200 sites");
        if kind == NatKind::None {
            let (host, public) = (self.lab.host(name), public_address(number));
            let link = self.connect(&host, &[public]);
            return Site { number, host, link, address: public, nat: None };
        }
        let mut nat = Nat::new(self, name, kind, number, network(number));
        let member = nat.member(self, name, 0);
        Site { number, host: member.host, link: member.link, address: member.address, nat: Some(nat) }
    }

    /// Plugs a cable into the host and gives it public addresses and the way to everybody else.
    pub fn connect(&self, host: &Host, addresses: &[Ipv4Addr]) -> Link {
        let (interface, port) = (host.next_link(), self.core.next_link());
        let mut attach = format!("link set {port} up\naddress add fe80::1/64 dev {port} nodad\n");
        let mut configure = format!("link set {interface} up\n");
        for address in addresses {
            writeln!(attach, "route add {address}/32 dev {port}").expect("a string takes all");
            writeln!(configure, "address add {address}/32 dev {interface}").expect("a string takes all");
        }
        writeln!(configure, "route add default via {GATEWAY} dev {interface} onlink metric {}", host.links())
            .expect("a string takes all");
        Link::plug(host, interface, &self.core, port, &attach, &configure)
    }
}

/// Returns a site's first public address.
fn public_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, number)
}

/// A place with an internet connection of its own, and its first host.
pub struct Site {
    number: u8,
    /// The host.
    pub host: Host,
    /// The host's cable.
    pub link: Link,
    /// The address that the host itself has.
    pub address: Ipv4Addr,
    /// What stands between the host and the internet.
    pub nat: Option<Nat>,
}

impl Site {
    /// Returns the address that the internet sees.
    pub fn public(&self) -> Ipv4Addr {
        self.nat.as_ref().map_or(self.address, Nat::public)
    }

    /// Returns the host's address in IPv6, once [`Self::ipv6_up`] gave it one.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, u16::from(self.number), 0, 0, 0, 0, 2)
    }

    /// Gives the host IPv6. A router lets in nothing that nobody inside asked for.
    ///
    /// # Panics
    /// Behind two routers.
    pub fn ipv6_up(&self) {
        let (address, interface) = (self.ipv6(), self.link.interface());
        let gateway = match &self.nat {
            Some(nat) => nat.ipv6_up(self.number),
            None => {
                let port = self.link.port();
                let prefix = format!("2001:db8:{:x}::/64", self.number);
                self.link.far(&format!("route replace {prefix} dev {port}\n"));
                "fe80::1"
            }
        };
        let batch = format!(
            "address replace {address}/64 dev {interface} nodad\nroute replace ::/0 via {gateway} dev {interface}\n"
        );
        self.host.feed(["ip", "-batch", "-"], &batch);
    }

    /// Gives the host another address, as a laptop gets on its way to another desk, and returns it.
    pub fn roam(&mut self) -> Ipv4Addr {
        let (old, interface) = (self.address, self.link.interface());
        let [first, second, third, _] = old.octets();
        let (new, length, onlink) = match &self.nat {
            Some(_) => {
                (Ipv4Addr::new(first, second, third, 254), 24, format!("via {first}.{second}.{third}.1"))
            }
            None => (Ipv4Addr::new(203, 0, 113, self.number), 32, format!("via {GATEWAY} onlink")),
        };
        if self.nat.is_none() {
            let port = self.link.port();
            self.link.far(&format!("route add {new}/32 dev {port}\nroute del {old}/32 dev {port}\n"));
        }
        let batch = format!(
            "address flush dev {interface} scope global\naddress add {new}/{length} dev {interface}\n\
             route replace default {onlink} dev {interface} metric 1\n"
        );
        self.host.feed(["ip", "-4", "-batch", "-"], &batch);
        self.address = new;
        new
    }

    /// Takes the host's IPv6 away.
    pub fn ipv6_down(&self) {
        let (address, interface) = (self.ipv6(), self.link.interface());
        let batch = format!("route del ::/0 dev {interface}\naddress del {address}/64 dev {interface}\n");
        self.host.feed(["ip", "-batch", "-"], &batch);
    }
}
