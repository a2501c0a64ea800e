//! A host's probes through the tunnels of peers that its daemon is in doubt of.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use wgmesh_core::health::PROBE_INTERVAL;
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::Event;
use wgmesh_core::time::{Monotonic, Now};

use super::Host;

/// Whom a daemon probes.
#[derive(Debug, Default)]
pub(super) struct Probing {
    /// Where each is, and when it was probed last.
    targets: BTreeMap<PublicKey, (SocketAddr, Option<Monotonic>)>,
    due: Option<Monotonic>,
}

impl Probing {
    /// Probes these and no others.
    pub(super) fn follow(&mut self, targets: BTreeMap<PublicKey, SocketAddr>, now: Monotonic) {
        self.targets.retain(|key, _| targets.contains_key(key));
        for (key, address) in targets {
            self.targets.entry(key).or_insert((address, None));
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
        let mut told = Vec::new();
        for (&key, (address, sent)) in &mut process.probing.targets {
            let answered = self.kernel.take_probe_answer(address.ip());
            if let Some((at, begun)) = answered.zip(*sent).filter(|(at, begun)| at >= begun) {
                *sent = None;
                told.push(Event::Probed(key, Some(at.since(begun))));
            }
        }
        if process.probing.due.is_some_and(|at| at <= now.monotonic) {
            process.probing.due = Some(now.monotonic + PROBE_INTERVAL);
            for (&key, (address, sent)) in &mut process.probing.targets {
                if sent.replace(now.monotonic).is_some() {
                    told.push(Event::Probed(key, None));
                }
                self.kernel.probe(*address, now);
            }
        }
        self.handle_all(told, now);
    }
}
