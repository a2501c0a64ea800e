//! Peers that the operator names: always wanted, never forgotten, and greeted where they are said to be until their
//! record is known.

use std::net::SocketAddr;
use std::time::Duration;

use super::Mesh;
use crate::contact::{HelloPlan, Place, Via};
use crate::key::PublicKey;
use crate::message::Phase;
use crate::path::Origin;
use crate::time::{Monotonic, Now};

/// The wait after the first greeting that was not answered; doubled after each next one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait between two greetings.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A peer that the operator named.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    /// Where its WireGuard is said to answer.
    endpoint: Option<SocketAddr>,
    /// When to greet it again, while its record is unknown.
    greet_at: Monotonic,
    greetings: u32,
}

impl Mesh {
    pub(super) fn add_named(&mut self, key: PublicKey, endpoint: Option<SocketAddr>, now: Now) {
        if key == self.state.wg_pubkey {
            return;
        }
        self.welcome(key, now);
        self.named.insert(key, Named { endpoint, greet_at: now.monotonic, greetings: 0 });
        self.store.pin(key);
        self.add_named_candidate(key, now.monotonic);
        self.seek(key, now);
    }

    /// Takes a peer from others again that was removed.
    pub(super) fn welcome(&mut self, key: PublicKey, now: Now) {
        if self.book.welcome(key) {
            self.store.readmit(key);
            self.save_book_soon(now);
        }
    }

    /// Takes back the operator's word for a peer, which is a peer like any other from then on.
    pub(super) fn release_named(&mut self, key: PublicKey) {
        self.named.remove(&key);
        self.store.unpin(key);
    }

    /// Forgets a peer and takes it from nobody any more, until the operator names it again (M-5).
    pub(super) fn remove_peer(&mut self, key: PublicKey, now: Now) {
        self.named.remove(&key);
        self.book.remove(key);
        self.store.refuse(key);
        self.save_book_soon(now);
        // Of one that an earlier run has left in the kernel nothing is known besides.
        self.dirty |= self.orphans.remove(&key).is_some();
        if let Some(exchange) = &mut self.exchange {
            exchange.disconnect(key, now.monotonic);
        }
        if self.store.remove(key, now.monotonic) {
            tracing::info!(peer = %key, "removed a peer");
            self.forget(key);
            self.on_peers_changed(now);
        }
    }

    /// Whether the operator said that a peer is at this address.
    pub(super) fn is_named_at(&self, key: PublicKey, address: SocketAddr) -> bool {
        self.named.get(&key).is_some_and(|named| named.endpoint == Some(address))
    }

    /// Adds what the operator said of a peer to what is tried.
    pub(super) fn add_named_candidate(&mut self, key: PublicKey, now: Monotonic) {
        if let Some(endpoint) = self.named.get(&key).and_then(|named| named.endpoint)
            && self.store.get(key).is_some()
        {
            self.add_candidate(key, endpoint, Origin::Static, now);
        }
    }

    /// Greets the named peers that are still strangers.
    pub(super) fn greet_named(&mut self, now: Now) {
        let due: Vec<_> = self
            .named
            .iter()
            .filter(|(key, named)| self.store.get(**key).is_none() && named.greet_at <= now.monotonic)
            .filter_map(|(&key, named)| Some((key, named.endpoint?)))
            .collect();
        for (key, address) in due {
            if let Some(named) = self.named.get_mut(&key) {
                let wait = FIRST_WAIT.saturating_mul(1 << named.greetings.min(8)).min(LONGEST_WAIT);
                named.greetings += 1;
                named.greet_at = now.monotonic + wait;
            }
            let place = Place { via: Via::WireGuard, address };
            let plan = HelloPlan {
                place,
                echo: None,
                phase: Phase::Heard,
                seen: None,
                ask: true,
                with_record: true,
            };
            self.send_hello(key, &self.pair_with(key), None, plan, now);
        }
    }

    /// Returns when [`Mesh::greet_named`] has something to do.
    pub(super) fn next_greeting(&self) -> Option<Monotonic> {
        let waiting = self
            .named
            .iter()
            .filter(|(key, named)| named.endpoint.is_some() && self.store.get(**key).is_none());
        waiting.map(|(_, named)| named.greet_at).min()
    }
}
