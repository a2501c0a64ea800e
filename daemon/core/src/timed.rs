//! A map whose values each want to be called at some time, and that finds those that are due without looking at all.
//!
//! Whatever may have changed a value marks its key, and [`Timed::settle`] asks the marked ones anew. So nobody who
//! changes a value has to think of its time; what it costs is one mark for each value that was touched.
//!
//! Invariant: after [`Timed::settle`] the queue holds the time of every value that has one.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::time::Monotonic;

/// Something that wants to be called.
pub trait Deadline {
    /// Returns when.
    fn deadline(&self) -> Option<Monotonic>;
}

/// Such things by their keys.
#[derive(Clone, Debug)]
pub struct Timed<K, V> {
    values: BTreeMap<K, V>,
    queue: BTreeSet<(Monotonic, K)>,
    queued: BTreeMap<K, Monotonic>,
    touched: BTreeSet<K>,
}

impl<K, V> Default for Timed<K, V> {
    fn default() -> Self {
        Self {
            values: BTreeMap::new(),
            queue: BTreeSet::new(),
            queued: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Copy, V: Deadline> Timed<K, V> {
    /// Returns a value to look at.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.values.get(key)
    }

    /// Returns a value to change.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let value = self.values.get_mut(key)?;
        self.touched.insert(*key);
        Some(value)
    }

    /// Returns the place of a value, to change or to make it.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        self.touched.insert(key);
        self.values.entry(key)
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.touched.insert(*key);
        self.values.remove(key)
    }

    /// Goes through all values, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.touched.extend(self.values.keys());
        self.values.iter_mut()
    }

    /// Goes through all values in rising order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.values.iter()
    }

    /// Goes through all keys in rising order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.values.keys()
    }

    /// Takes up the times of whatever was touched.
    pub fn settle(&mut self) {
        while let Some(key) = self.touched.pop_first() {
            let wanted = self.values.get(&key).and_then(Deadline::deadline);
            if self.queued.get(&key).copied() == wanted {
                continue;
            }
            if let Some(before) = self.queued.remove(&key) {
                self.queue.remove(&(before, key));
            }
            if let Some(at) = wanted {
                self.queued.insert(key, at);
                self.queue.insert((at, key));
            }
        }
    }

    /// Returns the earliest time of all. Must follow [`Timed::settle`].
    pub fn first(&self) -> Option<Monotonic> {
        debug_assert!(self.touched.is_empty(), "a value may have changed since");
        self.queue.first().map(|&(at, _)| at)
    }

    /// Returns the keys of the values that are due, in rising order.
    pub fn due(&mut self, now: Monotonic) -> Vec<K> {
        self.settle();
        let mut due: Vec<K> =
            self.queue.iter().take_while(|(at, _)| *at <= now).map(|&(_, key)| key).collect();
        due.sort_unstable();
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Deadline for Option<u64> {
        fn deadline(&self) -> Option<Monotonic> {
            self.map(Monotonic::from_nanos)
        }
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Set(u8, Option<u64>),
        Remove(u8),
        RaiseAll,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..20_u8, prop::option::of(0..50_u64)).prop_map(|(key, at)| Operation::Set(key, at)),
            (0..20_u8).prop_map(Operation::Remove),
            Just(Operation::RaiseAll),
        ]
    }

    proptest! {
        #[test]
        fn what_is_due_is_what_a_look_at_all_would_find(
            operations in prop::collection::vec(operation(), 0..60),
            now in 0..60_u64,
        ) {
            let mut timed = Timed::default();
            for operation in operations {
                match operation {
                    Operation::Set(key, at) => *timed.entry(key).or_default() = at,
                    Operation::Remove(key) => drop(timed.remove(&key)),
                    Operation::RaiseAll => timed.iter_mut().for_each(|(_, at)| *at = at.map(|at| at + 1)),
                }
                timed.settle();
                let all = timed.iter().filter_map(|(_, at)| at.deadline());
                prop_assert_eq!(timed.first(), all.min());
            }
            let now = Monotonic::from_nanos(now);
            let found: Vec<u8> =
                timed.iter().filter(|(_, at)| at.deadline().is_some_and(|at| at <= now)).map(|(&key, _)| key).collect();
            prop_assert_eq!(timed.due(now), found);
        }
    }
}
