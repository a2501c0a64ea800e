//! What finds peers, and how each of it does: one line per source for `wgmesh status`. A source that fails says so here and
//! costs the others nothing (W-X43, W-X44).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::Mesh;
use crate::exchange::{Exchange, TargetState, TargetView};
use crate::status::{Dial, Session, ShutOut, Source, SourceState};
use crate::store;
use crate::time::{Monotonic, Now};

impl Mesh {
    pub(super) fn source_status(&self, now: Now) -> Vec<Source> {
        let sources = [
            self.lan_status(now),
            self.manual_status(),
            self.bootstrap_status(now),
            self.exchange_status(now),
            self.dht_status(now),
            self.gossip_status(now),
        ];
        sources.into_iter().flatten().chain([self.cache_status(now)]).collect()
    }

    /// Returns the sessions, for people.
    pub(super) fn session_status(&self, now: Now) -> Vec<Session> {
        let sessions = self.exchange.iter().flat_map(Exchange::sessions);
        sessions
            .map(|session| Session {
                public_key: session.key,
                remote: session.remote,
                dialed: session.dialed,
                age_s: now.monotonic.since(session.since).as_secs(),
                rtt_ms: session.round_trip.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
            })
            .collect()
    }

    /// Returns what became of the last attempt at each address that is dialed.
    pub(super) fn dial_status(&self, now: Now) -> Vec<Dial> {
        let Some(exchange) = &self.exchange else { return Vec::new() };
        let dial = |(address, view): (SocketAddr, &TargetView)| Dial {
            address,
            names: self.names_of(address),
            public_key: view.node(),
            connected: view.node().is_some_and(|key| exchange.is_connected(key)),
            tried_s: view.tried.map(|(begun, _)| now.monotonic.since(begun).as_secs()),
            took_ms: view
                .tried
                .and_then(|(_, took)| took)
                .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            failures: view.failures,
            error: view.error.clone(),
        };
        exchange.targets().map(dial).collect()
    }

    fn names_of(&self, address: SocketAddr) -> Vec<String> {
        let there = self.bootstrap.iter().filter(|seed| seed.target.address == address);
        there.filter_map(|seed| seed.name.clone()).collect()
    }

    /// Returns who is shut out, and for how long.
    pub(super) fn shut_out_status(&self, now: Now) -> Vec<ShutOut> {
        let banned = self
            .book
            .bans(now.wall)
            .map(|(public_key, left)| ShutOut { public_key, left_s: Some(left.as_secs()) });
        let removed = self.book.removed().map(|public_key| ShutOut { public_key, left_s: None });
        banned.chain(removed).collect()
    }

    fn lan_status(&self, now: Now) -> Option<Source> {
        if !self.settings.lan {
            return None;
        }
        let links: BTreeSet<&str> =
            self.underlay.iter().filter(|link| link.multicast).map(|link| link.name.as_str()).collect();
        let last = self.announcing.last_heard.max(self.announcing.last_announce);
        let (state, error) = match (links.is_empty(), last) {
            (true, _) => (SourceState::Failing, Some("no link that is up takes multicast".to_owned())),
            (false, None) => (SourceState::Starting, None),
            (false, Some(_)) => (SourceState::Running, None),
        };
        Some(source(store::Source::Lan.name(), state, age(last, now), error))
    }

    /// The operator's own word: whoever is named and has never told of itself is told of here.
    fn manual_status(&self) -> Option<Source> {
        let unknown = self.named.keys().find(|key| self.store.get(**key).is_none());
        let (state, error) = match unknown {
            None if self.named.is_empty() => return None,
            None => (SourceState::Running, None),
            Some(key) => (SourceState::Starting, Some(format!("{} has not told of itself yet", key.short()))),
        };
        Some(source("manual", state, None, error))
    }

    fn bootstrap_status(&self, now: Now) -> Option<Source> {
        let exchange = self.exchange.as_ref().filter(|_| !self.bootstrap.is_empty())?;
        let is_seed = |address| self.bootstrap.iter().any(|seed| seed.target.address == address);
        let seeds = || exchange.targets().filter(|(address, _)| is_seed(*address));
        let is_met = |view: &TargetView| view.node().is_some_and(|key| exchange.is_connected(key));
        let error = seeds().find_map(|(address, view)| Some(format!("{address}: {}", view.error.as_ref()?)));
        let state = match () {
            () if seeds().any(|(_, view)| is_met(view)) => SourceState::Running,
            () if error.is_some() => SourceState::Failing,
            () => SourceState::Starting,
        };
        let last_ok_s = if state == SourceState::Running { Some(0) } else { age(self.last_session, now) };
        Some(source("bootstrap", state, last_ok_s, error))
    }

    /// The exchange works where it has a session, or where it needs none.
    fn exchange_status(&self, now: Now) -> Option<Source> {
        let exchange = self.exchange.as_ref()?;
        let open = |view: &TargetView| matches!(view.state, TargetState::Open(_));
        let views = || exchange.targets().map(|(_, view)| view);
        let error = views().find_map(|view| view.error.clone());
        let (state, error) = match () {
            () if exchange.sessions().next().is_some() || views().next().is_none() => {
                (SourceState::Running, None)
            }
            () if error.is_some() && !views().any(open) => (SourceState::Failing, error),
            () => (SourceState::Starting, None),
        };
        Some(source("exchange", state, age(self.last_session, now), error))
    }

    /// What was remembered from an earlier run.
    fn cache_status(&self, now: Now) -> Source {
        let state = SourceState::Running;
        source(
            store::Source::Cache.name(),
            state,
            age(Some(self.started).filter(|_| self.restored > 0), now),
            None,
        )
    }
}

fn source(name: &str, state: SourceState, last_ok_s: Option<u64>, error: Option<String>) -> Source {
    Source { name: name.to_owned(), state, last_ok_s, error, dht: None }
}

fn age(at: Option<Monotonic>, now: Now) -> Option<u64> {
    at.map(|at| now.monotonic.since(at).as_secs())
}
