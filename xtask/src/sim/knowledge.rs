//! `cargo xtask sim --knowledge` and `--churn`: how many nodes come to know each other, and keep doing so.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use peak_alloc::PeakAlloc;
use wgmesh_sim::churn::Churn;
use wgmesh_sim::scale::{ROUND, Scale, Sent};

/// Counts what is allocated, so that memory is the same for the same seed.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// A mesh that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(900);

/// How often it is looked whether all know all.
const STEP: Duration = Duration::from_millis(250);

/// How long the mesh is left alone before it counts as at rest.
const SETTLING: Duration = Duration::from_secs(120);

/// How long the two halves are parted.
const PARTED: Duration = Duration::from_secs(1800);

/// DESIGN 14: the most that a node may say at rest, in bytes a second.
const MOST_AT_REST: f64 = 50.0;

/// By how much the memory of a mesh that lives on may differ from what it was after [`GROWN_UP`] hours, for each node that
/// some node holds: how many run at a time is left to chance.
const MOST_GROWTH: f64 = 1.25;
const GROWN_UP: u64 = 2;

/// What one size of mesh took.
struct Row {
    nodes: usize,
    trials: [Trial; 3],
    rest: Sent,
    seconds: u64,
    kibibytes: u64,
    real: Duration,
}

/// How long it took until all knew all, and what was sent meanwhile.
struct Trial {
    took: Duration,
    sent: Sent,
}

/// Runs meshes of several sizes, in rising order, through their trials and prints a table.
///
/// # Errors
/// That some node did not learn what all others know.
pub(super) fn spread(seed: u64, sizes: &[usize], rest: u64) -> Result<()> {
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable();
    println!(
        "seed {seed}; until all know all: seconds, rounds, bytes per node; at rest for {rest} s: bytes per node and second"
    );
    println!(
        "{:>6} | {:^24} | {:^24} | {:^24} | {:^21} | {:>8} | {:>8}",
        "nodes",
        "cold start",
        "one node's change",
        "half an hour parted",
        "rest: gossip, sessions",
        "KiB/node",
        "real s"
    );
    let before = allocated_bytes();
    for nodes in sizes {
        let row = run(seed, nodes, rest.max(1), before)?;
        println!("{row}");
        let said = row.said_at_rest();
        ensure!(said <= MOST_AT_REST, "each of {nodes} nodes says {said:.1} bytes a second at rest");
    }
    Ok(())
}

fn run(seed: u64, nodes: usize, seconds: u64, before: u64) -> Result<Row> {
    let clock = Instant::now();
    let mut scale = Scale::new(seed, nodes);
    (0..nodes).for_each(|node| scale.start(node));
    let cold = trial(&mut scale, "a cold start")?;
    scale.run_for(SETTLING);
    let kibibytes = allocated_bytes().saturating_sub(before) / nodes as u64 / 1024;
    let start = scale.sent();
    scale.run_for(Duration::from_secs(seconds));
    let rest = since(scale.sent(), start);
    scale.change(nodes / 2);
    let change = trial(&mut scale, "one node's change")?;
    scale.partition(|node| u32::from(node % 2 == 0));
    scale.run_for(PARTED);
    scale.partition(|_| 0);
    let healed = trial(&mut scale, "half an hour of partition")?;
    Ok(Row { nodes, trials: [cold, change, healed], rest, seconds, kibibytes, real: clock.elapsed() })
}

impl Row {
    /// Returns how many bytes each node sends in a second at rest, without IP and UDP.
    fn said_at_rest(&self) -> f64 {
        (self.rest.gossip + self.rest.sessions) as f64 / self.nodes as f64 / self.seconds as f64
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes as f64;
        write!(f, "{:>6} |", self.nodes)?;
        for Trial { took, sent } in &self.trials {
            let seconds = took.as_secs_f64();
            let bytes = (sent.gossip + sent.sessions) as f64 / nodes;
            write!(f, " {seconds:>6.2} {:>5.1} {bytes:>11.0} |", seconds / ROUND.as_secs_f64())?;
        }
        let share = |bytes: u64| bytes as f64 / nodes / self.seconds as f64;
        write!(f, " {:>10.1} {:>10.1} |", share(self.rest.gossip), share(self.rest.sessions))?;
        write!(f, " {:>8} | {:>8.1}", self.kibibytes, self.real.as_secs_f64())
    }
}

/// Has nodes come and go and prints what became of them.
///
/// # Errors
/// The zombie or the lost node that was found, or that memory grows.
pub(super) fn churn(seed: u64, nodes: usize, hours: u64) -> Result<()> {
    let clock = Instant::now();
    let mut churn = Churn::new(seed, nodes);
    let mut grown_up = None;
    for hour in 1..=hours {
        churn.run_for(Duration::from_secs(3600)).map_err(anyhow::Error::msg)?;
        let bytes = allocated_bytes() as f64;
        let each = bytes / churn.held().max(1) as f64;
        println!(
            "hour {hour:>2}: {}; {:.1} MiB, {:.2} KiB for each node that one holds, {:.1} s real",
            churn.summary(),
            bytes / f64::from(1 << 20),
            each / 1024.0,
            clock.elapsed().as_secs_f64()
        );
        if hour == GROWN_UP {
            grown_up = Some(each);
        }
        let growth = grown_up.map_or(1.0, |before| each / before);
        ensure!(growth <= MOST_GROWTH, "memory is {growth:.2} times what it was after {GROWN_UP} hours");
    }
    Ok(())
}

fn trial(scale: &mut Scale, name: &str) -> Result<Trial> {
    let before = scale.sent();
    let took = scale.run_until(LIMIT, STEP, Scale::all_know_all);
    let took = took.with_context(|| format!("after {name} not all knew all within {LIMIT:?}"))?;
    Ok(Trial { took, sent: since(scale.sent(), before) })
}

fn since(sent: Sent, before: Sent) -> Sent {
    Sent { gossip: sent.gossip - before.gossip, sessions: sent.sessions - before.sessions }
}

/// Returns how much memory this process has allocated now.
fn allocated_bytes() -> u64 {
    HEAP.current_usage() as u64
}
