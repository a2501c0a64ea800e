//! `wgmesh metrics`: the daemon's counters for monitoring.

use std::io::{self, Write};

use super::Error;
use crate::api::client;
use crate::config::File;
use crate::metrics;

/// Prints what the daemon of this configuration counts.
pub(super) fn print(config: &File) -> Result<(), Error> {
    let status = client::status(&config.socket_path())?;
    Ok(io::stdout().write_all(metrics::render(&status).as_bytes())?)
}
