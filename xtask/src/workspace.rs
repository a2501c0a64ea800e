//! Where the workspace keeps what, and how its tools are called.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many of the last lines a failed command shows.
const SHOWN_LINES: usize = 40;

/// Where programs are, those of the administrator included, which the path of an ordinary user leaves out.
pub(crate) const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace's root")
}

/// Returns the folder of everything that is built, downloaded or cached.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Makes a command of the workspace's own cargo, run at its root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command whose output is its user's to see.
///
/// # Errors
/// Says what ended with which status.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{} ended with {status}", line_of(command));
    }
    Ok(())
}

/// Runs a command quietly and returns what it printed.
///
/// # Errors
/// Carries the end of the output, both streams of it.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let shown = last_lines(&format!("{text}{errors}"), SHOWN_LINES);
        bail!("{} ended with {}:\n{shown}", line_of(command), output.status);
    }
    Ok(text.into_owned())
}

/// Runs a command quietly and returns the number that its last line begins with, as `du` and `df` print it.
///
/// # Errors
/// As [`output`], and where there is no number.
pub(crate) fn number(command: &mut Command) -> Result<u64> {
    let text = output(command)?;
    let word = text.lines().next_back().and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("{} says no number", line_of(command)))
}

/// Returns the last lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
