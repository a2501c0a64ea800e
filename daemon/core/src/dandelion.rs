//! Who publishes a node's record outside the mesh, when that must not be the node itself (Dandelion++).
//!
//! Whoever watches the DHT sees which address stores what. So a record first goes along a **stem** of nodes inside the mesh,
//! and the node at its end publishes it.
//!
//! ```text
//!   origin --1--> relay --2--> relay --3--> relay: the die says fluff, and it publishes
//!          <------------ done <------ done <----
//! ```
//!
//! - An **epoch** is [`EPOCH`] of the wall clock, the same for all nodes. In each a node has [`RELAYS`] relays among those that
//!   it reaches, drawn by a hash that only members can compute: whoever knows the epoch finds the same (W-D31, W-D32).
//! - Each relay publishes with a chance of [`FLUFF_PERCENT`], and the [`MAX_HOPS`]th in any case; otherwise the record goes on to
//!   one of its own relays, never back and never to its origin.
//! - **Done** goes back along the stem. A relay that has heard of none when its embargo is over publishes the record itself, an
//!   origin begins anew with its other relay, and then with whom else it reaches: nodes that drop what they should pass on keep
//!   nobody out.
//! - A publisher speaks for a node for as long as that one's next epoch lasts; before that is over another stem has ended.
//!
//! It never publishes this node's own record. A node that reaches nobody has nobody to ask: what it does then is the caller's
//! decision.

use std::collections::BTreeMap;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::derive::MeshKeys;
use crate::identity::Sequence;
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::sync::Entry;
use crate::time::{Monotonic, Now, WallClock};

#[cfg(test)]
mod tests;

/// How long relays stay the same (seed 003, W-D31).
pub const EPOCH: Duration = Duration::from_secs(600);

/// How many relays a node has in an epoch.
pub const RELAYS: usize = 2;

/// A record is published after so many hops at the latest.
pub const MAX_HOPS: u8 = 4;

/// The chance of a hop to be the last.
const FLUFF_PERCENT: u32 = 10;

/// A relay waits so long for word that a record was published, and up to half as long again.
const EMBARGO: Duration = Duration::from_secs(20);

/// An origin waits longer than any of its relays.
const PATIENCE: Duration = Duration::from_secs(40);

/// The most records of others that are on their way through this node; the one that came first makes room.
const MAX_CARRIED: usize = 256;

/// The most nodes that are published; the one that is published longest makes room. A notice holds three or four.
const MAX_PUBLISHED: usize = 64;

/// A period in which relays stay the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u64);

impl Epoch {
    /// Returns the epoch of a time of day.
    pub const fn of(wall: WallClock) -> Self {
        Self(wall.as_secs() / EPOCH.as_secs())
    }

    /// Returns how long it goes on.
    fn left(self, wall: WallClock) -> Duration {
        WallClock::from_millis((self.0 + 1) * EPOCH.as_secs() * 1000).since(wall)
    }

    /// Returns a node's relays among those that it reaches, the first choice first.
    pub fn relays(self, keys: &MeshKeys, node: PublicKey, reached: &[PublicKey]) -> Vec<PublicKey> {
        let mut drawn = self.draw(keys, node, reached);
        drawn.truncate(RELAYS);
        drawn
    }

    /// Returns all whom a node reaches, in the order in which they are its relays.
    fn draw(self, keys: &MeshKeys, node: PublicKey, reached: &[PublicKey]) -> Vec<PublicKey> {
        let mut drawn = reached.to_vec();
        drawn.sort_by_cached_key(|peer| (keys.stem_draw(self.0, node, *peer), *peer));
        drawn
    }
}

/// What a node wants said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A record goes on.
    Stem {
        /// To whom.
        to: PublicKey,
        /// The record.
        record: SignedRecord,
        /// How many nodes it has been sent to, this one included.
        hops: u8,
    },
    /// A record is published.
    Done {
        /// Whom to tell.
        to: PublicKey,
        /// Which record.
        entry: Entry,
    },
}

/// What decisions depend on.
pub struct Context<'a> {
    /// The mesh.
    pub keys: &'a MeshKeys,
    /// Whom this node reaches.
    pub reached: &'a [PublicKey],
    /// The time.
    pub now: Now,
}

/// A record of another node on its way.
#[derive(Debug)]
struct Carried {
    record: SignedRecord,
    from: PublicKey,
    to: PublicKey,
    came: Monotonic,
    until: Monotonic,
}

#[derive(Debug)]
struct Published {
    record: SignedRecord,
    epoch: Epoch,
}

/// How far this node's own record has come.
#[derive(Debug)]
struct Sent {
    sequence: Sequence,
    epoch: Epoch,
    to: PublicKey,
    attempts: usize,
    /// When the epoch is over.
    turn: Monotonic,
    /// When to begin anew: with the next epoch, or sooner if nobody says by then that it is published.
    until: Monotonic,
    is_published: bool,
}

/// One node's part in publishing others, and in being published.
#[derive(Debug)]
pub struct Dandelion {
    own: PublicKey,
    rng: ChaCha8Rng,
    sent: Option<Sent>,
    /// At most [`MAX_CARRIED`].
    carried: BTreeMap<PublicKey, Carried>,
    /// At most [`MAX_PUBLISHED`].
    published: BTreeMap<PublicKey, Published>,
    outputs: Vec<Output>,
}

impl Dandelion {
    /// Makes a node's part; `seed` feeds all that is random in it.
    pub fn new(own: PublicKey, seed: [u8; 32]) -> Self {
        Self {
            own,
            rng: ChaCha8Rng::from_seed(seed),
            sent: None,
            carried: BTreeMap::new(),
            published: BTreeMap::new(),
            outputs: Vec::new(),
        }
    }

    /// Takes a record that a peer wants published, whose signature holds and whose node is known.
    pub fn handle_stem(&mut self, from: PublicKey, record: SignedRecord, hops: u8, context: &Context<'_>) {
        let entry = Entry::of(&record);
        let is_carried = |carried: &Carried| Entry::of(&carried.record) == entry;
        if entry.key == self.own || self.carried.get(&entry.key).is_some_and(is_carried) {
            // It went in a circle. Whoever sent it hears of nothing, and publishes it.
            return;
        }
        let is_last = hops >= MAX_HOPS || self.rng.next_u32() % 100 < FLUFF_PERCENT;
        let relays = Epoch::of(context.now.wall).relays(context.keys, self.own, context.reached);
        let next = relays.into_iter().filter(|relay| ![from, entry.key].contains(relay));
        let next: Vec<_> = next.collect();
        if is_last || next.is_empty() {
            self.publish(record, context.now);
            self.outputs.push(Output::Done { to: from, entry });
            return;
        }
        let to = next[usize::from(entry.key.as_bytes()[0]) % next.len()];
        let now = context.now.monotonic;
        let until =
            now + EMBARGO + EMBARGO.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX) / 2.0);
        self.carried.insert(entry.key, Carried { record: record.clone(), from, to, came: now, until });
        while self.carried.len() > MAX_CARRIED {
            let oldest = self.carried.iter().min_by_key(|(_, carried)| carried.came);
            let oldest = *oldest.expect("there are more than MAX_CARRIED").0;
            self.carried.remove(&oldest);
        }
        self.outputs.push(Output::Stem { to, record, hops: hops.saturating_add(1).max(2) });
    }

    /// Takes a peer's word that a record which was sent to it is published.
    pub fn handle_done(&mut self, from: PublicKey, entry: Entry) {
        if let Some(sent) = &mut self.sent
            && entry == (Entry { key: self.own, sequence: sent.sequence })
            && sent.to == from
        {
            sent.is_published = true;
            sent.until = sent.turn;
        }
        let is_meant = |carried: &Carried| carried.to == from && Entry::of(&carried.record) == entry;
        if self.carried.get(&entry.key).is_some_and(is_meant)
            && let Some(carried) = self.carried.remove(&entry.key)
        {
            self.outputs.push(Output::Done { to: carried.from, entry });
        }
    }

    /// Whether [`Dandelion::drive`] has something to do; `own` is the record that others are to publish, if any.
    pub fn is_due(&self, own: Option<&SignedRecord>, now: Now) -> bool {
        let current = (own.map(|own| own.record().sequence), Epoch::of(now.wall));
        let is_own_due = match &self.sent {
            Some(sent) => (Some(sent.sequence), sent.epoch) != current || sent.until <= now.monotonic,
            None => true,
        };
        let is_own_due = if own.is_some() { is_own_due } else { self.sent.is_some() };
        is_own_due || self.carried.values().any(|carried| carried.until <= now.monotonic)
    }

    /// Does what is due for this node's own record and for those of others.
    pub fn drive(&mut self, own: Option<&SignedRecord>, context: &Context<'_>) {
        let now = context.now;
        let epoch = Epoch::of(now.wall);
        let over = self.carried.iter().filter(|(_, carried)| carried.until <= now.monotonic);
        for key in over.map(|(&key, _)| key).collect::<Vec<_>>() {
            let Some(carried) = self.carried.remove(&key) else { continue };
            let entry = Entry::of(&carried.record);
            self.publish(carried.record, now);
            self.outputs.push(Output::Done { to: carried.from, entry });
        }
        let Some(own) = own else {
            self.sent = None;
            return;
        };
        let sequence = own.record().sequence;
        let current = self.sent.as_ref().filter(|sent| (sent.sequence, sent.epoch) == (sequence, epoch));
        if current.is_some_and(|sent| now.monotonic < sent.until) {
            return;
        }
        let attempts = current.map_or(0, |sent| sent.attempts + 1);
        let drawn = epoch.draw(context.keys, self.own, context.reached);
        let Some(&to) = drawn.get(attempts % drawn.len().max(1)) else {
            // Whoever is reached next has this called again.
            self.sent = None;
            return;
        };
        let turn = now.monotonic + epoch.left(now.wall);
        let until = (now.monotonic + PATIENCE).min(turn);
        self.sent = Some(Sent { sequence, epoch, to, attempts, turn, until, is_published: false });
        self.outputs.push(Output::Stem { to, record: own.clone(), hops: 1 });
    }

    /// Returns when [`Dandelion::drive`] has something to do by itself. Changes with every other call.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let own = self.sent.as_ref().map(|sent| sent.until);
        self.carried.values().map(|carried| carried.until).chain(own).min()
    }

    /// Returns what follows, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Returns the records of others that this node publishes, the newest first.
    pub fn published(&self, wall: WallClock) -> Vec<&SignedRecord> {
        let is_current = |published: &&Published| published.epoch.0 + 1 >= Epoch::of(wall).0;
        let current = self.published.values().filter(is_current);
        let mut records: Vec<_> = current.map(|published| &published.record).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.record().sequence));
        records
    }

    /// Whether this node's own record is published by another, to its knowledge.
    pub fn is_published(&self) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.is_published)
    }

    fn publish(&mut self, record: SignedRecord, now: Now) {
        let (key, epoch) = (record.record().key, Epoch::of(now.wall));
        tracing::debug!(peer = %key, "publishing a peer");
        self.published.retain(|_, published| published.epoch.0 + 1 >= epoch.0);
        self.published.insert(key, Published { record, epoch });
        while self.published.len() > MAX_PUBLISHED {
            let oldest = self.published.iter().min_by_key(|(_, published)| published.epoch);
            let oldest = *oldest.expect("there are more than MAX_PUBLISHED").0;
            self.published.remove(&oldest);
        }
    }
}
