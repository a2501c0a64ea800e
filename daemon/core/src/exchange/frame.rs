//! What one frame of a session holds, and the proof that ties a session to a node.

use hmac::{Hmac, Mac as _};
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use sha2::Sha256;

use crate::derive::PairKeys;
use crate::key::PublicKey;
use crate::message::Token;
use crate::sync::{Message, Summary};
use crate::wire::decode_all;

const PROOF_CONTEXT: &[u8] = b"wgmesh session v1";

/// The length of a proof, a whole HMAC-SHA256.
pub(super) const PROOF_BYTES: usize = 32;

/// One frame, CBOR of one value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Frame {
    /// Who the sender claims to be. Comes first.
    #[n(0)]
    Hello {
        /// Its signed record.
        #[n(0)]
        record: ByteVec,
        /// Random at each start of the sender.
        #[n(1)]
        run: Token,
    },
    /// That it is who it claims to be. Comes second, and nothing else is taken before.
    #[n(1)]
    Proof(#[n(0)] ByteArray<PROOF_BYTES>),
    /// Wants a pong, and says what the sender holds.
    #[n(2)]
    Ping {
        /// What the pong must repeat.
        #[n(0)]
        number: u64,
        /// What the sender holds.
        #[n(1)]
        summary: Summary,
    },
    /// Answers a ping.
    #[n(3)]
    Pong {
        /// The ping's number.
        #[n(0)]
        number: u64,
    },
    /// To be carried to another node, or carried here from one.
    #[n(4)]
    Forward(#[n(0)] Forward),
    /// Keeps both sides' records the same.
    #[n(5)]
    Sync(#[n(0)] Message),
}

/// A message from one node to another by way of a third, which both have a session with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Forward {
    /// Who wrote it. Only the introducer vouches for that: the body carries its own proof.
    #[n(0)]
    pub from: PublicKey,
    /// For whom it is.
    #[n(1)]
    pub to: PublicKey,
    /// At most [`super::MAX_FORWARD_BYTES`].
    #[n(2)]
    pub body: ByteVec,
}

impl Frame {
    pub(super) fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into memory cannot fail")
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        decode_all(bytes)
    }
}

/// Who opened a session: it keeps a proof from being reflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Dialer,
    Acceptor,
}

/// Begins the proof that `prover` is at its end of the session: only the pair can make it, and it holds for this
/// TLS session (RFC 8446 §7.5) and for one end.
pub(super) fn proof(pair: &PairKeys, exporter: &[u8; 32], prover: PublicKey, role: Role) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&pair.proof).expect("HMAC takes a key of any length");
    mac.update(PROOF_CONTEXT);
    mac.update(exporter);
    mac.update(match role {
        Role::Dialer => b"dialer",
        Role::Acceptor => b"acceptor",
    });
    mac.update(prover.as_bytes());
    mac
}
