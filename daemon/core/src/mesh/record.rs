//! This node's own record, and its state on disk.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;

use super::{Command, Mesh};
use crate::address::MeshSubnets;
use crate::config::Settings;
use crate::derive::MeshKeys;
use crate::identity::NodeState;
use crate::message::Stamp;
use crate::nat::Nat;
use crate::record::{Record, SignedRecord};
use crate::time::Now;

/// For how long a record holds: long enough to outlive a few lost refreshes.
pub const RECORD_LIFETIME: Duration = Duration::from_secs(3600);

/// How often a node signs its record anew: half its lifetime.
pub const RECORD_REFRESH: Duration = Duration::from_secs(1800);

/// In a mesh of more than forty-five nodes records hold longer: a record signed anew goes to every node, and more than one of
/// them in this time would cost each node more than all else that a mesh at rest has to say.
const REFRESH_SHARE: Duration = Duration::from_secs(40);

/// The longest that a record holds, of however many nodes.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);

impl Mesh {
    /// Signs the record anew, with whatever has changed, and tells everyone.
    pub(super) fn renew_record(&mut self, now: Now) {
        let whereabouts = self.whereabouts();
        let Self { settings, keys, subnets, state, rng, .. } = self;
        let record = sign_record(settings, keys, *subnets, state, whereabouts, now, rng);
        let before = std::mem::replace(&mut self.record, record.clone());
        self.signed_at = now.monotonic;
        self.spread_refresh(now);
        self.save_state();
        if record.record().is_renewal_of(before.record()) {
            self.tell_of_renewal(&record, now);
            self.announce_renewal(now);
        } else {
            self.tell(&record, None, now);
            self.announce_soon(now);
        }
    }

    /// Sets when the record is signed anew: after half its lifetime or somewhat sooner, so that nodes which started together
    /// do not all do so at once.
    pub(super) fn spread_refresh(&mut self, now: Now) {
        let longest = Duration::from_secs(self.record.record().lifetime_s.into()) / 2;
        let sooner = longest.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX) / 2.0);
        self.refresh_at = now.monotonic + longest - sooner;
    }

    /// Returns for how long a record of a mesh of this size holds.
    pub(super) fn record_lifetime(&self) -> Duration {
        let peers = u32::try_from(self.store.len()).unwrap_or(u32::MAX);
        RECORD_LIFETIME.max(REFRESH_SHARE.saturating_mul(peers) * 2).min(LONGEST_LIFETIME)
    }

    /// Returns a stamp for the next message.
    pub(super) fn next_stamp(&mut self) -> Stamp {
        self.counter += 1;
        Stamp { sequence: self.record.record().sequence, counter: self.counter }
    }

    pub(super) fn save_state(&mut self) {
        let addresses = self.addresses();
        self.state.mesh_ip = Some(addresses.v4);
        self.state.mesh_ipv6 = Some(addresses.v6);
        self.commands.push_back(Command::SaveState(self.state.clone()));
    }
}

/// The part of a record that follows the host around.
pub(super) struct Whereabouts {
    pub(super) listen_port: u16,
    pub(super) candidates: Vec<SocketAddr>,
    pub(super) nat: Nat,
    pub(super) exchange_port: Option<u16>,
    pub(super) introducer: bool,
    pub(super) relay: bool,
    pub(super) lifetime: Duration,
}

pub(super) fn sign_record(
    settings: &Settings,
    keys: &MeshKeys,
    subnets: MeshSubnets,
    state: &mut NodeState,
    whereabouts: Whereabouts,
    now: Now,
    rng: &mut ChaCha8Rng,
) -> SignedRecord {
    let Whereabouts { listen_port, candidates, nat, exchange_port, introducer, relay, lifetime } =
        whereabouts;
    state.sequence = state.sequence.advance(now.wall);
    let record = Record {
        key: state.wg_pubkey,
        sequence: state.sequence,
        hostname: settings.hostname.clone(),
        nonce: state.nonce,
        subnet: subnets.v4,
        listen_port,
        routes: settings.advertise_routes.iter().copied().collect(),
        issued: now.wall,
        lifetime_s: u32::try_from(lifetime.as_secs()).expect("at most a day in seconds"),
        candidates,
        nat,
        exchange_port,
        introducer,
        relay,
    };
    SignedRecord::sign(record, &state.wg_private_key, keys.network_id(), rng)
}
