//! What `wgmesh status` shows of a node. The shell adds what only it knows: eBPF's counters and the kernel's name.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::kernel::SESSION_LIFETIME;
use super::{KernelTrouble, Mesh};
use crate::address::derive_mesh_addresses;
use crate::kernel::ObservedPeer;
use crate::key::PublicKey;
use crate::nat::{Nat, NatType};
use crate::path::{Kind, Paths};
use crate::plan;
use crate::status::{Ebpf, Kernel, Node, Path, Peer, PeerState, Relay, Status};
use crate::store;
use crate::time::Now;

impl Mesh {
    /// Takes stock.
    pub fn status(&self, now: Now) -> Status {
        let addresses = self.addresses();
        let device = self.observed.as_ref().and_then(|observed| observed.device.as_ref());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.monotonic.since(self.started).as_secs(),
            node: Node {
                interface: self.settings.interface.clone(),
                public_key: self.state.wg_pubkey,
                hostname: self.settings.hostname.clone(),
                mesh_ipv4: addresses.v4,
                mesh_ipv6: addresses.v6,
                listen_port: device.map(|device| device.listen_port).filter(|&port| port != 0),
                exchange_port: self.exchange_port,
                nat_type: Some(self.nat_type().name().to_owned()),
                mapped: self.mapped().last().copied(),
            },
            peers: self.store.iter().map(|(key, peer)| self.peer_status(key, peer, now)).collect(),
            sources: self.source_status(now),
            sessions: self.session_status(now),
            dials: self.dial_status(now),
            shut_out: self.shut_out_status(now),
            ebpf: Ebpf::default(),
            kernel: Kernel {
                converged: self.planned.applied == self.planned.generation && self.planned.trouble.is_none(),
                error: self.planned.trouble.as_ref().map(describe),
                ..Kernel::default()
            },
            relay: Relay {
                serving: self.record.record().relay,
                pairs: self.relays.server.len(),
                max_pairs: self.relays.server.limit(),
                routed_pairs: self.relays.routed_pairs.len(),
                ..Relay::default()
            },
            health: self.health_counts().into(),
            privacy: self.privacy_status(now),
            drops: self.drops.iter().map(|(&reason, &count)| (reason.to_owned(), count)).collect(),
            relays_left: self
                .relays
                .left
                .iter()
                .map(|(fault, &count)| (fault.name().to_owned(), count))
                .collect(),
            problems: self.problems(),
        }
    }

    /// Returns how many peers are known, and how many of them have a live tunnel.
    pub fn count_peers(&self, now: Now) -> (usize, usize) {
        let has_session =
            |key: PublicKey| self.session_age(key, now).is_some_and(|age| age <= SESSION_LIFETIME);
        let live = |key: PublicKey| self.routed_by(key).is_some() || has_session(key);
        (self.store.len(), self.store.iter().filter(|(key, _)| live(*key)).count())
    }

    fn session_age(&self, key: PublicKey, now: Now) -> Option<Duration> {
        let observed = self.observed.as_ref()?.peers.get(&key)?;
        observed.last_handshake.map(|at| now.wall.since(at))
    }

    pub(super) fn peer_status(&self, key: PublicKey, peer: &store::Peer, now: Now) -> Peer {
        let record = peer.record().record();
        let observed = self.observed.as_ref().and_then(|observed| observed.peers.get(&key));
        let age = self.session_age(key, now);
        let relay =
            observed.and_then(|observed| observed.endpoint).and_then(|endpoint| self.relay_at(key, endpoint));
        let routed_by = self.routed_by(key);
        let state = match age {
            _ if routed_by.is_some() => PeerState::Relayed,
            Some(age) if age <= SESSION_LIFETIME && relay.is_some() => PeerState::Relayed,
            Some(age) if age <= SESSION_LIFETIME => PeerState::Direct,
            Some(_) => PeerState::Offline,
            None if self.reach.tunnels.health.trouble(key).is_some() => PeerState::Offline,
            None => PeerState::Connecting,
        };
        let carrier = self.via(key).unwrap_or(key);
        let allowed = self.planned.desired.as_ref().and_then(|desired| desired.peers.get(&carrier));
        let addresses = derive_mesh_addresses(self.keys.network_id(), self.subnets, record.key, record.nonce);
        let is_route = |net: &&IpNet| record.routes.contains(net);
        Peer {
            public_key: key,
            hostname: Some(record.hostname.clone()),
            mesh_ipv4: addresses.v4,
            mesh_ipv6: addresses.v6,
            state,
            path: match routed_by {
                Some(relay) => self.routed_path(key, relay),
                None => observed
                    .and_then(|observed| observed.endpoint)
                    .map(|endpoint| Path { relay, ..self.path(key, endpoint, peer) }),
            },
            last_handshake_s: age.map(|age| age.as_secs()),
            handshake_seen_s: self.handshake_seen(key).map(|at| now.monotonic.since(at).as_secs()),
            rx_bytes: observed.map_or(0, |observed| observed.rx_bytes),
            tx_bytes: observed.map_or(0, |observed| observed.tx_bytes),
            ebpf: None,
            reputation: self.book.standing(key).map(|standing| standing.reputation.thousandths()),
            sources: peer.sources.keys().rev().map(|source| source.name().to_owned()).collect(),
            routes: allowed
                .map(|peer| peer.allowed_ips.iter().filter(is_route).copied().collect())
                .unwrap_or_default(),
            why: self.why_unwell(key, now).or_else(|| self.why(key, peer, state, observed)),
        }
    }

    fn path(&self, key: PublicKey, endpoint: SocketAddr, peer: &store::Peer) -> Path {
        let tried = self.reach.paths.get(&key).and_then(|paths| paths.candidate(endpoint));
        let on_link =
            peer.candidates.get(&endpoint).is_some_and(|candidate| candidate.source == store::Source::Lan);
        let kind = match tried {
            _ if on_link => Kind::Lan,
            Some(candidate) => candidate.kind,
            None => self.kind_at(key, endpoint),
        };
        let mtu = self.reach.paths.get(&key).and_then(Paths::mtu).map(u32::from);
        let rtt = tried.and_then(|candidate| candidate.rtt).or_else(|| self.reach.tunnels.health.rtt(key));
        let rtt_ms = rtt.map(in_milliseconds);
        Path { kind: kind.name().to_owned(), endpoint, relay: None, rtt_ms, mtu }
    }

    /// Returns the path to a peer through the tunnel of the relay that routes to it.
    fn routed_path(&self, key: PublicKey, relay: PublicKey) -> Option<Path> {
        let endpoint = self.observed.as_ref()?.peers.get(&relay)?.endpoint?;
        let paths = self.reach.paths.get(&key)?;
        let rtt_ms = paths.candidate(paths.current()?)?.rtt.map(in_milliseconds);
        let kind = Kind::Routed.name().to_owned();
        Some(Path { kind, endpoint, relay: Some(relay), rtt_ms, mtu: None })
    }

    fn why(
        &self,
        key: PublicKey,
        peer: &store::Peer,
        state: PeerState,
        observed: Option<&ObservedPeer>,
    ) -> Option<String> {
        let record = peer.record().record();
        if plan::addresses_of(record, self.keys.network_id(), self.subnets).0.is_none() {
            let (theirs, ours) = (record.subnet, self.subnets.v4);
            return Some(format!(
                "its mesh subnet is {theirs} and ours is {ours}, so it is reached over IPv6 only"
            ));
        }
        let without_addresses = self
            .planned
            .desired
            .as_ref()
            .and_then(|desired| desired.peers.get(&key))
            .is_some_and(|p| p.allowed_ips.is_empty());
        if without_addresses && self.via(key).is_none() {
            return Some("a lower key has its mesh address; it will take another".to_owned());
        }
        let (both, _) = plan::addresses_of(record, self.keys.network_id(), self.subnets);
        if both.is_some_and(|both| !self.goes_to(key, both.v4.into())) {
            return Some("a lower key has its IPv4 mesh address, so it is reached over IPv6 only".to_owned());
        }
        match (state, observed) {
            (PeerState::Direct, _) => None,
            (PeerState::Relayed, _) => self.why_relayed(key),
            (PeerState::Connecting | PeerState::Offline, _) if self.why_no_path(key).is_some() => {
                self.why_no_path(key)
            }
            (PeerState::Connecting, None) => Some("the kernel does not hold it yet".to_owned()),
            (PeerState::Connecting, Some(ObservedPeer { endpoint: None, .. })) => {
                Some("no address of it is known to work yet".to_owned())
            }
            (PeerState::Connecting, Some(_)) => Some("it has not answered a handshake yet".to_owned()),
            (PeerState::Offline, _) => Some("its last handshake is more than three minutes old".to_owned()),
        }
    }

    /// Says why a relay is between this node and a peer.
    pub(super) fn why_relayed(&self, key: PublicKey) -> Option<String> {
        if self.is_relay_forced(key) {
            return Some("`relay.force` is set, and neither of the two is public".to_owned());
        }
        self.why_no_path(key)
    }

    /// Says why no address of a peer answers, once an attempt has failed.
    pub(super) fn why_no_path(&self, key: PublicKey) -> Option<String> {
        let paths = self.reach.paths.get(&key).filter(|paths| paths.failures() > 0)?;
        let theirs = self.store.get(key)?.record().record().nat;
        let ours = self.nat_type();
        let tries = match paths.failures() {
            1 => "one attempt".to_owned(),
            failures => format!("{failures} attempts"),
        };
        let reason = match (ours, theirs) {
            (NatType::Symmetric, Nat::Symmetric) => "both NATs are symmetric".to_owned(),
            (NatType::Symmetric, _) => "our NAT is symmetric, and theirs lets in known ports only".to_owned(),
            (NatType::PortRestricted, Nat::Symmetric) => {
                "their NAT is symmetric, and ours lets in known ports only".to_owned()
            }
            _ => format!("none of its {} addresses answers", paths.candidates().count()),
        };
        Some(format!("no direct path after {tries}: {reason}"))
    }

    fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = self.planned.trouble.iter().map(describe).collect();
        if self.port_moves > 0 {
            let (asked, got) = (self.settings.listen_port, self.listen_port);
            problems.push(format!("UDP port {asked} is used by another program; WireGuard listens on {got}"));
        }
        if self.planned.has_no_address {
            problems.push(format!(
                "hosts with lower keys have all addresses of {}, so that this one is reached by IPv6 only; set `subnet` to a greater one on every host",
                self.subnets.v4
            ));
        }
        if self.settings.dandelion && self.talk.is_none() {
            problems.push(
                "nobody can publish this node, as `privacy.dandelion` asks for: add \"gossip\" to `discovery.enabled_methods`"
                    .to_owned(),
            );
        }
        let subnet = IpNet::from(self.subnets.v4);
        for own in self.own_networks().into_iter().filter(|own| own.contains(&subnet) || subnet.contains(own))
        {
            problems.push(format!(
                "this host is in {own}, which overlaps the mesh subnet {subnet}; set `subnet` to another on every host"
            ));
        }
        problems
    }
}

fn in_milliseconds(rtt: Duration) -> u32 {
    u32::try_from(rtt.as_millis()).unwrap_or(u32::MAX)
}

fn describe(trouble: &KernelTrouble) -> String {
    match trouble {
        KernelTrouble::PortInUse => "another program has WireGuard's port".to_owned(),
        KernelTrouble::Refused(text) | KernelTrouble::Other(text) => text.clone(),
    }
}
