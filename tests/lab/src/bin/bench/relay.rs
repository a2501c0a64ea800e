//! What a tunnel carries through a relay, in eBPF and in userspace, beside the same tunnel without one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::oneshot;
use wgmesh::ebpf::{EbpfSettings, EbpfTraffic};
use wgmesh::relay::Rates;
use wgmesh_core::relay::Forwarding;
use wgmesh_lab::{Family, INNER, Relayed, eventually};

use super::PATIENCE;
use super::stream::{print_rates, stream};

/// What stands between the two hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Ebpf,
    Userspace,
}

const WAYS: [Way; 3] = [Way::Direct, Way::Ebpf, Way::Userspace];

/// Streams all ways in turns.
pub(super) fn measure(runs: usize, length: Duration) {
    println!("\nTCP through WireGuard, {runs} times {} s each way, one direction", length.as_secs());
    let relayed = Relayed::new("relay");
    let direct = relayed.connect_directly();
    let inner: IpAddr = INNER[1].parse().expect("it is an address");
    let rates: Vec<Vec<f64>> = (0..runs)
        .map(|run| {
            let mut rates = vec![0.0; WAYS.len()];
            for turn in 0..WAYS.len() {
                let at = (run + turn) % WAYS.len();
                let relay = Running::start(&relayed, WAYS[at]);
                relayed.wire(WAYS[at].endpoints(direct));
                eventually(PATIENCE, || relayed.left.pings(inner));
                rates[at] = stream(&relayed.left, &relayed.right, inner, length);
                relay.stop(&relayed);
            }
            rates
        })
        .collect();
    print_rates(&["direct", "relayed in eBPF", "relayed in userspace"], &rates);
}

impl Way {
    fn endpoints(self, direct: [SocketAddr; 2]) -> [SocketAddr; 2] {
        match self {
            Self::Direct => direct,
            Self::Ebpf | Self::Userspace => Family::V4.endpoints(),
        }
    }
}

/// What relays, if anything does.
enum Running {
    Nothing,
    Ebpf(Box<EbpfTraffic>),
    Userspace { end: oneshot::Sender<()>, thread: std::thread::JoinHandle<u64> },
}

impl Running {
    fn start(relayed: &Relayed, way: Way) -> Self {
        let (underlay, pairs) = (relayed.underlay(), [Family::V4.forwarding()]);
        match way {
            Way::Direct => Self::Nothing,
            Way::Ebpf => Self::Ebpf(relayed.relay.namespace().run(move || {
                let settings = EbpfSettings::new("wgmesh0".parse().expect("it is a name"));
                let mut ebpf = EbpfTraffic::load(&settings).expect("the kernel takes the programs");
                ebpf.relay_through(&underlay).expect("the links are there");
                ebpf.relay_for(&pairs).expect("the map holds them");
                Box::new(ebpf)
            })),
            Way::Userspace => {
                let (end, ended) = oneshot::channel();
                // A thread is in the namespace of the one that starts it.
                let start = move || std::thread::spawn(move || pass_on(&pairs, ended));
                Self::Userspace { end, thread: relayed.relay.namespace().run(start) }
            }
        }
    }

    fn stop(self, relayed: &Relayed) {
        let packets = match self {
            Self::Nothing => return,
            Self::Ebpf(ebpf) => relayed.relay.namespace().run(move || {
                let packets = ebpf.relayed().expect("the map can be read").packets;
                ebpf.withdraw().expect("what was loaded can go");
                packets
            }),
            Self::Userspace { end, thread } => {
                end.send(()).expect("it passes on until it is told to end");
                thread.join().expect("it ends well")
            }
        };
        assert!(packets > 1000, "all went through the relay: {packets} packets");
    }
}

/// Passes on as the daemon does without eBPF, and returns how many packets.
fn pass_on(pairs: &[Forwarding], ended: oneshot::Receiver<()>) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a test machine has room for a runtime").block_on(async {
        let mut relay = wgmesh::relay::Relay::new(Rates::default());
        relay.follow(pairs);
        ended.await.expect("the other thread lives");
        relay.traffic().packets
    })
}
