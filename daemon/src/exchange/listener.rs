//! Takes streams of others, as many as are good for us.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;

use super::tls::{self, Tls};
use super::{HANDSHAKE_PATIENCE, Happened, MAX_FROM_ONE_NETWORK, MAX_HANDSHAKES, prepare};

/// The wait after the system could not give us a stream: it may be out of files.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

pub(super) struct Listener {
    socket: TcpListener,
    tls: Arc<Tls>,
    refused: Arc<AtomicU64>,
    handshakes: JoinSet<()>,
    /// Where each handshake comes from, at most [`MAX_HANDSHAKES`].
    networks: BTreeMap<Id, IpAddr>,
}

impl Listener {
    pub(super) fn new(socket: TcpListener, tls: Arc<Tls>, refused: Arc<AtomicU64>) -> Self {
        Self { socket, tls, refused, handshakes: JoinSet::new(), networks: BTreeMap::new() }
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
                    let id = ended.map_or_else(|panic| panic.id(), |(id, ())| id);
                    self.networks.remove(&id);
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
        let (tls, refused, happens) = (Arc::clone(&self.tls), Arc::clone(&self.refused), happens.clone());
        let handshake = self.handshakes.spawn(async move {
            let accepted = timeout(HANDSHAKE_PATIENCE, accept(socket, remote, &tls)).await;
            match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                // Without a receiver the exchange itself is gone.
                Ok(stream) => drop(happens.send(Happened::Ready(Box::new(stream))).await),
                Err(error) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%remote, error = tls::explain(&error), "refused a stream");
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
