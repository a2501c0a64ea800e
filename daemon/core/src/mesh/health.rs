//! Whether peers that have a tunnel still answer through it.
//!
//! A path that carries traffic is watched ([`crate::path`]); this is what makes the watch begin in between two readings
//! of the kernel: word that packets go out to a peer and nothing comes back. Such word is a hint and no more, so it
//! costs one ping; only the pings say whether the path is lost.

use super::Mesh;
use crate::key::PublicKey;
use crate::time::Now;

impl Mesh {
    /// Makes sure of the path to a peer that leaves packets unanswered, wherever it was met.
    pub(super) fn on_unanswered(&mut self, key: PublicKey, now: Now) {
        if !self.settings.punching {
            return;
        }
        let Some(endpoint) = self.live_endpoint(key, now) else { return };
        let kind = self.kind_of(endpoint.ip());
        let paths = self.reach.paths.entry(key).or_default();
        if paths.current().is_none() {
            paths.follow_kernel(endpoint, kind, now.monotonic);
        }
        paths.verify(now.monotonic);
    }
}
