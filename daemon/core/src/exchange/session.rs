//! One session: first a greeting in which each side proves which node it is, then a live exchange.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use hmac::Mac as _;

use super::frame::{Frame, PROOF_BYTES, Role, proof};
use super::{CloseReason, Context, Exchange, Target};
use crate::bucket::TokenBucket;
use crate::config::Sharing;
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::message::Token;
use crate::record::SignedRecord;
use crate::sync::{Entry, Message, Pace, Records};
use crate::time::Monotonic;

/// For how long a stranger may take to prove who it is.
pub const GREETING_PATIENCE: Duration = Duration::from_secs(10);

/// How often one of the two asks whether the other is alive (M-24). Longer than twice [`PONG_PATIENCE`].
pub const HEARTBEAT: Duration = Duration::from_secs(30);

/// So many sessions beat each [`HEARTBEAT`]: those that a node looks for by itself, and as many that others opened.
const FULL_PACE: u32 = 8;

/// With as many as this and more, the heart of each beats every two minutes.
const SLOWEST_PACE: u32 = 4 * FULL_PACE;

/// How long a pong may take. A session that died without a word is gone after both.
pub const PONG_PATIENCE: Duration = Duration::from_secs(10);

/// Frames that a peer may send at once; a first synchronisation takes about forty.
const FRAME_BURST: u32 = 512;
/// How often it may send one for ever.
const FRAME_INTERVAL: Duration = Duration::from_millis(10);

/// For so long nobody else is asked for what a peer was asked for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Records that a peer may send at once without being asked: its own, and goodbyes.
const UNASKED_BURST: u32 = 64;
/// How often it may send one for ever.
const UNASKED_INTERVAL: Duration = Duration::from_millis(200);

/// The most records that a session waits to ask for; the next synchronisation finds the rest again.
const MAX_WANTED: usize = 4096;

/// How many bad frames or records a node may send before it is shut out.
const MAX_STRIKES: u32 = 8;

pub(super) struct Session {
    pub(super) remote: SocketAddr,
    pub(super) dialed: Option<Target>,
    pub(super) exporter: [u8; 32],
    pub(super) opened: Monotonic,
    pub(super) phase: Phase,
}

pub(super) enum Phase {
    /// Waits for a hello, or for the proof of the node that said hello.
    Greeting(Option<Claimed>),
    /// The node is proved.
    Live(Live),
}

/// Who the other side claims to be, and the proof that it must give.
pub(super) struct Claimed {
    pub(super) record: SignedRecord,
    pub(super) run: Token,
    proof: hmac::Hmac<sha2::Sha256>,
}

impl Claimed {
    /// Checks who the other side of `session` claims to be, and returns it with our own proof.
    pub(super) fn check<R: Records>(
        session: &Session,
        record: &[u8],
        run: Token,
        context: &Context<'_, R>,
    ) -> Result<(Self, Frame), CloseReason> {
        let record = SignedRecord::verify(record, context.keys.network_id())?;
        let (own, key) = (context.own.record().key, record.record().key);
        if key == own {
            return Err(CloseReason::Itself);
        }
        match session.dialed.and_then(|target| target.expected) {
            Some(expected) if expected != key => {
                return Err(CloseReason::WrongKey { expected, found: key });
            }
            Some(_) | None => {}
        }
        let (ours, theirs) = match session.dialed {
            Some(_) => (Role::Dialer, Role::Acceptor),
            None => (Role::Acceptor, Role::Dialer),
        };
        let pair = context.keys.pair(context.secret, own, key);
        let mine: [u8; PROOF_BYTES] =
            proof(&pair, &session.exporter, own, ours).finalize().into_bytes().into();
        let expected = proof(&pair, &session.exporter, key, theirs);
        Ok((Self { record, run, proof: expected }, Frame::Proof(mine.into())))
    }

    pub(super) fn prove(self, given: &[u8; PROOF_BYTES]) -> Result<(SignedRecord, Token), CloseReason> {
        self.proof.verify_slice(given).map_err(|_| CloseReason::BadProof)?;
        Ok((self.record, self.run))
    }
}

impl Session {
    pub(super) const fn live(&self) -> Option<&Live> {
        match &self.phase {
            Phase::Live(live) => Some(live),
            Phase::Greeting(_) => None,
        }
    }

    pub(super) const fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.phase {
            Phase::Live(live) => Some(live),
            Phase::Greeting(_) => None,
        }
    }

    pub(super) fn key(&self) -> Option<PublicKey> {
        self.live().map(|live| live.key)
    }

    /// Orders the sessions of one pair, the best first, the same from both ends: the one that the lower key dialed,
    /// then by TLS's exporter.
    pub(super) fn rank(&self, own: PublicKey) -> (Option<PublicKey>, [u8; 32]) {
        let dialer = if self.dialed.is_some() { Some(own) } else { self.key() };
        (dialer, self.exporter)
    }

    pub(super) fn poll_timeout(&self) -> Monotonic {
        match &self.phase {
            Phase::Greeting(_) => self.opened + GREETING_PATIENCE,
            Phase::Live(live) => live.pulse.poll_timeout(),
        }
    }
}

/// A session with a node that is proved.
pub(super) struct Live {
    pub(super) key: PublicKey,
    pub(super) run: Token,
    pub(super) since: Monotonic,
    pub(super) round_trip: Option<Duration>,
    pub(super) pulse: Pulse,
    pub(super) frames: TokenBucket,
    pub(super) unasked: TokenBucket,
    strikes: u32,
    pings: u64,
    /// At most [`MAX_WANTED`]; what comes later is left out.
    wanted: BTreeMap<PublicKey, Sequence>,
    /// At most as many as the sharing says.
    asked: BTreeSet<PublicKey>,
    asked_at: Monotonic,
    max_asked: usize,
    pub(super) sync: Pace,
}

/// The heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    /// The next ping is due then.
    Resting(Monotonic),
    /// A ping was sent then and wants its pong.
    Asking(Monotonic),
}

impl Pulse {
    fn poll_timeout(self) -> Monotonic {
        match self {
            Self::Resting(next) => next,
            Self::Asking(since) => since + PONG_PATIENCE,
        }
    }
}

impl Live {
    pub(super) fn new(
        key: PublicKey,
        run: Token,
        first_ping: Monotonic,
        sharing: Sharing,
        now: Monotonic,
    ) -> Self {
        Self {
            key,
            run,
            since: now,
            round_trip: None,
            pulse: Pulse::Resting(first_ping),
            frames: TokenBucket::new(FRAME_BURST, FRAME_INTERVAL, now),
            unasked: TokenBucket::new(UNASKED_BURST, UNASKED_INTERVAL, now),
            strikes: 0,
            pings: 0,
            wanted: BTreeMap::new(),
            asked: BTreeSet::new(),
            asked_at: now,
            max_asked: sharing.max,
            sync: Pace::new(sharing.interval, now),
        }
    }

    /// Makes the next ping. An ask that was never answered is given up with it.
    pub(super) fn ping<R: Records>(&mut self, records: &R, now: Monotonic) -> Frame {
        self.pings += 1;
        self.pulse = Pulse::Asking(now);
        self.asked.clear();
        Frame::Ping { number: self.pings, summary: crate::sync::Summary::of(records) }
    }

    /// Takes in a pong. Returns whether it answers a ping; one that does not is worth nothing.
    pub(super) fn on_pong(&mut self, number: u64, next_ping: Monotonic, now: Monotonic) -> bool {
        let Pulse::Asking(since) = self.pulse else { return false };
        if number != self.pings {
            return false;
        }
        self.round_trip = Some(now.since(since));
        self.pulse = Pulse::Resting(next_ping);
        true
    }

    /// Puts the next ping off, unless one is out.
    pub(super) const fn rest_until(&mut self, next_ping: Monotonic) {
        if let Pulse::Resting(at) = &mut self.pulse {
            *at = next_ping;
        }
    }

    /// Adds to what is to be asked for.
    pub(super) fn want(&mut self, entries: Vec<Entry>) {
        for Entry { key, sequence } in entries {
            if self.wanted.len() < MAX_WANTED && !self.asked.contains(&key) {
                self.wanted.insert(key, sequence);
            }
        }
    }

    /// Returns whom the other side was asked about and is to answer yet. One that takes long is waited for, but no other
    /// session has to wait with it: it may never answer.
    pub(super) fn in_flight(&self, now: Monotonic) -> impl Iterator<Item = &PublicKey> {
        let is_expected = now.since(self.asked_at) < ANSWER_PATIENCE;
        self.asked.iter().filter(move |_| is_expected)
    }

    /// Asks for the next records, if none are on their way here. What has come meanwhile from elsewhere is
    /// forgotten; what is `in_flight` from elsewhere waits.
    pub(super) fn ask_next<R: Records>(
        &mut self,
        in_flight: &BTreeSet<PublicKey>,
        records: &R,
        now: Monotonic,
    ) -> Option<Frame> {
        if !self.asked.is_empty() {
            return None;
        }
        self.asked_at = now;
        self.wanted.retain(|&key, &mut sequence| records.wants(Entry { key, sequence }));
        let next = self.wanted.keys().filter(|key| !in_flight.contains(key)).take(self.max_asked);
        self.asked = next.copied().collect();
        self.wanted.retain(|key, _| !self.asked.contains(key));
        let keys: Vec<PublicKey> = self.asked.iter().copied().collect();
        (!keys.is_empty()).then_some(Frame::Sync(Message::Ask(keys)))
    }

    /// Whether the record of `key` was asked for; it no longer is.
    pub(super) fn was_asked(&mut self, key: PublicKey) -> bool {
        self.asked.remove(&key)
    }

    /// Notes that what was asked for has come; what is still missing, the other side no longer has.
    pub(super) fn on_answered(&mut self) {
        self.asked.clear();
        self.sync.on_progress();
    }

    /// Notes bad input; `false` if that was once too often.
    pub(super) const fn forgives(&mut self) -> bool {
        self.strikes = self.strikes.saturating_add(1);
        self.strikes < MAX_STRIKES
    }
}

impl Exchange {
    /// When the next ping of a session should go out: spread, so that a node's sessions do not beat as one. The heartbeats of
    /// more than [`FULL_PACE`] sessions together cost no more than theirs.
    pub(super) fn next_ping(&mut self, now: Monotonic) -> Monotonic {
        let sessions = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        let interval = HEARTBEAT * sessions.clamp(FULL_PACE, SLOWEST_PACE) / FULL_PACE;
        now + interval * 9 / 10 + super::targets::random_below(interval / 5, &mut self.rng)
    }
}
