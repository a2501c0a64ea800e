//! What datagrams of gossip say, and how that is written.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::MAX_GOSSIP_BYTES;
use crate::key::PublicKey;
use crate::sync::{Entry, Message};
use crate::wire::decode_all;

pub(super) const VERSION: u8 = 1;

/// What one datagram says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Body {
    /// A part of a synchronisation.
    #[n(0)]
    Sync(#[n(0)] Message),
    /// For how long has nobody heard these?
    #[n(1)]
    AskSilence(#[n(0)] Vec<PublicKey>),
    /// For so long.
    #[n(2)]
    Silence(#[n(0)] Vec<Silence>),
    /// A record that the sender wants published.
    #[n(3)]
    Stem {
        /// The signed record, yet to be verified.
        #[n(0)]
        record: ByteVec,
        /// How many nodes it was sent to.
        #[n(1)]
        hops: u8,
    },
    /// It is published.
    #[n(4)]
    Done(#[n(0)] Entry),
}

/// For how long a node was not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Silence {
    #[n(0)]
    pub(super) key: PublicKey,
    #[n(1)]
    pub(super) seconds: u32,
}

pub(super) fn encode(body: &Body) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    minicbor::encode(body, &mut bytes).expect("encoding into memory cannot fail");
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<Body> {
    let (&version, body) = bytes.split_first()?;
    if version != VERSION || bytes.len() > MAX_GOSSIP_BYTES {
        return None;
    }
    decode_all(body)
}
