//! How soon traffic is back after the path that carries it has died without a word, and what its return costs.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;
use wgmesh_lab::{Cut, Host, Internet, NatKind, Pair, Pings, Settings, StunServers, TwoLinks, eventually};

use super::sample::Sample;
use super::{PATIENCE, SECRET};

/// Issue 4: within this time traffic is to be back.
const GOAL: Duration = Duration::from_secs(3);

/// Between two pings.
const INTERVAL: Duration = Duration::from_millis(20);

/// Before and after what happens.
const SETTLE: Duration = Duration::from_secs(3);

/// For how long a cut lasts: longer than traffic should take, so that the worst is seen.
const CUT: Duration = Duration::from_secs(8);

/// What a path that fails again and again does: half of the time it carries nothing.
const FLAP: Duration = Duration::from_secs(20);

/// What is left when the path dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Over {
    /// A second link that both hosts have.
    Link,
    /// A third host that relays.
    Relay,
}

/// Two hosts that can reach each other in two ways.
enum World {
    Link(Box<TwoLinks>),
    Relay { pair: Box<Pair>, _stun: StunServers, _internet: Internet },
}

impl World {
    fn meet(over: Over, name: &str) -> Self {
        match over {
            Over::Link => Self::Link(Box::new(TwoLinks::meet(name, &Settings::new(SECRET), |_| ()))),
            Over::Relay => {
                let internet = Internet::new(name);
                let stun = StunServers::start(&internet);
                let pair = Box::new(Pair::start_relayed(&internet, 1, [NatKind::None, NatKind::None]));
                let outcome = pair.meet(PATIENCE);
                assert!(outcome.from_start.is_some(), "{outcome:?}");
                let world = Self::Relay { pair, _stun: stun, _internet: internet };
                eventually(PATIENCE, || world.is_direct());
                world
            }
        }
    }

    fn is_direct(&self) -> bool {
        match self {
            Self::Link(pair) => pair.is_direct(),
            Self::Relay { pair, .. } => pair.views().iter().all(|view| view.is_direct),
        }
    }

    fn hosts(&self) -> [&Host; 2] {
        match self {
            Self::Link(pair) => pair.hosts.each_ref(),
            Self::Relay { pair, .. } => pair.sites.each_ref().map(|site| &site.host),
        }
    }

    fn target(&self) -> IpAddr {
        match self {
            Self::Link(pair) => pair.mesh_address(1, "mesh_ipv4"),
            Self::Relay { pair, .. } => pair.mesh_ipv4(1).into(),
        }
    }

    /// Returns where the first host's kernel sends.
    fn endpoint(&self) -> String {
        self.hosts()[0].run(["wg", "show", "wgmesh0", "endpoints"])
    }

    /// Cuts the path in use, or for a path that fails again and again always the same.
    fn cut(&self, cut: Cut, is_same: bool) {
        match self {
            Self::Link(pair) if is_same => cut.begin(pair.hosts.each_ref(), ["eth0"; 2], [""; 2]),
            Self::Link(pair) => drop(pair.cut(cut)),
            Self::Relay { pair, .. } => {
                let from = [1, 0].map(|index| format!("ip saddr {}", pair.sites[index].address));
                cut.begin(self.hosts(), ["eth0"; 2], [&from[0], &from[1]]);
            }
        }
    }

    fn heal(&self) {
        Cut::end(self.hosts());
    }
}

/// Cuts so often in each way and prints a line for each way; then counts moves for as long as is asked.
pub(super) fn measure(over: Over, cuts: usize, flap: Duration) {
    Sample::print_head(&format!("traffic is back, over another {over:?}").to_lowercase());
    for cut in Cut::ALL {
        let rounds = rounds(over, cut, cuts);
        let sample = Sample::new(rounds.iter().map(|round| round.silence));
        sample.print(cut.name(), None);
        sample.print_goals(GOAL, GOAL);
        let lost: usize = rounds.iter().map(|round| round.lost).sum();
        println!("  pings lost after it was restored: {lost} (goal: 0), {} ms apart", INTERVAL.as_millis());
    }
    if !flap.is_zero() {
        count_moves(over, flap);
    }
}

/// What came of one cut.
struct Round {
    /// The longest time without an answer.
    silence: Duration,
    /// Pings that were lost once the path was whole again.
    lost: usize,
}

fn rounds(over: Over, cut: Cut, cuts: usize) -> Vec<Round> {
    let name = format!("{over:?}-{cut:?}").to_lowercase();
    let mut world = World::meet(over, &name);
    (0..cuts)
        .map(|number| {
            // A way that was narrow once is believed to be for ten minutes, so each narrowing has a pair of its own.
            if cut == Cut::Large && number > 0 {
                world = World::meet(over, &format!("{name}-{number}"));
            }
            round(&world, cut)
        })
        .collect()
}

fn round(world: &World, cut: Cut) -> Round {
    let bytes = if cut == Cut::Large { 1372 } else { 56 };
    let pings = Pings::start(world.hosts()[0], world.target(), INTERVAL, bytes);
    std::thread::sleep(SETTLE * 2);
    let before = SystemTime::now();
    world.cut(cut, false);
    std::thread::sleep(CUT);
    world.heal();
    let healed = SystemTime::now();
    eventually(PATIENCE, || world.is_direct());
    std::thread::sleep(SETTLE);
    let replies = pings.finish();
    let during = replies.replies.iter().map(|reply| reply.at).filter(|at| (before..healed).contains(at));
    let mut last = before;
    let mut silence = Duration::ZERO;
    for at in during.chain([healed]) {
        silence = silence.max(at.duration_since(last).unwrap_or_default());
        last = last.max(at);
    }
    // What was under way at that moment may have met the cut.
    Round { silence, lost: replies.lost_after(healed + Duration::from_millis(200)) }
}

fn count_moves(over: Over, span: Duration) {
    let world = World::meet(over, "flap");
    let pings = Pings::start(world.hosts()[0], world.target(), Duration::from_millis(100), 56);
    std::thread::sleep(SETTLE * 2);
    let (begin, began) = (Instant::now(), SystemTime::now());
    let (mut failures, mut moves, mut before) = (0, 0, world.endpoint());
    while begin.elapsed() < span {
        failures += 1;
        world.cut(Cut::Both, true);
        moves += watch(&world, FLAP / 2, &mut before);
        world.heal();
        moves += watch(&world, FLAP / 2, &mut before);
    }
    let silence = pings.finish().longest_silence(began);
    let verdict = if moves <= 2 * failures { "met" } else { "MISSED" };
    println!("a path that fails every {} s, for {} s", FLAP.as_secs(), span.as_secs());
    println!("  failures {failures}, moves {moves}, longest silence {:.3} s", silence.as_secs_f64());
    println!("  goal: at most one move away and one back for each failure: {verdict}");
}

/// Counts how often the endpoint changes for a while.
fn watch(world: &World, span: Duration, before: &mut String) -> u32 {
    let begin = Instant::now();
    let mut moves = 0;
    while begin.elapsed() < span {
        std::thread::sleep(Duration::from_millis(250));
        let now = world.endpoint();
        moves += u32::from(now != *before);
        *before = now;
    }
    moves
}
