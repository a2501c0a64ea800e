//! What the applier needs of a kernel.

use std::future::Future;
use std::sync::Arc;

use tokio::time::Instant;
use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{Observed, Write};

use super::INTERVAL;
use crate::kernel::{Kernel, KernelError, Passage, Reading};

/// A kernel to observe and to write to: the real one, or a model of it in tests (W-D54).
pub trait Net {
    /// Reads everything that the kernel holds of our interface.
    fn observe(&self) -> impl Future<Output = Result<Observed, KernelError>> + Send;

    /// Reads the WireGuard device at `first` and after each [`INTERVAL`], and from `whole_at` on everything, until a reading
    /// is a whole one or tells something new; see [`Kernel::poll`]. Nothing more is read once the future is dropped.
    fn poll(
        &self,
        first: Instant,
        whole_at: Instant,
        earlier: Arc<Observed>,
    ) -> impl Future<Output = Result<Reading, KernelError>> + Send;

    /// Carries out the writes in order; see [`Kernel::apply`].
    fn apply(
        &self,
        writes: Arc<[Write]>,
    ) -> impl Future<Output = Result<Vec<KernelError>, KernelError>> + Send;

    /// Makes the host pass on what is wanted; see [`Kernel::forward`].
    fn forward(&self, want: Forwarding) -> impl Future<Output = Result<Passage, KernelError>> + Send;

    /// Returns the index of our link as it was last read or made.
    fn link_index(&self) -> Option<u32>;
}

impl Net for Kernel {
    async fn observe(&self) -> Result<Observed, KernelError> {
        Kernel::observe(self).await
    }

    async fn poll(
        &self,
        first: Instant,
        whole_at: Instant,
        earlier: Arc<Observed>,
    ) -> Result<Reading, KernelError> {
        Kernel::poll(self, first.into_std(), INTERVAL, whole_at.into_std(), earlier).await
    }

    async fn apply(&self, writes: Arc<[Write]>) -> Result<Vec<KernelError>, KernelError> {
        Kernel::apply(self, writes).await
    }

    async fn forward(&self, want: Forwarding) -> Result<Passage, KernelError> {
        Kernel::forward(self, want).await
    }

    fn link_index(&self) -> Option<u32> {
        Kernel::link_index(self)
    }
}
