//! The lab's own programs (`tests/lab/src/bin`): what runs in the VM and is no test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::build;
use super::image::{Image, Suite};
use super::payload::Payload;
use super::vm::{Boot, Guest};
use crate::{setup, workspace};

/// A program to be run, and how.
pub(crate) struct Program<'a> {
    /// The release whose kernel it runs on.
    pub(crate) suite: Suite,
    /// Its name.
    pub(crate) name: &'static str,
    /// Its arguments.
    pub(crate) arguments: &'a [String],
    /// A static binary of the daemon, in place of one that is built.
    pub(crate) daemon: Option<&'a Path>,
    /// How long it may run.
    pub(crate) deadline: Duration,
}

impl Program<'_> {
    /// Builds the daemon and the program, boots a VM, runs the program there and prints what it prints.
    ///
    /// # Errors
    /// Fails where something could not be built, where the VM died, and where the program failed.
    pub(crate) fn run(&self) -> Result<()> {
        let name = self.name;
        let (daemon, program) = build::program(name, self.daemon)?;
        let image = Image::ensure(self.suite)?;
        let mut payload = Payload::new()?;
        payload.add(&daemon, "bin/wgmesh")?;
        payload.add(&program, &format!("bin/{name}"))?;
        let mut words = vec![format!("/lab/bin/{name}")];
        words.extend_from_slice(self.arguments);
        let environment = [("WGMESH_BIN", "/lab/bin/wgmesh".to_owned()), ("RUST_BACKTRACE", "1".to_owned())];
        payload.commands(&[words], &environment)?;
        let guest = Guest { image, boot: Boot::Direct, payload, deadline: self.deadline };
        let code = guest.run(|line| println!("{line}"))?;
        ensure!(code == 0, "{name} ended with exit code {code}");
        Ok(())
    }

    /// Builds the daemon and the program, and runs the program on this host's own kernel.
    ///
    /// # Errors
    /// Fails where something could not be built, where it is not run as root, and where the program failed.
    pub(crate) fn run_on_host(&self) -> Result<()> {
        let name = self.name;
        ensure!(
            setup::is_root()?,
            "eBPF takes root; run:\n  sudo --preserve-env cargo xtask {name} ... --host"
        );
        let (daemon, program) = build::program(name, self.daemon)?;
        workspace::run(Command::new(program).args(self.arguments).env("WGMESH_BIN", daemon))
    }
}
