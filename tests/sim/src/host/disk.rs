//! A host's disk.

use wgmesh_core::cache::CacheEntry;
use wgmesh_core::identity::NodeState;
use wgmesh_core::key::PublicKey;
use wgmesh_core::standing::Book;

use crate::random::Random;

/// What the daemon keeps in files.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The node's own state.
    pub state: NodeState,
    /// The peer cache.
    pub cache: Vec<CacheEntry>,
    /// What others are worth.
    pub book: Book,
    /// Between which pairs it routes.
    pub routed: Vec<[PublicKey; 2]>,
}

impl Disk {
    /// Makes the disk of a host that has never run.
    pub fn new(random: &mut Random) -> Self {
        Self {
            state: NodeState::from_random(random.bytes()),
            cache: Vec::new(),
            book: Book::default(),
            routed: Vec::new(),
        }
    }
}
