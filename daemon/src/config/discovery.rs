//! How peers are found (`[discovery]`).

use std::collections::BTreeSet;
use std::num::{NonZeroU8, NonZeroU16};
use std::time::Duration;

use serde::Deserialize;
use wgmesh_core::config::Sharing;
use wgmesh_core::pool::Places;
use wgmesh_core::sync::MAX_ASKED;

use super::{BootstrapNode, DhtHost, DnsSeed, Method, StaticPeer, document};

/// How peers are found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discovery {
    /// The methods in use; none leaves only the peers that the cache knows.
    #[serde(default = "default_methods", deserialize_with = "document::texts")]
    pub enabled_methods: BTreeSet<Method>,
    /// Nodes whose exchange is dialled from the start (P-1, W-X19).
    #[serde(default, deserialize_with = "document::texts")]
    pub bootstrap_nodes: Vec<BootstrapNode>,
    /// Names that stand for nodes to dial while few peers are reached (P-4).
    #[serde(default, deserialize_with = "document::texts")]
    pub dns_seeds: Vec<DnsSeed>,
    /// Peers that are always wanted, whoever tells of them (P-9).
    #[serde(default, deserialize_with = "document::texts")]
    pub static_peers: Vec<StaticPeer>,
    /// The TCP port of the exchange; by default it follows from the secret.
    #[serde(default)]
    pub exchange_port: Option<NonZeroU16>,
    /// Mainline DHT.
    #[serde(default)]
    pub dht: Dht,
    /// How many sessions to hold, in a word (M-21).
    #[serde(default)]
    pub profile: Option<Profile>,
    /// How many sessions to look for, over what the profile says.
    #[serde(default)]
    pub target_peers: Option<NonZeroU8>,
    /// The most sessions to hold, over what the profile says.
    #[serde(default)]
    pub max_peers: Option<NonZeroU8>,
    /// The most records that are asked for, or given, at once (P-11).
    #[serde(default)]
    pub max_peers_per_exchange: Option<PerExchange>,
    /// For how many seconds a peer that only others told of may have to wait until it is passed on (P-11).
    #[serde(default)]
    pub min_peer_age: Option<u16>,
    /// The longest pause, in seconds, until nodes whose stores stay different look again (P-11).
    #[serde(default)]
    pub exchange_interval: Option<NonZeroU16>,
}

/// A number of records from 1 to what one message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "usize")]
pub struct PerExchange(usize);

impl TryFrom<usize> for PerExchange {
    type Error = &'static str;

    fn try_from(count: usize) -> Result<Self, Self::Error> {
        (1..=MAX_ASKED).contains(&count).then_some(Self(count)).ok_or("out of range")
    }
}

/// How many sessions a node holds, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// 4 to 8.
    Minimal,
    /// 16 to 32.
    Standard,
    /// 64 to 128.
    Bridge,
}

impl Discovery {
    /// Returns how many sessions to hold. Without a word on it a node takes many and looks for few: each costs both ends
    /// some 10 bytes a second for ever.
    pub fn places(&self) -> Places {
        let (target, max) = match self.profile {
            None => (4, 32),
            Some(Profile::Minimal) => (4, 8),
            Some(Profile::Standard) => (16, 32),
            Some(Profile::Bridge) => (64, 128),
        };
        let target = self.target_peers.map_or(target, |target| target.get().into());
        let max = self.max_peers.map_or(max, |max| max.get().into());
        Places { target: target.min(max), max }
    }

    /// Returns what to tell others of others.
    pub fn sharing(&self) -> Sharing {
        let usual = Sharing::default();
        let seconds = |seconds: u16| Duration::from_secs(seconds.into());
        Sharing {
            max: self.max_peers_per_exchange.map_or(usual.max, |PerExchange(max)| max),
            min_age: self.min_peer_age.map_or(usual.min_age, seconds),
            interval: self.exchange_interval.map_or(usual.interval, |interval| seconds(interval.get())),
        }
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            enabled_methods: default_methods(),
            bootstrap_nodes: Vec::new(),
            dns_seeds: Vec::new(),
            static_peers: Vec::new(),
            exchange_port: None,
            profile: None,
            target_peers: None,
            max_peers: None,
            max_peers_per_exchange: None,
            min_peer_age: None,
            exchange_interval: None,
            dht: Dht::default(),
        }
    }
}

/// How Mainline DHT is reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dht {
    /// The hosts that are asked first, and again where no node that answered before does.
    #[serde(default = "default_dht_bootstrap", deserialize_with = "document::texts")]
    pub bootstrap: Vec<DhtHost>,
    /// The UDP port of this host's own node; by default any that is free.
    #[serde(default)]
    pub port: Option<NonZeroU16>,
}

impl Default for Dht {
    fn default() -> Self {
        Self { bootstrap: default_dht_bootstrap(), port: None }
    }
}

fn default_methods() -> BTreeSet<Method> {
    Method::NAMES.into_iter().map(|(_, method)| method).collect()
}

fn default_dht_bootstrap() -> Vec<DhtHost> {
    let hosts = crate::dht::PUBLIC_BOOTSTRAP;
    hosts.map(|host| DhtHost::try_from(host.to_owned()).expect("the constants are valid")).into()
}
