//! Mesh addresses: derived from (network, key, nonce), so that nobody chooses one. IPv6 has 64 bits, which nobody hits
//! twice; IPv4 as many as the subnet has.
//!
//! Two keys may derive the same IPv4 address, by chance in a small subnet or because somebody looked for such a key. Then the lower key keeps it, and the other takes
//! its next nonce, announces and persists it. Every node decides this alike from the records alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use sha2::{Digest as _, Sha256};

use crate::key::PublicKey;

/// How often a node has moved on to another address. Zero at first.
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
    serde::Serialize,
    serde::Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct AddressNonce(#[n(0)] pub u32);

impl AddressNonce {
    /// Returns the one after this, which is the first again after the last.
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// The subnets that a mesh's addresses are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshSubnets {
    /// IPv4; a `/29` at the smallest, so that there is something to draw from.
    pub v4: Ipv4Net,
    /// IPv6.
    pub v6: Ipv6Net,
}

/// A node's two addresses in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeshAddresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl MeshAddresses {
    /// Whether `other` has an address in common with it.
    pub fn collides_with(self, other: Self) -> bool {
        self.v4 == other.v4 || self.v6 == other.v6
    }

    /// Returns both as one list.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// Derives a node's addresses.
pub fn derive_mesh_addresses(
    network_id: &[u8; 32],
    subnets: MeshSubnets,
    key: PublicKey,
    nonce: AddressNonce,
) -> MeshAddresses {
    let digest = |label: &[u8]| {
        Sha256::new()
            .chain_update(label)
            .chain_update(network_id)
            .chain_update(key.as_bytes())
            .chain_update(nonce.0.to_be_bytes())
            .finalize()
    };
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().expect("a digest has 32 bytes"));
    MeshAddresses {
        v4: host_v4(subnets.v4, number(&digest(b"mesh ipv4"))),
        v6: host_v6(subnets.v6, number(&digest(b"mesh ipv6"))),
    }
}

fn host_v4(subnet: Ipv4Net, number: u64) -> Ipv4Addr {
    let usable = (1_u64 << (32 - subnet.prefix_len())).saturating_sub(2).max(1);
    let host = u32::try_from(number % usable).expect("a remainder of at most 2^32") + 1;
    Ipv4Addr::from_bits(subnet.network().to_bits() | host)
}

fn host_v6(subnet: Ipv6Net, number: u64) -> Ipv6Addr {
    // The all-zero interface id is the subnet-router anycast address (RFC 4291 §2.6.1).
    Ipv6Addr::from_bits(subnet.network().to_bits() | u128::from(number.max(1)))
}

/// Says which of two keys keeps an address that both derive: the lower.
pub fn deterministic_winner(one: PublicKey, other: PublicKey) -> PublicKey {
    one.min(other)
}

/// Returns the keys that lose their address to a lower key, given what each node derives.
pub fn detect_collisions(nodes: &BTreeMap<PublicKey, MeshAddresses>) -> Vec<PublicKey> {
    let mut taken = std::collections::BTreeSet::new();
    // In rising order of keys, so whoever comes later is the loser.
    nodes
        .iter()
        .filter(|(_, addresses)| {
            let addresses = addresses.both();
            let lost = addresses.iter().any(|address| taken.contains(address));
            if !lost {
                taken.extend(addresses);
            }
            lost
        })
        .map(|(&key, _)| key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subnets(v4: &str) -> MeshSubnets {
        MeshSubnets { v4: v4.parse().unwrap(), v6: "fd00:1:2::/64".parse().unwrap() }
    }

    fn node(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    /// W-D3: two nodes of one mesh have different addresses, and each has the same one everywhere.
    #[test]
    fn an_address_depends_on_mesh_key_and_nonce_alone() {
        let derive = |mesh: u8, key, nonce| {
            derive_mesh_addresses(&[mesh; 32], subnets("10.9.0.0/16"), node(key), AddressNonce(nonce))
        };
        assert_eq!(derive(1, 1, 0), derive(1, 1, 0));
        for other in [derive(2, 1, 0), derive(1, 2, 0), derive(1, 1, 1)] {
            assert!(!derive(1, 1, 0).collides_with(other));
        }
    }

    proptest! {
        #[test]
        fn an_address_is_a_host_of_its_subnet(key: [u8; 32], prefix in 8_u8..=29, nonce: u32) {
            let subnets = subnets(&format!("10.0.0.0/{prefix}"));
            let key = PublicKey::from_bytes(key);
            let addresses = derive_mesh_addresses(&[7; 32], subnets, key, AddressNonce(nonce));
            prop_assert!(subnets.v4.contains(&addresses.v4));
            prop_assert!(addresses.v4 != subnets.v4.network() && addresses.v4 != subnets.v4.broadcast());
            prop_assert!(subnets.v6.contains(&addresses.v6));
        }

        /// W-D28, W-D29: whatever the keys, nodes that move on when they lose end up with one address each.
        #[test]
        fn losers_that_take_their_next_nonce_converge(keys in prop::collection::btree_set(any::<[u8; 32]>(), 2..6)) {
            let subnets = subnets("10.0.0.0/29");
            let mut nonces: BTreeMap<_, _> =
                keys.into_iter().map(|key| (PublicKey::from_bytes(key), AddressNonce(0))).collect();
            let lowest = *nonces.keys().next().unwrap();
            for _ in 0..500 {
                let nodes = nonces
                    .iter()
                    .map(|(&key, &nonce)| (key, derive_mesh_addresses(&[3; 32], subnets, key, nonce)))
                    .collect();
                let losers = detect_collisions(&nodes);
                prop_assert!(!losers.contains(&lowest));
                if losers.is_empty() {
                    return Ok(());
                }
                for loser in losers {
                    nonces.entry(loser).and_modify(|nonce| *nonce = nonce.next());
                }
            }
            prop_assert!(false, "no convergence");
        }
    }

    #[test]
    fn the_lower_key_wins_from_either_side() {
        assert_eq!(deterministic_winner(node(1), node(2)), node(1));
        assert_eq!(deterministic_winner(node(2), node(1)), node(1));
    }
}
