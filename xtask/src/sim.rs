//! `cargo xtask sim`: one fleet on a virtual LAN, and what it takes to mesh and to rest.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wgmesh_sim::host::{HostPlan, Totals};
use wgmesh_sim::network::Conditions;
use wgmesh_sim::world::World;

/// What to simulate.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many nodes start at once on one LAN.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// What everything random is drawn from: the same seed gives the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For how many virtual seconds the meshed fleet is watched at rest.
    #[arg(long, default_value_t = 300)]
    duration: u64,
    /// The share of datagrams that get lost, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
}

/// A fleet that takes longer to mesh has failed.
const MESH_LIMIT: Duration = Duration::from_secs(600);

/// What the nodes still say to each other right after they are meshed does not count as rest.
const SETTLING: Duration = Duration::from_secs(20);

/// Runs the fleet and prints its figures.
///
/// # Errors
/// The violated invariant, or that the fleet was not meshed in time.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.nodes >= 2, "a mesh takes at least two nodes");
    ensure!((0.0..1.0).contains(&arguments.loss), "--loss takes a share from 0 to below 1");
    let clock = Instant::now();
    let mut world = World::new(arguments.seed);
    let lan = world.add_segment(Conditions { loss: arguments.loss, ..Conditions::CLEAN });
    for node in world.add_hosts(arguments.nodes, &HostPlan::default(), lan) {
        world.start(node)?;
    }
    let meshed = world.run_until_meshed(MESH_LIMIT)?;
    let at_mesh = Sum::of(&world);
    world.run_for(SETTLING)?;
    let at_rest = Sum::of(&world);
    world.run_for(Duration::from_secs(arguments.duration))?;
    let at_end = Sum::of(&world);
    let seconds = arguments.duration.max(1) as f64;
    println!("nodes                        {}", arguments.nodes);
    println!("full mesh after              {:.1} ms", meshed.as_secs_f64() * 1e3);
    println!("until then, per node         {}", at_mesh.per_node(1.0, ""));
    println!("  lost to full sockets       {}", at_mesh.totals.overflows);
    println!("20 s after that, per node    {}", at_rest.since(&at_mesh).per_node(1.0, ""));
    println!("at rest, per node            {}", at_end.since(&at_rest).per_node(seconds, "/s"));
    println!("kernel writes at rest        {}", at_end.writes - at_rest.writes);
    println!(
        "kernel readings, per node    {:.2}/s",
        at_end.since(&at_rest).share(|sum| sum.readings) / seconds
    );
    println!("trace                        {}", world.trace());
    println!("virtual, real                {:?}, {:.1} s", world.elapsed(), clock.elapsed().as_secs_f64());
    Ok(())
}

/// What all nodes together did.
struct Sum {
    nodes: u64,
    totals: Totals,
    writes: u64,
    readings: u64,
}

impl Sum {
    fn of(world: &World) -> Self {
        let mut sum = Self { nodes: 0, totals: Totals::default(), writes: 0, readings: 0 };
        for (_, host) in world.hosts() {
            sum.nodes += 1;
            sum.totals.announces += host.totals.announces;
            sum.totals.hellos += host.totals.hellos;
            sum.totals.probes += host.totals.probes;
            sum.totals.bytes += host.totals.bytes;
            sum.totals.session_bytes += host.totals.session_bytes;
            sum.totals.overflows += host.totals.overflows;
            sum.writes += host.kernel.writes();
            sum.readings += host.readings();
        }
        sum
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            nodes: self.nodes,
            totals: Totals {
                announces: self.totals.announces - earlier.totals.announces,
                hellos: self.totals.hellos - earlier.totals.hellos,
                probes: self.totals.probes - earlier.totals.probes,
                bytes: self.totals.bytes - earlier.totals.bytes,
                session_bytes: self.totals.session_bytes - earlier.totals.session_bytes,
                overflows: self.totals.overflows - earlier.totals.overflows,
            },
            writes: self.writes - earlier.writes,
            readings: self.readings - earlier.readings,
        }
    }

    fn share(&self, figure: impl Fn(&Self) -> u64) -> f64 {
        figure(self) as f64 / self.nodes as f64
    }

    fn per_node(&self, seconds: f64, unit: &str) -> String {
        let datagrams = self.share(|sum| sum.totals.announces + sum.totals.hellos) / seconds;
        let bytes = self.share(|sum| sum.totals.bytes) / seconds;
        format!("{datagrams:.2}{unit} datagrams, {bytes:.0}{unit} bytes")
    }
}
