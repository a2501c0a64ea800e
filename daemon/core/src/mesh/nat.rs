//! This node as the rest of the world sees it: STUN through WireGuard's own port, and what follows from its answers.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Command, Mesh, Recipient, Transmit, Whereabouts, candidates};
use crate::contact::Via;
use crate::key::PublicKey;
use crate::nat::NatType;
use crate::stun::{Handled, Report};
use crate::time::Now;

/// The least time between two records that differ in what peers say they see.
const SEEN_INTERVAL: Duration = Duration::from_secs(5);

impl Mesh {
    /// Returns what STUN has found out, and who would introduce this node to others.
    pub fn nat_report(&self, now: Now) -> Report {
        let introducers = self.introducers(self.state.wg_pubkey, now).into_iter();
        let hostname = |key| Some(self.store.get(key)?.record().record().hostname.clone());
        Report { introducers: introducers.filter_map(hostname).collect(), ..self.reach.stun.report() }
    }

    /// Asks the STUN servers anew.
    pub(super) fn restart_stun(&mut self, now: Now) {
        let local: Vec<IpAddr> =
            self.underlay.iter().flat_map(|link| &link.addresses).map(ipnet::IpNet::addr).collect();
        self.reach.stun.restart(&local, now.monotonic);
    }

    /// Takes what came to WireGuard's port if it is STUN. Returns whether it was.
    pub(super) fn take_stun(&mut self, from: SocketAddr, bytes: &[u8], now: Now) -> bool {
        match self.reach.stun.handle_datagram(from, bytes, now.monotonic) {
            Handled::NotStun => return false,
            Handled::Taken => {}
            Handled::Dropped(reason) => self.drop_input(reason, from),
        }
        true
    }

    /// Sends what STUN wants sent, and follows what it has found out.
    pub(super) fn drive_stun(&mut self, now: Now) {
        self.reach.stun.handle_timeout(now.monotonic);
        while let Some((to, bytes)) = self.reach.stun.poll_transmit(now.monotonic, &mut self.rng) {
            let transmit = Transmit { via: Via::WireGuard, to: Recipient::Node(to), bytes };
            self.commands.push_back(Command::Send(transmit));
        }
        if self.reach.stun.take_change() {
            let mapped = self.mapped();
            tracing::info!(nat = %self.reach.stun.nat_type(), ?mapped, "the internet sees this node anew");
            self.renew_record(now);
            // Whoever lets in only what it has sent to must send to the new address before it hears from us there.
            self.verify_paths(now);
            self.offer_to_unreached(now);
        }
    }

    /// Notes where a peer sees WireGuard's port. It stands in for STUN where no server answers.
    pub(super) fn on_seen(&mut self, key: PublicKey, seen: SocketAddr, now: Now) {
        let has_changed = match self.is_candidate(seen) {
            true => self.reach.seen_at.insert(key, seen) != Some(seen),
            // No NAT stands between, any more: one of this host's own addresses needs nobody's word.
            false => self.reach.seen_at.remove(&key).is_some(),
        };
        if !has_changed {
            return;
        }
        let (whereabouts, told) = (self.whereabouts(), self.record.record());
        if whereabouts.candidates != told.candidates || whereabouts.relay != told.relay {
            tracing::info!(peer = %key, %seen, "a peer sees this node at another address");
            // Soon, but whatever peers say does not have us sign without end.
            self.refresh_at = self.refresh_at.min(now.monotonic.max(self.signed_at + SEEN_INTERVAL));
        }
    }

    /// Returns WireGuard's port as the internet sees it: by STUN, or else as most peers see it.
    pub(super) fn mapped(&self) -> Vec<SocketAddr> {
        let v6 = self.reach.stun.mapped_v6().or_else(|| self.seen_by_most(false));
        let v4 = self.reach.stun.mapped_v4().or_else(|| self.seen_by_most(true));
        v6.into_iter().chain(v4).collect()
    }

    fn seen_by_most(&self, v4: bool) -> Option<SocketAddr> {
        let mut votes = BTreeMap::<SocketAddr, usize>::new();
        for &seen in self.reach.seen_at.values().filter(|seen| seen.is_ipv4() == v4) {
            *votes.entry(seen).or_default() += 1;
        }
        votes.into_iter().max_by_key(|&(seen, count)| (count, Reverse(seen))).map(|(seen, _)| seen)
    }

    /// Returns the NAT's type: by STUN, or else as peers see it, of whom two that see different ports are enough.
    pub(super) fn nat_type(&self) -> NatType {
        let by_stun = self.reach.stun.nat_type();
        let mut ports = self.reach.seen_at.values().filter(|seen| seen.is_ipv4());
        match (by_stun, ports.next()) {
            (NatType::Unknown, Some(first)) => match ports.next() {
                None => NatType::Unknown,
                Some(second) if second == first && ports.all(|seen| seen == first) => NatType::PortRestricted,
                Some(_) => NatType::Symmetric,
            },
            (by_stun, _) => by_stun,
        }
    }

    /// Returns how others may find this node, as far as it knows.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        let nat = self.nat_type();
        Whereabouts {
            listen_port: self.listen_port,
            candidates: candidates::own_candidates(&self.mapped(), &self.underlay, self.listen_port),
            nat: nat.coarse(),
            exchange_port: self.exchange_port,
            introducer: nat == NatType::Open,
            relay: self.serves(),
            lifetime: self.record_lifetime(),
        }
    }
}
