//! What the command line is told, and what it sets off.

use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::Event;
use wgmesh_core::status::{Source, SourceState, Status};

use super::storage::Job;
use super::{Daemon, Error};
use crate::api::{Answer, ApiRequest};
use crate::clock;
use crate::config::StaticPeer;
use crate::notify::Notifier;
use crate::pins::{Pin, Removal};

impl Daemon {
    /// Answers a question. That whoever asked may be gone meanwhile is no error.
    ///
    /// # Errors
    /// If the kernel was looked at for it and what was found ends the daemon's start.
    pub(super) async fn answer(&mut self, question: ApiRequest, notifier: &Notifier) -> Result<(), Error> {
        match question {
            ApiRequest::Status(reply) => {
                self.look(notifier).await?;
                let status = self.status();
                let _ = reply.send(status);
            }
            ApiRequest::CheckNat(reply) => {
                self.feed(Event::CheckNat);
                let _ = reply.send(self.mesh.nat_report(clock::now()));
            }
            ApiRequest::NatReport(reply) => {
                let _ = reply.send(self.mesh.nat_report(clock::now()));
            }
            ApiRequest::Ping(key, reply) => {
                let before = self.last_answer(key);
                self.feed(Event::Ping(key));
                let _ = reply.send(before);
            }
            ApiRequest::LastAnswer(key, reply) => {
                let _ = reply.send(self.last_answer(key));
            }
            ApiRequest::AddPeer(pin, reply) => {
                let _ = reply.send(self.add_peer(pin));
            }
            ApiRequest::RemovePeer(removal, reply) => {
                let _ = reply.send(self.remove_peer(&removal));
            }
            ApiRequest::Pins(reply) => {
                let _ = reply.send(self.wanted.pins().clone());
            }
            ApiRequest::Explain(key, reply) => {
                let _ = reply.send(self.mesh.explain(key, clock::now()));
            }
            ApiRequest::Leave(leaving, reply) => {
                self.leaving = Some(leaving);
                let _ = reply.send(());
            }
            ApiRequest::Reload(reply) => {
                let _ = reply.send(self.reload(notifier).map_err(|error| error.to_string()));
            }
        }
        Ok(())
    }

    /// Takes in what the kernel counts at this moment.
    async fn look(&mut self, notifier: &Notifier) -> Result<(), Error> {
        self.outside.look.take().await;
        // Where nothing is wanted of the kernel yet, nothing was read.
        match self.outside.reports.has_changed() {
            Ok(true) => self.on_report(notifier),
            Ok(false) | Err(_) => Ok(()),
        }
    }

    /// Takes up whom the operator names, at once and for later runs.
    fn add_peer(&mut self, pin: Pin) -> Result<(), String> {
        match &pin {
            Pin::Peer(peer) if peer.key == self.mesh.public_key() => {
                return Err("this is the key of this node itself".to_owned());
            }
            Pin::Node(_) if !self.network.has_exchange() => {
                return Err("the method `exchange` is off, so no node can be dialled".to_owned());
            }
            Pin::Peer(_) | Pin::Node(_) => {}
        }
        let pins = self.wanted.add(pin.clone());
        self.storage.write(Job::Pins(pins));
        match pin {
            Pin::Peer(StaticPeer { key, endpoint }) => self.feed(Event::AddPeer(key, endpoint)),
            Pin::Node(node) => {
                if let Some(key) = node.key {
                    self.feed(Event::Welcome(key));
                }
                self.network.set_bootstrap(self.wanted.bootstrap_nodes());
            }
        }
        Ok(())
    }

    /// Lets go of whom the operator no longer wants. Returns whether they were known or named.
    fn remove_peer(&mut self, removal: &Removal) -> bool {
        let pins = self.wanted.remove(removal);
        let was_named = pins.is_some();
        if let Some(pins) = pins {
            self.storage.write(Job::Pins(pins));
            self.look_up_bootstrap_again();
        }
        if let Some(node) = &removal.node {
            self.feed(Event::ForgetName(node.to_string()));
        }
        let Some(key) = removal.key else { return was_named };
        let was_known = self.mesh.store().get(key).is_some();
        self.feed(Event::RemovePeer(key));
        was_named || was_known
    }

    fn last_answer(&self, key: PublicKey) -> Option<Answer> {
        let paths = self.mesh.paths(key)?;
        let last = paths.last_answer()?;
        let kind = paths.candidate(last.from)?.kind;
        Some(Answer { last, kind })
    }

    /// Takes stock.
    fn status(&self) -> Status {
        let mut status = self.mesh.status(clock::now());
        self.outside.traffic.describe(&mut status);
        status.relay.traffic = self.network.relay_traffic();
        status.kernel.release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        status.kernel.readings = self.outside.kernel.readings();
        status.kernel.writes = self.outside.pulse.writes();
        status.kernel.error = status.kernel.error.or_else(|| self.failures.clone());
        status.kernel.converged &= self.failures.is_none();
        status.kernel.forwarding.clone_from(&self.passage.switched);
        status.problems.extend(self.passage.obstacles.iter().cloned());
        status.problems.extend(self.storage.trouble());
        status.problems.extend(self.network.wireguard_trouble());
        status.problems.extend(self.network.probe_trouble());
        let refused = self.network.refused_streams();
        if refused > 0 {
            status.drops.insert("refused streams".to_owned(), refused);
        }
        note_failure(&mut status, "lan", self.network.lan_trouble().cloned());
        note_failure(&mut status, "bootstrap", self.network.bootstrap_trouble());
        note_failure(&mut status, "gossip", self.network.gossip_trouble().cloned());
        status.sources.extend(self.network.dns_status());
        status
    }
}

/// Has the status say that a source does not work, if that is so.
fn note_failure(status: &mut Status, name: &str, error: Option<String>) {
    let Some(error) = error else { return };
    status.sources.retain(|source| source.name != name);
    let (name, state) = (name.to_owned(), SourceState::Failing);
    let failing = Source { name, state, last_ok_s: None, error: Some(error), dht: None };
    status.sources.insert(0, failing);
}
