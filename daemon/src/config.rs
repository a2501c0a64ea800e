//! The configuration file: TOML, one file per mesh, `/etc/wgmesh/<interface>.toml`.
//!
//! Every key has a default except the secret, and a missing file is all defaults when the mesh was named by its
//! interface. An unknown key, a value of the wrong kind and a feature that this version lacks are errors that
//! name file, line, column and key, and say what would be right.

mod discovery;
mod document;
mod overrides;
mod places;
mod relay;
mod reload;
pub mod secret;

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU16;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use wgmesh_core::config::{Hostname, Settings};
use wgmesh_core::kernel::{InterfaceName, InvalidInterfaceName};

pub use self::discovery::{Dht, Discovery, PerExchange, Profile};
pub use self::document::Problem;
use self::places::STUN_PORT;
pub use self::places::{BootstrapNode, DhtHost, DnsSeed, StaticPeer, StunServer};
pub use self::relay::{Mode, Relay};
pub use self::reload::Reloaded;

/// Where configuration files and secrets live.
pub const DIRECTORY: &str = "/etc/wgmesh";

/// The interface of a mesh that was given no name.
const DEFAULT_INTERFACE: &str = "wgmesh0";

/// One mesh's configuration, checked.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The WireGuard link; by default the file's name without `.toml`.
    #[serde(default = "default_interface")]
    pub interface: InterfaceName,
    /// Where the secret is, unless systemd hands it over; relative to the file.
    pub secret_file: Option<PathBuf>,
    /// WireGuard's UDP port; zero takes any that is free.
    #[serde(default = "default_listen_port")]
    pub listen_port: u16,
    /// The mesh's IPv4 network; by default derived from the secret.
    #[serde(default, deserialize_with = "document::subnet")]
    pub subnet: Option<Ipv4Net>,
    /// What this node calls itself; by default the system's host name.
    pub hostname: Option<Hostname>,
    /// Where the node's key and its peer cache are kept.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where the socket for `wgmesh status` is.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// How much is logged.
    #[serde(default)]
    pub log_level: LogLevel,
    /// Networks behind this node that others may reach through it.
    #[serde(default, deserialize_with = "document::offers")]
    pub advertise_routes: BTreeSet<IpNet>,
    /// The networks inside which routes of peers are taken.
    #[serde(default, deserialize_with = "document::networks")]
    pub accept_routes: BTreeSet<IpNet>,
    /// How peers are found.
    #[serde(default)]
    pub discovery: Discovery,
    /// How NATs are dealt with.
    #[serde(default)]
    pub nat: Nat,
    /// How peers without a path of their own are reached.
    #[serde(default)]
    pub relay: Relay,
    /// What others may learn of this node.
    #[serde(default)]
    pub privacy: Privacy,
    /// What the daemon holds at most.
    #[serde(default)]
    pub limits: Limits,
    /// Where it was read from.
    #[serde(skip)]
    path: PathBuf,
    /// Whether there need be no such file.
    #[serde(skip)]
    is_optional: bool,
}

/// How NATs are dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    /// Who tells this node its address as the internet sees it; the type of NAT takes two of them.
    #[serde(default = "default_stun_servers", deserialize_with = "document::texts")]
    pub stun_servers: Vec<StunServer>,
    /// Whether paths through NATs are looked for.
    #[serde(default = "default_punching")]
    pub punching: bool,
}

impl Default for Nat {
    fn default() -> Self {
        Self { stun_servers: default_stun_servers(), punching: default_punching() }
    }
}

/// What others may learn of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// Whether only other nodes publish this node's record outside the mesh.
    #[serde(default)]
    pub dandelion: bool,
}

/// What the daemon holds at most.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most peers; more are refused.
    #[serde(default = "default_max_peers")]
    pub max_peers: NonZeroU16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_peers: default_max_peers() }
    }
}

/// A way to find peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Peers that the operator names.
    Manual,
    /// Multicast on every link of the host.
    Lan,
    /// Nodes to dial that the operator names.
    Bootstrap,
    /// Names whose zone lists nodes to dial.
    Dns,
    /// Sessions over TLS in which nodes tell each other of others.
    Exchange,
    /// Notices and announcements in Mainline DHT.
    Dht,
    /// Datagrams inside the mesh in which nodes tell each other of others.
    Gossip,
}

impl Method {
    const NAMES: [(&'static str, Self); 7] = [
        ("manual", Self::Manual),
        ("lan", Self::Lan),
        ("bootstrap", Self::Bootstrap),
        ("dns", Self::Dns),
        ("exchange", Self::Exchange),
        ("dht", Self::Dht),
        ("gossip", Self::Gossip),
    ];
    const LATER: [&'static str; 4] = ["mdns", "file", "http", "github"];
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if let Some((_, method)) = Self::NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(*method);
        }
        let known = Self::NAMES.map(|(known, _)| known);
        if Self::LATER.contains(&name.as_str()) {
            return Err(format!("method `{name}` is not in this version, which has: {}", known.join(", ")));
        }
        Err(format!("unknown method `{name}`, this version has: {}", known.join(", ")))
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs a human.
    Error,
    /// And what is unusual.
    Warn,
    /// And changes of state.
    #[default]
    Info,
    /// And decisions.
    Debug,
    /// And packets.
    Trace,
}

/// What follows the interface's name in the names of a mesh's other files of state.
const FILE_SUFFIXES: [&str; 6] = ["-peers", "-pins", "-peerstore", "-dht-nodes", "-relay", "-routed"];

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {source}{}", path.display(), read_advice(path, source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}:{problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: Problem,
    },
    /// The file speaks of another mesh than the one that was asked for.
    #[error("{}: it sets `interface = \"{found}\"` but was found by the name {asked}: rename one", path.display())]
    OtherInterface {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: InterfaceName,
        /// What was asked for.
        asked: InterfaceName,
    },
}

fn read_advice(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; two lines are enough: interface = \"wgmesh0\" and secret_file = \"/etc/wgmesh/wgmesh0.secret\""
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => format!(
            "; run as root, or where it is the service that says this: chmod a+r {} (the secret is in a file of its own)",
            path.display()
        ),
        _ => String::new(),
    }
}

/// Refuses a name with which the mesh's state would be what another one keeps besides.
fn check_files_of(interface: &InterfaceName) -> Result<(), Problem> {
    let Some(suffix) = FILE_SUFFIXES.into_iter().find(|suffix| interface.as_str().ends_with(suffix)) else {
        return Ok(());
    };
    let message = format!("{interface} is what a file of another mesh may be called");
    let hint = Some(format!("take a name that does not end in {suffix}"));
    Err(Problem { line: 1, column: 1, key: Some("interface".to_owned()), message, hint })
}

fn unnamed(error: InvalidInterfaceName) -> Problem {
    let message = format!("it is not set, and the file's name cannot stand in for it: {error}");
    let hint = Some("write for instance: interface = \"wgmesh0\"".to_owned());
    Problem { line: 1, column: 1, key: Some("interface".to_owned()), message, hint }
}

/// Whatever a group may read, the service's own or an access list's, may be meant for it.
fn unreadable_to_others(path: &Path) -> Option<String> {
    let file = std::fs::metadata(path).ok()?;
    let mode = file.mode() & 0o7777;
    (file.uid() == 0 && mode & 0o044 == 0).then(|| {
        let path = path.display();
        format!(
            "{path}: the service, which is not root, cannot read it (mode {mode:04o}); run: chmod a+r {path}"
        )
    })
}

impl File {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error`] if it cannot be read, or for the first thing wrong in it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let mut file =
            Self::parse(&text, path).map_err(|problem| Error::Invalid { path: path.into(), problem })?;
        if let (Some(secret), Some(directory)) = (&file.secret_file, path.parent()) {
            file.secret_file = Some(directory.join(secret));
        }
        Ok(file)
    }

    /// Reads `/etc/wgmesh/<interface>.toml`, or takes the defaults if there is no such file.
    ///
    /// # Errors
    /// As [`File::load`], and if the file sets another interface.
    pub fn of_interface(interface: &InterfaceName) -> Result<Self, Error> {
        Self::of_interface_in(Path::new(DIRECTORY), interface)
    }

    fn of_interface_in(directory: &Path, interface: &InterfaceName) -> Result<Self, Error> {
        let path = directory.join(format!("{interface}.toml"));
        let file = match Self::load(&path) {
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::parse("", &path).map_err(|problem| Error::Invalid { path: path.clone(), problem })?
            }
            loaded => loaded?,
        };
        match file.interface == *interface {
            true => Ok(Self { is_optional: true, ..file }),
            false => Err(Error::OtherInterface { path, found: file.interface, asked: interface.clone() }),
        }
    }

    /// Says what keeps the service from reading the file, if it is for the service: that runs as a user of its own.
    pub fn unreadable_to_service(&self) -> Option<String> {
        self.path.starts_with(DIRECTORY).then(|| unreadable_to_others(&self.path))?
    }

    /// Checks the text of a file. The path gives the interface its default name.
    fn parse(text: &str, path: &Path) -> Result<Self, Problem> {
        let (mut file, keys): (Self, _) = document::parse(text)?;
        if !keys.contains("interface") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            file.interface = stem.parse().map_err(unnamed)?;
        }
        check_files_of(&file.interface)?;
        Ok(Self { path: path.into(), ..file })
    }

    /// Returns what of it concerns the core; `system_hostname` is what the host calls itself.
    pub fn settings(&self, system_hostname: &str) -> Settings {
        Settings {
            interface: self.interface.clone(),
            hostname: self.hostname.clone().unwrap_or_else(|| Hostname::from_system(system_hostname)),
            listen_port: self.listen_port,
            subnet: self.subnet,
            advertise_routes: self.advertise_routes.clone(),
            accept_routes: self.accept_routes.clone(),
            lan: self.discovery.enabled_methods.contains(&Method::Lan),
            punching: self.nat.punching,
            exchange: self.discovery.enabled_methods.contains(&Method::Exchange),
            gossip: self.discovery.enabled_methods.contains(&Method::Gossip),
            exchange_port: self.discovery.exchange_port.map(NonZeroU16::get),
            dht: self.discovery.enabled_methods.contains(&Method::Dht),
            dandelion: self.privacy.dandelion,
            relay: self.relay.settings(),
            max_peers: self.limits.max_peers.get().into(),
            sessions: self.discovery.places(),
            sharing: self.discovery.sharing(),
        }
    }

    /// Returns where the node's key, address nonce and sequence are kept.
    pub fn state_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}.json", self.interface))
    }

    /// Returns where the peers are remembered.
    pub fn peers_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}-peers.json", self.interface))
    }

    /// Returns where it is kept whom `wgmesh peer add` has named.
    pub fn pins_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}-pins.json", self.interface))
    }

    /// Returns where the nodes of Mainline DHT are remembered (W-X33, X-12).
    pub fn dht_nodes_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}-dht-nodes.json", self.interface))
    }

    /// Returns where it is kept what other nodes are worth.
    pub fn peerstore_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}-peerstore.json", self.interface))
    }

    /// Returns every file in which a node keeps who it is and whom it knows.
    pub fn state_files(&self) -> [PathBuf; 7] {
        let [state, peers, pins] = [self.state_path(), self.peers_path(), self.pins_path()];
        let [relay, routed] = [self.relay_path(), self.routed_path()];
        [state, peers, pins, self.peerstore_path(), self.dht_nodes_path(), relay, routed]
    }

    /// Returns where the pairs are kept that this node is a relay for.
    pub fn relay_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}-relay.json", self.interface))
    }

    /// Returns where the pairs are kept between which this node routes.
    pub fn routed_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}-routed.json", self.interface))
    }

    /// Returns where `advertise_routes` and `log_level` may be set over what the file says.
    pub fn overrides_path(&self) -> PathBuf {
        self.state_dir.join(format!("{}.reload", self.interface))
    }

    /// Returns where the daemon answers the command line.
    pub fn socket_path(&self) -> PathBuf {
        self.runtime_dir.join(format!("{}.sock", self.interface))
    }
}

/// Returns the interface of a mesh that was given no name.
pub fn default_interface() -> InterfaceName {
    DEFAULT_INTERFACE.parse().expect("the constant is a valid name")
}

const fn default_listen_port() -> u16 {
    51820
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/wgmesh")
}

fn default_runtime_dir() -> PathBuf {
    PathBuf::from("/run/wgmesh")
}

const fn default_max_peers() -> NonZeroU16 {
    NonZeroU16::new(1000).expect("1000 is not zero")
}

fn default_stun_servers() -> Vec<StunServer> {
    let servers =
        [("stun.cloudflare.com", STUN_PORT), ("stun.l.google.com", 19302), ("stun1.l.google.com", 19302)];
    servers.map(|(host, port)| StunServer { host: host.to_owned(), port }).into()
}

const fn default_punching() -> bool {
    true
}

#[cfg(test)]
mod tests;
