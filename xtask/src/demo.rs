//! `cargo xtask demo`: the main job on a real kernel, from whatever a machine lacks to three meshed nodes.

use std::time::Duration;

use anyhow::Result;

use crate::lab::image::Suite;
use crate::lab::program::Program;
use crate::setup;

/// How long the demonstration itself may take; it is done in seconds.
const DEADLINE: Duration = Duration::from_secs(5 * 60);

/// Builds everything, boots the lab, and shows how three hosts that share a secret become a mesh.
///
/// # Errors
/// Fails where something could not be built, and where the hosts did not mesh.
pub(crate) fn main() -> Result<()> {
    setup::ensure()?;
    Program { suite: Suite::Trixie, name: "demo", arguments: &[], daemon: None, deadline: DEADLINE }.run()
}
