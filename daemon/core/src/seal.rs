//! The envelope of whatever crosses an untrusted wire: XChaCha20-Poly1305 under the mesh's sealing key.
//!
//! ```text
//!  0        1      2                10                        34                    n-16        n
//!  +--------+------+----------------+-------------------------+----------------------+----------+
//!  | version| kind |  hourly tag    |  nonce                  |  ciphertext          | MAC      |
//!  +--------+------+----------------+-------------------------+----------------------+----------+
//!   `------------- additional data --------'
//! ```
//!
//! A capture shows a version, a kind and a tag that changes every hour: no key, name or address. The tag lets a
//! receiver drop other meshes' datagrams for the price of one hash. A clock that is off by hours must not part a
//! host from its LAN, so a wrong tag alone is no verdict: [`Opener`] tries a few such datagrams a second.

use std::time::Duration;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand_core::Rng;

use crate::bucket::TokenBucket;
use crate::derive::{MeshKeys, SECONDS_PER_HOUR, TAG_BYTES};
use crate::time::Now;

/// The largest datagram we send or take, but for pings that measure a path; it fits an IPv6 minimum-MTU link (RFC 8200 §5)
/// with room to spare.
pub const MAX_DATAGRAM_BYTES: usize = 1200;

/// The largest ping: as long as WireGuard's largest packet on a link of our MTU.
pub const MAX_PROBE_BYTES: usize = 1452;

/// What an envelope adds to its content.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + NONCE_BYTES + MAC_BYTES;

const VERSION: u8 = 1;
const BIND: u8 = 4;
const HEADER_BYTES: usize = 2 + TAG_BYTES;
const NONCE_BYTES: usize = 24;
const MAC_BYTES: usize = 16;

/// Datagrams with a foreign tag that are tried anyway: a burst of 20, then 10 a second.
const UNTAGGED_BURST: u32 = 20;
const UNTAGGED_INTERVAL: Duration = Duration::from_millis(100);

/// What is inside an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To everyone on the link: I am here.
    Announce,
    /// To one node: an answer or a question.
    Hello,
    /// To one node, through WireGuard's own port: is there a path?
    Disco,
    /// To a relay's port for a pair: here I am.
    Bind,
    /// To whoever reads a board in the DHT: these nodes exist.
    Notice,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Announce => 1,
            Self::Hello => 2,
            Self::Disco => 3,
            Self::Bind => BIND,
            Self::Notice => 6,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Announce),
            2 => Some(Self::Hello),
            3 => Some(Self::Disco),
            BIND => Some(Self::Bind),
            6 => Some(Self::Notice),
            _ => None,
        }
    }
}

/// Whether a datagram is for a relay itself and not to be passed on: the first two bytes tell. WireGuard's messages have
/// a zero in the second (whitepaper §5.4), and everything else that nodes say to each other is of another kind.
pub const fn is_bind(datagram: &[u8]) -> bool {
    matches!(datagram, [VERSION, BIND, ..])
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// Too short to be an envelope, or longer than one of its kind may be.
    #[error("its size")]
    Size,
    /// A version or kind that we do not know.
    #[error("its version or kind")]
    Version,
    /// The tag of another mesh, or of another hour.
    #[error("its tag")]
    Tag,
    /// Sealed with another key, or changed on the way.
    #[error("its seal")]
    Seal,
}

/// Seals `content` for every member of the mesh.
pub fn seal(keys: &MeshKeys, kind: Kind, content: &[u8], now: Now, rng: &mut impl Rng) -> Vec<u8> {
    let mut nonce = [0; NONCE_BYTES];
    rng.fill_bytes(&mut nonce);
    let mut datagram = Vec::with_capacity(OVERHEAD_BYTES + content.len());
    datagram.extend([VERSION, kind.byte()]);
    datagram.extend(keys.tag(now.wall));
    let sealed = cipher(keys)
        .encrypt(XNonce::from_slice(&nonce), Payload { msg: content, aad: &datagram })
        .expect("a datagram is far below the cipher's limit");
    datagram.extend(nonce);
    datagram.extend(sealed);
    datagram
}

/// Opens the envelopes of one mesh, in the order size, version, tag, seal.
#[derive(Clone, Debug)]
pub struct Opener {
    untagged: TokenBucket,
    /// The last tag that was good, and in which hour.
    good: Option<(u64, [u8; TAG_BYTES])>,
}

impl Opener {
    /// Starts with a full allowance for foreign tags.
    pub const fn new(now: Now) -> Self {
        Self { untagged: TokenBucket::new(UNTAGGED_BURST, UNTAGGED_INTERVAL, now.monotonic), good: None }
    }

    /// Returns what is inside.
    ///
    /// # Errors
    /// [`Unopened`] with the first check that failed.
    pub fn open(&mut self, keys: &MeshKeys, datagram: &[u8], now: Now) -> Result<(Kind, Vec<u8>), Unopened> {
        if !(OVERHEAD_BYTES..=MAX_PROBE_BYTES).contains(&datagram.len()) {
            return Err(Unopened::Size);
        }
        let (header, rest) = datagram.split_at(HEADER_BYTES);
        let (&[version, kind], tag) = header.split_first_chunk().expect("the header is longer");
        let kind = Kind::from_byte(kind).filter(|_| version == VERSION).ok_or(Unopened::Version)?;
        if datagram.len() > MAX_DATAGRAM_BYTES && kind != Kind::Disco {
            return Err(Unopened::Size);
        }
        let tag: [u8; TAG_BYTES] = tag.try_into().expect("the header ends with the tag");
        let hour = now.wall.as_secs() / SECONDS_PER_HOUR;
        if self.good != Some((hour, tag)) {
            match keys.is_current_tag(tag, now.wall) {
                true => self.good = Some((hour, tag)),
                false if self.untagged.take(now.monotonic) => {}
                false => return Err(Unopened::Tag),
            }
        }
        let (nonce, sealed) = rest.split_at(NONCE_BYTES);
        let content = cipher(keys)
            .decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: header })
            .map_err(|_| Unopened::Seal)?;
        Ok((kind, content))
    }
}

fn cipher(keys: &MeshKeys) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(keys.sealing_key().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::MeshSecret;
    use crate::time::WallClock;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng as _;

    fn keys(byte: u8) -> MeshKeys {
        MeshKeys::derive(&MeshSecret::from_random([byte; 32]).mesh_key())
    }

    fn at_hour(hour: u64) -> Now {
        Now { wall: WallClock::from_millis(hour * 3_600_000), ..Now::default() }
    }

    fn sealed() -> Vec<u8> {
        seal(&keys(1), Kind::Hello, b"content", at_hour(9), &mut ChaCha8Rng::from_seed([0; 32]))
    }

    #[test]
    fn what_is_sealed_opens_in_the_same_mesh() {
        let opened = Opener::new(at_hour(9)).open(&keys(1), &sealed(), at_hour(9));
        assert_eq!(opened, Ok((Kind::Hello, b"content".to_vec())));
    }

    #[test]
    fn every_changed_byte_every_cut_and_every_other_mesh_is_refused() {
        let datagram = sealed();
        for position in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[position] ^= 1;
            assert!(Opener::new(at_hour(9)).open(&keys(1), &changed, at_hour(9)).is_err(), "byte {position}");
            let cut = &datagram[..position];
            assert!(Opener::new(at_hour(9)).open(&keys(1), cut, at_hour(9)).is_err(), "cut at {position}");
        }
        assert_eq!(Opener::new(at_hour(9)).open(&keys(2), &datagram, at_hour(9)), Err(Unopened::Seal));
        assert_eq!(Opener::new(at_hour(9)).open(&keys(1), &[1; 1201], at_hour(9)), Err(Unopened::Size));
    }

    #[test]
    fn a_clock_off_by_hours_is_tolerated_a_few_times_a_second() {
        let mut opener = Opener::new(at_hour(20));
        assert!(opener.open(&keys(1), &sealed(), at_hour(9)).is_ok(), "a tag that was good is not for ever");
        let refused = (0..30).filter(|_| opener.open(&keys(1), &sealed(), at_hour(20)).is_err()).count();
        assert_eq!(refused, 10);
    }

    #[test]
    fn a_bind_is_told_from_everything_that_a_relay_passes_on() {
        let kinds = [Kind::Announce, Kind::Hello, Kind::Disco, Kind::Bind, Kind::Notice];
        let mut rng = ChaCha8Rng::from_seed([0; 32]);
        let sealed = kinds.map(|kind| is_bind(&seal(&keys(1), kind, b"content", at_hour(9), &mut rng)));
        assert_eq!(sealed, [false, false, false, true, false]);
        assert!((1..=4).all(|wireguard| !is_bind(&[wireguard, 0, 0, 0])));
        assert!(!is_bind(&[]));
    }

    #[test]
    fn the_content_cannot_be_seen_in_the_datagram() {
        assert!(!sealed().windows(7).any(|window| window == b"content"));
    }
}
