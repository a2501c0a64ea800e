//! What a daemon is asked to do by signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use wgmesh_core::mesh::Stop;

/// What a signal asks for.
pub(super) enum Asked {
    Stop(Stop),
    Reload,
}

/// The signals that a daemon follows.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    handover: Signal,
    reload: Signal,
}

impl Signals {
    /// Listens in the tokio runtime that calls.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            handover: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them. Cancel-safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop(Stop::Withdraw),
            _ = self.interrupt.recv() => Asked::Stop(Stop::Withdraw),
            _ = self.handover.recv() => Asked::Stop(Stop::Handover),
            _ = self.reload.recv() => Asked::Reload,
        }
    }
}
