//! Hosts that share a secret and nothing else, and a DHT in which they may find each other.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use crate::internet::{DhtNodes, Internet, NatKind, Site, StunServers};
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
    /// Builds sites whose daemons do not run yet. The number tells the meshes of one internet apart.
    pub fn new(internet: &Internet, number: u8, kinds: &[NatKind]) -> Self {
        let site = |(index, kind): (usize, &NatKind)| internet.site(&format!("s{number}-{index}"), *kind);
        let sites = kinds.iter().enumerate().map(site).collect();
        let settings = Settings::new(&crate::pair::secret(number)).over_dht(DhtNodes::bootstrap());
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

    /// Pings from everywhere to everywhere until all are answered, and returns when the last answer came.
    ///
    /// # Panics
    /// Where that takes longer than the limit.
    #[track_caller]
    pub fn meet(&self, limit: Duration) -> Instant {
        let hosts: Vec<_> = self.sites.iter().map(|site| &site.host).collect();
        let answers = Probe::until_meshed(&hosts, PING_INTERVAL, limit);
        answers.last().expect("there are two hosts").at
    }
}

impl Settings {
    /// Adds that peers are found in the DHT of these nodes and nowhere else, and that STUN is asked of the lab's servers. Begins
    /// tables, so keys of the top level come before.
    pub fn over_dht(self, begin_with: impl IntoIterator<Item = SocketAddrV4>) -> Self {
        let quoted = |server: SocketAddrV4| format!("\"{server}\"");
        let nodes: Vec<_> = begin_with.into_iter().map(quoted).collect();
        let stun = StunServers::ADDRESSES.map(quoted).join(", ");
        self.with(&format!(
            "[discovery]\nenabled_methods = [\"dht\"]\n[discovery.dht]\nbootstrap = [{}]\n[nat]\nstun_servers = [{stun}]",
            nodes.join(", ")
        ))
    }
}
