//! Mainline DHT as a source of peers: what a node asks of it, when, and what it keeps of the answers.
//!
//! Hosts that share nothing but the secret meet in two places, both named anew each hour by what only members derive:
//!
//! - a **board** of [`SLOTS`] mutable items (BEP 44) under a key pair of the hour, in which members pin [`Notice`]s: their
//!   own signed record and a few of others, sealed. See [`board`] for who writes where.
//! - a **swarm** (BEP 5), where members announce the port of their exchange. It tells addresses only: leads to dial.
//!
//! The DHT is IPv4; a host's IPv6 addresses are in its record beside the others (W-X31). Names of their own for them, and
//! a second lookup, would say nothing more: a notice has room for every candidate of a record.
//!
//! A **round** reads the boards and swarms of this hour and the last one (clocks differ), then writes to both what is due:
//! at once after a change, every [`PUBLISH_INTERVAL`] anyway. A node that reaches nobody goes round at
//! [`FIRST_PAUSE`] and ever more slowly up to [`ALONE_INTERVAL`]; one that has found somebody at [`SETTLING_PAUSE`] and ever more
//! slowly up to [`QUERY_INTERVAL`], since hosts that start together may find each other in groups. Between rounds that are
//! far apart the shell is told to rest: a node of the DHT costs a host some 18 wakes a second.
//!
//! What strangers can do: see that some host stores something here for an hour, keep it from others, hand out an older
//! notice of the same hour, and name wrong addresses in the swarm, of which [`MAX_LEADS`] are dialled, by a handshake that
//! tells them nothing. They cannot write to a board, as its key is secret, nor link one hour to the next. A member can
//! spoil a board for an hour; it cannot sign another's record. What is read is checked in the order size, tag, seal,
//! signature, sequence, meaning, and each record is taken once ([`Dht::freshness`]): what stays in the DHT after its
//! node's death keeps nobody alive.

pub mod board;
mod pace;
mod request;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::derive::MeshKeys;
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::time::{Monotonic, Now};
use crate::wire::decode_all;
use board::{Board, Slot};
use pace::Pace;
pub use pace::{ALONE_INTERVAL, FIRST_PAUSE, QUERY_INTERVAL, SETTLING_PAUSE};
pub use request::{DhtEvent, Failure, Hour, ItemKey, Order, Request, RequestId, Swarm};

/// How many notices a board holds. Each costs a lookup a round, and few are enough: whoever meets one member meets all.
pub const SLOTS: u8 = 4;

/// How often a notice and an announcement are written again (W-X26).
pub const PUBLISH_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// The longest value of a mutable item (BEP 44).
pub const MAX_ITEM_BYTES: usize = 1000;

/// The most addresses of swarms that are dialled at a time; the oldest makes room.
pub const MAX_LEADS: usize = 8;

/// An address that no swarm names any more is dialled no longer than this.
const LEAD_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// A request that the shell has not answered by then is given up: several lookups on a bad line.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// How often the nodes of the DHT are noted that answer (W-X33, X-13).
const NODES_INTERVAL: Duration = Duration::from_secs(2 * 60);

/// With more than this before the next round, the shell rests.
const SHORT_PAUSE: Duration = Duration::from_secs(10);

/// The most nodes whose last record is remembered; the one remembered longest makes room.
const MAX_TAKEN: usize = 1024;

/// What members pin to the board: records, the writer's own first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Notice {
    /// Signed records.
    #[n(0)]
    pub records: Vec<ByteVec>,
}

impl Notice {
    /// Writes a node's own record and as many others as fit into `limit` bytes.
    pub fn write<'a>(
        own: &SignedRecord,
        others: impl IntoIterator<Item = &'a SignedRecord>,
        limit: usize,
    ) -> Vec<u8> {
        let mut notice = Self { records: vec![own.as_bytes().to_vec().into()] };
        let mut bytes = notice.encode();
        for other in others {
            notice.records.push(other.as_bytes().to_vec().into());
            let longer = notice.encode();
            match longer.len() <= limit {
                true => bytes = longer,
                false => drop(notice.records.pop()),
            }
        }
        bytes
    }

    /// Reads what [`Notice::write`] gives.
    pub fn decode(content: &[u8]) -> Option<Self> {
        decode_all(content)
    }

    /// Encodes it for the envelope.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into memory cannot fail")
    }
}

/// What this node writes.
#[derive(Clone, Copy, Debug)]
pub struct Publication {
    /// The sequence of its record, or what else changes with what it writes.
    pub sequence: Sequence,
    /// Whether it writes no notice.
    pub is_empty: bool,
    /// The port that it announces to the swarms, if any.
    pub port: Option<u16>,
}

/// What a record is beside those that were taken from the DHT before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The newest of its node so far; it is taken with this word.
    New,
    /// The same again.
    Known,
    /// An older one: a copy that somebody keeps.
    Old,
}

/// What came of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Somebody says that members are at these addresses.
    Addresses(Vec<SocketAddr>),
    /// A slot holds this, by a signature that only members can make.
    Item {
        /// Which slot.
        slot: Slot,
        /// Newer values have higher ones.
        sequence: i64,
        /// The sealed [`Notice`].
        value: Vec<u8>,
    },
    /// Nodes of the DHT that answer, to begin with another time.
    Nodes(Vec<std::net::SocketAddrV4>),
}

/// How the source does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// When it last had an answer.
    pub last_ok: Option<Monotonic>,
    /// When it last stored a notice.
    pub stored: Option<Monotonic>,
    /// How many nodes of the DHT answered when that was last asked.
    pub nodes: usize,
    /// Why the last round had no answer, or could not store what it had to.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until the next round.
    Resting,
    /// Requests are under way; whether any was answered.
    Reading { answered: bool },
    /// All is read, and perhaps something to be written.
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    ReadSwarm,
    ReadSlot(Slot),
    WriteSlot,
    Announce,
}

impl Purpose {
    const fn is_write(self) -> bool {
        matches!(self, Self::WriteSlot | Self::Announce)
    }
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    purpose: Purpose,
    at: Monotonic,
}

#[derive(Clone, Copy, Debug)]
struct Published {
    sequence: Sequence,
    hour: Hour,
    at: Monotonic,
}

/// One node's dealings with the DHT.
pub struct Dht {
    board: Board,
    pace: Pace,
    stage: Stage,
    asked: BTreeMap<RequestId, Asked>,
    next_id: u64,
    orders: VecDeque<Order>,
    published: Option<Published>,
    /// Why nothing is read.
    error: Option<String>,
    /// Why nothing is stored.
    write_error: Option<String>,
    last_ok: Option<Monotonic>,
    stored: Option<Monotonic>,
    nodes: usize,
    nodes_noted: Option<Monotonic>,
    is_up: bool,
    leads: BTreeMap<SocketAddr, Monotonic>,
    taken: BTreeMap<PublicKey, (Sequence, Monotonic)>,
}

impl Dht {
    /// Makes a node that asks nothing before [`DhtEvent::Opened`].
    pub fn new(own: PublicKey, seed: [u8; 32], now: Monotonic) -> Self {
        Self {
            board: Board::new(own),
            pace: Pace::new(seed, now),
            stage: Stage::Resting,
            asked: BTreeMap::new(),
            next_id: 0,
            orders: VecDeque::new(),
            published: None,
            error: None,
            write_error: None,
            last_ok: None,
            stored: None,
            nodes: 0,
            nodes_noted: None,
            is_up: false,
            leads: BTreeMap::new(),
            taken: BTreeMap::new(),
        }
    }

    /// Follows what the shell tells. What it gives back is still to be checked, and never from a request that was not made.
    pub fn handle(&mut self, event: DhtEvent, now: Monotonic) -> Option<Found> {
        let purpose = |id: &RequestId| self.asked.get(id).map(|asked| asked.purpose);
        match event {
            DhtEvent::Opened => {
                self.pace.open(now);
                None
            }
            DhtEvent::Peers { id, addresses } => {
                purpose(&id).filter(|purpose| *purpose == Purpose::ReadSwarm)?;
                Some(Found::Addresses(addresses.into_iter().map(SocketAddr::V4).collect()))
            }
            DhtEvent::Item { id, sequence, value } => match purpose(&id)? {
                Purpose::ReadSlot(slot) if self.board.is_newer(slot, sequence) => {
                    Some(Found::Item { slot, sequence, value })
                }
                Purpose::ReadSlot(_) | Purpose::ReadSwarm | Purpose::WriteSlot | Purpose::Announce => None,
            },
            DhtEvent::Done { id, outcome } => {
                self.on_done(id, outcome, now);
                None
            }
            DhtEvent::Nodes(nodes) => {
                self.nodes = nodes.len();
                Some(Found::Nodes(nodes))
            }
        }
    }

    /// Follows whether the node reaches anybody, and the sequence of its record.
    pub fn note(&mut self, alone: bool, sequence: Sequence, now: Monotonic) {
        self.pace.note(alone, sequence, now);
    }

    /// Begins anew soon: the host's links have changed.
    pub fn hurry(&mut self, now: Monotonic) {
        self.pace.hurry(now);
    }

    /// Begins a round if one is due, and gives up what was never answered.
    pub fn handle_timeout(&mut self, keys: &MeshKeys, now: Now) {
        let overdue: Vec<_> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.is_overdue(now.monotonic))
            .map(|(&id, _)| id)
            .collect();
        for id in overdue {
            let failure = Failure::Trouble("the DHT does not answer".to_owned());
            self.on_done(id, Err(failure), now.monotonic);
        }
        if self.stage == Stage::Resting && self.pace.is_due(now.monotonic) {
            self.begin_round(keys, now);
        }
    }

    /// Whether everything is read that a decision on what to write needs. Then comes [`Dht::write`].
    pub fn is_ready_to_write(&self) -> bool {
        self.stage == Stage::Read && !self.asked.values().any(|asked| asked.purpose.is_write())
    }

    /// Ends a round: writes where this node is, as far as that is due. `reaches` tells which other nodes this one
    /// speaks for, `notice` makes the sealed notice.
    pub fn write(
        &mut self,
        own: Publication,
        keys: &MeshKeys,
        reaches: impl Fn(PublicKey) -> bool,
        mut notice: impl FnMut() -> Vec<u8>,
        now: Now,
    ) {
        let is_due = self.is_publication_due(own.sequence, now);
        self.write_error = None;
        for hour in Hour::current(now.wall).into_iter().filter(|_| !own.is_empty) {
            let Some(place) = self.board.choose(hour, &reaches, now.wall) else { continue };
            if !is_due && place.is_own {
                continue;
            }
            let sequence = self.board.take(place.slot, now.wall);
            let key = place.slot.key(keys);
            let request = Request::Put { key, sequence, replaces: place.replaces, value: notice() };
            self.ask(Purpose::WriteSlot, request, now.monotonic);
        }
        if is_due {
            let hour = Hour::current(now.wall)[0];
            self.published = Some(Published { sequence: own.sequence, hour, at: now.monotonic });
            for hour in Hour::current(now.wall) {
                let Some(port) = own.port else { break };
                let swarm = hour.swarm(keys);
                self.ask(Purpose::Announce, Request::Announce { swarm, port }, now.monotonic);
            }
        }
        self.stage = Stage::Resting;
        self.rest_if_idle(now.monotonic);
    }

    /// Returns what the shell must do next.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Returns when [`Dht::handle_timeout`] has something to do. Changes with every call of another method.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let round = (self.stage == Stage::Resting).then(|| self.pace.next()).flatten();
        self.asked.values().map(|asked| asked.at + REQUEST_LIMIT).chain(round).min()
    }

    /// Notes what a slot holds; `None` for what is no notice of a member.
    pub fn note_occupant(&mut self, slot: Slot, writer: Option<PublicKey>, sequence: i64) {
        self.board.note(slot, writer, sequence);
    }

    /// Says whether a record is news. Each is taken once, so that what nobody writes any more brings nobody back.
    pub fn freshness(&mut self, key: PublicKey, sequence: Sequence, now: Monotonic) -> Freshness {
        match self.taken.get(&key) {
            Some(&(taken, _)) if sequence == taken => return Freshness::Known,
            Some(&(taken, _)) if sequence < taken => return Freshness::Old,
            Some(_) | None => {}
        }
        self.taken.insert(key, (sequence, now));
        while self.taken.len() > MAX_TAKEN {
            let oldest = self.taken.iter().min_by_key(|(_, (_, at))| *at);
            let oldest = *oldest.expect("there are more than MAX_TAKEN").0;
            self.taken.remove(&oldest);
        }
        Freshness::New
    }

    /// Keeps an address worth dialling. Returns whether it is new.
    pub fn note_lead(&mut self, address: SocketAddr, now: Monotonic) -> bool {
        let is_new = self.leads.insert(address, now).is_none();
        while self.leads.len() > MAX_LEADS {
            let oldest = self.leads.iter().min_by_key(|(_, at)| **at);
            let oldest = *oldest.expect("there are more than MAX_LEADS").0;
            self.leads.remove(&oldest);
        }
        is_new
    }

    /// Returns the addresses worth dialling.
    pub fn leads(&self) -> impl Iterator<Item = SocketAddr> {
        self.leads.keys().copied()
    }

    /// Returns how it does.
    pub fn health(&self) -> Health {
        let error = self.error.as_ref().or(self.write_error.as_ref()).cloned();
        Health { last_ok: self.last_ok, stored: self.stored, nodes: self.nodes, error }
    }

    fn begin_round(&mut self, keys: &MeshKeys, now: Now) {
        self.leads.retain(|_, at| now.monotonic.since(*at) < LEAD_LIFETIME);
        self.stage = Stage::Reading { answered: false };
        self.is_up = true;
        let hours = Hour::current(now.wall);
        self.board.turn_to(&hours);
        for hour in hours {
            for slot in Slot::all(hour) {
                self.board.clear(slot);
                self.ask(Purpose::ReadSlot(slot), Request::Get { key: slot.key(keys) }, now.monotonic);
            }
            let swarm = hour.swarm(keys);
            self.ask(Purpose::ReadSwarm, Request::FindPeers { swarm }, now.monotonic);
        }
    }

    fn ask(&mut self, purpose: Purpose, request: Request, now: Monotonic) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.asked.insert(id, Asked { purpose, at: now });
        self.orders.push_back(Order::Ask { id, request });
    }

    fn on_done(&mut self, id: RequestId, outcome: Result<(), Failure>, now: Monotonic) {
        let Some(Asked { purpose, .. }) = self.asked.remove(&id) else { return };
        match (purpose, outcome) {
            (Purpose::ReadSlot(_), Ok(())) => {
                (self.error, self.last_ok) = (None, Some(now));
                if let Stage::Reading { answered } = &mut self.stage {
                    *answered = true;
                }
            }
            (Purpose::ReadSlot(_), Err(Failure::Trouble(error)))
                if self.stage == (Stage::Reading { answered: false }) =>
            {
                self.error = Some(error);
            }
            (Purpose::WriteSlot, Ok(())) => self.stored = Some(now),
            (Purpose::WriteSlot | Purpose::Announce, Err(failure)) => self.on_unwritten(failure),
            (Purpose::ReadSlot(_), Err(_)) | (Purpose::ReadSwarm, _) | (Purpose::Announce, Ok(())) => {}
        }
        self.end_reading(now);
    }

    /// Whatever it was, the next round writes it again.
    fn on_unwritten(&mut self, failure: Failure) {
        tracing::debug!(?failure, "a notice was not stored");
        self.published = None;
        match failure {
            // That is how members find slots for themselves.
            Failure::Overtaken => {}
            Failure::Trouble(error) => self.write_error = Some(format!("nothing can be stored: {error}")),
        }
    }

    fn end_reading(&mut self, now: Monotonic) {
        let reads = self.asked.values().any(|asked| !asked.purpose.is_write());
        match self.stage {
            Stage::Reading { answered } if !reads => {
                self.pace.end_round(answered, now);
                self.stage = if answered { Stage::Read } else { Stage::Resting };
            }
            Stage::Resting | Stage::Reading { .. } | Stage::Read => {}
        }
        self.rest_if_idle(now);
    }

    fn rest_if_idle(&mut self, now: Monotonic) {
        if !self.is_up || self.stage != Stage::Resting || !self.asked.is_empty() {
            return;
        }
        let rests = self.pace.next().is_none_or(|at| at.since(now) > SHORT_PAUSE) || self.error.is_some();
        let is_note_due = self.nodes_noted.is_none_or(|at| now.since(at) >= NODES_INTERVAL);
        if self.error.is_none() && (rests || is_note_due) {
            self.nodes_noted = Some(now);
            self.orders.push_back(Order::ListNodes);
        }
        if rests {
            self.is_up = false;
            self.orders.push_back(Order::Rest);
        }
    }

    fn is_publication_due(&self, sequence: Sequence, now: Now) -> bool {
        let hour = Hour::current(now.wall)[0];
        self.published.is_none_or(|last| {
            last.sequence != sequence || last.hour != hour || now.monotonic.since(last.at) >= PUBLISH_INTERVAL
        })
    }
}

impl Asked {
    fn is_overdue(&self, now: Monotonic) -> bool {
        now.since(self.at) >= REQUEST_LIMIT
    }
}

#[cfg(test)]
mod tests;
