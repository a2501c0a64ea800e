//! Every pair, over several of WireGuard's rekeys, which come every two minutes: direct, or by a relay where nothing else can be.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wgmesh_lab::{Internet, NatKind, Pair, Process, StunServers, in_parallel};

use super::name;

/// How long a pair may take to meet, while many others do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at every pair.
const INTERVAL: Duration = Duration::from_secs(30);

/// How many handshakes seven minutes see at least: the first one and three rekeys.
const HANDSHAKES: usize = 4;

/// How many of a pair's pings, one a second, may be lost: a busy machine may lose one by itself.
const LOST: u32 = 2;

/// A pair that is being watched.
struct Watched {
    pair: Pair,
    ping: Process,
    endpoints: [BTreeSet<SocketAddr>; 2],
    /// When the left one's WireGuard shook hands.
    handshakes: BTreeSet<u64>,
    /// How often one side did not reach the other as it should when looked at.
    interruptions: u32,
}

/// Starts the pairs, pings each once a second for the time given, and prints a table; tells whether
/// everything stayed as it was.
pub(super) fn show(pairs: &[[NatKind; 2]], time: Duration) -> bool {
    let internet = Internet::new("soak");
    let _stun = StunServers::start(&internet);
    let met = in_parallel(pairs, 3, |index, kinds| {
        let number = u8::try_from(index + 1).expect("there are few pairs");
        let [left, right] = *kinds;
        let start = if left.can_reach(right) { Pair::start } else { Pair::start_relayed };
        let pair = start(&internet, number, *kinds);
        let outcome = pair.meet(PATIENCE);
        assert!(outcome.from_start.is_some(), "{} did not meet: {:?}", name(*kinds), outcome.views);
        pair
    });
    println!("{} pairs met; now they are watched for {} s", met.len(), time.as_secs());
    // What is chosen first may be replaced by something better soon after.
    std::thread::sleep(INTERVAL);
    let count = time.as_secs().to_string();
    let watch = |pair: Pair| {
        let target = pair.mesh_ipv4(1).to_string();
        let ping =
            pair.sites[0].host.spawn(["ping", "-n", "-q", "-i", "1", "-W", "5", "-c", &count, &target]);
        Watched { pair, ping, endpoints: Default::default(), handshakes: BTreeSet::new(), interruptions: 0 }
    };
    let mut watched: Vec<_> = met.into_iter().map(watch).collect();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let next = Instant::now() + INTERVAL;
        watched.iter_mut().for_each(Watched::look);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    println!(
        "\n{:<42} {:>6} {:>12} {:>16} {:>16}",
        "pair", "lost", "handshakes", "endpoints", "interruptions"
    );
    let verdicts: Vec<_> = watched.into_iter().map(Watched::finish).collect();
    verdicts.iter().all(|is_good| *is_good)
}

impl Watched {
    fn look(&mut self) {
        let (can_reach, views) = (self.pair.can_reach(), self.pair.views());
        self.handshakes.insert(views[0].handshake);
        for (view, endpoints) in views.into_iter().zip(&mut self.endpoints) {
            endpoints.extend(view.endpoint);
            let is_good =
                if can_reach { view.is_direct && view.state == "direct" } else { view.state == "relayed" };
            self.interruptions += u32::from(!is_good);
        }
    }

    /// Prints a line and tells whether it is as it should be.
    fn finish(self) -> bool {
        let text = String::from_utf8(self.ping.wait().stdout).expect("ping prints text");
        let numbers = text.lines().find(|line| line.contains("packets transmitted")).expect("ping sums up");
        let number = |n: usize| numbers.split(' ').nth(n).and_then(|word| word.parse::<u32>().ok());
        let lost = number(0).zip(number(3)).map(|(sent, answered)| sent - answered).expect("ping counts");
        let endpoints: Vec<_> = self.endpoints.iter().map(BTreeSet::len).collect();
        let is_good = lost <= LOST
            && self.handshakes.len() >= HANDSHAKES
            && endpoints == [1, 1]
            && self.interruptions == 0;
        println!(
            "{:<42} {lost:>6} {:>12} {:>16} {:>16}{}",
            name(self.pair.kinds),
            self.handshakes.len(),
            format!("{}, {}", endpoints[0], endpoints[1]),
            self.interruptions,
            if is_good { "" } else { "  NOT AS IT SHOULD BE" }
        );
        is_good
    }
}
