//! `xtask bench`: how fast the product is, beside kernel WireGuard made by hand in the same boot.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::lab::image::Suite;
use crate::lab::program::Program;
use crate::setup;

/// How long one bench may take altogether.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// What is measured, and where.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The Debian release whose kernel is measured on.
    #[arg(long, value_enum, default_value_t = Suite::Trixie, global = true)]
    suite: Suite,
    /// Measure this static binary of the daemon instead of building one.
    #[arg(long, value_name = "FILE", global = true)]
    daemon: Option<PathBuf>,
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Subcommand)]
enum Measure {
    /// The time from a daemon's start to its first ping through the mesh, and where it goes.
    Join {
        /// How many joins are measured.
        #[arg(long, default_value_t = 12)]
        runs: usize,
    },
    /// The time until daemons that start at once all reach each other, and what they cost at rest.
    Fleet {
        /// How many nodes start at once; one measurement for each number.
        #[arg(long, value_delimiter = ',', default_value = "10,20")]
        nodes: Vec<u8>,
        /// How often each fleet is started.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// For how many seconds the first fleet is watched at rest; zero leaves that out.
        #[arg(long, default_value_t = 60)]
        quiet: u64,
        /// Have everything logged, which takes time too, and print what the two hosts logged that found each other last.
        #[arg(long)]
        logs: bool,
    },
    /// The time from two hosts with nothing but the secret in common being ready until they ping each other, by a
    /// private DHT.
    Dht {
        /// How many pairs of each kind meet.
        #[arg(long, default_value_t = 10)]
        runs: u8,
    },
    /// The time until traffic is back after its path has died without a word: both ways, one way, or for large packets
    /// only.
    Failover {
        /// What is left when it dies: `relay`, a third host, or `link`, a second common link.
        #[arg(long, default_value = "relay")]
        over: String,
        /// How many cuts of each kind are measured.
        #[arg(long, default_value_t = 10)]
        cuts: usize,
        /// For how many seconds a path fails every 20 s afterwards, to see how often the tunnel moves.
        #[arg(long, default_value_t = 0)]
        flap: u64,
    },
    /// The time from two hosts behind NATs knowing of each other until they ping each other, and what they send
    /// meanwhile, for each pair of NATs.
    Path {
        /// How often each pair meets.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// How many pairs meet at once.
        #[arg(long, default_value_t = 1)]
        at_once: usize,
    },
    /// The cost of setting many peers beside the bare messages, throughput with and without eBPF, and its nanoseconds for each
    /// packet.
    Kernel {
        /// How many peers are set; one measurement for each number.
        #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
        peers: Vec<u16>,
        /// How often each is measured.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// For how many seconds each stream goes.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// The nanoseconds that eBPF takes for each packet. An emulated processor says little: see `--host`.
    Packets {
        /// Measure on this host's own kernel, which needs no WireGuard for it, and without the VM.
        #[arg(long)]
        host: bool,
    },
    /// The throughput of a tunnel: direct, through a relay in eBPF, and through one in userspace.
    Relay {
        /// How often each way is measured.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// For how many seconds each stream goes.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
}

/// Measures and prints. A goal that is missed is shown and is no failure.
///
/// # Errors
/// Fails where a mesh did not come about, and where the VM could not be built or died.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    let words = match &arguments.measure {
        Measure::Join { runs } => vec!["join".to_owned(), format!("--runs={runs}")],
        Measure::Dht { runs } => vec!["dht".to_owned(), format!("--runs={runs}")],
        Measure::Path { runs, at_once } => {
            vec!["path".to_owned(), format!("--runs={runs}"), format!("--at-once={at_once}")]
        }
        Measure::Failover { over, cuts, flap } => vec![
            "failover".to_owned(),
            format!("--over={over}"),
            format!("--cuts={cuts}"),
            format!("--flap={flap}"),
        ],
        Measure::Kernel { peers, runs, seconds } => {
            let peers = peers.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
            let words = ["kernel".to_owned(), format!("--peers={peers}")];
            [words, [format!("--runs={runs}"), format!("--seconds={seconds}")]].concat()
        }
        Measure::Packets { .. } => vec!["packets".to_owned()],
        Measure::Relay { runs, seconds } => {
            vec!["relay".to_owned(), format!("--runs={runs}"), format!("--seconds={seconds}")]
        }
        Measure::Fleet { nodes, runs, quiet, logs } => {
            let nodes = nodes.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
            let mut words = vec!["fleet".to_owned(), format!("--nodes={nodes}")];
            words.extend([format!("--runs={runs}"), format!("--quiet={quiet}")]);
            words.extend(logs.then(|| "--logs".to_owned()));
            words
        }
    };
    println!("load of this host before: {}", load()?);
    let daemon = arguments.daemon.as_deref();
    let program =
        Program { suite: arguments.suite, name: "bench", arguments: &words, daemon, deadline: DEADLINE };
    match arguments.measure {
        Measure::Packets { host: true } => program.run_on_host()?,
        _ => program.run()?,
    }
    println!("load of this host after: {}", load()?);
    Ok(())
}

/// Returns the average number of busy processes over the last one, five and fifteen minutes: figures that were taken
/// on a busy host say little.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}
