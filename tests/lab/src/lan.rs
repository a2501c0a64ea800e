//! The usual network of a mesh: hosts on one switch.

use std::net::Ipv4Addr;

use crate::{Host, Lab, Link, Switch};

/// Hosts on one switch, `192.0.2.1` and up. They are called `h1` and up.
pub struct Lan {
    /// The hosts.
    pub hosts: Vec<Host>,
    /// Their cables, in the same order.
    pub links: Vec<Link>,
    _switch: Switch,
    /// Dropped last, so that it still prints every log where something went wrong.
    _lab: Lab,
}

impl Lan {
    /// Makes a network of so many hosts.
    pub fn new(name: &str, hosts: u8) -> Self {
        let lab = Lab::new(name);
        let switch = lab.switch("lan");
        let (mut all, mut links) = (Vec::new(), Vec::new());
        for number in 1..=hosts {
            let host = lab.host(&format!("h{number}"));
            links.push(lab.link(&host, &switch, &[&format!("192.0.2.{number}/24")]));
            all.push(host);
        }
        Self { hosts: all, links, _switch: switch, _lab: lab }
    }

    /// Returns the address of a host by its index.
    pub fn address(index: usize) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, u8::try_from(index + 1).expect("a network has at most 254 hosts"))
    }
}
