//! `xtask lab`: runs the tests of `tests/lab` on a real kernel, in a VM of Debian packages or on this host.
//!
//! One boot serves all tests but those that have the whole machine sleep; these have one of their own. The VM boots straight
//! into the test runner, which is quickest, unless a chosen test stands in the `systemd` module: then systemd boots
//! first, and the runner is a unit of it.

mod accelerator;
mod build;
pub(crate) mod image;
mod payload;
pub(crate) mod program;
mod vm;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

pub(crate) use build::Binaries;
use image::{Image, Suite};
use payload::Payload;
use program::Program;
use vm::{BOOTS, Boot, EmulatorFailed, Guest};

use crate::{setup, workspace};

/// The module whose tests need a booted systemd.
const SYSTEMD_TESTS: &str = "systemd::";

/// The module whose tests need a machine for themselves.
const SUSPEND_TESTS: &str = "suspend::";

/// The modules whose tests would change a host's own machine.
const VM_TESTS: [&str; 2] = [SYSTEMD_TESTS, SUSPEND_TESTS];

/// How long the chosen tests may take altogether.
const DEADLINE: Duration = Duration::from_secs(40 * 60);

/// What `xtask lab` takes.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// The Debian release whose kernel and systemd run the tests.
    #[arg(long, value_enum, default_value_t = Suite::Trixie)]
    suite: Suite,
    /// Run on this host's own kernel, without the VM and without the tests of systemd.
    #[arg(long)]
    host: bool,
    /// Test this static binary of the daemon instead of building one.
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// How many tests run at once.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Where at most so many tests fail, run them once more, one at a time: beside others they compete for two emulated processors.
    #[arg(long, default_value_t = 0)]
    again: usize,
    /// Run only tests whose names contain one of these.
    filter: Vec<String>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Opens a shell in the VM; the binaries are in /lab/bin.
    Shell {
        /// The Debian release to boot.
        #[arg(long, value_enum, default_value_t = Suite::Trixie)]
        suite: Suite,
        /// Boot systemd first.
        #[arg(long)]
        systemd: bool,
    },
    /// Lets hosts behind every pair of NAT kinds meet, and prints each pair's path and how long it took.
    NatMatrix {
        /// How many pairs meet at once.
        #[arg(long, default_value_t = 4)]
        at_once: usize,
        /// For how many seconds a pair is given a chance.
        #[arg(long, default_value_t = 30)]
        limit: u64,
        /// Also print what the daemons of a pair logged that is not as it should be.
        #[arg(long)]
        logs: bool,
        #[command(flatten)]
        choice: Choice,
    },
    /// Watches all pairs of NAT kinds over several of WireGuard's rekeys, with a relay where no direct path can be.
    Soak {
        /// For how many seconds.
        #[arg(long, default_value_t = 420)]
        seconds: u64,
        #[command(flatten)]
        choice: Choice,
    },
}

/// Which pairs of NATs, and on what.
#[derive(Args)]
struct Choice {
    /// The Debian release whose kernel is used.
    #[arg(long, value_enum, default_value_t = Suite::Trixie)]
    suite: Suite,
    /// Use this static binary of the daemon instead of building one.
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// Only pairs whose name contains this, such as "symmetric" or "none × CGNAT".
    #[arg(long, default_value = "")]
    pair: String,
}

/// Runs `xtask lab`.
///
/// # Errors
/// Fails where a test failed, where none was chosen, and where the VM could not be built or died.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    match &arguments.action {
        Some(Action::Shell { suite, systemd }) => {
            shell(*suite, if *systemd { Boot::Systemd } else { Boot::Direct })
        }
        Some(Action::NatMatrix { at_once, limit, logs, choice }) => {
            let mut words =
                vec!["matrix".to_owned(), format!("--at-once={at_once}"), format!("--limit={limit}")];
            words.extend(logs.then(|| "--logs".to_owned()));
            choice.run(words)
        }
        Some(Action::Soak { seconds, choice }) => {
            choice.run(vec!["soak".to_owned(), format!("--seconds={seconds}")])
        }
        None if arguments.host => run_on_host(&Binaries::build(arguments.daemon.as_deref())?, arguments),
        None => run_in_vm(&Binaries::build(arguments.daemon.as_deref())?, arguments),
    }
}

impl Choice {
    /// Runs the program that shows what NATs do.
    fn run(&self, mut words: Vec<String>) -> Result<()> {
        words.push(format!("--pair={}", self.pair));
        let daemon = self.daemon.as_deref();
        Program { suite: self.suite, name: "nat", arguments: &words, daemon, deadline: DEADLINE }.run()
    }
}

/// Runs the lab's tests in a VM of a suite, as a stage of a greater run; the few that fail beside others once more, alone.
///
/// # Errors
/// As [`main`].
pub(crate) fn test(suite: Suite, filter: &[&str]) -> Result<()> {
    let filter = filter.iter().map(|&word| word.to_owned()).collect();
    run_in_vm(
        &Binaries::build(None)?,
        &Arguments { suite, host: false, daemon: None, threads: 4, again: 3, filter, action: None },
    )
}

fn run_in_vm(binaries: &Binaries, arguments: &Arguments) -> Result<()> {
    let names = list(&binaries.tests, &arguments.filter)?;
    let (alone, beside): (Vec<_>, _) = names.into_iter().partition(|name| name.starts_with(SUSPEND_TESTS));
    for names in [beside, alone].into_iter().filter(|names| !names.is_empty()) {
        run_in_one_boot(binaries, arguments, names)?;
    }
    Ok(())
}

fn run_in_one_boot(binaries: &Binaries, arguments: &Arguments, mut left: Vec<String>) -> Result<()> {
    let needs_systemd = left.iter().any(|name| name.starts_with(SYSTEMD_TESTS));
    let image = Image::ensure(arguments.suite)?;
    let mut payload = Payload::new()?;
    binaries.add_to(&mut payload)?;
    let boot = if needs_systemd { Boot::Systemd } else { Boot::Direct };
    let mut guest = Guest { image, boot, payload, deadline: DEADLINE };
    let mut code = run_tests(&mut guest, &mut left, arguments.threads)?;
    if code != 0 && (1..=arguments.again).contains(&left.len()) {
        let failed = left.join(", ");
        println!("[xtask] failed beside others, and run once more, one at a time: {failed}");
        code = run_tests(&mut guest, &mut left, 1)?;
        println!("[xtask] run once more: {failed}: {}", if code == 0 { "passed" } else { "FAILED again" });
    }
    ensure!(code == 0, "lab tests on {} ended with exit code {code}", arguments.suite);
    Ok(())
}

/// Runs the tests that are left, and takes from them what has passed; boots again where QEMU is at fault.
fn run_tests(guest: &mut Guest, left: &mut Vec<String>, threads: usize) -> Result<i32> {
    for _ in 1..BOOTS {
        match try_tests(guest, left, threads) {
            Err(error) if error.is::<EmulatorFailed>() && !left.is_empty() => {
                eprintln!(
                    "[xtask] {error:#}\n[xtask] {} tests are left, for which it boots again",
                    left.len()
                );
            }
            outcome => return outcome,
        }
    }
    try_tests(guest, left, threads)
}

fn try_tests(guest: &mut Guest, left: &mut Vec<String>, threads: usize) -> Result<i32> {
    let folder = Path::new("/lab/bin");
    // Those of systemd share the machine: they take turns, and would keep others waiting.
    let (of_systemd, others) = left.iter().cloned().partition(|name| name.starts_with(SYSTEMD_TESTS));
    let groups = if threads > 1 { vec![of_systemd, others] } else { vec![left.clone()] };
    let exact =
        |names: &Vec<String>| [test_command(folder, threads, names), vec!["--exact".to_owned()]].concat();
    let commands: Vec<_> = groups.iter().filter(|names| !names.is_empty()).map(exact).collect();
    guest.payload.commands(&commands, &environment(folder))?;
    guest.run(|line| {
        println!("{line}");
        let passed = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... ok"));
        left.retain(|name| passed != Some(name));
    })
}

fn run_on_host(binaries: &Binaries, arguments: &Arguments) -> Result<()> {
    ensure!(
        setup::is_root()?,
        "network namespaces take root; run:\n  sudo --preserve-env cargo xtask lab --host"
    );
    ensure!(
        list(&binaries.tests, &arguments.filter)?
            .iter()
            .any(|name| !VM_TESTS.iter().any(|vm| name.starts_with(vm))),
        "only tests of systemd or of sleep were chosen, and those run in the VM alone"
    );
    eprintln!("[xtask] tests of systemd and of sleep are left out on a host: they would change its own");
    let folder = binaries.tests.parent().context("the test binary stands in a folder")?;
    let words = test_command(folder, arguments.threads, &arguments.filter);
    let mut command = Command::new(&binaries.tests);
    command
        .args(&words[1..])
        .args(VM_TESTS.iter().flat_map(|vm| ["--skip", vm]))
        .env("WGMESH_BIN", &binaries.daemon);
    workspace::run(&mut command)
}

/// Names the chosen tests; asking the binary needs neither root nor the VM.
fn list(tests: &Path, filter: &[String]) -> Result<Vec<String>> {
    let text = workspace::output(Command::new(tests).arg("--list").args(filter))?;
    let names: Vec<String> =
        text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    if names.is_empty() {
        bail!("no test's name contains {}", filter.join(" or "));
    }
    Ok(names)
}

fn test_command(folder: &Path, threads: usize, names: &[String]) -> Vec<String> {
    let mut words = vec![folder.join("lab-tests").display().to_string()];
    words.push(format!("--test-threads={threads}"));
    words.extend(names.iter().cloned());
    words
}

fn environment(folder: &Path) -> Vec<(&'static str, String)> {
    vec![("WGMESH_BIN", folder.join("wgmesh").display().to_string()), ("RUST_BACKTRACE", "1".to_owned())]
}

fn shell(suite: Suite, boot: Boot) -> Result<()> {
    let binaries = Binaries::build(None)?;
    let image = Image::ensure(suite)?;
    let mut payload = Payload::new()?;
    binaries.add_to(&mut payload)?;
    payload.commands(&[vec!["/lab/shell.sh".to_owned()]], &environment(Path::new("/lab/bin")))?;
    Guest { image, boot, payload, deadline: Duration::MAX }.shell()
}
