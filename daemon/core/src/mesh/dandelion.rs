//! Who publishes whom: what [`crate::dandelion`] decides, carried by gossip.
//!
//! Every node that writes to the DHT publishes for others. Whether others publish for it is its operator's choice. A node
//! that reaches nobody publishes itself: nobody could do it for it, and nobody would ever find it otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Mesh;
use crate::dandelion::{Context, Dandelion, Epoch};
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::status::Privacy;
use crate::sync::Entry;
use crate::time::{Monotonic, Now};

impl Mesh {
    /// Whether only others may publish this node now.
    pub(super) fn is_private(&self) -> bool {
        self.settings.dandelion && self.dht.as_ref().is_some_and(|source| !source.is_alone())
    }

    /// Does what is due for records that are to be published.
    pub(super) fn drive_dandelion(&mut self, now: Now) {
        let own = self.is_private().then_some(&self.record);
        if self.dht.as_ref().is_some_and(|source| source.dandelion.is_due(own, now)) {
            let own = own.cloned();
            self.with_dandelion(now, |dandelion, context| dandelion.drive(own.as_ref(), context));
        }
    }

    /// Returns those of the relays that this epoch has drawn for a pair, where only others may publish this node: then none
    /// sees its packets for long because it happens to be the nearest (W-D33). Both ends find the same.
    pub(super) fn private_relays(
        &self,
        key: PublicKey,
        reached: &BTreeMap<PublicKey, Duration>,
        now: Now,
    ) -> Vec<PublicKey> {
        if !self.settings.dandelion {
            return Vec::new();
        }
        let reached: Vec<_> = reached.keys().copied().collect();
        Epoch::of(now.wall).relays(&self.keys, self.state.wg_pubkey.min(key), &reached)
    }

    /// Takes a record that a peer wants published.
    pub(super) fn on_stem(&mut self, from: PublicKey, record: SignedRecord, hops: u8, now: Now) {
        let (key, sequence) = (record.record().key, record.record().sequence);
        let is_known = self.store.get(key).is_some_and(|peer| peer.record().record().sequence <= sequence);
        if !is_known || record.record().is_goodbye() {
            return self.drop_from_dht("stem of a stranger");
        }
        self.with_dandelion(now, |dandelion, context| dandelion.handle_stem(from, record, hops, context));
    }

    /// Takes a peer's word that a record is published.
    pub(super) fn on_done(&mut self, from: PublicKey, entry: Entry) {
        if let Some(source) = &mut self.dht {
            source.dandelion.handle_done(from, entry);
        }
    }

    /// Returns when [`Mesh::drive_dandelion`] has something to do.
    pub(super) fn next_stem(&self) -> Option<Monotonic> {
        self.dht.as_ref().and_then(|source| source.dandelion.poll_timeout())
    }

    /// Returns who publishes whom, for `wgmesh status`.
    pub(super) fn privacy_status(&self, now: Now) -> Option<Privacy> {
        let dandelion = &self.dht.as_ref()?.dandelion;
        let (published_by_another, publishes) =
            (dandelion.is_published(), dandelion.published(now.wall).len());
        (self.settings.dandelion || publishes > 0).then_some(Privacy { published_by_another, publishes })
    }

    fn with_dandelion(&mut self, now: Now, act: impl FnOnce(&mut Dandelion, &Context<'_>)) {
        let reached = self.reached_by_gossip(now);
        let Self { dht: Some(source), keys, .. } = self else { return };
        act(&mut source.dandelion, &Context { keys, reached: &reached, now });
        for output in source.dandelion.take_outputs() {
            self.gossip_stem(output);
        }
    }
}
