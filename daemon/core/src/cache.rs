//! The peer cache: enough of each peer to find it again after a restart, without any discovery.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::record::SignedRecord;
use crate::time::WallClock;

/// An entry older than this is not restored (seed 003, W-D35).
pub const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// One remembered peer, an element of `/var/lib/wgmesh/<iface>-peers.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// The peer's signed record.
    pub record: StoredRecord,
    /// Where its WireGuard last answered.
    #[serde(default)]
    pub endpoint: Option<SocketAddr>,
    /// When it was last known to be alive.
    pub last_seen: WallClock,
}

/// A signed record as base64 text. Its signature is checked when it is taken out again, not before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoredRecord(String);

impl StoredRecord {
    /// Returns the record if the text is one of this mesh.
    pub fn verify(&self, network_id: &[u8; 32]) -> Option<SignedRecord> {
        SignedRecord::verify(&BASE64.decode(&self.0).ok()?, network_id).ok()
    }
}

impl From<&SignedRecord> for StoredRecord {
    fn from(record: &SignedRecord) -> Self {
        Self(BASE64.encode(record.as_bytes()))
    }
}
