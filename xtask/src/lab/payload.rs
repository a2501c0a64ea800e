//! The second disk of a VM: the binaries, the files and the command of one run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

const GUEST: &str = include_str!("guest.sh");
const SHELL: &str = include_str!("shell.sh");

/// How the folders of runs begin; the process id follows.
const RUN: &str = "run-";

/// The files of one run, in a folder of its own that goes with it. The guest sees them read-only under `/lab`.
pub(crate) struct Payload {
    folder: PathBuf,
}

impl Payload {
    /// Makes a payload without a command.
    ///
    /// # Errors
    /// Says which file could not be written.
    pub(crate) fn new() -> Result<Self> {
        let lab = workspace::target().join("lab");
        remove_leftovers(&lab);
        let payload = Self { folder: lab.join(format!("{RUN}{}", std::process::id())) };
        payload.add_script("guest.sh", GUEST)?;
        payload.add_script("shell.sh", SHELL)?;
        Ok(payload)
    }

    /// Adds a file or, with all it holds, a folder.
    ///
    /// # Errors
    /// Says what could not be copied.
    pub(crate) fn add(&mut self, source: &Path, name: &str) -> Result<()> {
        let place = self.place(name)?;
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--no-target-directory"]).arg(source).arg(place);
        workspace::output(&mut copy).map(|_| ())
    }

    /// Sets what the guest runs once it is up: commands that run beside each other. The exit code is that of one that failed,
    /// if any did. What a shell runs in the background ignores SIGINT, and so would all that it starts.
    ///
    /// # Errors
    /// Says what could not be written.
    pub(crate) fn commands(
        &mut self,
        commands: &[Vec<String>],
        environment: &[(&str, String)],
    ) -> Result<()> {
        let mut script = "#!/bin/sh\n".to_owned();
        for (name, value) in environment {
            script += &format!("export {name}={}\n", quoted(value));
        }
        script += "running=\n";
        for words in commands {
            let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
            script +=
                &format!("env --default-signal=INT,QUIT {} &\nrunning=\"$running $!\"\n", words.join(" "));
        }
        script += "code=0\nfor one in $running; do wait $one || code=$?; done\nexit $code\n";
        self.add_script("command.sh", &script)
    }

    /// Makes the disk of what was added and returns its path.
    ///
    /// # Errors
    /// Carries what mke2fs printed.
    pub(crate) fn disk(&self) -> Result<PathBuf> {
        let disk = self.folder.join("disk");
        let files = self.folder.join("files");
        let used =
            workspace::number(Command::new("du").args(["--summarize", "--block-size=1M"]).arg(&files))?;
        let mut make = Command::new("mke2fs");
        make.env("PATH", workspace::PROGRAM_PATH);
        make.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&files).arg(&disk);
        // File system structures take up to a tenth, and a small disk a few MiB.
        make.arg(format!("{}M", used + used / 8 + 16));
        workspace::output(&mut make)?;
        Ok(disk)
    }

    /// Returns the folder in which the run's other files may stand.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn add_script(&self, name: &str, text: &str) -> Result<()> {
        let place = self.place(name)?;
        fs::write(&place, text).with_context(|| format!("cannot write {}", place.display()))?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))
            .context("cannot make a script executable")
    }

    fn place(&self, name: &str) -> Result<PathBuf> {
        let place = self.folder.join("files").join(name);
        let parent = place.parent().context("a file stands in a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        Ok(place)
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Removes what runs left behind that were killed; their process ids tell.
fn remove_leftovers(lab: &Path) {
    for entry in fs::read_dir(lab).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.strip_prefix(RUN)) else { continue };
        if !Path::new("/proc").join(process).exists() {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Quotes a word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_quoted_word_is_one_word_to_the_shell() {
        for word in ["plain", "two words", "it's", "$HOME `id` \"x\"", ""] {
            let printed = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", quoted(word)))
                .output();
            assert_eq!(String::from_utf8(printed.unwrap().stdout).unwrap(), word);
        }
    }
}
