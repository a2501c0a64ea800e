//! `xtask test`: every check that a change must pass, in the order of what they cost.
//!
//! Nothing is skipped: a stage that cannot run has failed, and the first that fails ends the run. Each stage's own
//! output is shown as it comes; at the end stands where the time went.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::lab::image::{Image, Suite};
use crate::{ebpf, lab, setup, tidy, workspace};

/// What is built for another target, and what only the lab can run.
const NOT_HERE: [&str; 4] = ["--exclude", "wgmesh-ebpf", "--exclude", "wgmesh-lab"];

/// The tests that older kernels and older systemds can decide differently; whole meshes only on the oldest, which with the
/// newest encloses what lies between.
const OLDER_FILTER: &[&str] = &["ebpf::", "kernel::", "systemd::"];
const OLDEST_FILTER: &[&str] = &["ebpf::", "kernel::", "mesh::", "systemd::"];

/// What all of it takes in the target folder of a clean clone, in MiB, and some more for the VMs' logs.
const SPACE: u64 = 7 * 1024;

/// Runs every check.
///
/// # Errors
/// Names the stage that failed.
pub(crate) fn main() -> Result<()> {
    setup::ensure()?;
    setup::ensure_space(SPACE)?;
    let mut stages = Stages::default();
    let outcome = run(&mut stages);
    stages.print();
    outcome
}

fn run(stages: &mut Stages) -> Result<()> {
    stages.run("format", || workspace::run(&mut workspace::cargo(&["fmt", "--all", "--check"])))?;
    stages.run("tidy", tidy::main)?;
    // Fetching Debian packages takes the network, compiling takes the processor.
    let images = build_images();
    stages.run("eBPF object", || ebpf::build_ebpf().map(drop))?;
    stages.run("clippy", clippy)?;
    stages.run("unit and simulation tests", || {
        workspace::run(workspace::cargo(&["test", "--workspace"]).args(NOT_HERE))
    })?;
    stages.run("the VM's images", || images.join().map_err(|_| anyhow!("the image builder panicked"))?)?;
    stages.run("lab tests on trixie", || lab::test(Suite::Trixie, &[]))?;
    stages.run("lab tests on bookworm", || older(Suite::Bookworm, OLDER_FILTER))?;
    stages.run("lab tests on bullseye", || older(Suite::Bullseye, OLDEST_FILTER))
}

/// Runs what an older kernel can decide differently, and says what that is.
fn older(suite: Suite, filters: &[&str]) -> Result<()> {
    let names = filters.join(" ");
    eprintln!("[xtask] on {suite} only tests of {names}: `cargo xtask lab --suite {suite}` runs all of them");
    lab::test(suite, filters)
}

fn clippy() -> Result<()> {
    let mut command =
        workspace::cargo(&["clippy", "--workspace", "--exclude", "wgmesh-ebpf", "--all-targets"]);
    workspace::run(command.args(["--", "--deny", "warnings"]))
}

fn build_images() -> JoinHandle<Result<()>> {
    std::thread::spawn(|| {
        [Suite::Trixie, Suite::Bookworm, Suite::Bullseye]
            .into_iter()
            .try_for_each(|suite| Image::ensure(suite).map(drop))
    })
}

/// The stages so far and what each took.
#[derive(Default)]
struct Stages(Vec<(&'static str, Duration, bool)>);

impl Stages {
    fn run(&mut self, name: &'static str, stage: impl FnOnce() -> Result<()>) -> Result<()> {
        eprintln!("[xtask] == {name} ==");
        let started = Instant::now();
        let outcome = stage();
        self.0.push((name, started.elapsed(), outcome.is_ok()));
        outcome.map_err(|error| error.context(format!("{name} failed")))
    }

    fn print(&self) {
        let total: Duration = self.0.iter().map(|(_, time, _)| *time).sum();
        for (name, time, passed) in &self.0 {
            println!(
                "{name:<26} {:>7.1} s  {}",
                time.as_secs_f64(),
                if *passed { "passed" } else { "FAILED" }
            );
        }
        println!("{:<26} {:>7.1} s", "together", total.as_secs_f64());
    }
}
