//! Relays for peers that no packet reaches otherwise: whom to ask, and when to leave one.
//!
//! A path through a relay is a candidate like any other and proved by the same pings ([`crate::path`]). This decides when
//! one is looked for ([`Paths::wants_relay_at`]), chooses it ([`Seeker`]), and keeps this node bound to it. The node with the
//! lower key chooses; the other asks for it in an offer, and takes up what the relay tells it.
//!
//! A relay that answers pings and drops the rest, or that floods, is found out by [`super::trials`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::trials::Trials;
use super::{Command, Mesh, Recipient, Transmit};
use crate::config::RelaySettings;
use crate::contact::Via;
use crate::key::PublicKey;
use crate::message::{Bind, DiscoBody, Offer, Paired as _};
use crate::path::{Kind, Origin, Paths, is_quicker};
use crate::relay::{Fault, Limits, MAX_OFFERED, Reached, Refusal, Router, Seeker, Server, Step};
use crate::seal;
use crate::time::{Monotonic, Now};

/// The most pairs that a relay serves for one node that asks.
const PAIRS_PER_PEER: usize = 64;

/// How far away a relay counts that was never pinged: on a common link, or anywhere.
const ON_LINK: Duration = Duration::from_millis(1);
const ANYWHERE: Duration = Duration::from_secs(1);

/// For how long it is taken for granted; a little less than lies between two binds, of which each asks.
const MEASURED_FOR: Duration = Duration::from_secs(50);

/// What a node knows of relays: those that it uses, and the pairs that it is one for.
pub(super) struct Relays {
    /// At most one for each peer.
    pub(super) seekers: BTreeMap<PublicKey, Seeker>,
    pub(super) trials: Trials,
    /// How often one was left.
    pub(super) left: BTreeMap<Fault, u64>,
    pub(super) server: Server,
    /// The relay that routes to each peer for which one does or is tried; follows `seekers`.
    pub(super) via: BTreeMap<PublicKey, PublicKey>,
    pub(super) router: Router,
    /// The pairs of `router` that the plan has.
    pub(super) routed_pairs: BTreeSet<[PublicKey; 2]>,
}

impl Relays {
    pub(super) fn new(settings: &RelaySettings) -> Self {
        let limits = Limits {
            pairs: settings.max_pairs,
            pairs_per_peer: PAIRS_PER_PEER.min(settings.max_pairs),
            ports: super::kernel::DYNAMIC_PORTS,
        };
        Self {
            seekers: BTreeMap::new(),
            trials: Trials::default(),
            left: BTreeMap::new(),
            server: Server::new(limits),
            via: BTreeMap::new(),
            router: Router::default(),
            routed_pairs: BTreeSet::new(),
        }
    }

    /// Returns when a pair that this node serves is to be forgotten.
    pub(super) fn next_expiry(&self) -> Option<Monotonic> {
        self.server.poll_timeout().into_iter().chain(self.router.poll_timeout()).min()
    }

    /// Lets go of everything that concerns a node.
    pub(super) fn forget(&mut self, key: PublicKey) {
        self.seekers.remove(&key);
        self.trials.forget(key);
        self.server.forget(key);
        self.router.forget(key);
    }
}

impl Mesh {
    /// Does what is due for the relays of every peer.
    pub(super) fn drive_relays(&mut self, now: Now) {
        self.drive_trials(now);
        let due = |(key, seeker): &(&PublicKey, &Seeker)| {
            self.relay_timeout(**key, seeker).is_some_and(|at| at <= now.monotonic)
        };
        let keys: Vec<_> = self.relays.seekers.iter().filter(due).map(|(&key, _)| key).collect();
        for key in keys {
            self.drive_relay(key, now);
        }
        self.follow_routed();
    }

    /// Whether relays are used where there is no direct path.
    pub(super) const fn uses_relays(&self) -> bool {
        self.settings.relay.is_wanted() && self.settings.punching
    }

    /// Returns when a relay wants something done.
    pub(super) fn next_relay_step(&self) -> Option<Monotonic> {
        let seekers = self.relays.seekers.iter().filter(|_| self.uses_relays());
        let steps = seekers.filter_map(|(&key, seeker)| self.relay_timeout(key, seeker));
        steps.chain(self.relays.trials.poll_timeout()).min()
    }

    fn relay_timeout(&self, key: PublicKey, seeker: &Seeker) -> Option<Monotonic> {
        let wanted = self.reach.paths.get(&key).and_then(Paths::wants_relay_at);
        let wanted = wanted.filter(|_| !seeker.is_under_way() && !self.is_met_on_link(key));
        let turn = wanted.map(|at| seeker.next_turn().map_or(at, |turn| turn.max(at)));
        turn.into_iter().chain(seeker.poll_timeout()).min()
    }

    /// Does what is due for the relays of one peer.
    pub(super) fn drive_relay(&mut self, key: PublicKey, now: Now) {
        if !self.uses_relays() {
            return;
        }
        self.follow_use(key, now.monotonic);
        self.come_back(key, now);
        while let Some(step) =
            self.relays.seekers.get_mut(&key).and_then(|seeker| seeker.poll_step(now.monotonic))
        {
            self.take_step(key, step, now);
        }
        let wanted_at = self.reach.paths.get(&key).and_then(Paths::wants_relay_at);
        match wanted_at.filter(|_| !self.is_met_on_link(key)) {
            Some(at) if at <= now.monotonic => self.seek_relay(key, now),
            // Its time will come.
            Some(_) => drop(self.relays.seekers.entry(key).or_default()),
            None if self.relays.seekers.get(&key).is_some_and(|seeker| !seeker.is_under_way()) => {
                self.relays.seekers.remove(&key);
            }
            None => {}
        }
    }

    /// Has the pair's lower key choose a relay if none is under way; the higher one asks for it in an offer.
    pub(super) fn seek_relay(&mut self, key: PublicKey, now: Now) {
        if self.relays.seekers.entry(key).or_default().is_under_way() {
            return;
        }
        let is_chooser = self.state.wg_pubkey < key;
        if let Some(relay) = self.choose_relay(key, now).filter(|_| is_chooser) {
            self.ask_relay(key, relay, now);
        } else if let Some(seeker) = self.relays.seekers.get_mut(&key)
            && seeker.take_turn(now.monotonic)
        {
            self.send_offers(key, now);
        }
    }

    /// Returns the relay that is best for a peer, of those that both reach and that have not just failed.
    pub(super) fn choose_relay(&self, key: PublicKey, now: Now) -> Option<PublicKey> {
        let ours = self.reached_relays(key, now);
        let preferred = self.private_relays(key, &ours, now);
        let pair = [self.state.wg_pubkey, key];
        self.relays.seekers.get(&key)?.choose(&ours, &preferred, pair, now.monotonic)
    }

    fn ask_relay(&mut self, key: PublicKey, relay: PublicKey, now: Now) {
        let Some(seeker) = self.relays.seekers.get_mut(&key) else { return };
        if seeker.ask(relay, now.monotonic) {
            tracing::debug!(peer = %key, %relay, "asking for a relay");
            while let Some(step) =
                self.relays.seekers.get_mut(&key).and_then(|one| one.poll_step(now.monotonic))
            {
                self.take_step(key, step, now);
            }
        }
    }

    fn take_step(&mut self, key: PublicKey, step: Step, now: Now) {
        match step {
            Step::Ask(relay) if self.is_to_be_routed(key) => self.ask_to_route(key, relay, now),
            Step::Ask(relay) => {
                if let Some(endpoint) = self.direct_endpoint(relay, now) {
                    self.send_disco(relay, endpoint, DiscoBody::Allocate { peer: key }, now);
                }
            }
            Step::Bind(relay, address) if self.is_inner(address.ip()) => self.ask_to_route(key, relay, now),
            Step::Bind(relay, address) => {
                self.bind_to(relay, address, now);
                self.measure_relays(key, now);
                self.compare_relays(key, relay, now);
            }
            Step::Failed(relay, address) => {
                tracing::debug!(peer = %key, %relay, "a relay does not lead to the peer");
                self.drop_relay_path(key, address);
            }
            Step::Release(relay, address) => {
                tracing::debug!(peer = %key, %relay, "a relay is not needed any more");
                self.drop_relay_path(key, Some(address));
            }
        }
    }

    /// Tells the relay behind an address of a peer that it need pass on nothing more: a better path works, and only what the
    /// relay still passes on keeps both kernels from it.
    pub(super) fn release_relay(&mut self, key: PublicKey, address: SocketAddr, now: Now) {
        let Some(relay) = self.relay_at(key, address) else { return };
        let Some(endpoint) = self.direct_endpoint(relay, now) else { return };
        tracing::debug!(peer = %key, %relay, "releasing a relay that keeps the tunnel from a better path");
        self.send_disco(relay, endpoint, DiscoBody::Release { peer: key }, now);
    }

    /// Follows a relay that says that a peer needs it no more. Only one end may notice that the relay leads both kernels to and
    /// fro, as each looks at its own now and then.
    pub(super) fn on_released(&mut self, relay: PublicKey, peer: PublicKey, agreed: bool, now: Now) {
        if agreed {
            let address = self.relays.seekers.get_mut(&peer).and_then(|seeker| seeker.leave(relay));
            self.drop_relay_path(peer, address);
        } else if let Some(paths) = self.reach.paths.get(&peer)
            && let Some(current) = paths.current().filter(|_| paths.works())
            && self.relay_at(peer, current) != Some(relay)
            && let Some(endpoint) = self.direct_endpoint(relay, now)
        {
            self.send_disco(relay, endpoint, DiscoBody::Release { peer }, now);
        }
    }

    fn drop_relay_path(&mut self, key: PublicKey, address: Option<SocketAddr>) {
        if let (Some(paths), Some(address)) = (self.reach.paths.get_mut(&key), address) {
            paths.remove(address);
        }
    }

    /// Has the relays pinged that both reach: what was measured long ago tells little.
    fn measure_relays(&mut self, key: PublicKey, now: Now) {
        let theirs = self.relays.seekers.get(&key).into_iter().flat_map(Seeker::reached_by_peer);
        for relay in theirs {
            if let Some(paths) = self.reach.paths.get_mut(&relay)
                && paths.last_answer().is_none_or(|last| now.monotonic.since(last.at) >= MEASURED_FOR)
            {
                paths.verify(now.monotonic);
            }
        }
    }

    /// Tries another relay if it is much nearer than the one in use. The pings through both decide.
    fn compare_relays(&mut self, key: PublicKey, relay: PublicKey, now: Now) {
        let ours = self.reached_relays(key, now);
        let other = self.choose_relay(key, now).filter(|_| self.state.wg_pubkey < key);
        let (Some(other), Some(seeker)) = (other, self.relays.seekers.get(&key)) else { return };
        let distances = [other, relay].map(|relay| seeker.distance(relay, &ours));
        if let [Some(one), Some(current)] = distances
            && is_quicker(one, current)
        {
            self.ask_relay(key, other, now);
        }
    }

    /// Tells the relay behind an address where this node is if it may not know: a ping there is still unanswered, the one
    /// that is about to be sent apart, or it never answered.
    pub(super) fn bind_before_ping(&mut self, key: PublicKey, address: SocketAddr, now: Now) {
        let candidate = self.reach.paths.get(&key).and_then(|paths| paths.candidate(address));
        let is_unsure = candidate.is_some_and(|one| match one.kind {
            Kind::Relay => one.answered.is_none() || one.unanswered() > 1,
            // The relay has just been asked, and both ends' kernels take their time.
            Kind::Routed => one.unanswered() > 2,
            Kind::Lan | Kind::Ipv6 | Kind::Ipv4 => false,
        });
        let relay = self.relays.seekers.get(&key).and_then(|seeker| seeker.relay_at(address));
        match relay.filter(|_| is_unsure) {
            Some(relay) if self.is_inner(address.ip()) => self.ask_to_route(key, relay, now),
            Some(relay) => self.bind_to(relay, address, now),
            None => {}
        }
    }

    /// Tells a relay where this node is.
    pub(super) fn bind_to(&mut self, relay: PublicKey, address: SocketAddr, now: Now) {
        let Some(peer) = self.store.get(relay) else { return };
        let pair = peer.pair.clone();
        let bind = Bind { key: self.state.wg_pubkey, stamp: self.next_stamp(), port: address.port() };
        let content = bind.encode_proved(relay, &pair);
        let bytes = seal::seal(&self.keys, seal::Kind::Bind, &content, now, &mut self.rng);
        let to = Recipient::Node(address);
        self.commands.push_back(Command::Send(Transmit { via: Via::WireGuard, to, bytes }));
    }

    /// Follows what a peer says of the relays that it reaches.
    pub(super) fn hear_relays(&mut self, key: PublicKey, offer: &Offer, now: Now) {
        if !self.uses_relays() || self.is_meeting_on_link(key, now) {
            return;
        }
        let works = self.reach.paths.get(&key).is_some_and(Paths::works);
        let seeker = self.relays.seekers.entry(key).or_default();
        seeker.hear(&offer.relays, offer.routed);
        self.try_suspect(key, now);
        if !offer.wants_relay {
            return;
        }
        if !works {
            return self.seek_relay(key, now);
        }
        // What passes packets this way may drop what goes that way: the peer has left it, and names it no more.
        let relay = self.sealed_path(key).and_then(|address| self.relay_at(key, address));
        let is_left = relay.is_some_and(|relay| offer.relays.iter().all(|one| one.relay != relay));
        if is_left && self.look_for_another_relay(key, now) {
            self.leave_relay(key, Fault::Unwanted, now);
        }
    }

    /// Notes that a peer was just told which relays this node reaches.
    pub(super) fn note_asked(&mut self, key: PublicKey, now: Now) {
        if self.wants_relay(key, now) {
            self.relays.seekers.entry(key).or_default().take_turn(now.monotonic);
        }
    }

    /// Whether a peer should help to a relay.
    pub(super) fn wants_relay(&self, key: PublicKey, now: Now) -> bool {
        let wanted_at = self.reach.paths.get(&key).and_then(Paths::wants_relay_at);
        self.uses_relays() && wanted_at.is_some_and(|at| at <= now.monotonic)
    }

    /// Follows a relay that says that it has a port for this node and a peer.
    pub(super) fn on_allocated(
        &mut self,
        relay: PublicKey,
        peer: PublicKey,
        port: u16,
        from: SocketAddr,
        now: Now,
    ) {
        let is_relay = self.store.get(relay).is_some_and(|peer| peer.record().record().relay);
        let is_fit = is_relay && self.direct_endpoint(relay, now).is_some() && self.store.get(peer).is_some();
        if !self.uses_relays() || !is_fit || port == 0 {
            return self.drop_input("unasked", from);
        }
        let unasked = peer < self.state.wg_pubkey;
        let address = SocketAddr::new(from.ip(), port);
        let seeker = self.relays.seekers.entry(peer).or_default();
        if !seeker.handle_allocated(relay, address, unasked, now.monotonic) {
            return;
        }
        self.add_candidate(peer, address, Origin::Relay, now.monotonic);
        if let Some(paths) = self.reach.paths.get_mut(&peer) {
            paths.compare(address, now.monotonic);
        }
        // Each ping that is not answered takes a bind along.
        self.drive(peer, now);
    }

    /// Follows a relay that does not want to be one.
    pub(super) fn on_refused(&mut self, relay: PublicKey, peer: PublicKey, refusal: Refusal, now: Now) {
        let Some(seeker) = self.relays.seekers.get_mut(&peer) else { return };
        tracing::debug!(%peer, %relay, ?refusal, "a relay refuses");
        let address = seeker.fail(relay, false, now.monotonic);
        self.drop_relay_path(peer, address);
        self.drive_relay(peer, now);
    }

    /// Follows the loss of the path in use: a relay that it led through is left, and one that is held has to show anew that
    /// it leads anywhere.
    pub(super) fn on_path_lost(&mut self, key: PublicKey, now: Now) {
        self.fail_relay_in_use(key, Fault::Dead, now);
        if let Some(seeker) = self.relays.seekers.get_mut(&key) {
            seeker.doubt(now.monotonic);
        }
    }

    /// Leaves the relay in use to a peer, and counts it.
    pub(super) fn fail_relay_in_use(&mut self, key: PublicKey, fault: Fault, now: Now) {
        let Some(address) = self.reach.paths.get(&key).and_then(Paths::current) else { return };
        let Some(seeker) = self.relays.seekers.get_mut(&key) else { return };
        let Some(relay) = seeker.relay_at(address) else { return };
        seeker.fail(relay, fault.is_grave(), now.monotonic);
        *self.relays.left.entry(fault).or_default() += 1;
        tracing::info!(peer = %key, %relay, why = fault.name(), "leaving a relay");
        // Whether it is dead, before anybody else is sent there.
        if let Some(paths) = self.reach.paths.get_mut(&relay) {
            paths.verify(now.monotonic);
        }
    }

    /// Returns the relays that this node reaches by itself, and how far away each is.
    pub(super) fn reached_relays(&self, except: PublicKey, now: Now) -> BTreeMap<PublicKey, Duration> {
        let relays = self.store.iter().filter(|(key, peer)| *key != except && peer.record().record().relay);
        relays.filter_map(|(key, _)| Some((key, self.direct_distance(key, now)?))).collect()
    }

    /// Returns which relays to name in an offer: the nearest, or those that a private pair prefers, and as many that all pairs
    /// of nodes that reach them find in the same order.
    pub(super) fn offered_relays(&self, key: PublicKey, now: Now) -> Vec<Reached> {
        if !self.uses_relays() {
            return Vec::new();
        }
        let seeker = self.relays.seekers.get(&key);
        let mut reached = self.reached_relays(key, now);
        let preferred = self.private_relays(key, &reached, now);
        reached.retain(|relay, _| !seeker.is_some_and(|seeker| seeker.is_resting(*relay, now.monotonic)));
        let mut reached: Vec<_> = reached.into_iter().collect();
        reached.sort_unstable_by_key(|&(relay, rtt)| (!preferred.contains(&relay), rtt, relay));
        let turn = self.state.wg_pubkey.as_bytes()[0].wrapping_add(key.as_bytes()[0]);
        if let Some(rest) = reached.get_mut(MAX_OFFERED / 2..) {
            rest.sort_unstable_by_key(|(relay, _)| relay.as_bytes()[0].wrapping_sub(turn));
        }
        reached.truncate(MAX_OFFERED);
        reached.into_iter().map(|(relay, rtt)| Reached::new(relay, rtt)).collect()
    }

    /// Returns what kind of path leads to a peer at an address.
    pub(super) fn kind_at(&self, key: PublicKey, address: SocketAddr) -> Kind {
        match self.relay_at(key, address) {
            _ if self.is_inner(address.ip()) => Kind::Routed,
            Some(_) => Kind::Relay,
            None => self.kind_of(address.ip()),
        }
    }

    /// Returns the relay that is behind an address of a peer. After a restart nobody knows of it any more; then it is the
    /// node that is itself at that address.
    pub(super) fn relay_at(&self, key: PublicKey, address: SocketAddr) -> Option<PublicKey> {
        let held = self.relays.seekers.get(&key).and_then(|seeker| seeker.relay_at(address));
        if held.is_some() {
            return held;
        }
        let known = self.reach.paths.get(&key).and_then(|paths| paths.candidate(address));
        match known {
            Some(candidate) if !candidate.kind.is_relayed() => None,
            Some(_) | None => self.relay_on(key, address.ip()),
        }
    }

    fn relay_on(&self, key: PublicKey, address: IpAddr) -> Option<PublicKey> {
        let names = |key: PublicKey| {
            let candidates = self.store.get(key).map(|peer| &peer.record().record().candidates);
            candidates.is_some_and(|candidates| candidates.iter().any(|one| one.ip() == address))
        };
        let relays = self.store.iter().filter(|(other, peer)| *other != key && peer.record().record().relay);
        let found = relays.map(|(other, _)| other).find(|&other| names(other));
        found.filter(|_| !names(key))
    }

    /// Returns where a peer's WireGuard answers now, if no relay is between; its tunnel may still be coming up.
    pub(super) fn direct_endpoint(&self, key: PublicKey, now: Now) -> Option<SocketAddr> {
        let proved = || self.reach.paths.get(&key)?.just_proved(now.monotonic);
        let endpoint = self.live_endpoint(key, now).or_else(proved)?;
        let is_lost =
            self.reach.paths.get(&key).is_some_and(|paths| paths.current().is_some() && !paths.works());
        (!is_lost && self.relay_at(key, endpoint).is_none()).then_some(endpoint)
    }

    fn direct_distance(&self, key: PublicKey, now: Now) -> Option<Duration> {
        let endpoint = self.direct_endpoint(key, now)?;
        let tried = self.reach.paths.get(&key).and_then(|paths| paths.candidate(endpoint));
        let unknown = if self.is_met_on_link(key) { ON_LINK } else { ANYWHERE };
        Some(tried.and_then(|candidate| candidate.rtt).unwrap_or(unknown))
    }

    /// Follows the path in use: what leads through a relay keeps it.
    fn follow_use(&mut self, key: PublicKey, now: Monotonic) {
        let paths = self.reach.paths.get(&key).filter(|paths| paths.works() && paths.is_relayed());
        let current = paths.and_then(Paths::current);
        if let Some(address) = current
            && let Some(relay) = self.relay_at(key, address)
        {
            self.relays.seekers.entry(key).or_default().adopt(relay, address, now);
        }
        if let Some(seeker) = self.relays.seekers.get_mut(&key) {
            seeker.note_use(current, now);
        }
    }
}
