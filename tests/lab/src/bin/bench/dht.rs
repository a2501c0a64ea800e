//! How long two hosts that share nothing but the secret take to find each other in the DHT.

use std::time::Duration;

use wgmesh_lab::{DhtNodes, Internet, NatKind, Strangers, StunServers};

use super::sample::Sample;

/// Longer than any meeting takes: the pause between rounds grows to 30 s.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures pairs that start at once, so many of each kind, and prints a line for each kind.
pub(super) fn measure(runs: u8) {
    let internet = Internet::new("dht");
    let _stun = StunServers::start(&internet);
    let _dht = DhtNodes::start(&internet);
    println!();
    Sample::print_head("seconds from READY until both were pinged");
    let kinds = [[NatKind::None; 2], [NatKind::PortRestricted; 2]];
    for (kind, first) in kinds.into_iter().zip([1, 1 + runs]) {
        let spans = (0..runs).map(|run| {
            let mut strangers = Strangers::new(&internet, first + run, &kind);
            let ready = strangers.start_all();
            strangers.meet(PATIENCE).saturating_duration_since(ready)
        });
        let [left, right] = kind;
        Sample::new(spans.collect::<Vec<_>>()).print(&format!("{left} × {right}"), None);
    }
}
