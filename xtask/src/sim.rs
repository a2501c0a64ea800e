//! `cargo xtask sim`: one fleet on a virtual LAN, or each node behind a NAT of its own, and what it takes to mesh and
//! to rest.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wgmesh_sim::host::{HostPlan, Totals};
use wgmesh_sim::nat::Kind;
use wgmesh_sim::network::{Conditions, HostId};
use wgmesh_sim::world::World;

mod knowledge;

/// What to simulate.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many nodes start at once on one LAN.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Puts every node but a public bootstrap node behind a NAT of its own, the seven kinds in turn.
    #[arg(long)]
    nats: bool,
    /// What everything random is drawn from: the same seed gives the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For how many virtual seconds the meshed fleet is watched at rest.
    #[arg(long, default_value_t = 300)]
    duration: u64,
    /// Shows how knowledge spreads in meshes of these sizes instead, over simplified kernels: after a cold start, after one
    /// node's change and after half an hour of partition.
    #[arg(long, value_name = "NODES", num_args = 0.., value_delimiter = ',', default_missing_value = "100,300,1000",
        conflicts_with_all = ["nats", "loss", "nodes"])]
    knowledge: Option<Vec<usize>>,
    /// For how many virtual hours (`24h`) nodes come and go, over simplified kernels.
    #[arg(long, value_name = "HOURS", value_parser = hours, conflicts_with_all = ["nats", "loss", "knowledge"])]
    churn: Option<u64>,
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
    let mut sizes = arguments.knowledge.iter().flatten().chain([&arguments.nodes]);
    ensure!(sizes.all(|&nodes| nodes >= 2), "a mesh takes at least two nodes");
    if let Some(sizes) = &arguments.knowledge {
        return knowledge::spread(arguments.seed, sizes, arguments.duration);
    }
    if let Some(hours) = arguments.churn {
        return knowledge::churn(arguments.seed, arguments.nodes, hours);
    }
    ensure!(!arguments.nats || arguments.nodes <= 200, "a virtual internet has room for 200 NATs");
    ensure!((0.0..1.0).contains(&arguments.loss), "--loss takes a share from 0 to below 1");
    let clock = Instant::now();
    let mut world = World::new(arguments.seed);
    let nodes =
        if arguments.nats { behind_nats(arguments, &mut world) } else { on_lan(arguments, &mut world) };
    for node in nodes {
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

fn hours(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_suffix('h').unwrap_or(text).parse()
}

fn on_lan(arguments: &Arguments, world: &mut World) -> Vec<HostId> {
    let lan = world.add_segment(Conditions { loss: arguments.loss, ..Conditions::CLEAN });
    world.add_hosts(arguments.nodes, &HostPlan::default(), lan)
}

fn behind_nats(arguments: &Arguments, world: &mut World) -> Vec<HostId> {
    world.set_internet(Conditions { loss: arguments.loss, ..Conditions::INTERNET });
    world.add_stun_server(true);
    world.add_stun_server(false);
    let public = world.add_site(Kind::None);
    let bootstrap = world.add_host(HostPlan::default(), &[public]);
    let others = (1..arguments.nodes).map(|number| {
        let site = world.add_site(Kind::ALL[number % Kind::ALL.len()]);
        let plan = HostPlan { bootstrap: vec![bootstrap], ..HostPlan::default() };
        world.add_host(plan, &[site])
    });
    [bootstrap].into_iter().chain(others.collect::<Vec<_>>()).collect()
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
            sum.totals.gossip += host.totals.gossip;
            sum.totals.gossip_bytes += host.totals.gossip_bytes;
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
                gossip: self.totals.gossip - earlier.totals.gossip,
                gossip_bytes: self.totals.gossip_bytes - earlier.totals.gossip_bytes,
                overflows: self.totals.overflows - earlier.totals.overflows,
                relayed: self.totals.relayed - earlier.totals.relayed,
            },
            writes: self.writes - earlier.writes,
            readings: self.readings - earlier.readings,
        }
    }

    fn share(&self, figure: impl Fn(&Self) -> u64) -> f64 {
        figure(self) as f64 / self.nodes as f64
    }

    fn per_node(&self, seconds: f64, unit: &str) -> String {
        let sent = |sum: &Self| sum.totals.announces + sum.totals.hellos + sum.totals.probes;
        let datagrams = self.share(sent) / seconds;
        let bytes = self.share(|sum| sum.totals.bytes) / seconds;
        let sessions = self.share(|sum| sum.totals.session_bytes) / seconds;
        let gossip = self.share(|sum| sum.totals.gossip_bytes) / seconds;
        format!(
            "{datagrams:.2}{unit} datagrams, {bytes:.0}{unit} bytes, {sessions:.0}{unit} in sessions, {gossip:.0}{unit} of gossip"
        )
    }
}
