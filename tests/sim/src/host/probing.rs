//! A host's probes through the tunnels of peers that its daemon is in doubt of.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use wgmesh_core::health::PROBE_INTERVAL;
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::Event;
use wgmesh_core::time::{Monotonic, Now};

use super::Host;
use crate::kernel::wireguard::PROBE_BYTES;

/// Whom a daemon probes.
#[derive(Debug, Default)]
pub(super) struct Probing {
    /// When each was probed last.
    targets: BTreeMap<PublicKey, Option<Monotonic>>,
    due: Option<Monotonic>,
}

impl Probing {
    /// Probes these and no others.
    pub(super) fn follow(&mut self, targets: BTreeMap<PublicKey, SocketAddr>, now: Monotonic) {
        self.targets.retain(|key, _| targets.contains_key(key));
        for (key, _) in targets {
            self.targets.entry(key).or_insert(None);
        }
        self.due = (!self.targets.is_empty()).then(|| self.due.unwrap_or(now));
    }

    /// Returns when the next probes are due.
    pub(super) const fn poll_timeout(&self) -> Option<Monotonic> {
        self.due
    }
}

impl Host {
    /// Tells what came of the last probes, and makes the next, if they are due.
    pub(super) fn probe(&mut self, now: Now) {
        let Some(process) = self.process.as_mut() else { return };
        if process.probing.due.is_none_or(|at| at > now.monotonic) {
            return;
        }
        process.probing.due = Some(now.monotonic + PROBE_INTERVAL);
        let mut told = Vec::new();
        for (&key, sent) in &mut process.probing.targets {
            let answered = self.kernel.take_probe_answer(key);
            if let Some(sent) = sent.replace(now.monotonic) {
                let answered = answered.filter(|at| *at >= sent).map(|at| at.since(sent));
                told.push(Event::Probed(key, answered));
            }
            self.kernel.send_data(key, PROBE_BYTES, now);
        }
        self.handle_all(told, now);
    }
}
