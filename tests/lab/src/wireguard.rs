//! A mesh of kernel WireGuard made by hand with `wg` and `ip`: what the product is measured against.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::host::Host;

/// The name of the link that is made.
const INTERFACE: &str = "wg0";

/// The port on which each host listens.
const PORT: u16 = 51820;

/// A host of a mesh made by hand.
pub struct Manual<'a> {
    /// The host.
    pub host: &'a Host,
    /// Its address on the network that carries the mesh.
    pub outer: IpAddr,
    /// Its address in the mesh.
    pub inner: IpAddr,
}

/// What one host needs to become part of a mesh: everything but the doing, so that the doing can be timed.
pub struct Recipe {
    config: String,
    up: String,
}

impl Recipe {
    /// Makes the keys of all hosts and writes down what each must do.
    #[track_caller]
    pub fn write(nodes: &[Manual<'_>]) -> Vec<Self> {
        let keys: Vec<String> = nodes.iter().map(|node| node.host.run(["wg", "genkey"])).collect();
        let public = |index: usize| nodes[index].host.feed(["wg", "pubkey"], &keys[index]).trim().to_owned();
        let public: Vec<String> = (0..nodes.len()).map(public).collect();
        (0..nodes.len()).map(|index| Self::of(nodes, index, &keys[index], &public)).collect()
    }

    fn of(nodes: &[Manual<'_>], index: usize, key: &str, public: &[String]) -> Self {
        let mut config = format!("[Interface]\nListenPort = {PORT}\nPrivateKey = {key}\n");
        let mut up = format!("address add {} dev {INTERFACE}\nlink set {INTERFACE} up\n", nodes[index].inner);
        for (other, peer) in nodes.iter().enumerate().filter(|(other, _)| *other != index) {
            let (key, endpoint, inner) = (&public[other], SocketAddr::new(peer.outer, PORT), peer.inner);
            let section = format!("[Peer]\nPublicKey = {key}\nEndpoint = {endpoint}\nAllowedIPs = {inner}\n");
            config.write_str(&section).expect("a string takes all");
            writeln!(up, "route add {inner} dev {INTERFACE}").expect("a string takes all");
        }
        Self { config, up }
    }

    /// Does it, in three processes.
    #[track_caller]
    pub fn carry_out(&self, host: &Host) {
        host.feed(["ip", "-batch", "-"], &format!("link add {INTERFACE} type wireguard\n"));
        host.feed(["wg", "setconf", INTERFACE, "/proc/self/fd/0"], &self.config);
        host.feed(["ip", "-batch", "-"], &self.up);
    }
}

/// Connects every host with every other.
#[track_caller]
pub fn wire_by_hand(nodes: &[Manual<'_>]) {
    for (node, recipe) in nodes.iter().zip(Recipe::write(nodes)) {
        recipe.carry_out(node.host);
    }
}
