//! What the command line is told, and what it sets off.

use std::sync::Arc;

use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::{Event, KernelReport};
use wgmesh_core::status::{SourceState, Status};

use super::{Daemon, clock};
use crate::api::{Answer, ApiRequest};

impl Daemon {
    /// Answers a question. That whoever asked may be gone meanwhile is no error.
    pub(super) async fn answer(&mut self, question: ApiRequest) {
        match question {
            ApiRequest::Status(reply) => {
                let status = self.status().await;
                let _ = reply.send(status);
            }
            ApiRequest::CheckNat(reply) => {
                self.feed(Event::CheckNat);
                let _ = reply.send(self.mesh.nat_report());
            }
            ApiRequest::NatReport(reply) => {
                let _ = reply.send(self.mesh.nat_report());
            }
            ApiRequest::Ping(key, reply) => {
                let before = self.last_answer(key);
                self.feed(Event::Ping(key));
                let _ = reply.send(before);
            }
            ApiRequest::LastAnswer(key, reply) => {
                let _ = reply.send(self.last_answer(key));
            }
        }
    }

    fn last_answer(&self, key: PublicKey) -> Option<Answer> {
        let paths = self.mesh.paths(key)?;
        let last = paths.last_answer()?;
        let kind = paths.candidate(last.from)?.kind;
        Some(Answer { last, kind })
    }

    /// Takes stock, with the kernel's counters of this moment.
    async fn status(&mut self) -> Status {
        if let Ok(observed) = self.outside.kernel.observe().await {
            let generation = self.outside.reports.borrow().generation;
            let outcome = Ok(Arc::new(observed));
            self.feed(Event::Kernel(KernelReport { generation, outcome, fresh: true }));
        }
        let mut status = self.mesh.status(clock::now());
        self.outside.traffic.describe(&mut status);
        status.kernel.release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        status.kernel.readings = self.outside.pulse.turns();
        status.kernel.writes = self.outside.pulse.writes();
        status.kernel.error = status.kernel.error.or_else(|| self.failures.clone());
        status.problems.extend(self.storage.trouble());
        if let (Some(error), Some(source)) = (self.network.lan_trouble(), status.sources.first_mut()) {
            source.state = SourceState::Failing;
            source.error = Some(error.clone());
        }
        status
    }
}
