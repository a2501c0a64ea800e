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

/// Connects every host with every other.
#[track_caller]
pub fn wire_by_hand(nodes: &[Manual<'_>]) {
    let keys: Vec<String> = nodes.iter().map(|node| node.host.run(["wg", "genkey"])).collect();
    let public = |index: usize| nodes[index].host.feed(["wg", "pubkey"], &keys[index]).trim().to_owned();
    let public: Vec<String> = (0..nodes.len()).map(public).collect();
    for (index, node) in nodes.iter().enumerate() {
        let mut config = format!("[Interface]\nListenPort = {PORT}\nPrivateKey = {}\n", keys[index]);
        for (other, peer) in nodes.iter().enumerate().filter(|(other, _)| *other != index) {
            let (key, endpoint, inner) = (&public[other], SocketAddr::new(peer.outer, PORT), peer.inner);
            let section = format!("[Peer]\nPublicKey = {key}\nEndpoint = {endpoint}\nAllowedIPs = {inner}\n");
            config.write_str(&section).expect("a string takes all");
        }
        node.host.feed(["ip", "-batch", "-"], &format!("link add {INTERFACE} type wireguard\n"));
        node.host.feed(["wg", "setconf", INTERFACE, "/dev/stdin"], &config);
        let mut up = format!("address add {} dev {INTERFACE}\nlink set {INTERFACE} up\n", node.inner);
        for peer in nodes.iter().filter(|peer| peer.inner != node.inner) {
            writeln!(up, "route add {} dev {INTERFACE}", peer.inner).expect("a string takes all");
        }
        node.host.feed(["ip", "-batch", "-"], &up);
    }
}
