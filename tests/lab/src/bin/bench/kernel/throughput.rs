//! What a tunnel carries with the eBPF programs on it, and without.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use wgmesh::ebpf::{EbpfSettings, EbpfTraffic};
use wgmesh_core::key::PublicKey;
use wgmesh_lab::{Host, Lan, Manual, eventually, wire_by_hand};

use super::super::PATIENCE;
use super::super::stream::{print_rates, stream};

/// The link that [`wire_by_hand`] makes.
const INTERFACE: &str = "wg0";

/// Streams without and with the programs in turns.
pub(super) fn measure(runs: usize, length: Duration) {
    let lan = Lan::new("throughput", 2);
    let inner = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)].map(IpAddr::from);
    let manual =
        |at: usize| Manual { host: &lan.hosts[at], outer: Lan::address(at).into(), inner: inner[at] };
    wire_by_hand(&[manual(0), manual(1)]);
    eventually(PATIENCE, || lan.hosts[0].pings(inner[1]));
    let streamed = || stream(&lan.hosts[0], &lan.hosts[1], inner[1], length);
    // The first one also fills caches.
    streamed();
    let rates: Vec<Vec<f64>> = (0..runs)
        .map(|run| {
            let with = || {
                let loaded = [0, 1].map(|at| load(&lan.hosts[at], inner[1 - at]));
                let rate = streamed();
                loaded.into_iter().zip(&lan.hosts).for_each(|(ebpf, host)| withdraw(host, ebpf));
                rate
            };
            match run % 2 {
                0 => [streamed(), with()].to_vec(),
                _ => [with(), streamed()].into_iter().rev().collect(),
            }
        })
        .collect();
    println!("\nTCP through WireGuard, {runs} pairs of {} s", length.as_secs());
    print_rates(&["without eBPF", "with eBPF on both hosts"], &rates);
}

/// Counts and watches on a host as the daemon does.
fn load(host: &Host, peer: IpAddr) -> EbpfTraffic {
    host.namespace().run(move || {
        let settings = EbpfSettings::new(INTERFACE.parse().expect("it is a name"));
        let mut ebpf = EbpfTraffic::load(&settings).expect("the kernel takes the programs");
        ebpf.attach_mesh().expect("the link is there");
        ebpf.sync_peers(&[(PublicKey::from_bytes([1; 32]), [peer.into()].into())].into())
            .expect("the maps hold it");
        ebpf.set_listen_port(51820).expect("the map holds it");
        let index = nix::net::if_::if_nametoindex("eth0").expect("the host has it");
        ebpf.attach_underlay("eth0", index).expect("the link is there");
        ebpf
    })
}

fn withdraw(host: &Host, ebpf: EbpfTraffic) {
    host.namespace().run(move || {
        let key = PublicKey::from_bytes([1; 32]);
        let counted = ebpf.traffic().expect("the maps can be read")[&key];
        assert!(counted.rx_packets > 0 && counted.tx_packets > 0, "the programs count: {counted:?}");
        ebpf.withdraw().expect("what was loaded can go");
    });
}
