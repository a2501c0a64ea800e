//! The exchange: sessions between nodes, over whatever authenticated stream the shell opens (TLS 1.3 over TCP).
//!
//! [`Exchange`] decides whom to dial, proves who is at the other end, keeps both sides' records the same, carries
//! [`Forward`]s, and notices when a session dies. The shell opens, reads, writes and closes.
//!
//! ```text
//!   dialer                               acceptor
//!   |  (TLS: both have the mesh's secret)  |
//!   |  Hello: own record      Hello        |   both at once
//!   |<------------------------------------>|
//!   |  Proof: HMAC under the pair's key    |   over the exporter of this TLS session and the prover's role
//!   |<------------------------------------>|
//!   |  Ping, Sync, Forward …               |
//! ```
//!
//! Invariants:
//! - Before its hello and its proof nothing of a stranger is taken, and it has [`GREETING_PATIENCE`] for both.
//! - A node expected at an address is the one that answers there, or the session ends (M-33).
//! - Between two nodes one session stays: of two live ones the better by a rule that both know. The worse is
//!   closed once the better was heard from, so a dead one never wins. A session of an earlier run always loses.
//! - At most [`Places::max`] are live and [`MAX_GREETING`] are in greeting, of which no network has more than
//!   [`MAX_FROM_ONE_NETWORK`]. When the former is reached, an accepted session that has had its time makes room: that of
//!   the worst partner, of the most crowded network, the longest.
//! - A node that misbehaved is shut out by its key, for as long as the [`Book`] says.
//! - A record counts as direct only from its own node over its own proved session.
//!
//! It never touches the store: what it learns goes out as [`Output`], and what it may tell it sees in [`Context`].

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::config::Sharing;
use crate::derive::MeshKeys;
use crate::key::{PublicKey, SecretKey};
use crate::message::Token;
use crate::pool::{MAX_FROM_ONE_NETWORK, Network, Places};
use crate::record::SignedRecord;
use crate::standing::{Book, Deed};
use crate::sync::{Entry, MAX_ASKED, Message, Records, Summary};
use crate::time::{Monotonic, WallClock};

mod event;
mod frame;
mod greeting;
mod live;
mod session;
mod targets;

pub use event::{CloseReason, EXPORTER_LABEL, Misbehaviour, Output, SessionEvent, SessionId, Target};
pub use frame::Forward;
use frame::Frame;
pub use session::{GREETING_PATIENCE, HEARTBEAT, PONG_PATIENCE};
use session::{Phase, Pulse, Session};
use targets::Targets;
pub use targets::{MAX_TARGETS, TargetState, TargetView};

/// The longest frame, without its length.
pub const MAX_FRAME_BYTES: usize = 65_536;

/// The longest body of a [`Forward`].
pub const MAX_FORWARD_BYTES: usize = 1000;

/// The most sessions in which the other side has yet to prove who it is.
pub const MAX_GREETING: usize = 16;

/// A session has this long before it may have to make room for another: several times what a first synchronisation takes.
pub const FAIR_TIME: Duration = Duration::from_secs(10);

/// Changes within this time go out together.
pub const NEWS_DELAY: Duration = Duration::from_millis(50);

/// A target that is this node itself is not dialed again for this long: its address may pass to another node.
const ITSELF_WAIT: Duration = Duration::from_secs(600);

/// More records of other nodes than this are not offered one by one.
const MAX_NEWS: usize = MAX_ASKED;

/// The most sessions with one node, for the time it takes to see which of them live.
const MAX_DUPLICATES: usize = 3;

/// What an exchange needs to know of its node.
pub struct Context<'a, R> {
    /// The mesh's keys.
    pub keys: &'a MeshKeys,
    /// The node's private key.
    pub secret: &'a SecretKey,
    /// The node's own record.
    pub own: &'a SignedRecord,
    /// All records, the node's own among them.
    pub records: &'a R,
    /// What others are worth.
    pub book: &'a Book,
    /// The time, for spans.
    pub now: Monotonic,
    /// The time, for what lasts longer than a run.
    pub wall: WallClock,
}

/// A live session, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The node at the other end.
    pub key: PublicKey,
    /// The other end of the stream.
    pub remote: SocketAddr,
    /// Whether this node dialed.
    pub dialed: bool,
    /// Since when the node is proved.
    pub since: Monotonic,
    /// How long the last ping took.
    pub round_trip: Option<Duration>,
}

/// A record that has changed.
struct News {
    record: SignedRecord,
    from: Option<PublicKey>,
}

/// All sessions of one node.
pub struct Exchange {
    limits: Places,
    sharing: Sharing,
    run: Token,
    rng: ChaCha8Rng,
    sessions: BTreeMap<SessionId, Session>,
    targets: Targets,
    /// At most one per node that the store holds, or that left just now; all go within [`NEWS_DELAY`].
    news: BTreeMap<PublicKey, News>,
    flush_at: Option<Monotonic>,
    outputs: VecDeque<Output>,
}

impl Exchange {
    /// Makes an exchange without sessions or targets. `seed` feeds all that is random in it.
    pub fn new(limits: Places, sharing: Sharing, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        Self {
            limits,
            sharing: Sharing { max: sharing.max.min(MAX_ASKED), ..sharing },
            run: Token(rng.next_u64()),
            rng,
            sessions: BTreeMap::new(),
            targets: Targets::default(),
            news: BTreeMap::new(),
            flush_at: None,
            outputs: VecDeque::new(),
        }
    }

    /// Sets with which addresses to hold sessions, at most [`MAX_TARGETS`]: those that the operator named, and those that
    /// others told of. Sessions that are open stay.
    pub fn want(&mut self, named: Vec<Target>, learned: Vec<Target>, now: Monotonic) {
        self.targets.want(named, learned, now);
        self.dial(now);
    }

    /// Tells the others of a record that is new to this node: its own in full, another's by an offer, a goodbye in
    /// full too, since its node can no longer be asked about. `from` told us and is not told again.
    pub fn push(&mut self, record: &SignedRecord, from: Option<PublicKey>, now: Monotonic) {
        if self.sessions.is_empty() {
            return;
        }
        self.news.insert(record.record().key, News { record: record.clone(), from });
        self.flush_at.get_or_insert(now + NEWS_DELAY);
    }

    /// Sends a message by way of `next`, or to it; `false` if there is no session with it or it is too long.
    pub fn forward(&mut self, next: PublicKey, forward: Forward) -> bool {
        let Some(id) = self.session_with(next).filter(|_| forward.body.len() <= MAX_FORWARD_BYTES) else {
            return false;
        };
        self.send(id, &Frame::Forward(forward));
        true
    }

    /// Ends all sessions with a node.
    pub fn disconnect(&mut self, key: PublicKey, now: Monotonic) {
        for id in self.sessions_with(key) {
            self.close(id, CloseReason::Unwanted, now);
        }
    }

    /// Ends all sessions with a node that misbehaved, and tells that it is to be shut out.
    pub fn shut_out(&mut self, key: PublicKey, reason: Misbehaviour, now: Monotonic) {
        self.outputs.push_back(Output::Misbehaved { key, reason });
        for id in self.sessions_with(key) {
            self.close(id, CloseReason::Misbehaved(reason), now);
        }
    }

    /// Whether there is a session with a node.
    pub fn is_connected(&self, key: PublicKey) -> bool {
        self.session_with(key).is_some()
    }

    /// Goes through the live sessions.
    pub fn sessions(&self) -> impl Iterator<Item = SessionView> {
        self.sessions.values().filter_map(|session| {
            let live = session.live()?;
            Some(SessionView {
                key: live.key,
                remote: session.remote,
                dialed: session.dialed.is_some(),
                since: live.since,
                round_trip: live.round_trip,
            })
        })
    }

    /// Goes through the targets.
    pub fn targets(&self) -> impl Iterator<Item = (SocketAddr, &TargetView)> {
        self.targets.iter()
    }

    /// Takes in what the shell tells.
    pub fn handle<R: Records>(&mut self, event: SessionEvent, context: &Context<'_, R>) {
        let now = context.now;
        match event {
            SessionEvent::Opened { id, remote, dialed, exporter } => {
                let phase = Phase::Greeting(None);
                self.on_opened(id, Session { remote, dialed, exporter, opened: now, phase }, context);
            }
            SessionEvent::Frame { id, bytes } => self.on_frame(id, &bytes, context),
            SessionEvent::Closed { id, reason } => self.on_gone(id, CloseReason::Lost(reason), now),
            SessionEvent::DialFailed { target, error } => {
                let node = self.targets.node_at(target.address);
                self.outputs.extend(node.map(|key| Output::Deed { key, deed: Deed::Silent }));
                self.targets.on_ended(target.address, Duration::ZERO, error, now, &mut self.rng);
            }
        }
        self.dial(now);
    }

    /// Does what is due. Call it at [`Exchange::poll_timeout`] or at any other time.
    pub fn handle_timeout<R: Records>(&mut self, context: &Context<'_, R>) {
        let now = context.now;
        let due = self.sessions.iter().filter(|(_, session)| session.poll_timeout() <= now);
        let due: Vec<SessionId> = due.map(|(&id, _)| id).collect();
        for id in due {
            self.on_session_timeout(id, context);
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush(context);
        }
        self.dial(now);
    }

    /// Returns when to call [`Exchange::handle_timeout`] at the latest. Changes with every call.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let sessions = self.sessions.values().map(Session::poll_timeout).min();
        let dial = self.targets.next_dial(|key| self.is_connected(key)).filter(|_| self.may_dial());
        [sessions, dial, self.flush_at].into_iter().flatten().min()
    }

    /// Returns what follows, in order. Call it until `None` after every other call.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn on_frame<R: Records>(&mut self, id: SessionId, bytes: &[u8], context: &Context<'_, R>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match &mut session.phase {
            Phase::Greeting(claimed) => {
                let claimed = claimed.take();
                if let Err(reason) = self.greet(id, claimed, bytes, context) {
                    self.close(id, reason, context.now);
                }
            }
            Phase::Live(_) => self.on_live_frame(id, bytes, context),
        }
    }

    fn on_session_timeout<R: Records>(&mut self, id: SessionId, context: &Context<'_, R>) {
        let Some(session) = self.sessions.get(&id) else { return };
        match session.live().map(|live| live.pulse) {
            None => self.close(id, CloseReason::GreetingTimeout, context.now),
            Some(Pulse::Asking(_)) => {
                let key = session.key().expect("a session with a pulse has a node");
                self.outputs.push_back(Output::Deed { key, deed: Deed::Silent });
                self.close(id, CloseReason::Silent, context.now);
            }
            Some(Pulse::Resting(_)) => self.ping(id, context.records, context.now),
        }
    }

    fn ping<R: Records>(&mut self, id: SessionId, records: &R, now: Monotonic) {
        let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) else { return };
        let ping = live.ping(records, now);
        self.send(id, &ping);
        self.ask_next(id, records, now);
    }

    /// Sends what is new. When it is much, one summary finds it cheaper than an offer to each.
    fn flush<R: Records>(&mut self, context: &Context<'_, R>) {
        self.flush_at = None;
        let news = std::mem::take(&mut self.news);
        let own = context.own.record().key;
        let (in_full, by_offer): (Vec<&News>, Vec<&News>) = news
            .values()
            .partition(|news| news.record.record().key == own || news.record.record().is_goodbye());
        let summary = (by_offer.len() > MAX_NEWS).then(|| Message::Summary(Summary::of(context.records)));
        let live: Vec<_> =
            self.sessions.iter().filter_map(|(&id, session)| Some((id, session.key()?))).collect();
        for (id, key) in live {
            let is_news = |news: &&&News| news.from != Some(key) && news.record.record().key != key;
            for news in in_full.iter().filter(is_news) {
                self.send(id, &Frame::Sync(Message::record(&news.record)));
            }
            let offer: Vec<Entry> =
                by_offer.iter().filter(is_news).map(|news| Entry::of(&news.record)).collect();
            match &summary {
                Some(summary) => self.send(id, &Frame::Sync(summary.clone())),
                None if offer.is_empty() => {}
                None => self.send(id, &Frame::Sync(Message::Offer(offer))),
            }
        }
    }

    fn may_dial(&self) -> bool {
        self.sessions.len() < self.limits.max + MAX_GREETING
    }

    fn dial(&mut self, now: Monotonic) {
        if !self.may_dial() {
            return;
        }
        let connected: Vec<PublicKey> = self.sessions().map(|session| session.key).collect();
        while let Some(target) = self.targets.dial_next(|key| connected.contains(&key), now) {
            self.outputs.push_back(Output::Dial(target));
        }
    }

    fn send(&mut self, id: SessionId, frame: &Frame) {
        self.outputs.push_back(Output::Send { id, bytes: frame.encode() });
    }

    fn close(&mut self, id: SessionId, reason: CloseReason, now: Monotonic) {
        self.outputs.push_back(Output::Close { id, reason: reason.clone() });
        self.on_gone(id, reason, now);
    }

    fn on_gone(&mut self, id: SessionId, reason: CloseReason, now: Monotonic) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(target) = session.dialed {
            let lived = session.live().map_or(Duration::ZERO, |live| now.since(live.since));
            self.targets.on_ended(target.address, lived, reason.to_string(), now, &mut self.rng);
            if reason == CloseReason::Itself {
                self.targets.rest(target.address, now + ITSELF_WAIT);
            }
        }
        if let Some(key) = session.key().filter(|&key| !self.is_connected(key)) {
            self.targets.on_down(key, now, &mut self.rng);
            self.outputs.push_back(Output::Down { key, reason });
        }
    }

    fn sessions_with(&self, key: PublicKey) -> Vec<SessionId> {
        let with = self.sessions.iter().filter(|(_, session)| session.key() == Some(key));
        with.map(|(&id, _)| id).collect()
    }

    /// Returns the youngest session with a node: if an older one is about to lose, it may be dead.
    fn session_with(&self, key: PublicKey) -> Option<SessionId> {
        let mut with = self.sessions.iter().filter(|(_, session)| session.key() == Some(key));
        with.next_back().map(|(&id, _)| id)
    }
}

#[cfg(test)]
mod tests;
