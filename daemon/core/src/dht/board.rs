//! Who writes where on the board of an hour, decided by each node for itself.
//!
//! A small mesh has a slot for everyone; a large one need not. In this order, a node
//! 1. keeps the slot that it holds;
//! 2. takes one that is free, or whose notice is older than [`STALE_AFTER`], from a place of its own by hash;
//! 3. writes nothing if somebody whom it reaches holds a slot: whoever reads the board meets that one, and through it this node;
//! 4. takes the slot whose notice is oldest, for that notice only (BEP 44's `cas`), so that of two who do so at once one
//!    learns that it has lost.
//!
//! Two that take one free slot at the same time overwrite each other; the loser sees so in its next round and takes another.
//! Sequences are the writer's time of day in milliseconds, or one above what they replace. A slot whose sequence lies far
//! ahead is left alone: a member that wants to block it can, for that hour.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{Hour, ItemKey, SLOTS};
use crate::derive::MeshKeys;
use crate::key::PublicKey;
use crate::time::WallClock;

/// A notice that nobody has renewed for so many milliseconds is given up: it is due every 15 minutes, and clocks differ.
pub const STALE_AFTER: i64 = 45 * 60 * 1000;

/// A sequence further ahead than this, in milliseconds, is no time of day.
const FAR_AHEAD: i64 = 2 * 3600 * 1000;

/// One place on the board of an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    hour: Hour,
    number: u8,
}

impl Slot {
    /// Returns all slots of an hour.
    pub(super) fn all(hour: Hour) -> impl Iterator<Item = Self> {
        (0..SLOTS).map(move |number| Self { hour, number })
    }

    /// Returns the item that stands for it.
    pub fn key(self, keys: &MeshKeys) -> ItemKey {
        let hour = self.hour.0.to_be_bytes();
        ItemKey {
            seed: keys.dht_name(&[b"board", &hour]),
            salt: keys.dht_name(&[b"slot", &hour, &[self.number]]),
        }
    }
}

/// Where a notice goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The slot.
    pub slot: Slot,
    /// Whether this node holds it already.
    pub is_own: bool,
    /// The only sequence that may be replaced, if it matters.
    pub replaces: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Occupant {
    /// `None` for what cannot be read.
    writer: Option<PublicKey>,
    sequence: i64,
}

/// What is known of the boards of the hours in use.
pub(super) struct Board {
    own: PublicKey,
    slots: BTreeMap<Slot, Occupant>,
    /// What this node has written: its notices may begin with another's record.
    written: BTreeMap<Slot, i64>,
}

impl Board {
    pub(super) const fn new(own: PublicKey) -> Self {
        Self { own, slots: BTreeMap::new(), written: BTreeMap::new() }
    }

    /// Forgets the boards of other hours.
    pub(super) fn turn_to(&mut self, hours: &[Hour]) {
        self.slots.retain(|slot, _| hours.contains(&slot.hour));
        self.written.retain(|slot, _| hours.contains(&slot.hour));
    }

    /// Forgets what a slot holds: it is read anew.
    pub(super) fn clear(&mut self, slot: Slot) {
        self.slots.remove(&slot);
    }

    /// Whether a value is newer than what the slot is known to hold.
    pub(super) fn is_newer(&self, slot: Slot, sequence: i64) -> bool {
        self.slots.get(&slot).is_none_or(|occupant| occupant.sequence < sequence)
    }

    pub(super) fn note(&mut self, slot: Slot, writer: Option<PublicKey>, sequence: i64) {
        if self.is_newer(slot, sequence) {
            let is_own = self.written.get(&slot) == Some(&sequence);
            let writer = if is_own { Some(self.own) } else { writer };
            self.slots.insert(slot, Occupant { writer, sequence });
        }
    }

    /// Takes a slot for this node and returns the sequence to write with.
    pub(super) fn take(&mut self, slot: Slot, wall: WallClock) -> i64 {
        let above = self.slots.get(&slot).map_or(0, |occupant| occupant.sequence.saturating_add(1));
        let sequence = millis(wall).max(above);
        self.slots.insert(slot, Occupant { writer: Some(self.own), sequence });
        self.written.insert(slot, sequence);
        sequence
    }

    /// Returns where this node's notice goes, if anywhere; `reaches` tells which other nodes it speaks for.
    pub(super) fn choose(
        &self,
        hour: Hour,
        reaches: impl Fn(PublicKey) -> bool,
        wall: WallClock,
    ) -> Option<Choice> {
        let usable: Vec<(Slot, Option<Occupant>)> = self
            .slots_in_order(hour)
            .map(|slot| (slot, self.slots.get(&slot).copied()))
            .filter(|(_, occupant)| occupant.is_none_or(|one| one.sequence < millis(wall) + FAR_AHEAD))
            .collect();
        let held_by = |holds: &dyn Fn(PublicKey) -> bool| {
            let holder = |occupant: &Option<Occupant>| occupant.and_then(|one| one.writer);
            usable.iter().find(|(_, occupant)| holder(occupant).is_some_and(holds))
        };
        if let Some(&(slot, _)) = held_by(&|writer| writer == self.own) {
            return Some(Choice { slot, is_own: true, replaces: None });
        }
        let is_free = |occupant: &Option<Occupant>| {
            occupant.is_none_or(|one| one.sequence < millis(wall) - STALE_AFTER)
        };
        if let Some(&(slot, _)) = usable.iter().find(|(_, occupant)| is_free(occupant)) {
            return Some(Choice { slot, is_own: false, replaces: None });
        }
        if held_by(&reaches).is_some() {
            return None;
        }
        let oldest = usable.iter().min_by_key(|(_, occupant)| occupant.map(|one| one.sequence));
        let (slot, occupant) = oldest?;
        Some(Choice { slot: *slot, is_own: false, replaces: occupant.map(|one| one.sequence) })
    }

    /// Returns the slots of an hour from a place that differs between nodes and hours.
    fn slots_in_order(&self, hour: Hour) -> impl Iterator<Item = Slot> {
        let hash =
            Sha256::new().chain_update(self.own.as_bytes()).chain_update(hour.0.to_be_bytes()).finalize();
        let first = hash[0] % SLOTS;
        (0..SLOTS).map(move |step| Slot { hour, number: (first + step) % SLOTS })
    }
}

fn millis(wall: WallClock) -> i64 {
    i64::try_from(wall.as_millis()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SecretKey;

    const NOW: WallClock = WallClock::from_millis(1_800_000_000_000);

    fn key(byte: u8) -> PublicKey {
        SecretKey::from_random([byte; 32]).public()
    }

    fn hour() -> Hour {
        Hour::current(NOW)[0]
    }

    /// A board with a notice of each of these nodes, the first one written first.
    fn board(own: u8, writers: &[u8]) -> Board {
        let mut board = Board::new(key(own));
        let writers = (0..).zip(writers);
        for ((age, &writer), slot) in writers.zip(Slot::all(hour())) {
            board.note(slot, Some(key(writer)), millis(NOW) - 60_000 + age);
        }
        board
    }

    fn choose(board: &Board, reached: &[u8]) -> Option<Choice> {
        board.choose(hour(), |writer| reached.iter().any(|&byte| key(byte) == writer), NOW)
    }

    #[test]
    fn everyone_of_a_small_mesh_gets_a_slot_of_its_own() {
        let mut taken = Vec::new();
        for own in 1..=SLOTS {
            let mut board = Board::new(key(own));
            for &(slot, writer) in &taken {
                board.note(slot, Some(writer), millis(NOW));
            }
            let choice = choose(&board, &[]).unwrap();
            assert!(taken.iter().all(|(slot, _)| *slot != choice.slot) && choice.replaces.is_none());
            taken.push((choice.slot, key(own)));
        }
    }

    #[test]
    fn a_node_keeps_its_slot() {
        let choice = choose(&board(3, &[1, 2, 3, 4]), &[1]).unwrap();
        assert_eq!((choice.slot.number, choice.is_own), (2, true));
    }

    #[test]
    fn on_a_full_board_only_who_is_spoken_for_writes_nothing() {
        let board = board(9, &[1, 2, 3, 4]);
        assert_eq!(choose(&board, &[3]), None);
        let choice = choose(&board, &[7]).unwrap();
        assert_eq!((choice.slot.number, choice.replaces), (0, Some(millis(NOW) - 60_000)));
    }

    #[test]
    fn a_notice_that_nobody_renews_makes_room() {
        let board = board(9, &[1, 2, 3, 4]);
        let later = WallClock::from_millis(NOW.as_millis() + 45 * 60 * 1000);
        let choice = board.choose(hour(), |_| true, later).unwrap();
        assert!(!choice.is_own && choice.replaces.is_none());
    }

    /// W-D20 for notices: what is replaced has the lower sequence, however late the clock of the writer is.
    #[test]
    fn a_sequence_is_above_what_it_replaces() {
        let mut board = board(9, &[1]);
        let slot = Slot::all(hour()).next().unwrap();
        board.note(slot, Some(key(1)), millis(NOW) + 5000);
        assert_eq!(board.take(slot, NOW), millis(NOW) + 5001);
        assert!(!board.is_newer(slot, millis(NOW) + 5001));
    }

    #[test]
    fn a_member_can_block_one_slot_and_not_the_others() {
        let mut board = Board::new(key(9));
        let first = board.slots_in_order(hour()).next().unwrap();
        board.note(first, None, i64::MAX);
        let choice = choose(&board, &[]).unwrap();
        assert_ne!(choice.slot, first);
        assert!(Slot::all(hour()).all(|slot| {
            board.note(slot, None, i64::MAX);
            true
        }));
        assert_eq!(choose(&board, &[]), None);
    }
}
