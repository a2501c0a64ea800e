//! What nodes say to each other in datagrams, inside the envelope of [`crate::seal`].
//!
//! An [`Announce`] goes to the mesh's multicast group: "this node is here, with this record". Any member could
//! forge one, and anyone could replay one, so it is a lead and no more: its receiver answers with a [`Hello`].
//!
//! A hello goes to one node and carries a proof that only the pair can make (HMAC-SHA256 under a key of both
//! X25519 keys), a [`Stamp`] that only rises, and the other's token as an echo. A hello that echoes the token of
//! this run is fresh, whatever the clocks say; only a fresh one moves an endpoint.
//!
//! A [`Disco`] carries the same proof. Its pings and pongs try paths between two WireGuard ports; its carries take an
//! [`Offer`], proved by the pair of its own two ends, to a node that the sender cannot reach yet; and it asks a relay for
//! ports.
//!
//! A [`Choice`] goes to the other node of a pair through the relay that it names, which cannot make one up.
//!
//! A [`Bind`] goes from WireGuard's port to a relay's and tells it where one end of a pair is.

use std::net::SocketAddr;

use hmac::{Hmac, Mac as _};
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use sha2::Sha256;

use crate::derive::PairKeys;
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::relay::{Reached, Refusal};
use crate::wire::decode_all;

const PROOF_BYTES: usize = 16;

/// What the address in a pong takes at its longest, an IPv6 one.
pub const PING_PADDING_BYTES: usize = 18;

/// A random number that a node makes at each start, to know its own run again in what others echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Token(#[n(0)] pub u64);

/// Orders everything that a node ever says: by the sequence of its record, then by a counter of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Stamp {
    /// The sequence of the sender's record.
    #[n(0)]
    pub sequence: Sequence,
    /// Rises with every hello.
    #[n(1)]
    pub counter: u64,
}

/// How far a node has come with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Phase {
    /// It knows of the other.
    #[n(0)]
    Heard,
    /// Its kernel would answer the other's handshake.
    #[n(1)]
    Installed,
    /// Its kernel has the other's endpoint and starts the handshake.
    #[n(2)]
    Active,
}

/// To everyone on the link.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Announce {
    /// Whose it claims to be.
    #[n(0)]
    pub key: PublicKey,
    /// The sequence of the sender's record.
    #[n(1)]
    pub sequence: Sequence,
    /// What to echo.
    #[n(2)]
    pub token: Token,
    /// The signed record, left out where everyone should have it by now.
    #[n(3)]
    pub record: Option<ByteVec>,
}

/// To one node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Whose it is.
    #[n(0)]
    pub key: PublicKey,
    /// Above every earlier one of this sender.
    #[n(1)]
    pub stamp: Stamp,
    /// What to echo.
    #[n(2)]
    pub token: Token,
    /// The token last heard from the receiver.
    #[n(3)]
    pub echo: Option<Token>,
    /// How far the sender has come.
    #[n(4)]
    pub phase: Phase,
    /// How far the sender knows the receiver to have come.
    #[n(5)]
    pub seen: Option<Phase>,
    /// The sequence of the receiver's record that the sender holds.
    #[n(6)]
    pub known: Option<Sequence>,
    /// Whether the sender waits for an answer.
    #[n(7)]
    pub ask: bool,
    /// The sender's signed record, left out where the receiver is known to hold it.
    #[n(8)]
    pub record: Option<ByteVec>,
}

/// Between two nodes that look for a path.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Disco {
    /// Whose it is.
    #[n(0)]
    pub key: PublicKey,
    /// Never used twice by this sender.
    #[n(1)]
    pub stamp: Stamp,
    /// The sender's run.
    #[n(2)]
    pub token: Token,
    /// What it says.
    #[n(3)]
    pub body: DiscoBody,
}

/// What a [`Disco`] says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum DiscoBody {
    /// Does this reach you?
    #[n(0)]
    Ping {
        /// To tell the answer by.
        #[n(0)]
        id: u64,
        /// Nothing, at least as long as what an answer adds ([`PING_PADDING_BYTES`]): whoever repeats somebody's ping in
        /// another's name must not have more sent there than it spent. Longer, it shows what the path carries.
        #[n(1)]
        padding: ByteVec,
    },
    /// It did.
    #[n(1)]
    Pong {
        /// The ping's.
        #[n(0)]
        id: u64,
        /// Where the ping came from, as the answering node sees it.
        #[n(1)]
        #[cbor(with = "crate::wire::socket_address")]
        seen: SocketAddr,
    },
    /// Take this to another node.
    #[n(2)]
    Carry {
        /// Who that is.
        #[n(0)]
        to: PublicKey,
        /// An [`Offer`] with its proof.
        #[n(1)]
        offer: ByteVec,
    },
    /// Another node has sent you this.
    #[n(3)]
    Carried {
        /// Who that is.
        #[n(0)]
        from: PublicKey,
        /// An [`Offer`] with its proof.
        #[n(1)]
        offer: ByteVec,
    },
    /// Be a relay between the sender and another node.
    #[n(4)]
    Allocate {
        /// Who that is.
        #[n(0)]
        peer: PublicKey,
    },
    /// There is a relay between you and another node.
    #[n(5)]
    Allocated {
        /// Who that is.
        #[n(0)]
        peer: PublicKey,
        /// The port for you at the address where you reach the sender.
        #[n(1)]
        port: u16,
    },
    /// There is none.
    #[n(6)]
    Refused {
        /// For whom it was asked.
        #[n(0)]
        peer: PublicKey,
        /// Why.
        #[n(1)]
        refusal: Refusal,
    },
    /// Route packets between the sender and another node.
    #[n(7)]
    Route {
        /// Who that is.
        #[n(0)]
        peer: PublicKey,
        /// A [`Choice`] for it, with its proof.
        #[n(1)]
        choice: ByteVec,
    },
    /// The sender routes packets between you and another node.
    #[n(8)]
    Routed {
        /// Who that is.
        #[n(0)]
        peer: PublicKey,
        /// What it has said to that; nothing where you have asked yourself.
        #[n(1)]
        choice: Option<ByteVec>,
    },
    /// The tunnel between us two is up: no relay need route our packets.
    #[n(9)]
    Direct {
        /// Whether it answers the same, and so wants no answer.
        #[n(0)]
        answer: bool,
    },
    /// Be a relay no more between the sender and another node, if that one says so too.
    #[n(10)]
    Release {
        /// Who that is.
        #[n(0)]
        peer: PublicKey,
    },
    /// Another node needs the sender no more as a relay to you.
    #[n(11)]
    Released {
        /// Who that is.
        #[n(0)]
        peer: PublicKey,
        /// Whether you have said so too, and it is none any more; else you are to say it if it is so.
        #[n(1)]
        agreed: bool,
    },
}

/// For one node from another: this relay routes our packets.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Choice {
    /// Whose it is.
    #[n(0)]
    pub key: PublicKey,
    /// Never used twice by this sender.
    #[n(1)]
    pub stamp: Stamp,
    /// The relay.
    #[n(2)]
    pub relay: PublicKey,
}

/// To a relay's port: what belongs to this pair comes from where this came from.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Bind {
    /// Whose it is.
    #[n(0)]
    pub key: PublicKey,
    /// Never used twice by this sender.
    #[n(1)]
    pub stamp: Stamp,
    /// The port that it is sent to, so that nobody can turn it against another.
    #[n(2)]
    pub port: u16,
}

/// One side of a rendezvous: where to look for it, from now on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Offer {
    /// Whose it is.
    #[n(0)]
    pub key: PublicKey,
    /// Never used twice by this sender.
    #[n(1)]
    pub stamp: Stamp,
    /// The sender's run.
    #[n(2)]
    pub token: Token,
    /// Where its WireGuard may answer, at most [`crate::record::MAX_CANDIDATES`].
    #[n(3)]
    #[cbor(with = "crate::wire::socket_addresses")]
    pub candidates: Vec<SocketAddr>,
    /// Whether it answers an offer, and so wants none back.
    #[n(4)]
    pub answer: bool,
    /// The relays that it reaches itself, at most [`crate::relay::MAX_OFFERED`].
    #[n(5)]
    pub relays: Vec<Reached>,
    /// Whether it wants a relay now.
    #[n(6)]
    pub wants_relay: bool,
    /// Whether it takes relays that route its packets, and can read them.
    #[n(7)]
    pub routed: bool,
}

/// A message that proves its sender to the one node that it is for.
pub trait Paired: Encode<()> + for<'b> Decode<'b, ()> {
    /// Sets its proofs apart from those of every other type.
    const CONTEXT: &'static [u8];

    /// Returns whose it claims to be.
    fn sender(&self) -> PublicKey;

    /// Encodes it, with the proof for `receiver`.
    fn encode_proved(&self, receiver: PublicKey, pair: &PairKeys) -> Vec<u8> {
        let body = minicbor::to_vec(self).expect("encoding into memory cannot fail");
        let proof = proof(Self::CONTEXT, &body, receiver, pair).finalize().into_bytes();
        let proof: [u8; PROOF_BYTES] = proof[..PROOF_BYTES].try_into().expect("SHA-256 gives 32 bytes");
        minicbor::to_vec(Proved { body: body.into(), proof: proof.into() })
            .expect("encoding into memory cannot fail")
    }
}

impl Paired for Hello {
    const CONTEXT: &'static [u8] = b"wgmesh hello v1";

    fn sender(&self) -> PublicKey {
        self.key
    }
}

impl Paired for Disco {
    const CONTEXT: &'static [u8] = b"wgmesh disco v1";

    fn sender(&self) -> PublicKey {
        self.key
    }
}

impl Paired for Bind {
    const CONTEXT: &'static [u8] = b"wgmesh bind v1";

    fn sender(&self) -> PublicKey {
        self.key
    }
}

impl Paired for Choice {
    const CONTEXT: &'static [u8] = b"wgmesh choice v1";

    fn sender(&self) -> PublicKey {
        self.key
    }
}

impl Paired for Offer {
    const CONTEXT: &'static [u8] = b"wgmesh offer v1";

    fn sender(&self) -> PublicKey {
        self.key
    }
}

#[derive(Encode, Decode)]
struct Proved {
    #[n(0)]
    body: ByteVec,
    #[n(1)]
    proof: ByteArray<PROOF_BYTES>,
}

/// A message whose sender is not proved yet: it can tell whose pair key to check it with, and nothing else.
pub struct Unproved<T> {
    message: T,
    proved: Proved,
}

impl Announce {
    /// Encodes it for the envelope.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into memory cannot fail")
    }

    /// Decodes an envelope's content.
    pub fn decode(content: &[u8]) -> Option<Self> {
        decode_all(content)
    }
}

impl<T: Paired> Unproved<T> {
    /// Decodes what [`Paired::encode_proved`] gives.
    pub fn decode(content: &[u8]) -> Option<Self> {
        let proved: Proved = decode_all(content)?;
        let message = decode_all(&proved.body)?;
        Some(Self { message, proved })
    }

    /// Returns whose it claims to be.
    pub fn claimed_key(&self) -> PublicKey {
        self.message.sender()
    }

    /// Returns the message if its sender is the other node of `pair`.
    pub fn prove(self, receiver: PublicKey, pair: &PairKeys) -> Option<T> {
        let expected = proof(T::CONTEXT, &self.proved.body, receiver, pair);
        expected.verify_truncated_left(&*self.proved.proof).ok()?;
        Some(self.message)
    }
}

/// Writes a record into a message.
pub(crate) fn attach(record: &SignedRecord) -> Option<ByteVec> {
    Some(record.as_bytes().to_vec().into())
}

fn proof(context: &[u8], body: &[u8], receiver: PublicKey, pair: &PairKeys) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&pair.proof).expect("HMAC takes a key of any length");
    mac.update(context);
    mac.update(receiver.as_bytes());
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::MeshKeys;
    use crate::key::SecretKey;
    use crate::secret::MeshSecret;

    fn hello(key: PublicKey) -> Hello {
        Hello {
            key,
            stamp: Stamp { sequence: Sequence(4), counter: 2 },
            token: Token(9),
            echo: None,
            phase: Phase::Installed,
            seen: Some(Phase::Heard),
            known: None,
            ask: true,
            record: None,
        }
    }

    #[test]
    fn only_the_other_node_of_the_pair_can_say_hello() {
        let mesh = MeshKeys::derive(&MeshSecret::from_random([1; 32]).mesh_key());
        let [a, b, c] = [1, 2, 3].map(|byte| SecretKey::from_random([byte; 32]));
        let pair = mesh.pair(&a, a.public(), b.public());
        let bytes = hello(a.public()).encode_proved(b.public(), &pair);
        let prove =
            |receiver, pair: &PairKeys| Unproved::<Hello>::decode(&bytes).unwrap().prove(receiver, pair);
        assert_eq!(prove(b.public(), &pair), Some(hello(a.public())));
        assert_eq!(prove(a.public(), &pair), None, "reflected");
        assert_eq!(prove(b.public(), &mesh.pair(&c, c.public(), b.public())), None, "another member");
    }

    #[test]
    fn an_answer_is_never_longer_than_its_ping() {
        let disco = |body| {
            let key = SecretKey::from_random([1; 32]).public();
            let disco =
                Disco { key, stamp: Stamp { sequence: Sequence(4), counter: 2 }, token: Token(9), body };
            minicbor::to_vec(disco).unwrap().len()
        };
        let ping = disco(DiscoBody::Ping { id: 7, padding: vec![0; PING_PADDING_BYTES].into() });
        for seen in ["192.0.2.1:7", "[2001:db8::1]:7"] {
            assert!(disco(DiscoBody::Pong { id: 7, seen: seen.parse().unwrap() }) <= ping);
        }
    }

    #[test]
    fn stamps_rise_with_the_counter_and_first_with_the_sequence() {
        let stamp = |sequence, counter| Stamp { sequence: Sequence(sequence), counter };
        assert!(stamp(1, 9) < stamp(2, 0) && stamp(2, 0) < stamp(2, 1));
    }

    #[test]
    fn anything_else_is_no_message() {
        let announce = Announce {
            key: SecretKey::from_random([1; 32]).public(),
            sequence: Sequence(1),
            token: Token(1),
            record: None,
        }
        .encode();
        for length in 0..announce.len() {
            assert_eq!(Announce::decode(&announce[..length]), None);
        }
        assert!(Unproved::<Hello>::decode(&announce).is_none());
    }
}
