//! The streams of the exchange between nodes: TCP with TLS 1.3, where having the mesh's secret is what counts.
//!
//! This shell listens, dials, reads and writes whole frames, and closes. Who may be at the other end, what is said,
//! and when a stream is dead, [`wgmesh_core::exchange`] decides.
//!
//! Everything that a stranger can do is bounded: [`MAX_HANDSHAKES`] at a time and [`MAX_FROM_ONE_NETWORK`] of them from
//! one place, [`HANDSHAKE_PATIENCE`] for each, and a frame that has begun must end within ten seconds.
//! Where a bound is reached the stream is closed, never anything else held up:
//! - events wait in a channel of [`WAITING_EVENTS`]; when it is full the streams are no longer read, and TCP makes the
//!   other sides wait;
//! - frames to send wait in a channel of [`WAITING_FRAMES`] for each stream; when it is full the stream is closed.
//!
//! Frames are four bytes of length, most significant first, and as many bytes of content.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::exchange::{SessionEvent, SessionId, Target};

mod listener;
mod stream;
mod tls;

use listener::Listener;
use stream::{Ended, Stream};
use tls::Tls;

/// The most streams of others in which TLS is not done yet.
pub const MAX_HANDSHAKES: usize = 16;

/// How many of them may come from one IPv4 address, or one IPv6 network of 64 bits.
pub const MAX_FROM_ONE_NETWORK: usize = 4;

/// How long another may take for TLS.
pub const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a dial may take, TLS included.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(5);

/// For how long what we sent may stay unacknowledged (`TCP_USER_TIMEOUT`, RFC 5482).
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// How many ports are tried, from the mesh's own on (W-D43).
const PORTS: u16 = 100;

const BACKLOG: i32 = 64;
const WAITING_EVENTS: usize = 32;
const WAITING_FRAMES: usize = 128;

/// What the tasks tell.
enum Happened {
    /// TLS is done, and the other end has the secret.
    Ready(Box<Stream>),
    /// To be passed on.
    Told(SessionEvent),
}

/// All streams of one mesh.
pub struct Exchange {
    port: Option<u16>,
    tls: Arc<Tls>,
    refused: Arc<AtomicU64>,
    streams: BTreeMap<SessionId, mpsc::Sender<Vec<u8>>>,
    next_id: u64,
    happens: mpsc::Sender<Happened>,
    happened: mpsc::Receiver<Happened>,
    /// What this side did itself and has yet to tell.
    waiting: VecDeque<SessionEvent>,
    tasks: JoinSet<()>,
    listener: Option<AbortHandle>,
}

impl Exchange {
    /// Starts to listen on `port`, or on the next free one. Must be called within a tokio runtime.
    ///
    /// Where no port can be had the exchange still dials; [`Exchange::port`] is `None` then.
    pub fn start(keys: &MeshKeys, port: u16) -> Self {
        let (happens, happened) = mpsc::channel(WAITING_EVENTS);
        let mut exchange = Self {
            port: None,
            tls: Arc::new(Tls::new(keys.tls_seed())),
            refused: Arc::default(),
            streams: BTreeMap::new(),
            next_id: 0,
            happens,
            happened,
            waiting: VecDeque::new(),
            tasks: JoinSet::new(),
            listener: None,
        };
        match listen(port) {
            Ok((socket, port)) => {
                exchange.port = Some(port);
                let refused = Arc::clone(&exchange.refused);
                let listener = Listener::new(socket, Arc::clone(&exchange.tls), refused);
                let listening = exchange.tasks.spawn(listener.run(exchange.happens.clone()));
                exchange.listener = Some(listening);
            }
            Err(error) => tracing::warn!(port, %error, "cannot listen: the exchange only dials"),
        }
        exchange
    }

    /// Returns the port it listens on.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns how many streams of others were refused before they came to anything.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn next(&mut self) -> SessionEvent {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            tokio::select! {
                Some(happened) = self.happened.recv() => match happened {
                    Happened::Ready(stream) => return self.open(*stream),
                    Happened::Told(SessionEvent::Closed { id, .. }) if !self.streams.contains_key(&id) => {}
                    Happened::Told(event) => {
                        if let SessionEvent::Closed { id, .. } = &event {
                            self.streams.remove(id);
                        }
                        return event;
                    }
                },
                // Only so that ended tasks leave nothing behind.
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    /// Opens a stream; [`SessionEvent::Opened`] or [`SessionEvent::DialFailed`] follows.
    pub fn dial(&mut self, target: Target) {
        let (tls, happens) = (Arc::clone(&self.tls), self.happens.clone());
        self.tasks.spawn(async move {
            let dialed = timeout(DIAL_PATIENCE, dial(target, &tls)).await;
            let happened = match dialed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => Happened::Ready(Box::new(stream)),
                Err(error) => {
                    Happened::Told(SessionEvent::DialFailed { target, error: tls::explain(&error) })
                }
            };
            // Without a receiver the exchange itself is gone.
            happens.send(happened).await.ok();
        });
    }

    /// Sends a frame. A stream that does not take it is closed: the other side, or the way to it, is too slow.
    pub fn send(&mut self, id: SessionId, bytes: Vec<u8>) {
        let Some(stream) = self.streams.get(&id) else { return };
        if let Err(error) = stream.try_send(bytes) {
            let reason = match error {
                mpsc::error::TrySendError::Full(_) => "the other side is too slow",
                // Its own word is on its way, and perhaps waits for room.
                mpsc::error::TrySendError::Closed(_) => "the stream is gone",
            };
            self.streams.remove(&id);
            self.waiting.push_back(SessionEvent::Closed { id, reason: reason.to_owned() });
        }
    }

    /// Closes a stream after what was sent before. Nothing more is told of it.
    pub fn close(&mut self, id: SessionId) {
        self.streams.remove(&id);
    }

    /// Closes all streams after what was sent before, and waits for that no longer than `patience`.
    pub async fn finish(mut self, patience: Duration) {
        self.streams.clear();
        self.listener.take().inspect(AbortHandle::abort);
        let Self { tasks, happened, .. } = &mut self;
        let drained = async {
            // What still comes in must not keep a stream from ending.
            while tokio::select! {
                ended = tasks.join_next() => ended.is_some(),
                Some(_) = happened.recv() => true,
            } {}
        };
        timeout(patience, drained).await.ok();
    }

    fn open(&mut self, stream: Stream) -> SessionEvent {
        let id = SessionId(self.next_id);
        self.next_id += 1;
        let (sender, frames) = mpsc::channel(WAITING_FRAMES);
        self.streams.insert(id, sender);
        let Stream { remote, dialed, exporter, .. } = stream;
        let happens = self.happens.clone();
        self.tasks.spawn(async move {
            let Ended(reason) = stream.run(id, frames, &happens).await;
            happens.send(Happened::Told(SessionEvent::Closed { id, reason })).await.ok();
        });
        SessionEvent::Opened { id, remote, dialed, exporter }
    }
}

async fn dial(target: Target, tls: &Tls) -> io::Result<Stream> {
    let socket = TcpStream::connect(target.address).await?;
    prepare(&socket)?;
    tls.connect(socket, target).await
}

/// Sets what every stream needs.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

/// Listens on `port` or the next free one, on both versions of IP if the host has both.
fn listen(port: u16) -> io::Result<(TcpListener, u16)> {
    let mut outcome = Err(io::ErrorKind::AddrInUse.into());
    for port in (0..PORTS).filter_map(|step| port.checked_add(step)) {
        outcome = listen_on(Ipv6Addr::UNSPECIFIED.into(), port).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Err(error),
            _ => listen_on(Ipv4Addr::UNSPECIFIED.into(), port),
        });
        if !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
            break;
        }
    }
    let listener = outcome?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

fn listen_on(ip: IpAddr, port: u16) -> io::Result<TcpListener> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if ip.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(ip, port).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests;
