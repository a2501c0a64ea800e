//! Word of packets that go out while nothing comes back.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use super::{Pair, ping, run};

/// DESIGN 10: told within two seconds, once a second, of the right peer, in both families and for networks behind it;
/// and never of a conversation.
#[test]
fn packets_that_stay_unanswered_are_told_of_and_answered_ones_are_not() {
    let pair = Pair::new("ebsil");
    pair.in_a(|| {
        let mut ebpf = pair.load();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut handshakes = runtime.block_on(async { ebpf.handshakes().unwrap().unwrap() });
        let mut told = |wait: u64| {
            let batch =
                async { tokio::time::timeout(Duration::from_secs(wait), handshakes.next_batch()).await };
            let told = runtime.block_on(batch).is_ok();
            (told, ebpf.take_unanswered(&mut handshakes))
        };

        ping("10.77.0.2", 60, 8);
        ping("fd77::2", 60, 8);
        assert_eq!(told(1), (false, BTreeSet::new()), "all were answered");

        run("ip", &format!("-n {} link set wg0 down", pair.b));
        for target in ["10.77.0.2", "fd77::2"] {
            // Ends without an answer, and so with an error.
            let words = ["-q", "-i", "0.2", "-c", "15", "-W", "1", target];
            Command::new("ping").args(words).output().unwrap();
            let expected = BTreeSet::from([pair.key_b.parse().unwrap()]);
            assert_eq!(told(5), (true, expected), "{target}");
            while told(1).0 {}
        }
        // Packets seconds apart are no conversation that has stopped.
        for _ in 0..3 {
            Command::new("ping").args(["-q", "-c", "1", "-W", "4", "10.77.0.2"]).output().unwrap();
        }
        assert_eq!(told(1), (false, BTreeSet::new()));
        ebpf.withdraw().unwrap();
    });
}
