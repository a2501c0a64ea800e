//! Whom the operator wants to meet: whom the configuration names, as far as it enables that, and whom `wgmesh peer add` has.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use wgmesh_core::key::PublicKey;

use crate::config::{BootstrapNode, File, Method};
use crate::pins::{Pin, Pins, Removal};

/// All of them.
pub(super) struct Wanted {
    configured: Pins,
    pins: Pins,
}

impl Wanted {
    /// Puts both together.
    pub(super) fn new(config: &File, pins: Pins) -> Self {
        Self { configured: configured(config), pins }
    }

    /// Takes each list of the configuration that has changed. In one that has not, whoever was dropped stays dropped.
    pub(super) fn follow(&mut self, before: &File, after: &File) {
        let (before, after) = (configured(before), configured(after));
        if before.static_peers != after.static_peers {
            self.configured.static_peers = after.static_peers;
        }
        if before.bootstrap_nodes != after.bootstrap_nodes {
            self.configured.bootstrap_nodes = after.bootstrap_nodes;
        }
    }

    /// Returns the peers with the last word on where each answers.
    pub(super) fn static_peers(&self) -> BTreeMap<PublicKey, Option<SocketAddr>> {
        let peers = self.configured.static_peers.iter().chain(&self.pins.static_peers);
        peers.map(|peer| (peer.key, peer.endpoint)).collect()
    }

    /// Returns the nodes to dial.
    pub(super) fn bootstrap_nodes(&self) -> Vec<BootstrapNode> {
        [self.configured.bootstrap_nodes.as_slice(), &self.pins.bootstrap_nodes].concat()
    }

    /// Adds one that the operator names now. Returns what is to be kept.
    pub(super) fn add(&mut self, pin: Pin) -> Pins {
        self.pins.add(pin);
        self.pins.clone()
    }

    /// Drops whom the operator no longer wants, until a restart even where the configuration names them. Returns what
    /// is to be kept, if anybody was dropped.
    pub(super) fn remove(&mut self, removal: &Removal) -> Option<Pins> {
        let was_configured = self.configured.remove(removal);
        (self.pins.remove(removal) || was_configured).then(|| self.pins.clone())
    }

    /// Returns whom the operator has named with `wgmesh peer add`.
    pub(super) const fn pins(&self) -> &Pins {
        &self.pins
    }
}

/// Returns whom the configuration names, as far as it enables that.
fn configured(config: &File) -> Pins {
    let discovery = &config.discovery;
    let mut configured = Pins::default();
    if discovery.enabled_methods.contains(&Method::Manual) {
        configured.static_peers.clone_from(&discovery.static_peers);
    }
    if discovery.enabled_methods.contains(&Method::Bootstrap) {
        configured.bootstrap_nodes.clone_from(&discovery.bootstrap_nodes);
    }
    configured
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";

    fn config(discovery: &str) -> File {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh1.toml");
        std::fs::write(&path, format!("[discovery]\n{discovery}")).unwrap();
        File::load(&path).unwrap()
    }

    /// W-D7, M-5: a reload brings back only whom a changed list names, and never takes what `peer add` has said.
    #[test]
    fn only_a_list_that_has_changed_is_followed() {
        let before = config(&format!("static_peers = [\"{KEY}\"]\nbootstrap_nodes = [\"mesh1\"]"));
        let mut wanted = Wanted::new(&before, Pins::default());
        wanted.add("mesh9".parse().unwrap());
        let key = KEY.parse().unwrap();
        wanted.remove(&Removal { key: Some(key), node: None });

        let moved = config(&format!("static_peers = [\"{KEY}\"]\nbootstrap_nodes = [\"mesh2\"]"));
        wanted.follow(&before, &moved);
        let hosts: Vec<_> = wanted.bootstrap_nodes().into_iter().map(|node| node.host).collect();
        assert_eq!(hosts, ["mesh2", "mesh9"]);
        assert!(wanted.static_peers().is_empty());

        let named = config(&format!("static_peers = [\"{KEY}@203.0.113.7:1\"]"));
        wanted.follow(&moved, &named);
        assert_eq!(wanted.static_peers(), [(key, Some("203.0.113.7:1".parse().unwrap()))].into());
    }
}
