//! A STUN client (RFC 8489) that finds out where the rest of the world sees WireGuard's own port, and what the NAT in
//! front of it does (RFC 5780).
//!
//! It decides whom to ask and when, and what the answers mean; it sends nothing itself. Its requests must leave from
//! WireGuard's port, because a mapping belongs to a port: from any other socket the answers would be about that
//! socket.
//!
//! # How it goes
//! Each IP version has rounds of its own: see `round`. A full round follows every change of servers, links, addresses
//! or routes, a refresh every 60 s. The first server that answers gives an address at once; what most servers saw
//! replaces it, so one that lies does not win over two. A type takes two servers.
//!
//! # Invariants
//! - Without servers nothing is ever sent.
//! - A round lasts at most 3 s. Servers that stay silent make the type unknown, which is no error.
//! - An answer counts only with an id that is open and from the address that was to send it.
//! - What it finds never forbids anything: the types order attempts.

mod family;
mod message;
mod round;
mod transaction;
mod verdict;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::config::Hostname;
use crate::nat::NatType;
use crate::time::Monotonic;
use family::Family;
pub use verdict::Filtering;

/// How many servers of each IP version are asked; more are left out. Three make a majority, the rest is for outages.
pub const MAX_SERVERS: usize = 5;

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It is no STUN: somebody else's business.
    NotStun,
    /// It was waited for.
    Taken,
    /// It is STUN, but not what was waited for; with the reason, for a counter.
    Dropped(&'static str),
}

/// What is known, for people and `netcheck`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Each server and what it last said.
    pub servers: Vec<ServerReport>,
    /// What the NAT does.
    pub nat_type: NatType,
    /// Whom the NAT lets in.
    pub filtering: Filtering,
    /// Where the IPv4 internet sees WireGuard's port.
    pub mapped_v4: Option<SocketAddr>,
    /// Where the IPv6 internet sees it.
    pub mapped_v6: Option<SocketAddr>,
    /// Whether the NAT turns back what is sent to its own outside. Without a value where that was not tested.
    pub hairpin: Option<bool>,
    /// Whether there is a second NAT at the provider.
    pub cgnat: bool,
    /// What the routers on the way to the internet call themselves, the nearest first. Without a value for one that said nothing.
    #[serde(default)]
    pub routers: Vec<Option<Ipv4Addr>>,
    /// Whether a server was reached over IPv6.
    pub ipv6: bool,
    /// Whether a round is under way, so that this may soon be another.
    pub checking: bool,
    /// The nodes that would introduce this one to a peer, the first to be asked first.
    #[serde(default)]
    pub introducers: Vec<Hostname>,
}

/// What one server said in the last round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// Where it was asked.
    pub address: SocketAddr,
    /// Where it saw us. Without a value where it did not answer.
    pub mapped: Option<SocketAddr>,
    /// From the first request to the answer, in milliseconds.
    pub rtt_ms: Option<u64>,
}

impl Report {
    /// Takes note of the routers on the way. Whatever stands before it, a router with an address that is set aside for
    /// providers (RFC 6598) is in front of a NAT of one.
    pub fn note_routers(&mut self, routers: Vec<Option<Ipv4Addr>>) {
        self.cgnat |= routers.iter().flatten().any(|&router| verdict::is_shared(&router.into()));
        self.routers = routers;
    }
}

impl ServerReport {
    fn unasked(address: SocketAddr) -> Self {
        Self { address, mapped: None, rtt_ms: None }
    }
}

/// The client. Its owner hands in datagrams and time, and sends what [`Self::poll_transmit`] returns.
#[derive(Debug, Default)]
pub struct Stun {
    v4: Family,
    v6: Family,
    told: Told,
}

/// What [`Stun::take_change`] compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    mapped_v4: Option<SocketAddr>,
    mapped_v6: Option<SocketAddr>,
    nat_type: NatType,
}

impl Stun {
    /// Makes a client that has no servers yet, and so does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the servers to ask, the most trusted first. The same list again changes nothing.
    pub fn set_servers(&mut self, servers: &[SocketAddr], now: Monotonic) {
        let of = |v4: bool| {
            let mut chosen: Vec<SocketAddr> = Vec::new();
            for server in servers.iter().filter(|server| server.is_ipv4() == v4 && server.port() != 0) {
                if chosen.len() < MAX_SERVERS && !chosen.contains(server) {
                    chosen.push(*server);
                }
            }
            chosen
        };
        self.v4.set_servers(of(true), now);
        self.v6.set_servers(of(false), now);
    }

    /// Begins anew, because a link, an address or a route has changed. `local` are this host's addresses without
    /// those of the mesh: what is seen under one of them is not translated.
    pub fn restart(&mut self, local: &[IpAddr], now: Monotonic) {
        self.v4.restart(local, now);
        self.v6.restart(local, now);
    }

    /// Asks where we are before the next refresh is due, because a path was lost: the outside address may be another.
    pub fn refresh(&mut self, now: Monotonic) {
        self.v4.refresh(now);
        self.v6.refresh(now);
    }

    /// Takes a datagram that came to WireGuard's port.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Monotonic) -> Handled {
        if !message::is_stun(bytes) {
            return Handled::NotStun;
        }
        let Some(message) = message::parse(bytes) else {
            return Handled::Dropped("a broken STUN message");
        };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let family = if from.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        family.handle(from, message, now).unwrap_or(Handled::Dropped("a STUN message that nobody asked for"))
    }

    /// Does what is due at this time. To be called when [`Self::poll_timeout`] says so; at other times it is harmless.
    pub fn handle_timeout(&mut self, now: Monotonic) {
        self.v4.advance(now);
        self.v6.advance(now);
    }

    /// Returns a request that is to be sent now from WireGuard's port. To be called until there is none, after
    /// every other call that takes `&mut self`.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Monotonic, rng: &mut impl Rng) -> Option<(SocketAddr, Vec<u8>)> {
        self.v4.poll_transmit(now, rng).or_else(|| self.v6.poll_transmit(now, rng))
    }

    /// Returns when [`Self::handle_timeout`] and then [`Self::poll_transmit`] want to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        self.v4.poll_timeout().into_iter().chain(self.v6.poll_timeout()).min()
    }

    /// Returns where the IPv4 internet sees WireGuard's port.
    pub fn mapped_v4(&self) -> Option<SocketAddr> {
        self.v4.mapped()
    }

    /// Returns where the IPv6 internet sees WireGuard's port.
    pub fn mapped_v6(&self) -> Option<SocketAddr> {
        self.v6.mapped()
    }

    /// Returns the NAT's type: that of IPv4, where NATs are, or of IPv6 on a host that has nothing else.
    pub fn nat_type(&self) -> NatType {
        self.main_family().nat_type()
    }

    /// Returns whether a mapped address or the type changed since this was last called.
    pub fn take_change(&mut self) -> bool {
        let current =
            Told { mapped_v4: self.mapped_v4(), mapped_v6: self.mapped_v6(), nat_type: self.nat_type() };
        std::mem::replace(&mut self.told, current) != current
    }

    /// Returns all that is known.
    pub fn report(&self) -> Report {
        let main = self.main_family();
        Report {
            servers: self.v4.servers().iter().chain(self.v6.servers()).cloned().collect(),
            nat_type: main.nat_type(),
            filtering: main.filtering(),
            mapped_v4: self.mapped_v4(),
            mapped_v6: self.mapped_v6(),
            hairpin: main.hairpin(),
            cgnat: self.v4.is_carrier_grade(),
            routers: Vec::new(),
            ipv6: self.mapped_v6().is_some(),
            checking: self.v4.is_busy() || self.v6.is_busy(),
            introducers: Vec::new(),
        }
    }

    fn main_family(&self) -> &Family {
        if self.v4.mapped().is_none() && self.v6.mapped().is_some() { &self.v6 } else { &self.v4 }
    }
}

#[cfg(test)]
mod tests;
