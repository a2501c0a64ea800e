//! What a mesh costs when nothing happens.

use std::fs;
use std::time::Duration;

use wgmesh_lab::{Daemon, Lan, Memory, Process, Usage};

use super::fleet::Fleet;
use super::tinc::Tinc;

/// How long a new mesh is left alone: what its nodes still do right after they met is not rest.
const SETTLING: Duration = Duration::from_secs(20);

const MINUTE: f64 = 60.0;

/// Goals for each of ten nodes (DESIGN 14).
const MEMORY_GOAL_KIB: f64 = 6.0 * 1024.0;
const PROCESSOR_GOAL: f64 = 0.05;

/// Watches a fleet at rest and prints what each node cost, and what one of tinc did in the same time.
pub(super) fn measure(nodes: u8, time: Duration) {
    let fleet = Fleet::start(nodes, false);
    let tinc = Tinc::start(nodes);
    std::thread::sleep(SETTLING);
    // What the machine takes to wake something that does next to nothing, about as often.
    let other = Lan::address(1).to_string();
    let ping = fleet.lan.hosts[0].spawn(["ping", "-q", "-i", "1", &other]);
    std::thread::sleep(Duration::from_secs(1));
    let ping_before = Usage::of(ping.id());
    let writes_before = writes(&fleet.daemons);
    let (ours, theirs) = (processes(&fleet.daemons, Daemon::id), processes(&tinc.daemons, Process::id));
    let (ours_before, theirs_before, processes_before) = (usage(&ours), usage(&theirs), processes_made());
    std::thread::sleep(time);
    let (ours_after, theirs_after, processes_after) = (usage(&ours), usage(&theirs), processes_made());
    let ping = [Usage::of(ping.id()) - ping_before];
    let [memory, memory_of_tinc] =
        [&ours, &theirs].map(|ids| ids.iter().map(|id| Memory::of(*id)).collect::<Vec<_>>());
    let writes = writes(&fleet.daemons) - writes_before;

    let (spent, spent_by_tinc) =
        (differences(&ours_after, &ours_before), differences(&theirs_after, &theirs_before));
    let minutes = time.as_secs_f64() / MINUTE;
    let per_second =
        |figure: fn(&Usage) -> u64| move |usage: &Usage| figure(usage) as f64 / (minutes * MINUTE);
    println!("a quiet time of {} s at {nodes} nodes, per node", time.as_secs());
    println!("{:<40} {:>8} {:>8} {:>8}", "", "mean", "max", "goal");
    print("memory, KiB PSS", &memory, |memory| memory.proportional as f64, Some(MEMORY_GOAL_KIB));
    print("  of that not in files", &memory, |memory| memory.anonymous as f64, None);
    print("  of that in files", &memory, |memory| memory.files as f64, None);
    print("  of tinc", &memory_of_tinc, |memory| memory.proportional as f64, None);
    let processor = |usage: &Usage| usage.processor.as_secs_f64() / minutes;
    print("processor seconds a minute", &spent, processor, Some(PROCESSOR_GOAL));
    let wakeups = |usage: &Usage| usage.wakeups as f64 / minutes;
    print("  of tinc", &spent_by_tinc, processor, None);
    print("  of a ping each second", &ping, processor, None);
    print("wakeups a minute", &spent, wakeups, None);
    print("  of tinc", &spent_by_tinc, wakeups, None);
    print("  of that ping", &ping, wakeups, None);
    print("bytes sent on the link, per second", &spent, per_second(|usage| usage.sent.bytes), None);
    print("  of tinc", &spent_by_tinc, per_second(|usage| usage.sent.bytes), None);
    print("packets sent on the link, per second", &spent, per_second(|usage| usage.sent.packets), None);
    print("  of tinc", &spent_by_tinc, per_second(|usage| usage.sent.packets), None);
    println!("kernel writes of all nodes: {writes} (goal 0)");
    let processes = processes_after - processes_before;
    println!("processes and threads that the whole machine made: {processes} (goal 0)");
}

fn print<T>(name: &str, nodes: &[T], figure: impl Fn(&T) -> f64, goal: Option<f64>) {
    let figures: Vec<f64> = nodes.iter().map(figure).collect();
    let mean = figures.iter().sum::<f64>() / figures.len() as f64;
    let max = figures.iter().copied().fold(0.0, f64::max);
    let [mean_text, max_text] = [mean, max].map(rounded);
    let goal = goal.map_or_else(String::new, |goal| {
        format!("{:>8} {}", rounded(goal), if mean <= goal { "met" } else { "MISSED" })
    });
    println!("{name:<40} {mean_text:>8} {max_text:>8} {goal}");
}

/// Returns about three digits.
fn rounded(figure: f64) -> String {
    if figure < 10.0 { format!("{figure:.3}") } else { format!("{figure:.0}") }
}

fn processes<T>(of: &[T], id: fn(&T) -> u32) -> Vec<u32> {
    of.iter().map(id).collect()
}

fn usage(processes: &[u32]) -> Vec<Usage> {
    processes.iter().map(|id| Usage::of(*id)).collect()
}

fn differences(after: &[Usage], before: &[Usage]) -> Vec<Usage> {
    after.iter().zip(before).map(|(after, before)| *after - *before).collect()
}

fn writes(daemons: &[Daemon]) -> u64 {
    let writes = |daemon: &Daemon| daemon.status_json()["kernel"]["writes"].as_u64();
    daemons.iter().filter_map(writes).sum()
}

/// Returns how many processes and threads this machine has made, those of the kernel included.
fn processes_made() -> u64 {
    let text = fs::read_to_string("/proc/stat").expect("every Linux has it");
    let line = text.lines().find_map(|line| line.strip_prefix("processes "));
    line.and_then(|number| number.parse().ok()).expect("every Linux counts them")
}
