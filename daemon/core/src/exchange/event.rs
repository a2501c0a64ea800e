//! What the exchange and its shell say to each other, and why sessions end.

use std::net::SocketAddr;

use super::{Forward, PONG_PATIENCE};
use crate::key::PublicKey;
use crate::record::{InvalidRecord, SignedRecord};
use crate::standing::Deed;
use crate::time::Monotonic;

/// Names a session; the shell gives each stream a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// An address to hold a session with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Where the exchange of a node listens.
    pub address: SocketAddr,
    /// Which node must answer there; `None` takes any node of the mesh.
    pub expected: Option<PublicKey>,
}

/// What the shell tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A stream is open, and its other end has the mesh's secret.
    Opened {
        /// Its number.
        id: SessionId,
        /// The other end.
        remote: SocketAddr,
        /// What was dialed; `None` if the other end did.
        dialed: Option<Target>,
        /// TLS's exporter with the label [`EXPORTER_LABEL`], the same at both ends of this stream only.
        exporter: [u8; 32],
    },
    /// A whole frame came in.
    Frame {
        /// On which stream.
        id: SessionId,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// A stream is gone. After [`Output::Close`] it may be told or not.
    Closed {
        /// Its number.
        id: SessionId,
        /// Why, in words.
        reason: String,
    },
    /// No stream came of an [`Output::Dial`].
    DialFailed {
        /// What was dialed.
        target: Target,
        /// Why, in words.
        error: String,
    },
}

/// What ties a session to its TLS connection (RFC 5705, RFC 8446 §7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-wgmesh-node";

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The shell opens a stream, and tells of it by [`SessionEvent::Opened`] or [`SessionEvent::DialFailed`].
    Dial(Target),
    /// The shell sends a frame.
    Send {
        /// On which stream.
        id: SessionId,
        /// Its content, at most [`super::MAX_FRAME_BYTES`].
        bytes: Vec<u8>,
    },
    /// The shell closes a stream after what was sent before.
    Close {
        /// Which.
        id: SessionId,
        /// Why, for the log.
        reason: CloseReason,
    },
    /// The first session with a node is up.
    Up {
        /// The node.
        key: PublicKey,
        /// The other end of the stream.
        remote: SocketAddr,
    },
    /// The last session with a node is gone.
    Down {
        /// The node.
        key: PublicKey,
        /// Why.
        reason: CloseReason,
    },
    /// A record whose signature holds and that would be news, or that a node just proved to be its own.
    Record {
        /// The record.
        record: SignedRecord,
        /// The node that sent it.
        from: PublicKey,
        /// Whether it is that node's own: then the node is alive.
        direct: bool,
        /// When anybody is known to have heard the record's node.
        heard_at: Monotonic,
    },
    /// A node answers at an address that was dialed.
    Met {
        /// The address.
        address: SocketAddr,
        /// The node.
        key: PublicKey,
    },
    /// A node did something that counts for or against it.
    Deed {
        /// The node, which has proved who it is in this session or an earlier one.
        key: PublicKey,
        /// What it did.
        deed: Deed,
    },
    /// A message to us, or one that its author asks us to carry on.
    Forwarded {
        /// The node that sent it to us.
        by: PublicKey,
        /// The message.
        forward: Forward,
    },
    /// A node is to be shut out: [`Book::ban`](crate::standing::Book::ban).
    Misbehaved {
        /// The node.
        key: PublicKey,
        /// What it did last.
        reason: Misbehaviour,
    },
}

/// What no honest node of this version does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// Frames that are none.
    #[error("sent what is no frame")]
    Malformed,
    /// A greeting in the middle of a session.
    #[error("greeted twice")]
    OutOfPlace,
    /// Records that do not verify.
    #[error("sent a bad record: {0}")]
    Record(InvalidRecord),
    /// A message in another's name, or one that is too long.
    #[error("forwarded what it may not")]
    Forward,
    /// More frames than anyone needs.
    #[error("sent too much")]
    Flood,
}

/// Why a session ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The other side did not prove who it is in time.
    #[error("the other side did not say in time which node it is")]
    GreetingTimeout,
    /// The other side began with something else than its greeting.
    #[error("the other side spoke before it said which node it is")]
    NotGreeted,
    /// The record in the greeting is none.
    #[error("the greeting's record is refused: {0}")]
    BadRecord(#[from] InvalidRecord),
    /// The other side is not the node that it claims to be.
    #[error("the other side could not prove that it is the node it claims to be")]
    BadProof,
    /// Another node than the expected one answers.
    #[error(
        "the node there is {found}, not the expected {expected}: if it was replaced on purpose, accept it with `wgmesh peer add HOST#{found}`"
    )]
    WrongKey {
        /// The one that should answer.
        expected: PublicKey,
        /// The one that does.
        found: PublicKey,
    },
    /// This node met itself.
    #[error("that is this node itself")]
    Itself,
    /// Too many sessions, or too many strangers.
    #[error("no room for another session")]
    Full,
    /// There is another session with the node.
    #[error("another session with the node stays")]
    Duplicate,
    /// A ping was not answered.
    #[error("no answer within {} s", PONG_PATIENCE.as_secs())]
    Silent,
    /// The node is shut out.
    #[error("the node is shut out: it {0}")]
    Misbehaved(Misbehaviour),
    /// The node was shut out before, or removed by the operator.
    #[error("the node is shut out")]
    ShutOut,
    /// This side wants no session with the node any more.
    #[error("the session is no longer wanted")]
    Unwanted,
    /// The stream is gone.
    #[error("{0}")]
    Lost(String),
}

impl CloseReason {
    /// Returns under which name to count a session that was refused; `None` for one that just ended.
    pub const fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::GreetingTimeout => Some("session greeting timeout"),
            Self::NotGreeted => Some("session not greeted"),
            Self::BadRecord(_) => Some("session bad record"),
            Self::BadProof => Some("session bad proof"),
            Self::WrongKey { .. } => Some("session wrong key"),
            Self::Full => Some("session no room"),
            Self::ShutOut => Some("session shut out"),
            Self::Itself
            | Self::Duplicate
            | Self::Silent
            | Self::Misbehaved(_)
            | Self::Unwanted
            | Self::Lost(_) => None,
        }
    }
}
