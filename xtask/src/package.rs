//! `cargo xtask package`: a Debian package, and a plain archive of the same files for everybody else.
//!
//! Debian's own `dpkg-deb` and `tar` write them. The same sources and compiler give the same bytes, wherever and
//! whenever they are packed: paths of this machine are mapped away, and every file has the date of the last commit, or
//! of `SOURCE_DATE_EPOCH`. What the package depends on is read off the binary.

mod libraries;
mod tree;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::progress::Step;
use crate::{ebpf, setup, workspace};
use libraries::Libraries;
use tree::Tree;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Debian's name of the architecture that we build for.
const ARCHITECTURE: &str = "amd64";

/// What `xtask package` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Package this binary of the daemon instead of building one.
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
}

/// How the files of a Debian package are compressed, in words of `dpkg-deb -Z`.
#[derive(Clone, Copy)]
pub(crate) enum Compression {
    /// So that Debian 11 can read it.
    Xz,
    /// For a package that is installed once, soon.
    None,
}

/// Builds the daemon and packs it into `target/package`.
///
/// # Errors
/// Fails where something could not be built, and where the binary needs a library of no known package.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    let daemon = arguments.daemon.clone().map_or_else(build_daemon, Ok)?;
    let step = Step::start("packing");
    let folder = workspace::target().join("package");
    let packed = [debian(&daemon, &folder, Compression::Xz)?, archive(&daemon, &folder)?];
    step.finish();
    packed.iter().for_each(|file| println!("{}", file.display()));
    Ok(())
}

/// Makes a Debian package of a daemon in `folder`, and returns its path.
///
/// # Errors
/// As [`main`].
pub(crate) fn debian(daemon: &Path, folder: &Path, compression: Compression) -> Result<PathBuf> {
    let tree = Tree::stage(daemon, &folder.join("debian"))?;
    tree.add_control(&control(&Libraries::of(daemon)?, tree.size_kib()?))?;
    let file = folder.join(format!("wgmesh_{VERSION}_{ARCHITECTURE}.deb"));
    let mut command = Command::new("dpkg-deb");
    command.arg(match compression {
        Compression::Xz => "-Zxz",
        Compression::None => "-Znone",
    });
    command.args(["--root-owner-group", "--build"]).arg(tree.root()).arg(&file);
    workspace::output(command.env("SOURCE_DATE_EPOCH", date()?))?;
    Ok(file)
}

/// Makes an archive of a daemon in `folder`, whose paths are those below `/`, and returns its path.
fn archive(daemon: &Path, folder: &Path) -> Result<PathBuf> {
    let tree = Tree::stage(daemon, &folder.join("archive"))?;
    let name = format!("wgmesh-{VERSION}-{ARCHITECTURE}");
    let file = folder.join(format!("{name}.tar.gz"));
    let mut command = Command::new("tar");
    command.args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    command.arg(format!("--mtime=@{}", date()?)).arg(format!("--transform=s,^\\.,{name},"));
    command.arg("--use-compress-program=gzip -9n").arg("--file").arg(&file);
    workspace::output(command.arg("--directory").arg(tree.root()).arg("."))?;
    Ok(file)
}

/// Builds the daemon as its users get it.
fn build_daemon() -> Result<PathBuf> {
    ebpf::build_ebpf()?;
    let step = Step::start("building the daemon");
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let registry = env::var_os("CARGO_HOME").map(PathBuf::from).or(home).context("there is no HOME")?;
    let map = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [map(workspace::root(), "/usr/src/wgmesh"), map(&registry, "/usr/src/cargo")];
    let mut command = workspace::cargo(&["build", "--quiet", "--release", "--locked", "--package", "wgmesh"]);
    workspace::run(command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")))?;
    step.finish();
    Ok(workspace::target().join("release/wgmesh"))
}

fn control(libraries: &Libraries, size_kib: u64) -> String {
    let depends = std::iter::once("systemd (>= 247)".to_owned()).chain(libraries.packages());
    let depends = depends.collect::<Vec<_>>().join(", ");
    format!(
        "Package: wgmesh\n\
         Version: {VERSION}\n\
         Architecture: {ARCHITECTURE}\n\
         Maintainer: wgmesh packagers <packagers@wgmesh.invalid>\n\
         Installed-Size: {size_kib}\n\
         Depends: {depends}\n\
         Section: net\n\
         Priority: optional\n\
         Description: kernel WireGuard mesh that keeps itself\n \
         Hosts that share a secret find each other, on a LAN and through NATs, and\n \
         become a mesh of kernel WireGuard that this service keeps right.\n"
    )
}

/// Returns the date that files are given, in seconds since 1970.
fn date() -> Result<String> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(date) => Ok(date),
        Err(_) => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%ct"]).current_dir(workspace::root());
            Ok(workspace::output(&mut git)?.trim().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A program of this machine that takes any arguments and prints nothing.
    const PROGRAM: &str = "/bin/true";

    fn folder(name: &str) -> PathBuf {
        let folder = workspace::target().join("test-package").join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_same_files_give_the_same_packages() {
        let pack = |name: &str| {
            let folder = folder(name);
            let package = debian(Path::new(PROGRAM), &folder, Compression::Xz).unwrap();
            [package, archive(Path::new(PROGRAM), &folder).unwrap()].map(|file| fs::read(file).unwrap())
        };
        let first = pack("first");
        // Files get their times in whole seconds.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(first == pack("second"));
    }

    #[test]
    fn a_package_holds_what_a_service_needs() {
        let package = debian(Path::new(PROGRAM), &folder("content"), Compression::None).unwrap();
        let ask =
            |question: &str| workspace::output(Command::new("dpkg-deb").arg(question).arg(&package)).unwrap();
        let content = ask("--contents");
        for (file, mode) in [
            ("usr/bin/wgmesh", "-rwxr-xr-x root/root"),
            ("usr/lib/systemd/system/wgmesh@.service", "-rw-r--r-- root/root"),
            ("usr/lib/sysusers.d/wgmesh.conf", "-rw-r--r-- root/root"),
            ("usr/lib/tmpfiles.d/wgmesh.conf", "-rw-r--r-- root/root"),
            ("usr/share/man/man8/wgmesh.8.gz", "-rw-r--r-- root/root"),
            ("usr/share/bash-completion/completions/wgmesh", "-rw-r--r-- root/root"),
            ("usr/share/doc/wgmesh/copyright", "-rw-r--r-- root/root"),
        ] {
            let line = content.lines().find(|line| line.ends_with(&format!(" ./{file}")));
            assert!(line.is_some_and(|line| line.starts_with(mode)), "{file} in {content}");
        }
        let control = ask("--info");
        assert!(control.contains("Depends: systemd (>= 247), libc6 (>= 2."), "{control}");
    }
}
