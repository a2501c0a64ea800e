//! This node as a relay: who gets ports, and where the ends of a pair are.
//!
//! Who asks and who binds is proved by the pair's own key, and every message counts once. A relay serves only nodes that
//! it reaches itself: it is no hop on the way to another relay.

use std::net::SocketAddr;

use rand_core::Rng as _;

use super::{BindReceived, Command, Mesh};
use crate::key::PublicKey;
use crate::message::{Bind, DiscoBody, Unproved};
use crate::nat::NatType;
use crate::relay::{Forwarding, Refusal, RelayEnd, Released};
use crate::seal::Kind;
use crate::time::Now;

impl Mesh {
    /// Takes up the pairs that an earlier run served. Call it before the first event.
    pub fn restore_relay(&mut self, table: &[Forwarding], now: Now) {
        if self.may_serve() {
            self.relays.server.restore(table, now.monotonic);
        }
    }

    /// Whether others should take this node for a relay: the operator says so, or nothing is known to be between it and
    /// the internet.
    pub(super) fn serves(&self) -> bool {
        match (self.settings.relay.serve, self.reach.stun.nat_type()) {
            (Some(serve), _) => serve,
            (None, NatType::Open) => true,
            (None, NatType::Unknown) => self.is_untranslated(),
            (
                None,
                NatType::FullCone | NatType::Restricted | NatType::PortRestricted | NatType::Symmetric,
            ) => false,
        }
    }

    /// Whether others see this node, and all at an address of its own.
    fn is_untranslated(&self) -> bool {
        let own = || self.underlay.iter().flat_map(|link| &link.addresses).map(ipnet::IpNet::addr);
        let mapped = self.mapped();
        !mapped.is_empty() && mapped.iter().all(|seen| own().any(|address| address == seen.ip()))
    }

    /// Whether this node is a relay if it is asked.
    pub(super) const fn may_serve(&self) -> bool {
        !matches!(self.settings.relay.serve, Some(false))
    }

    /// Gives a node a port each for itself and another.
    pub(super) fn on_allocate(&mut self, key: PublicKey, peer: PublicKey, from: SocketAddr, now: Now) {
        if !self.take_carry(key, now) {
            return self.drop_input("carry limit", from);
        }
        let ports = match self.direct_endpoint(peer, now) {
            _ if !self.may_serve() => Err(Refusal::NotServing),
            Some(_) if peer != key => {
                let rng = &mut self.rng;
                self.relays.server.avoid(self.listen_port);
                self.relays.server.allocate(key, peer, || rng.next_u32(), now.monotonic)
            }
            Some(_) | None => Err(Refusal::Unreached),
        };
        match ports {
            Ok([own, theirs]) => {
                self.send_disco(key, from, DiscoBody::Allocated { peer, port: own }, now);
                self.tell_allocated(peer, key, theirs, now);
            }
            Err(refusal) => self.refuse_relay(key, peer, refusal, from, now),
        }
    }

    /// Tells a node that this one is no relay between it and another.
    pub(super) fn refuse_relay(
        &mut self,
        key: PublicKey,
        peer: PublicKey,
        refusal: Refusal,
        from: SocketAddr,
        now: Now,
    ) {
        tracing::debug!(asked_by = %key, %peer, ?refusal, "refused to be a relay");
        *self.drops.entry("relay refused").or_default() += 1;
        self.send_disco(key, from, DiscoBody::Refused { peer, refusal }, now);
    }

    /// Follows a datagram that came to one of the relay's ports.
    pub(super) fn on_bind(&mut self, received: &BindReceived, now: Now) {
        let BindReceived { port, local, from, ref bytes } = *received;
        let content = match self.opener.open(&self.keys, bytes, now) {
            Ok((Kind::Bind, content)) => content,
            Ok(_) => return self.drop_input("misplaced", from),
            Err(_) => return self.drop_input("seal", from),
        };
        let Some(unproved) = Unproved::<Bind>::decode(&content) else {
            return self.drop_input("malformed", from);
        };
        let key = unproved.claimed_key();
        let Some(peer) = self.store.get(key) else { return self.drop_input("no record", from) };
        let proved = unproved.prove(self.state.wg_pubkey, &peer.pair).filter(|bind| bind.port == port);
        let Some(bind) = proved else { return self.drop_input("forged", from) };
        if !self.reach.paths.entry(key).or_default().is_new(bind.stamp, now.monotonic) {
            return self.drop_input("replayed", from);
        }
        let end = RelayEnd { peer: from, local };
        let Some(bound) = self.relays.server.bind(key, port, end, now.monotonic) else {
            return self.drop_input("not its port", from);
        };
        if !bound.is_complete && self.take_carry(key, now) {
            // What told the other of its port may be lost.
            self.tell_allocated(bound.peer, key, bound.port, now);
        }
    }

    /// Follows a node that needs this relay no more for a peer. The peer is asked too, and where it has said the same, both are
    /// told that the relay is none any more.
    pub(super) fn on_release(&mut self, key: PublicKey, peer: PublicKey, from: SocketAddr, now: Now) {
        if !self.take_carry(key, now) {
            return self.drop_input("carry limit", from);
        }
        let told: &[_] = match self.relays.server.release(key, peer, now.monotonic) {
            Released::Unknown => &[],
            Released::ByOne => &[(peer, key)],
            Released::ByBoth => &[(key, peer), (peer, key)],
        };
        for &(to, other) in told {
            if let Some(endpoint) = self.direct_endpoint(to, now) {
                let body = DiscoBody::Released { peer: other, agreed: told.len() > 1 };
                self.send_disco(to, endpoint, body, now);
            }
        }
    }

    /// Gives a pair other ports, because another program has one of these.
    pub(super) fn on_relay_port_taken(&mut self, port: u16, now: Now) {
        tracing::debug!(port, "another program has a port of the relay");
        let rng = &mut self.rng;
        self.relays.server.avoid(self.listen_port);
        let Some(moved) = self.relays.server.move_ports(port, || rng.next_u32()) else { return };
        let [(one, port_of_one), (other, port_of_other)] = moved;
        self.tell_allocated(one, other, port_of_one, now);
        self.tell_allocated(other, one, port_of_other, now);
    }

    /// Does what is due for the pairs of this relay, and hands on the table where it has changed.
    pub(super) fn drive_server(&mut self, now: Now) {
        self.relays.server.handle_timeout(now.monotonic);
        if let Some(table) = self.relays.server.poll_table() {
            self.commands.push_back(Command::Relay(table));
        }
        self.drive_router(now);
    }

    /// Takes back every port, and forgets for whom it routes.
    pub(super) fn stop_serving(&mut self) {
        self.relays.server.clear();
        if !self.relays.routed_pairs.is_empty() {
            self.commands.push_back(Command::SaveRouted(Vec::new()));
        }
        if let Some(table) = self.relays.server.poll_table() {
            self.commands.push_back(Command::Relay(table));
        }
    }

    fn tell_allocated(&mut self, to: PublicKey, peer: PublicKey, port: u16, now: Now) {
        if let Some(endpoint) = self.heard_lately(to, now).or_else(|| self.direct_endpoint(to, now)) {
            self.send_disco(to, endpoint, DiscoBody::Allocated { peer, port }, now);
        }
    }
}
