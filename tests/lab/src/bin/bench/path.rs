//! How long two hosts behind NATs take to reach each other, and what they send meanwhile.

use std::time::Duration;

use wgmesh_lab::{Internet, NatKind, Outcome, Pair, StunServers, Traffic, in_parallel};

use super::PATIENCE;
use super::sample::Sample;

/// Measures every pair that can meet so often, so many pairs at once, and prints a line for each.
pub(super) fn measure(runs: usize, at_once: usize) {
    let pairs: Vec<_> = NatKind::pairs().into_iter().filter(|[left, right]| left.can_reach(*right)).collect();
    let mut meetings: Vec<Vec<Outcome>> = vec![Vec::new(); pairs.len()];
    for run in 1..=runs {
        let internet = Internet::new(&format!("path-{run}"));
        let _stun = StunServers::start(&internet);
        let outcomes = in_parallel(&pairs, at_once, |index, kinds| {
            let number = u8::try_from(index + 1).expect("there are few pairs");
            let outcome = Pair::start(&internet, number, *kinds).meet(PATIENCE);
            let [left, right] = kinds;
            assert!(outcome.from_start.is_some(), "{left} × {right} did not meet: {:?}", outcome.views);
            outcome
        });
        meetings.iter_mut().zip(outcomes).for_each(|(runs, outcome)| runs.push(outcome));
    }
    print(&pairs, &meetings);
}

fn print(pairs: &[[NatKind; 2]], meetings: &[Vec<Outcome>]) {
    println!(
        "\n{:<40} {:>9} {:>9} {:>9}   {:>16} {:>16}",
        "seconds until both were pinged", "known", "max", "start", "packets sent", "flows"
    );
    for ([left, right], runs) in pairs.iter().zip(meetings) {
        let known = Sample::new(runs.iter().filter_map(|outcome| outcome.from_known));
        let start = Sample::new(runs.iter().filter_map(|outcome| outcome.from_start));
        let most = |figure: fn(&Traffic) -> u64| {
            let side = |index: usize| {
                runs.iter().filter_map(|outcome| outcome.traffic[index].as_ref()).map(figure).max()
            };
            [0, 1].map(|index| side(index).map_or_else(|| "-".to_owned(), |most| most.to_string())).join(", ")
        };
        let [median, max, from_start] = [known.median(), known.max(), start.median()]
            .map(|time: Duration| format!("{:.3}", time.as_secs_f64()));
        println!(
            "{:<40} {median:>9} {max:>9} {from_start:>9}   {:>16} {:>16}",
            format!("{left} × {right}"),
            most(|sent| sent.packets),
            most(|sent| sent.flows)
        );
    }
    println!("known, start: medians, from when both knew of each other, and from the later one's start.");
    println!(
        "packets, flows: the most of all runs, by what each side's router sent to others than servers until then."
    );
}
