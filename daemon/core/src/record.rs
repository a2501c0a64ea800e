//! Records: what a node says of itself, signed by its WireGuard key (XEdDSA).
//!
//! A signed record is CBOR of `[body, signature]`, where `body` is the CBOR of [`Record`]. The signature covers a
//! context string, the network id and the body's bytes exactly as sent, so a record of one mesh is nothing in
//! another, and a later version may add fields that this one skips.
//!
//! Verification never looks at what a record says before its signature holds. What it says is then checked once
//! (hostname, routes, counts), so that a [`SignedRecord`] in hand needs no further checks.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use minicbor::{Decode, Encode};
use rand_core::CryptoRng;
use xeddsa::{Sign as _, Verify as _};

use crate::address::AddressNonce;
use crate::config::Hostname;
use crate::identity::Sequence;
use crate::key::{PublicKey, SecretKey};
use crate::nat::Nat;
use crate::time::WallClock;

/// The longest signed record. Sealed it stays under 1,000 bytes, BEP 44's limit, so that one format serves every
/// source.
pub const MAX_SIGNED_BYTES: usize = 900;

/// The most candidates in one record.
pub const MAX_CANDIDATES: usize = 8;

/// The most routes in one record: they fit [`MAX_SIGNED_BYTES`] beside the longest hostname and all candidates.
pub const MAX_ROUTES: usize = 24;

const CONTEXT: &[u8] = b"wgmesh record v1";

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// Whose record it is.
    #[n(0)]
    pub key: PublicKey,
    /// Newer records of a node carry higher numbers.
    #[n(1)]
    pub sequence: Sequence,
    /// The node's name for people.
    #[n(2)]
    pub hostname: Hostname,
    /// From which the node's mesh addresses follow.
    #[n(3)]
    pub nonce: AddressNonce,
    /// The IPv4 subnet that the node draws its address from.
    #[n(4)]
    #[cbor(with = "crate::wire::ipv4_net")]
    pub subnet: Ipv4Net,
    /// The UDP port of the node's WireGuard.
    #[n(5)]
    pub listen_port: u16,
    /// Networks behind the node.
    #[n(6)]
    #[cbor(with = "crate::wire::ip_nets")]
    pub routes: Vec<IpNet>,
    /// When it was signed, by the node's clock.
    #[n(7)]
    #[cbor(with = "crate::wire::wall_clock")]
    pub issued: WallClock,
    /// For how many seconds it holds. Zero is a goodbye: the node has left.
    #[n(8)]
    pub lifetime_s: u32,
    /// Where the node's WireGuard may answer, as the node knows it.
    #[n(9)]
    #[cbor(with = "crate::wire::socket_addresses")]
    pub candidates: Vec<SocketAddr>,
    /// What the node's NAT does.
    #[n(10)]
    pub nat: Nat,
    /// The TCP port of the node's exchange; `None` if it has none.
    #[n(11)]
    pub exchange_port: Option<u16>,
    /// Whether anyone can reach it without more ado, so that it makes a good introducer.
    #[n(12)]
    pub introducer: bool,
    /// Whether it passes on packets for others.
    #[n(13)]
    pub relay: bool,
}

impl Record {
    /// Whether it says nothing that an earlier one of the same node does not say, but that it holds for longer.
    pub fn is_renewal_of(&self, earlier: &Self) -> bool {
        let Self { sequence, issued, lifetime_s, .. } = *earlier;
        !self.is_goodbye() && Self { sequence, issued, lifetime_s, ..self.clone() } == *earlier
    }

    /// Whether it says that its node has left.
    pub const fn is_goodbye(&self) -> bool {
        self.lifetime_s == 0
    }

    /// Whether it is past its lifetime by this host's clock, allowing for clocks that differ by `tolerance`.
    pub fn is_expired(&self, wall: WallClock, tolerance: Duration) -> bool {
        wall.since(self.issued) > Duration::from_secs(self.lifetime_s.into()) + tolerance
    }
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    /// Longer than [`MAX_SIGNED_BYTES`].
    #[error("longer than {MAX_SIGNED_BYTES} bytes")]
    TooLong,
    /// Not the CBOR of a signed record.
    #[error("not a signed record")]
    Malformed,
    /// Not signed by the key it names.
    #[error("the signature does not hold")]
    Signature,
    /// Signed, but says what no honest node says.
    #[error("signed nonsense: {0}")]
    Meaning(&'static str),
}

/// A record whose signature holds, with the bytes that were signed.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedRecord {
    bytes: Vec<u8>,
    record: Record,
}

#[derive(Encode, Decode)]
struct Wire<'a> {
    #[b(0)]
    #[cbor(with = "minicbor::bytes")]
    body: &'a [u8],
    #[b(1)]
    #[cbor(with = "minicbor::bytes")]
    signature: &'a [u8],
}

impl SignedRecord {
    /// Signs a record of the holder of `secret`.
    ///
    /// # Panics
    /// If the record is one that [`SignedRecord::verify`] would refuse: a node never says such a thing.
    pub fn sign(record: Record, secret: &SecretKey, network_id: &[u8; 32], rng: &mut impl CryptoRng) -> Self {
        assert_eq!(check_meaning(&record), Ok(()), "a node checks what it says before it signs");
        let body = minicbor::to_vec(&record).expect("encoding into memory cannot fail");
        let signer = xeddsa::xed25519::PrivateKey(*secret.as_bytes());
        let signature: [u8; 64] = signer.sign(&signed_message(network_id, &body), rng);
        let bytes = minicbor::to_vec(Wire { body: &body, signature: &signature })
            .expect("encoding into memory cannot fail");
        Self { bytes, record }
    }

    /// Takes bytes from the network or a file for a record, if they are one.
    ///
    /// # Errors
    /// [`InvalidRecord`], in the order size, form, signature, meaning.
    pub fn verify(bytes: &[u8], network_id: &[u8; 32]) -> Result<Self, InvalidRecord> {
        let (wire, record) = read(bytes)?;
        let signature: &[u8; 64] = wire.signature.try_into().map_err(|_| InvalidRecord::Malformed)?;
        xeddsa::xed25519::PublicKey(*record.key.as_bytes())
            .verify(&signed_message(network_id, wire.body), signature)
            .map_err(|_| InvalidRecord::Signature)?;
        check_meaning(&record).map_err(InvalidRecord::Meaning)?;
        Ok(Self { bytes: bytes.to_vec(), record })
    }

    /// Returns whose record that is and which, if its signature holds, which is not looked at: that costs a thousand times as
    /// much.
    ///
    /// # Errors
    /// [`InvalidRecord::TooLong`], [`InvalidRecord::Malformed`].
    pub fn claimed(bytes: &[u8]) -> Result<(PublicKey, Sequence), InvalidRecord> {
        let (_, record) = read(bytes)?;
        Ok((record.key, record.sequence))
    }

    /// Returns what the node says.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the bytes to send or store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for SignedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SignedRecord").field(&self.record).finish()
    }
}

fn read(bytes: &[u8]) -> Result<(Wire<'_>, Record), InvalidRecord> {
    if bytes.len() > MAX_SIGNED_BYTES {
        return Err(InvalidRecord::TooLong);
    }
    let wire: Wire<'_> = decode_all(bytes)?;
    let record = decode_all(wire.body)?;
    Ok((wire, record))
}

fn decode_all<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, InvalidRecord> {
    crate::wire::decode_all(bytes).ok_or(InvalidRecord::Malformed)
}

fn signed_message(network_id: &[u8; 32], body: &[u8]) -> Vec<u8> {
    [CONTEXT, network_id, body].concat()
}

fn check_meaning(record: &Record) -> Result<(), &'static str> {
    if record.listen_port == 0 {
        return Err("port zero");
    }
    if record.routes.len() > MAX_ROUTES {
        return Err("too many routes");
    }
    if record.candidates.len() > MAX_CANDIDATES {
        return Err("too many candidates");
    }
    if record.candidates.iter().any(|address| !may_be_an_endpoint(*address)) {
        return Err("a candidate that no host answers at");
    }
    if record.routes.iter().any(|route| *route != route.trunc()) {
        return Err("a route with host bits");
    }
    if !(8..=29).contains(&record.subnet.prefix_len()) || record.subnet != record.subnet.trunc() {
        return Err("subnet");
    }
    if is_unusable_subnet(record.subnet.network()) {
        return Err("subnet that is not for hosts");
    }
    Ok(())
}

/// Whether a host on the internet or on a LAN could answer at this address.
pub const fn may_be_an_endpoint(address: SocketAddr) -> bool {
    let fits = match address {
        SocketAddr::V4(v4) => {
            let ip = v4.ip();
            !(ip.is_multicast() || ip.is_loopback() || ip.is_link_local() || ip.is_broadcast())
                && ip.octets()[0] != 0
                && ip.octets()[0] < 240
        }
        SocketAddr::V6(v6) => {
            let ip = v6.ip();
            // A scope means nothing to another host.
            let link_local = ip.segments()[0] & 0xffc0 == 0xfe80;
            !(ip.is_multicast() || ip.is_loopback() || ip.is_unspecified() || link_local)
                && ip.to_ipv4_mapped().is_none()
        }
    };
    fits && address.port() != 0
}

const fn is_unusable_subnet(network: Ipv4Addr) -> bool {
    network.is_multicast() || network.is_loopback() || network.is_link_local() || network.octets()[0] == 0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng as _;

    pub(crate) fn sample(secret: &SecretKey) -> Record {
        Record {
            key: secret.public(),
            sequence: Sequence(7),
            hostname: "alpha".parse().unwrap(),
            nonce: AddressNonce(0),
            subnet: "10.7.0.0/16".parse().unwrap(),
            listen_port: 51820,
            routes: vec!["192.168.7.0/24".parse().unwrap()],
            issued: WallClock::from_millis(1_000_000),
            lifetime_s: 3600,
            candidates: vec!["192.0.2.7:51820".parse().unwrap()],
            nat: Nat::Cone,
            exchange_port: Some(51900),
            introducer: false,
            relay: false,
        }
    }

    pub(crate) fn signed(record: Record, secret: &SecretKey) -> SignedRecord {
        SignedRecord::sign(record, secret, &[5; 32], &mut ChaCha8Rng::from_seed([6; 32]))
    }

    /// L-5: everything that a node says of itself, its NAT's type and addresses among it, arrives as it was said.
    #[test]
    fn a_record_survives_the_wire() {
        let secret = SecretKey::from_random([1; 32]);
        let record = signed(sample(&secret), &secret);
        assert_eq!(SignedRecord::verify(record.as_bytes(), &[5; 32]), Ok(record));
    }

    /// X-8, W-X4: no byte of a record can be changed, and it holds in its own mesh only.
    #[test]
    fn a_changed_byte_another_mesh_or_another_signer_is_refused() {
        let secret = SecretKey::from_random([1; 32]);
        let record = signed(sample(&secret), &secret);
        for position in 0..record.as_bytes().len() {
            let mut bytes = record.as_bytes().to_vec();
            bytes[position] ^= 1;
            assert!(SignedRecord::verify(&bytes, &[5; 32]).is_err(), "byte {position}");
        }
        assert_eq!(SignedRecord::verify(record.as_bytes(), &[4; 32]), Err(InvalidRecord::Signature));
        let forged = signed(sample(&SecretKey::from_random([2; 32])), &secret);
        assert_eq!(SignedRecord::verify(forged.as_bytes(), &[5; 32]), Err(InvalidRecord::Signature));
    }

    #[test]
    fn truncated_and_oversized_bytes_are_refused() {
        let secret = SecretKey::from_random([1; 32]);
        let record = signed(sample(&secret), &secret);
        for length in 0..record.as_bytes().len() {
            let cut = &record.as_bytes()[..length];
            assert_eq!(SignedRecord::verify(cut, &[5; 32]), Err(InvalidRecord::Malformed), "{length}");
        }
        let trailing = [record.as_bytes(), b"x"].concat();
        assert_eq!(SignedRecord::verify(&trailing, &[5; 32]), Err(InvalidRecord::Malformed));
        assert_eq!(SignedRecord::verify(&[0; 901], &[5; 32]), Err(InvalidRecord::TooLong));
    }

    #[test]
    fn the_largest_record_fits() {
        let secret = SecretKey::from_random([1; 32]);
        let mut record = sample(&secret);
        record.hostname = "h".repeat(Hostname::MAX_BYTES).parse().unwrap();
        record.sequence = Sequence(u64::MAX);
        record.routes = (0..MAX_ROUTES).map(|n| format!("2001:db8:{n:x}::/64").parse().unwrap()).collect();
        record.nonce = AddressNonce(u32::MAX);
        record.exchange_port = Some(u16::MAX);
        let candidate = |n: usize| format!("[2001:db8::{n:x}]:65535").parse().unwrap();
        record.candidates = (0..MAX_CANDIDATES).map(candidate).collect();
        record.issued = WallClock::from_millis(u64::MAX);
        assert!(signed(record, &secret).as_bytes().len() <= MAX_SIGNED_BYTES);
    }

    #[test]
    fn signed_nonsense_is_refused() {
        let secret = SecretKey::from_random([1; 32]);
        let body = |record: &Record| minicbor::to_vec(record).unwrap();
        let nonsense: [fn(&mut Record); 8] = [
            |r| r.listen_port = 0,
            |r| r.subnet = "224.0.0.0/8".parse().unwrap(),
            |r| r.subnet = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 31).unwrap(),
            |r| r.routes = vec!["10.1.2.3/8".parse().unwrap()],
            |r| r.candidates = vec!["192.0.2.7:0".parse().unwrap()],
            |r| r.candidates = vec!["255.255.255.255:51820".parse().unwrap()],
            |r| r.candidates = vec!["[fe80::1]:51820".parse().unwrap()],
            |r| r.candidates = vec!["192.0.2.7:51820".parse().unwrap(); MAX_CANDIDATES + 1],
        ];
        for (number, change) in nonsense.into_iter().enumerate() {
            let mut record = sample(&secret);
            change(&mut record);
            let body = body(&record);
            let signer = xeddsa::xed25519::PrivateKey(*secret.as_bytes());
            let message = signed_message(&[5; 32], &body);
            let signature: [u8; 64] = signer.sign(&message, ChaCha8Rng::from_seed([6; 32]));
            let bytes = minicbor::to_vec(Wire { body: &body, signature: &signature }).unwrap();
            let outcome = SignedRecord::verify(&bytes, &[5; 32]);
            assert!(matches!(outcome, Err(InvalidRecord::Meaning(_))), "case {number}: {outcome:?}");
        }
    }
}
