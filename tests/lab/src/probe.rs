//! Pings without processes: many hosts, one thread, and the time of each answer.
//!
//! What is measured must not compete with the measuring, so there is one ICMP datagram socket per host, which lets in
//! nothing but the answers to its own pings, and one thread that waits for all of them at once.
//!
//! Each pair is pinged at moments of its own. Two hosts that pinged each other at the same instant would both begin
//! WireGuard's handshake then, each would drop the other's answer, and five seconds later again.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::Host;

/// An echo request (RFC 792). The kernel fills in the checksum and the identifier.
const ECHO_REQUEST: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 1];

/// The pause between two looks at the hosts' state files while an address is missing, and when all are known: then only a
/// collision changes one.
const PAUSE: Duration = Duration::from_millis(20);
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// The first answer to a ping.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The index of the host that pinged.
    pub from: usize,
    /// What it pinged.
    pub target: Ipv4Addr,
    /// When the answer came.
    pub at: Instant,
}

/// Pings that wait for their first answer.
pub struct Probe {
    sockets: Vec<UdpSocket>,
    interval: Duration,
    /// When the host of that index pings that target next.
    waiting: BTreeMap<(usize, Ipv4Addr), Instant>,
    answers: Vec<Answer>,
}

impl Probe {
    /// Opens a socket on each host. Every ping is repeated until it is answered, on average at the interval.
    #[track_caller]
    pub fn new(hosts: &[&Host], interval: Duration) -> Self {
        let sockets = hosts.iter().map(|host| host.namespace().run(open)).collect();
        Self { sockets, interval, waiting: BTreeMap::new(), answers: Vec::new() }
    }

    /// Pings the target from the host of that index from now on.
    pub fn ping(&mut self, from: usize, target: Ipv4Addr) {
        let first = Instant::now() + random_below(self.interval);
        self.waiting.insert((from, target), first);
    }

    /// Pings every host from every other until all are answered, and returns the answers in the order of time. A host's
    /// address in the mesh is what its daemon has written into the state file; it may change until it is settled.
    ///
    /// # Panics
    /// Where it takes too long.
    #[track_caller]
    pub fn until_meshed(hosts: &[&Host], interval: Duration, timeout: Duration) -> Vec<Answer> {
        let (answers, waiting) = Self::mesh(hosts, interval, timeout);
        assert!(waiting.is_empty(), "still without an answer: {waiting:?}");
        answers
    }

    /// Pings every host from every other as [`Self::until_meshed`] does, and returns also which pings were not answered
    /// in time, by the index of the host that pinged.
    pub fn mesh(
        hosts: &[&Host],
        interval: Duration,
        timeout: Duration,
    ) -> (Vec<Answer>, Vec<(usize, Ipv4Addr)>) {
        let mut probe = Self::new(hosts, interval);
        let mut known = vec![None; hosts.len()];
        let end = Instant::now() + timeout;
        let mut next_look = Instant::now();
        loop {
            if probe.waiting.is_empty() || Instant::now() >= next_look {
                probe.follow(hosts, &mut known);
                let pause = if known.contains(&None) { PAUSE } else { LONG_PAUSE };
                next_look = Instant::now() + pause;
            }
            let is_over = Instant::now() >= end;
            if is_over || probe.waiting.is_empty() && !known.contains(&None) {
                return (probe.answers, probe.waiting.into_keys().collect());
            }
            if probe.waiting.is_empty() {
                std::thread::sleep(PAUSE);
            } else {
                probe.round();
            }
        }
    }

    /// Pings the hosts at addresses that are new, and no more at those that they have left.
    fn follow(&mut self, hosts: &[&Host], known: &mut [Option<Ipv4Addr>]) {
        for (index, host) in hosts.iter().enumerate() {
            let address = mesh_address(host);
            let before = std::mem::replace(&mut known[index], address);
            if before == address {
                continue;
            }
            before.into_iter().for_each(|before| self.forget(before));
            let others = (0..hosts.len()).filter(|other| *other != index);
            address
                .into_iter()
                .for_each(|address| others.clone().for_each(|other| self.ping(other, address)));
        }
    }

    /// Pings a target no more, from no host.
    fn forget(&mut self, target: Ipv4Addr) {
        self.waiting.retain(|(_, other), _| *other != target);
    }

    /// Sends what is due, and takes the answers that come until more is due.
    fn round(&mut self) {
        let now = Instant::now();
        for (&(from, target), due) in &mut self.waiting {
            if *due <= now {
                // Until there is a route or a peer, the kernel refuses: the ping is simply repeated.
                self.sockets[from].send_to(&ECHO_REQUEST, SocketAddrV4::new(target, 0)).ok();
                *due = now + self.interval / 2 + random_below(self.interval);
            }
        }
        for index in self.wait() {
            self.take_answers(index);
        }
    }

    /// Goes round until everything is answered, and returns the answers in the order of time.
    ///
    /// # Panics
    /// Where it takes too long.
    #[track_caller]
    pub fn run(mut self, timeout: Duration) -> Vec<Answer> {
        let end = Instant::now() + timeout;
        while !self.waiting.is_empty() {
            assert!(Instant::now() < end, "still without an answer: {:?}", self.waiting.keys());
            self.round();
        }
        self.answers
    }

    /// Waits for an answer, or for the next ping's time. Returns the hosts at which something has come.
    fn wait(&self) -> Vec<usize> {
        let Some(next) = self.waiting.values().min() else { return Vec::new() };
        let mut sockets: Vec<_> =
            self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        // Rounded up, so that a wait for less than a millisecond is none that spins.
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        poll(&mut sockets, PollTimeout::try_from(left).expect("an interval is short"))
            .expect("our sockets can be polled");
        (0..sockets.len()).filter(|index| sockets[*index].any() != Some(false)).collect()
    }

    fn take_answers(&mut self, index: usize) {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = self.sockets[index].recv_from(&mut buffer) {
            let IpAddr::V4(target) = from.ip() else { continue };
            if self.waiting.remove(&(index, target)).is_some() {
                self.answers.push(Answer { from: index, target, at: Instant::now() });
            }
        }
    }
}

/// Returns a duration that nobody can foresee.
fn random_below(limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).expect("an interval is short").max(1);
    Duration::from_nanos(RandomState::new().hash_one(nanos) % nanos)
}

fn mesh_address(host: &Host) -> Option<Ipv4Addr> {
    let text = fs::read(host.folder().join("state/wgmesh0.json")).ok()?;
    let state: Value = serde_json::from_slice(&text).ok()?;
    state["mesh_ip"].as_str()?.parse().ok()
}

fn open() -> UdpSocket {
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
        .expect("root may write its own settings");
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4));
    let socket = socket.expect("the kernel has ICMP sockets");
    socket.set_nonblocking(true).expect("any socket can be");
    socket.into()
}
