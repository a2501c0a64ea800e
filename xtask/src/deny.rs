//! `xtask deny`: checks what we depend on against deny.toml, with the cargo-deny that it installs under `target/tools`.
//!
//! Licences, bans and sources are checked anywhere. Advisories need RustSec's database from the internet; where that
//! cannot be had, the check says so and goes on without.

use std::path::PathBuf;

use anyhow::Result;

use crate::progress::Step;
use crate::workspace;

/// The tool's version. Building it takes some minutes, so it is no part of `xtask test`.
const VERSION: &str = "0.20.2";

/// What needs nothing from the internet.
const LOCAL_CHECKS: [&str; 3] = ["bans", "licenses", "sources"];

/// Runs `xtask deny`.
///
/// # Errors
/// Fails where the tool could not be built and where it found something.
pub(crate) fn main() -> Result<()> {
    let tool = ensure_tool()?;
    let deny = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&tool);
        command.args(arguments).current_dir(workspace::root());
        command
    };
    let mut check = vec!["check"];
    match workspace::output(&mut deny(&["fetch", "db"])) {
        Ok(_) => check.push("all"),
        Err(_) => {
            eprintln!("[xtask] advisories are not checked: RustSec's database cannot be fetched");
            check.extend(LOCAL_CHECKS);
        }
    }
    workspace::run(&mut deny(&check))
}

/// Returns the tool's path; builds it unless this version is there.
fn ensure_tool() -> Result<PathBuf> {
    // A folder for each version: what is in it is never of another.
    let folder = workspace::target().join(format!("tools/cargo-deny-{VERSION}"));
    let tool = folder.join("bin/cargo-deny");
    if tool.exists() {
        return Ok(tool);
    }
    let step = Step::start("building cargo-deny");
    let mut install =
        workspace::cargo(&["install", "--quiet", "--locked", "cargo-deny", "--version", VERSION]);
    workspace::output(install.arg("--root").arg(&folder))?;
    step.finish();
    Ok(tool)
}
