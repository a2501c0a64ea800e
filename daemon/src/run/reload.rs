//! Takes up a changed configuration while the mesh runs: nothing but what differs is touched, and a bad file changes
//! nothing.
//!
//! The configuration and what overrides it are read by the mesh task itself. They are two small files that were read
//! before; the kernel carries the mesh's packets meanwhile.

use wgmesh_core::mesh::Event;

use super::Daemon;
use crate::config::{self, File, Reloaded};
use crate::notify::Notifier;

impl Daemon {
    /// Reads the configuration anew and takes up what has changed.
    pub(super) fn reload(&mut self, notifier: &Notifier) -> Result<Reloaded, config::Error> {
        // Before it is ready the end of a reload would look like the end of the start.
        if self.ready {
            notifier.reloading();
        }
        let outcome = self.config.reload().map(|(next, reloaded)| {
            self.follow_configuration(next);
            reloaded
        });
        match &outcome {
            Ok(reloaded) => log(reloaded),
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be used; everything stays as it was");
            }
        }
        if self.ready {
            notifier.ready(&self.last_line);
        }
        outcome
    }

    fn follow_configuration(&mut self, next: File) {
        let before = std::mem::replace(&mut self.config, next);
        self.outside.journal.set_level(self.config.log_level);
        if self.config.nat.stun_servers != before.nat.stun_servers {
            self.network.set_stun_servers(&self.config);
            if self.config.nat.stun_servers.is_empty() {
                self.feed(Event::StunServers(Vec::new()));
            }
        }
        if self.config.discovery.dht != before.discovery.dht {
            self.network.set_dht_bootstrap(&self.config);
        }
        self.follow_wanted(&before);
        self.feed(Event::Reconfigure {
            advertise_routes: self.config.advertise_routes.clone(),
            accept_routes: self.config.accept_routes.clone(),
        });
    }

    fn follow_wanted(&mut self, before: &File) {
        let (peers, nodes) = (self.wanted.static_peers(), self.wanted.bootstrap_nodes());
        self.wanted.follow(before, &self.config);
        let wanted = self.wanted.static_peers();
        for (&key, &endpoint) in wanted.iter().filter(|(key, endpoint)| peers.get(key) != Some(endpoint)) {
            self.feed(Event::AddPeer(key, endpoint));
        }
        for &key in peers.keys().filter(|key| !wanted.contains_key(key)) {
            self.feed(Event::ReleasePeer(key));
        }
        if self.wanted.bootstrap_nodes() != nodes {
            self.look_up_bootstrap_again();
        }
    }

    /// Begins anew with the nodes to dial: whoever is left is told of again as soon as they are looked up.
    pub(super) fn look_up_bootstrap_again(&mut self) {
        let rest = self.network.without_bootstrap();
        self.feed(rest);
        self.network.set_bootstrap(self.wanted.bootstrap_nodes());
    }
}

fn log(reloaded: &Reloaded) {
    let Reloaded { changed, needs_restart, skipped } = reloaded;
    for line in skipped {
        tracing::warn!(line, "skipped a line");
    }
    if !needs_restart.is_empty() {
        tracing::warn!(keys = needs_restart.join(", "), "changed keys wait for a restart");
    }
    tracing::info!(changed = changed.join(", "), "read the configuration anew");
}
