//! What a node keeps for life: its WireGuard key, its address nonce, and how far its sequence numbers have gone.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::address::AddressNonce;
use crate::key::{PublicKey, SecretKey};
use crate::time::WallClock;

/// A node's lasting state, the content of `/var/lib/wgmesh/<iface>.json`. It stays over a change of the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The public half, for people who read the file.
    pub wg_pubkey: PublicKey,
    /// The WireGuard private key.
    pub wg_private_key: SecretKey,
    /// The mesh address of the last run, for people who read the file.
    #[serde(default)]
    pub mesh_ip: Option<Ipv4Addr>,
    /// The mesh address of the last run, for people who read the file.
    #[serde(default)]
    pub mesh_ipv6: Option<Ipv6Addr>,
    /// How often the node has moved on to another address.
    #[serde(default)]
    pub nonce: AddressNonce,
    /// The highest sequence number that a record of this node may carry by now.
    #[serde(default)]
    pub sequence: Sequence,
}

impl NodeState {
    /// Makes a new node of 32 random bytes.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        let wg_private_key = SecretKey::from_random(bytes);
        Self {
            wg_pubkey: wg_private_key.public(),
            wg_private_key,
            mesh_ip: None,
            mesh_ipv6: None,
            nonce: AddressNonce::default(),
            sequence: Sequence::default(),
        }
    }
}

/// Orders the records of one node: the higher one is newer, whenever it arrives.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Sequence(#[n(0)] pub u64);

impl Sequence {
    /// Returns the next one: above the last, and at least the time of day in milliseconds. The first clause
    /// holds while the clock goes back, the second when the state file was lost.
    pub fn advance(self, wall: WallClock) -> Self {
        Self(self.0.saturating_add(1).max(wall.as_millis()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_rise_over_a_lost_file_and_over_a_clock_that_went_back() {
        let noon = WallClock::from_millis(1_000_000);
        let first = Sequence::default().advance(noon);
        assert!(first.advance(WallClock::from_millis(5)) > first);
        assert!(Sequence::default().advance(WallClock::from_millis(2_000_000)) > first.advance(noon));
    }

    /// W-D4, W-D42: the file's names are those of the requirement.
    #[test]
    fn the_state_survives_its_json_form() {
        let state = NodeState::from_random([8; 32]);
        let json = serde_json::to_value(&state).unwrap();
        assert!(
            json["wg_pubkey"].is_string() && json["wg_private_key"].is_string() && json["nonce"].is_u64()
        );
        assert_eq!(serde_json::from_value::<NodeState>(json).unwrap(), state);
    }
}
