//! The VM's disk, kernel and initramfs, built from Debian packages and kept under `target/lab/<suite>`.
//!
//! An image is built again only where its recipe changed: the recipe's text lies beside the disk, written last, so a
//! build that was cut off is never taken for an image. The disk is never written after that; VMs use snapshots.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::progress::Step;
use crate::workspace;

const CUSTOMIZE: &str = include_str!("customize.sh");
const INITRAMFS: &str = include_str!("initramfs.sh");

/// What the VM holds beyond Debian's minimum: an init, a kernel, the oracles, and the servers that tests talk to.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "linux-image-cloud-amd64",
    "kmod",
    "procps",
    "iproute2",
    "iputils-ping",
    "ethtool",
    "nftables",
    "iptables",
    "wireguard-tools",
    "tcpdump",
    "strace",
    "coturn",
    "miniupnpd-nftables",
    "avahi-daemon",
    "avahi-utils",
    "dnsmasq",
];

/// A node of Mainline DHT that is not ours, and a mesh to compare with; one release is enough for both.
const TRIXIE_PACKAGES: &[&str] = &["transmission-daemon", "tinc"];

/// A Debian release, chosen for its kernel and its systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Debian 13: Linux 6.12, systemd 257.
    Trixie,
    /// Debian 12: Linux 6.1, systemd 252.
    Bookworm,
    /// Debian 11: Linux 5.10, systemd 247.
    Bullseye,
}

impl fmt::Display for Suite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
            Self::Bullseye => "bullseye",
        })
    }
}

/// A suite's bootable files.
pub(crate) struct Image {
    folder: PathBuf,
}

impl Image {
    /// Returns the suite's image, built now unless the last one still fits the recipe.
    ///
    /// # Errors
    /// Says which of the tools failed, with the end of what it printed.
    pub(crate) fn ensure(suite: Suite) -> Result<Self> {
        let folder = workspace::target().join("lab").join(suite.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("cannot make the image's lock file")?;
        lock.lock().context("cannot lock the image")?;
        let recipe = format!("{suite}\n{}\n{INITRAMFS}\n{CUSTOMIZE}", packages(suite).join(" "));
        if fs::read_to_string(folder.join("recipe")).is_ok_and(|found| found == recipe) {
            return Ok(Self { folder });
        }
        let step = Step::start(format!("building the VM's {suite} image"));
        fs::remove_file(folder.join("recipe")).ok();
        build(suite, &folder)?;
        fs::write(folder.join("recipe"), recipe).context("cannot write the image's recipe")?;
        step.finish();
        Ok(Self { folder })
    }

    /// Returns the path of the root disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("disk")
    }

    /// Returns the path of the kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// Returns the path of the kernel's first file system.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }
}

fn build(suite: Suite, folder: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--format=null"]);
    // Lists of old suites, and of mirrors that stand still, are past their dates.
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    for nowhere_read in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{nowhere_read}/*"));
    }
    command.arg(format!("--include={}", packages(suite).join(",")));
    for (hook, name, text) in
        [("essential", "initramfs.sh", INITRAMFS), ("customize", "customize.sh", CUSTOMIZE)]
    {
        let script = folder.join(name);
        fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
        command.arg(format!("--{hook}-hook=sh {} \"$1\"", script.display()));
    }
    command.arg(suite.to_string()).arg("/dev/null").args(mirror());
    command.env("LAB_IMAGE", folder);
    workspace::output(&mut command).map(|_| ()).with_context(|| format!("the {suite} image was not built"))
}

fn packages(suite: Suite) -> Vec<&'static str> {
    let more = match suite {
        Suite::Trixie => TRIXIE_PACKAGES,
        Suite::Bookworm | Suite::Bullseye => &[],
    };
    [PACKAGES, more].concat()
}

/// Returns the mirror from which this host gets its own Debian packages, which is the one sure to be reachable. On
/// other hosts, and where no list was fetched yet, mmdebstrap knows Debian's own.
fn mirror() -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let targets = workspace::output(&mut command).ok()?;
    targets.lines().find_map(|line| line.strip_prefix("Debian Debian ").map(str::to_owned))
}
