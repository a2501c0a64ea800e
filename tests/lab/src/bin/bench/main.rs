//! Measures the product beside kernel WireGuard made by hand; started in the lab's VM by `cargo xtask bench`.
//!
//! Figures of an emulated machine can only be compared with others of the same boot, so every run of the product
//! stands beside one of `wg` and `ip`. Goals that are missed are shown and fail nothing; a mesh that does not come
//! about does.

mod dht;
mod failover;
mod fleet;
mod join;
mod journey;
mod kernel;
mod packets;
mod path;
mod quiet;
mod relay;
mod sample;
mod stream;
mod tinc;

use std::fs;
use std::time::Duration;

use clap::Parser;

/// The secret of every mesh here; a strong one, which is not stretched.
const SECRET: &str = "wgmesh://v1/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures wgmesh on a real kernel.
#[derive(Parser)]
enum Bench {
    /// From a daemon's start to its first ping through the mesh.
    Join {
        /// How many joins are measured.
        #[arg(long, default_value_t = 12)]
        runs: usize,
    },
    /// From the start of many daemons at once until every pair pings; then what they cost at rest.
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
        /// Have everything logged, and print what the two hosts logged that found each other last.
        #[arg(long)]
        logs: bool,
    },
    /// From two hosts with nothing but the secret in common being ready until both were pinged.
    Dht {
        /// How many pairs of each kind meet.
        #[arg(long, default_value_t = 10)]
        runs: u8,
    },
    /// From the moment when a path dies without a word until traffic is back.
    Failover {
        /// What is left when it dies.
        #[arg(long, value_enum, default_value_t = failover::Over::Relay)]
        over: failover::Over,
        /// How many cuts of each kind are measured.
        #[arg(long, default_value_t = 10)]
        cuts: usize,
        /// For how many seconds a path fails again and again afterwards.
        #[arg(long, default_value_t = 0)]
        flap: u64,
    },
    /// From two hosts behind NATs knowing of each other until they ping each other, for each pair of NATs.
    Path {
        /// How often each pair meets.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// How many pairs meet at once.
        #[arg(long, default_value_t = 1)]
        at_once: usize,
    },
    /// What setting many peers costs beside the bare messages, and what the tunnel carries with and without eBPF.
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
    /// What eBPF takes for each packet.
    Packets,
    /// What a tunnel carries directly, through a relay in eBPF, and through one in userspace.
    Relay {
        /// How often each way is measured.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// For how many seconds each stream goes.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
}

fn main() {
    println!("{}", conditions());
    match Bench::parse() {
        Bench::Join { runs } => join::measure(runs),
        Bench::Dht { runs } => dht::measure(runs),
        Bench::Path { runs, at_once } => path::measure(runs, at_once),
        Bench::Failover { over, cuts, flap } => failover::measure(over, cuts, Duration::from_secs(flap)),
        Bench::Kernel { peers, runs, seconds } => {
            kernel::measure(&peers, runs, seconds);
            packets::measure();
        }
        Bench::Packets => packets::measure(),
        Bench::Relay { runs, seconds } => relay::measure(runs, Duration::from_secs(seconds)),
        Bench::Fleet { nodes, runs, quiet, logs } => {
            for &count in &nodes {
                fleet::measure(count, runs, logs);
            }
            if let (Some(&count), 1..) = (nodes.first(), quiet) {
                quiet::measure(count, Duration::from_secs(quiet));
            }
        }
    }
}

/// Tells what of the machine changes the figures: emulated, random addresses and AVX2 both make programs slower.
fn conditions() -> String {
    let read = |path| fs::read_to_string(path).expect("every Linux has it");
    let randomized = read("/proc/sys/kernel/randomize_va_space").trim() != "0";
    let avx2 = read("/proc/cpuinfo").split_whitespace().any(|flag| flag == "avx2");
    let [addresses, processor] =
        [if randomized { "random" } else { "fixed" }, if avx2 { "with" } else { "without" }];
    format!("programs' addresses are {addresses}; a processor {processor} AVX2")
}
