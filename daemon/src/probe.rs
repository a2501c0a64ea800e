//! Probes through tunnels: a peer that is in doubt is asked over TCP inside the mesh, and every node answers.
//!
//! Whom to probe, and what follows from it, the core says ([`wgmesh_core::health`]). One stream is held for each peer that
//! is probed: `ping` and a newline go out each second, `pong` and a newline come back. Whatever the other end does with
//! the stream shows that the tunnel works: also a refusal comes through it, as from a host whose daemon does not run, and
//! that it opens, as by the kernel of one whose daemon hangs.
//!
//! # Invariants
//! - Every socket is bound to the mesh's link and to this node's own address in the mesh, so nobody outside of it can ask,
//!   and no probe goes another way.
//! - Those who ask hold at most [`MAX_STREAMS`] streams for each version of IP, none for longer than [`IDLE`] without a
//!   question, and get ten answers a second.
//! - What was probed and is not yet told waits in a channel of [`WAITING`]; where it is full the probes wait too.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use wgmesh_core::address::MeshAddresses;
use wgmesh_core::health::{PROBE_INTERVAL, PROBE_PATIENCE};
use wgmesh_core::kernel::InterfaceName;
use wgmesh_core::key::PublicKey;
use wgmesh_core::mesh::Event;

/// Streams of those who ask, at most.
const MAX_STREAMS: usize = 128;

/// How long one of them may be without a question: several of [`PROBE_INTERVAL`].
const IDLE: Duration = Duration::from_secs(10);

/// The pause after an answer, so that questions cannot keep this host busy.
const ANSWER_PAUSE: Duration = Duration::from_millis(100);

/// The wait after the system could not give us a stream: it may be out of files.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

const BACKLOG: i32 = 64;
const WAITING: usize = 64;
const QUESTION: &[u8; 5] = b"ping\n";
const ANSWER: &[u8; 5] = b"pong\n";

/// Where this node is inside the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The index of the mesh's link: a socket stays bound to a link that was deleted and made anew.
    pub link: u32,
    /// This node's addresses.
    pub addresses: MeshAddresses,
    /// The TCP port for those who ask.
    pub port: u16,
}

/// Everything about probes.
pub struct Probes {
    interface: InterfaceName,
    place: Option<Place>,
    listeners: JoinSet<()>,
    trouble: Option<String>,
    targets: BTreeMap<PublicKey, Target>,
    tasks: JoinSet<()>,
    told: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
}

struct Target {
    address: SocketAddr,
    task: AbortHandle,
}

impl Probes {
    /// Starts without anybody to probe.
    pub fn new(interface: InterfaceName) -> Self {
        Self {
            interface,
            place: None,
            listeners: JoinSet::new(),
            trouble: None,
            targets: BTreeMap::new(),
            tasks: JoinSet::new(),
            told: mpsc::channel(WAITING),
        }
    }

    /// Answers at this place. Must be called within a tokio runtime, and again as long as [`Probes::trouble`] says so.
    pub fn follow(&mut self, place: Place) {
        if self.place == Some(place) && self.trouble.is_none() {
            return;
        }
        if self.place.replace(place) != Some(place) {
            // From where this node was before, no peer takes a packet.
            let targets = self.targets.iter().map(|(&key, target)| (key, target.address)).collect();
            self.probe(&BTreeMap::new());
            self.probe(&targets);
        }
        self.listeners = JoinSet::new();
        let had_trouble = self.trouble.take().is_some();
        for ip in place.addresses.both() {
            match listen(&self.interface, SocketAddr::new(ip, place.port)) {
                Ok(listener) => drop(self.listeners.spawn(serve(listener))),
                // A host may have no IPv6; the other end probes by IPv4 where it can.
                Err(error) if ip.is_ipv6() => tracing::debug!(%ip, %error, "cannot answer probes"),
                Err(error) => {
                    let text = format!("cannot answer probes on TCP port {}: {error}", place.port);
                    if !had_trouble {
                        tracing::warn!(trouble = text, "peers may take this node for dead sooner");
                    }
                    self.trouble = Some(text);
                }
            }
        }
    }

    /// Returns why probes cannot be answered.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// Probes these peers and no others.
    pub fn probe(&mut self, targets: &BTreeMap<PublicKey, SocketAddr>) {
        self.targets.retain(|key, target| {
            let stays = targets.get(key) == Some(&target.address);
            if !stays {
                target.task.abort();
            }
            stays
        });
        while self.tasks.try_join_next().is_some() {}
        let Some(place) = self.place else { return };
        for (&key, &address) in targets {
            if !self.targets.contains_key(&key) {
                let from = own_address(place.addresses, address);
                let probing = Probing { interface: self.interface.clone(), from, to: address, stream: None };
                let task = self.tasks.spawn(probing.run(key, self.told.0.clone()));
                self.targets.insert(key, Target { address, task });
            }
        }
    }

    /// Waits for the outcome of a probe. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        let (_sender, told) = &mut self.told;
        told.recv().await.expect("this holds a sender itself")
    }
}

fn own_address(addresses: MeshAddresses, to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { addresses.v4.into() } else { addresses.v6.into() }
}

/// The probes of one peer.
struct Probing {
    interface: InterfaceName,
    from: IpAddr,
    to: SocketAddr,
    stream: Option<TcpStream>,
}

impl Probing {
    /// Probes until the task is aborted or nobody listens to it.
    async fn run(mut self, key: PublicKey, tell: mpsc::Sender<Event>) {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let begun = Instant::now();
            let asked = timeout(PROBE_PATIENCE, self.ask()).await;
            let answered =
                matches!(asked, Ok(Ok(()))) || matches!(&asked, Ok(Err(error)) if is_of_peer(error));
            if !matches!(asked, Ok(Ok(()))) {
                self.stream = None;
            }
            if tell.send(Event::Probed(key, answered.then(|| begun.elapsed()))).await.is_err() {
                return;
            }
        }
    }

    async fn ask(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            // That it opens is answer enough: the other end's kernel does that, even while its daemon hangs.
            self.stream = Some(dial(&self.interface, self.from, self.to).await?);
            return Ok(());
        };
        stream.write_all(QUESTION).await?;
        let mut answer = [0; ANSWER.len()];
        stream.read_exact(&mut answer).await?;
        if answer == *ANSWER { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Whether only the other end can have caused this.
fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, InvalidData, UnexpectedEof};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | InvalidData | UnexpectedEof)
}

async fn dial(interface: &InterfaceName, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = open(interface, SocketAddr::new(from, 0))?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

fn listen(interface: &InterfaceName, place: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(interface, place)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Opens a socket that is bound to the mesh's link and to an address there, whether or not the kernel has it already.
fn open(interface: &InterfaceName, place: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(place), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.bind_device(Some(interface.as_str().as_bytes()))?;
    match place {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&place.into())?;
    Ok(socket)
}

/// Answers whoever asks. Ends with its task, and the streams with it.
async fn serve(listener: TcpListener) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if streams.len() < MAX_STREAMS => drop(streams.spawn(answer(stream))),
                Ok(_) => tracing::debug!("too many probes at once"),
                Err(error) => {
                    tracing::debug!(%error, "cannot take a probe");
                    sleep(ACCEPT_RETRY).await;
                }
            },
            // Only so that ended streams leave nothing behind.
            Some(_) = streams.join_next() => {}
        }
    }
}

/// Answers on one stream until the other end is done, too slow, or says anything else.
async fn answer(mut stream: TcpStream) {
    let mut question = [0; QUESTION.len()];
    while let Ok(Ok(_)) = timeout(IDLE, stream.read_exact(&mut question)).await {
        let answered =
            question == *QUESTION && matches!(timeout(IDLE, stream.write_all(ANSWER)).await, Ok(Ok(())));
        if !answered {
            return;
        }
        sleep(ANSWER_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgmesh_core::address::MeshAddresses;

    /// The loopback link stands for the mesh's: it is there on every host.
    fn probes() -> Probes {
        Probes::new("lo".parse().unwrap())
    }

    fn place(port: u16) -> Place {
        let addresses = MeshAddresses { v4: [127, 0, 0, 1].into(), v6: std::net::Ipv6Addr::LOCALHOST };
        Place { link: 1, addresses, port }
    }

    /// A port of the loopback address on which nobody listens now.
    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn key() -> PublicKey {
        PublicKey::from_bytes([1; 32])
    }

    /// Probes a port of this host and returns the first outcomes.
    async fn outcomes(probes: &mut Probes, port: u16, count: usize) -> Vec<bool> {
        probes.probe(&[(key(), SocketAddr::from(([127, 0, 0, 1], port)))].into());
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            match probes.next().await {
                Event::Probed(probed, answered) if probed == key() => outcomes.push(answered.is_some()),
                other => panic!("{other:?}"),
            }
        }
        outcomes
    }

    /// W-D24, W-D26: over one stream, and again and again.
    #[tokio::test]
    async fn a_node_that_answers_is_heard_each_second() {
        let (mut asking, mut asked) = (probes(), probes());
        let port = free_port();
        asked.follow(place(port));
        assert_eq!(asked.trouble(), None);
        asking.follow(place(free_port()));
        assert_eq!(outcomes(&mut asking, port, 3).await, [true; 3]);
    }

    /// A host whose daemon does not run is no dead host.
    #[tokio::test]
    async fn a_refusal_is_an_answer() {
        let mut asking = probes();
        asking.follow(place(free_port()));
        assert_eq!(outcomes(&mut asking, free_port(), 2).await, [true; 2]);
    }

    /// A daemon that hangs: its kernel takes each stream, which is told at once, and nobody says anything on it.
    #[tokio::test]
    async fn a_kernel_that_takes_a_stream_answers_for_a_daemon_that_says_nothing() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut asking = probes();
        asking.follow(place(free_port()));
        let port = silent.local_addr().unwrap().port();
        assert_eq!(outcomes(&mut asking, port, 3).await, [true, false, true]);
    }

    /// Found in a review: probes went on from the address of before, from which no peer takes a packet.
    #[tokio::test]
    async fn probes_come_from_where_this_node_is_now() {
        let asked = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut asking = probes();
        let mut place = place(free_port());
        asking.follow(place);
        asking.probe(&[(key(), asked.local_addr().unwrap())].into());
        for host in [1, 2] {
            place.addresses.v4 = [127, 0, 0, host].into();
            asking.follow(place);
            let (_, from) = timeout(Duration::from_secs(30), asked.accept()).await.unwrap().unwrap();
            assert_eq!(from.ip(), IpAddr::from(place.addresses.v4));
        }
    }

    #[tokio::test]
    async fn a_port_that_another_program_has_is_told_and_taken_later() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut asked = probes();
        asked.follow(place(port));
        assert!(asked.trouble().is_some_and(|text| text.contains(&port.to_string())));
        drop(taken);
        asked.follow(place(port));
        assert_eq!(asked.trouble(), None);
    }

    #[tokio::test]
    async fn whoever_talks_nonsense_is_hung_up_on() {
        let mut asked = probes();
        let port = free_port();
        asked.follow(place(port));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).await.ok();
        assert!(told.is_empty());
    }
}
