//! What a mesh derives from its key: HKDF-SHA256 (RFC 5869), one label for each use, nothing shared between
//! uses. Every node derives the same, so nothing of this is ever sent.

use std::net::{Ipv4Addr, Ipv6Addr};

use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use ipnet::{Ipv4Net, Ipv6Net};
use sha2::Sha256;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::key::{PresharedKey, PublicKey, SecretKey};
use crate::secret::MeshKey;
use crate::time::WallClock;

const SALT: &[u8] = b"wgmesh v1";
pub(crate) const SECONDS_PER_HOUR: u64 = 3600;

/// The lowest port that a mesh's exchange may listen on (seed 000).
const FIRST_EXCHANGE_PORT: u16 = 51_821;

/// How far gossip's port lies above the exchange's.
const GOSSIP_PORT_OFFSET: u16 = 1000;

/// Length of the tag that marks a datagram as this mesh's for one hour.
pub const TAG_BYTES: usize = 8;

/// The derived keys and names of one mesh.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MeshKeys {
    network_id: [u8; 32],
    sealing: [u8; 32],
    tagging: [u8; 32],
    pairing: [u8; 32],
    owner: [u8; 4],
    group: [u8; 4],
    subnet: u8,
    ula: [u8; 5],
    exchange_port: u16,
    tls: [u8; 32],
    dht: [u8; 32],
    epoch: [u8; 32],
}

impl MeshKeys {
    /// Derives everything that does not depend on a node.
    pub fn derive(key: &MeshKey) -> Self {
        let root = Hkdf::<Sha256>::new(Some(SALT), key.as_bytes());
        Self {
            network_id: expand(&root, &[b"network id"]),
            sealing: expand(&root, &[b"sealing"]),
            tagging: expand(&root, &[b"hourly tag"]),
            pairing: expand(&root, &[b"pairs"]),
            owner: expand(&root, &[b"owner mark"]),
            group: expand(&root, &[b"multicast group"]),
            subnet: expand::<1>(&root, &[b"subnet"])[0],
            ula: expand(&root, &[b"ula prefix"]),
            exchange_port: FIRST_EXCHANGE_PORT
                + u16::from_be_bytes(expand(&root, &[b"exchange port"])) % 1000,
            tls: expand(&root, &[b"tls identity"]),
            dht: expand(&root, &[b"dht"]),
            epoch: expand(&root, &[b"epoch seed"]),
        }
    }

    /// Returns the mesh's identity, which goes into every address and signature.
    pub const fn network_id(&self) -> &[u8; 32] {
        &self.network_id
    }

    /// Returns the key that seals whatever crosses an untrusted wire.
    pub(crate) const fn sealing_key(&self) -> &[u8; 32] {
        &self.sealing
    }

    /// Returns four bytes that tell this mesh's kernel state from another's. Anyone on the host can read them,
    /// so they come from a label of their own.
    pub const fn owner_tag(&self) -> [u8; 4] {
        self.owner
    }

    /// Returns the mesh's IPv4 subnet where the operator names none: `10.X.0.0/16`.
    pub fn default_subnet(&self) -> Ipv4Net {
        Ipv4Net::new(Ipv4Addr::new(10, self.subnet, 0, 0), 16).expect("16 is a prefix length")
    }

    /// Returns the mesh's IPv6 subnet: a unique local `/64` (RFC 4193) with subnet id zero.
    pub fn ula_subnet(&self) -> Ipv6Net {
        let [a, b, c, d, e] = self.ula.map(u16::from);
        let address = Ipv6Addr::new(0xfd00 | a, b << 8 | c, d << 8 | e, 0, 0, 0, 0, 0);
        Ipv6Net::new(address, 64).expect("64 is a prefix length")
    }

    /// Returns the mesh's LAN group in the organisation-local scope, `239.192.X.Y` (RFC 2365 §6.2).
    pub fn multicast_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(239, 192, self.group[0], self.group[1])
    }

    /// Returns the mesh's LAN group on IPv6 links: transient, link-local scope (RFC 4291 §2.7).
    pub fn multicast_v6(&self) -> Ipv6Addr {
        let [a, b, c, d] = self.group.map(u16::from);
        Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, a << 8 | b, c << 8 | d)
    }

    /// Returns the TCP port of the exchange between nodes, one of a thousand.
    pub const fn exchange_port(&self) -> u16 {
        self.exchange_port
    }

    /// Returns the UDP port of gossip on mesh addresses (seed 000, W-X13).
    pub const fn gossip_port(&self) -> u16 {
        self.exchange_port + GOSSIP_PORT_OFFSET
    }

    /// Returns the seed of the Ed25519 key that every node of the mesh shows in TLS: it proves that it has the
    /// secret, and nothing about which node it is.
    pub const fn tls_seed(&self) -> &[u8; 32] {
        &self.tls
    }

    /// Returns a name in the DHT that only members can derive, one for each label.
    pub(crate) fn dht_name<const N: usize>(&self, label: &[&[u8]]) -> [u8; N] {
        let root = Hkdf::<Sha256>::from_prk(&self.dht).expect("a 32-byte key is a valid PRK");
        expand(&root, label)
    }

    /// Returns what decides in an epoch how likely one node has another for a relay of its records.
    pub(crate) fn stem_draw(&self, epoch: u64, node: PublicKey, peer: PublicKey) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.epoch).expect("HMAC takes a key of any length");
        mac.update(&epoch.to_be_bytes());
        mac.update(node.as_bytes());
        mac.update(peer.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// Returns the tag of the hour that `wall` falls into.
    pub fn tag(&self, wall: WallClock) -> [u8; TAG_BYTES] {
        self.hour_tag(wall.as_secs() / SECONDS_PER_HOUR)
    }

    /// Whether `tag` is that of the hour of `wall`, the one before or the one after.
    pub fn is_current_tag(&self, tag: [u8; TAG_BYTES], wall: WallClock) -> bool {
        let hour = wall.as_secs() / SECONDS_PER_HOUR;
        [hour, hour.saturating_sub(1), hour.saturating_add(1)].iter().any(|&hour| self.hour_tag(hour) == tag)
    }

    fn hour_tag(&self, hour: u64) -> [u8; TAG_BYTES] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.tagging).expect("HMAC takes a key of any length");
        mac.update(&hour.to_be_bytes());
        let full = mac.finalize().into_bytes();
        full[..TAG_BYTES].try_into().expect("SHA-256 gives 32 bytes")
    }

    /// Derives what two nodes share, the same from either end.
    pub fn pair(&self, own: &SecretKey, own_public: PublicKey, peer: PublicKey) -> PairKeys {
        let shared = StaticSecret::from(*own.as_bytes())
            .diffie_hellman(&x25519_dalek::PublicKey::from(*peer.as_bytes()));
        let (low, high) = (own_public.min(peer), own_public.max(peer));
        let ends = [low.as_bytes().as_slice(), high.as_bytes().as_slice()].concat();
        let proof = Hkdf::<Sha256>::new(Some(&self.pairing), shared.as_bytes());
        let mesh = Hkdf::<Sha256>::from_prk(&self.pairing).expect("a 32-byte key is a valid PRK");
        PairKeys {
            proof: expand(&proof, &[b"pair proof", &ends]),
            preshared: PresharedKey::from_bytes(expand(&mesh, &[b"preshared key", &ends])),
        }
    }
}

/// What only the two nodes of a pair, or for `preshared` only members of the mesh, can know.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PairKeys {
    /// Authenticates messages between the two: no other member can compute it.
    pub(crate) proof: [u8; 32],
    /// WireGuard's preshared key for the pair.
    pub preshared: PresharedKey,
}

fn expand<const N: usize>(root: &Hkdf<Sha256>, label: &[&[u8]]) -> [u8; N] {
    let mut output = [0; N];
    root.expand_multi_info(label, &mut output).expect("every output is shorter than 255 hashes");
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::MeshSecret;

    fn keys(byte: u8) -> MeshKeys {
        MeshKeys::derive(&MeshSecret::from_random([byte; 32]).mesh_key())
    }

    #[test]
    fn both_ends_of_a_pair_derive_the_same_and_no_third_does() {
        let mesh = keys(1);
        let [a, b, c] = [1, 2, 3].map(|byte| SecretKey::from_random([byte; 32]));
        let from_a = mesh.pair(&a, a.public(), b.public());
        let from_b = mesh.pair(&b, b.public(), a.public());
        assert_eq!(from_a.proof, from_b.proof);
        assert_eq!(from_a.preshared, from_b.preshared);
        assert_ne!(from_a.proof, mesh.pair(&c, c.public(), b.public()).proof);
        assert_ne!(from_a.preshared, keys(2).pair(&a, a.public(), b.public()).preshared);
    }

    /// W-X2, W-X13, W-X18, X-9.
    #[test]
    fn another_secret_gives_other_names_for_everything() {
        let (one, two) = (keys(1), keys(2));
        assert_ne!(one.network_id(), two.network_id());
        assert_ne!(one.ula_subnet(), two.ula_subnet());
        assert_ne!(one.multicast_v4(), two.multicast_v4());
        assert_ne!(one.tls_seed(), two.tls_seed());
        assert_ne!(one.exchange_port(), two.exchange_port());
        assert!((51_821..52_821).contains(&one.exchange_port()));
        assert_eq!(one.gossip_port(), one.exchange_port() + 1000);
        assert_eq!(one.multicast_v4().octets()[..2], [239, 192]);
        assert!(one.multicast_v6().is_multicast());
        assert_eq!(one.ula_subnet().addr().octets()[0], 0xfd);
    }

    #[test]
    fn a_tag_is_good_for_its_hour_and_the_neighbours() {
        let mesh = keys(1);
        let hour = |n: u64| WallClock::from_millis(n * 3_600_000 + 1);
        let tag = mesh.tag(hour(100));
        assert!([99, 100, 101].iter().all(|&n| mesh.is_current_tag(tag, hour(n))));
        assert!([0, 98, 102].iter().all(|&n| !mesh.is_current_tag(tag, hour(n))));
    }
}
