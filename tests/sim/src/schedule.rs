//! What happens when: a queue ordered by time, then by the order of scheduling, so that a run can be repeated.

use std::collections::BTreeMap;

use wgmesh_core::time::Monotonic;

/// Things to come.
#[derive(Clone, Debug)]
pub struct Schedule<T> {
    queue: BTreeMap<Slot, T>,
    scheduled: u64,
}

/// The place of one thing in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    at: Monotonic,
    number: u64,
}

impl Slot {
    /// Returns when it is due.
    pub const fn at(self) -> Monotonic {
        self.at
    }
}

impl<T> Schedule<T> {
    /// Schedules `item`.
    pub fn push(&mut self, at: Monotonic, item: T) -> Slot {
        let slot = Slot { at, number: self.scheduled };
        self.scheduled += 1;
        self.queue.insert(slot, item);
        slot
    }

    /// Takes an item back, if it is still to come.
    pub fn cancel(&mut self, slot: Slot) {
        self.queue.remove(&slot);
    }

    /// Returns when the next item is due.
    pub fn next_at(&self) -> Option<Monotonic> {
        self.queue.first_key_value().map(|(slot, _)| slot.at)
    }

    /// Takes the next item.
    pub fn pop(&mut self) -> Option<(Monotonic, T)> {
        self.queue.pop_first().map(|(slot, item)| (slot.at, item))
    }
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self { queue: BTreeMap::new(), scheduled: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_by_time_and_then_in_the_order_of_scheduling() {
        let at = Monotonic::from_nanos;
        let mut schedule = Schedule::default();
        schedule.push(at(2), "second");
        schedule.push(at(2), "third");
        schedule.push(at(1), "first");
        let cancelled = schedule.push(at(2), "never");
        schedule.cancel(cancelled);
        let order: Vec<_> = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(order, [(at(1), "first"), (at(2), "second"), (at(2), "third")]);
    }
}
