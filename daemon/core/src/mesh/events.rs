//! What goes into a node and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::cache::CacheEntry;
use crate::contact::Via;
use crate::dht::{DhtEvent, Order};
use crate::exchange::{SessionEvent, SessionId, Target};
use crate::identity::NodeState;
use crate::kernel::{Desired, HandshakeSeen, Observed, Underlay};
use crate::key::PublicKey;
use crate::relay::Forwarding;
use crate::standing::Book;

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Event {
    /// The shell is ready. Comes first, once, with what an earlier run may have left in the kernel.
    Started(Arc<Observed>),
    /// The links that peers may be met on have changed; the whole new list.
    Underlay(Vec<Underlay>),
    /// The addresses of the STUN servers are known, the most trusted first; the whole new list.
    StunServers(Vec<SocketAddr>),
    /// The addresses of the bootstrap nodes are known; the whole new list.
    Bootstrap(Vec<Seed>),
    /// The operator wants no key held any more for a name of a bootstrap node.
    ForgetName(String),
    /// The exchange listens on this TCP port, or nowhere.
    ExchangePort(Option<u16>),
    /// Something happened to a session of the exchange.
    Session(SessionEvent),
    /// The DHT, or this host's node of it, tells something.
    Dht(DhtEvent),
    /// A datagram came in.
    Datagram {
        /// The socket that took it.
        via: Via,
        /// Who sent them.
        from: SocketAddr,
        /// What was sent.
        bytes: Vec<u8>,
    },
    /// A datagram for the relay itself came to one of its ports.
    Bind(BindReceived),
    /// Another program has one of the relay's ports.
    RelayPortTaken(u16),
    /// A datagram came to this node's gossip port, on one of its mesh addresses and by its mesh link.
    Gossip {
        /// Who sent it.
        from: SocketAddr,
        /// What was sent.
        bytes: Vec<u8>,
    },
    /// The applier has looked at the kernel, and perhaps changed it.
    Kernel(KernelReport),
    /// The operator names a peer, and perhaps where its WireGuard answers.
    AddPeer(PublicKey, Option<SocketAddr>),
    /// The operator takes a peer again that was removed.
    Welcome(PublicKey),
    /// The operator names a peer no longer; it stays for as long as it tells of itself.
    ReleasePeer(PublicKey),
    /// The operator wants a peer gone, until naming it again.
    RemovePeer(PublicKey),
    /// The operator's word on routes, which may be the same as before; both are whole lists.
    Reconfigure {
        /// Networks behind this node that others may reach through it.
        advertise_routes: BTreeSet<IpNet>,
        /// The networks inside which routes of peers are taken.
        accept_routes: BTreeSet<IpNet>,
    },
    /// Somebody wants to know how far away a peer is; see [`super::Mesh::paths`].
    Ping(PublicKey),
    /// WireGuard's handshake messages crossed the underlay, as far as eBPF sees. Anybody can forge them.
    Handshakes(Vec<HandshakeSeen>),
    /// For a second packets have gone out to a peer and nothing has come back through its tunnel, as far as eBPF sees.
    Unanswered(PublicKey),
    /// A probe through a peer's tunnel was answered after so long, or not in time; see [`Command::Probe`].
    Probed(PublicKey, Option<Duration>),
    /// The whole machine has slept for so long. Comes before anything else that is told after it.
    Woke(Duration),
    /// Somebody wants to know what the NAT does now; see [`super::Mesh::nat_report`].
    CheckNat,
    /// Nothing but time has passed.
    Timeout,
    /// The daemon is going down.
    Stop(Stop),
}

/// A bootstrap node: an address, and the name by which the operator knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// What the key that answers first is held for; `None` where any node of the mesh will do, now and later.
    pub name: Option<String>,
    /// Where it is.
    pub target: Target,
}

/// A datagram for a relay, not for one of its pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindReceived {
    /// The relay's port that it came to.
    pub port: u16,
    /// The relay's address that it came to.
    pub local: IpAddr,
    /// Who sent it.
    pub from: SocketAddr,
    /// What was sent.
    pub bytes: Vec<u8>,
}

/// What the applier found.
#[derive(Clone, Debug)]
pub struct KernelReport {
    /// The newest [`Command::Apply`] that it has followed.
    pub generation: u64,
    /// The kernel as it is now, or why it is not as it should be.
    pub outcome: Result<Arc<Observed>, KernelTrouble>,
    /// Whether sessions and counters were read for this report; otherwise they are those of an earlier one.
    pub fresh: bool,
}

/// Why the kernel is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelTrouble {
    /// Another program has WireGuard's port.
    PortInUse,
    /// A link that is not ours is in the place of ours, so none of our tunnels is there; in words.
    Refused(String),
    /// Anything else, in words; the applier tries again by itself.
    Other(String),
}

/// How the daemon goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// For good: say goodbye and take back everything.
    Withdraw,
    /// To come back at once: leave the tunnels working.
    Handover,
}

/// What the shell must do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Writes the node's state to disk, before anything that comes after.
    SaveState(NodeState),
    /// Writes the peer cache to disk.
    SaveCache(Vec<CacheEntry>),
    /// Writes to disk what others are worth.
    SaveBook(Book),
    /// Makes the kernel hold this.
    Apply {
        /// Rises with every command of this kind.
        generation: u64,
        /// `None` takes back everything that is ours.
        desired: Option<Arc<Desired>>,
    },
    /// Sends a datagram.
    Send(Transmit),
    /// Sends a datagram from this node's gossip port to another node's, between mesh addresses.
    Gossip {
        /// To whom.
        to: SocketAddr,
        /// What.
        bytes: Vec<u8>,
    },
    /// Opens a session of the exchange.
    Dial(Target),
    /// Sends a frame in a session.
    SendFrame {
        /// Which session.
        id: SessionId,
        /// The frame, without its length.
        bytes: Vec<u8>,
    },
    /// Closes a session after what was sent in it before.
    CloseSession(SessionId),
    /// Asks something of the DHT.
    Dht(Order),
    /// Writes the nodes of the DHT to disk that a later run may begin with.
    SaveDhtNodes(Vec<SocketAddrV4>),
    /// Passes on packets between these pairs and no others.
    Relay(Arc<Vec<Forwarding>>),
    /// Probes these peers, at these addresses inside the mesh, and no others, as [`crate::health`] says.
    Probe(BTreeMap<PublicKey, SocketAddr>),
    /// Writes to disk between which pairs of nodes this one routes; that it does so is part of [`Command::Apply`].
    SaveRouted(Vec<[PublicKey; 2]>),
    /// Has the applier read the kernel soon.
    Look,
}

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The socket to send it with.
    pub via: Via,
    /// To whom.
    pub to: Recipient,
    /// What.
    pub bytes: Vec<u8>,
}

/// To whom a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// The mesh's group, over IPv4.
    GroupV4,
    /// The mesh's group, over IPv6.
    GroupV6,
    /// One node.
    Node(SocketAddr),
}

/// Why [`super::Mesh::poll_timeout`] wants to be called back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeoutReason {
    /// An announce is due.
    Announce,
    /// A peer waits for a hello, or for our initiative.
    Contact,
    /// A peer should have a session by then.
    Session,
    /// A peer that answered no probe is to be tried again, or judged.
    Trial,
    /// Our record wants a new signature.
    RefreshRecord,
    /// A peer has been silent for too long.
    RemoveStale,
    /// The peer cache should be written.
    SaveCache,
    /// A grace period ends and the plan may change.
    Replan,
    /// A path is to be tried or judged.
    Path,
    /// A relay is to be asked, told or given up.
    Relay,
    /// A pair's ports are to be taken back.
    RelayPairs,
    /// A STUN server is to be asked, or given up.
    Stun,
    /// A peer that the operator named wants a greeting.
    Greet,
    /// A session is to be opened, asked after or given up.
    Exchange,
    /// The DHT is to be asked, or a request given up.
    Dht,
    /// Something is to be gossiped.
    Gossip,
    /// A record is to be published by others, or for them.
    Stem,
}
