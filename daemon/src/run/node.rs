//! The node as it comes from disk and configuration, with its ways to the network.

use wgmesh_core::cache::CacheEntry;
use wgmesh_core::config::Settings;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::identity::NodeState;
use wgmesh_core::kernel::Underlay;
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::Mesh;
use wgmesh_core::relay::Forwarding;
use wgmesh_core::standing::Book;

use super::network::Network;
use super::storage::{Files, Storage};
use super::wanted::Wanted;
use super::{Error, system};
use crate::clock;
use crate::config::File;
use crate::state;

/// A node that is about to start.
pub(super) struct Node {
    pub(super) mesh: Mesh,
    pub(super) network: Network,
    pub(super) storage: Storage,
    /// Whom the operator names.
    pub(super) wanted: Wanted,
}

/// What can be had before the kernel was read.
pub(super) struct Remembered {
    files: Files,
    node: NodeState,
    cache: Vec<CacheEntry>,
    book: Book,
    relayed: Vec<Forwarding>,
    routed: Vec<[PublicKey; 2]>,
    settings: Settings,
    network: Network,
    wanted: Wanted,
}

impl Remembered {
    /// Reads the disk and opens the sockets of the links.
    pub(super) fn load(config: &File, keys: &MeshKeys) -> Result<Self, Error> {
        let files = Files {
            node: state::StateFile::new(config.state_path()),
            peers: state::StateFile::new(config.peers_path()),
            pins: state::StateFile::new(config.pins_path()),
            book: state::StateFile::new(config.peerstore_path()),
            dht_nodes: state::StateFile::new(config.dht_nodes_path()),
            relay: state::StateFile::new(config.relay_path()),
            routed: state::StateFile::new(config.routed_path()),
        };
        let node = match files.node.load()? {
            Some(node) => node,
            None => NodeState::from_random(random()?),
        };
        let cache = files.peers.load()?.unwrap_or_default();
        let book = files.book.load()?.unwrap_or_default();
        let relayed = files.relay.load()?.unwrap_or_default();
        let routed = files.routed.load()?.unwrap_or_default();
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let settings = config.settings(&hostname.to_string_lossy());
        let wanted = Wanted::new(config, files.pins.load()?.unwrap_or_default());
        let mut network = Network::open(config, &settings, keys);
        if settings.dht {
            network.remember_dht(files.dht_nodes.load()?.unwrap_or_default());
        }
        network.set_bootstrap(wanted.bootstrap_nodes());
        Ok(Self { files, node, cache, book, relayed, routed, settings, network, wanted })
    }
}

impl Node {
    /// Puts the node together, on a host with these links.
    pub(super) fn new(
        keys: MeshKeys,
        remembered: Remembered,
        underlay: Vec<Underlay>,
    ) -> Result<Self, Error> {
        let Remembered { files, node, cache, book, relayed, routed, settings, mut network, wanted } =
            remembered;
        let (now, punching) = (clock::now(), settings.punching);
        let mut mesh = Mesh::new(settings, keys, node, underlay, random()?, now);
        mesh.take_book(book, now);
        let restored = mesh.restore(&cache, now);
        mesh.restore_relay(&relayed, now);
        mesh.restore_routed(&routed, now);
        tracing::info!(key = %mesh.public_key(), restored, "starting");
        let storage = Storage::start(files).map_err(system("start a thread"))?;
        if punching {
            network.open_wireguard(mesh.listen_port());
        }
        Ok(Self { mesh, network, storage, wanted })
    }
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::System("get random bytes", error.into()))?;
    Ok(bytes)
}
