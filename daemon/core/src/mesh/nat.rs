//! This node as the rest of the world sees it: STUN through WireGuard's own port, and what follows from its answers.

use std::net::{IpAddr, SocketAddr};

use super::{Command, Mesh, Recipient, Transmit, Whereabouts, paths};
use crate::contact::Via;
use crate::nat::NatType;
use crate::stun::{Handled, Report};
use crate::time::Now;

impl Mesh {
    /// Returns what STUN has found out.
    pub fn nat_report(&self) -> Report {
        self.stun.report()
    }

    /// Asks the STUN servers anew.
    pub(super) fn restart_stun(&mut self, now: Now) {
        let local: Vec<IpAddr> =
            self.underlay.iter().flat_map(|link| &link.addresses).map(ipnet::IpNet::addr).collect();
        self.stun.restart(&local, now.monotonic);
    }

    /// Takes what came to WireGuard's port if it is STUN. Returns whether it was.
    pub(super) fn take_stun(&mut self, from: SocketAddr, bytes: &[u8], now: Now) -> bool {
        match self.stun.handle_datagram(from, bytes, now.monotonic) {
            Handled::NotStun => return false,
            Handled::Taken => {}
            Handled::Dropped(reason) => self.drop_input(reason, from),
        }
        true
    }

    /// Sends what STUN wants sent, and follows what it has found out.
    pub(super) fn drive_stun(&mut self, now: Now) {
        self.stun.handle_timeout(now.monotonic);
        while let Some((to, bytes)) = self.stun.poll_transmit(now.monotonic, &mut self.rng) {
            let transmit = Transmit { via: Via::WireGuard, to: Recipient::Node(to), bytes };
            self.commands.push_back(Command::Send(transmit));
        }
        if self.stun.take_change() {
            let mapped = self.mapped();
            tracing::info!(nat = %self.stun.nat_type(), ?mapped, "the internet sees this node anew");
            self.renew_record(now);
            self.offer_to_unreached(now);
        }
    }

    /// Returns WireGuard's port as the internet sees it.
    pub(super) fn mapped(&self) -> Vec<SocketAddr> {
        self.stun.mapped_v6().into_iter().chain(self.stun.mapped_v4()).collect()
    }

    /// Returns how others may find this node, as far as it knows.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        let nat = self.stun.nat_type();
        Whereabouts {
            listen_port: self.listen_port,
            candidates: paths::own_candidates(&self.mapped(), &self.underlay, self.listen_port),
            nat: nat.coarse(),
            exchange_port: self.exchange_port,
            introducer: nat == NatType::Open,
        }
    }
}
