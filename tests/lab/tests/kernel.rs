//! The daemon's kernel layer on a real kernel: every test has a network namespace of its own, in which `ip` and
//! `wg` check what netlink did.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use tokio::sync::watch;
use wgmesh::applier::{Applier, ApplyFailure, Goal, Outcome, Pulse, Report, Want};
use wgmesh::kernel::{Kernel, KernelError};
use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{
    Desired, DesiredPeer, Endpoint, InterfaceName, Link, Observed, OwnerMark, Route, Write,
};
use wgmesh_core::key::{PresharedKey, PublicKey, SecretKey};
use wgmesh_core::reconcile::{diff, withdraw};

const INTERFACE: &str = "wgmesh0";

/// W-D5, W-D40, C-3: the link is made, configured, addressed, brought up, and holds what other tools say it does.
#[test]
fn a_link_is_made_with_everything_on_it() {
    isolated(|| async {
        let kernel = kernel();
        let wanted = desired(3);

        let observed = converge(&kernel, &wanted).await;

        assert_eq!(diff(&wanted, &observed), Ok(vec![]));
        assert!(run("ip -d link show wgmesh0").contains("alias wgmesh:01020304"));
        assert!(run("ip link show wgmesh0").contains("mtu 1420"));
        let addresses = run("ip addr show wgmesh0");
        assert!(addresses.contains("inet 10.77.0.1/16 scope global noprefixroute wgmesh0"), "{addresses}");
        assert!(addresses.contains("inet6 fd77::1/64 scope global nodad noprefixroute"), "{addresses}");
        assert!(run("ip route show dev wgmesh0").contains("10.77.0.0/16 proto 87 scope link"));
        assert!(run("ip -6 route show dev wgmesh0").contains("fd77::/64 proto 87 metric 1024"));
        assert_eq!(run("wg show wgmesh0 listen-port").trim(), "51820");
        assert_eq!(run("wg show wgmesh0 peers").lines().count(), 3);
        assert!(run("wg show wgmesh0 allowed-ips").contains("10.77.1.2/32 fd77::1:2/128"));
        assert!(run("wg show wgmesh0 persistent-keepalive").contains("25"));
        assert!(!run("wg show wgmesh0 preshared-keys").contains("(none)"));
    });
}

/// W-D6, W-D40: after withdrawing, link, addresses and routes are gone.
#[test]
fn withdrawing_leaves_nothing() {
    isolated(|| async {
        let kernel = kernel();
        let observed = converge(&kernel, &desired(3)).await;

        apply(&kernel, withdraw(&observed, &owner())).await;

        assert_eq!(kernel.observe().await.unwrap().link, Link::Missing);
        assert_eq!(run("ip route show proto 87"), "");
        assert_eq!(run("ip -6 route show proto 87"), "");
    });
}

/// W-D5: a link that an earlier run left is taken over as it is; its peers keep what they have.
#[test]
fn a_link_of_an_earlier_run_is_adopted() {
    isolated(|| async {
        let first = converge(&kernel(), &desired(3)).await;
        run(format!("wg set wgmesh0 peer {} endpoint 198.51.100.9:7", key(1)));

        let observed = converge(&kernel(), &desired(3)).await;

        assert_eq!(index(&observed), index(&first));
        assert_eq!(observed.peers[&key(1)].endpoint, Some("198.51.100.9:7".parse().unwrap()));
    });
}

/// W-D5: a crash between making and marking leaves a bare link, which is adopted.
#[test]
fn a_bare_unmarked_link_is_adopted() {
    isolated(|| async {
        run("ip link add wgmesh0 type wireguard");

        let observed = converge(&kernel(), &desired(1)).await;

        assert!(matches!(observed.link, Link::WireGuard { alias: Some(_), up: true, .. }));
    });
}

/// W-D40: somebody else's WireGuard link is refused, and not a byte of it changes.
#[test]
fn a_foreign_wireguard_link_is_refused_untouched() {
    isolated(|| async {
        run("ip link add wgmesh0 type wireguard");
        run(format!("wg set wgmesh0 listen-port 4444 peer {} allowed-ips 10.0.0.0/8", key(1)));
        run("ip addr add 10.0.0.1/24 dev wgmesh0");
        let before = (run("wg showconf wgmesh0"), run("ip -d addr show wgmesh0"));

        let (_task, mut applied) = applier(&kernel(), &desired(3));
        let report = applied.report().await;

        let Err(ApplyFailure::Refused(refusal)) = report.result else { panic!("{report:?}") };
        assert!(refusal.to_string().contains("wgmesh0"), "{refusal}");
        assert_eq!((run("wg showconf wgmesh0"), run("ip -d addr show wgmesh0")), before);
        assert_eq!(applied.pulse.writes(), 0);
    });
}

#[test]
fn a_link_of_another_kind_is_refused_by_its_kind() {
    isolated(|| async {
        run("ip link add wgmesh0 type veth peer name other");
        let observed = kernel().observe().await.unwrap();
        assert_eq!(observed.link, Link::OtherKind { kind: "veth".into() });
        assert!(diff(&desired(1), &observed).is_err());
    });
}

/// W-D10: a thousand peers go in and come back; then one peer changes, and the others keep their sessions' state.
#[test]
fn a_thousand_peers_are_set_and_changed_one_by_one() {
    isolated(|| async {
        let kernel = kernel();
        let begin = Instant::now();
        converge(&kernel, &desired(0)).await;
        let made = begin.elapsed();
        let begin = Instant::now();
        let writes = diff(&desired(1000), &kernel.observe().await.unwrap()).unwrap();
        let decided = begin.elapsed();
        let begin = Instant::now();
        apply(&kernel, writes).await;
        let applied = begin.elapsed();
        let begin = Instant::now();
        let observed = kernel.observe().await.unwrap();
        println!(
            "link {made:?}; 1000 peers: diff {decided:?}, apply {applied:?}, observe {:?}",
            begin.elapsed()
        );
        assert_eq!(diff(&desired(1000), &observed), Ok(vec![]));
        assert_eq!(run("wg show wgmesh0 peers").lines().count(), 1000);

        run(format!("wg set wgmesh0 peer {} endpoint 198.51.100.9:7", key(500)));
        let mut wanted = desired(999);
        wanted.peers.get_mut(&key(1)).unwrap().endpoint = Endpoint::Set("198.51.100.1:1".parse().unwrap());
        let observed = converge(&kernel, &wanted).await;

        assert_eq!(observed.peers.len(), 999);
        assert_eq!(observed.peers[&key(1)].endpoint, Some("198.51.100.1:1".parse().unwrap()));
        assert_eq!(observed.peers[&key(500)].endpoint, Some("198.51.100.9:7".parse().unwrap()));
    });
}

/// W-D10: a peer with more inner addresses than a message of the kernel holds comes back whole.
#[test]
fn three_thousand_prefixes_of_one_peer_come_back_whole() {
    isolated(|| async {
        let kernel = kernel();
        let mut wanted = desired(2);
        let many = (0..3000u32).map(|n| format!("10.{}.{}.0/24", 100 + n / 256, n % 256).parse().unwrap());
        wanted.peers.get_mut(&key(1)).unwrap().allowed_ips = many.collect();

        let observed = converge(&kernel, &wanted).await;

        assert_eq!(observed.peers[&key(1)].allowed_ips.len(), 3000);
        assert_eq!(diff(&wanted, &observed), Ok(vec![]));
    });
}

/// W-D10: a prefix moves from one peer to another, and two peers swap theirs.
#[test]
fn prefixes_move_between_peers() {
    isolated(|| async {
        let kernel = kernel();
        converge(&kernel, &desired(3)).await;
        let mut wanted = desired(3);
        let first = wanted.peers[&key(1)].allowed_ips.clone();
        let second = wanted.peers[&key(2)].allowed_ips.clone();
        wanted.peers.get_mut(&key(1)).unwrap().allowed_ips = second;
        wanted.peers.get_mut(&key(2)).unwrap().allowed_ips = first;

        let observed = converge(&kernel, &wanted).await;

        assert_eq!(diff(&wanted, &observed), Ok(vec![]));
    });
}

#[test]
fn a_link_local_endpoint_keeps_its_scope() {
    isolated(|| async {
        let kernel = kernel();
        let mut wanted = desired(1);
        let scoped = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 51820, 0, 1);
        wanted.peers.get_mut(&key(1)).unwrap().endpoint = Endpoint::Set(scoped.into());

        let observed = converge(&kernel, &wanted).await;

        assert_eq!(diff(&wanted, &observed), Ok(vec![]));
    });
}

/// W-D8, W-D44: what somebody takes away is back within a second of the kernel's notice, a peer within the interval.
#[test]
fn whatever_is_taken_away_comes_back() {
    isolated(|| async {
        let kernel = kernel();
        let (_task, mut applied) = applier(&kernel, &desired(3));
        applied.outcome().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let cases = [
            ("ip route del 10.77.0.0/16 dev wgmesh0", "ip route show dev wgmesh0", "10.77.0.0/16"),
            ("ip -6 route del fd77::/64 dev wgmesh0", "ip -6 route show dev wgmesh0", "fd77::/64"),
            ("ip addr del 10.77.0.1/16 dev wgmesh0", "ip addr show wgmesh0", "10.77.0.1/16"),
            ("ip addr flush dev wgmesh0", "ip addr show wgmesh0", "fd77::1/64"),
            ("ip link set wgmesh0 mtu 1300", "ip link show wgmesh0", "mtu 1420"),
            ("ip link set wgmesh0 alias wgmesh:00000000", "ip -d link show wgmesh0", "wgmesh:01020304"),
            ("ip link set wgmesh0 down", "ip -6 route show dev wgmesh0", "fd77::/64"),
            ("ip link del wgmesh0", "ip route show dev wgmesh0", "10.77.0.0/16"),
        ];
        for (harm, look, expected) in cases {
            run(harm);
            let begin = Instant::now();
            healed(&kernel, Duration::from_secs(1)).await;
            println!("{harm}: healed in {:?}", begin.elapsed());
            let seen = run(look);
            assert!(seen.contains(expected), "{harm}: {seen}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        run(format!("wg set wgmesh0 peer {} remove", key(1)));
        healed(&kernel, Duration::from_millis(5500)).await;
        assert_eq!(run("wg show wgmesh0 peers").lines().count(), 3);
    });
}

/// W-D10: twenty seconds after it converged, nothing more was written, by our own count and by the kernel's notices.
#[test]
fn a_converged_applier_writes_nothing() {
    isolated(|| async {
        let kernel = kernel();
        let (_task, mut applied) = applier(&kernel, &desired(10));
        applied.outcome().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (writes, turns) = (applied.pulse.writes(), applied.pulse.turns());
        let readings = kernel.readings();
        let mut monitor = Command::new("timeout");
        monitor.args(["19", "ip", "monitor", "link", "address", "route"]);
        let monitor = monitor.stdout(std::process::Stdio::piped()).spawn().unwrap();

        tokio::time::sleep(Duration::from_secs(20)).await;

        assert_eq!(applied.pulse.writes(), writes);
        assert!(applied.pulse.turns() <= turns + 5, "{} turns", applied.pulse.turns() - turns);
        let readings = kernel.readings() - readings;
        assert!((3..=5).contains(&readings), "{readings} readings in 20 s");
        let seen = String::from_utf8(monitor.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(seen, "");
    });
}

/// W-D44, C-4: routes of others stay, on our link and elsewhere.
#[test]
fn foreign_routes_are_left_alone() {
    isolated(|| async {
        run("ip link set lo up");
        run("ip route add 203.0.113.0/24 dev lo proto static");
        let (_task, mut applied) = applier(&kernel(), &desired(1));
        applied.outcome().await;
        run("ip route add 198.51.100.0/24 dev wgmesh0 proto static");
        run("ip route add 198.51.101.0/24 dev wgmesh0 proto 87 table 100");

        tokio::time::sleep(Duration::from_secs(6)).await;

        assert!(run("ip route show").contains("203.0.113.0/24 dev lo proto static"));
        assert!(run("ip route show").contains("198.51.100.0/24 dev wgmesh0 proto static"));
        assert!(run("ip route show table 100").contains("198.51.101.0/24"));
    });
}

/// W-D44, DESIGN 4: a foreign route in the way is reported and kept, and everything else is done.
#[test]
fn a_foreign_route_in_the_way_is_reported_and_the_rest_done() {
    isolated(|| async {
        run("ip link set lo up");
        run("ip route add 10.77.0.0/16 dev lo proto static");
        let (_task, mut applied) = applier(&kernel(), &desired(3));

        let outcome = applied.outcome().await;

        assert!(matches!(outcome.failures.as_slice(), [KernelError::ForeignRoute { .. }]), "{outcome:?}");
        assert_eq!(outcome.observed.peers.len(), 3);
        assert!(run("ip -6 route show dev wgmesh0").contains("fd77::/64"));
        assert!(run("ip route show").contains("10.77.0.0/16 dev lo proto static"));

        run("ip route del 10.77.0.0/16 dev lo");
        until(Duration::from_secs(6), || run("ip route show").contains("10.77.0.0/16 dev wgmesh0")).await;
    });
}

/// W-D45: a route through a relay's mesh address, put in and changed in one step.
#[test]
fn a_route_can_lead_through_a_mesh_address() {
    isolated(|| async {
        let kernel = kernel();
        let via = |gateway: &str| {
            let mut wanted = desired(2);
            wanted
                .routes
                .insert(Route { gateway: Some(gateway.parse().unwrap()), ..route("192.168.9.0/24") });
            wanted
        };
        converge(&kernel, &via("10.77.1.1")).await;

        let observed = converge(&kernel, &via("10.77.1.2")).await;

        assert_eq!(diff(&via("10.77.1.2"), &observed), Ok(vec![]));
        assert!(run("ip route show").contains("192.168.9.0/24 via 10.77.1.2 dev wgmesh0 proto 87"));
    });
}

/// DESIGN 4: a host without IPv6 gets everything else, and converges.
#[test]
fn without_ipv6_the_rest_is_done() {
    isolated(|| async {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let (_task, mut applied) = applier(&kernel(), &desired(2));

        let outcome = applied.outcome().await;

        assert_eq!(outcome.observed.peers.len(), 2);
        assert!(outcome.failures.iter().all(|failure| matches!(failure, KernelError::NoIpv6 { .. })));
        until(Duration::from_secs(1), || applied.latest().is_some_and(|o| o.failures.is_empty())).await;
        assert!(run("ip route show dev wgmesh0").contains("10.77.0.0/16"));
        assert!(run("ip -6 addr show wgmesh0").is_empty());
    });
}

/// W-D43: a port that another program has is an error of its own, and is taken as soon as it is free.
#[test]
fn a_port_in_use_is_told_and_tried_again() {
    isolated(|| async {
        run("ip link set lo up");
        let taken = UdpSocket::bind("0.0.0.0:51820").unwrap();
        let (_task, mut applied) = applier(&kernel(), &desired(1));

        let report = applied.report().await;
        let Err(ApplyFailure::Kernel(KernelError::PortInUse { .. })) = report.result else {
            panic!("{report:?}");
        };

        drop(taken);
        until(Duration::from_secs(6), || applied.latest().is_some()).await;
        assert!(run("ip link show wgmesh0").contains("UP"));
    });
}

#[test]
fn without_the_capability_the_error_names_it() {
    isolated(|| async {
        caps::clear(None, caps::CapSet::Effective).unwrap();

        let writes = diff(&desired(1), &Observed::default()).unwrap();
        let error = kernel().apply(writes.into()).await.unwrap_err();

        assert!(matches!(error, KernelError::NoPermission { .. }), "{error:?}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

/// A reading while another program adds and removes peers is whole or tried again, never half.
#[test]
fn a_reading_amid_changes_is_whole() {
    isolated(|| async {
        let kernel = kernel();
        converge(&kernel, &desired(300)).await;
        let add = format!("wg set wgmesh0 peer {}", key(999));
        let script = format!("for i in $(seq 100); do {add}; {add} remove; done");
        let mut churn = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let mut readings = 0;
        while churn.try_wait().unwrap().is_none() {
            match kernel.observe().await {
                Ok(observed) => assert!((300..=301).contains(&observed.peers.len())),
                Err(error) => assert!(matches!(error, KernelError::Unsteady { .. }), "{error}"),
            }
            readings += 1;
        }
        println!("{readings} readings amid 200 changes");
    });
}

#[test]
fn the_underlay_is_every_running_link_but_ours() {
    isolated(|| async {
        run("ip link set lo up");
        run("ip link add east type veth peer name west");
        run("ip link set west up");
        let kernel = kernel();
        let changes = kernel.watch().unwrap();
        let underlay_changed = changes.changes().underlay;
        tokio::spawn(changes.run());
        converge(&kernel, &desired(1)).await;
        // Linux takes a moment to notice that a cable's other end is down.
        let lost = tokio::time::timeout(Duration::from_secs(10), async {
            while !kernel.underlay().await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        lost.await.expect("a link without a carrier is none");

        run("ip addr add 192.0.2.1/24 dev east");
        run("ip link set east up");
        tokio::time::timeout(Duration::from_secs(1), underlay_changed.notified()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;

        let links = kernel.underlay().await.unwrap();
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["west", "east"]);
        assert!(links[1].addresses.contains(&"192.0.2.1/24".parse().unwrap()));
        assert!(links[1].multicast && links[1].ethernet);
    });
}

/// A relay that routes for many pairs has more rules than a netlink socket takes at once by itself.
#[test]
fn a_table_of_a_thousand_rules_is_written_in_one_transaction() {
    isolated(|| async {
        let kernel = kernel();
        converge(&kernel, &desired(1)).await;
        let network = |first: u8, number: u16| {
            let [high, low] = number.to_be_bytes();
            format!("10.{first}.{high}.{low}/32").parse::<IpNet>().unwrap()
        };
        let between = (0..1000).map(|number| (network(88, number), network(99, number))).collect();
        let wanted = Forwarding { between, ..Forwarding::default() };
        let passage = kernel.forward(wanted).await.unwrap();
        assert!(passage.failure.is_none(), "{passage:?}");
        let rules = run("nft list ruleset");
        let is_there = |number| rules.contains(&network(88, number).addr().to_string());
        assert!((0..1000).all(is_there), "{rules}");
        let passage = kernel.forward(Forwarding::default()).await.unwrap();
        assert!(passage.failure.is_none(), "{passage:?}");
        assert_eq!(run("nft list tables").trim(), "");
    });
}

/// A route may lead to a part of the network that a link is in, by way of another link: that one carries the answers.
#[test]
fn forwarding_is_switched_on_where_the_routes_lead() {
    isolated(|| async {
        let kernel = kernel();
        converge(&kernel, &desired(1)).await;
        for (link, address) in [("wide", "10.0.0.5/8"), ("narrow", "192.0.2.5/24"), ("part", "10.7.0.129/25")]
        {
            run(format!("ip link add {link} type dummy"));
            run(format!("ip address add {address} dev {link}"));
            run(format!("ip link set {link} up"));
        }
        run("ip route add 10.7.0.0/25 via 192.0.2.1 dev narrow");
        let wanted =
            Forwarding { networks: ["10.7.0.0/24".parse().unwrap()].into(), ..Forwarding::default() };
        let passage = kernel.forward(wanted).await.unwrap();
        assert!(passage.failure.is_none(), "{passage:?}");
        let switched: Vec<_> = passage.switched.iter().map(String::as_str).collect();
        assert_eq!(switched, ["narrow", "part", "wgmesh0"]);
    });
}

/// Runs a test in a thread with a network namespace of its own, which its runtime's threads inherit.
fn isolated<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn kernel() -> Kernel {
    Kernel::open(name()).unwrap()
}

fn name() -> InterfaceName {
    INTERFACE.parse().unwrap()
}

fn owner() -> OwnerMark {
    OwnerMark::new([1, 2, 3, 4])
}

fn key(n: u16) -> PublicKey {
    let [high, low] = n.to_be_bytes();
    let mut bytes = [9; 32];
    bytes[..2].copy_from_slice(&[high, low]);
    PublicKey::from_bytes(bytes)
}

fn route(destination: &str) -> Route {
    Route { destination: destination.parse().unwrap(), gateway: None, metric: 0, mtu: None }
}

fn desired(peers: u16) -> Desired {
    let peer = |n: u16| DesiredPeer {
        preshared_key: Some(PresharedKey::from_bytes([5; 32])),
        endpoint: Endpoint::IfUnset("192.0.2.1:51820".parse().unwrap()),
        keepalive: 25,
        allowed_ips: [
            format!("10.77.{}.{}/32", 1 + n / 256, n % 256).parse().unwrap(),
            format!("fd77::1:{n:x}/128").parse().unwrap(),
        ]
        .into(),
    };
    Desired {
        interface: name(),
        owner: owner(),
        private_key: SecretKey::from_random([7; 32]),
        listen_port: 51820,
        fwmark: None,
        mtu: 1420,
        addresses: ["10.77.0.1/16".parse().unwrap(), "fd77::1/64".parse().unwrap()].into(),
        peers: (1..=peers).map(|n| (key(n), peer(n))).collect::<BTreeMap<_, _>>(),
        routes: [route("10.77.0.0/16"), route("fd77::/64")].into(),
        forwarding: Forwarding::default(),
    }
}

fn index(observed: &Observed) -> u32 {
    match observed.link {
        Link::WireGuard { index, .. } => index,
        Link::Missing | Link::OtherKind { .. } => panic!("no WireGuard link: {:?}", observed.link),
    }
}

/// Brings the kernel to the plan in one pass, and reads it back.
async fn converge(kernel: &Kernel, desired: &Desired) -> Observed {
    let observed = kernel.observe().await.unwrap();
    apply(kernel, diff(desired, &observed).unwrap()).await;
    kernel.observe().await.unwrap()
}

async fn apply(kernel: &Kernel, writes: Vec<Write>) {
    assert_eq!(kernel.apply(writes.into()).await, Ok(vec![]));
}

struct Applied {
    reports: watch::Receiver<Report>,
    pulse: Arc<Pulse>,
}

impl Applied {
    async fn report(&mut self) -> Report {
        self.reports.changed().await.unwrap();
        self.reports.borrow_and_update().clone()
    }

    async fn outcome(&mut self) -> Outcome {
        self.report().await.result.unwrap()
    }

    fn latest(&self) -> Option<Outcome> {
        self.reports.borrow().result.clone().ok()
    }
}

/// Starts an applier that follows one plan for as long as the returned sender lives.
fn applier(kernel: &Kernel, desired: &Desired) -> (watch::Sender<Goal>, Applied) {
    let watcher = kernel.watch().unwrap();
    let changes = watcher.changes();
    tokio::spawn(watcher.run());
    let (goals, receiver) =
        watch::channel(Goal { generation: 1, want: Want::Present(Arc::new(desired.clone())) });
    let applier = Applier::new(kernel.clone(), owner(), receiver, changes.mesh);
    let applied = Applied { reports: applier.reports(), pulse: applier.pulse() };
    tokio::spawn(applier.run());
    (goals, applied)
}

/// Waits until the kernel holds all of the plan for three peers again.
async fn healed(kernel: &Kernel, limit: Duration) {
    let begin = Instant::now();
    while kernel.observe().await.map(|observed| diff(&desired(3), &observed)) != Ok(Ok(vec![])) {
        assert!(begin.elapsed() < limit, "not healed after {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until something is so.
async fn until(limit: Duration, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < limit, "not so after {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a command in the test's own namespace, and returns what it printed.
fn run(line: impl Display) -> String {
    let line = line.to_string();
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
