//! A VM that boots an image, runs one command of a payload, and ends with it.
//!
//! The guest's output arrives on a virtio port, line by line, as QEMU's own standard output; the exit code on a
//! second port, in a file; the kernel's console in another file, whose end is shown where a boot or a run fails.
//! Only one VM runs commands at a time: two would make each other slow and every measurement false.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::accelerator;
use super::image::Image;
use super::payload::Payload;
use crate::progress::Step;
use crate::workspace;

/// The emulator.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// The emulated processor. QEMU 7.2 sometimes leaves garbage in the flags after `cmpxchg16b`, the trap flag among it,
/// when an interrupt follows at once; without that instruction the kernel's allocator takes a lock instead. AVX2, which
/// makes cryptography faster on real processors, makes it slower here: QEMU has no wide registers to carry it out in, so
/// a signature takes longer to verify than by plain arithmetic. Programs and kernel choose at run time.
const PROCESSOR: &str = "max,-cx16,-avx2";

/// What makes emulation faster. QEMU translates a program's code again for every address at which it finds it; at random
/// addresses the start of a process costs several times more, which no real processor knows.
const SPEED: &str = "mitigations=off norandmaps";

/// What ends a VM whose processor hangs in the kernel: a panic after twice so many seconds, which shows where. Longer than a
/// busy machine keeps the VM itself from running.
const HANG: &str = "softlockup_panic=1 watchdog_thresh=30";

/// How long a boot may take: systemd needs 20 s on two emulated cores, and machines may be five times slower.
const BOOT: Duration = Duration::from_secs(120);

/// How often a boot is tried, and a VM is booted for the same tests, where QEMU is at fault.
pub(crate) const BOOTS: u32 = 3;

/// What the console says of QEMU's own fault: Linux patches its code while another processor carries it out, and QEMU 7.2
/// now and then has that processor trap on a patch that is done already. Linux 5.10 carries the same instruction out again
/// (`kprobe_int3_handler`), which traps again, for good.
const EMULATORS_FAULTS: [&str; 2] = ["Oops: int3", "softlockup: hung tasks"];

/// What the guest says first on its output port.
const BOOTED: &str = "lab: booted";

/// How many lines of the console are shown when something went wrong.
const SHOWN_LINES: usize = 40;

/// What runs before the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boot {
    /// Nothing: the command's script is PID 1.
    Direct,
    /// systemd, to its default target; the command is a unit.
    Systemd,
}

/// A VM to be run once.
pub(crate) struct Guest {
    /// What it boots.
    pub(crate) image: Image,
    /// How it boots.
    pub(crate) boot: Boot,
    /// What it finds under `/lab`, the command among it.
    pub(crate) payload: Payload,
    /// How long the command may run.
    pub(crate) deadline: Duration,
}

impl Guest {
    /// Boots, gives each line that the command prints to `on_line`, and returns the command's exit code.
    ///
    /// # Errors
    /// Where the VM does not boot in time, dies, or outlives its deadline; carries the console's end. [`EmulatorFailed`] where
    /// QEMU is at fault.
    pub(crate) fn run(&self, on_line: impl FnMut(&str)) -> Result<i32> {
        let _lock = lock()?;
        let console = self.payload.folder().join("console");
        let result = self.payload.folder().join("result");
        let outcome = self.boot(&console, &result).and_then(|(mut child, lines)| {
            self.follow(&lines, on_line)?;
            child.0.wait().context("cannot wait for QEMU")?;
            let code = fs::read_to_string(&result).context("the VM ended without a result")?;
            code.trim().parse().with_context(|| format!("the VM's result is {code:?}"))
        });
        outcome.map_err(|error| with_console(error, &console))
    }

    /// Boots until the guest has said so, more than once if need be: nothing of the command has run yet.
    fn boot(&self, console: &Path, result: &Path) -> Result<(Running, Receiver<String>)> {
        let mut may_hang = true;
        for _ in 1..BOOTS {
            match self.try_boot(console, result) {
                Err(_) if has_emulator_failed(console) => {
                    eprintln!("[xtask] {EmulatorFailed}: it boots again");
                }
                Err(error) if error.is::<Hung>() && std::mem::take(&mut may_hang) => {
                    eprintln!("[xtask] {error}: it boots once more");
                }
                outcome => return outcome,
            }
        }
        self.try_boot(console, result)
    }

    fn try_boot(&self, console: &Path, result: &Path) -> Result<(Running, Receiver<String>)> {
        let mut command = self.qemu()?;
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-chardev", "file,id=output,path=/dev/stdout", "-chardev"]);
        command.arg(format!("file,id=result,path={}", result.display()));
        let step = Step::start("booting the VM");
        let mut child = Running(command.stdout(Stdio::piped()).spawn().context("cannot start QEMU")?);
        let lines = lines_of(child.0.stdout.take().context("QEMU's output is piped")?);
        match lines.recv_timeout(BOOT) {
            Ok(line) if line == BOOTED => step.finish(),
            Ok(line) => bail!("the VM said {line:?} where it should say {BOOTED:?}"),
            Err(RecvTimeoutError::Timeout) => bail!(Hung),
            Err(RecvTimeoutError::Disconnected) => bail!("the VM died while it booted"),
        }
        Ok((child, lines))
    }

    /// Boots with the terminal as the serial console, and returns when the VM ends.
    ///
    /// # Errors
    /// Where QEMU could not be started or failed.
    pub(crate) fn shell(&self) -> Result<()> {
        let mut command = self.qemu()?;
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        command.args([
            "-chardev",
            "file,id=output,path=/dev/null",
            "-chardev",
            "file,id=result,path=/dev/null",
        ]);
        workspace::run(command.stdin(Stdio::inherit()))
    }

    fn qemu(&self) -> Result<Command> {
        let image = &self.image;
        let accelerator = accelerator::choose(image)?;
        let init = match self.boot {
            Boot::Direct => "init=/usr/local/sbin/lab-init",
            Boot::Systemd => "systemd.show_status=1",
        };
        // QEMU ends when we are killed, whichever way.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU, "-accel", accelerator]);
        command.args(["-cpu", PROCESSOR, "-smp", "2", "-m", "3G", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.initramfs());
        command.arg("-append");
        command.arg(format!("root=/dev/vda rw console=ttyS0 quiet panic=-1 {HANG} {SPEED} {init}"));
        command.arg("-drive").arg(drive(&image.disk(), "snapshot=on"));
        command.arg("-drive").arg(drive(&self.payload.disk()?, "readonly=on"));
        command.args(["-device", "virtio-serial", "-device", "virtserialport,chardev=output,nr=1"]);
        command.args(["-device", "virtserialport,chardev=result,nr=2"]).stdin(Stdio::null());
        Ok(command)
    }

    fn follow(&self, lines: &Receiver<String>, mut on_line: impl FnMut(&str)) -> Result<()> {
        let started = Instant::now();
        loop {
            match lines.recv_timeout(self.deadline.saturating_sub(started.elapsed())) {
                Ok(line) => on_line(&line),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("not done within {} s", self.deadline.as_secs()),
            }
        }
    }
}

/// The emulator made the VM panic, whatever ran in it.
#[derive(Debug)]
pub(crate) struct EmulatorFailed;

impl fmt::Display for EmulatorFailed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("QEMU had the VM's kernel trap on code that it had just patched")
    }
}

/// The VM was started and has never said that it is up.
#[derive(Debug)]
struct Hung;

impl fmt::Display for Hung {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the VM did not boot within {} s", BOOT.as_secs())
    }
}

impl std::error::Error for Hung {}

/// A QEMU that does not outlive us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Waits until no other VM of this workspace runs.
fn lock() -> Result<File> {
    let file =
        File::create(workspace::target().join("lab/vm-lock")).context("cannot make the VM's lock file")?;
    if file.try_lock().is_err() {
        let step = Step::start("waiting for another VM to end");
        file.lock().context("cannot lock the VM")?;
        step.finish();
    }
    Ok(file)
}

fn drive(path: &Path, option: &str) -> String {
    format!("file={},if=virtio,format=raw,{option}", path.display().to_string().replace(',', ",,"))
}

/// Reads on its own thread, which ends with the VM. Bytes that are no text are replaced.
fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn has_emulator_failed(console: &Path) -> bool {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    EMULATORS_FAULTS.iter().any(|fault| text.contains(fault))
}

fn with_console(error: anyhow::Error, console: &Path) -> anyhow::Error {
    let text = fs::read(console).unwrap_or_default();
    let shown = workspace::last_lines(&String::from_utf8_lossy(&text), SHOWN_LINES);
    let error = anyhow!("{error:#}; the end of the VM's console:\n{shown}");
    if has_emulator_failed(console) { error.context(EmulatorFailed) } else { error }
}
