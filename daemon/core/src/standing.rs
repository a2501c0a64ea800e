//! What a node makes of the others over the years: how well each has served it, whom it has shut out, whom the operator
//! wants gone, and which key answers behind each configured name.
//!
//! Invariants:
//! - Everything is held against a key that was proved, never against an address: whoever has the secret can make up
//!   addresses, and many hosts may share one.
//! - Only misbehaviour bans, and only for [`BAN`]. A node that cannot be reached becomes the last choice and no more.
//! - What the operator removed stays removed until the operator takes that back (M-5).
//! - At most [`MAX_NODES`] nodes are held; the one longest unseen makes room, one under a ban last. [`KEPT`] after it was
//!   last seen a node is forgotten.
//!
//! Names and removals come from the operator alone, so nothing from the network makes them grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::key::PublicKey;
use crate::time::WallClock;

/// The most nodes that are remembered: four times the peers that a store holds by default.
pub const MAX_NODES: usize = 4096;

/// For how long a node that was not seen again is remembered.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// For how long a node that misbehaved is shut out.
pub const BAN: Duration = Duration::from_secs(24 * 3600);

/// The most configured names that a key is held for; a configuration has far fewer.
const MAX_NAMES: usize = 1024;

/// A node seen again within this time is not noted anew, so that a quiet mesh writes nothing.
const SEEN_STEP: Duration = Duration::from_secs(3600);

/// How good a partner a node was, from 0 to 1000 (REQUIREMENTS section 10, in thousandths).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reputation(u16);

impl Reputation {
    /// That of a stranger.
    pub const START: Self = Self(500);
    /// From here on a node is preferred to a stranger.
    pub const TRUSTED: Self = Self(600);
    /// Below this a node is the last choice, and one that misbehaves is shut out.
    pub const POOR: Self = Self(200);

    const NONE: Self = Self(0);
    const BEST: i32 = 1000;

    /// Returns it in thousandths.
    pub const fn thousandths(self) -> u16 {
        self.0
    }

    /// Returns what choices go by: finer differences would only make them restless.
    pub fn class(self) -> Class {
        match self {
            poor if poor < Self::POOR => Class::Poor,
            usual if usual < Self::TRUSTED => Class::Usual,
            _ => Class::Trusted,
        }
    }

    fn after(self, deed: Deed) -> Self {
        let change = match deed {
            Deed::Served => 10,
            Deed::Silent => -100,
            Deed::BadRecord => -300,
            Deed::Malicious => return Self::NONE,
        };
        let score = (i32::from(self.0) + change).clamp(0, Self::BEST);
        Self(u16::try_from(score).expect("it was just clamped"))
    }
}

impl fmt::Display for Reputation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// How a node ranks among others, the best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The last choice.
    Poor,
    /// As good as a stranger.
    Usual,
    /// Preferred.
    Trusted,
}

/// What a node did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It answered.
    Served,
    /// It did not answer in time, or could not be reached.
    Silent,
    /// It sent a record that does not verify.
    BadRecord,
    /// It did what no honest node does, once too often.
    Malicious,
}

/// What is remembered of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// How good a partner it was.
    pub reputation: Reputation,
    /// When it was first proved to be there.
    pub first_seen: WallClock,
    /// When it was last proved to be there, give or take an hour.
    pub last_seen: WallClock,
    /// Until when it is shut out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned_until: Option<WallClock>,
}

impl Standing {
    const fn new(wall: WallClock) -> Self {
        Self { reputation: Reputation::START, first_seen: wall, last_seen: wall, banned_until: None }
    }

    /// Whether it is shut out. A ban that ends later than one can last was noted by a clock that was wrong.
    fn is_banned(&self, wall: WallClock) -> bool {
        self.banned_until.is_some_and(|until| until > wall && until.since(wall) <= BAN)
    }
}

/// All that is remembered: the content of `/var/lib/wgmesh/<iface>-peerstore.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    #[serde(default)]
    nodes: BTreeMap<PublicKey, Standing>,
    /// Whom the operator wants gone.
    #[serde(default)]
    removed: BTreeSet<PublicKey>,
    /// Which key answered first behind a name that the operator gave.
    #[serde(default)]
    names: BTreeMap<String, PublicKey>,
    /// Whether it differs from what was saved.
    #[serde(skip)]
    is_changed: bool,
}

impl Book {
    /// Forgets whoever was last seen too long ago. Call it once, with a book that was just read.
    pub fn prune(&mut self, wall: WallClock) {
        self.nodes.retain(|_, standing| wall.since(standing.last_seen) <= KEPT || standing.is_banned(wall));
        self.make_room(wall);
    }

    /// Returns what is remembered of a node.
    pub fn standing(&self, key: PublicKey) -> Option<&Standing> {
        self.nodes.get(&key)
    }

    /// Returns how good a partner a node was; a stranger is as good as it is new.
    pub fn reputation(&self, key: PublicKey) -> Reputation {
        self.nodes.get(&key).map_or(Reputation::START, |standing| standing.reputation)
    }

    /// Notes that a node has just proved to be there.
    pub fn note_seen(&mut self, key: PublicKey, wall: WallClock) {
        let is_known = self.nodes.contains_key(&key);
        let standing = self.nodes.entry(key).or_insert_with(|| Standing::new(wall));
        if !is_known || wall.since(standing.last_seen) >= SEEN_STEP {
            standing.last_seen = wall;
            self.is_changed = true;
        }
        if !is_known {
            self.make_room(wall);
        }
    }

    /// Takes note of a deed. Returns whether the node is to be shut out for it.
    #[must_use]
    pub fn judge(&mut self, key: PublicKey, deed: Deed) -> bool {
        let Some(standing) = self.nodes.get_mut(&key) else {
            // Of a node that never proved to be there nobody can know whose fault a silence is.
            return false;
        };
        let before = standing.reputation;
        standing.reputation = before.after(deed);
        self.is_changed |= standing.reputation != before;
        match deed {
            Deed::Served | Deed::Silent => false,
            Deed::BadRecord | Deed::Malicious => standing.reputation < Reputation::POOR,
        }
    }

    /// Shuts a node out for [`BAN`].
    pub fn ban(&mut self, key: PublicKey, wall: WallClock) {
        self.note_seen(key, wall);
        if let Some(standing) = self.nodes.get_mut(&key) {
            standing.reputation = Reputation::NONE;
            standing.banned_until = Some(later(wall, BAN));
            self.is_changed = true;
        }
    }

    /// Whether a node is shut out, for its misbehaviour or by the operator.
    pub fn is_shut_out(&self, key: PublicKey, wall: WallClock) -> bool {
        self.removed.contains(&key) || self.nodes.get(&key).is_some_and(|standing| standing.is_banned(wall))
    }

    /// Goes through the nodes that are shut out for their misbehaviour, with what remains of it.
    pub fn bans(&self, wall: WallClock) -> impl Iterator<Item = (PublicKey, Duration)> {
        let banned = self.nodes.iter().filter(move |(_, standing)| standing.is_banned(wall));
        banned.filter_map(move |(&key, standing)| Some((key, standing.banned_until?.since(wall))))
    }

    /// Notes that the operator wants a node gone.
    pub fn remove(&mut self, key: PublicKey) {
        self.is_changed |= self.removed.insert(key);
        let names = self.names.len();
        self.names.retain(|_, held| *held != key);
        self.is_changed |= self.names.len() < names;
    }

    /// Notes that the operator wants a node, whatever was before. Returns whether it was shut out.
    pub fn welcome(&mut self, key: PublicKey) -> bool {
        let mut was_out = self.removed.remove(&key);
        if let Some(standing) = self.nodes.get_mut(&key)
            && standing.banned_until.take().is_some()
        {
            standing.reputation = Reputation::START;
            was_out = true;
        }
        self.is_changed |= was_out;
        was_out
    }

    /// Goes through the nodes that the operator wants gone.
    pub fn removed(&self) -> impl Iterator<Item = PublicKey> {
        self.removed.iter().copied()
    }

    /// Returns which key answers behind a name.
    pub fn key_behind(&self, name: &str) -> Option<PublicKey> {
        self.names.get(name).copied()
    }

    /// Notes which key answers behind a name, in the place of another.
    pub fn pin(&mut self, name: &str, key: PublicKey) {
        if self.names.get(name) != Some(&key)
            && (self.names.len() < MAX_NAMES || self.names.contains_key(name))
        {
            self.names.insert(name.to_owned(), key);
            self.is_changed = true;
        }
    }

    /// Forgets which key answers behind the names that fit.
    pub fn unpin(&mut self, fits: impl Fn(&str) -> bool) {
        let before = self.names.len();
        self.names.retain(|name, _| !fits(name));
        self.is_changed |= self.names.len() < before;
    }

    /// Whether it has changed since this was last asked.
    pub const fn take_change(&mut self) -> bool {
        std::mem::replace(&mut self.is_changed, false)
    }

    fn make_room(&mut self, wall: WallClock) {
        while self.nodes.len() > MAX_NODES {
            let order = |(key, standing): &(&PublicKey, &Standing)| {
                (standing.is_banned(wall), standing.last_seen, **key)
            };
            let (&oldest, _) = self.nodes.iter().min_by_key(order).expect("there are more than MAX_NODES");
            self.nodes.remove(&oldest);
        }
    }
}

fn later(wall: WallClock, span: Duration) -> WallClock {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    WallClock::from_millis(wall.as_millis().saturating_add(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    fn key(number: u16) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn at(millis: u64) -> WallClock {
        WallClock::from_millis(1_000 * DAY + millis)
    }

    fn known(numbers: impl IntoIterator<Item = u16>) -> Book {
        let mut book = Book::default();
        numbers.into_iter().for_each(|number| book.note_seen(key(number), at(0)));
        book
    }

    /// M-20.
    #[test]
    fn reputation_rises_slowly_and_falls_fast() {
        let mut book = known([1]);
        let mut after = |deed, times| {
            (0..times).for_each(|_| assert!(!book.judge(key(1), deed) || deed == Deed::Malicious));
            book.reputation(key(1)).thousandths()
        };
        assert_eq!(after(Deed::Served, 10), 600);
        assert_eq!(after(Deed::Silent, 1), 500);
        assert_eq!(after(Deed::BadRecord, 1), 200);
        assert_eq!(after(Deed::Served, 500), 1000);
        assert_eq!(after(Deed::Malicious, 1), 0);
        assert_eq!(after(Deed::Silent, 1), 0);
    }

    /// a node that is only unreachable is never shut out.
    #[test]
    fn silence_bans_nobody_and_bad_records_do() {
        let mut book = known([1, 2]);
        assert!((0..100).all(|_| !book.judge(key(1), Deed::Silent)));
        assert_eq!(book.reputation(key(1)).class(), Class::Poor);
        assert!(!book.judge(key(2), Deed::BadRecord));
        assert!(book.judge(key(2), Deed::BadRecord));
        assert!(!book.judge(key(3), Deed::Malicious), "it never proved who it is");
    }

    /// M-19, X-41: what somebody is worth, and whose name is whose, also where there was no ban.
    #[test]
    fn a_reputation_and_a_pin_last_over_a_restart() {
        let mut book = known([1, 2]);
        book.pin("mesh1", key(2));
        assert!(!book.judge(key(1), Deed::Silent));
        let before = book.reputation(key(1));
        assert_ne!(before, Reputation::START);
        let text = serde_json::to_string(&book).unwrap();
        let book: Book = serde_json::from_str(&text).unwrap();
        assert_eq!((book.reputation(key(1)), book.key_behind("mesh1")), (before, Some(key(2))));
    }

    /// X-29, M-19.
    #[test]
    fn a_ban_lasts_a_day_and_over_a_restart() {
        let mut book = known([1]);
        book.ban(key(1), at(0));
        let text = serde_json::to_string(&book).unwrap();
        let mut book: Book = serde_json::from_str(&text).unwrap();
        book.prune(at(1));
        assert!(book.is_shut_out(key(1), at(DAY - 1)) && !book.is_shut_out(key(1), at(DAY)));
        assert_eq!(book.bans(at(DAY - 1000)).collect::<Vec<_>>(), [(key(1), Duration::from_secs(1))]);
        // A clock that was set back by years does not make it last for years.
        assert!(!book.is_shut_out(key(1), WallClock::from_millis(DAY)));
        assert!(book.welcome(key(1)));
        assert!(!book.is_shut_out(key(1), at(1)));
        assert_eq!(book.reputation(key(1)), Reputation::START);
    }

    /// M-5.
    #[test]
    fn whoever_was_removed_stays_so_until_welcomed() {
        let mut book = known([1]);
        book.pin("mesh1", key(1));
        book.remove(key(1));
        let text = serde_json::to_string(&book).unwrap();
        let mut book: Book = serde_json::from_str(&text).unwrap();
        book.prune(at(400 * DAY));
        assert!(book.is_shut_out(key(1), at(400 * DAY)));
        assert_eq!(book.key_behind("mesh1"), None);
        assert!(book.welcome(key(1)) && !book.welcome(key(1)));
    }

    /// M-19, X-17.
    #[test]
    fn the_longest_unseen_is_forgotten_first_and_everyone_after_a_month() {
        let mut book = known(0..4096);
        book.ban(key(0), at(0));
        (2..4096).for_each(|number| book.note_seen(key(number), at(DAY - 1)));
        book.note_seen(key(5000), at(DAY - 1));
        assert!(book.standing(key(0)).is_some(), "it is under a ban");
        assert!(book.standing(key(1)).is_none() && book.standing(key(2)).is_some());
        assert_eq!(book.standing(key(2)).unwrap().first_seen, at(0));
        book.prune(at(30 * DAY + 1));
        assert_eq!(book.nodes.len(), 4095, "the ban is over too");
        book.prune(at(31 * DAY + 1));
        assert_eq!(book.nodes.len(), 0);
    }

    #[test]
    fn a_quiet_mesh_changes_nothing() {
        let mut book = known([1]);
        assert!(book.take_change() && !book.take_change());
        book.note_seen(key(1), at(1000));
        book.pin("mesh1", key(1));
        assert!(book.take_change());
        book.pin("mesh1", key(1));
        book.unpin(|name| name == "mesh2");
        assert!(!book.take_change());
        book.note_seen(key(1), at(3_600_000));
        assert!(book.take_change());
    }

    ///
    #[test]
    fn a_name_keeps_its_key_until_it_is_given_another() {
        let mut book = Book::default();
        book.pin("mesh1", key(1));
        assert_eq!(book.key_behind("mesh1"), Some(key(1)));
        book.pin("mesh1", key(2));
        assert_eq!(book.key_behind("mesh1"), Some(key(2)));
        book.unpin(|name| name == "mesh1");
        assert_eq!(book.key_behind("mesh1"), None);
    }

    #[test]
    fn an_empty_file_is_an_empty_book() {
        assert_eq!(serde_json::from_str::<Book>("{}").unwrap(), Book::default());
    }
}
