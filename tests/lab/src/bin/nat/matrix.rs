//! Each kind of NAT with each.

use std::net::SocketAddr;
use std::time::Duration;

use wgmesh_lab::{Internet, NatKind, Outcome, Pair, StunServers, View, eventually, in_parallel};

use super::{name, seconds};

/// How long after the attempt `status` may take to say why there is no path.
const EXPLANATION: Duration = Duration::from_secs(10);

/// A pair's line of the table.
struct Row {
    kinds: [NatKind; 2],
    outcome: Outcome,
    is_good: bool,
}

/// Lets every pair meet, a few at once, and prints a table; tells whether everything is as it should be.
pub(super) fn show(pairs: &[[NatKind; 2]], at_once: usize, limit: Duration, logs: bool) -> bool {
    let internet = Internet::new("nat-matrix");
    let _stun = StunServers::start(&internet);
    let rows = in_parallel(pairs, at_once, |index, kinds| {
        let number = u8::try_from(index + 1).expect("there are few pairs");
        let row = meet(&internet, number, *kinds, limit, logs);
        println!("{}", row.line());
        row
    });
    println!("\n{}", Row::head());
    rows.iter().for_each(|row| println!("{}", row.line()));
    let good = rows.iter().filter(|row| row.is_good).count();
    let possible = rows.iter().filter(|row| row.is_possible());
    let (possible, direct) =
        possible.fold((0, 0), |(all, direct), row| (all + 1, direct + u32::from(row.is_good)));
    println!(
        "\n{direct} of {possible} possible pairs are direct; {good} of {} pairs are as they should be",
        rows.len()
    );
    good == rows.len()
}

fn meet(internet: &Internet, number: u8, kinds: [NatKind; 2], limit: Duration, logs: bool) -> Row {
    let pair = Pair::start(internet, number, kinds);
    let mut outcome = pair.meet(limit);
    let is_good = if pair.can_reach() {
        outcome.from_start.is_some() && is_direct(&pair, &mut outcome)
    } else {
        is_explained(&pair, &mut outcome)
    };
    if logs && !is_good {
        print_logs(&pair);
    }
    Row { kinds, outcome, is_good }
}

/// Waits until both sides' kernels and daemons agree that the path is direct: the first ping may be quicker than either.
fn is_direct(pair: &Pair, outcome: &mut Outcome) -> bool {
    holds(|| {
        outcome.views = pair.views();
        outcome.views.iter().all(|view| view.is_direct && view.state == "direct")
    })
}

fn is_explained(pair: &Pair, outcome: &mut Outcome) -> bool {
    holds(|| {
        outcome.views = pair.views();
        outcome.views.iter().all(|view| view.state != "direct" && !view.why.is_empty())
    })
}

/// Tells whether a condition comes to hold in time.
fn holds(condition: impl FnMut() -> bool) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually(EXPLANATION, condition))).is_ok()
}

fn print_logs(pair: &Pair) {
    let hosts = pair.sites.iter().map(|site| &site.host).chain([&pair.introducer_host]);
    for host in hosts {
        println!("--- {} of {} ---\n{}", host.name(), name(pair.kinds), host.daemon_log());
    }
    for daemon in &pair.daemons {
        println!("{}", daemon.status_json());
    }
}

impl Row {
    fn head() -> String {
        format!(
            "{:<42} {:<9} {:<24} {:<46} {:>9} {:>11} {:>9}",
            "pair", "possible", "state", "WireGuard sends to", "start", "both known", "packets"
        )
    }

    fn line(&self) -> String {
        let [left, right] = &self.outcome.views;
        let possible = if self.is_possible() { "yes" } else { "no" };
        let endpoints = format!("{}, {}", endpoint(left), endpoint(right));
        let sent = self
            .outcome
            .traffic
            .map(|traffic| traffic.map_or("-".to_owned(), |sent| sent.packets.to_string()));
        let mut line = format!(
            "{:<42} {possible:<9} {:<24} {endpoints:<46} {:>9} {:>11} {:>9}",
            name(self.kinds),
            format!("{}, {}", state(left), state(right)),
            seconds(self.outcome.from_start),
            seconds(self.outcome.from_known),
            sent.join(", ")
        );
        if !self.is_possible() {
            line += &format!("  why: {}", left.why);
        }
        if !self.is_good {
            line += "  NOT AS IT SHOULD BE";
        }
        line
    }

    fn is_possible(&self) -> bool {
        self.kinds[0].can_reach(self.kinds[1])
    }
}

fn state(view: &View) -> String {
    match (view.state.as_str(), view.path.as_str()) {
        ("", _) => "unknown".to_owned(),
        (state, "") => state.to_owned(),
        (state, path) => format!("{state} {path}"),
    }
}

fn endpoint(view: &View) -> String {
    view.endpoint.as_ref().map_or_else(|| "-".to_owned(), SocketAddr::to_string)
}
