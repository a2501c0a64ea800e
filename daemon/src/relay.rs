//! The relay in userspace: two UDP sockets for each pair, and what comes to one leaves from the other.
//!
//! Which pairs there are and where their ends are, the core says ([`Forwarding`]); a bind goes up to it, everything else
//! is passed on as it is. Where eBPF does the passing on, little more than binds gets here.
//!
//! # Invariants
//! - Nothing is passed on that does not come from a bound end, and nothing before both ends are bound.
//! - What leaves for an end leaves from the address that the end sends to.
//! - A packet that cannot be sent at once is lost, as the network might lose it, and so is one beyond a limit ([`Rates`]).

mod rates;
mod socket;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use wgmesh_core::mesh::{BindReceived, Event};
use wgmesh_core::relay::{Forwarding, RelayEnd};
use wgmesh_core::seal::{MAX_DATAGRAM_BYTES, is_bind};
use wgmesh_core::status::RelayTraffic;

pub use self::rates::Rates;

use self::rates::Limiter;
use self::socket::{Packet, RelaySocket};

/// Binds that may wait for the mesh task; whoever binds repeats itself.
const WAITING_BINDS: usize = 64;

/// Packets that are passed on one way before the other way is looked at.
const PACKETS_AT_ONCE: usize = 64;

/// Longer packets are dropped: they come over no Ethernet, jumbo frames included.
const MAX_PACKET_BYTES: usize = 10 * 1024;

type Ends = [Option<RelayEnd>; 2];

/// The sockets of all pairs.
pub struct Relay {
    pairs: BTreeMap<[u16; 2], Pair>,
    tasks: JoinSet<()>,
    binds: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    failures: VecDeque<Event>,
    counters: Arc<Counters>,
    limiter: Limiter,
}

struct Pair {
    /// Dropping it ends the pair's task, and closes its sockets.
    ends: watch::Sender<Ends>,
}

/// What was done for all pairs since the start.
#[derive(Debug, Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    limited: AtomicU64,
}

impl Relay {
    /// Starts without any pair.
    pub fn new(rates: Rates) -> Self {
        Self {
            pairs: BTreeMap::new(),
            tasks: JoinSet::new(),
            binds: mpsc::channel(WAITING_BINDS),
            failures: VecDeque::new(),
            counters: Arc::default(),
            limiter: Limiter::new(rates),
        }
    }

    /// Passes on between these pairs and no others. Must be called within a tokio runtime.
    pub fn follow(&mut self, table: &[Forwarding]) {
        self.pairs.retain(|ports, _| table.iter().any(|entry| entry.ports == *ports));
        for entry in table {
            match self.pairs.get(&entry.ports) {
                Some(pair) => drop(pair.ends.send_if_modified(|ends| {
                    let is_changed = *ends != entry.ends;
                    *ends = entry.ends;
                    is_changed
                })),
                None => self.open(entry),
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// Waits for something that the core must know. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        if let Some(failure) = self.failures.pop_front() {
            return failure;
        }
        let (_sender, binds) = &mut self.binds;
        binds.recv().await.expect("this holds a sender itself")
    }

    /// Returns what was done for all pairs since the start.
    pub fn traffic(&self) -> RelayTraffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayTraffic {
            packets: read(&self.counters.packets),
            bytes: read(&self.counters.bytes),
            refused: read(&self.counters.refused),
            lost: read(&self.counters.lost),
            limited: read(&self.counters.limited),
        }
    }

    fn open(&mut self, entry: &Forwarding) {
        let [one, other] = entry.ports.map(|port| (port, RelaySocket::open(port)));
        let sockets = match (one, other) {
            ((_, Ok(one)), (_, Ok(other))) => [one, other],
            ((port, Err(error)), _) | (_, (port, Err(error))) => {
                // Only another port can help against this; against everything else, nothing that the core could do.
                match error.kind() {
                    io::ErrorKind::AddrInUse => self.failures.push_back(Event::RelayPortTaken(port)),
                    _ => tracing::warn!(port, %error, "cannot open a port of the relay"),
                }
                return;
            }
        };
        let (ends, watched) = watch::channel(entry.ends);
        let passing = Passing {
            sockets,
            ports: entry.ports,
            binds: self.binds.0.clone(),
            counters: Arc::clone(&self.counters),
            limiter: self.limiter.clone(),
        };
        self.tasks.spawn(passing.run(watched));
        self.pairs.insert(entry.ports, Pair { ends });
    }
}

/// The task of one pair.
struct Passing {
    sockets: [RelaySocket; 2],
    ports: [u16; 2],
    binds: mpsc::Sender<Event>,
    counters: Arc<Counters>,
    limiter: Limiter,
}

impl Passing {
    /// Passes on until the pair is gone. Cancel-safe.
    async fn run(mut self, mut ends: watch::Receiver<Ends>) {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let mut bound = *ends.borrow_and_update();
        loop {
            let ready = tokio::select! {
                changed = ends.changed() => match changed {
                    Ok(()) => {
                        bound = *ends.borrow_and_update();
                        continue;
                    }
                    Err(_) => return,
                },
                received = self.sockets[0].receive() => (0, received),
                received = self.sockets[1].receive() => (1, received),
            };
            match ready {
                (side, Ok(())) => self.pass_on(side, bound, &mut buffer),
                (side, Err(error)) => {
                    tracing::debug!(port = self.ports[side], %error, "cannot receive for a pair")
                }
            }
        }
    }

    /// Passes on what waits on one side.
    fn pass_on(&mut self, side: usize, bound: Ends, buffer: &mut [u8]) {
        for _ in 0..PACKETS_AT_ONCE {
            match self.sockets[side].take(buffer) {
                Some(Ok(packet)) => self.pass_one(side, bound, packet, &buffer[..packet.length]),
                Some(Err(error)) => {
                    tracing::debug!(port = self.ports[side], %error, "cannot receive for a pair")
                }
                None => return,
            }
        }
    }

    fn pass_one(&mut self, side: usize, bound: Ends, packet: Packet, bytes: &[u8]) {
        if is_bind(bytes) {
            return self.hand_up(side, packet, bytes);
        }
        let (Some(from), Some(to)) = (bound[side], bound[1 - side]) else {
            return count(&self.counters.refused, 1);
        };
        if from.peer != packet.from || packet.is_cut {
            return count(&self.counters.refused, 1);
        }
        if !self.limiter.admit(side, from.local.is_ipv4(), bytes) {
            return count(&self.counters.limited, 1);
        }
        match self.sockets[1 - side].send(to.local, to.peer, bytes) {
            Ok(()) => {
                count(&self.counters.packets, 1);
                count(&self.counters.bytes, bytes.len() as u64);
            }
            Err(_) => count(&self.counters.lost, 1),
        }
    }

    fn hand_up(&self, side: usize, Packet { from, local, .. }: Packet, bytes: &[u8]) {
        let port = self.ports[side];
        if bytes.len() <= MAX_DATAGRAM_BYTES {
            let bind = BindReceived { port, local, from, bytes: bytes.to_vec() };
            // If too many wait, the one who binds repeats itself.
            drop(self.binds.try_send(Event::Bind(bind)));
        }
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Returns an address without what means nothing to another socket.
fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            SocketAddr::new(v6.ip().to_canonical(), v6.port())
        }
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            v6.into()
        }
        SocketAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests;
