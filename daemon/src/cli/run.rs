//! `wgmesh run`: everything that must come before the runtime and its threads.

use super::{Error, runtime};
use crate::config::{File, secret};
use crate::{journal, panics, privileges, run};

/// Runs the daemon until it is told to stop.
///
/// The secret is read first, while a start by root may still read everybody's files. Capabilities go before the
/// runtime starts, because threads inherit them.
pub(super) fn start(mut config: File) -> Result<(), Error> {
    panics::abort_unless_contained();
    let journal = journal::start(&config.interface, config.log_level);
    for line in config.take_overrides() {
        tracing::warn!(line, "skipped a line");
    }
    journal.set_level(config.log_level);
    tracing::debug!(version = env!("CARGO_PKG_VERSION"), "configuration read");
    let found = secret::find(&config)?;
    if found.secret.is_weak() {
        tracing::warn!(file = %found.path.display(), "this secret can be guessed; `wgmesh init` makes a strong one");
    }
    privileges::keep_needed()?;
    let runtime = runtime()?;
    // As a task of the runtime: waking the future that is blocked on costs a system call, even from the same thread.
    let daemon = runtime.spawn(run::run(config.clone(), found.secret, journal));
    let ended =
        runtime.block_on(daemon).unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    // A name that is still being looked up must not hold up the end.
    runtime.shutdown_background();
    match ended {
        Ok(run::Ended::Stopped) => Ok(()),
        Ok(run::Ended::Left(_)) => Err(Error::Left),
        Err(error) if error.is_denied_file() && nix::unistd::geteuid().is_root() => {
            Err(Error::ServicesFiles(error, config.interface.clone()))
        }
        Err(error) => Err(error.into()),
    }
}
