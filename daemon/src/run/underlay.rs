//! Follows the links around the mesh: their sockets, the programs on them, and what the core knows of them.

use std::sync::Arc;
use std::time::Duration;

use wgmesh_core::kernel::Underlay;
use wgmesh_core::mesh::Event;

use super::Daemon;

/// The pause before the host's links are listed again where that failed.
const UNDERLAY_RETRY: Duration = Duration::from_secs(1);

impl Daemon {
    /// Follows the links around the mesh. Where they are what they were, only what has failed on one is tried again: addresses are
    /// told of again and again by whoever renews them.
    pub(super) async fn on_underlay(&mut self) {
        let underlay = match self.outside.kernel.underlay().await {
            Ok(underlay) => underlay,
            Err(error) => {
                tracing::warn!(%error, "cannot list the host's links; trying again");
                let again = Arc::clone(&self.outside.changes.underlay);
                tokio::spawn(async move {
                    tokio::time::sleep(UNDERLAY_RETRY).await;
                    again.notify_one();
                });
                return;
            }
        };
        let is_elsewhere = self.outside.changes.take_way_out() || underlay != self.underlay;
        self.follow_underlay(&underlay);
        if !is_elsewhere {
            return;
        }
        self.network.look_up_again();
        if !self.config.advertise_routes.is_empty() {
            // A link may have come that must pass packets on.
            self.outside.changes.mesh.notify_one();
        }
        self.feed(Event::Underlay(underlay));
    }

    pub(super) fn follow_underlay(&mut self, underlay: &[Underlay]) {
        underlay.clone_into(&mut self.underlay);
        self.network.follow_underlay(underlay);
        self.outside.traffic.follow_underlay(underlay);
    }
}
