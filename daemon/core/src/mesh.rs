//! One node's whole behaviour: events in, commands out.
//!
//! [`Mesh`] decides everything and does nothing: it has no socket, no file, no clock and no randomness but its
//! seed. The shell hands it every [`Event`] with the time, then carries out every [`Command`] in order, and calls
//! again at [`Mesh::poll_timeout`]. Late, repeated and reordered events are harmless.
//!
//! Invariants:
//! - What is sent about this node was saved first, so sequence numbers never go back.
//! - A hello says `Installed` only after the kernel was seen to hold the peer.
//! - Input from the network is a counted drop at worst; it never stops the node.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::address::{MeshAddresses, MeshSubnets, derive_mesh_addresses};
use crate::bucket::{AddressBuckets, TokenBucket};
use crate::config::Settings;
use crate::contact::{Contact, Place};
use crate::derive::MeshKeys;
use crate::exchange::Exchange;
use crate::identity::NodeState;
use crate::kernel::{Desired, Observed, ObservedPeer, Underlay};
use crate::key::PublicKey;
use crate::message::{Stamp, Token};
use crate::nat::Nat;
use crate::path::{Paths, Targets};
use crate::record::SignedRecord;
use crate::seal::Opener;
use crate::standing::Book;
use crate::store::PeerStore;
use crate::stun::Stun;
use crate::time::{Monotonic, Now};
use crate::timed::Timed;

mod candidates;
mod clock;
mod dandelion;
mod dht;
mod events;
mod explain;
mod gossip;
mod handshakes;
mod health;
mod kernel;
mod lag;
mod lan;
mod manual;
mod memory;
mod nat;
mod paths;
mod planning;
mod record;
mod relays;
mod rendezvous;
mod routed;
mod serving;
mod sessions;
mod sources;
mod status;
mod trials;

pub use crate::contact::Via;
pub use events::{
    BindReceived, Command, Event, KernelReport, KernelTrouble, Recipient, Seed, Stop, TimeoutReason, Transmit,
};
pub use kernel::REPORT_INTERVAL;
pub use lan::ANNOUNCE_INTERVAL;
pub use record::{RECORD_LIFETIME, RECORD_REFRESH};
use record::{Whereabouts, sign_record};

/// One node.
pub struct Mesh {
    settings: Settings,
    keys: MeshKeys,
    subnets: MeshSubnets,
    state: NodeState,
    listen_port: u16,
    port_moves: u16,
    record: SignedRecord,
    token: Token,
    counter: u64,
    rng: ChaCha8Rng,
    opener: Opener,
    leads: TokenBucket,
    /// What strangers may cost, by where they seem to be.
    strangers: AddressBuckets,
    store: PeerStore,
    contacts: Timed<PublicKey, Contact>,
    underlay: Vec<Underlay>,
    reach: Reaching,
    dht: Option<dht::DhtSource>,
    relays: relays::Relays,
    exchange: Option<Exchange>,
    talk: Option<gossip::Talk>,
    exchange_port: Option<u16>,
    bootstrap: Vec<Seed>,
    targets_stale: bool,
    book: Book,
    /// When a session was last seen to work.
    last_session: Option<Monotonic>,
    /// How many peers an earlier run has left.
    restored: usize,
    named: BTreeMap<PublicKey, manual::Named>,
    announcing: Announcing,
    observed: Option<Arc<Observed>>,
    orphans: BTreeMap<PublicKey, ObservedPeer>,
    journeys: explain::Journeys,
    clock: clock::Clock,
    lag: lag::Lag,
    proved: BTreeMap<PublicKey, SocketAddr>,
    handshakes: handshakes::Handshakes,
    planned: Planned,
    drops: BTreeMap<&'static str, u64>,
    started: Monotonic,
    signed_at: Monotonic,
    refresh_at: Monotonic,
    save_cache_at: Monotonic,
    replan_at: Option<Monotonic>,
    dirty: bool,
    stopped: bool,
    commands: VecDeque<Command>,
}

/// What the kernel was asked to hold, and what became of it.
#[derive(Default)]
struct Planned {
    generation: u64,
    /// The newest generation that the applier has reported on, well or badly.
    answered: u64,
    /// The newest generation that the kernel was seen to hold.
    applied: u64,
    desired: Option<Arc<Desired>>,
    trouble: Option<KernelTrouble>,
    /// Whether lower keys have all IPv4 addresses of the mesh.
    has_no_address: bool,
}

/// When this node makes itself known on its links.
#[derive(Default)]
struct Announcing {
    /// How many announces were made since the start or the last change.
    since_change: u32,
    /// Whether the record was signed anew, and says what it said before.
    is_renewed: bool,
    last_announce: Option<Monotonic>,
    last_heard: Option<Monotonic>,
    announce_at: Option<Monotonic>,
}

/// What a node knows of the ways to its peers through WireGuard's port.
#[derive(Default)]
struct Reaching {
    stun: Stun,
    /// Where each peer sees WireGuard's port, by its last pong.
    seen_at: BTreeMap<PublicKey, SocketAddr>,
    /// Where each peer's last message to WireGuard's port has come from, and when; relays apart.
    heard_at: BTreeMap<PublicKey, (SocketAddr, Monotonic)>,
    paths: Timed<PublicKey, Paths>,
    /// What each peer may still have carried to others.
    carries: BTreeMap<PublicKey, TokenBucket>,
    /// What peers whose contact was let go have said last in answer to this token: copies of it stay copies. At most
    /// `lan::MAX_STAMPS`.
    last_stamps: BTreeMap<PublicKey, Stamp>,
    /// What was sent to addresses at which nobody has answered.
    targets: Targets,
    tunnels: health::Tunnels,
}

impl Mesh {
    /// Makes a node that has yet to start, on a host with these links. `seed` feeds everything random that it does.
    pub fn new(
        settings: Settings,
        keys: MeshKeys,
        mut state: NodeState,
        underlay: Vec<Underlay>,
        seed: [u8; 32],
        now: Now,
    ) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let v4 = settings.subnet.unwrap_or_else(|| keys.default_subnet());
        let subnets = MeshSubnets { v4, v6: keys.ula_subnet() };
        let listen_port = match settings.listen_port {
            0 => kernel::random_port(&mut rng),
            port => port,
        };
        let exchange_port = settings.exchange.then(|| settings.exchange_port.unwrap_or(keys.exchange_port()));
        let whereabouts = Whereabouts {
            listen_port,
            candidates: candidates::own_candidates(&[], &underlay, listen_port),
            nat: Nat::Unknown,
            exchange_port,
            introducer: false,
            relay: settings.relay.serve.unwrap_or_default(),
            lifetime: RECORD_LIFETIME,
        };
        let (places, sharing) = (settings.sessions, settings.sharing);
        let exchange = settings.exchange.then(|| Exchange::new(places, sharing, random(&mut rng)));
        let dht = settings.dht.then(|| dht::DhtSource::new(state.wg_pubkey, random(&mut rng), now));
        let record = sign_record(&settings, &keys, subnets, &mut state, whereabouts, now, &mut rng);
        let mut mesh = Self {
            opener: Opener::new(now),
            leads: TokenBucket::new(lan::LEAD_BURST, lan::LEAD_INTERVAL, now.monotonic),
            strangers: AddressBuckets::new(lan::STRANGER_BURST, lan::STRANGER_INTERVAL),
            store: PeerStore::new(settings.max_peers, settings.sharing.min_age),
            relays: relays::Relays::new(&settings.relay),
            token: Token(rng.next_u64()),
            talk: settings.gossip.then(|| gossip::Talk::new(&settings, random(&mut rng), now.monotonic)),
            settings,
            keys,
            subnets,
            state,
            listen_port,
            port_moves: 0,
            record,
            counter: 0,
            rng,
            contacts: Timed::default(),
            underlay,
            reach: Reaching::default(),
            dht,
            exchange,
            exchange_port,
            bootstrap: Vec::new(),
            targets_stale: false,
            book: Book::default(),
            last_session: None,
            restored: 0,
            named: BTreeMap::new(),
            announcing: Announcing::default(),
            observed: None,
            orphans: BTreeMap::new(),
            journeys: explain::Journeys::default(),
            clock: clock::Clock::default(),
            lag: lag::Lag::default(),
            proved: BTreeMap::new(),
            handshakes: handshakes::Handshakes::default(),
            planned: Planned::default(),
            drops: BTreeMap::new(),
            started: now.monotonic,
            signed_at: now.monotonic,
            refresh_at: now.monotonic + RECORD_REFRESH,
            save_cache_at: now.monotonic + memory::SAVE_INTERVAL,
            replan_at: None,
            dirty: false,
            stopped: false,
            commands: VecDeque::new(),
        };
        mesh.save_state();
        mesh
    }

    /// Takes in one event.
    pub fn handle(&mut self, event: Event, now: Now) {
        self.handle_all([event], now);
    }

    /// Takes in events that came together. What is to be said about them is said once, after the last: a peer whose
    /// answer waits behind others is not asked again before it is read.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Now) {
        self.note_lag(now.monotonic);
        self.follow_clocks(now);
        for event in events {
            if self.stopped {
                return;
            }
            self.on_event(event, now);
        }
        if self.stopped {
            return;
        }
        self.on_time(now);
        self.greet_named(now);
        self.drive_exchange(now);
        self.drive_dandelion(now);
        self.drive_gossip(now);
        self.drive_stun(now);
        self.drive_paths(now);
        self.drive_dht(now);
        self.drive_relays(now);
        self.drive_server(now);
        self.replan(now);
        self.send_hellos(now);
        self.contacts.settle();
        self.reach.paths.settle();
    }

    fn on_event(&mut self, event: Event, now: Now) {
        match event {
            Event::Started(observed) => self.on_started(observed, now),
            Event::Underlay(underlay) => self.on_underlay(underlay, now),
            Event::StunServers(servers) => self.reach.stun.set_servers(&servers, now.monotonic),
            Event::Bootstrap(seeds) => self.on_bootstrap(seeds),
            Event::ForgetName(name) => self.forget_name(&name),
            Event::ExchangePort(port) => self.on_exchange_port(port, now),
            Event::Session(event) => self.on_session(event, now),
            Event::Dht(event) => self.on_dht(event, now),
            Event::Datagram { via, from, bytes } => {
                self.on_datagram(Place { via, address: from }, &bytes, now)
            }
            Event::Bind(received) => self.on_bind(&received, now),
            Event::RelayPortTaken(port) => self.on_relay_port_taken(port, now),
            Event::Gossip { from, bytes } => self.on_gossip(from, &bytes, now),
            Event::Kernel(report) => self.on_kernel(report, now),
            Event::AddPeer(key, endpoint) => self.add_named(key, endpoint, now),
            Event::Welcome(key) => self.welcome(key, now),
            Event::ReleasePeer(key) => self.release_named(key),
            Event::RemovePeer(key) => self.remove_peer(key, now),
            Event::Reconfigure { advertise_routes, accept_routes } => {
                self.reconfigure(advertise_routes, accept_routes, now);
            }
            Event::Ping(key) => self.ping(key, now),
            Event::Handshakes(seen) => self.on_handshakes(&seen, now.monotonic),
            Event::Unanswered(key) => self.on_unanswered(key, now),
            Event::Probed(key, answered) => self.on_probed(key, answered, now),
            Event::Woke(slept) => self.on_woke(slept, now),
            Event::CheckNat => self.restart_stun(now),
            Event::Timeout => {}
            Event::Stop(stop) => self.on_stop(stop, now),
        }
    }

    /// Returns the next command, to be carried out in this order. Call it until `None` after every event.
    #[must_use]
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Returns when to call [`Mesh::handle`] with [`Event::Timeout`] at the latest, and what for. Changes with
    /// every event.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Monotonic, TimeoutReason)> {
        if self.stopped {
            return None;
        }
        let fixed = [
            (self.announcing.announce_at, TimeoutReason::Announce),
            (Some(self.refresh_at), TimeoutReason::RefreshRecord),
            (Some(self.save_cache_at), TimeoutReason::SaveCache),
            (self.store.next_removal(), TimeoutReason::RemoveStale),
            (self.replan_at, TimeoutReason::Replan),
            (self.next_look(), TimeoutReason::Session),
            (self.next_trial(), TimeoutReason::Trial),
            (self.reach.stun.poll_timeout(), TimeoutReason::Stun),
            (self.next_relay_step(), TimeoutReason::Relay),
            (self.relays.next_expiry(), TimeoutReason::RelayPairs),
            (self.next_greeting(), TimeoutReason::Greet),
            (self.dht.as_ref().and_then(dht::DhtSource::poll_timeout), TimeoutReason::Dht),
            (self.next_stem(), TimeoutReason::Stem),
            (self.exchange.as_ref().and_then(Exchange::poll_timeout), TimeoutReason::Exchange),
            (self.talk.as_ref().map(gossip::Talk::poll_timeout), TimeoutReason::Gossip),
        ];
        let (contacts, paths) = (self.contacts.first(), self.reach.paths.first());
        fixed
            .into_iter()
            .chain([(contacts, TimeoutReason::Contact), (paths, TimeoutReason::Path)])
            .filter_map(|(at, reason)| at.map(|at| (at, reason)))
            .min()
    }

    /// Returns this node's key.
    pub const fn public_key(&self) -> PublicKey {
        self.state.wg_pubkey
    }

    /// Returns the UDP port that WireGuard is to have.
    pub const fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// Returns this node's mesh addresses.
    pub fn addresses(&self) -> MeshAddresses {
        derive_mesh_addresses(self.keys.network_id(), self.subnets, self.state.wg_pubkey, self.state.nonce)
    }

    /// Returns what the kernel was last asked to hold.
    pub const fn desired(&self) -> Option<&Arc<Desired>> {
        self.planned.desired.as_ref()
    }

    /// Returns the peers.
    pub const fn store(&self) -> &PeerStore {
        &self.store
    }

    /// Returns how many inputs were dropped, by reason.
    pub const fn drops(&self) -> &BTreeMap<&'static str, u64> {
        &self.drops
    }

    /// Notes how late it is for what was due first of what is done with peers.
    fn note_lag(&mut self, now: Monotonic) {
        if let Some(due) = self.contacts.first().into_iter().chain(self.reach.paths.first()).min() {
            self.lag.note(due, now);
        }
    }

    fn on_time(&mut self, now: Now) {
        if self.refresh_at <= now.monotonic {
            self.renew_record(now);
        }
        for key in self.contacts.due(now.monotonic) {
            let Some(contact) = self.contacts.get_mut(&key) else { continue };
            let was_active = contact.is_active();
            contact.handle_timeout(now.monotonic);
            self.dirty |= contact.is_active() != was_active;
        }
        if self.replan_at.is_some_and(|at| at <= now.monotonic) {
            self.replan_at = None;
            self.dirty = true;
        }
        self.look_for_sessions(now.monotonic);
        self.drive_health(now);
        self.remove_stale(now);
        self.announce_if_due(now);
        if self.save_cache_at <= now.monotonic {
            self.save_cache(now);
        }
    }

    fn on_stop(&mut self, stop: Stop, now: Now) {
        self.save_cache(now);
        match stop {
            Stop::Handover => {}
            Stop::Withdraw => {
                self.say_goodbye(now);
                self.stop_serving();
                self.planned.generation += 1;
                self.commands
                    .push_back(Command::Apply { generation: self.planned.generation, desired: None });
            }
        }
        self.stopped = true;
    }

    fn drop_input(&mut self, reason: &'static str, from: SocketAddr) {
        *self.drops.entry(reason).or_default() += 1;
        tracing::debug!(%from, reason, "dropped a datagram");
    }
}

fn random(rng: &mut ChaCha8Rng) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
