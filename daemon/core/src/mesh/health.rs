//! Whether peers that have a tunnel still answer through it.
//!
//! A path that carries traffic is watched ([`crate::path`]); this is what makes the watch begin in between two readings
//! of the kernel: word that packets go out to a peer and nothing comes back. Such word is a hint and no more, so it
//! costs one ping; only the pings say whether the path is lost.
//!
//! Behind that stands the slow watch over tunnels ([`crate::health`]): this feeds it with every reading of the kernel and
//! every probe, and does what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::kernel::SESSION_LIFETIME;
use super::{Command, Mesh};
use crate::health::{Counts, Health, QUIET_AFTER, Reading, Trouble, Verdict, probe_port};
use crate::kernel::Observed;
use crate::key::PublicKey;
use crate::message::{Disco, DiscoBody, PING_PADDING_BYTES, Paired as _, Stamp};
use crate::path::{Paths, probe_bytes};
use crate::plan;
use crate::seal::OVERHEAD_BYTES;
use crate::store::Outcome;
use crate::time::{Monotonic, Now};

/// The slow watch, those in doubt of a relay's route, and what it has had the shell do.
#[derive(Default)]
pub(super) struct Tunnels {
    pub(super) health: Health,
    /// Whose routed path has missed a ping. At most one entry for each path.
    doubtful: BTreeSet<PublicKey>,
    /// Who is probed, and where.
    probed: BTreeMap<PublicKey, SocketAddr>,
}

impl Tunnels {
    /// Forgets a peer.
    pub(super) fn forget(&mut self, key: PublicKey) {
        self.health.forget(key);
        self.doubtful.remove(&key);
    }
}

impl Mesh {
    /// Makes sure of the path to a peer that leaves packets unanswered, wherever it was met.
    pub(super) fn on_unanswered(&mut self, key: PublicKey, now: Now) {
        // Where others send too, the next word comes within a second.
        if !self.settings.punching || self.just_gossiped(key, now) {
            return;
        }
        let Some(endpoint) = self.live_endpoint(key, now) else { return };
        let kind = self.kind_at(key, endpoint);
        let paths = self.reach.paths.entry(key).or_default();
        if paths.current().is_none() {
            paths.follow_kernel(endpoint, kind, now.monotonic);
        }
        paths.suspect(now.monotonic);
        self.try_relay(key, now);
    }

    /// Returns the MTU of the routes to a peer where its path carries less than our link takes.
    pub(super) fn route_mtu(&self, key: PublicKey) -> Option<u32> {
        let mtu = self.reach.paths.get(&key).and_then(Paths::mtu).map(u32::from);
        mtu.filter(|&mtu| mtu < plan::MTU)
    }

    /// Has the routes to a peer follow what its path carries.
    pub(super) fn follow_mtu(&mut self, key: PublicKey) {
        let Some(paths) = self.reach.paths.get_mut(&key) else { return };
        if paths.take_mtu_change() {
            tracing::info!(peer = %key, mtu = paths.mtu(), "its path carries packets of another length");
            self.dirty = true;
        }
    }

    /// Returns how much a ping to a peer must be padded to prove an MTU.
    pub(super) fn ping_padding(&self, key: PublicKey, id: u64, mtu: Option<u16>) -> usize {
        let (Some(mtu), Some(peer)) = (mtu, self.store.get(key)) else { return PING_PADDING_BYTES };
        // Lengths that are written in as many bytes as those of any long ping.
        let trial = probe_bytes(mtu) / 2;
        let body = DiscoBody::Ping { id, padding: vec![0; trial].into() };
        let stamp = Stamp { sequence: self.record.record().sequence, counter: self.counter + 1 };
        let disco = Disco { key: self.state.wg_pubkey, stamp, token: self.token, body };
        let length = disco.encode_proved(key, &peer.pair).len() + OVERHEAD_BYTES;
        trial + probe_bytes(mtu).saturating_sub(length)
    }

    /// Follows what a reading says of the age of sessions and of what came through them.
    pub(super) fn follow_tunnels(&mut self, observed: &Observed, now: Now) {
        let known = observed.peers.iter().filter(|(key, _)| self.store.get(**key).is_some());
        let readings = known.map(|(&key, peer)| {
            let handshake_age = peer.last_handshake.map(|at| now.wall.since(at));
            let lasts = handshake_age.is_some_and(|age| age <= SESSION_LIFETIME);
            let answered = self.reach.paths.get(&key).and_then(Paths::last_answer).map(|answer| answer.at);
            let is_recent = answered.is_some_and(|at| now.monotonic.since(at) < QUIET_AFTER);
            let reading = Reading {
                handshake_age,
                received: peer.rx_bytes,
                endpoint: peer.endpoint,
                answers_pings: lasts && is_recent,
                is_pinned: self.named.contains_key(&key),
            };
            (key, reading)
        });
        let readings: BTreeMap<_, _> = readings.collect();
        for (key, verdict) in self.reach.tunnels.health.follow(&readings, now.monotonic) {
            self.follow_verdict(key, verdict, now);
        }
        self.follow_probed(now);
    }

    /// Returns when [`Mesh::drive_health`] has something to do.
    pub(super) fn next_trial(&self) -> Option<Monotonic> {
        self.reach.tunnels.health.poll_timeout()
    }

    /// Has the kernel take again who was left out for long enough, and be read when it is time to judge.
    pub(super) fn drive_health(&mut self, now: Now) {
        let (restored, wants_reading) = self.reach.tunnels.health.handle_timeout(now.monotonic);
        for key in restored {
            self.follow_verdict(key, Verdict::Restored, now);
        }
        if wants_reading {
            self.commands.push_back(Command::Look);
        }
    }

    /// Has the kernel take again whom it has let go of, so that WireGuard begins anew.
    pub(super) fn follow_removals(&mut self, observed: &Observed, now: Now) {
        let holds = |key: PublicKey| observed.peers.contains_key(&key);
        for key in self.reach.tunnels.health.follow_removals(holds) {
            self.follow_verdict(key, Verdict::Restored, now);
        }
    }

    /// Follows a probe through a peer's tunnel.
    pub(super) fn on_probed(&mut self, key: PublicKey, answered: Option<Duration>, now: Now) {
        if !self.reach.tunnels.probed.contains_key(&key) {
            return;
        }
        let paths = self.reach.paths.get_mut(&key).filter(|paths| paths.is_routed() && answered.is_some());
        if let Some(paths) = paths {
            paths.note_kernel_answer(now.monotonic);
        }
        if let Some(verdict) = self.reach.tunnels.health.handle_probe(key, answered, now.monotonic) {
            self.follow_verdict(key, verdict, now);
        }
        self.follow_probed(now);
    }

    /// Follows what is told of a peer: a message of its own is a sign of life, and so is news that only it can sign.
    pub(super) fn note_claim(&mut self, key: PublicKey, outcome: Outcome, is_fresh: bool) {
        let is_sign = match outcome {
            Outcome::New | Outcome::Updated => true,
            Outcome::Refreshed => is_fresh,
            Outcome::Departed | Outcome::Refused(_) => false,
        };
        if is_sign && self.reach.tunnels.health.handle_sign_of_life(key) {
            tracing::info!(peer = %key, "it gives a sign of life");
            if let Some(record) = self.store.get(key).map(|peer| peer.record().record().clone()) {
                // What a peer that was given up says in gossip was nobody's.
                self.note_addresses(&record);
            }
            self.dirty = true;
        }
    }

    /// Whether the kernel is to let go of a peer for a moment, so that WireGuard begins anew.
    pub(super) fn is_let_go(&self, key: PublicKey) -> bool {
        matches!(self.reach.tunnels.health.trouble(key), Some((Trouble::Removing, _)))
    }

    /// Whether a peer's absence from the kernel is but the time until WireGuard begins anew.
    pub(super) fn is_coming_back(&self, key: PublicKey) -> bool {
        let trouble = self.reach.tunnels.health.trouble(key);
        matches!(trouble, Some((Trouble::Removing | Trouble::Restoring, _)))
    }

    /// Whether a peer is to be left out until it gives a sign of life, or for a while.
    pub(super) fn is_given_up(&self, key: PublicKey) -> bool {
        matches!(self.reach.tunnels.health.trouble(key), Some((Trouble::Offline(_) | Trouble::Evicted, _)))
    }

    /// Says what is wrong with a peer's tunnel, if anything is.
    pub(super) fn why_unwell(&self, key: PublicKey, now: Now) -> Option<String> {
        let (trouble, since) = self.reach.tunnels.health.trouble(key)?;
        let seconds = now.monotonic.since(since).as_secs();
        Some(match trouble {
            Trouble::Removing | Trouble::Restoring | Trouble::Reconnecting => {
                format!("its tunnel went stale {seconds} s ago; WireGuard begins anew")
            }
            Trouble::Offline(until) => {
                let left = until.since(now.monotonic).as_secs();
                format!("it answers no probe; it is tried again in {left} s")
            }
            Trouble::Evicted => format!("it was given up {seconds} s ago, until it gives a sign of life"),
        })
    }

    /// Returns how often tunnels were found wanting, by what.
    pub(super) const fn health_counts(&self) -> Counts {
        self.reach.tunnels.health.counts()
    }

    fn follow_verdict(&mut self, key: PublicKey, verdict: Verdict, now: Now) {
        self.dirty = true;
        match verdict {
            Verdict::Stale => {
                tracing::info!(peer = %key, "its tunnel is stale; beginning anew");
                self.handshakes.forget(key);
            }
            Verdict::Restored => drop(self.proved.remove(&key)),
            Verdict::Offline => {
                tracing::info!(peer = %key, "it answers no probe; leaving it out for half a minute");
                self.handshakes.forget(key);
            }
            Verdict::Evicted => {
                tracing::info!(peer = %key, "its tunnel stays stale; giving it up");
                self.forget(key);
                self.reach.tunnels.health.evict(key, now.monotonic);
                self.seek(key, now);
            }
            Verdict::Recovered => tracing::info!(peer = %key, "its tunnel works again"),
        }
    }

    /// Has a peer probed over a path that is routed as soon as a ping is missed there. Both ends' networks hang on that path,
    /// so it must not be left for a daemon that hangs while its kernel goes on.
    pub(super) fn follow_doubt(&mut self, key: PublicKey, now: Now) {
        let is_doubtful = |paths: &Paths| paths.is_routed() && paths.is_in_doubt();
        let doubt = self.reach.paths.get(&key).is_some_and(is_doubtful);
        let has_changed = match doubt {
            true => self.reach.tunnels.doubtful.insert(key),
            false => self.reach.tunnels.doubtful.remove(&key),
        };
        if has_changed {
            self.follow_probed(now);
        }
    }

    /// Has the shell probe whoever is in doubt now.
    fn follow_probed(&mut self, now: Now) {
        let doubtful = self.reach.tunnels.doubtful.iter().copied();
        let keys = self.reach.tunnels.health.probed(now.monotonic).chain(doubtful);
        let probed: BTreeMap<_, _> = keys.filter_map(|key| Some((key, self.probe_address(key)?))).collect();
        if self.reach.tunnels.probed != probed {
            self.reach.tunnels.probed.clone_from(&probed);
            self.commands.push_back(Command::Probe(probed));
        }
    }

    fn probe_address(&self, key: PublicKey) -> Option<SocketAddr> {
        let record = self.store.get(key)?.record().record();
        Some(SocketAddr::new(self.inner_ip(key)?, probe_port(record.listen_port)))
    }
}
