//! `xtask setup`: installs what the other commands need from Debian and from rustup.
//!
//! What is missing is found by the files that must be there, not by asking the package manager, so that a machine
//! which has them by other means is left alone. Without root nothing is changed: the one missing command is named.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::Step;
use crate::workspace::{self, PROGRAM_PATH};

/// A file that must be in one of some folders (a colon between two), and the Debian package that brings it.
struct Need {
    file: &'static str,
    folders: &'static str,
    package: &'static str,
}

/// What the build and the lab need beyond rustup.
const NEEDS: &[Need] = &[
    Need { file: "cc", folders: PROGRAM_PATH, package: "gcc" },
    Need { file: "libc.a", folders: "/usr/lib/x86_64-linux-gnu:/usr/lib64:/usr/lib", package: "libc6-dev" },
    Need { file: "qemu-system-x86_64", folders: PROGRAM_PATH, package: "qemu-system-x86" },
    Need { file: "mmdebstrap", folders: PROGRAM_PATH, package: "mmdebstrap" },
    Need { file: "mke2fs", folders: PROGRAM_PATH, package: "e2fsprogs" },
    Need { file: "git", folders: PROGRAM_PATH, package: "git" },
    Need { file: "setpriv", folders: PROGRAM_PATH, package: "util-linux" },
    Need {
        file: "debian-archive-keyring.gpg",
        folders: "/usr/share/keyrings",
        package: "debian-archive-keyring",
    },
];

/// Installs whatever is missing.
///
/// # Errors
/// Without root, names the one command that installs it.
pub(crate) fn ensure() -> Result<()> {
    ensure_packages()?;
    ensure_components()
}

/// Makes sure that the target folder may grow to so many MiB: a compiler or a VM that finds its disk full says so late,
/// and not always clearly.
///
/// # Errors
/// Says what is missing, and where.
pub(crate) fn ensure_space(needed: u64) -> Result<()> {
    let target = workspace::target();
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let held = workspace::number(Command::new("du").args(["--summarize", "--block-size=1M"]).arg(&target))?;
    let free =
        workspace::number(Command::new("df").args(["--output=avail", "--block-size=1M"]).arg(&target))?;
    let missing = needed.saturating_sub(held + free);
    ensure!(
        missing == 0,
        "{} takes {needed} MiB in the end, for which {missing} MiB of disk are missing",
        target.display()
    );
    Ok(())
}

fn ensure_packages() -> Result<()> {
    let missing: Vec<&str> = NEEDS.iter().filter(|need| !need.is_met()).map(|need| need.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root()? {
        bail!(
            "Debian packages are missing; install them by:\n  sudo apt-get install --yes --no-install-recommends {list}"
        );
    }
    let step = Step::start(format!("installing {list}"));
    if install(&missing).is_err() {
        // The package lists may be old, or were never fetched.
        workspace::output(Command::new("apt-get").arg("update"))?;
        install(&missing)?;
    }
    step.finish();
    Ok(())
}

impl Need {
    fn is_met(&self) -> bool {
        self.folders.split(':').any(|folder| Path::new(folder).join(self.file).exists())
    }
}

fn install(packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    workspace::output(command.env("DEBIAN_FRONTEND", "noninteractive")).map(|_| ())
}

/// Adds the compiler's components that rust-toolchain.toml names; rustup does so itself on a fresh machine, but not
/// where its automatic installation is switched off.
fn ensure_components() -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        let found = Command::new(program).arg("--version").output();
        if !found.is_ok_and(|answer| answer.status.success()) {
            workspace::output(
                Command::new("rustup").args(["component", "add", component]).current_dir(workspace::root()),
            )?;
        }
    }
    Ok(())
}

/// Tells whether we run as root.
pub(crate) fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata("/proc/self").context("cannot read /proc/self")?;
    Ok(metadata.uid() == 0)
}
