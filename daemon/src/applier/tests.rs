use std::sync::Mutex;

use wgmesh_core::kernel::{DesiredPeer, Endpoint, Link, ObservedPeer, Route};
use wgmesh_core::key::{PublicKey, SecretKey};

use super::*;

/// A kernel in memory, which gives notice of its changes as the real one does.
#[derive(Clone, Default)]
struct FakeNet {
    state: Arc<Mutex<State>>,
    notices: Arc<Notify>,
}

#[derive(Default)]
struct State {
    observed: Observed,
    readings: usize,
    refreshes: usize,
    writes: Vec<Write>,
    forwarded: Vec<Forwarding>,
    /// What the next calls of `apply` fail with.
    broken: Option<KernelError>,
    /// The write that fails alone.
    refused: Option<Write>,
    /// Whether nothing can be changed about what is passed on.
    is_passing_broken: bool,
}

impl FakeNet {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    fn change(&self, change: impl FnOnce(&mut Observed)) {
        self.with(|state| change(&mut state.observed));
        self.notices.notify_one();
    }
}

impl Net for FakeNet {
    async fn observe(&self) -> Result<Observed, KernelError> {
        Ok(self.with(|state| {
            state.readings += 1;
            state.observed.clone()
        }))
    }

    /// What is new is told at once, as where no eBPF watches the traffic.
    async fn poll(
        &self,
        first: Instant,
        whole_at: Instant,
        earlier: Arc<Observed>,
    ) -> Result<Reading, KernelError> {
        let mut next = first;
        loop {
            sleep_until(next).await;
            if next >= whole_at {
                return Ok(Reading { observed: self.observe().await?, is_whole: true });
            }
            let Observed { device, peers, .. } = self.with(|state| {
                state.refreshes += 1;
                state.observed.clone()
            });
            let observed = Observed { device, peers, ..Observed::clone(&earlier) };
            if observed != *earlier {
                return Ok(Reading { observed, is_whole: false });
            }
            next += INTERVAL;
        }
    }

    async fn apply(&self, writes: Arc<[Write]>) -> Result<Vec<KernelError>, KernelError> {
        self.with(|state| {
            if let Some(error) = &state.broken {
                return Err(error.clone());
            }
            let (refused, done): (Vec<_>, Vec<_>) =
                writes.iter().cloned().partition(|write| Some(write) == state.refused.as_ref());
            if !done.is_empty() {
                self.notices.notify_one();
            }
            apply_to(&mut state.observed, &done);
            state.writes.extend(done);
            Ok(refused.iter().map(|_| no_permission()).collect())
        })
    }

    async fn forward(&self, want: Forwarding) -> Result<Passage, KernelError> {
        self.with(|state| {
            state.forwarded.push(want);
            let failure = state.is_passing_broken.then(no_permission);
            Ok(Passage { failure, ..Passage::default() })
        })
    }

    fn link_index(&self) -> Option<u32> {
        self.with(|state| match state.observed.link {
            Link::WireGuard { index, .. } => Some(index),
            Link::Missing | Link::OtherKind { .. } => None,
        })
    }
}

struct Bench {
    net: FakeNet,
    goals: watch::Sender<Goal>,
    reports: watch::Receiver<Report>,
    look: Look,
    pulse: Arc<Pulse>,
}

fn start() -> Bench {
    let net = FakeNet::default();
    let (goals, receiver) = watch::channel(Goal { generation: 0, want: Want::Nothing });
    let applier = Applier::new(net.clone(), owner(), receiver, Arc::clone(&net.notices));
    let (reports, look, pulse) = (applier.reports(), applier.look(), applier.pulse());
    tokio::spawn(applier.run());
    Bench { net, goals, reports, look, pulse }
}

impl Bench {
    fn want(&self, generation: u64, want: Want) {
        self.goals.send(Goal { generation, want }).unwrap();
    }

    async fn report(&mut self) -> Report {
        self.reports.changed().await.unwrap();
        self.reports.borrow_and_update().clone()
    }

    /// Brings the kernel to the plan and lets everything settle.
    async fn converge(&mut self) {
        self.want(1, Want::Present(Arc::new(desired(&[1]))));
        self.settle().await;
    }

    async fn settle(&mut self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.reports.mark_unchanged();
        self.net.with(|state| {
            state.writes.clear();
            (state.readings, state.refreshes) = (0, 0);
        });
    }
}

fn owner() -> OwnerMark {
    OwnerMark::new([1, 2, 3, 4])
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

fn route() -> Route {
    Route { destination: "10.1.0.0/16".parse().unwrap(), gateway: None, metric: 0, mtu: None }
}

fn no_permission() -> KernelError {
    KernelError::NoPermission { step: "do it".into() }
}

fn desired(peers: &[u8]) -> Desired {
    let peer = |n: u8| DesiredPeer {
        preshared_key: None,
        endpoint: Endpoint::Keep,
        keepalive: 0,
        allowed_ips: [format!("10.1.0.{n}/32").parse().unwrap()].into(),
    };
    Desired {
        interface: "wgmesh0".parse().unwrap(),
        owner: owner(),
        private_key: SecretKey::from_random([7; 32]),
        listen_port: 51820,
        fwmark: None,
        mtu: 1420,
        addresses: ["10.1.2.3/16".parse().unwrap()].into(),
        peers: peers.iter().map(|&n| (key(n), peer(n))).collect(),
        routes: [route()].into(),
        forwarding: Forwarding::default(),
    }
}

/// W-D54, W-D5: the first goal makes the link and all that hangs on it, and says so at once.
#[tokio::test(start_paused = true)]
async fn the_first_goal_is_reported_without_waiting() {
    let mut bench = start();
    let begin = Instant::now();

    bench.want(1, Want::Present(Arc::new(desired(&[1]))));
    let report = bench.report().await;

    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(report.generation, 1);
    let outcome = report.result.unwrap();
    assert!(outcome.observed.peers.contains_key(&key(1)));
    assert_eq!(bench.pulse.writes(), outcome.writes as u64);
}

/// W-D10: once converged it reads, and writes nothing; its own writes cost one more reading.
#[tokio::test(start_paused = true)]
async fn a_converged_node_writes_nothing() {
    let mut bench = start();
    bench.want(1, Want::Present(Arc::new(desired(&[1]))));
    bench.report().await;
    let readings = bench.net.with(|state| state.readings);

    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.net.with(|state| state.readings), readings + 1);
    let writes = bench.pulse.writes();

    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.pulse.writes(), writes);
    let read = bench.net.with(|state| (state.readings - readings, state.refreshes));
    assert_eq!(read, (3, 60 / 5 - 2), "everything each half minute, the device alone in between");
}

/// W-D8: a deleted route is back within 50 ms of the kernel's notice.
#[tokio::test(start_paused = true)]
async fn a_deleted_route_is_back_within_50_ms() {
    let mut bench = start();
    bench.converge().await;
    let begin = Instant::now();

    bench.net.change(|observed| observed.routes.clear());
    bench.report().await;

    assert!(begin.elapsed() <= Duration::from_millis(50), "{:?}", begin.elapsed());
    assert_eq!(bench.net.with(|state| state.writes.clone()), vec![Write::AddRoute(route())]);
}

/// W-D8: WireGuard gives no notice of a removed peer; the interval finds it.
#[tokio::test(start_paused = true)]
async fn a_peer_removed_without_notice_is_back_within_5_s() {
    let mut bench = start();
    bench.converge().await;

    bench.net.with(|state| state.observed.peers.clear());
    tokio::time::sleep(INTERVAL).await;

    assert!(bench.net.with(|state| state.observed.peers.contains_key(&key(1))));
}

#[tokio::test(start_paused = true)]
async fn the_whole_link_is_made_again_when_it_vanishes() {
    let mut bench = start();
    bench.converge().await;

    bench.net.change(|observed| *observed = Observed::default());
    let report = bench.report().await;

    assert!(report.result.unwrap().observed.peers.contains_key(&key(1)));
}

#[tokio::test(start_paused = true)]
async fn a_new_goal_is_written_without_reading_first() {
    let mut bench = start();
    bench.converge().await;

    bench.want(2, Want::Present(Arc::new(desired(&[1, 2]))));
    let report = bench.report().await;

    assert_eq!(report.generation, 2);
    assert_eq!(bench.net.with(|state| state.readings), 0);
    assert!(report.result.unwrap().observed.peers.contains_key(&key(2)));
}

/// W-D17: a reader that lags gets the newest plan, and nobody waits for it.
#[tokio::test(start_paused = true)]
async fn only_the_latest_goal_counts() {
    let mut bench = start();
    bench.want(1, Want::Present(Arc::new(desired(&[1, 2, 3]))));
    bench.want(2, Want::Present(Arc::new(desired(&[4]))));

    let report = bench.report().await;

    assert_eq!(report.generation, 2);
    bench.settle().await;
    assert_eq!(bench.net.with(|state| state.observed.peers.keys().copied().collect::<Vec<_>>()), [key(4)]);
}

/// W-D6: withdrawing leaves nothing of ours.
#[tokio::test(start_paused = true)]
async fn withdrawing_leaves_no_link() {
    let mut bench = start();
    bench.converge().await;

    bench.want(2, Want::Withdrawn);
    let report = bench.report().await;

    assert_eq!(report.generation, 2);
    assert_eq!(bench.net.with(|state| state.observed.link.clone()), Link::Missing);
}

#[tokio::test(start_paused = true)]
async fn wanting_nothing_touches_nothing() {
    let mut bench = start();
    bench.converge().await;

    bench.want(2, Want::Nothing);
    bench.net.change(|observed| observed.routes.clear());
    tokio::time::sleep(Duration::from_secs(20)).await;

    let touched = bench.net.with(|state| (state.readings, state.refreshes, state.writes.len()));
    assert_eq!(touched, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_ever_more_slowly() {
    let mut bench = start();
    bench.net.with(|state| state.broken = Some(no_permission()));
    bench.want(1, Want::Present(Arc::new(desired(&[1]))));
    bench.report().await;

    let mut pauses = Vec::new();
    for _ in 0..8 {
        let begin = Instant::now();
        assert!(bench.report().await.result.is_err());
        pauses.push(begin.elapsed().as_millis());
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);

    bench.net.with(|state| state.broken = None);
    assert!(bench.report().await.result.is_ok());
}

/// DESIGN 4: one bad route does not keep the peers from being set.
#[tokio::test(start_paused = true)]
async fn a_write_that_fails_alone_is_reported_with_the_rest_done() {
    let mut bench = start();
    bench.net.with(|state| state.refused = Some(Write::AddRoute(route())));
    bench.want(1, Want::Present(Arc::new(desired(&[1]))));

    let outcome = bench.report().await.result.unwrap();

    assert_eq!(outcome.failures, vec![no_permission()]);
    assert!(outcome.observed.peers.contains_key(&key(1)));
    assert!(outcome.observed.routes.is_empty());

    bench.net.with(|state| state.refused = None);
    tokio::time::sleep(INTERVAL).await;
    assert!(bench.net.with(|state| state.observed.routes.contains(&route())));
}

/// What the kernel refused gives no notice, and a reading shows nothing new.
#[tokio::test(start_paused = true)]
async fn a_write_that_failed_alone_is_tried_again_soon() {
    let mut bench = start();
    bench.converge().await;
    let gone = Route { destination: "10.2.0.0/16".parse().unwrap(), ..route() };
    bench.net.with(|state| state.refused = Some(Write::AddRoute(gone)));
    let routes = [route(), gone].into();
    bench.want(2, Want::Present(Arc::new(Desired { routes, ..desired(&[1]) })));
    assert_eq!(bench.report().await.result.unwrap().failures.len(), 1);

    tokio::time::sleep(RETRY * 8).await;

    assert!(bench.net.with(|state| state.readings) >= 4);
    bench.net.with(|state| state.refused = None);
    tokio::time::sleep(RETRY * 16).await;
    assert!(bench.net.with(|state| state.observed.routes.contains(&gone)));
}

#[tokio::test(start_paused = true)]
async fn a_foreign_link_is_refused_and_left_alone() {
    let mut bench = start();
    let foreign = Observed { link: Link::OtherKind { kind: "veth".into() }, ..Observed::default() };
    bench.net.with(|state| state.observed = foreign.clone());
    bench.want(1, Want::Present(Arc::new(desired(&[1]))));

    let report = bench.report().await;

    assert!(matches!(report.result, Err(ApplyFailure::Refused(_))));
    assert_eq!(bench.net.with(|state| state.observed.clone()), foreign);
    assert_eq!(bench.pulse.writes(), 0);
}

/// Another program that undoes every write gets a slow contest, not a busy one.
#[tokio::test(start_paused = true)]
async fn a_contest_over_a_route_slows_down() {
    let mut bench = start();
    bench.converge().await;
    let net = bench.net.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let removed = net.with(|state| state.observed.routes.pop_first().is_some());
            if removed {
                net.notices.notify_one();
            }
        }
    });

    tokio::time::sleep(Duration::from_secs(60)).await;

    let writes = bench.net.with(|state| state.writes.len());
    assert!((10..40).contains(&writes), "{writes}");
}

/// At rest nobody is woken but to report each half minute; who asks whether the task lives is answered, and the readings go on
/// as they were.
#[tokio::test(start_paused = true)]
async fn whoever_asks_sees_the_pulse_while_nothing_happens() {
    let mut bench = start();
    bench.converge().await;
    let turns = bench.pulse.turns();
    tokio::time::sleep(INTERVAL * 4 + INTERVAL / 2).await;
    assert_eq!(bench.pulse.turns(), turns);

    bench.pulse.progress().ask();
    tokio::task::yield_now().await;

    assert_eq!(bench.pulse.turns(), turns + 1);
    assert!(!bench.reports.has_changed().unwrap());
    tokio::time::sleep(INTERVAL * 2).await;
    assert_eq!(bench.net.with(|state| (state.readings, state.refreshes)), (1, 5));
    assert!(bench.reports.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_roamed_endpoint_is_reported_and_left() {
    let mut bench = start();
    bench.converge().await;
    let roamed = Some("203.0.113.9:1".parse().unwrap());

    bench.net.change(|observed| {
        observed.peers.entry(key(1)).and_modify(|peer: &mut ObservedPeer| peer.endpoint = roamed);
    });
    let outcome = bench.report().await.result.unwrap();

    assert_eq!(outcome.observed.peers[&key(1)].endpoint, roamed);
    assert_eq!(outcome.writes, 0);
}

/// What `status` has seen is not taken back by the next report, which reads nothing.
#[tokio::test(start_paused = true)]
async fn a_look_is_what_later_reports_build_on() {
    let mut bench = start();
    bench.converge().await;
    let received =
        async |bench: &mut Bench| bench.report().await.result.unwrap().observed.peers[&key(1)].rx_bytes;
    // Of its counters the kernel gives no notice.
    bench.net.with(|state| state.observed.peers.get_mut(&key(1)).unwrap().rx_bytes = 148);
    let begin = Instant::now();

    bench.look.take().await;
    assert_eq!(received(&mut bench).await, 148);
    assert_eq!(begin.elapsed(), Duration::ZERO);

    bench.want(2, Want::Present(Arc::new(desired(&[1, 2]))));
    assert_eq!(received(&mut bench).await, 148);
}

/// A look heals what it finds, and says why it could not.
#[tokio::test(start_paused = true)]
async fn a_look_at_a_kernel_that_is_not_as_planned_reports_that() {
    let mut bench = start();
    bench.converge().await;
    let foreign = Observed { link: Link::OtherKind { kind: "bridge".into() }, ..Observed::default() };
    bench.net.with(|state| state.observed = foreign);

    for _ in 0..2 {
        bench.look.take().await;
        assert!(matches!(bench.report().await.result, Err(ApplyFailure::Refused(_))));
    }

    bench.want(2, Want::Nothing);
    bench.look.take().await;
}

/// W-D46: what is passed on follows the plan, is looked at with every reading while it is anything, and goes at the end.
#[tokio::test(start_paused = true)]
async fn what_is_passed_on_follows_the_plan_and_is_taken_back_first() {
    let mut bench = start();
    bench.converge().await;
    let taken = |bench: &Bench| bench.net.with(|state| std::mem::take(&mut state.forwarded));
    assert!(taken(&bench).is_empty(), "a start has no time for it");
    tokio::time::sleep(REPORT_INTERVAL).await;
    assert_eq!(taken(&bench), [Forwarding::default()], "an earlier run may have left something");

    let forwarding =
        Forwarding { networks: ["10.7.0.0/24".parse().unwrap()].into(), ..Forwarding::default() };
    let wanted = Desired { forwarding: forwarding.clone(), ..desired(&[1]) };
    bench.want(2, Want::Present(Arc::new(wanted)));
    tokio::time::sleep(PASSING_INTERVAL * 2).await;
    let seen = taken(&bench);
    assert!(seen.len() >= 3 && seen.iter().all(|one| *one == forwarding), "{seen:?}");

    bench.want(3, Want::Withdrawn);
    bench.settle().await;
    assert_eq!(taken(&bench), [Forwarding::default()]);
    assert!(bench.net.with(|state| state.observed.link == Link::Missing));
}

/// A stop that leaves the host forwarding for a mesh that is gone is none.
#[tokio::test(start_paused = true)]
async fn a_withdrawal_is_done_once_nothing_is_passed_on_any_more() {
    let mut bench = start();
    bench.converge().await;
    bench.net.with(|state| state.is_passing_broken = true);
    bench.want(2, Want::Withdrawn);
    let report = bench.report().await;
    assert!(bench.net.with(|state| state.observed.link == Link::Missing), "the rest is done all the same");
    assert!(report.result.is_ok() && !report.is_all_done());
    bench.net.with(|state| state.is_passing_broken = false);
    bench.settle().await;
    assert!(bench.reports.borrow().is_all_done(), "it was tried again");
}
