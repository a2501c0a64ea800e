//! The streams that carry the nodes' sessions: TCP and TLS as a session sees them.
//!
//! A stream is opened from a host to an address on the internet, on its link or inside the mesh, as far as packets get
//! there; a NAT lets nobody in. What is sent arrives whole and in order, later where packets get lost, and waits while
//! there is no way. A stream whose opener has got another public address is dead, and nobody is told: both ends must
//! find out by themselves, and the kernel gives up after [`PATIENCE`].

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wgmesh_core::exchange::{SessionEvent, SessionId, Target};
use wgmesh_core::time::Monotonic;

use super::{Happening, Violation, World};
use crate::host::Request;
use crate::network::HostId;

/// How long a dialer waits for an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a kernel repeats what is not acknowledged.
const PATIENCE: Duration = Duration::from_secs(60);

/// How soon what did not get through is sent again.
const RETRY: Duration = Duration::from_millis(500);

/// What one lost packet costs (`TCP_RTO_MIN`).
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// Round trips until both ends of a new stream can talk: TCP's handshake and TLS's.
const ROUND_TRIPS_TO_OPEN: u32 = 2;

/// What IPv4, TCP and TLS add to a frame.
const STREAM_OVERHEAD: u64 = 20 + 32 + 22 + 4;

/// Where dialers' own ports begin (`net.ipv4.ip_local_port_range`).
const FIRST_PORT: u64 = 32_768;

/// All streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    opened: u64,
    ends: BTreeMap<(HostId, SessionId), End>,
}

/// One end of a stream.
#[derive(Debug)]
struct End {
    /// The other end.
    other: (HostId, SessionId),
    route: Route,
    /// Whether this end dialed.
    is_dialer: bool,
    /// What was sent here and has not arrived there.
    unsent: VecDeque<Vec<u8>>,
    /// Whether to close once all of that has arrived.
    closes: bool,
    stuck_since: Option<Monotonic>,
    /// When the last frame arrives there; no later one may overtake it.
    last_arrival: Monotonic,
}

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Through the tunnel between the two.
    Mesh,
    /// Over the internet or a link, to this address from where the dialer was seen.
    Outside { port: u16, to: SocketAddr, seen: IpAddr },
}

/// What a stream brings about later.
#[derive(Debug)]
pub(super) enum Flow {
    /// An end hears of something.
    Hear { end: (HostId, SessionId), event: SessionEvent, run: u64 },
    /// A dialer hears of its failure.
    Failed { host: HostId, event: SessionEvent, run: u64 },
    /// An end tries again to send what waits.
    Flush { end: (HostId, SessionId) },
}

impl World {
    /// Does what a host's daemon wants done with its sessions.
    pub(super) fn serve_sessions(&mut self, id: HostId) {
        while let Some(request) = self.hosts[id.0].poll_request() {
            match request {
                Request::Dial(target) => self.dial(id, target),
                Request::Dht(order) => self.ask_dht(id, order),
                Request::Send(session, bytes) => {
                    if let Some(end) = self.streams.ends.get_mut(&(id, session)) {
                        end.unsent.push_back(bytes);
                        self.flush((id, session));
                    }
                }
                Request::Gossip(to, bytes) => self.gossip(id, to, bytes),
                Request::Close(session) => {
                    if let Some(end) = self.streams.ends.get_mut(&(id, session)) {
                        end.closes = true;
                        self.flush((id, session));
                    }
                }
            }
        }
    }

    /// Ends all streams of a host, whose kernel tells the others if it still runs.
    pub(super) fn end_streams(&mut self, id: HostId, tells: bool) {
        let ends: Vec<_> = self.streams.ends.keys().copied().filter(|(host, _)| *host == id).collect();
        for end in ends {
            if tells {
                self.hang_up(end);
            } else {
                self.streams.ends.remove(&end);
            }
        }
    }

    pub(super) fn on_flow(&mut self, flow: Flow) -> Result<(), Violation> {
        match flow {
            Flow::Hear { end: (host, _), event, run } | Flow::Failed { host, event, run } => {
                if self.hosts[host.0].runs() != run {
                    return Ok(());
                }
                self.trace.number(host.0 as u64);
                if let SessionEvent::Frame { bytes, .. } = &event {
                    self.trace.bytes(bytes);
                }
                self.act(host, |host, now| {
                    host.hear_session(event, now);
                    host.handle_timeout(now);
                })
            }
            Flow::Flush { end } => {
                self.flush(end);
                self.act(end.0, |_, _| ())
            }
        }
    }

    /// Has a host, on which no daemon needs to run, open a stream to an address and say nothing in it.
    pub fn dial_in_silence(&mut self, id: HostId, to: SocketAddr) {
        self.dial(id, Target { address: to, expected: None });
    }

    fn dial(&mut self, id: HostId, target: Target) {
        let port = FIRST_PORT + self.streams.opened % (1 << 14);
        let port = u16::try_from(port).expect("below the end of the range");
        self.streams.opened += 1;
        let found = self.find_listener(id, port, target.address);
        let Some((other, route, remote, delay)) = found else {
            return self.fail(id, target, "timed out", CONNECT_TIMEOUT);
        };
        let listener = &self.hosts[other.0];
        let listens = listener.mesh().is_some() && listener.exchange_port() == Some(target.address.port());
        if !listens {
            return self.fail(id, target, "refused", delay * 2);
        }
        if listener.plan.secret != self.hosts[id.0].plan.secret {
            return self.fail(id, target, "TLS refused", delay * 4);
        }
        let after = self.now + delay * 2 * ROUND_TRIPS_TO_OPEN;
        self.open_stream([id, other], route, target, remote, after);
    }

    /// Opens a stream from the first host to the second, which sees it come from `remote`.
    fn open_stream(
        &mut self,
        hosts: [HostId; 2],
        route: Route,
        target: Target,
        remote: SocketAddr,
        after: Monotonic,
    ) {
        let opened = self.streams.opened;
        let ends = [0, 1].map(|side| (hosts[side], SessionId(opened * 2 + side as u64)));
        let exporter = self.random.bytes();
        for side in 0..2 {
            let is_dialer = side == 0;
            let end = End {
                other: ends[1 - side],
                route,
                is_dialer,
                unsent: VecDeque::new(),
                closes: false,
                stuck_since: None,
                last_arrival: after,
            };
            self.streams.ends.insert(ends[side], end);
            let event = SessionEvent::Opened {
                id: ends[side].1,
                remote: if is_dialer { target.address } else { remote },
                dialed: is_dialer.then_some(target),
                exporter,
            };
            let run = self.hosts[hosts[side].0].runs();
            self.schedule.push(after, Happening::Flow(Box::new(Flow::Hear { end: ends[side], event, run })));
        }
    }

    fn fail(&mut self, host: HostId, target: Target, error: &str, after: Duration) {
        let event = SessionEvent::DialFailed { target, error: error.to_owned() };
        let run = self.hosts[host.0].runs();
        self.schedule.push(self.now + after, Happening::Flow(Box::new(Flow::Failed { host, event, run })));
    }

    /// Returns who answers at an address, by which way, where the dialer seems to be, and how far that is.
    fn find_listener(
        &mut self,
        id: HostId,
        port: u16,
        to: SocketAddr,
    ) -> Option<(HostId, Route, SocketAddr, Duration)> {
        if let Some(other) = self.owner_of(id, to.ip()) {
            let is_v4 = to.is_ipv4();
            let own = self.host(id).kernel.addresses().find(|net| net.addr().is_ipv4() == is_v4)?;
            let delay = self.mesh_delay(id, other)?;
            return Some((other, Route::Mesh, SocketAddr::new(own.addr(), port), delay));
        }
        let trial = self.network.trial(id, port, to, self.now)?;
        let is_same_port = trial.datagram.to.port() == to.port();
        let route = Route::Outside { port, to, seen: trial.datagram.from.ip() };
        is_same_port.then_some((trial.host, route, trial.datagram.from, trial.after))
    }

    /// Returns how long a packet inside the mesh takes now, if both ways work.
    pub(super) fn mesh_delay(&self, one: HostId, other: HostId) -> Option<Duration> {
        let works = self.missing(one, other).is_none() && self.missing(other, one).is_none();
        let endpoint = self.host(one).kernel.peer(self.host(other).public_key())?.endpoint?;
        let port = self.host(one).kernel.open_port()?;
        let trial = self.network.trial(one, port, endpoint, self.now).filter(|_| works)?;
        Some(trial.after)
    }

    /// Returns how long a packet of a stream takes now, if it gets through.
    fn stream_delay(&self, end: (HostId, SessionId)) -> Option<Duration> {
        let End { other, route, is_dialer, .. } = self.streams.ends.get(&end)?;
        let (dialer, acceptor) = if *is_dialer { (end.0, other.0) } else { (other.0, end.0) };
        match *route {
            Route::Mesh => self.mesh_delay(end.0, other.0),
            Route::Outside { port, to, seen } => {
                let trial = self.network.trial(dialer, port, to, self.now)?;
                let is_same = trial.host == acceptor && trial.datagram.from.ip() == seen;
                is_same.then_some(trial.after)
            }
        }
    }

    /// Sends what waits at one end, as far as there is a way.
    fn flush(&mut self, key: (HostId, SessionId)) {
        let delay = self.stream_delay(key);
        let Some(end) = self.streams.ends.get_mut(&key) else { return };
        let Some(delay) = delay else {
            let since = *end.stuck_since.get_or_insert(self.now);
            if end.unsent.is_empty() && !end.closes {
                return;
            }
            if self.now.since(since) >= PATIENCE {
                return self.give_up(key);
            }
            self.schedule.push(self.now + RETRY, Happening::Flow(Box::new(Flow::Flush { end: key })));
            return;
        };
        end.stuck_since = None;
        let (other, route) = (end.other, end.route);
        let frames = std::mem::take(&mut end.unsent);
        let closes = end.closes;
        for bytes in frames {
            self.pass_frame(key, other, route, bytes, delay);
        }
        if closes {
            self.hang_up(key);
        }
    }

    fn pass_frame(
        &mut self,
        from: (HostId, SessionId),
        to: (HostId, SessionId),
        route: Route,
        bytes: Vec<u8>,
        delay: Duration,
    ) {
        let size = STREAM_OVERHEAD + bytes.len() as u64;
        self.hosts[from.0.0].totals.session_bytes += size;
        let mut at = self.now + delay;
        let loss = self.network.loss(from.0);
        while self.random.chance(loss) {
            at = at + RETRANSMISSION;
        }
        let end = self.streams.ends.get_mut(&from).expect("it was just looked up");
        end.last_arrival = end.last_arrival.max(at);
        let at = end.last_arrival;
        if route == Route::Mesh {
            let key = self.hosts[to.0.0].public_key();
            let now = self.hosts[from.0.0].now(self.now);
            self.hosts[from.0.0].kernel.send_data(key, size, now);
        }
        let run = self.hosts[to.0.0].runs();
        let event = SessionEvent::Frame { id: to.1, bytes };
        self.schedule.push(at, Happening::Flow(Box::new(Flow::Hear { end: to, event, run })));
    }

    /// Ends a stream from one end, and tells the other if packets get there.
    fn hang_up(&mut self, key: (HostId, SessionId)) {
        let delay = self.stream_delay(key);
        let Some(end) = self.streams.ends.remove(&key) else { return };
        if let Some(delay) = delay {
            self.streams.ends.remove(&end.other);
            self.tell_closed(end.other, "the other side closed it", (self.now + delay).max(end.last_arrival));
        }
    }

    /// Ends a stream at one end whose kernel has tried for long enough.
    fn give_up(&mut self, key: (HostId, SessionId)) {
        let Some(end) = self.streams.ends.remove(&key) else { return };
        if !end.closes {
            self.tell_closed(key, "timed out", self.now);
        }
    }

    fn tell_closed(&mut self, end: (HostId, SessionId), reason: &str, at: Monotonic) {
        let event = SessionEvent::Closed { id: end.1, reason: reason.to_owned() };
        let run = self.hosts[end.0.0].runs();
        self.schedule.push(at, Happening::Flow(Box::new(Flow::Hear { end, event, run })));
    }
}
