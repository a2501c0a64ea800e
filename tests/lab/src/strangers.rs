//! Hosts that share a secret and nothing else, and a DHT in which they may find each other.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use crate::internet::{DhtNodes, Internet, NatKind, Site, StunServers};
use crate::pair::secret;
use crate::probe::Probe;
use crate::{Daemon, Settings};

/// Between two pings of hosts that wait for their first answers.
const PING_INTERVAL: Duration = Duration::from_millis(50);

/// All of them.
pub struct Strangers {
    /// Their daemons.
    pub daemons: Vec<Daemon>,
    /// Where they are.
    pub sites: Vec<Site>,
    settings: Settings,
}

impl Strangers {
    /// Builds sites whose daemons do not run yet, and which find others in the DHT and nowhere else. The number tells the
    /// meshes of one internet apart.
    pub fn new(internet: &Internet, number: u8, kinds: &[NatKind]) -> Self {
        Self::beginning_with(DhtNodes::bootstrap(), internet, number, kinds)
    }

    /// Builds sites as [`Self::new`] does, whose daemons begin with other nodes of the DHT.
    pub fn beginning_with(
        nodes: impl IntoIterator<Item = SocketAddrV4>,
        internet: &Internet,
        number: u8,
        kinds: &[NatKind],
    ) -> Self {
        let settings = Settings::new(&secret(number)).over_dht("enabled_methods = [\"dht\"]", nodes);
        Self::with(settings, internet, number, kinds)
    }

    /// Builds sites as [`Self::new`] does, with the methods of whoever configures none.
    pub fn with_usual_methods(internet: &Internet, number: u8, kinds: &[NatKind]) -> Self {
        let settings = Settings::new(&secret(number)).over_dht("", DhtNodes::bootstrap());
        Self::with(settings, internet, number, kinds)
    }

    /// Builds sites as [`Self::with_usual_methods`] does, whose records only others are to publish.
    pub fn published_by_others(internet: &Internet, number: u8, kinds: &[NatKind]) -> Self {
        let settings = Settings::new(&secret(number)).over_dht("", DhtNodes::bootstrap());
        Self::with(settings.with("[privacy]\ndandelion = true"), internet, number, kinds)
    }

    fn with(settings: Settings, internet: &Internet, number: u8, kinds: &[NatKind]) -> Self {
        let site = |(index, kind): (usize, &NatKind)| internet.site(&format!("s{number}-{index}"), *kind);
        let sites = kinds.iter().enumerate().map(site).collect();
        Self { daemons: Vec::new(), sites, settings }
    }

    /// Starts the daemon of one of them.
    #[track_caller]
    pub fn start(&mut self, index: usize) {
        self.daemons.push(self.sites[index].host.daemon(&self.settings));
    }

    /// Starts all daemons, waits until the last one is ready, and returns when that was.
    #[track_caller]
    pub fn start_all(&mut self) -> Instant {
        (0..self.sites.len()).for_each(|index| self.start(index));
        let ready = self.daemons.iter().map(|daemon| daemon.started() + daemon.wait_ready()).max();
        ready.expect("there is a host")
    }

    /// Pings from every host that was started to every other until all are answered, and returns when the last answer came.
    ///
    /// # Panics
    /// Where that takes longer than the limit.
    #[track_caller]
    pub fn meet(&self, limit: Duration) -> Instant {
        let hosts: Vec<_> = self.sites.iter().take(self.daemons.len()).map(|site| &site.host).collect();
        let answers = Probe::until_meshed(&hosts, PING_INTERVAL, limit);
        answers.last().expect("there are two hosts").at
    }
}

impl Settings {
    /// Adds that the DHT is that of these nodes, how peers are found, and that STUN is asked of the lab's servers. Begins
    /// tables, so keys of the top level come before.
    fn over_dht(self, methods: &str, begin_with: impl IntoIterator<Item = SocketAddrV4>) -> Self {
        let quoted = |server: SocketAddrV4| format!("\"{server}\"");
        let nodes: Vec<_> = begin_with.into_iter().map(quoted).collect();
        let stun = StunServers::ADDRESSES.map(quoted).join(", ");
        self.with(&format!(
            "[discovery]\n{methods}\n[discovery.dht]\nbootstrap = [{}]\n[nat]\nstun_servers = [{stun}]",
            nodes.join(", ")
        ))
    }
}
