//! The side of a relay that routes packets, and can read them: between which pairs of nodes.
//!
//! Each pair costs some rules in a chain that every packet between peers passes, so there are few of them.
//!
//! Invariants:
//! - There are at most [`MAX_PAIRS`] pairs, of which one node has asked for at most [`PAIRS_PER_PEER`].
//! - A pair that nobody has asked for again within [`LIFETIME`] is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Refusal;
use crate::key::PublicKey;
use crate::time::Monotonic;

/// The most pairs.
const MAX_PAIRS: usize = 64;

/// The most pairs that one node may ask for.
const PAIRS_PER_PEER: usize = 16;

/// For how long a pair is kept: three of the times that it is asked for, each minute.
const LIFETIME: Duration = Duration::from_secs(180);

/// The pairs between which a relay routes packets.
#[derive(Clone, Debug, Default)]
pub struct Router {
    pairs: BTreeMap<[PublicKey; 2], Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    by: PublicKey,
    at: Monotonic,
}

impl Router {
    /// Takes up the pairs of an earlier run.
    pub fn restore(&mut self, pairs: &[[PublicKey; 2]], now: Monotonic) {
        for &pair in pairs.iter().filter(|[one, other]| one < other).take(MAX_PAIRS) {
            self.pairs.insert(pair, Asked { by: pair[0], at: now });
        }
    }

    /// Follows a node that wants packets routed between itself and another.
    ///
    /// # Errors
    /// [`Refusal::Full`] where a limit is reached.
    pub fn take(&mut self, by: PublicKey, peer: PublicKey, now: Monotonic) -> Result<(), Refusal> {
        let pair = [by.min(peer), by.max(peer)];
        let is_new = !self.pairs.contains_key(&pair);
        let asked = self.pairs.values().filter(|asked| asked.by == by).count();
        if is_new && (self.pairs.len() >= MAX_PAIRS || asked >= PAIRS_PER_PEER) {
            return Err(Refusal::Full);
        }
        self.pairs.insert(pair, Asked { by, at: now });
        Ok(())
    }

    /// Whether packets are routed between two nodes.
    pub fn serves(&self, one: PublicKey, other: PublicKey) -> bool {
        self.pairs.contains_key(&[one.min(other), one.max(other)])
    }

    /// Ends every pair of a node.
    pub fn forget(&mut self, key: PublicKey) {
        self.pairs.retain(|pair, _| !pair.contains(&key));
    }

    /// Ends the pairs that nobody asks for any more.
    pub fn handle_timeout(&mut self, now: Monotonic) {
        self.pairs.retain(|_, asked| now < asked.at + LIFETIME);
    }

    /// Returns when [`Router::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        self.pairs.values().map(|asked| asked.at + LIFETIME).min()
    }

    /// Returns the pairs, the lower key first.
    pub fn pairs(&self) -> BTreeSet<[PublicKey; 2]> {
        self.pairs.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, key};

    #[test]
    fn a_pair_lives_for_as_long_as_somebody_asks_for_it() {
        let mut router = Router::default();
        router.take(key(1), key(2), at(0)).unwrap();
        router.take(key(2), key(1), at(100)).unwrap();
        assert_eq!(router.pairs().len(), 1);
        router.handle_timeout(at(279));
        assert_eq!((router.pairs().len(), router.poll_timeout()), (1, Some(at(280))));
        router.handle_timeout(at(280));
        assert!(router.pairs().is_empty());
    }

    #[test]
    fn limits_hold_for_each_node_and_for_all() {
        let mut router = Router::default();
        let asked = |router: &mut Router, by: u8| {
            (100..200).filter(|&other| router.take(key(by), key(other), at(0)).is_ok()).count()
        };
        assert_eq!(asked(&mut router, 1), PAIRS_PER_PEER);
        assert!(router.take(key(1), key(100), at(1)).is_ok(), "it has that one");
        assert_eq!((2..9).map(|by| asked(&mut router, by)).sum::<usize>(), MAX_PAIRS - PAIRS_PER_PEER);
        router.forget(key(1));
        assert_eq!(router.pairs().len(), MAX_PAIRS - PAIRS_PER_PEER);
    }

    #[test]
    fn an_earlier_run_hands_its_pairs_on() {
        let mut router = Router::default();
        router.take(key(1), key(2), at(0)).unwrap();
        let pairs: Vec<_> = router.pairs().into_iter().collect();
        let mut next = Router::default();
        next.restore(&pairs, at(7));
        next.restore(&[[pairs[0][1], pairs[0][0]]], at(7));
        assert_eq!((next.pairs(), next.poll_timeout()), (router.pairs(), Some(at(187))));
    }
}
