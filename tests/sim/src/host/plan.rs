//! What a host is like, and what its daemon's configuration says.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use wgmesh_core::config::{RelayMode, RelaySettings, Settings, Sharing};
use wgmesh_core::pool::Places;

use super::Relaying;
use crate::applier::Pace;
use crate::network::HostId;

/// What a host is like.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// Its mesh's secret: hosts with the same number form a mesh.
    pub secret: u8,
    /// The mesh's IPv4 subnet, if it is not the derived one.
    pub subnet: Option<Ipv4Net>,
    /// The networks behind it that others may reach through it.
    pub advertise_routes: BTreeSet<IpNet>,
    /// The networks inside which it takes routes of others.
    pub accept_routes: BTreeSet<IpNet>,
    /// Whether it looks for peers on its links.
    pub lan: bool,
    /// Whether it holds sessions with others.
    pub exchange: bool,
    /// Whether it gossips.
    pub gossip: bool,
    /// With whom, by configuration.
    pub bootstrap: Vec<HostId>,
    /// Whether it is a relay for others; `None` leaves it to the node.
    pub serve: Option<bool>,
    /// The most pairs that it is a relay for.
    pub max_pairs: usize,
    /// Whether it wants relays between itself and whoever is neither public nor on a common link.
    pub force_relay: bool,
    /// How it has to do with relays.
    pub relay_mode: RelayMode,
    /// What it does with the packets of others.
    pub relaying: Relaying,
    /// The most peers that it holds.
    pub max_peers: usize,
    /// How many sessions it holds.
    pub sessions: Places,
    /// Whether it looks for peers in the DHT.
    pub dht: bool,
    /// Whether others publish it there.
    pub dandelion: bool,
    /// Whether it throws away the records that others want it to publish, or to pass on to who does.
    pub drops_stems: bool,
    /// By how many milliseconds its wall clock is ahead of the world's.
    pub skew_millis: i64,
    /// What its daemon spends on each datagram; others wait in the socket meanwhile.
    pub cost: Duration,
    /// How long its kernel takes.
    pub pace: Pace,
    /// Whether its daemon notices at once, by eBPF, handshakes and packets that nothing comes back for, not only at the
    /// next reading.
    pub has_ebpf: bool,
}

impl Default for HostPlan {
    fn default() -> Self {
        Self {
            secret: 1,
            subnet: None,
            advertise_routes: BTreeSet::new(),
            accept_routes: BTreeSet::new(),
            lan: true,
            exchange: true,
            gossip: true,
            bootstrap: Vec::new(),
            serve: Some(false),
            max_pairs: 1024,
            force_relay: false,
            relay_mode: RelayMode::Sealed,
            relaying: Relaying::Honest,
            max_peers: 1000,
            sessions: Places { target: 4, max: 32 },
            dht: false,
            dandelion: false,
            drops_stems: false,
            skew_millis: 0,
            cost: Duration::from_micros(100),
            pace: Pace::USUAL,
            has_ebpf: true,
        }
    }
}

/// Returns the configuration of a daemon on such a host.
pub fn settings(plan: &HostPlan, number: usize) -> Settings {
    Settings {
        interface: "wg0".parse().expect("a name that Linux takes"),
        hostname: format!("node-{number}").parse().expect("a host name"),
        listen_port: 51820,
        subnet: plan.subnet,
        advertise_routes: plan.advertise_routes.clone(),
        accept_routes: plan.accept_routes.clone(),
        lan: plan.lan,
        punching: true,
        exchange: plan.exchange,
        gossip: plan.gossip,
        exchange_port: None,
        dht: plan.dht,
        dandelion: plan.dandelion,
        relay: RelaySettings {
            mode: plan.relay_mode,
            serve: plan.serve,
            max_pairs: plan.max_pairs,
            force: plan.force_relay,
        },
        max_peers: plan.max_peers,
        sessions: plan.sessions,
        sharing: Sharing::default(),
    }
}
