//! `wgmesh run`: everything that must come before the runtime and its threads.

use super::Error;
use crate::config::{File, secret};
use crate::{journal, privileges, run};

/// Runs the daemon until it is told to stop.
///
/// The secret is read first, while a start by root may still read everybody's files. Capabilities go before the
/// runtime starts, because threads inherit them. One thread serves everything that waits: the kernel carries
/// the packets, so there is nothing to spread over cores.
pub(super) fn start(config: &File) -> Result<(), Error> {
    journal::start(&config.interface, config.log_level);
    let found = secret::find(config)?;
    if found.secret.is_weak() {
        tracing::warn!(file = %found.path.display(), "this secret can be guessed; `wgmesh init` makes a strong one");
    }
    privileges::keep_needed()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    Ok(runtime.block_on(run::run(config.clone(), found.secret))?)
}
