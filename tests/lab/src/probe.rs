//! Pings without processes: many hosts, one thread, and the time of each answer.
//!
//! What is measured must not compete with the measuring, so there is one ICMP datagram socket per host, which lets in
//! nothing but the answers to its own pings, and one thread that waits for all of them at once.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::Host;

/// An echo request (RFC 792). The kernel fills in the checksum and the identifier.
const ECHO_REQUEST: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 1];

/// How long to wait where no host has an address yet.
const PAUSE: Duration = Duration::from_millis(20);

/// Pings that wait for their first answer.
pub struct Probe {
    sockets: Vec<UdpSocket>,
    interval: Duration,
    waiting: BTreeSet<(usize, Ipv4Addr)>,
    next: Instant,
    last_answer: Option<Instant>,
}

impl Probe {
    /// Opens a socket on each host. Every ping is repeated at the interval until it is answered.
    #[track_caller]
    pub fn new(hosts: &[&Host], interval: Duration) -> Self {
        let sockets = hosts.iter().map(|host| host.namespace().run(open)).collect();
        Self { sockets, interval, waiting: BTreeSet::new(), next: Instant::now(), last_answer: None }
    }

    /// Pings the target from the host of that index from now on.
    pub fn ping(&mut self, from: usize, target: Ipv4Addr) {
        self.waiting.insert((from, target));
    }

    /// Pings every host from every other until all are answered, and returns when the last answer came. A host's
    /// address in the mesh is what its daemon has written into the state file; it may change until it is settled.
    ///
    /// # Panics
    /// Where it takes too long.
    #[track_caller]
    pub fn until_meshed(hosts: &[&Host], interval: Duration, timeout: Duration) -> Instant {
        let mut probe = Self::new(hosts, interval);
        let mut known = vec![None; hosts.len()];
        let end = Instant::now() + timeout;
        loop {
            probe.follow(hosts, &mut known);
            if !probe.waiting.is_empty() {
                probe.round();
            } else if known.iter().all(Option::is_some) {
                return probe.last_answer.expect("all are answered");
            } else {
                std::thread::sleep(PAUSE);
            }
            assert!(Instant::now() < end, "still without an answer: {:?}", probe.waiting);
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
        self.waiting.retain(|(_, other)| *other != target);
    }

    /// Sends what is due and takes answers until the next round is due, or until there is nothing to wait for.
    fn round(&mut self) {
        for &(from, target) in &self.waiting {
            // Until there is a route or a peer, the kernel refuses: the ping is simply repeated.
            self.sockets[from].send_to(&ECHO_REQUEST, SocketAddrV4::new(target, 0)).ok();
        }
        self.next = Instant::now() + self.interval;
        while !self.waiting.is_empty() && Instant::now() < self.next {
            self.wait();
            self.take_answers();
        }
    }

    /// Goes round until everything is answered, and returns when the last answer came; `None` where it takes too long.
    pub fn run(&mut self, timeout: Duration) -> Option<Instant> {
        let end = Instant::now() + timeout;
        while !self.waiting.is_empty() {
            if Instant::now() > end {
                return None;
            }
            self.round();
        }
        self.last_answer
    }

    fn wait(&self) {
        let mut sockets: Vec<_> =
            self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        let left = self.next.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait for less than a millisecond is none that spins.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).expect("an interval is short");
        poll(&mut sockets, left).expect("our sockets can be polled");
    }

    fn take_answers(&mut self) {
        let mut buffer = [0; 64];
        for (index, socket) in self.sockets.iter().enumerate() {
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let IpAddr::V4(from) = from.ip() else { continue };
                if self.waiting.remove(&(index, from)) {
                    self.last_answer = Some(Instant::now());
                }
            }
        }
    }
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
