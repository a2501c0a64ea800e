//! The binaries that run in the lab, built statically so that every suite's C library will do.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::payload::Payload;
use crate::package::{self, Compression};
use crate::progress::Step;
use crate::{ebpf, workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The name of the cargo profile: release, but quicker to build.
const PROFILE: &str = "lab";

/// The name of the daemon's binary.
const DAEMON: &str = "wgmesh";

/// The daemon and the lab's tests.
pub(crate) struct Binaries {
    /// The `wgmesh` binary.
    pub(crate) daemon: PathBuf,
    /// The lab's tests, with libtest's own command line.
    pub(crate) tests: PathBuf,
}

impl Binaries {
    /// Builds what changed; the daemon only where none is given.
    ///
    /// # Errors
    /// The compiler's errors are printed; the error only says that it failed.
    pub(crate) fn build(daemon: Option<&Path>) -> Result<Self> {
        let (daemon, tests) = with_daemon(daemon, "tests", "--test", "lab")?;
        Ok(Self { daemon, tests })
    }

    /// Adds them to a payload: `/lab/bin/wgmesh`, `/lab/bin/lab-tests` and the Debian package `/lab/wgmesh.deb`.
    ///
    /// # Errors
    /// Says what could not be copied.
    pub(crate) fn add_to(&self, payload: &mut Payload) -> Result<()> {
        payload.add(&self.daemon, "bin/wgmesh")?;
        payload.add(&self.tests, "bin/lab-tests")?;
        let package = package::debian(&self.daemon, &payload.folder().join("package"), Compression::None)?;
        payload.add(&package, "wgmesh.deb")
    }
}

/// Builds what changed of the daemon, only where none is given, and of one of the lab's programs; returns both paths.
///
/// # Errors
/// As [`Binaries::build`].
pub(super) fn program(name: &str, daemon: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
    with_daemon(daemon, name, "--bin", name)
}

/// Builds a target of the lab, and the daemon with it: of what both depend on, one build then has the features that
/// either wants, and there is no second.
fn with_daemon(given: Option<&Path>, what: &str, kind: &str, target: &str) -> Result<(PathBuf, PathBuf)> {
    let step = Step::start(format!("building the daemon and the lab's {what}"));
    let lab = ["--package", "wgmesh-lab", kind, target];
    let paths = match given {
        Some(daemon) => (daemon.to_owned(), executable_in(&cargo(&lab)?, target)?),
        None => {
            ebpf::build_ebpf()?;
            let messages = cargo(&[&["--package", "wgmesh", "--bin", DAEMON], &lab[..]].concat())?;
            (executable_in(&messages, DAEMON)?, executable_in(&messages, target)?)
        }
    };
    step.finish();
    Ok(paths)
}

/// Runs cargo in the lab's own target folder for one target, and returns its messages.
fn cargo(targets: &[&str]) -> Result<String> {
    let mut command = workspace::cargo(&["build"]);
    command.args(targets).args([
        "--quiet",
        "--profile",
        PROFILE,
        "--target",
        TARGET,
        "--message-format",
        "json-render-diagnostics",
    ]);
    command.arg("--target-dir").arg(workspace::target().join("lab/build"));
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static").stderr(Stdio::inherit());
    let output = command.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo build {} failed", targets.join(" "));
    String::from_utf8(output.stdout).context("cargo's messages are not text")
}

fn executable_in(messages: &str, target: &str) -> Result<PathBuf> {
    // A test is built together with its package's programs.
    let executable = messages.lines().find_map(|message| executable_of(message, target));
    executable.with_context(|| format!("cargo made no executable of {target}"))
}

fn executable_of(message: &str, target: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    (message.get("target")?.get("name")? == target).then(|| Path::new(path).to_owned())
}
