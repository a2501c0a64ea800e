//! Two hosts behind NATs and one public introducer: the smallest mesh in which paths must be found. The introducer is no
//! relay unless it is asked to be one, so that a path is a direct one or none.
//!
//! The two know the secret, where the introducer's exchange listens, and the STUN servers. Whether the path that they
//! found is a direct one is asked of the kernel, not of the daemon: the peer that has the other's address in the mesh
//! must send to an address of the other's own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::host::Host;
use crate::internet::{Internet, NatKind, Site, Traffic};
use crate::log::first_logged;
use crate::probe::Probe;
use crate::{Daemon, Settings};

/// Between two pings of a pair that waits for its first answer: WireGuard itself must not be asked too often.
const PING_INTERVAL: Duration = Duration::from_millis(50);

/// A mesh of three.
pub struct Pair {
    /// What stands before the two.
    pub kinds: [NatKind; 2],
    /// Their daemons.
    pub daemons: [Daemon; 2],
    /// The introducer's.
    pub introducer: Daemon,
    /// The two.
    pub sites: [Site; 2],
    /// The machine of the introducer.
    pub introducer_host: Host,
}

/// How one of the two is reached by the other.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The state that `status` tells, empty where the other one is not known.
    pub state: String,
    /// The kind of path that `status` tells.
    pub path: String,
    /// Why, as `status` tells it.
    pub why: String,
    /// The key of the relay that `status` tells, empty where there is none.
    pub relay: String,
    /// Where the kernel sends.
    pub endpoint: Option<SocketAddr>,
    /// When WireGuard last shook hands, in seconds since 1970; 0 if never.
    pub handshake: u64,
    /// Whether the kernel sends to an address of the other one's own, and to nobody else.
    pub is_direct: bool,
}

/// How a first meeting went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the later daemon's start until both had been pinged.
    pub from_start: Option<Duration>,
    /// From when both knew of each other until both had been pinged.
    pub from_known: Option<Duration>,
    /// What each of the two sites has sent to others than servers until then, where it has a router.
    pub traffic: [Option<Traffic>; 2],
    /// How each sees the other.
    pub views: [View; 2],
}

impl Pair {
    /// Builds the sites, starts the introducer, and, once it is ready, the two daemons. The number tells the pairs of
    /// one internet apart; it is from 1 to 240.
    pub fn start(internet: &Internet, number: u8, kinds: [NatKind; 2]) -> Self {
        Self::start_with(internet, number, kinds, Settings::new(&secret(number)))
    }

    /// Starts a pair whose two daemons have more in their settings, keys of the top level.
    pub fn start_with(internet: &Internet, number: u8, kinds: [NatKind; 2], settings: Settings) -> Self {
        let introducer = Settings::new(&settings.secret).over_internet(&[]).with("[relay]\nserve = false");
        let settings = settings.over_internet(&[Self::introducer_address(number)]);
        Self::start_as(internet, number, kinds, &[settings.clone(), settings, introducer])
    }

    /// Starts a pair whose introducer is also a relay.
    pub fn start_relayed(internet: &Internet, number: u8, kinds: [NatKind; 2]) -> Self {
        let settings = Settings::new(&secret(number));
        let introducer = settings.clone().over_internet(&[]);
        let settings = settings.over_internet(&[Self::introducer_address(number)]);
        Self::start_as(internet, number, kinds, &[settings.clone(), settings, introducer])
    }

    /// Starts a pair with these settings, of the two and of the introducer.
    pub fn start_as(internet: &Internet, number: u8, kinds: [NatKind; 2], settings: &[Settings; 3]) -> Self {
        let address = Self::introducer_address(number);
        let introducer_host = internet.server(&format!("p{number}-introducer"), &[address]);
        let names = ["left", "right"].map(|side| format!("p{number}-{side}"));
        let sites = [0, 1].map(|index| internet.site(&names[index], kinds[index]));
        let introducer = introducer_host.daemon(&settings[2]);
        introducer.wait_ready();
        let daemons = [0, 1].map(|index| sites[index].host.daemon(&settings[index]));
        Self { kinds, daemons, introducer, sites, introducer_host }
    }

    /// Starts one more public node, which is a relay; those of one internet have different numbers. It finds the others at
    /// the pair's introducer.
    pub fn relay(&self, internet: &Internet, introducer: Ipv4Addr, number: u8) -> (Host, Daemon) {
        let host = internet.server(&format!("relay-{number}"), &[Ipv4Addr::new(192, 0, 2, 240 + number)]);
        let secret = std::fs::read_to_string(self.introducer_host.folder().join("secret"));
        let secret = secret.expect("the introducer has its secret in a file");
        let daemon = host.daemon(&Settings::new(secret.trim()).over_internet(&[introducer]));
        daemon.wait_ready();
        (host, daemon)
    }

    /// Returns where the introducer of the pair with that number is.
    pub fn introducer_address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, number)
    }

    /// Tells whether a direct path is possible.
    pub fn can_reach(&self) -> bool {
        self.kinds[0].can_reach(self.kinds[1])
    }

    /// Pings both ways until both are answered, or the time is over, and tells how it went.
    pub fn meet(&self, limit: Duration) -> Outcome {
        let hosts = self.sites.each_ref().map(|site| &site.host);
        let (answers, waiting) = Probe::mesh(&hosts, PING_INTERVAL, limit);
        let traffic = self.sites.each_ref().map(|site| site.nat.as_ref().map(|nat| nat.traffic()));
        let start = self.daemons[0].started().max(self.daemons[1].started());
        let end = answers.last().filter(|_| answers.len() >= 2 && waiting.is_empty()).map(|answer| answer.at);
        let known = self.both_known();
        Outcome {
            from_start: end.map(|end| end.saturating_duration_since(start)),
            from_known: end.zip(known).map(|(end, known)| end.saturating_duration_since(known)),
            traffic,
            views: self.views(),
        }
    }

    /// Returns how each of the two reaches the other now.
    pub fn views(&self) -> [View; 2] {
        let status = self.daemons.each_ref().map(Daemon::status_json);
        [0, 1].map(|own| self.view(own, &status[own], &status[1 - own]))
    }

    /// Returns the address in the mesh of one of the two.
    pub fn mesh_ipv4(&self, index: usize) -> Ipv4Addr {
        let status = self.daemons[index].status_json();
        status["node"]["mesh_ipv4"].as_str().and_then(|text| text.parse().ok()).expect("a status has it")
    }

    fn view(&self, own: usize, status: &Value, other: &Value) -> View {
        let key = &other["node"]["public_key"];
        let peer = status["peers"].as_array().into_iter().flatten().find(|peer| peer["public_key"] == *key);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut view = View {
            state: text(peer.map(|peer| &peer["state"])),
            path: text(peer.map(|peer| &peer["path"]["kind"])),
            relay: text(peer.map(|peer| &peer["path"]["relay"])),
            why: text(peer.map(|peer| &peer["why"])),
            ..View::default()
        };
        let dump = self.sites[own].host.exec(["wg", "show", "wgmesh0", "dump"]).stdout;
        let dump = String::from_utf8_lossy(&dump);
        // Key, preshared key, endpoint, allowed addresses, last handshake (wg(8)).
        let fields = dump.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let Some(fields) = fields.skip(1).find(|fields| key == fields[0]) else { return view };
        view.endpoint = fields[2].parse().ok();
        view.handshake = fields[4].parse().unwrap_or_default();
        let address = format!("{}/32", other["node"]["mesh_ipv4"].as_str().unwrap_or_default());
        let carries = fields[3].split(',').any(|allowed| allowed == address);
        view.is_direct = carries && view.endpoint.is_some_and(|endpoint| self.owns(1 - own, endpoint.ip()));
        view
    }

    fn owns(&self, index: usize, address: IpAddr) -> bool {
        let site = &self.sites[index];
        [IpAddr::V4(site.address), IpAddr::V4(site.public()), IpAddr::V6(site.ipv6())].contains(&address)
    }

    /// Returns when the later one of the two learned of the other.
    fn both_known(&self) -> Option<Instant> {
        let learned = |own: usize| {
            let (site, other) = (&self.sites[own], &self.sites[1 - own]);
            let name = format!("hostname={}", other.host.name());
            first_logged(&site.host.daemon_log(), self.daemons[own].started(), &["found a peer", &name])
        };
        Some(learned(0)?.max(learned(1)?))
    }
}

/// Returns a strong secret, another one for each number.
pub fn secret(number: u8) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let [high, low] = [number / 64, number % 64].map(|digit| char::from(ALPHABET[usize::from(digit)]));
    format!("wgmesh://v1/{high}{low}ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
}
