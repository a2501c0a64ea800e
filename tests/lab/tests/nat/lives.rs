//! Daemons that die, hang, hand over and come back while a tunnel between NATs is in use.

use std::time::{Duration, UNIX_EPOCH};

use nix::sys::signal::Signal;
use wgmesh_lab::NatKind::{PortRestricted, Symmetric};
use wgmesh_lab::{Internet, NatKind, Pair, Pings, Settings, StunServers, eventually, least_of_three};

use super::{PATIENCE, routed};
use crate::mesh::SECRET;

/// Issue 4, 6: nothing that happens to any of the three daemons costs a packet of two that meet behind NATs.
#[test]
fn no_packet_is_lost_whatever_happens_to_the_daemons_of_a_direct_pair() {
    let settings = settings("[relay]\nserve = false");
    nothing_is_lost("lives", [PortRestricted; 2], &settings, "direct");
}

/// Issue 4, 6: nor of two that have a relay, whose own daemon is one of the three.
#[test]
fn no_packet_is_lost_whatever_happens_to_the_daemons_of_a_relayed_pair() {
    nothing_is_lost("lives-sealed", [Symmetric; 2], &settings("[relay]\nserve = true"), "relay");
}

/// Issue 4, 6: nor where the relay routes: pings to the mesh address of a node whose daemon hangs stay unanswered, but its
/// kernel goes on.
#[test]
fn no_packet_is_lost_whatever_happens_to_the_daemons_of_a_routed_pair() {
    nothing_is_lost("lives-routed", [Symmetric; 2], &routed::settings(), "routed");
}

fn settings(introducer: &str) -> [Settings; 3] {
    let node = Settings::new(SECRET).over_internet(&[Pair::introducer_address(1)]);
    [node.clone(), node, Settings::new(SECRET).over_internet(&[]).with(introducer)]
}

/// Joins a pair by a path of this kind, then has its daemons and the introducer's die and hang in turn.
fn nothing_is_lost(name: &str, kinds: [NatKind; 2], settings: &[Settings; 3], path: &str) {
    let internet = Internet::new(name);
    let _stun = StunServers::start(&internet);
    let mut pair = Pair::start_as(&internet, 1, kinds, settings);
    pair.meet(PATIENCE);
    eventually(PATIENCE, || is_joined(&pair, path));
    for signal in [Signal::SIGKILL, Signal::SIGUSR1] {
        for index in 0..3 {
            let lost = least_of_three(|| {
                let lost = lost_during(&mut pair, |pair| replace(pair, index, signal, settings));
                eventually(PATIENCE, || is_joined(&pair, path));
                lost
            });
            println!("{name}: {signal} and a new daemon {index}: {lost} pings lost");
            assert_eq!(lost, 0, "{signal} for daemon {index}");
        }
    }
    let lost = least_of_three(|| {
        lost_during(&mut pair, |pair| {
            let hung = [&pair.daemons[0], &pair.introducer];
            hung.iter().for_each(|daemon| daemon.signal(Signal::SIGSTOP));
            std::thread::sleep(Duration::from_secs(5));
            hung.iter().for_each(|daemon| daemon.signal(Signal::SIGCONT));
        })
    });
    println!("{name}: two daemons hung for 5 s: {lost} pings lost");
    assert_eq!(lost, 0, "hung");
    eventually(PATIENCE, || is_joined(&pair, path));
}

/// Whether both kernels and both daemons have a path of this kind.
fn is_joined(pair: &Pair, path: &str) -> bool {
    pair.views().iter().all(|view| match path {
        "direct" => view.is_direct && view.state == "direct",
        _ => view.state == "relayed" && view.path == path,
    })
}

/// Ends a daemon, the introducer's with the last index, and starts another a second later.
fn replace(pair: &mut Pair, index: usize, signal: Signal, settings: &[Settings; 3]) {
    let Pair { daemons, sites, introducer, introducer_host, .. } = pair;
    let (daemon, host) = match daemons.get_mut(index) {
        Some(daemon) => (daemon, &sites[index].host),
        None => (introducer, &*introducer_host),
    };
    daemon.signal(signal);
    daemon.wait_exit();
    std::thread::sleep(Duration::from_secs(1));
    *daemon = host.daemon(&settings[index]);
    daemon.wait_ready();
    // Long enough for the new daemon to make its plan and carry it out.
    std::thread::sleep(Duration::from_secs(3));
}

/// Counts the pings, ten a second, that stay unanswered while something is done and a second longer.
fn lost_during(pair: &mut Pair, act: impl FnOnce(&mut Pair)) -> u32 {
    let pings = Pings::start(&pair.sites[0].host, pair.mesh_ipv4(1), Duration::from_millis(100), 56);
    std::thread::sleep(Duration::from_secs(1));
    act(pair);
    std::thread::sleep(Duration::from_secs(1));
    let replies = pings.finish();
    let last = replies.replies.last().expect("some are answered").at;
    let since_last = replies.end.duration_since(last).unwrap_or_default();
    assert!(since_last < Duration::from_secs(2), "nothing has come back for {since_last:?}");
    println!("{} answered of {}", replies.replies.len(), replies.sent());
    assert!(replies.sent() > 15);
    u32::try_from(replies.lost_after(UNIX_EPOCH)).unwrap()
}
