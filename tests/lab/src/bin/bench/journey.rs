//! Where a start spends its time, by the daemons' own logs.

use std::time::{Duration, Instant};

use wgmesh_lab::{Daemon, Host, first_logged};

use super::sample::Sample;

/// What the newcomer logs on its way, and what that means.
const NEWCOMER: &[(&str, &str)] = &[
    ("configuration read", "the process runs"),
    ("starting", "keys derived, record signed, sockets open"),
    ("announced", "kernel read, first announce sent"),
    ("wrote to the kernel generation=1", "link, addresses and routes made"),
    ("ready", "ready"),
    ("found a peer", "the neighbour's hello came"),
    ("wrote to the kernel generation=2", "the neighbour's peer set"),
];

/// What the neighbour logs meanwhile.
const NEIGHBOUR: &[(&str, &str)] = &[
    ("found a peer", "  neighbour: announce came"),
    ("wrote to the kernel", "  neighbour: newcomer's peer set"),
];

/// When a newcomer passed which milestone, counted from its start.
pub(super) type Milestones = Vec<(&'static str, Duration)>;

/// Reads the milestones of a newcomer on `host` and of its only neighbour.
pub(super) fn milestones(newcomer: &Daemon, host: &Host, neighbour: &Host) -> Milestones {
    let start = newcomer.started();
    let mut found = find(&host.daemon_log(), start, NEWCOMER);
    found.extend(find(&neighbour.daemon_log(), start, NEIGHBOUR));
    found
}

/// Prints the median of each milestone, in the order of time.
pub(super) fn print(runs: &[Milestones]) {
    println!("\nwhere the time goes (median of each, ms after the start of the process):");
    let names = NEWCOMER.iter().chain(NEIGHBOUR).map(|(_, name)| *name).chain([super::join::ANSWERED]);
    let median = |name: &'static str| {
        let times = runs.iter().flatten().filter(|(other, _)| *other == name).map(|(_, at)| *at);
        let times: Vec<_> = times.collect();
        (!times.is_empty()).then(|| (Sample::new(times).median(), name))
    };
    let mut medians: Vec<_> = names.filter_map(median).collect();
    medians.sort_unstable();
    for (at, name) in medians {
        println!("  {:>7.1}  {name}", at.as_secs_f64() * 1e3);
    }
}

fn find(log: &str, start: Instant, wanted: &[(&str, &'static str)]) -> Milestones {
    let since_start = |needle| Some(first_logged(log, start, &[needle])? - start);
    wanted.iter().filter_map(|(needle, name)| Some((*name, since_start(needle)?))).collect()
}
