//! The eBPF programs: what peers send and receive, when handshakes cross the underlay, and what is relayed for others.
//!
//! Everything here is optional. Whoever gets an [`EbpfError`] goes on by polling netlink and says so in `status`.
//! All calls are short and synchronous; only [`Handshakes`] waits.
//!
//! What lasts and what does not:
//! - The counters' maps and their programs' links on the mesh interface are pinned on bpffs (on kernels before 6.6
//!   the filters simply stay on the interface), so counting goes on while the daemon is being replaced or has died.
//!   [`EbpfTraffic::load`] adopts all that; dropping [`EbpfTraffic`] leaves it; [`EbpfTraffic::withdraw`] removes it.
//! - So are the flows that are relayed and the links of the program that does it.
//! - Nobody listens to handshakes without a daemon, so the programs on the underlay go with it.

mod attach;
mod handshakes;
mod object;
mod relay;
mod syscall;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData, MapError, RingBuf};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::{SchedClassifier, TcAttachType};
use ipnet::IpNet;
use tokio::time::Instant;
use wgmesh_core::kernel::{InterfaceName, PeerTraffic, Underlay};
use wgmesh_core::key::PublicKey;
use wgmesh_core::relay::Forwarding;

pub use attach::AttachError;
pub use handshakes::Handshakes;
pub use relay::Relayed;

use attach::{Hook, Role};
use object::Loaded;
use relay::Relay;
use tables::Tables;

use crate::kernel::KernelError;
use crate::relay::Rates;

/// Where pins are kept, a folder for each mesh.
pub const PIN_ROOT: &str = "/sys/fs/bpf/wgmesh";

/// What is loaded for which mesh.
#[derive(Clone, Debug)]
pub struct EbpfSettings {
    /// The mesh interface.
    pub interface: InterfaceName,
    /// A folder on bpffs; made if it is not there.
    pub pin_directory: PathBuf,
    /// How much is relayed.
    pub rates: Rates,
    /// Whether what an earlier run relayed goes on until this one knows of it.
    pub serves: bool,
}

impl EbpfSettings {
    /// Settings with the usual pin folder, and no limit to what is relayed.
    pub fn new(interface: InterfaceName) -> Self {
        let pin_directory = Path::new(PIN_ROOT).join(interface.as_str());
        Self { interface, pin_directory, rates: Rates::default(), serves: true }
    }
}

/// Why eBPF does not do its part.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// The embedded object is none, which a build can't produce.
    #[error("the embedded eBPF object is unusable: {0}")]
    Object(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No place for pins: bpffs is not mounted there, or belongs to somebody else.
    #[error("no folder for eBPF pins at {}: {source}", path.display())]
    PinDirectory {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map could not be made, opened or typed.
    #[error("eBPF map {name}: {}", with_causes(source))]
    Map {
        /// The map's name.
        name: String,
        /// What aya said.
        #[source]
        source: MapError,
    },
    /// A map could not be read or written.
    #[error("eBPF map: {}", with_causes(.0))]
    Access(#[from] MapError),
    /// The kernel did not accept a program.
    #[error("the kernel refused the eBPF program {program}: {source} {log}")]
    Refused {
        /// The program's name.
        program: String,
        /// The end of the verifier's log.
        log: String,
        /// The error code.
        #[source]
        source: io::Error,
    },
    /// A program could not be opened again after it was loaded.
    #[error("eBPF program {program}: {}", with_causes(source))]
    Program {
        /// The program's name.
        program: String,
        /// What aya said.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// Something could not be pinned or unpinned.
    #[error("eBPF pin of {what}: {source}")]
    Pin {
        /// What it was.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program could not be put on an interface.
    #[error("eBPF on {interface}: {source}")]
    Attach {
        /// The interface.
        interface: String,
        /// What went wrong.
        #[source]
        source: AttachError,
    },
    /// The kernel did not say which way relayed packets go.
    #[error(transparent)]
    Way(#[from] KernelError),
    /// The number of processors is unknown.
    #[error("cannot count the processors: {0}")]
    Processors(#[source] io::Error),
    /// The reactor did not take the ring buffer.
    #[error("cannot wait for eBPF events: {0}")]
    Events(#[source] io::Error),
}

/// Returns what an error says, and what those say that caused it: aya's own text does not tell why the kernel refused.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl EbpfError {
    fn missing(name: &str) -> Self {
        Self::Object(format!("{name} is not in it").into())
    }
}

/// Removes what runs before this one have left in the kernel, where nothing is loaded: programs, maps, pins and their
/// folder. Nothing there is fine.
///
/// # Errors
/// A pin that cannot be removed.
pub fn remove_leftovers(settings: &EbpfSettings) -> Result<(), EbpfError> {
    remove(settings.interface.as_str(), &settings.pin_directory)
}

fn remove(interface: &str, pins: &Path) -> Result<(), EbpfError> {
    attach::detach_filters(interface);
    match std::fs::remove_dir_all(pins) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(EbpfError::Pin { what: pins.display().to_string(), source: error })
        }
        _ => Ok(()),
    }
}

/// The programs and maps of one mesh.
pub struct EbpfTraffic {
    interface: InterfaceName,
    pins: PathBuf,
    hook: Hook,
    tables: Tables,
    listen_port: Array<MapData, u32>,
    awaited: Array<MapData, u32>,
    ring: Option<RingBuf<MapData>>,
    received: SchedClassifier,
    sent: SchedClassifier,
    handshake_received: SchedClassifier,
    handshake_sent: SchedClassifier,
    underlay: BTreeMap<String, Watched>,
    relay: Relay,
}

/// A link below the mesh that is watched; dropping it ends that.
struct Watched {
    index: u32,
    _received: SchedClassifierLink,
    _sent: SchedClassifierLink,
}

impl EbpfTraffic {
    /// Loads the programs and adopts the maps that an earlier run left. Nothing is attached yet.
    ///
    /// Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the calling thread.
    ///
    /// # Errors
    /// No bpffs, no permission, or a kernel older than 5.10.
    pub fn load(settings: &EbpfSettings) -> Result<Self, EbpfError> {
        let pins = settings.pin_directory.clone();
        std::fs::create_dir_all(&pins)
            .map_err(|source| EbpfError::PinDirectory { path: pins.clone(), source })?;
        let mut loaded = Loaded::load(&pins)?;
        Ok(Self {
            interface: settings.interface.clone(),
            hook: Hook::choose(settings.interface.as_str(), Role::Watch),
            relay: Relay::new(&mut loaded, settings)?,
            tables: Tables::new(&mut loaded)?,
            listen_port: loaded.take_map("LISTEN_PORT")?,
            awaited: loaded.take_map(object::AWAITED)?,
            ring: Some(loaded.take_map(object::RING)?),
            received: loaded.take_program("wgmesh_rx")?,
            sent: loaded.take_program("wgmesh_tx")?,
            handshake_received: loaded.take_program("wgmesh_hs_rx")?,
            handshake_sent: loaded.take_program("wgmesh_hs_tx")?,
            underlay: BTreeMap::new(),
            pins,
        })
    }

    /// Puts the counting programs on the mesh interface, in place of those of an earlier run. To be called again
    /// when the interface was made anew.
    ///
    /// # Errors
    /// The interface is not there, or somebody else's filter stands where ours should.
    pub fn attach_mesh(&mut self) -> Result<(), EbpfError> {
        let interface = self.interface.as_str();
        let [received, sent] = self.pins_of_mesh();
        self.hook
            .attach_lasting(&mut self.received, interface, TcAttachType::Ingress, &received)
            .and_then(|()| self.hook.attach_lasting(&mut self.sent, interface, TcAttachType::Egress, &sent))
            .map_err(|source| EbpfError::Attach { interface: interface.to_owned(), source })
    }

    /// Watches a link below the mesh for handshakes; nothing happens if it is watched already. Links with and
    /// without a link-layer header are both fine.
    ///
    /// # Errors
    /// The interface is not there, or somebody else's filter stands where ours should.
    pub fn attach_underlay(&mut self, name: &str, index: u32) -> Result<(), EbpfError> {
        if self.underlay.get(name).is_some_and(|watched| watched.index == index) {
            return Ok(());
        }
        self.underlay.remove(name);
        let failed = |source| EbpfError::Attach { interface: name.to_owned(), source };
        let received = self.hook.attach(&mut self.handshake_received, name, TcAttachType::Ingress);
        let received = received.map_err(failed)?;
        let sent = self.hook.attach(&mut self.handshake_sent, name, TcAttachType::Egress).map_err(failed)?;
        self.underlay.insert(name.to_owned(), Watched { index, _received: received, _sent: sent });
        Ok(())
    }

    /// Stops watching a link below the mesh.
    pub fn detach_underlay(&mut self, name: &str) {
        self.underlay.remove(name);
    }

    /// Returns the names of the links that are watched.
    pub fn underlay(&self) -> impl Iterator<Item = &str> {
        self.underlay.keys().map(String::as_str)
    }

    /// Tells the programs which UDP port is WireGuard's.
    ///
    /// # Errors
    /// The kernel refused, which it has no reason to.
    pub fn set_listen_port(&mut self, port: u16) -> Result<(), EbpfError> {
        Ok(self.listen_port.set(0, u32::from(port), 0)?)
    }

    /// Has handshakes that are answered told at once, or with the next event of another kind; see [`Handshakes::waiting`].
    ///
    /// # Errors
    /// The kernel refused, which it has no reason to.
    pub fn await_handshakes(&mut self, awaits: bool) -> Result<(), EbpfError> {
        Ok(self.awaited.set(0, u32::from(awaits), 0)?)
    }

    /// Makes the programs count for exactly these peers. Who stays keeps its counters; who left and comes back
    /// starts at zero. Calling it without a change costs nothing in the kernel.
    ///
    /// # Errors
    /// The kernel refused, which it has no reason to. Peers beyond the maps' size are left out without an error.
    pub fn sync_peers(&mut self, peers: &BTreeMap<PublicKey, BTreeSet<IpNet>>) -> Result<(), EbpfError> {
        self.tables.sync(peers)
    }

    /// Reads the counters of all peers.
    ///
    /// # Errors
    /// The kernel refused, which it has no reason to.
    pub fn traffic(&self) -> Result<BTreeMap<PublicKey, PeerTraffic>, EbpfError> {
        self.tables.traffic()
    }

    /// Returns the peers that leave packets unanswered, as told beside the last handshakes, each once.
    pub fn take_unanswered(&self, handshakes: &mut Handshakes) -> BTreeSet<PublicKey> {
        self.tables.owners(&handshakes.take_unanswered()).collect()
    }

    /// Relays for exactly these pairs, as far as the kernel can do it alone. Calling it without a change costs questions
    /// about routes only.
    ///
    /// # Errors
    /// The kernel refused the map or a link; what could be done is done.
    pub fn relay_for(&mut self, pairs: &[Forwarding]) -> Result<(), EbpfError> {
        self.relay.follow_pairs(pairs)
    }

    /// Relays through these links, and finds every way anew.
    ///
    /// # Errors
    /// As [`Self::relay_for`].
    pub fn relay_through(&mut self, underlay: &[Underlay]) -> Result<(), EbpfError> {
        self.relay.follow_underlay(underlay)
    }

    /// Returns when [`Self::check_relay`] is to be called.
    pub fn relay_check_at(&self) -> Option<Instant> {
        self.relay.check_at()
    }

    /// Has what is relayed follow the routes of the moment, and ends what an earlier run left where its time has come.
    ///
    /// # Errors
    /// As [`Self::relay_for`].
    pub fn check_relay(&mut self) -> Result<(), EbpfError> {
        self.relay.check()
    }

    /// Sums up what is relayed without the daemon's help.
    ///
    /// # Errors
    /// The kernel refused, which it has no reason to.
    pub fn relayed(&self) -> Result<Relayed, EbpfError> {
        self.relay.relayed()
    }

    /// Hands out the stream of handshakes, once; `None` after that. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// The reactor did not take the ring buffer.
    pub fn handshakes(&mut self) -> Result<Option<Handshakes>, EbpfError> {
        self.ring.take().map(Handshakes::new).transpose().map_err(EbpfError::Events)
    }

    /// Returns how the programs are attached, in words for `status`.
    pub fn hook(&self) -> &'static str {
        match self.hook {
            Hook::Tcx => "tcx",
            Hook::Clsact(_) => "clsact",
        }
    }

    /// Removes everything of ours: programs, maps, pins and their folder, and what an older version left in there.
    ///
    /// # Errors
    /// A pin that cannot be removed.
    pub fn withdraw(self) -> Result<(), EbpfError> {
        let (interface, pins) = (self.interface.clone(), self.pins.clone());
        drop(self);
        remove(interface.as_str(), &pins)
    }

    fn pins_of_mesh(&self) -> [PathBuf; 2] {
        ["link_rx", "link_tx"].map(|name| self.pins.join(name))
    }
}
