//! What the kernel tells us, and what an earlier run left in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;

use super::{KernelReport, KernelTrouble, Mesh};
use crate::kernel::{Link, Observed, ObservedPeer, OwnerMark};
use crate::key::PublicKey;
use crate::store::REMOVED_AFTER;
use crate::time::Now;

/// A session is dead this long after its handshake (`REJECT_AFTER_TIME`, WireGuard whitepaper §6.1).
pub(super) const SESSION_LIFETIME: Duration = Duration::from_secs(180);

/// The shell reports of the kernel at least so often; sooner where anything is new.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// If WireGuard's port is taken, so many next ones are tried (seed 003, W-D43).
const MAX_PORT_MOVES: u16 = 100;

/// The range that a port is drawn from where any will do: IANA's dynamic ports (RFC 6335 §6).
pub(super) const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 49152..=65435;

/// Draws a port that leaves room for [`MAX_PORT_MOVES`].
pub(super) fn random_port(rng: &mut ChaCha8Rng) -> u16 {
    let width = u32::from(DYNAMIC_PORTS.end() - DYNAMIC_PORTS.start()) + 1;
    DYNAMIC_PORTS.start() + u16::try_from(rng.next_u32() % width).expect("less than the range's width")
}

impl Mesh {
    /// Adopts what an earlier run of the same mesh left: its peers work, so they stay until somebody tells more
    /// of them or WireGuard has been silent for long. With another private key none of them works: they leave, and
    /// come anew when they are met, because only a new peer makes WireGuard begin at once.
    pub(super) fn on_started(&mut self, observed: Arc<Observed>, now: Now) {
        let has_our_key =
            observed.device.as_ref().is_some_and(|device| device.public_key == Some(self.state.wg_pubkey));
        if has_our_key && is_ours(&observed.link, &OwnerMark::new(self.keys.owner_tag())) {
            let removed: BTreeSet<_> = self.book.removed().collect();
            let unknown = |key: &PublicKey| self.store.get(*key).is_none() && !removed.contains(key);
            self.orphans = observed
                .peers
                .iter()
                .filter(|(key, _)| unknown(key))
                .map(|(&key, peer)| (key, peer.clone()))
                .collect();
            self.adopt_routed(&observed, now.monotonic);
            self.observed = Some(observed);
        } else {
            self.observed = Some(Arc::new(Observed::default()));
        }
        self.replan_at =
            Some(self.cache_trusted_at()).filter(|&at| at > now.monotonic && !self.store.is_empty());
        self.dirty = true;
        for key in self.store.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            self.seek(key, now);
        }
        self.restart_stun(now);
        self.spread_refresh(now);
        self.announce_soon(now);
    }

    pub(super) fn on_kernel(&mut self, report: KernelReport, now: Now) {
        self.planned.answered = self.planned.answered.max(report.generation);
        match report.outcome {
            Ok(observed) => {
                self.planned.trouble = None;
                self.planned.applied = self.planned.applied.max(report.generation);
                let observed = self.clock.correct(observed, now);
                self.on_observed(observed, report.fresh, now);
            }
            Err(KernelTrouble::PortInUse) => self.move_port(now),
            Err(trouble @ KernelTrouble::Refused(_)) => {
                self.planned.trouble = Some(trouble);
                self.on_observed(Arc::default(), report.fresh, now);
            }
            Err(trouble @ KernelTrouble::Other(_)) => self.planned.trouble = Some(trouble),
        }
    }

    /// Lets go of a peer and everything kept for it outside the store.
    pub(super) fn forget(&mut self, key: PublicKey) {
        self.let_contact_go(key);
        self.proved.remove(&key);
        self.handshakes.forget(key);
        self.reach.paths.remove(&key);
        self.reach.carries.remove(&key);
        self.reach.seen_at.remove(&key);
        self.reach.heard_at.remove(&key);
        self.reach.tunnels.forget(key);
        self.relays.forget(key);
        self.forget_gossip(key);
    }

    fn on_observed(&mut self, observed: Arc<Observed>, fresh: bool, now: Now) {
        let before = self.observed.replace(Arc::clone(&observed));
        for (&key, peer) in &observed.peers {
            let earlier = before.as_ref().and_then(|before| before.peers.get(&key));
            self.on_observed_peer(key, peer, earlier, now);
        }
        let absent_by_us: BTreeSet<_> =
            self.contacts.keys().copied().filter(|key| self.is_being_put_back(*key)).collect();
        for (key, contact) in self.contacts.iter_mut() {
            let installed = observed.peers.contains_key(key) || absent_by_us.contains(key);
            contact.handle_installed(installed, now.monotonic);
            self.dirty |= contact.is_active() && !self.proved.contains_key(key);
        }
        self.follow_journeys(&observed, now.monotonic);
        self.confirm_proved_endpoints();
        self.follow_handshakes(&observed, fresh, now);
        self.follow_paths(&observed, before.as_deref(), fresh, now);
        self.follow_removals(&observed, now);
        if fresh {
            self.follow_tunnels(&observed, now);
        }
        let orphans = self.orphans.len();
        self.orphans.retain(|key, _| {
            let live = observed.peers.get(key).and_then(|peer| peer.last_handshake);
            now.monotonic.since(self.started) < REMOVED_AFTER
                || live.is_some_and(|at| now.wall.since(at) < REMOVED_AFTER)
        });
        self.dirty |= self.orphans.len() != orphans;
    }

    fn on_observed_peer(
        &mut self,
        key: PublicKey,
        peer: &ObservedPeer,
        earlier: Option<&ObservedPeer>,
        now: Now,
    ) {
        let handshake_before = earlier.and_then(|earlier| earlier.last_handshake);
        let received_before = earlier.map_or(0, |earlier| earlier.rx_bytes);
        if peer.last_handshake > handshake_before {
            if let Some(contact) = self.contacts.get_mut(&key) {
                contact.handle_handshake();
            }
            if handshake_before.is_none() {
                tracing::info!(peer = %key, endpoint = ?peer.endpoint, "a tunnel is up");
                self.book.note_seen(key, now.wall);
                self.dirty = true;
                self.targets_stale = true;
                if let Some(endpoint) = peer.endpoint {
                    self.note_rendezvous(key, endpoint, now);
                }
                self.retry_with_introducer(now);
                self.gossip_with(key, now);
                self.take_up_link(key, now);
            }
        }
        let is_new =
            handshake_before.is_none() || earlier.is_none_or(|earlier| earlier.endpoint != peer.endpoint);
        if is_new && self.sealed_path(key) == peer.endpoint {
            // Before anybody's packets show it.
            self.try_relay(key, now);
        }
        if peer.last_handshake > handshake_before || peer.rx_bytes > received_before {
            // Of one that the last reading lacks only its handshake is known to be heard: that may be long ago.
            let age = peer.last_handshake.filter(|_| earlier.is_none()).map(|at| now.wall.since(at));
            self.store.touch(key, now.monotonic - age.unwrap_or_default(), now.monotonic);
        }
    }

    /// Remembers which proved endpoints the kernel has taken, so that it may roam from them.
    fn confirm_proved_endpoints(&mut self) {
        if self.planned.applied < self.planned.generation {
            return;
        }
        let Some(desired) = &self.planned.desired else { return };
        for (&key, peer) in &desired.peers {
            if let crate::kernel::Endpoint::Set(endpoint) = peer.endpoint {
                self.proved.insert(key, endpoint);
                self.dirty = true;
            }
        }
    }

    fn move_port(&mut self, now: Now) {
        if self.port_moves >= MAX_PORT_MOVES {
            let text = format!("{MAX_PORT_MOVES} UDP ports up to {} are all in use", self.listen_port);
            self.planned.trouble = Some(KernelTrouble::Other(text));
            return;
        }
        let taken = self.listen_port;
        self.port_moves += 1;
        self.listen_port = taken.checked_add(1).unwrap_or(*DYNAMIC_PORTS.start());
        tracing::warn!(
            taken,
            port = self.listen_port,
            "another program has WireGuard's port; trying the next"
        );
        self.renew_record(now);
        self.dirty = true;
    }
}

fn is_ours(link: &Link, owner: &OwnerMark) -> bool {
    match link {
        Link::WireGuard { alias, .. } => alias.as_deref() == Some(owner.as_str()),
        Link::Missing | Link::OtherKind { .. } => false,
    }
}
