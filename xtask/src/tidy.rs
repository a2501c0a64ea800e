//! `cargo xtask tidy`: what STYLE asks of the tree and a compiler does not check.
//!
//! Violations fail. Functions of more than [`source::LONG_FUNCTION`] lines and requirements that no test names are
//! listed for people to look at.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, output, root};

mod requirements;
mod source;

use source::Source;

/// What must not be in the core's dependency tree: whatever does I/O or waits.
const BANNED_IN_CORE: [&str; 6] = ["aya", "mio", "nix", "rtnetlink", "socket2", "tokio"];

/// What stands in the workspace's root: the folders of the design, and what tools want there.
const ROOT: [&str; 19] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "daemon",
    "deny.toml",
    "ebpf",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "systemd",
    "tests",
    "xtask",
];

/// Homes that are nobody's: samples in tests and documents.
const MADE_UP_HOMES: [&str; 2] = ["me/", "user/"];

/// Something that is not as STYLE wants it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// Counted from one; zero stands for the whole file.
    line: usize,
    text: String,
    is_violation: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_violation { "error" } else { "note" };
        match self.line {
            0 => write!(f, "{kind}: {}: {}", self.path, self.text),
            line => write!(f, "{kind}: {}:{line}: {}", self.path, self.text),
        }
    }
}

/// Checks the whole tree.
///
/// # Errors
/// Says how many violations there are; each was printed.
pub(crate) fn main() -> Result<()> {
    let mut findings = core_findings(&core_packages()?);
    let mut named = BTreeSet::new();
    for path in tracked_files()? {
        findings.extend(name_finding(&path));
        findings.extend(place_finding(&path));
        // What cannot be read as text is no source; what is listed and gone was just deleted.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        findings.extend(home_path_findings(&path, &text));
        if path.ends_with(".rs") {
            let source = Source::parse(&path, &text).with_context(|| format!("cannot parse {path}"))?;
            findings.extend(source.findings());
            named.extend(source.named_requirements());
        }
    }
    findings.sort();
    findings.iter().for_each(|finding| println!("{finding}"));
    print!("{}", requirements::report(&root().join("../shared/REQUIREMENTS.md"), &named));
    match findings.iter().filter(|finding| finding.is_violation).count() {
        0 => Ok(()),
        count => bail!("{count} violations of STYLE"),
    }
}

fn tracked_files() -> Result<Vec<String>> {
    let mut git = std::process::Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    Ok(output(&mut git)?.lines().map(str::to_owned).collect())
}

fn core_packages() -> Result<String> {
    output(&mut cargo(&["tree", "--package", "wgmesh-core", "--edges", "normal", "--prefix", "none"]))
}

fn core_findings(packages: &str) -> Vec<Finding> {
    let names: BTreeSet<_> = packages.lines().filter_map(|line| line.split(' ').next()).collect();
    let banned = BANNED_IN_CORE.into_iter().filter(|name| names.contains(name));
    banned
        .map(|name| Finding {
            path: "daemon/core/Cargo.toml".to_owned(),
            line: 0,
            text: format!("the core depends on {name}: it must not do I/O"),
            is_violation: true,
        })
        .collect()
}

fn name_finding(path: &str) -> Option<Finding> {
    let is_mod = Path::new(path).file_name().is_some_and(|name| name == "mod.rs");
    is_mod.then(|| Finding {
        path: path.to_owned(),
        line: 0,
        text: "a module's file is named after it: foo.rs beside foo/".to_owned(),
        is_violation: true,
    })
}

fn place_finding(path: &str) -> Option<Finding> {
    let first = path.split('/').next()?;
    (!ROOT.contains(&first)).then(|| Finding {
        path: path.to_owned(),
        line: 0,
        text: format!("{first} has no place in the workspace's root"),
        is_violation: true,
    })
}

/// Finds paths into somebody's home, which are of no use on any other machine.
fn home_path_findings(path: &str, text: &str) -> Vec<Finding> {
    let homes = ["home", "Users", "root"].map(|folder| format!("/{folder}/"));
    let is_home = |line: &str| {
        homes.iter().any(|home| {
            let mut found = line.match_indices(home.as_str());
            found.any(|(at, _)| is_absolute(line, at) && names_something(&line[at + home.len()..]))
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| is_home(line));
    lines
        .map(|(number, _)| Finding {
            path: path.to_owned(),
            line: number + 1,
            text: "a path into somebody's home".to_owned(),
            is_violation: true,
        })
        .collect()
}

fn is_absolute(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | '$'))
}

fn names_something(rest: &str) -> bool {
    let is_made_up = MADE_UP_HOMES.iter().any(|home| rest.starts_with(home));
    !is_made_up && rest.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W-D53: the core decides, and whatever does I/O stands outside it.
    #[test]
    fn a_core_that_can_do_io_is_found() {
        let packages = "wgmesh-core v0.1.0 (…)\nsha2 v0.10.9\ntokio v1.50.0\ntokio-util v0.7.0\n";
        let found: Vec<_> = core_findings(packages).into_iter().map(|finding| finding.text).collect();
        assert_eq!(found, ["the core depends on tokio: it must not do I/O"]);
    }

    #[test]
    fn a_module_file_that_hides_its_name_is_found() {
        assert!(name_finding("daemon/src/kernel/mod.rs").is_some());
        assert!(name_finding("daemon/src/kernel/model.rs").is_none());
    }

    /// C-2: the layout is the design's.
    #[test]
    fn what_has_no_place_in_the_root_is_found() {
        assert!(place_finding("utils/src/lib.rs").is_some());
        assert!(place_finding("daemon/src/main.rs").is_none());
    }

    #[test]
    fn a_path_into_a_home_is_found_with_its_line() {
        for folder in ["home", "Users", "root"] {
            let text = format!("fine\nsee /{folder}/someone/notes");
            assert_eq!(home_path_findings("a.md", &text)[0].line, 2, "{folder}");
        }
        let harmless = format!("$target/{0}/x, ./{0}/x, a/{0}/x, /{0}/me/x and a bare /{0}/ alone", "root");
        assert_eq!(home_path_findings("a.md", &harmless), []);
    }
}
