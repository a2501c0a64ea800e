//! The hello exchange with one peer on a common link: how two nodes get a tunnel up in one round trip.
//!
//! WireGuard forgives an initiation that its peer cannot answer only after five seconds (`REKEY_TIMEOUT`). So
//! nobody initiates before the other side has said that its kernel would answer:
//!
//! ```text
//!          newcomer                                   neighbour
//!             |  announce (record, token)                |
//!             |----------------------------------------->|  installs the newcomer, without an endpoint
//!             |             hello (Installed, echo)      |
//!  installs,  |<-----------------------------------------|
//!  with       |  hello (Active, echo)                    |
//!  endpoint   |----------------------------------------->|
//!             |  WireGuard's own handshake               |
//!             |=========================================>|
//! ```
//!
//! Where both announce at once both would initiate, and undo each other. So the lower key does, and the higher one
//! waits: for [`INITIATIVE_GRACE`] until it is told so, then for [`HANDSHAKE_GRACE`]. Each side repeats its hello
//! until the other has confirmed its phase. Where many meet at once each hello costs, so one that would soon be said
//! again is left out: a kernel that is about to hold the peer is waited for, and of two hellos that cross only the one
//! that begins answers.
//!
//! Only a hello that echoes our token of this run moves anything. Invariant: our phase is at least `Installed`
//! only while the kernel holds the peer.

use std::net::SocketAddr;
use std::time::Duration;

use crate::identity::Sequence;
use crate::message::{Hello, Phase, Stamp, Token};
use crate::time::Monotonic;
use crate::timed::Deadline;

/// First wait for an answer of the only peer that is being met; doubled each time. Longer than a neighbour takes to
/// install a peer.
const FIRST_RETRY: Duration = Duration::from_millis(150);

/// And so much longer for each other peer that is being met: where many begin at once all are busy, and asking again
/// would only make them busier.
const RETRY_PER_PEER: Duration = Duration::from_millis(20);

/// But no longer than this, at first.
const LONGEST_FIRST_RETRY: Duration = Duration::from_secs(1);

/// After so many unanswered hellos, which take five seconds and more, we wait for the next announce.
pub const MAX_ATTEMPTS: u32 = 6;

/// So many hellos without an answer say nothing yet: the peer or this host is busy.
const FIRST_ATTEMPTS: u32 = 2;

/// The wait between later hellos where no announce will come.
pub const SLOW_RETRY: Duration = Duration::from_secs(10);

/// How long the side that should not begin waits for the other to say that it does, before it begins itself.
pub const INITIATIVE_GRACE: Duration = Duration::from_secs(1);

/// How long a side that was told that the other begins waits for the handshake. Two initiations that cross undo
/// each other, and WireGuard repeats a lost one after 5 s and 10 s (`REKEY_TIMEOUT`): this lies between.
pub const HANDSHAKE_GRACE: Duration = Duration::from_millis(7500);

/// An address from which nothing came for this long gives way to another of the same peer: three of the longest pauses
/// between announces, so that two common links do not make a path flap. A path that is used and dead is left far sooner,
/// by its watch ([`crate::path`]).
pub const ADDRESS_SILENCE: Duration = Duration::from_secs(180);

/// For this long after a peer has proved where it is, its tunnel may be coming up there: some handshakes that are begun anew, on
/// a host that is busy with many.
pub const MEETING: Duration = Duration::from_secs(10);

/// Which of our sockets a datagram passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The LAN's, on the link of this index.
    Link(u32),
    /// The one that shares WireGuard's own port, on whichever link the routes say.
    WireGuard,
}

/// Where a peer was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The socket that reaches it.
    pub via: Via,
    /// The peer's address, with the port that takes hellos there.
    pub address: SocketAddr,
}

impl Place {
    /// Returns where the WireGuard of a peer that is here answers, if its own host knows it by `listen_port`.
    pub const fn endpoint(self, listen_port: u16) -> SocketAddr {
        let mut endpoint = self.address;
        match self.via {
            Via::Link(_) => endpoint.set_port(listen_port),
            Via::WireGuard => {}
        }
        endpoint
    }
}

/// Why a proved hello was not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Its stamp is not above the last one: a copy.
    Replayed,
    /// It does not echo our token, so it may be from an earlier run of ours. It is answered.
    NotFresh,
}

/// The exchange with one peer.
#[derive(Clone, Debug)]
pub struct Contact {
    /// Whether our key is the lower one, which decides who initiates.
    lower: bool,
    place: Place,
    heard_at_place: Monotonic,
    /// Where a run was announced that is still to prove itself.
    lead: Place,
    phase: Phase,
    /// What to echo, as last heard, proved or not.
    echo: Option<Token>,
    /// The peer's run, as proved.
    token: Option<Token>,
    /// Since when.
    proved_at: Monotonic,
    /// Whether no tunnel has come up where it proved to be.
    in_vain: bool,
    last_stamp: Option<Stamp>,
    /// The peer's phase in its run.
    theirs: Option<Phase>,
    /// Our phase as the peer knows it.
    seen: Option<Phase>,
    /// Our record's sequence as the peer knows it.
    known: Option<Sequence>,
    /// Our phase in the last hello that we sent to the run that `echo` names.
    sent: Option<Phase>,
    due: Option<Monotonic>,
    attempts: u32,
    initiate_at: Option<Monotonic>,
}

/// The parts of a hello that the contact decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloPlan {
    /// Where to send it.
    pub place: Place,
    /// What to echo.
    pub echo: Option<Token>,
    /// Our phase.
    pub phase: Phase,
    /// The peer's phase as we know it.
    pub seen: Option<Phase>,
    /// Whether we wait for an answer.
    pub ask: bool,
    /// Whether the peer lacks our record.
    pub with_record: bool,
}

/// Returns the first wait for an answer while so many peers are being met.
pub fn first_retry(being_met: usize) -> Duration {
    let others = u32::try_from(being_met.saturating_sub(1)).unwrap_or(u32::MAX);
    (FIRST_RETRY + RETRY_PER_PEER.saturating_mul(others)).min(LONGEST_FIRST_RETRY)
}

impl Contact {
    /// Begins with a peer that was heard at `place`; `lower` says whether our key is the lower one, `last_stamp` with what
    /// an earlier contact in this run of ours ended.
    pub const fn new(place: Place, lower: bool, last_stamp: Option<Stamp>, now: Monotonic) -> Self {
        Self {
            lower,
            place,
            heard_at_place: now,
            lead: place,
            phase: Phase::Heard,
            echo: None,
            token: None,
            proved_at: now,
            in_vain: false,
            last_stamp,
            theirs: None,
            seen: None,
            known: None,
            sent: None,
            due: None,
            attempts: 0,
            initiate_at: None,
        }
    }

    /// Takes note of an announce: a lead that may want an answer. `retry` is what [`first_retry`] says.
    pub fn handle_announce(&mut self, place: Place, token: Token, retry: Duration, now: Monotonic) {
        if self.place == place {
            self.heard_at_place = now;
        } else if self.token.is_none() {
            self.place = place;
            self.heard_at_place = now;
        }
        let new_run = self.echo != Some(token);
        self.echo = Some(token);
        let unanswered = self.due.is_none() && !self.is_settled();
        if new_run {
            self.lead = place;
            self.sent = None;
        }
        if new_run || unanswered {
            self.speak(retry, now);
        }
    }

    /// Takes the place that a ping and its answer have proved for a run of the peer.
    pub fn handle_path(&mut self, place: Place, token: Token, retry: Duration, now: Monotonic) {
        (self.place, self.lead, self.heard_at_place) = (place, place, now);
        self.echo = Some(token);
        if self.token != Some(token) {
            self.forget_run(token, now);
            self.sent = None;
        }
        if !self.is_settled() {
            self.speak(retry, now);
        }
    }

    /// Follows a hello whose sender was proved. `own_token` is this run's, `retry` what [`first_retry`] says.
    ///
    /// # Errors
    /// [`Ignored`] if the hello must not move anything.
    pub fn handle_hello(
        &mut self,
        hello: &Hello,
        place: Place,
        own_token: Token,
        retry: Duration,
        now: Monotonic,
    ) -> Result<(), Ignored> {
        if self.last_stamp.is_some_and(|last| hello.stamp <= last) {
            return Err(Ignored::Replayed);
        }
        self.last_stamp = Some(hello.stamp);
        let greeted_this_run = self.echo.replace(hello.token) == Some(hello.token);
        if !greeted_this_run {
            self.lead = place;
            self.sent = None;
        }
        if hello.echo != Some(own_token) {
            self.due = Some(now);
            return Err(Ignored::NotFresh);
        }
        if self.token == Some(hello.token) {
            self.on_heard_at(place, now);
        } else {
            self.forget_run(hello.token, now);
            (self.place, self.heard_at_place) = (place, now);
        }
        let before = self.theirs.replace(hello.phase);
        self.seen = hello.seen;
        self.known = hello.known;
        self.decide_initiative(before, now);
        if self.has_crossed(hello, before) {
            // What the other hears at this moment has it say what comes next.
        } else if hello.ask || self.sent != Some(self.phase) {
            self.speak(retry / 2, now);
        } else if self.is_settled() {
            self.due = None;
        }
        Ok(())
    }

    /// Notes whether the kernel holds the peer.
    pub fn handle_installed(&mut self, installed: bool, now: Monotonic) {
        match (installed, self.phase) {
            (true, Phase::Heard) => {
                self.phase = Phase::Installed;
                self.decide_initiative(None, now);
                self.attempts = 0;
                self.due = Some(now);
            }
            (false, Phase::Installed | Phase::Active) => {
                self.phase = Phase::Heard;
                self.initiate_at = None;
            }
            (true, Phase::Installed | Phase::Active) | (false, Phase::Heard) => {}
        }
    }

    /// Notes that WireGuard's handshake was completed, so nobody needs to initiate any more.
    pub const fn handle_handshake(&mut self) {
        self.initiate_at = None;
        self.in_vain = false;
    }

    /// Notes that there is no tunnel yet: hellos pass where WireGuard's messages do not, it seems.
    pub fn handle_no_tunnel(&mut self, now: Monotonic) {
        self.in_vain = !self.is_meeting(now);
    }

    /// Takes the initiative if the other side should have and did not.
    pub fn handle_timeout(&mut self, now: Monotonic) {
        if self.initiate_at.is_some_and(|at| at <= now) {
            self.initiate_at = None;
            self.become_active(now);
        }
    }

    /// Returns the hello that is due, if one is; `sequence` is that of our record, `retry` what [`first_retry`] says.
    pub fn poll_hello(&mut self, sequence: Sequence, retry: Duration, now: Monotonic) -> Option<HelloPlan> {
        self.due.filter(|&due| due <= now)?;
        // What was said, seen and known belongs to one run of the peer. To one that is still to prove itself it would
        // be a lie: our kernel began with an earlier one and will not begin again by itself, and our record may be
        // lost there.
        let proved = self.token.is_some() && self.token == self.echo;
        let phase = if proved { self.phase } else { self.phase.min(Phase::Installed) };
        // Nobody acts on word that a kernel does not hold the peer yet: it is an answer, and wants none.
        let ask = !proved || (phase > Phase::Heard && self.seen != Some(phase));
        self.attempts += 1;
        let slow = (self.place.via == Via::WireGuard).then_some(SLOW_RETRY);
        let wait = match self.attempts {
            ..MAX_ATTEMPTS => Some(retry * 2_u32.saturating_pow(self.attempts - 1)),
            _ => slow,
        };
        self.due = wait.filter(|_| ask).map(|wait| now + wait);
        self.sent = Some(phase);
        Some(HelloPlan {
            place: if proved { self.place } else { self.lead },
            echo: self.echo,
            phase,
            seen: self.theirs.filter(|_| proved),
            ask,
            with_record: !proved || self.known.is_none_or(|known| known < sequence),
        })
    }

    /// Returns where the peer is, as it proved in this run.
    pub fn proved_place(&self) -> Option<Place> {
        self.token.map(|_| self.place)
    }

    /// Returns where a peer is that has proved to be on a common link, unless no tunnel has come up there.
    pub fn place_on_link(&self) -> Option<Place> {
        self.proved_place().filter(|place| matches!(place.via, Via::Link(_)) && !self.in_vain)
    }

    /// Whether the peer has just proved where it is.
    pub fn is_meeting(&self, now: Monotonic) -> bool {
        self.token.is_some() && now.since(self.proved_at) < MEETING
    }

    /// Returns the stamp of the newest hello that the peer has proved.
    pub const fn last_stamp(&self) -> Option<Stamp> {
        self.last_stamp
    }

    /// Whether our kernel should start the handshake.
    pub fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }

    /// Whether a hello is due or waits for an answer, and the peer is not given up.
    pub const fn is_being_met(&self) -> bool {
        self.due.is_some() && self.attempts < MAX_ATTEMPTS
    }

    /// Whether a peer that was heard on a link has not left more than its first hellos unanswered.
    pub const fn expects_answer_on_link(&self) -> bool {
        matches!(self.place.via, Via::Link(_)) && self.is_being_met() && self.attempts <= FIRST_ATTEMPTS
    }

    /// Whether each side knows the other's phase.
    pub fn is_settled(&self) -> bool {
        self.seen == Some(self.phase) && self.theirs.is_some()
    }

    fn forget_run(&mut self, token: Token, now: Monotonic) {
        self.token = Some(token);
        (self.proved_at, self.in_vain) = (now, false);
        self.theirs = None;
        self.seen = None;
        self.known = None;
        self.initiate_at = None;
        self.phase = self.phase.min(Phase::Installed);
    }

    fn on_heard_at(&mut self, place: Place, now: Monotonic) {
        if place == self.place {
            self.heard_at_place = now;
        } else if place.via == Via::WireGuard {
            // Which of the addresses behind NATs to use is for the pings to say.
        } else if !self.lower || now.since(self.heard_at_place) >= ADDRESS_SILENCE {
            // The one with the higher key follows the other: of two common links both use the same, and notice alike when
            // it goes.
            self.place = place;
            self.heard_at_place = now;
        }
    }

    /// Whether both sides have asked at once and the other is the one that begins; `before` as in
    /// [`decide_initiative`](Self::decide_initiative).
    fn has_crossed(&self, hello: &Hello, before: Option<Phase>) -> bool {
        let is_under_way = self.sent == Some(self.phase) && self.due.is_some();
        let is_first = before != Some(hello.phase) && hello.seen.is_none();
        !self.lower
            && is_under_way
            && is_first
            && (self.phase, hello.phase) == (Phase::Installed, Phase::Installed)
    }

    /// Begins, or waits for the other to; `before` is the other's phase as it was known until now.
    fn decide_initiative(&mut self, before: Option<Phase>, now: Monotonic) {
        if self.phase != Phase::Installed || self.theirs == before {
            return;
        }
        let crossed = self.sent >= Some(Phase::Installed);
        match self.theirs {
            Some(Phase::Installed) if self.lower || !crossed => self.become_active(now),
            Some(Phase::Installed) => self.initiate_at = Some(now + INITIATIVE_GRACE),
            Some(Phase::Active) => self.initiate_at = Some(now + HANDSHAKE_GRACE),
            Some(Phase::Heard) | None => {}
        }
    }

    /// Has a hello sent: at once where the kernel holds the peer, else when it does or was waited for so long: what is said
    /// before must be said again then, and costs most where many are met at once.
    fn speak(&mut self, patience: Duration, now: Monotonic) {
        self.attempts = 0;
        self.due = match self.phase {
            Phase::Installed | Phase::Active => Some(now),
            Phase::Heard => self.due.into_iter().chain([now + patience]).min(),
        };
    }

    fn become_active(&mut self, now: Monotonic) {
        self.phase = Phase::Active;
        self.attempts = 0;
        self.due = Some(now);
    }
}

impl Deadline for Contact {
    /// Returns when the contact next wants [`Contact::handle_timeout`] or [`Contact::poll_hello`]. Changes with
    /// every call of a `handle_…` method.
    fn deadline(&self) -> Option<Monotonic> {
        self.due.into_iter().chain(self.initiate_at).min()
    }
}

#[cfg(test)]
mod tests;
