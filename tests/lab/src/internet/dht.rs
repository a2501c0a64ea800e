//! A private Mainline DHT: many nodes on one machine with an address each, so that none is mistaken for another.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use mainline::Dht;

use super::Internet;
use crate::host::Host;
use crate::poll::eventually;

/// How many nodes there are.
const NODES: u8 = 22;

/// The port of every node.
pub(super) const PORT: u16 = 6881;

/// How many of them daemons begin with.
const BOOTSTRAP: u8 = 2;

/// Longer than so many nodes take to find each other on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many of the others a node should know before the DHT counts as one.
const ENOUGH: usize = 16;

/// How many DHTs there are at once: more would have each other's queries time out.
const AT_ONCE: usize = 2;

/// How many there are, and word of one that ends.
static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The right to run a DHT.
struct Permit;

impl Permit {
    fn wait() -> Self {
        let (running, ended) = &RUNNING;
        let guard = running.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = ended.wait_while(guard, |running| *running >= AT_ONCE);
        *guard.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        RUNNING.1.notify_one();
    }
}

/// All nodes; they end with it.
pub struct DhtNodes {
    /// The machine.
    pub host: Host,
    bootstrap: Vec<Dht>,
    /// Never asked again, and ended with the rest.
    _others: Vec<Dht>,
    _permit: Permit,
}

impl DhtNodes {
    /// Starts them, once there is room for one more DHT, and waits until they know each other.
    ///
    /// # Panics
    /// Where they do not.
    #[track_caller]
    pub fn start(internet: &Internet) -> Self {
        let permit = Permit::wait();
        let addresses: Vec<_> = (1..=NODES).map(address).collect();
        let host = internet.server("dht", &addresses);
        let bootstrap = start(&host, 1..=BOOTSTRAP);
        let others = start(&host, BOOTSTRAP + 1..=NODES);
        acquaint(bootstrap.iter().chain(&others));
        Self { host, bootstrap, _others: others, _permit: permit }
    }

    /// Returns where daemons begin.
    pub fn bootstrap() -> impl Iterator<Item = SocketAddrV4> {
        Self::all().take(BOOTSTRAP.into())
    }

    /// Returns where all nodes answer.
    pub(super) fn all() -> impl Iterator<Item = SocketAddrV4> {
        (1..=NODES).map(|number| SocketAddrV4::new(address(number), PORT))
    }

    /// Returns the network in which all nodes are.
    pub const fn network() -> &'static str {
        "198.18.0.0/24"
    }

    /// Ends the nodes that daemons begin with; the others live on.
    pub fn stop_bootstrap(&mut self) {
        self.bootstrap.clear();
    }

    /// Starts them again.
    ///
    /// # Panics
    /// Where the old ones do not let go of their ports, or the new ones do not find the others.
    #[track_caller]
    pub fn start_bootstrap(&mut self) {
        eventually(PATIENCE, || {
            self.host.namespace().run(|| Self::bootstrap().all(|node| UdpSocket::bind(node).is_ok()))
        });
        self.bootstrap = start(&self.host, 1..=BOOTSTRAP);
        acquaint(&self.bootstrap);
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, number)
}

/// Starts the nodes of these numbers. Each begins with all others, which need not run yet.
fn start(host: &Host, numbers: RangeInclusive<u8>) -> Vec<Dht> {
    host.namespace().run(move || {
        let node = |number| {
            let others: Vec<_> = DhtNodes::all().filter(|other| *other.ip() != address(number)).collect();
            Dht::builder()
                .server_mode()
                .bootstrap(&others)
                .bind_address(address(number))
                .public_ip(address(number))
                .port(PORT)
                .build()
                .expect("the address is this host's own")
        };
        numbers.map(node).collect()
    })
}

/// Has nodes look for their neighbours until they know most of the others. A node learns of those who answer it, not of
/// those who ask: the first to be started would know nobody until it asks again by itself, after a quarter of an hour.
#[expect(deprecated, reason = "waiting is what is wanted here")]
fn acquaint<'nodes>(nodes: impl IntoIterator<Item = &'nodes Dht>) {
    std::thread::scope(|scope| {
        for node in nodes {
            scope.spawn(|| {
                eventually(PATIENCE, || node.bootstrapped() && node.to_bootstrap().len() >= ENOUGH)
            });
        }
    });
}
