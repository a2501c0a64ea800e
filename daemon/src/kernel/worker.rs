//! The thread that owns the sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::{mpsc, oneshot};
use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{InterfaceName, Link, Observed, Route, Underlay, Write};

use super::error::{Failure, KernelError, Refused};
use super::forwarding::{Forwarder, Passage};
use super::socket::{Request, Socket};
use super::wireguard::WireGuard;
use super::{Reading, address, link, route, underlay};
use crate::clock;
use crate::notify::Progress;

/// Addresses and routes sent as one datagram. Their acknowledgements must fit the socket's receive buffer (208 KiB
/// by default, of which each takes less than one).
const BATCH: usize = 64;

/// How often a reading is begun again when the link vanishes under it.
const OBSERVE_ATTEMPTS: usize = 3;

/// What the thread can be asked to do, and where the answer goes.
pub(super) enum Job {
    Observe(oneshot::Sender<Result<Observed, KernelError>>),
    Poll(Polling),
    Apply(Arc<[Write]>, oneshot::Sender<Result<Vec<KernelError>, KernelError>>),
    Underlay(oneshot::Sender<Result<Vec<Underlay>, KernelError>>),
    Forward(Forwarding, oneshot::Sender<Result<Passage, KernelError>>),
}

/// Readings to come, of which one that tells something new is answered.
pub(super) struct Polling {
    pub(super) next: Instant,
    pub(super) interval: Duration,
    /// From then on a reading is a whole one, and answered.
    pub(super) whole_at: Instant,
    /// How much a peer's traffic may have grown, in bytes, and be nothing new.
    pub(super) traffic: u64,
    pub(super) earlier: Arc<Observed>,
    /// Whether none was made yet.
    pub(super) is_first: bool,
    pub(super) answer: oneshot::Sender<Result<Reading, KernelError>>,
}

impl Polling {
    fn may_keep_back(&self, observed: &Observed) -> bool {
        observed.may_be_kept_back(&self.earlier, self.traffic, self.is_first, clock::now().wall)
    }
}

/// Our link's index as last seen; zero while there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkIndex(Arc<AtomicU32>);

impl LinkIndex {
    pub(super) fn current(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|index| *index != 0)
    }

    fn set(&self, index: Option<u32>) {
        self.0.store(index.unwrap_or(0), Ordering::Relaxed);
    }
}

/// The sockets, and the link they are about.
pub(super) struct Worker {
    interface: InterfaceName,
    index: LinkIndex,
    route: Socket,
    /// Opened when first needed: a kernel may load its WireGuard module only for the first link.
    wireguard: Option<WireGuard>,
    forwarder: Forwarder,
    progress: Progress,
    readings: Arc<AtomicU64>,
}

impl Worker {
    pub(super) fn open(
        interface: InterfaceName,
        index: LinkIndex,
        progress: Progress,
        readings: Arc<AtomicU64>,
    ) -> Result<Self, KernelError> {
        let route = Socket::open(NETLINK_ROUTE).map_err(|f| KernelError::at("open a netlink socket", f))?;
        let forwarder = Forwarder::default();
        Ok(Self { interface, index, route, wireguard: None, forwarder, progress, readings })
    }

    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut polling: Option<Polling> = None;
        loop {
            self.progress.step();
            // Whoever asked may have given up; the job is done all the same.
            match next(&mut jobs, polling.as_ref().map(|polling| polling.next)) {
                Next::Job(Job::Observe(answer)) => drop(answer.send(self.observe())),
                Next::Job(Job::Poll(newer)) => polling = Some(newer),
                Next::Job(Job::Apply(writes, answer)) => drop(answer.send(self.apply(&writes))),
                Next::Job(Job::Underlay(answer)) => drop(answer.send(self.underlay())),
                Next::Job(Job::Forward(want, answer)) => {
                    let passage = self.forwarder.follow(&mut self.route, &self.interface, &want);
                    drop(answer.send(Ok(passage)));
                }
                Next::Due => polling = polling.and_then(|polling| self.poll(polling)),
                Next::End => return,
            }
        }
    }

    /// Makes a reading whose time has come, and answers it or returns what goes on.
    fn poll(&mut self, polling: Polling) -> Option<Polling> {
        if polling.answer.is_closed() {
            return None;
        }
        let is_whole = Instant::now() >= polling.whole_at;
        let observed = if is_whole { self.observe() } else { self.refresh(&polling.earlier) };
        if !is_whole && observed.as_ref().is_ok_and(|observed| polling.may_keep_back(observed)) {
            // Where the first one was long due, the others are not all at once.
            let next = Instant::now() + polling.interval;
            return Some(Polling { next, is_first: false, ..polling });
        }
        drop(polling.answer.send(observed.map(|observed| Reading { observed, is_whole })));
        None
    }

    fn observe(&mut self) -> Result<Observed, KernelError> {
        let step = format!("read {}", self.interface);
        for _ in 0..OBSERVE_ATTEMPTS {
            match self.try_observe() {
                Err(failure) if failure.is(Errno::ENODEV) => {}
                outcome => return outcome.map_err(|failure| KernelError::at(step, failure)),
            }
        }
        Err(KernelError::Unsteady { step })
    }

    fn try_observe(&mut self) -> Result<Observed, Failure> {
        self.readings.fetch_add(1, Ordering::Relaxed);
        let link = link::read(&mut self.route, &self.interface)?;
        let Link::WireGuard { index, ipv6, .. } = link else {
            self.index.set(None);
            return Ok(Observed { link, ..Observed::default() });
        };
        // Before the rest is read: a change from here on must count as one of our link.
        self.index.set(Some(index));
        let (device, peers) = self.wireguard()?.read(index)?;
        let addresses = address::read(&mut self.route, Some(index))?.into_iter().map(|(_, address)| address);
        let addresses = addresses.filter(|address| !address::is_link_local(address)).collect();
        let routes = route::read(&mut self.route, index, ipv6)?;
        Ok(Observed { link, device: Some(device), peers, addresses, routes })
    }

    fn refresh(&mut self, earlier: &Observed) -> Result<Observed, KernelError> {
        let Link::WireGuard { index, .. } = earlier.link else { return self.observe() };
        self.readings.fetch_add(1, Ordering::Relaxed);
        match self.wireguard().and_then(|wireguard| wireguard.read(index)) {
            Ok((device, peers)) => Ok(Observed {
                link: earlier.link.clone(),
                device: Some(device),
                peers,
                addresses: earlier.addresses.clone(),
                routes: earlier.routes.clone(),
            }),
            Err(failure) if failure.is(Errno::ENODEV) => self.observe(),
            Err(failure) => Err(KernelError::at(format!("read {}", self.interface), failure)),
        }
    }

    fn wireguard(&mut self) -> Result<&mut WireGuard, Failure> {
        match &mut self.wireguard {
            Some(wireguard) => Ok(wireguard),
            none => Ok(none.insert(WireGuard::open()?)),
        }
    }

    fn underlay(&mut self) -> Result<Vec<Underlay>, KernelError> {
        underlay::read(&mut self.route).map_err(|failure| KernelError::at("list the host's links", failure))
    }

    fn apply(&mut self, writes: &[Write]) -> Result<Vec<KernelError>, KernelError> {
        let mut failures = Vec::new();
        let mut batch = Vec::new();
        for write in writes {
            if let Write::CreateLink { owner, mtu } = write {
                self.create(*mtu).map_err(|failure| self.error(write, failure))?;
                // The module may have been loaded anew meanwhile, and its family has another number then.
                self.wireguard = None;
                batch.push((write, link::mark(self.link(write)?, owner)));
                continue;
            }
            let index = self.link(write)?;
            if let Some(request) = route_request(index, write) {
                batch.push((write, request));
                continue;
            }
            failures.append(&mut self.flush(&mut batch)?);
            match self.wireguard().and_then(|wireguard| wireguard.write(index, write)) {
                Err(failure) if is_essential(write) => return Err(self.error(write, failure)),
                outcome => failures.extend(outcome.err().map(|failure| self.error(write, failure))),
            }
        }
        failures.append(&mut self.flush(&mut batch)?);
        Ok(failures)
    }

    /// Creates the link and learns its index.
    fn create(&mut self, mtu: u32) -> Result<(), Failure> {
        link::create(&mut self.route, &self.interface, mtu)?;
        if let Link::WireGuard { index, .. } = link::read(&mut self.route, &self.interface)? {
            self.index.set(Some(index));
        }
        Ok(())
    }

    fn link(&self, write: &Write) -> Result<u32, KernelError> {
        let no_link = || Failure::Refused(Refused { errno: Errno::ENODEV, message: None });
        self.index.current().ok_or_else(|| self.error(write, no_link()))
    }

    /// Sends what has been gathered, and empties it.
    fn flush(&mut self, batch: &mut Vec<(&Write, RouteRequest)>) -> Result<Vec<KernelError>, KernelError> {
        let mut failures = Vec::new();
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(BATCH));
            let (writes, requests): (Vec<_>, Vec<_>) = std::mem::replace(batch, rest).into_iter().unzip();
            let answers = self.route.execute(requests).map_err(|failure| self.error(writes[0], failure))?;
            for (write, answer) in writes.into_iter().zip(answers) {
                match answer.or_else(|refused| self.settle(write, refused)) {
                    Err(error) if is_essential(write) => return Err(error),
                    outcome => failures.extend(outcome.err()),
                }
            }
        }
        Ok(failures)
    }

    /// Says whether a refusal matters: what is there already need not be added, and what is gone not removed.
    fn settle(&mut self, write: &Write, refused: Refused) -> Result<(), KernelError> {
        let is_ipv6 = match write {
            Write::AddAddress(address) => address.addr().is_ipv6(),
            Write::AddRoute(route) => route.destination.addr().is_ipv6(),
            _ => false,
        };
        match (write, refused.errno) {
            (Write::AddAddress(_), Errno::EEXIST)
            | (Write::RemoveAddress(_), Errno::EADDRNOTAVAIL | Errno::ENODEV)
            | (Write::RemoveRoute(_), Errno::ESRCH | Errno::ENODEV)
            | (Write::DeleteLink, Errno::ENODEV) => Ok(()),
            (Write::AddRoute(route), Errno::EEXIST) => self.replace_route(write, route),
            (_, Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) if is_ipv6 => {
                Err(KernelError::NoIpv6 { step: step(&self.interface, write) })
            }
            _ => Err(self.error(write, Failure::Refused(refused))),
        }
    }

    /// Replaces the route that is in the way, if it is ours.
    fn replace_route(&mut self, write: &Write, route: &Route) -> Result<(), KernelError> {
        let index = self.link(write)?;
        let is_ipv6 = route.destination.addr().is_ipv6();
        let ours = route::read(&mut self.route, index, is_ipv6).map_err(|f| self.error(write, f))?;
        if !ours.iter().any(|other| (other.destination, other.metric) == (route.destination, route.metric)) {
            return Err(KernelError::ForeignRoute { step: step(&self.interface, write) });
        }
        let request = route::replacement(index, route);
        self.route.execute_one(request.message, request.flags).map_err(|failure| self.error(write, failure))
    }

    fn error(&self, write: &Write, failure: Failure) -> KernelError {
        match write {
            Write::CreateLink { .. } => KernelError::at_creation(step(&self.interface, write), failure),
            _ => KernelError::at(step(&self.interface, write), failure),
        }
    }
}

/// What the thread does next.
enum Next {
    Job(Job),
    Due,
    End,
}

/// Waits for a job, and no longer than until `due`.
fn next(jobs: &mut mpsc::Receiver<Job>, due: Option<Instant>) -> Next {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match (jobs.poll_recv(&mut context), due) {
            (Poll::Ready(Some(job)), _) => return Next::Job(job),
            (Poll::Ready(None), _) => return Next::End,
            (Poll::Pending, None) => thread::park(),
            (Poll::Pending, Some(due)) => match due.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Next::Due,
                wait => thread::park_timeout(wait),
            },
        }
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

type RouteRequest = Request<RouteNetlinkMessage>;

/// Builds the rtnetlink request for a write, or `None` where it takes another way.
fn route_request(index: u32, write: &Write) -> Option<RouteRequest> {
    match write {
        Write::MarkLink(owner) => Some(link::mark(index, owner)),
        Write::SetMtu(mtu) => Some(link::set_mtu(index, *mtu)),
        Write::SetUp => Some(link::set_up(index)),
        Write::DeleteLink => Some(link::delete(index)),
        Write::AddAddress(address) => Some(address::addition(index, *address)),
        Write::RemoveAddress(address) => Some(address::removal(index, *address)),
        Write::AddRoute(route) => Some(route::addition(index, route)),
        Write::RemoveRoute(route) => Some(route::removal(index, route)),
        Write::CreateLink { .. } | Write::SetDevice { .. } | Write::RemovePeers(_) | Write::SetPeers(_) => {
            None
        }
    }
}

/// Returns whether the writes that follow need this one.
fn is_essential(write: &Write) -> bool {
    match write {
        Write::CreateLink { .. }
        | Write::MarkLink(_)
        | Write::SetDevice { .. }
        | Write::SetUp
        | Write::DeleteLink => true,
        Write::SetMtu(_)
        | Write::RemovePeers(_)
        | Write::SetPeers(_)
        | Write::AddAddress(_)
        | Write::RemoveAddress(_)
        | Write::AddRoute(_)
        | Write::RemoveRoute(_) => false,
    }
}

/// Names a write for an error message; never with a key in it.
fn step(interface: &InterfaceName, write: &Write) -> String {
    match write {
        Write::CreateLink { .. } => format!("create {interface}"),
        Write::MarkLink(_) => format!("mark {interface} as ours"),
        Write::SetMtu(mtu) => format!("set the MTU of {interface} to {mtu}"),
        Write::SetDevice { listen_port: Some(port), .. } => format!("give {interface} UDP port {port}"),
        Write::SetDevice { listen_port: None, .. } => format!("set the key or mark of {interface}"),
        Write::RemovePeers(keys) => format!("remove {} peers from {interface}", keys.len()),
        Write::SetPeers(peers) => format!("set {} peers on {interface}", peers.len()),
        Write::AddAddress(address) => format!("add address {address} to {interface}"),
        Write::RemoveAddress(address) => format!("remove address {address} from {interface}"),
        Write::SetUp => format!("bring {interface} up"),
        Write::AddRoute(route) => format!("add route {} through {interface}", route.destination),
        Write::RemoveRoute(route) => format!("remove route {} through {interface}", route.destination),
        Write::DeleteLink => format!("delete {interface}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job::Underlay(oneshot::channel().0)
    }

    #[test]
    fn the_thread_wakes_for_a_job_and_for_what_is_due() {
        let (send, mut jobs) = mpsc::channel(1);
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(next(&mut jobs, Some(soon)), Next::Due));
        assert!(Instant::now() >= soon);
        let sender = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            send.blocking_send(job()).unwrap();
        });
        let late = Instant::now() + Duration::from_secs(60);
        assert!(matches!(next(&mut jobs, Some(late)), Next::Job(_)));
        sender.join().unwrap();
        assert!(matches!(next(&mut jobs, Some(late)), Next::End));
        assert!(late > Instant::now());
    }
}
