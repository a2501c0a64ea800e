//! WireGuard's handshake and timers for one peer, as Linux has them (`drivers/net/wireguard`), without the
//! cryptography: a message names the keys that a real one would prove.
//!
//! What matters to a mesh daemon is modelled exactly: who may initiate and when, the silence of
//! [`REKEY_TIMEOUT`] after every initiation or response, initiations that cross and destroy each other, time
//! stamps that must rise, roaming, and the life of a session.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use wgmesh_core::kernel::ObservedPeer;
use wgmesh_core::key::{PresharedKey, PublicKey};
use wgmesh_core::time::{Monotonic, Now, WallClock};

use super::Packet;
use crate::random::Random;

/// No second handshake message to the same peer sooner than this after the last.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

/// What a retransmission waits at random beyond [`REKEY_TIMEOUT`].
const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(333);

/// The initiator of a session renews it when it sends after this long.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);

/// A session carries nothing after this long.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// The initiator also renews when it receives after this long: [`REJECT_AFTER_TIME`] less the 10 s keepalive
/// timeout and [`REKEY_TIMEOUT`].
const REKEY_ON_RECEIVE: Duration = Duration::from_secs(165);

/// Packets are answered by an empty one if there is nothing else to say within this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Packets for which nothing at all came back for this long make it begin anew: the 10 s after which the other side
/// would have sent a keepalive, and [`REKEY_TIMEOUT`].
const NEW_HANDSHAKE_AFTER: Duration = Duration::from_secs(15);

/// Retransmissions before WireGuard gives up: 90 s of them.
const MAX_ATTEMPTS: u32 = 18;

/// Initiations of one peer that follow each other quicker than this are dropped.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

const INITIATION_BYTES: u64 = 148;
const RESPONSE_BYTES: u64 = 92;
const KEEPALIVE_BYTES: u64 = 32;

/// A WireGuard message on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's static key.
    pub from: PublicKey,
    /// The receiver's static key.
    pub to: PublicKey,
    /// What kind of message.
    pub body: Body,
}

/// The kinds of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Type 1.
    Initiation {
        /// Stands for the ephemeral key.
        handshake: Handshake,
        /// TAI64N with its lowest 24 bits of nanoseconds cleared, as Linux does.
        stamp: u64,
    },
    /// Type 2.
    Response {
        /// Which initiation it answers.
        handshake: Handshake,
        /// Stands for the proof that both hold the same.
        preshared_key: Option<PresharedKey>,
    },
    /// Type 4 without content.
    Keepalive {
        /// Which session it belongs to.
        session: Handshake,
    },
    /// Type 4 with somebody's packets.
    Data {
        /// Which session it belongs to.
        session: Handshake,
        /// How long they are.
        bytes: u64,
        /// From where to where, inside the mesh, where that matters.
        packet: Option<Box<Packet>>,
    },
}

impl Body {
    /// Returns the message's length on the wire in bytes, without IP and UDP.
    pub const fn bytes(&self) -> u64 {
        match self {
            Self::Initiation { .. } => INITIATION_BYTES,
            Self::Response { .. } => RESPONSE_BYTES,
            Self::Keepalive { .. } => KEEPALIVE_BYTES,
            Self::Data { bytes, .. } => KEEPALIVE_BYTES + *bytes,
        }
    }

    /// Whether it makes sessions and carries nothing.
    pub const fn is_handshake(&self) -> bool {
        matches!(self, Self::Initiation { .. } | Self::Response { .. })
    }

    /// Whether it answers an initiation.
    pub const fn is_response(&self) -> bool {
        matches!(self, Self::Response { .. })
    }
}

/// Names one handshake, and the session that it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handshake(pub u64);

#[derive(Clone, Copy, Debug)]
struct Keypair {
    handshake: Handshake,
    is_initiator: bool,
    born: Monotonic,
}

impl Keypair {
    fn is_alive(&self, now: Monotonic) -> bool {
        now.since(self.born) < REJECT_AFTER_TIME
    }
}

/// What a peer's machine needs from its device for one step.
pub struct Context<'a> {
    /// Both clocks of the host.
    pub now: Now,
    /// The host's chance.
    pub random: &'a mut Random,
    /// What the step sends, and where to.
    pub outbox: &'a mut Vec<(SocketAddr, Body)>,
}

/// One peer of a device.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The pair's symmetric key.
    pub preshared_key: Option<PresharedKey>,
    /// Where to send.
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds; zero is off.
    pub keepalive: u16,
    /// The inner addresses that belong to the peer.
    pub allowed_ips: BTreeSet<IpNet>,
    last_handshake: Option<WallClock>,
    rx_bytes: u64,
    tx_bytes: u64,
    data_received: u64,
    newest_stamp: Option<u64>,
    last_initiation: Option<Monotonic>,
    /// Our initiation that waits for its response; the other's initiation puts an end to it.
    initiated: Option<Handshake>,
    last_sent_handshake: Option<Monotonic>,
    attempts: u32,
    is_staged: bool,
    current: Option<Keypair>,
    next: Option<Keypair>,
    previous: Option<Keypair>,
    retransmit_at: Option<Monotonic>,
    keepalive_at: Option<Monotonic>,
    /// When to answer packets to which nothing was said.
    answer_at: Option<Monotonic>,
    /// When packets that nothing came back for make it begin anew.
    unanswered_until: Option<Monotonic>,
    silence: Silence,
}

/// What the daemon's eBPF program remembers of one peer to notice packets that nothing comes back for.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    heard: Option<Monotonic>,
    /// The first and the last packet since then.
    waiting: Option<(Monotonic, Monotonic)>,
    told: Option<Monotonic>,
    is_news: bool,
}

impl Silence {
    /// Packets this far apart are no conversation that stopped.
    const LONGEST_PAUSE: Duration = Duration::from_secs(3);

    const PATIENCE: Duration = Duration::from_secs(1);

    /// What was heard lately is not looked at again.
    const PACE: Duration = Duration::from_millis(250);

    fn note_sent(&mut self, now: Monotonic) {
        let is_over = |at: Option<Monotonic>| at.is_none_or(|at| now.since(at) >= Self::PATIENCE);
        if self.heard.is_some_and(|at| now.since(at) < Self::PACE) {
            return;
        }
        let begun = match self.waiting {
            Some((begun, last)) if Some(begun) > self.heard && now.since(last) < Self::LONGEST_PAUSE => begun,
            Some(_) | None => now,
        };
        self.waiting = Some((begun, now));
        if now.since(begun) >= Self::PATIENCE && is_over(self.told) {
            self.told = Some(now);
            self.is_news = true;
        }
    }
}

impl Peer {
    /// Returns the peer as a dump shows it.
    pub fn observe(&self) -> ObservedPeer {
        ObservedPeer {
            preshared_key: self.preshared_key.clone(),
            endpoint: self.endpoint,
            keepalive: self.keepalive,
            allowed_ips: self.allowed_ips.clone(),
            last_handshake: self.last_handshake,
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }

    /// Returns the session that it sends with, if that is alive.
    pub fn sending_session(&self, now: Monotonic) -> Option<Handshake> {
        self.current.filter(|keypair| keypair.is_alive(now)).map(|keypair| keypair.handshake)
    }

    /// Returns how many packets of users have come from the peer.
    pub const fn data_received(&self) -> u64 {
        self.data_received
    }

    /// Returns whether packets went out for a second and nothing came back, and that is news since the last call.
    pub const fn take_silence(&mut self) -> bool {
        std::mem::replace(&mut self.silence.is_news, false)
    }

    /// Whether a packet of this session would be taken.
    pub fn takes_session(&self, session: Handshake, now: Monotonic) -> bool {
        self.keypairs().any(|keypair| keypair.handshake == session && keypair.is_alive(now))
    }

    /// Returns when [`Peer::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let timers = [self.retransmit_at, self.keepalive_at, self.answer_at, self.unanswered_until];
        timers.into_iter().flatten().min()
    }

    /// Does what its timers ask for.
    pub fn handle_timeout(&mut self, context: &mut Context<'_>) {
        let now = context.now.monotonic;
        if self.retransmit_at.is_some_and(|at| at <= now) {
            self.retransmit_at = None;
            if self.attempts > MAX_ATTEMPTS {
                self.is_staged = false;
            } else {
                self.attempts += 1;
                self.initiate(context);
            }
        }
        if self.unanswered_until.is_some_and(|at| at <= now) {
            self.unanswered_until = None;
            self.attempts = 0;
            self.initiate(context);
        }
        if self.answer_at.is_some_and(|at| at <= now) {
            self.answer_at = None;
            self.send_keepalive(context);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive_at = None;
            if self.keepalive > 0 {
                self.send_keepalive(context);
            }
        }
    }

    /// Sends an empty packet, or starts the handshake that must come before it.
    pub fn send_keepalive(&mut self, context: &mut Context<'_>) {
        self.is_staged = true;
        self.send_staged(context);
    }

    /// Sends packets in the session of now; without one they are lost, and a handshake begins. As long as nobody has said
    /// where the peer is they are refused (`wg_xmit` in drivers/net/wireguard/device.c).
    pub fn send_data(&mut self, bytes: u64, packet: Option<Packet>, context: &mut Context<'_>) {
        if self.endpoint.is_none() {
            return;
        }
        let now = context.now.monotonic;
        self.silence.note_sent(now);
        let Some(keypair) = self.current.filter(|keypair| keypair.is_alive(now)) else {
            return self.send_keepalive(context);
        };
        self.unanswered_until.get_or_insert(now + NEW_HANDSHAKE_AFTER);
        self.send(Body::Data { session: keypair.handshake, bytes, packet: packet.map(Box::new) }, context);
        self.renew_if_old(keypair, context);
    }

    /// Takes in a message of this peer. Returns the packet in it, if the sender may have the packet's source.
    pub fn receive(&mut self, from: SocketAddr, body: &Body, context: &mut Context<'_>) -> Option<Packet> {
        match body {
            Body::Initiation { handshake, stamp } => {
                self.on_initiation(from, *handshake, *stamp, context);
            }
            Body::Response { handshake, preshared_key } => {
                self.on_response(from, *handshake, preshared_key.as_ref(), context)
            }
            Body::Keepalive { session } => {
                self.on_data(from, *session, body.bytes(), context);
            }
            Body::Data { session, packet, .. } => {
                if self.on_data(from, *session, body.bytes(), context) {
                    self.silence.heard = Some(context.now.monotonic);
                    self.data_received += 1;
                    self.answer_at.get_or_insert(context.now.monotonic + KEEPALIVE_TIMEOUT);
                    return packet.as_deref().filter(|packet| self.owns(packet.from.ip())).cloned();
                }
            }
        }
        None
    }

    /// Whether an inner address belongs to the peer.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.allowed_ips.iter().any(|net| net.contains(&address))
    }

    /// Forgets all sessions and timers, as when the device goes down.
    pub fn reset(&mut self) {
        *self = Self {
            preshared_key: self.preshared_key.take(),
            endpoint: self.endpoint,
            keepalive: self.keepalive,
            allowed_ips: std::mem::take(&mut self.allowed_ips),
            last_handshake: self.last_handshake,
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            data_received: self.data_received,
            newest_stamp: self.newest_stamp,
            ..Self::default()
        };
    }

    fn keypairs(&self) -> impl Iterator<Item = Keypair> {
        [self.current, self.next, self.previous].into_iter().flatten()
    }

    fn send_staged(&mut self, context: &mut Context<'_>) {
        if !self.is_staged {
            return;
        }
        let now = context.now.monotonic;
        let Some(keypair) = self.current.filter(|keypair| keypair.is_alive(now)) else {
            self.attempts = 0;
            return self.initiate(context);
        };
        self.is_staged = false;
        self.send(Body::Keepalive { session: keypair.handshake }, context);
        self.renew_if_old(keypair, context);
    }

    /// Begins a new session in time if it is ours to do so.
    fn renew_if_old(&mut self, keypair: Keypair, context: &mut Context<'_>) {
        if keypair.is_initiator && context.now.monotonic.since(keypair.born) >= REKEY_AFTER_TIME {
            self.attempts = 0;
            self.initiate(context);
        }
    }

    /// Sends an initiation, unless one or a response was sent less than [`REKEY_TIMEOUT`] ago.
    fn initiate(&mut self, context: &mut Context<'_>) {
        let now = context.now.monotonic;
        if self.last_sent_handshake.is_some_and(|at| now.since(at) < REKEY_TIMEOUT) {
            return;
        }
        self.last_sent_handshake = Some(now);
        let handshake = Handshake(context.random.below(u64::MAX));
        self.initiated = Some(handshake);
        let stamp = context.now.wall.as_millis().saturating_mul(1_000_000) >> 24;
        self.retransmit_at = Some(now + REKEY_TIMEOUT + context.random.up_to(REKEY_TIMEOUT_JITTER));
        self.send(Body::Initiation { handshake, stamp }, context);
    }

    fn on_initiation(
        &mut self,
        from: SocketAddr,
        handshake: Handshake,
        stamp: u64,
        context: &mut Context<'_>,
    ) {
        let now = context.now.monotonic;
        let is_replayed = self.newest_stamp.is_some_and(|newest| stamp <= newest);
        let is_flood = self.last_initiation.is_some_and(|at| now.since(at) < INITIATION_INTERVAL);
        if is_replayed || is_flood {
            return;
        }
        self.newest_stamp = Some(stamp);
        self.last_initiation = Some(now);
        self.initiated = None;
        self.on_authenticated(from, INITIATION_BYTES, now);
        self.last_sent_handshake = Some(now);
        self.next = Some(Keypair { handshake, is_initiator: false, born: now });
        self.previous = None;
        self.send(Body::Response { handshake, preshared_key: self.preshared_key.clone() }, context);
    }

    fn on_response(
        &mut self,
        from: SocketAddr,
        handshake: Handshake,
        preshared_key: Option<&PresharedKey>,
        context: &mut Context<'_>,
    ) {
        if self.initiated != Some(handshake) || preshared_key != self.preshared_key.as_ref() {
            return;
        }
        let now = context.now.monotonic;
        self.initiated = None;
        self.on_authenticated(from, RESPONSE_BYTES, now);
        self.previous = self.next.take().or(self.current);
        self.current = Some(Keypair { handshake, is_initiator: true, born: now });
        self.complete_handshake(context.now);
        self.send_keepalive(context);
    }

    /// Takes in a packet of a session. Returns whether the session is alive.
    fn on_data(
        &mut self,
        from: SocketAddr,
        session: Handshake,
        bytes: u64,
        context: &mut Context<'_>,
    ) -> bool {
        let now = context.now.monotonic;
        if !self.takes_session(session, now) {
            return false;
        }
        self.on_authenticated(from, bytes, now);
        if self.next.is_some_and(|next| next.handshake == session) {
            self.previous = self.current;
            self.current = self.next.take();
            self.complete_handshake(context.now);
            self.send_staged(context);
        }
        let is_old = |keypair: Keypair| keypair.is_initiator && now.since(keypair.born) >= REKEY_ON_RECEIVE;
        if self.current.is_some_and(is_old) {
            self.attempts = 0;
            self.initiate(context);
        }
        true
    }

    fn complete_handshake(&mut self, now: Now) {
        self.retransmit_at = None;
        self.attempts = 0;
        self.last_handshake = Some(now.wall);
    }

    fn on_authenticated(&mut self, from: SocketAddr, bytes: u64, now: Monotonic) {
        self.endpoint = Some(from);
        self.rx_bytes += bytes;
        self.unanswered_until = None;
        self.arm_keepalive(now);
    }

    fn arm_keepalive(&mut self, now: Monotonic) {
        if self.keepalive > 0 {
            self.keepalive_at = Some(now + Duration::from_secs(self.keepalive.into()));
        }
    }

    fn send(&mut self, body: Body, context: &mut Context<'_>) {
        self.arm_keepalive(context.now.monotonic);
        self.answer_at = None;
        let Some(endpoint) = self.endpoint else { return };
        self.tx_bytes += body.bytes();
        context.outbox.push((endpoint, body));
    }
}
