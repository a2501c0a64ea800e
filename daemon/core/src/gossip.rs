//! Gossip: nodes keep each other's records the same over the mesh itself, by small datagrams between mesh addresses.
//!
//! WireGuard says who sent a datagram: whoever owns the source address. What is said are the messages of
//! [`crate::sync`], each in a datagram of at most [`MAX_GOSSIP_BYTES`], and questions about silence.
//!
//! - **News** goes at once to [`FANOUT`] peers, and from each of them to as many: a node's own record and goodbyes in
//!   full, what is known of others by its sequence, to be asked for.
//! - **Rounds** find what news has missed: each [`ROUND`] a summary goes to one peer, or to [`FANOUT`] while there are
//!   differences. Between two nodes that hold the same that is all, and it is the other's round too: at rest a node that has
//!   been told the same leaves out every other round of its own (as in Trickle, RFC 6206 §4.2).
//! - **Silence**: a node that this one has not heard for [`SILENCE_TO_ASK`] may well be heard by others. They are asked, and
//!   tell for how long they have not heard it. Nobody's word makes a node younger than somebody has really heard it,
//!   so the dead stay dead.
//!
//! Datagrams get lost. Nothing here is repeated but a question for records, [`MAX_TRIES`] times: the next round finds the rest.
//! What a peer may make this node do is bounded by a [`TokenBucket`], what it can make it remember by [`MAX_WANTED`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::bucket::TokenBucket;
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::sync::{self, Answer, Entry, Message, Records, Summary, Told};
use crate::time::Monotonic;

mod body;
mod output;
mod partner;
#[cfg(test)]
mod tests;

pub use output::{Output, Refused};

use body::{Body, Silence, decode, encode};
use partner::Partner;

/// The longest datagram: within the smallest MTU that IPv6 allows a mesh (RFC 8200 §5) with room to spare.
pub const MAX_GOSSIP_BYTES: usize = 1200;

/// How many peers are told of news (W-X14).
pub const FANOUT: usize = 3;

/// How often a summary goes out (seed 000, W-X14).
pub const ROUND: Duration = Duration::from_secs(10);

/// A round comes so much sooner where the node is awake anyway, so that nothing has to wake it.
const EARLY: Duration = Duration::from_secs(2);

/// News within this time goes out together.
const NEWS_DELAY: Duration = Duration::from_millis(50);

/// For so long after a change or a difference, rounds go to [`FANOUT`] peers.
const RESTLESS: Duration = Duration::from_secs(30);

/// A peer unheard for this long is asked after: half of what makes it count as dead, so that there is time for some
/// answers to get lost.
pub const SILENCE_TO_ASK: Duration = Duration::from_secs(150);

/// How long an answer to a question for records may take.
const ANSWER_PATIENCE: Duration = Duration::from_millis(1500);

/// How often a record is asked for.
const MAX_TRIES: u32 = 3;

/// The most records asked of one peer at a time: they fit a socket's buffer.
const ASKED_AT_ONCE: usize = 16;

/// The most records that wait to be asked for; a later round finds the rest again.
const MAX_WANTED: usize = 4096;

/// And of those that one peer has offered: it may never give them.
const MAX_WANTED_OF_ONE: usize = 1024;

/// The most nodes in one question about silence, and in its answer: they fit a datagram.
const MAX_SILENT: usize = 28;

/// The most entries of news in one datagram; for more a summary is shorter.
const MAX_OFFERED: usize = 24;

/// New tunnels whose other end gets a summary at once: that many, then one more each [`ROUND`].
const MEETINGS: u32 = 3;

/// What a message may take: the longest datagram less the version and the head of the body.
const MESSAGE_BYTES: usize = MAX_GOSSIP_BYTES - 4;

/// What gossip needs to know of its node.
pub struct Context<'a, R> {
    /// The mesh.
    pub network_id: &'a [u8; 32],
    /// This node.
    pub own: PublicKey,
    /// All records, the node's own among them.
    pub records: &'a R,
    /// The time.
    pub now: Monotonic,
}

/// Whom gossip can go to, and whom it can be about.
#[derive(Clone, Debug, Default)]
pub struct Company {
    /// Peers with a tunnel that works.
    pub reached: Vec<PublicKey>,
    /// Peers unheard for [`SILENCE_TO_ASK`].
    pub silent: Vec<PublicKey>,
}

/// A record that has changed.
struct News {
    record: SignedRecord,
    from: Option<PublicKey>,
}

/// A record that somebody offers.
struct Wanted {
    sequence: Sequence,
    from: PublicKey,
    asked: Option<Monotonic>,
    tries: u32,
}

impl Wanted {
    /// Whether its giver was asked and lets wait, so that another one may be asked instead.
    fn is_in_vain(&self, other: PublicKey, now: Monotonic) -> bool {
        let lets_wait = self.tries > 1 || self.asked.is_some_and(|at| now.since(at) >= ANSWER_PATIENCE / 2);
        self.from != other && self.tries > 0 && lets_wait
    }
}

/// One node's gossip.
pub struct Gossip {
    rng: ChaCha8Rng,
    /// At most one per node that the store holds, or that left just now; all go within [`NEWS_DELAY`].
    news: BTreeMap<PublicKey, News>,
    flush_at: Option<Monotonic>,
    /// Where peers are met on a link that is over before gossip could help.
    begin: Monotonic,
    round_at: Monotonic,
    /// Whether a round was left out since the last one.
    is_spared: bool,
    restless_until: Monotonic,
    meetings: TokenBucket,
    /// Peers to which a tunnel has just come up, at most [`MEETINGS`].
    met: BTreeSet<PublicKey>,
    /// At most [`MAX_WANTED`].
    wanted: BTreeMap<PublicKey, Wanted>,
    /// Peers that said something of late; dropped with the peer, or when nothing is worth remembering.
    partners: BTreeMap<PublicKey, Partner>,
    last_heard: Option<Monotonic>,
    outputs: Vec<Output>,
}

impl Gossip {
    /// Makes a node's gossip, which says nothing before `begin`; `seed` feeds all that is random in it.
    pub fn new(seed: [u8; 32], begin: Monotonic, now: Monotonic) -> Self {
        Self {
            rng: ChaCha8Rng::from_seed(seed),
            news: BTreeMap::new(),
            flush_at: None,
            begin,
            round_at: now + ROUND,
            is_spared: false,
            restless_until: now,
            meetings: TokenBucket::new(MEETINGS, ROUND, now),
            met: BTreeSet::new(),
            wanted: BTreeMap::new(),
            partners: BTreeMap::new(),
            last_heard: None,
            outputs: Vec::new(),
        }
    }

    /// Tells others of a record that is new to this node. `from` told us and is not told again.
    pub fn push(&mut self, record: &SignedRecord, from: Option<PublicKey>, now: Monotonic) {
        self.news.insert(record.record().key, News { record: record.clone(), from });
        self.flush_at.get_or_insert((now + NEWS_DELAY).max(self.begin));
        self.restless_until = now + RESTLESS;
    }

    /// Notes that the first tunnel to a peer is up: the two may know different parts of the mesh.
    pub fn meet(&mut self, key: PublicKey, now: Monotonic) {
        if self.meetings.take(now) {
            self.met.insert(key);
            self.flush_at.get_or_insert((now + NEWS_DELAY).max(self.begin));
        }
    }

    /// Drops what is kept for a peer.
    pub fn forget(&mut self, key: PublicKey) {
        self.partners.remove(&key);
        self.wanted.retain(|_, wanted| wanted.from != key);
    }

    /// Returns when gossip last came in.
    pub const fn last_heard(&self) -> Option<Monotonic> {
        self.last_heard
    }

    /// Takes in a datagram of the peer that owns its source address.
    ///
    /// # Errors
    /// [`Refused`] if it is not to be taken, or only in part.
    pub fn handle<R: Records>(
        &mut self,
        from: PublicKey,
        bytes: &[u8],
        context: &Context<'_, R>,
    ) -> Result<(), Refused> {
        let now = context.now;
        if !self.partners.entry(from).or_insert_with(|| Partner::new(now)).may_speak(now) {
            return Err(Refused::Flood);
        }
        self.last_heard = Some(now);
        match decode(bytes).ok_or(Refused::Malformed)? {
            Body::Sync(Message::Summary(theirs)) => self.on_summary(from, theirs, context),
            Body::Sync(Message::Records(records)) => return self.on_records(from, &records, context),
            Body::Sync(message) => self.on_sync(from, &message, context),
            Body::AskSilence(keys) => self.tell_silence(from, &keys, context),
            Body::Silence(silences) => self.on_silence(&silences, now),
            Body::Stem { record, hops } => {
                let record = SignedRecord::verify(&record, context.network_id)?;
                self.outputs.push(Output::Stem { record, from, hops });
            }
            Body::Done(entry) => self.outputs.push(Output::Done { entry, from }),
        }
        Ok(())
    }

    /// Whether there is something to do for a node that is awake anyway.
    #[must_use]
    pub fn wants_turn(&self, now: Monotonic) -> bool {
        self.poll_timeout() <= now || self.may_begin_round(now)
    }

    fn may_begin_round(&self, now: Monotonic) -> bool {
        self.round_at <= now + EARLY
    }

    /// Does what is due. Call it at [`Gossip::poll_timeout`], or sooner where [`Gossip::wants_turn`].
    pub fn handle_timeout<R: Records>(&mut self, company: &Company, context: &Context<'_, R>) {
        let now = context.now;
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush(company, context);
        }
        if self.may_begin_round(now) {
            self.round(company, context);
        }
        self.ask_again(context);
    }

    /// Sends what waits for more to come, because nothing will.
    pub fn flush<R: Records>(&mut self, company: &Company, context: &Context<'_, R>) {
        self.flush_at = None;
        for key in std::mem::take(&mut self.met) {
            self.send(key, &Body::Sync(Message::Summary(Summary::of(context.records))));
        }
        let news = std::mem::take(&mut self.news);
        if news.is_empty() {
            return;
        }
        for to in self.choose(&company.reached, FANOUT) {
            let is_news = |(key, news): &(&PublicKey, &News)| **key != to && news.from != Some(to);
            let (whole, by_name): (Vec<_>, Vec<_>) = news
                .iter()
                .filter(is_news)
                .partition(|(key, news)| **key == context.own || news.record.record().is_goodbye());
            for (_, news) in whole {
                self.send(to, &Body::Sync(Message::record(&news.record)));
            }
            let entries: Vec<_> = by_name.into_iter().map(|(_, news)| Entry::of(&news.record)).collect();
            match entries.len() {
                0 => {}
                1..=MAX_OFFERED => self.send(to, &Body::Sync(Message::Offer(entries))),
                _ => self.send(to, &Body::Sync(Message::Summary(Summary::of(context.records)))),
            }
        }
    }

    /// Hands a peer a record to be published.
    pub fn send_stem(&mut self, to: PublicKey, record: &SignedRecord, hops: u8) {
        self.send(to, &Body::Stem { record: record.as_bytes().to_vec().into(), hops });
    }

    /// Tells a peer that a record is published.
    pub fn send_done(&mut self, to: PublicKey, entry: Entry) {
        self.send(to, &Body::Done(entry));
    }

    /// Returns when to call [`Gossip::handle_timeout`] at the latest. Changes with every call.
    #[must_use]
    pub fn poll_timeout(&self) -> Monotonic {
        let asked = self.wanted.values().filter_map(|wanted| wanted.asked).min();
        let answers = asked.map(|at| at + ANSWER_PATIENCE);
        [self.flush_at, answers].into_iter().flatten().fold(self.round_at, Monotonic::min)
    }

    /// Returns what follows, in order. Call it after every other call.
    #[must_use]
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    fn round<R: Records>(&mut self, company: &Company, context: &Context<'_, R>) {
        let now = context.now;
        let jitter = u64::from(self.rng.next_u32()) % 2000;
        self.round_at = now + ROUND + Duration::from_millis(jitter);
        // Who is to be asked after somebody is not kept from it.
        self.is_spared = !company.silent.is_empty();
        self.partners.retain(|_, partner| !partner.is_forgettable(now));
        let fanout = if now < self.restless_until { FANOUT } else { 1 };
        let summary = Body::Sync(Message::Summary(Summary::of(context.records)));
        for to in self.choose(&company.reached, fanout) {
            self.send(to, &summary);
        }
        for silent in company.silent.chunks(MAX_SILENT) {
            for to in self.choose(&company.reached, 1) {
                self.send(to, &Body::AskSilence(silent.to_vec()));
            }
        }
    }

    fn on_summary<R: Records>(&mut self, from: PublicKey, theirs: Summary, context: &Context<'_, R>) {
        let now = context.now;
        let partner = self.partners.entry(from).or_insert_with(|| Partner::new(now));
        if !partner.sync.may_sync(now) {
            return;
        }
        let answer = sync::answer(&Message::Summary(theirs), context.records, MESSAGE_BYTES);
        if !answer.messages.is_empty() {
            partner.sync.on_difference(now);
            self.restless_until = now + RESTLESS;
        } else if !self.is_spared && now >= self.restless_until {
            self.is_spared = true;
            self.round_at = self.round_at + ROUND;
        }
        self.say(from, answer.messages);
    }

    fn on_sync<R: Records>(&mut self, from: PublicKey, message: &Message, context: &Context<'_, R>) {
        let Answer { messages, wanted } = sync::answer(message, context.records, MESSAGE_BYTES);
        if matches!(message, Message::Ask(_)) && !messages.is_empty() {
            self.note_progress(from);
        }
        let from_it = self.wanted.values().filter(|wanted| wanted.from == from).count();
        let room =
            MAX_WANTED.saturating_sub(self.wanted.len()).min(MAX_WANTED_OF_ONE.saturating_sub(from_it));
        for Entry { key, sequence } in wanted.into_iter().take(room) {
            let is_better = self
                .wanted
                .get(&key)
                .is_none_or(|known| known.sequence < sequence || known.is_in_vain(from, context.now));
            if is_better {
                self.wanted.insert(key, Wanted { sequence, from, asked: None, tries: 0 });
            }
        }
        self.say(from, messages);
        self.ask(from, context);
    }

    fn on_records<R: Records>(
        &mut self,
        from: PublicKey,
        records: &[Told],
        context: &Context<'_, R>,
    ) -> Result<(), Refused> {
        for told in records {
            let record = SignedRecord::verify(&told.record, context.network_id)?;
            let entry = Entry::of(&record);
            self.wanted.remove(&entry.key);
            if context.records.wants(entry) {
                let heard_at =
                    if entry.key == from { context.now } else { sync::heard_at(told.silence_s, context.now) };
                self.outputs.push(Output::Record { record, from, heard_at });
                self.note_progress(from);
            }
        }
        self.ask(from, context);
        Ok(())
    }

    fn tell_silence<R: Records>(&mut self, to: PublicKey, keys: &[PublicKey], context: &Context<'_, R>) {
        let known = keys.iter().take(MAX_SILENT).filter(|key| context.records.record(**key).is_some());
        let silences: Vec<_> = known
            .map(|&key| Silence { key, seconds: sync::whole_seconds(context.records.silence(key)) })
            .collect();
        if !silences.is_empty() {
            self.send(to, &Body::Silence(silences));
        }
    }

    fn on_silence(&mut self, silences: &[Silence], now: Monotonic) {
        for &Silence { key, seconds } in silences.iter().take(MAX_SILENT) {
            self.outputs.push(Output::Heard { key, at: sync::heard_at(seconds, now) });
        }
    }

    /// Asks a peer for the next records that it has offered, if none are on their way from it.
    fn ask<R: Records>(&mut self, from: PublicKey, context: &Context<'_, R>) {
        let offered = |wanted: &Wanted| wanted.from == from;
        if self.wanted.values().any(|wanted| offered(wanted) && wanted.asked.is_some()) {
            return;
        }
        self.wanted.retain(|&key, wanted| {
            !offered(wanted) || context.records.wants(Entry { key, sequence: wanted.sequence })
        });
        let next = self.wanted.iter_mut().filter(|(_, wanted)| offered(wanted)).take(ASKED_AT_ONCE);
        let keys: Vec<_> = next
            .map(|(&key, wanted)| {
                wanted.asked = Some(context.now);
                wanted.tries += 1;
                key
            })
            .collect();
        if !keys.is_empty() {
            self.send(from, &Body::Sync(Message::Ask(keys)));
        }
    }

    /// Asks again for what did not come, and gives up what has not come for too often.
    fn ask_again<R: Records>(&mut self, context: &Context<'_, R>) {
        let is_late = |wanted: &Wanted| wanted.asked.is_some_and(|at| at + ANSWER_PATIENCE <= context.now);
        let late: BTreeSet<_> =
            self.wanted.values().filter(|wanted| is_late(wanted)).map(|wanted| wanted.from).collect();
        self.wanted.retain(|_, wanted| !is_late(wanted) || wanted.tries < MAX_TRIES);
        for wanted in self.wanted.values_mut().filter(|wanted| is_late(wanted)) {
            wanted.asked = None;
        }
        late.into_iter().for_each(|from| self.ask(from, context));
    }

    fn note_progress(&mut self, key: PublicKey) {
        if let Some(partner) = self.partners.get_mut(&key) {
            partner.sync.on_progress();
        }
    }

    fn say(&mut self, to: PublicKey, messages: Vec<Message>) {
        for message in messages {
            self.send(to, &Body::Sync(message));
        }
    }

    fn send(&mut self, to: PublicKey, body: &Body) {
        self.outputs.push(Output::Send { to, bytes: encode(body) });
    }

    /// Draws peers at random, each at most once.
    fn choose(&mut self, among: &[PublicKey], count: usize) -> Vec<PublicKey> {
        let mut places = BTreeSet::new();
        let length = u64::try_from(among.len()).unwrap_or(u64::MAX);
        while places.len() < count.min(among.len()) {
            places.insert(usize::try_from(self.rng.next_u64() % length).expect("less than a length"));
        }
        places.into_iter().map(|place| among[place]).collect()
    }
}

/// Returns what a node says that passes on these bytes as a record.
#[cfg(test)]
pub(crate) fn passing_on(record: &[u8]) -> Vec<u8> {
    let told = Told { record: record.to_vec().into(), silence_s: 0 };
    encode(&Body::Sync(Message::Records(vec![told])))
}
