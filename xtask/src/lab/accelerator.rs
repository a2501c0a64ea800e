//! Whether a VM may use KVM here.
//!
//! `/dev/kvm` is there on machines where a VM then hangs, so only a trial proves it: the lab's own kernel, without
//! any disk, must reach its panic within seconds.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image::Image;
use super::vm::QEMU;
use crate::workspace;

/// How long a kernel may take to its panic: under KVM it is done in one second, emulated in five.
const TRIAL: Duration = Duration::from_secs(4);

const KVM: &str = "kvm";
const EMULATION: &str = "tcg,thread=multi";

/// Returns the accelerator in QEMU's words. The answer is kept until the machine boots again.
///
/// # Errors
/// Only where QEMU cannot be started at all.
pub(super) fn choose(image: &Image) -> Result<&'static str> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(EMULATION);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot id")?;
    let memory = workspace::target().join("lab/accelerator");
    for known in [KVM, EMULATION] {
        if fs::read_to_string(&memory).is_ok_and(|found| found == format!("{boot}{known}")) {
            return Ok(known);
        }
    }
    let chosen = if works(image)? { KVM } else { EMULATION };
    fs::write(&memory, format!("{boot}{chosen}")).context("cannot write the accelerator's name")?;
    Ok(chosen)
}

fn works(image: &Image) -> Result<bool> {
    let mut trial = Command::new(QEMU);
    trial.args(["-accel", KVM, "-cpu", "max", "-m", "512M", "-nodefaults", "-display", "none", "-no-reboot"]);
    trial.arg("-kernel").arg(image.kernel()).args(["-append", "panic=-1"]);
    let mut trial = trial.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start QEMU")?;
    let end = Instant::now() + TRIAL;
    while Instant::now() < end {
        if let Some(status) = trial.try_wait().context("cannot wait for QEMU")? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    trial.kill().context("cannot end QEMU")?;
    trial.wait().context("cannot wait for QEMU")?;
    Ok(false)
}
