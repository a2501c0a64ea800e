//! The files of a package as they stand below `/`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

/// Files of the workspace, and where they go.
const FILES: &[(&str, &str)] = &[
    ("systemd/wgmesh@.service", "usr/lib/systemd/system/wgmesh@.service"),
    ("systemd/sysusers.d/wgmesh.conf", "usr/lib/sysusers.d/wgmesh.conf"),
    ("systemd/tmpfiles.d/wgmesh.conf", "usr/lib/tmpfiles.d/wgmesh.conf"),
    ("systemd/encrypted-secret.conf.example", "usr/share/doc/wgmesh/examples/encrypted-secret.conf"),
    ("systemd/wgmesh0.toml.example", "usr/share/doc/wgmesh/examples/wgmesh0.toml"),
    ("README.md", "usr/share/doc/wgmesh/README.md"),
    ("SECURITY.md", "usr/share/doc/wgmesh/SECURITY.md"),
    ("CHANGELOG.md", "usr/share/doc/wgmesh/CHANGELOG.md"),
];

/// What the daemon prints when asked so, and where that goes.
const PRINTED: &[(&[&str], &str)] = &[
    (&["man"], "usr/share/man/man8/wgmesh.8"),
    (&["completions", "bash"], "usr/share/bash-completion/completions/wgmesh"),
    (&["completions", "fish"], "usr/share/fish/vendor_completions.d/wgmesh.fish"),
    (&["completions", "zsh"], "usr/share/zsh/vendor-completions/_wgmesh"),
];

/// What a Debian package runs around its installation, beside its control file.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

const PROGRAM: u32 = 0o755;
const TEXT: u32 = 0o644;

/// A folder that holds the files.
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Puts everything but the control files into an empty `root`.
    ///
    /// # Errors
    /// Says which file could not be read or written.
    pub(super) fn stage(daemon: &Path, root: &Path) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root).with_context(|| format!("cannot empty {}", root.display()))?;
        }
        let tree = Self { root: root.to_owned() };
        tree.write("usr/bin/wgmesh", &read(daemon)?, PROGRAM)?;
        for (from, to) in FILES {
            tree.write(to, &read(&workspace::root().join(from))?, TEXT)?;
        }
        for (arguments, to) in PRINTED {
            tree.write(to, workspace::output(Command::new(daemon).args(*arguments))?.as_bytes(), TEXT)?;
        }
        workspace::output(Command::new("gzip").arg("-9n").arg(root.join(PRINTED[0].1)))?;
        let licences = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| read(&workspace::root().join(name)));
        let licences = licences.into_iter().collect::<Result<Vec<_>>>()?.join(&b"\n\n"[..]);
        let copyright =
            [&b"wgmesh is under either of two licences, at your option.\n\n"[..], &licences].concat();
        tree.write("usr/share/doc/wgmesh/copyright", &copyright, TEXT)?;
        Ok(tree)
    }

    /// Adds a Debian package's control file and scripts.
    ///
    /// # Errors
    /// As [`Tree::stage`].
    pub(super) fn add_control(&self, control: &str) -> Result<()> {
        self.write("DEBIAN/control", control.as_bytes(), TEXT)?;
        for script in SCRIPTS {
            let text = read(&workspace::root().join("systemd/debian").join(script))?;
            self.write(&format!("DEBIAN/{script}"), &text, PROGRAM)?;
        }
        Ok(())
    }

    /// Returns the folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the files' size.
    ///
    /// # Errors
    /// Where it cannot be found out.
    pub(super) fn size_kib(&self) -> Result<u64> {
        workspace::number(
            Command::new("du").args(["--summarize", "--apparent-size", "--block-size=1K"]).arg(&self.root),
        )
    }

    /// Writes a file, and gives it and the folders above it their modes, whatever the umask.
    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = self.root.join(name);
        let parent = path.parent().context("a file stands in a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        set(&path, mode).with_context(|| format!("cannot set the mode of {}", path.display()))?;
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root)) {
            set(folder, PROGRAM).with_context(|| format!("cannot set the mode of {}", folder.display()))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
