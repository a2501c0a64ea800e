//! All that the daemon hears of other hosts, and all that it tells them: datagrams on links and on WireGuard's port,
//! streams of the exchange, probes through tunnels, the DHT, and the addresses behind names.

mod receive;

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::time::Duration;

use wgmesh_core::config::Settings;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::dht::{DhtEvent, Order};
use wgmesh_core::exchange::{SessionId, Target};
use wgmesh_core::health::probe_port;
use wgmesh_core::kernel::{Link, Observed, Underlay};
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::{Event, Mesh, Recipient, Seed, Transmit, Via};
use wgmesh_core::relay::Forwarding;
use wgmesh_core::status::{RelayTraffic, Source};

use super::dns_seeds::DnsSeeds;
use crate::config::{BootstrapNode, File};
use crate::dht::Dht;
use crate::exchange::Exchange;
use crate::gossip::Gossip;
use crate::lan::Lan;
use crate::names::{Names, Resolved, Service};
use crate::probe::{Place, Probes};
use crate::relay::Relay;
use crate::wireguard_port::WireguardPort;
use receive::{
    datagram, disco, gossiped, next_of_dht, next_session, receive, receive_gossip, receive_wireguard,
};

/// Datagrams of one kind that are taken in at once; more wait for the next turn, so that a flood holds up nothing else.
const WAITING_DATAGRAMS: usize = 64;

/// How long the end waits for the last words to go out.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A way to the network, or why there is none.
type Way<T> = Result<T, String>;

/// The daemon's ways to other hosts.
pub(super) struct Network {
    keys: MeshKeys,
    lan: Option<Way<Lan>>,
    /// `None` where paths through NATs are not looked for.
    wireguard: Option<Way<WireguardPort>>,
    relay: Relay,
    probes: Probes,
    exchange: Option<Exchange>,
    /// Whom to dial once there is an exchange: not more than are dialled at once.
    early_dials: Vec<Target>,
    gossip: Option<Gossip>,
    exchange_port: Option<u16>,
    /// `None` where nobody is looked for in the DHT.
    dht: Option<Dht>,
    dht_port: Option<NonZeroU16>,
    services: Services,
    looks_outside: bool,
    stun_servers: Names,
    bootstrap: Names,
    /// What the bootstrap nodes' names have led to.
    seeds: Vec<Seed>,
    dns: DnsSeeds,
    dht_hosts: Names,
}

/// Who is asked for help beyond the links.
struct Services {
    stun: Vec<Service>,
    bootstrap: Vec<BootstrapNode>,
    dht: Vec<Service>,
}

impl Network {
    /// Opens the sockets of the links. Everything else comes later: a start must not wait for it.
    pub(super) fn open(config: &File, settings: &Settings, keys: &MeshKeys) -> Self {
        let lan =
            settings.lan.then(|| Lan::open(keys, settings.listen_port).map_err(|error| error.to_string()));
        Self {
            keys: keys.clone(),
            lan,
            wireguard: None,
            relay: Relay::new(config.relay.rates()),
            probes: Probes::new(settings.interface.clone()),
            exchange: None,
            early_dials: Vec::new(),
            gossip: settings.gossip.then(|| Gossip::new(settings.interface.clone(), keys.gossip_port())),
            exchange_port: settings.exchange.then(|| settings.exchange_port.unwrap_or(keys.exchange_port())),
            services: Services {
                stun: stun_services(config),
                bootstrap: Vec::new(),
                dht: dht_services(config),
            },
            dht: None,
            dht_port: config.discovery.dht.port,
            dns: DnsSeeds::new(config, keys.exchange_port()),
            seeds: Vec::new(),
            looks_outside: false,
            stun_servers: Names::resolve(Vec::new()),
            bootstrap: Names::resolve(Vec::new()),
            dht_hosts: Names::resolve(Vec::new()),
        }
    }

    /// Has the DHT used, with nodes of it that answered in earlier runs.
    pub(super) fn remember_dht(&mut self, nodes: Vec<SocketAddrV4>) {
        self.dht = Some(Dht::new(self.dht_port, nodes));
    }

    /// Opens the sockets that share WireGuard's port.
    pub(super) fn open_wireguard(&mut self, port: u16) {
        let opened = WireguardPort::open(port).map_err(|error| error.to_string());
        if let Err(error) = &opened {
            tracing::warn!(port, error, "no path through a NAT can be found");
        }
        self.wireguard = Some(opened);
    }

    /// Begins with what reaches beyond the links. Returns what the mesh must know of it.
    pub(super) fn look_outside(&mut self) -> Option<Event> {
        self.looks_outside = true;
        self.stun_servers = Names::resolve(self.services.stun.clone());
        if let Some(dht) = &mut self.dht {
            dht.open();
            self.dht_hosts = Names::resolve(self.services.dht.clone());
        }
        let wanted = self.exchange_port?;
        let mut exchange = Exchange::start(&self.keys, wanted);
        let port = exchange.port();
        self.early_dials.drain(..).for_each(|target| exchange.dial(target));
        self.exchange = Some(exchange);
        self.resolve_bootstrap();
        (port != Some(wanted)).then_some(Event::ExchangePort(port))
    }

    /// Takes the servers of another configuration. Where they are is told when it is known; until then those that were
    /// known are asked.
    pub(super) fn set_stun_servers(&mut self, config: &File) {
        self.services.stun = stun_services(config);
        if self.looks_outside {
            self.stun_servers = Names::resolve(self.services.stun.clone());
        }
    }

    /// Takes the hosts of another configuration that let this one into the DHT.
    pub(super) fn set_dht_bootstrap(&mut self, config: &File) {
        self.services.dht = dht_services(config);
        if let Some(dht) = self.dht.as_mut().filter(|_| self.looks_outside) {
            dht.set_bootstrap([]);
            self.dht_hosts = Names::resolve(self.services.dht.clone());
        }
    }

    /// Carries out what is ordered of the DHT.
    pub(super) fn ask_dht(&mut self, order: Order) {
        if let Some(dht) = &mut self.dht {
            dht.carry_out(order);
        }
    }

    /// Takes the nodes whose exchange is to be dialled. Where they are is told when it is known.
    pub(super) fn set_bootstrap(&mut self, nodes: Vec<BootstrapNode>) {
        self.services.bootstrap = nodes;
        if self.exchange.is_some() {
            self.resolve_bootstrap();
        }
    }

    /// Whether nodes can be dialled, now or after the start.
    pub(super) const fn has_exchange(&self) -> bool {
        self.exchange_port.is_some()
    }

    /// Takes the bootstrap nodes off the list. Returns what is left to dial.
    pub(super) fn without_bootstrap(&mut self) -> Event {
        self.seeds.clear();
        self.all_seeds()
    }

    /// Looks for nodes by DNS as long as few peers are reached. Returns what the mesh must know of it.
    pub(super) fn follow_reached(&mut self, reached: usize) -> Option<Event> {
        let may_ask = self.exchange.is_some();
        (may_ask && self.dns.follow_reached(reached)).then(|| self.all_seeds())
    }

    /// Returns how looking for nodes by DNS goes, where it is wanted.
    pub(super) fn dns_status(&self) -> Option<Source> {
        self.dns.status()
    }

    fn all_seeds(&self) -> Event {
        Event::Bootstrap(self.seeds.iter().cloned().chain(self.dns.seeds()).collect())
    }

    fn resolve_bootstrap(&mut self) {
        let service = |node: &BootstrapNode| Service {
            host: node.host.clone(),
            port: node.port.unwrap_or(self.keys.exchange_port()),
        };
        self.bootstrap = Names::resolve(self.services.bootstrap.iter().map(service).collect());
    }

    /// Waits for the next thing that happens. Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let happened = tokio::select! {
                received = receive(&self.lan) => datagram(received),
                received = receive_wireguard(&self.wireguard) => disco(received),
                event = self.relay.next() => Some(event),
                event = self.probes.next() => Some(event),
                received = receive_gossip(&self.gossip) => gossiped(received),
                event = next_session(&mut self.exchange) => Some(Event::Session(event)),
                servers = self.stun_servers.changed() => {
                    Some(Event::StunServers(servers.into_iter().map(|(_, address)| address).collect()))
                }
                nodes = self.bootstrap.changed() => {
                    self.seeds = self.named_seeds(nodes);
                    Some(self.all_seeds())
                }
                () = self.dns.changed() => Some(self.all_seeds()),
                event = next_of_dht(&mut self.dht) => Some(Event::Dht(event)),
                hosts = self.dht_hosts.changed() => {
                    self.dht.as_mut().map(|dht| {
                        dht.set_bootstrap(hosts.into_iter().map(|(_, address)| address));
                        Event::Dht(DhtEvent::Opened)
                    })
                }
            };
            if let Some(event) = happened {
                return event;
            }
        }
    }

    /// Returns the datagrams that wait already.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Event> {
        let on_links = self.lan.iter().flatten().flat_map(|lan| std::iter::from_fn(|| lan.try_receive()));
        let on_port =
            self.wireguard.iter().flatten().flat_map(|port| std::iter::from_fn(|| port.try_receive()));
        let in_mesh = self.gossip.iter().flat_map(|gossip| std::iter::from_fn(|| gossip.try_receive()));
        let on_links = on_links.take(WAITING_DATAGRAMS).filter_map(datagram);
        let in_mesh = in_mesh.take(WAITING_DATAGRAMS).filter_map(gossiped);
        on_links.chain(on_port.take(WAITING_DATAGRAMS).filter_map(disco)).chain(in_mesh)
    }

    /// Sends a datagram, as far as there is a way.
    pub(super) fn send(&self, transmit: Transmit) {
        let Transmit { via, to, bytes } = transmit;
        match (via, to) {
            (Via::Link(index), to) => {
                if let Some(Ok(lan)) = &self.lan {
                    lan.send(index, to, &bytes);
                }
            }
            (Via::WireGuard, Recipient::Node(to)) => {
                if let Some(Ok(port)) = &self.wireguard {
                    port.send(to, &bytes);
                }
            }
            (Via::WireGuard, Recipient::GroupV4 | Recipient::GroupV6) => {}
        }
    }

    /// Passes on between these pairs and no others.
    pub(super) fn relay(&mut self, table: &[Forwarding]) {
        self.relay.follow(table);
    }

    /// Probes these peers and no others.
    pub(super) fn probe(&mut self, targets: &BTreeMap<PublicKey, SocketAddr>) {
        self.probes.probe(targets);
    }

    /// Answers probes where the node is now; its link has this index.
    pub(super) fn answer_probes(&mut self, link: u32, mesh: &Mesh) {
        let port = probe_port(mesh.listen_port());
        self.probes.follow(Place { link, addresses: mesh.addresses(), port });
    }

    /// Returns why probes cannot be answered.
    pub(super) fn probe_trouble(&self) -> Option<String> {
        self.probes.trouble()
    }

    /// Returns what was passed on for others.
    pub(super) fn relay_traffic(&self) -> RelayTraffic {
        self.relay.traffic()
    }

    /// Sends a datagram between mesh addresses, as far as there is a way.
    pub(super) fn send_gossip(&self, to: SocketAddr, bytes: &[u8]) {
        if let Some(gossip) = &self.gossip {
            gossip.send(to, bytes);
        }
    }

    /// Follows the mesh link and this node's addresses on it.
    pub(super) fn follow_mesh(&mut self, observed: &Observed) {
        if let (Some(gossip), Link::WireGuard { index, .. }) = (&mut self.gossip, &observed.link) {
            gossip.follow(*index, &observed.addresses);
        }
    }

    /// Returns why gossip does not work.
    pub(super) fn gossip_trouble(&self) -> Option<&String> {
        self.gossip.as_ref()?.trouble()
    }

    /// Opens a stream of the exchange, once there is one.
    pub(super) fn dial(&mut self, target: Target) {
        match &mut self.exchange {
            Some(exchange) => exchange.dial(target),
            None => self.early_dials.push(target),
        }
    }

    /// Sends a frame of the exchange.
    pub(super) fn send_frame(&mut self, id: SessionId, bytes: Vec<u8>) {
        if let Some(exchange) = &mut self.exchange {
            exchange.send(id, bytes);
        }
    }

    /// Closes a stream of the exchange.
    pub(super) fn close_session(&mut self, id: SessionId) {
        if let Some(exchange) = &mut self.exchange {
            exchange.close(id);
        }
    }

    /// Listens on these links, and tries those again on which that has failed.
    pub(super) fn follow_underlay(&mut self, underlay: &[Underlay]) {
        if let Some(Ok(lan)) = &mut self.lan {
            lan.follow(underlay);
        }
    }

    /// Looks up everybody's addresses anew: this host may be elsewhere.
    pub(super) fn look_up_again(&mut self) {
        self.stun_servers.again();
        self.bootstrap.again();
        self.dns.again();
        self.dht_hosts.again();
    }

    /// Follows WireGuard to another port.
    pub(super) fn follow_port(&mut self, port: u16) {
        if let Some(Ok(wireguard)) = &mut self.wireguard
            && wireguard.port() != port
            && let Err(error) = wireguard.set_port(port)
        {
            tracing::warn!(port, %error, "cannot follow WireGuard to its port");
        }
    }

    /// Returns how many streams of others were refused before they came to anything.
    pub(super) fn refused_streams(&self) -> u64 {
        self.exchange.as_ref().map_or(0, Exchange::refused)
    }

    /// Returns why there is no way to the links, where one is wanted.
    pub(super) fn lan_trouble(&self) -> Option<&String> {
        self.lan.as_ref()?.as_ref().err()
    }

    /// Returns why no path through a NAT can be found, in words.
    pub(super) fn wireguard_trouble(&self) -> Option<String> {
        let error = self.wireguard.as_ref()?.as_ref().err()?;
        Some(format!("no path through a NAT can be found: {error}"))
    }

    /// Closes everything once the last words are out. Returns the nodes of the DHT that answer, if it is in use now.
    pub(super) async fn finish(&mut self) -> Option<Vec<SocketAddrV4>> {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish(LAST_WORDS).await;
        }
        self.dht.take()?.finish().await
    }

    /// Returns why no bootstrap node is dialled though there are some, in words.
    pub(super) fn bootstrap_trouble(&self) -> Option<String> {
        let first = self.services.bootstrap.first().filter(|_| self.exchange.is_some())?;
        self.bootstrap.is_unknown().then(|| format!("no address of {} is known", first.host))
    }

    fn named_seeds(&self, resolved: Resolved) -> Vec<Seed> {
        let alone = |place: usize| resolved.iter().filter(|(other, _)| *other == place).count() == 1;
        let seed = |&(place, address): &(usize, SocketAddr)| {
            let node = self.services.bootstrap.get(place)?;
            let name = node.place();
            // Behind a name with several addresses there may be several nodes.
            let name = if alone(place) { name } else { format!("{name} ({})", address.ip()) };
            Some(Seed { name: Some(name), target: Target { address, expected: node.key } })
        };
        resolved.iter().filter_map(seed).collect()
    }
}

fn stun_services(config: &File) -> Vec<Service> {
    let servers = config.nat.stun_servers.iter().filter(|_| config.nat.punching);
    servers.map(|server| Service { host: server.host.clone(), port: server.port }).collect()
}

fn dht_services(config: &File) -> Vec<Service> {
    let hosts = config.discovery.dht.bootstrap.iter();
    hosts.map(|node| Service { host: node.host.clone(), port: node.port }).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::runtime::Handle;
    use wgmesh_core::exchange::SessionEvent;
    use wgmesh_core::secret::MeshSecret;

    use super::*;

    /// Names only by their numbers: nobody is asked.
    const CONFIG: &str = "
        [discovery]
        enabled_methods = [\"bootstrap\", \"dns\", \"exchange\", \"dht\"]
        bootstrap_nodes = [\"127.0.0.1:9\"]
        dns_seeds = [\"127.0.0.1:9\"]
        dht = { bootstrap = [\"127.0.0.1:9\"] }
        [nat]
        stun_servers = [\"127.0.0.1:9\"]
    ";

    fn network() -> Network {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh1.toml");
        std::fs::write(&path, CONFIG).unwrap();
        let config = File::load(Path::new(&path)).unwrap();
        let keys = MeshKeys::derive(&MeshSecret::from_random([1; 32]).mesh_key());
        Network::open(&config, &config.settings("db1"), &keys)
    }

    /// Found in a review: what the operator has switched off was told as failing.
    #[tokio::test]
    async fn a_lan_that_is_off_is_no_trouble() {
        assert_eq!(network().lan_trouble(), None);
    }

    /// Found in a review: whoever was to be dialled before the exchange was there never was.
    #[tokio::test]
    async fn whom_to_dial_is_remembered_until_there_is_an_exchange() {
        let mut network = network();
        let target = Target { address: "127.0.0.1:9".parse().unwrap(), expected: None };
        network.dial(target);
        network.look_outside();
        loop {
            let event = tokio::time::timeout(Duration::from_secs(30), network.next()).await.unwrap();
            if matches!(event, Event::Session(SessionEvent::DialFailed { target: failed, .. }) if failed == target)
            {
                break;
            }
        }
    }

    /// C-6: whatever looks for peers does so in tasks of its own, which hold up nobody and end with the daemon.
    #[tokio::test]
    async fn every_task_that_looks_for_peers_ends_with_its_owner() {
        let mut network = network();
        network.remember_dht(Vec::new());
        network.look_outside();
        network.follow_reached(0);
        let alive = || Handle::current().metrics().num_alive_tasks();
        assert!(alive() >= 4, "{}: the exchange, STUN servers, DNS seeds and hosts of the DHT", alive());
        drop(network);
        while alive() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
