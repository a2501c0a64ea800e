//! The eBPF programs as the daemon uses them: loaded in a thread of their own, kept to the peers and links of the
//! moment, and missed without harm.
//!
//! Loading takes capabilities that nothing else needs, and the verifier's time. So a thread that was started
//! before those capabilities were given away does it, again and again until it succeeds, and then ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc as thread_channel;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wgmesh_core::kernel::{Desired, HandshakeSeen, ObservedPeer, PeerTraffic, Underlay};
use wgmesh_core::key::PublicKey;
use wgmesh_core::relay::Forwarding;
use wgmesh_core::status;

use crate::ebpf::{self, EbpfError, EbpfSettings, EbpfTraffic, Handshakes};

/// Loading waits until the plan and the sessions have stood still for this long: the verifier takes a good part of a second
/// on a slow machine, and a mesh that is forming has better use for it.
const CALM: Duration = Duration::from_secs(3);

/// And for this long while peers have no session yet: longer than the kernel is left unread.
const CALM_WITHOUT_SESSIONS: Duration = Duration::from_secs(6);

/// But no longer than this after the link was made.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The pause before another attempt to load; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// What happened with the programs.
#[derive(Debug)]
pub enum Change {
    /// They count from now on, or why they do not.
    State,
    /// Handshake messages crossed the underlay, or peers leave packets unanswered ([`Traffic::take_unanswered`]).
    Handshakes(Vec<HandshakeSeen>),
}

/// The programs of one mesh, loaded or not.
pub struct Traffic {
    settings: EbpfSettings,
    state: State,
    peers: BTreeMap<PublicKey, BTreeSet<IpNet>>,
    sessions: Sessions,
    /// Who has had a session.
    met: BTreeSet<PublicKey>,
    underlay: Vec<Underlay>,
    /// Whom this host relays for.
    pairs: Arc<Vec<Forwarding>>,
    listen_port: u16,
    link: Option<u32>,
    /// When loading begins; `None` until there is a link.
    load_at: Option<Instant>,
    load_at_latest: Instant,
}

/// How far a mesh has formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sessions {
    /// Peers that have had one.
    there: usize,
    /// Peers that have had none.
    missing: usize,
}

enum State {
    Loading {
        go: Option<thread_channel::Sender<()>>,
        outcomes: mpsc::Receiver<Loaded>,
        error: Option<String>,
    },
    Active {
        ebpf: Box<EbpfTraffic>,
        handshakes: Option<Box<Handshakes>>,
        failures: Failures,
    },
    Off {
        error: String,
    },
}

/// What of the programs' work could not be done, each until it was.
#[derive(Default)]
struct Failures(BTreeMap<Part, String>);

/// A part of that work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Mesh,
    Port,
    Awaiting,
    Peers,
    Underlay,
    Relay,
    Handshakes,
}

impl Failures {
    fn note(&mut self, part: Part, outcome: Result<(), EbpfError>) {
        let Err(failure) = outcome else { return drop(self.0.remove(&part)) };
        let text = failure.to_string();
        if self.0.get(&part) != Some(&text) {
            tracing::warn!(error = %text, "eBPF does not follow");
        }
        self.0.insert(part, text);
    }

    fn text(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.values().map(String::as_str).collect::<Vec<_>>().join("; "))
    }
}

type Loaded = Result<Box<EbpfTraffic>, EbpfError>;

impl Traffic {
    /// Starts the thread that will load the programs, with the capabilities of this one. It waits for
    /// [`Traffic::follow_link`] and for calm.
    pub fn start(settings: EbpfSettings) -> Self {
        let (go, wait) = thread_channel::channel();
        let (tell, outcomes) = mpsc::channel(1);
        let thread = std::thread::Builder::new().name("ebpf-loader".to_owned());
        let settings_to_load = settings.clone();
        let state = match thread.spawn(move || load_until_done(&settings_to_load, &wait, &tell)) {
            Ok(_) => State::Loading { go: Some(go), outcomes, error: None },
            Err(error) => State::Off { error: format!("cannot start a thread: {error}") },
        };
        Self {
            settings,
            state,
            peers: BTreeMap::new(),
            sessions: Sessions::default(),
            met: BTreeSet::new(),
            underlay: Vec::new(),
            pairs: Arc::default(),
            listen_port: 0,
            link: None,
            load_at: None,
            load_at_latest: Instant::now() + LONGEST_WAIT,
        }
    }

    /// Waits for news; forever where there will be none. Cancel-safe.
    pub async fn changed(&mut self) -> Change {
        loop {
            match &mut self.state {
                State::Loading { go: go @ Some(_), .. } => {
                    wait_until(self.load_at).await;
                    if let Some(go) = go.take() {
                        // A thread that is gone shows by its outcome.
                        let _ = go.send(());
                    }
                }
                State::Loading { go: None, outcomes, error } => match outcomes.recv().await {
                    Some(Ok(ebpf)) => {
                        self.activate(ebpf);
                        return Change::State;
                    }
                    Some(Err(failure)) => {
                        let text = failure.to_string();
                        tracing::warn!(error = %text, "eBPF does not run; traffic is read from WireGuard alone");
                        *error = Some(text);
                        return Change::State;
                    }
                    None => self.state = State::Off { error: "its loader died".to_owned() },
                },
                State::Active { ebpf, handshakes, failures } => tokio::select! {
                    batch = next_batch(handshakes) => match batch {
                        Ok(batch) => return Change::Handshakes(batch),
                        Err(failure) => {
                            failures.note(Part::Handshakes, Err(EbpfError::Events(failure)));
                            *handshakes = None;
                            return Change::State;
                        }
                    },
                    () = wait_until(ebpf.relay_check_at()) => {
                        self.with_active(Part::Relay, EbpfTraffic::check_relay);
                    }
                },
                State::Off { .. } => std::future::pending().await,
            }
        }
    }

    /// Notes that the mesh link is there; loads, or attaches anew if it is another than before.
    pub fn follow_link(&mut self, index: u32) {
        if self.link.replace(index) == Some(index) {
            return;
        }
        self.wait_for_calm();
        self.with_active(Part::Mesh, EbpfTraffic::attach_mesh);
    }

    /// Has loading wait for sessions that come about.
    pub fn follow_sessions(&mut self, peers: &BTreeMap<PublicKey, ObservedPeer>) {
        let awaited = self.awaits_sessions();
        let met = peers.iter().filter(|(_, peer)| peer.last_handshake.is_some());
        self.met = met.map(|(&key, _)| key).collect();
        self.follow_awaited(awaited);
        let there = self.met.len();
        let sessions = Sessions { there, missing: peers.len() - there };
        if self.sessions != sessions {
            self.sessions = sessions;
            self.wait_for_calm();
        }
    }

    /// Counts for the peers of this plan.
    pub fn follow_plan(&mut self, desired: &Desired) {
        let peers: BTreeMap<_, _> =
            desired.peers.iter().map(|(&key, peer)| (key, peer.allowed_ips.clone())).collect();
        if self.peers != peers {
            self.wait_for_calm();
            let awaited = self.awaits_sessions();
            self.peers = peers;
            self.follow_awaited(awaited);
            let peers = std::mem::take(&mut self.peers);
            self.with_active(Part::Peers, |ebpf| ebpf.sync_peers(&peers));
            self.peers = peers;
        }
        if self.listen_port != desired.listen_port {
            let port = desired.listen_port;
            self.listen_port = port;
            self.with_active(Part::Port, |ebpf| ebpf.set_listen_port(port));
        }
    }

    /// Returns the handshakes that nobody has been woken for, if there were any or there is word of unanswered packets.
    pub fn take_waiting(&mut self) -> Option<Change> {
        let State::Active { handshakes: Some(handshakes), .. } = &mut self.state else { return None };
        let seen = handshakes.waiting();
        (!seen.is_empty() || handshakes.has_unanswered()).then_some(Change::Handshakes(seen))
    }

    /// Watches these links for handshakes, and no others.
    pub fn follow_underlay(&mut self, underlay: &[Underlay]) {
        underlay.clone_into(&mut self.underlay);
        self.with_active(Part::Underlay, |ebpf| attach_underlay(ebpf, underlay));
        self.with_active(Part::Relay, |ebpf| ebpf.relay_through(underlay));
    }

    /// Whether it tells of packets that nothing comes back for.
    pub const fn tells_of_silence(&self) -> bool {
        matches!(self.state, State::Active { handshakes: Some(_), .. })
    }

    /// Returns the peers to which packets go and from which nothing comes, as [`Change::Handshakes`] has told.
    pub fn take_unanswered(&mut self) -> BTreeSet<PublicKey> {
        match &mut self.state {
            State::Active { ebpf, handshakes: Some(handshakes), .. } => ebpf.take_unanswered(handshakes),
            State::Active { handshakes: None, .. } | State::Loading { .. } | State::Off { .. } => {
                BTreeSet::new()
            }
        }
    }

    /// Relays for these pairs in the kernel, as far as that can be done there.
    pub fn follow_relay(&mut self, pairs: Arc<Vec<Forwarding>>) {
        self.pairs = Arc::clone(&pairs);
        self.with_active(Part::Relay, |ebpf| ebpf.relay_for(&pairs));
    }

    /// Adds to a status what eBPF knows.
    pub fn describe(&self, status: &mut status::Status) {
        let (hook, error) = match &self.state {
            State::Loading { error, .. } => (None, error.clone()),
            State::Active { ebpf, failures, .. } => (Some(ebpf.hook().to_owned()), failures.text()),
            State::Off { error } => (None, Some(error.clone())),
        };
        status.ebpf =
            status::Ebpf { active: hook.is_some(), attachment: hook, error, ..status::Ebpf::default() };
        let State::Active { ebpf, .. } = &self.state else { return };
        match ebpf.traffic() {
            Ok(traffic) => {
                for peer in &mut status.peers {
                    peer.ebpf = traffic.get(&peer.public_key).map(counters);
                }
            }
            Err(error) => status.ebpf.error = Some(error.to_string()),
        }
        match ebpf.relayed() {
            Ok(relayed) => {
                status.ebpf.relayed_flows = relayed.flows;
                status.ebpf.relayed_packets = relayed.packets;
                status.ebpf.relayed_bytes = relayed.bytes;
                status.ebpf.relayed_limited = relayed.limited;
            }
            Err(error) => status.ebpf.error = Some(error.to_string()),
        }
    }

    /// Takes everything of ours out of the kernel, also what is being loaded at this moment and what an earlier run has
    /// left for this one to adopt.
    pub async fn withdraw(&mut self) {
        let off = State::Off { error: "it was withdrawn".to_owned() };
        let ebpf = match std::mem::replace(&mut self.state, off) {
            State::Active { ebpf, .. } => Some(ebpf),
            State::Loading { go: None, mut outcomes, error: None } => {
                outcomes.recv().await.and_then(Result::ok)
            }
            State::Loading { .. } | State::Off { .. } => None,
        };
        let done = ebpf.map_or_else(|| ebpf::remove_leftovers(&self.settings), |ebpf| ebpf.withdraw());
        if let Err(error) = done {
            tracing::warn!(%error, "something of eBPF is left");
        }
    }

    fn activate(&mut self, mut ebpf: Box<EbpfTraffic>) {
        let mut failures = Failures::default();
        // The link may have been made anew since the loader did so.
        failures.note(Part::Mesh, ebpf.attach_mesh());
        failures.note(Part::Port, ebpf.set_listen_port(self.listen_port));
        failures.note(Part::Awaiting, ebpf.await_handshakes(self.awaits_sessions()));
        failures.note(Part::Peers, ebpf.sync_peers(&self.peers));
        failures.note(Part::Underlay, attach_underlay(&mut ebpf, &self.underlay));
        // One link that refuses must not leave the pairs behind.
        let through = ebpf.relay_through(&self.underlay);
        failures.note(Part::Relay, ebpf.relay_for(&self.pairs).and(through));
        let handshakes = ebpf.handshakes().unwrap_or_else(|failure| {
            failures.note(Part::Handshakes, Err(failure));
            None
        });
        tracing::info!(hook = ebpf.hook(), "eBPF counts the traffic of every peer");
        self.state = State::Active { ebpf, handshakes: handshakes.map(Box::new), failures };
    }

    fn awaits_sessions(&self) -> bool {
        self.peers.keys().any(|key| !self.met.contains(key))
    }

    fn follow_awaited(&mut self, before: bool) {
        let awaits = self.awaits_sessions();
        if awaits != before {
            self.with_active(Part::Awaiting, |ebpf| ebpf.await_handshakes(awaits));
        }
    }

    fn wait_for_calm(&mut self) {
        let calm = if self.sessions.missing > 0 { CALM_WITHOUT_SESSIONS } else { CALM };
        self.load_at = self.link.map(|_| (Instant::now() + calm).min(self.load_at_latest));
    }

    fn with_active(&mut self, part: Part, task: impl FnOnce(&mut EbpfTraffic) -> Result<(), EbpfError>) {
        let State::Active { ebpf, failures, .. } = &mut self.state else { return };
        failures.note(part, task(ebpf));
    }
}

fn attach_underlay(ebpf: &mut EbpfTraffic, underlay: &[Underlay]) -> Result<(), EbpfError> {
    let gone: Vec<String> = ebpf
        .underlay()
        .filter(|watched| underlay.iter().all(|link| link.name != *watched))
        .map(ToOwned::to_owned)
        .collect();
    gone.iter().for_each(|name| ebpf.detach_underlay(name));
    // One link that cannot be watched must not leave the others unwatched.
    let failures = underlay.iter().filter_map(|link| ebpf.attach_underlay(&link.name, link.index).err());
    failures.last().map_or(Ok(()), Err)
}

/// Waits for handshakes; forever where nobody tells of them. Cancel-safe.
async fn next_batch(handshakes: &mut Option<Box<Handshakes>>) -> io::Result<Vec<HandshakeSeen>> {
    match handshakes {
        Some(handshakes) => handshakes.next_batch().await,
        None => std::future::pending().await,
    }
}

fn counters(traffic: &PeerTraffic) -> status::Traffic {
    status::Traffic {
        rx_bytes: traffic.rx_bytes,
        rx_packets: traffic.rx_packets,
        tx_bytes: traffic.tx_bytes,
        tx_packets: traffic.tx_packets,
        last_rx_s: traffic.rx_age.map(|age| age.as_secs()),
        last_tx_s: traffic.tx_age.map(|age| age.as_secs()),
    }
}

async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn load_until_done(
    settings: &EbpfSettings,
    wait: &thread_channel::Receiver<()>,
    tell: &mpsc::Sender<Loaded>,
) {
    if wait.recv().is_err() {
        // The daemon ends before its time came.
        return;
    }
    let mut pause = FIRST_PAUSE;
    loop {
        let outcome = load(settings);
        let done = outcome.is_ok();
        if tell.blocking_send(outcome).is_err() || done {
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

fn load(settings: &EbpfSettings) -> Loaded {
    let mut ebpf = EbpfTraffic::load(settings)?;
    ebpf.attach_mesh()?;
    Ok(Box::new(ebpf))
}

#[cfg(test)]
mod tests {
    use wgmesh_core::time::WallClock;

    use super::*;

    fn peers(there: u8, missing: u8) -> BTreeMap<PublicKey, ObservedPeer> {
        let peer = |number| {
            let last_handshake = (number < there).then_some(WallClock::from_millis(1));
            (PublicKey::from_bytes([number; 32]), ObservedPeer { last_handshake, ..ObservedPeer::default() })
        };
        (0..there + missing).map(peer).collect()
    }

    #[test]
    fn a_failure_is_told_until_that_very_part_was_done() {
        let failure = |text: &str| Err(EbpfError::Events(io::Error::other(text.to_owned())));
        let mut failures = Failures::default();
        failures.note(Part::Underlay, failure("one"));
        failures.note(Part::Peers, Ok(()));
        failures.note(Part::Relay, failure("two"));
        let text = failures.text().unwrap();
        assert!(text.contains("one") && text.contains("two"), "{text}");
        failures.note(Part::Underlay, Ok(()));
        failures.note(Part::Relay, Ok(()));
        assert_eq!(failures.text(), None);
    }

    /// Found wanting in the lab: twenty daemons that started together on a slow machine loaded eBPF in the middle of their
    /// handshakes, which took several times as long for that.
    #[tokio::test(start_paused = true)]
    async fn loading_waits_for_the_sessions_of_a_mesh_that_forms() {
        let mut traffic = Traffic::start(EbpfSettings::new("wg0".parse().unwrap()));
        let begin = Instant::now();
        let at = |seconds| Some(begin + Duration::from_secs(seconds));
        assert_eq!(traffic.load_at, None);
        traffic.follow_link(7);
        assert_eq!(traffic.load_at, at(3));
        traffic.follow_sessions(&peers(0, 2));
        assert_eq!(traffic.load_at, at(6));
        tokio::time::advance(Duration::from_secs(5)).await;
        traffic.follow_sessions(&peers(0, 2));
        assert_eq!(traffic.load_at, at(6), "nothing has changed");
        traffic.follow_sessions(&peers(1, 1));
        assert_eq!(traffic.load_at, at(11));
        traffic.follow_sessions(&peers(2, 0));
        assert_eq!(traffic.load_at, at(8));
        tokio::time::advance(Duration::from_secs(22)).await;
        traffic.follow_sessions(&peers(2, 9));
        assert_eq!(traffic.load_at, at(30), "but it does not wait for ever");
    }
}
