//! Takes streams of others, as many as are good for us.
//!
//! What a stream may cost before its other end has shown that it has the secret is bounded by [`Admission`]: streams that
//! come to something cost nothing, so a fleet behind one address is not held up, and strangers wear out only their own
//! address's share, then their network's, then that of all strangers (X-28, M-34).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};
use wgmesh_core::bucket::{AddressBuckets, TokenBucket};
use wgmesh_core::pool::Network;
use wgmesh_core::time::Monotonic;

use super::tls::{self, Tls};
use super::{HANDSHAKE_PATIENCE, Happened, MAX_FROM_ONE_NETWORK, MAX_HANDSHAKES, prepare};

/// Streams of strangers: of one address (or IPv6 network of 64 bits) 30 at once and 30 a minute.
const ADDRESS_BURST: u32 = 30;
const ADDRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Of one IPv4 network of 24 bits or one IPv6 network of 48 bits twice that.
const NETWORK_BURST: u32 = 60;
const NETWORK_INTERVAL: Duration = Duration::from_secs(1);

/// Of all together 120 at once and 120 a minute.
const TOTAL_BURST: u32 = 120;
const TOTAL_INTERVAL: Duration = Duration::from_millis(500);

/// The wait after the system could not give us a stream: it may be out of files.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

pub(super) struct Listener {
    socket: TcpListener,
    tls: Arc<Tls>,
    refused: Arc<AtomicU64>,
    handshakes: JoinSet<Option<IpAddr>>,
    /// Where each handshake comes from, at most [`MAX_HANDSHAKES`].
    networks: BTreeMap<Id, IpAddr>,
    admission: Admission,
    started: Instant,
}

/// How many streams are taken whose other ends turn out to be strangers.
struct Admission {
    addresses: AddressBuckets,
    networks: AddressBuckets,
    total: TokenBucket,
}

impl Admission {
    const fn new() -> Self {
        Self {
            addresses: AddressBuckets::new(ADDRESS_BURST, ADDRESS_INTERVAL),
            networks: AddressBuckets::new(NETWORK_BURST, NETWORK_INTERVAL),
            total: TokenBucket::new(TOTAL_BURST, TOTAL_INTERVAL, Monotonic::from_nanos(0)),
        }
    }

    /// Whether one more stream from there is taken. Whoever is refused costs the others nothing.
    fn admit(&mut self, ip: IpAddr, now: Monotonic) -> bool {
        let network = Network::of(ip).address();
        if !self.addresses.take(ip, now) {
            return false;
        }
        if !self.networks.take(network, now) {
            self.addresses.give_back(ip);
            return false;
        }
        let admitted = self.total.take(now);
        if !admitted {
            self.addresses.give_back(ip);
            self.networks.give_back(network);
        }
        admitted
    }

    /// Notes that a stream from there was no stranger's.
    fn welcome(&mut self, ip: IpAddr) {
        self.addresses.give_back(ip);
        self.networks.give_back(Network::of(ip).address());
        self.total.give_back();
    }
}

impl Listener {
    pub(super) fn new(socket: TcpListener, tls: Arc<Tls>, refused: Arc<AtomicU64>) -> Self {
        Self {
            socket,
            tls,
            refused,
            handshakes: JoinSet::new(),
            networks: BTreeMap::new(),
            admission: Admission::new(),
            started: Instant::now(),
        }
    }

    /// Takes streams for ever. Ends with its task, and the handshakes with it.
    pub(super) async fn run(mut self, happens: mpsc::Sender<Happened>) {
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((socket, remote)) => self.take(socket, remote, &happens),
                    Err(error) => {
                        tracing::debug!(%error, "cannot take a stream");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
                Some(ended) = self.handshakes.join_next_with_id() => {
                    let (id, member) = ended.unwrap_or_else(|panic| (panic.id(), None));
                    self.networks.remove(&id);
                    member.into_iter().for_each(|ip| self.admission.welcome(ip));
                }
            }
        }
    }

    fn take(&mut self, socket: TcpStream, remote: SocketAddr, happens: &mpsc::Sender<Happened>) {
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let network = network_of(remote.ip());
        let from_there = self.networks.values().filter(|&&other| other == network).count();
        if self.networks.len() >= MAX_HANDSHAKES || from_there >= MAX_FROM_ONE_NETWORK {
            self.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%remote, "too many handshakes");
            return;
        }
        let now = Monotonic::default() + self.started.elapsed();
        if !self.admission.admit(remote.ip(), now) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%remote, "too many streams of strangers");
            return;
        }
        let (tls, refused, happens) = (Arc::clone(&self.tls), Arc::clone(&self.refused), happens.clone());
        let handshake = self.handshakes.spawn(async move {
            let accepted = timeout(HANDSHAKE_PATIENCE, accept(socket, remote, &tls)).await;
            match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    // Without a receiver the exchange itself is gone.
                    happens.send(Happened::Ready(Box::new(stream))).await.ok();
                    Some(remote.ip())
                }
                Err(error) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%remote, error = tls::explain(&error), "refused a stream");
                    None
                }
            }
        });
        self.networks.insert(handshake.id(), network);
    }
}

async fn accept(socket: TcpStream, remote: SocketAddr, tls: &Tls) -> io::Result<super::Stream> {
    prepare(&socket)?;
    tls.accept(socket, remote).await
}

/// Returns what one owner has many addresses of: nothing less than an IPv6 network of 64 bits.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X-28, M-34, M-35: a range of addresses wears out its own share and leaves room for others.
    #[test]
    fn strangers_wear_out_their_own_share_first() {
        let at = |seconds| Monotonic::default() + Duration::from_secs(seconds);
        let mut admission = Admission::new();
        let taken = |admission: &mut Admission, ip: [u8; 4], now| {
            (0..100).filter(|_| admission.admit(ip.into(), now)).count()
        };
        let range = [1, 2, 3].map(|host| taken(&mut admission, [192, 0, 2, host], at(0)));
        assert_eq!(range, [30, 30, 0]);
        assert_eq!(taken(&mut admission, [198, 51, 100, 1], at(0)), 30);
        assert_eq!(taken(&mut admission, [203, 0, 113, 1], at(0)), 30);
        assert_eq!(taken(&mut admission, [10, 0, 0, 1], at(0)), 0, "that was all");
        assert_eq!(taken(&mut admission, [10, 0, 0, 1], at(10)), 20);
    }

    /// a fleet behind one address that has the secret is not held up.
    #[test]
    fn members_cost_nothing() {
        let mut admission = Admission::new();
        for _ in 0..1000 {
            assert!(admission.admit([192, 0, 2, 1].into(), Monotonic::default()));
            admission.welcome([192, 0, 2, 1].into());
        }
    }
}
