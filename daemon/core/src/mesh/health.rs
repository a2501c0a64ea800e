//! Whether peers that have a tunnel still answer through it.
//!
//! A path that carries traffic is watched ([`crate::path`]); this is what makes the watch begin in between two readings
//! of the kernel: word that packets go out to a peer and nothing comes back. Such word is a hint and no more, so it
//! costs one ping; only the pings say whether the path is lost.

use super::Mesh;
use crate::key::PublicKey;
use crate::message::{Disco, DiscoBody, PING_PADDING_BYTES, Paired as _, Stamp};
use crate::path::{Paths, probe_bytes};
use crate::plan;
use crate::seal::OVERHEAD_BYTES;
use crate::time::Now;

impl Mesh {
    /// Makes sure of the path to a peer that leaves packets unanswered, wherever it was met.
    pub(super) fn on_unanswered(&mut self, key: PublicKey, now: Now) {
        // Where others send too, the next word comes within a second.
        if !self.settings.punching || self.just_gossiped(key, now) {
            return;
        }
        let Some(endpoint) = self.live_endpoint(key, now) else { return };
        let kind = self.kind_of(endpoint.ip());
        let paths = self.reach.paths.entry(key).or_default();
        if paths.current().is_none() {
            paths.follow_kernel(endpoint, kind, now.monotonic);
        }
        paths.suspect(now.monotonic);
    }

    /// Returns the MTU of the routes to a peer where its path carries less than our link takes.
    pub(super) fn route_mtu(&self, key: PublicKey) -> Option<u32> {
        let mtu = self.reach.paths.get(&key).and_then(Paths::mtu).map(u32::from);
        mtu.filter(|&mtu| mtu < plan::MTU)
    }

    /// Has the routes to a peer follow what its path carries.
    pub(super) fn follow_mtu(&mut self, key: PublicKey) {
        let Some(paths) = self.reach.paths.get_mut(&key) else { return };
        if paths.take_mtu_change() {
            tracing::info!(peer = %key, mtu = paths.mtu(), "its path carries packets of another length");
            self.dirty = true;
        }
    }

    /// Returns how much a ping to a peer must be padded to prove an MTU.
    pub(super) fn ping_padding(&self, key: PublicKey, id: u64, mtu: Option<u16>) -> usize {
        let (Some(mtu), Some(peer)) = (mtu, self.store.get(key)) else { return PING_PADDING_BYTES };
        // Lengths that are written in as many bytes as those of any long ping.
        let trial = probe_bytes(mtu) / 2;
        let body = DiscoBody::Ping { id, padding: vec![0; trial].into() };
        let stamp = Stamp { sequence: self.record.record().sequence, counter: self.counter + 1 };
        let disco = Disco { key: self.state.wg_pubkey, stamp, token: self.token, body };
        let length = disco.encode_proved(key, &peer.pair).len() + OVERHEAD_BYTES;
        trial + probe_bytes(mtu).saturating_sub(length)
    }
}
