//! The largest packet of the tunnel that the path in use carries.
//!
//! Pings as long as WireGuard makes such a packet, which no router may take apart, find it out: first one of full length,
//! which nearly every path carries; where that stays unanswered though short ones are answered, several lengths side by
//! side, then what lies between the longest that was answered and the next. Each length is sent [`COPIES`] times, since
//! pings get lost for other reasons. Where nothing is answered in time, the peer is busy: it is asked again later.
//!
//! What was found stays until another search ends, also across a change of the path: better packets that are too short
//! for a moment than some that never arrive. A search without any answer says nothing.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Kind, Paths};
use crate::plan::MTU;
use crate::seal::MAX_PROBE_BYTES;
use crate::time::Monotonic;

/// The link's own MTU in bytes, beyond which nothing is looked for.
const LARGEST: u16 = 1420;

/// The least that is looked for, in bytes: what is left of IPv6's smallest link (1,280 bytes, RFC 8200 §5) after
/// WireGuard's and the outer headers (80 bytes).
const SMALLEST: u16 = 1200;

/// What WireGuard adds to a packet inside of UDP: 16 bytes of header, 16 of authentication (whitepaper §5.4.6).
const WIREGUARD_BYTES: u16 = 32;

/// Steps between the lengths of the first and of the second round; the first is a multiple of the second.
const COARSE: u16 = 40;
const FINE: u16 = 5;

/// How often each length is sent.
const COPIES: u32 = 3;

/// The pause between two copies; after the first of full length, which mostly is the only one, as long as an answer takes.
const COPY_PAUSE: Duration = Duration::from_millis(60);

/// How often a path that answers nothing in time is asked again, and after which pause at first, which doubles.
const RETRIES: u32 = 3;
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The wait before a path is measured that came up on a common link, where the tunnel itself is quicker than anything: the
/// first, and what is added for each other peer that is known, since all that start together meet together.
const CALM: Duration = Duration::from_millis(300);
const CALM_PER_PEER: Duration = Duration::from_millis(150);
const LONGEST_CALM: Duration = Duration::from_secs(3);

/// After it they measure one after the other, each path at some moment of so much time for each other peer.
const SPREAD_PER_PEER: Duration = Duration::from_millis(500);
const LONGEST_SPREAD: Duration = Duration::from_secs(15);

/// How much longer the first answer there may take for each other peer: all of them may be busy.
const PATIENCE_PER_PEER: Duration = Duration::from_millis(50);
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);

/// How long a small MTU is believed before a larger one is looked for (RFC 8899 §5.1.1, `PMTU_RAISE_TIMER`).
const RAISE_AFTER: Duration = Duration::from_secs(600);

const _: () = assert!(LARGEST as u32 == MTU && (LARGEST + WIREGUARD_BYTES) as usize == MAX_PROBE_BYTES);

/// Returns how long the datagram is that WireGuard makes of the largest packet for this MTU, in bytes.
pub const fn probe_bytes(mtu: u16) -> usize {
    (mtu + WIREGUARD_BYTES) as usize
}

/// What is known of the MTU, and what is done to know it.
#[derive(Clone, Debug, Default)]
pub(super) struct PathMtu {
    known: Option<Known>,
    search: Option<Search>,
    has_changed: bool,
    /// When the peer's pings last had the path measured anew.
    followed: Option<Monotonic>,
    /// Where a hello has proved the peer, without any ping.
    met: Option<Met>,
}

/// A path that came up on a common link.
#[derive(Clone, Copy, Debug)]
struct Met {
    address: SocketAddr,
    /// For how long its first answer is waited for at least.
    patience: Duration,
}

/// What a search has found.
#[derive(Clone, Copy, Debug)]
struct Known {
    address: SocketAddr,
    mtu: u16,
    since: Monotonic,
}

#[derive(Clone, Debug)]
struct Search {
    address: SocketAddr,
    round: Round,
    /// When the round began.
    begun: Monotonic,
    /// The lengths that are to be sent once more, and those of this round that are unanswered.
    to_send: Vec<u16>,
    unanswered: Vec<u16>,
    copies: u32,
    /// How often nothing was answered in time.
    silences: u32,
    /// The longest that was answered.
    passed: Option<u16>,
    next: Monotonic,
}

/// Which lengths are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// The full one.
    Full,
    /// All, in steps of [`COARSE`].
    Coarse,
    /// From the longest that was answered, in steps of [`FINE`].
    Fine { from: u16 },
}

/// A length that stands for a ping without more padding than any has: it tells whether the path works at all.
const SHORT: u16 = 0;

impl Search {
    fn new(address: SocketAddr, round: Round, now: Monotonic) -> Self {
        let mut search = Self {
            address,
            begun: now,
            round,
            to_send: Vec::new(),
            unanswered: Vec::new(),
            copies: 0,
            silences: 0,
            passed: None,
            next: now,
        };
        search.begin(round, now);
        search
    }

    fn begin(&mut self, round: Round, now: Monotonic) {
        self.unanswered = match round {
            Round::Full => vec![LARGEST],
            Round::Coarse => (SMALLEST..LARGEST).step_by(COARSE.into()).collect(),
            Round::Fine { from } => {
                (from + FINE..(from + COARSE).min(LARGEST + 1)).step_by(FINE.into()).collect()
            }
        };
        (self.round, self.begun, self.copies, self.next) = (round, now, 0, now);
    }

    fn on_answer(&mut self, mtu: u16, now: Monotonic) {
        self.passed = self.passed.max(Some(mtu));
        for lengths in [&mut self.unanswered, &mut self.to_send] {
            lengths.retain(|&length| length == SHORT || length > mtu);
        }
        if self.unanswered.is_empty() {
            self.next = now;
        }
    }

    /// Returns the next length to send; `None` while there is nothing to do, and [`Search::is_over`] at the end.
    fn poll(&mut self, patience: Duration, now: Monotonic) -> Option<u16> {
        if let Some(length) = self.to_send.pop() {
            return Some(length);
        }
        if now < self.next || self.unanswered.is_empty() || self.copies >= COPIES {
            return None;
        }
        self.copies += 1;
        let is_first = self.round == Round::Full && self.copies == 1;
        self.next = now + if is_first || self.copies == COPIES { patience } else { COPY_PAUSE };
        // From the end, so the short one is sent last: once it is answered, the others would have been.
        if self.round == Round::Coarse || (self.round == Round::Full && !is_first) {
            self.to_send.push(SHORT);
        }
        self.to_send.extend(&self.unanswered);
        self.to_send.pop()
    }

    fn is_over(&self, now: Monotonic) -> bool {
        now >= self.next && self.to_send.is_empty() && (self.unanswered.is_empty() || self.copies >= COPIES)
    }
}

impl PathMtu {
    /// Returns the MTU in bytes that was measured last, of this path or of the one before.
    pub(super) fn latest(&self) -> Option<u16> {
        self.known.map(|known| known.mtu)
    }

    /// Returns the MTU of the path over an address, if it was measured and is not just being measured anew.
    pub(super) fn of(&self, address: SocketAddr) -> Option<u16> {
        let known = self.known.filter(|known| known.address == address && self.search.is_none());
        known.map(|known| known.mtu)
    }

    /// Measures the path over an address unless that is done or under way, or was long ago and found a small MTU.
    pub(super) fn ensure(&mut self, address: SocketAddr, now: Monotonic) {
        let is_good = |known: Known| {
            known.address == address && (known.mtu == LARGEST || now.since(known.since) < RAISE_AFTER)
        };
        if !self.known.is_some_and(is_good) {
            self.begin(address, now);
        }
    }

    /// Measures the path over an address from some time on, or from now on if that comes later.
    fn begin(&mut self, address: SocketAddr, at: Monotonic) {
        let sought = self.search.as_mut().filter(|search| search.address == address);
        match sought {
            Some(search) if search.copies > 0 => {}
            Some(search) => search.next = search.next.min(at),
            None => self.search = Some(Search::new(address, Round::Full, at)),
        }
    }

    fn is_sought_over(&self, address: SocketAddr) -> bool {
        self.search.as_ref().is_some_and(|search| search.address == address)
    }

    /// Measures a path over which long packets may have stopped to come through. What it carried before is tried with the
    /// rest: where that is answered nothing has changed.
    pub(super) fn search(&mut self, address: SocketAddr, now: Monotonic) {
        let mut search = Search::new(address, Round::Coarse, now);
        let before = self.known.filter(|known| known.address == address).map(|known| known.mtu);
        search.unanswered.extend(before.filter(|mtu| !search.unanswered.contains(mtu)));
        self.search = Some(search);
    }

    /// Follows a ping of the peer with which it measures its side of a path. A way that has become narrow mostly is so in
    /// both directions, and who only answers packets does not notice that the answers vanish.
    fn on_ping(&mut self, address: SocketAddr, mtu: u16, now: Monotonic) {
        let is_shorter = |known: Known| known.address == address && mtu < known.mtu;
        let is_news = self.followed.is_none_or(|at| now.since(at) >= RAISE_AFTER);
        if is_news && self.search.is_none() && self.known.is_some_and(is_shorter) {
            self.followed = Some(now);
            self.search(address, now);
        }
    }

    pub(super) fn on_answer(&mut self, address: SocketAddr, mtu: u16, now: Monotonic) {
        if let Some(search) = self.search.as_mut().filter(|search| search.address == address) {
            search.on_answer(mtu, now);
        } else if self.known.is_some_and(|known| known.address == address && known.mtu < mtu) {
            // It came later than the search would wait: the other side was busy.
            self.find(address, mtu, now);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Monotonic> {
        let search = self.search.as_ref()?;
        Some(if search.to_send.is_empty() { search.next } else { search.begun })
    }

    /// Goes on after a round; `was_heard` says whether the path has answered anything since it began.
    fn end_round(&mut self, was_heard: bool, now: Monotonic) {
        let Some(search) = &mut self.search else { return };
        match (search.round, search.passed) {
            (Round::Full, None) if was_heard => search.begin(Round::Coarse, now),
            (Round::Full, None) if search.silences < RETRIES => {
                let pause = FIRST_RETRY * (1 << search.silences);
                search.silences += 1;
                search.begin(Round::Full, now + pause);
            }
            (Round::Coarse, Some(from)) => {
                let (address, mtu) = (search.address, from);
                search.begin(Round::Fine { from }, now);
                self.find(address, mtu, now);
            }
            (Round::Full | Round::Coarse, None) if !was_heard => self.search = None,
            (Round::Full | Round::Coarse | Round::Fine { .. }, passed) => {
                let address = search.address;
                self.search = None;
                self.find(address, passed.unwrap_or(SMALLEST), now);
            }
        }
    }

    fn find(&mut self, address: SocketAddr, mtu: u16, now: Monotonic) {
        self.has_changed |= self.latest().unwrap_or(LARGEST) != mtu;
        self.known = Some(Known { address, mtu, since: now });
    }
}

impl Paths {
    /// Returns the largest packet of the tunnel in bytes that the path in use carries, or the one before did while that
    /// is not known yet; `None` if nothing was ever measured.
    pub fn mtu(&self) -> Option<u16> {
        self.mtu.latest()
    }

    /// Whether the MTU is another since this was last asked.
    pub const fn take_mtu_change(&mut self) -> bool {
        std::mem::replace(&mut self.mtu.has_changed, false)
    }

    /// Takes up a path that was found otherwise than by pings, and measures it at a `random` moment later, when all that comes
    /// up at once has come up: so many `others` are known.
    pub fn take_up(
        &mut self,
        address: SocketAddr,
        kind: Kind,
        others: u32,
        random: impl FnOnce() -> u32,
        now: Monotonic,
    ) {
        self.follow_kernel(address, kind, now);
        let is_new = self.mtu.latest().is_none() && !self.mtu.is_sought_over(address);
        if is_new && self.current() == Some(address) {
            let for_others = |each: Duration, longest: Duration| each.saturating_mul(others).min(longest);
            self.mtu.met = Some(Met { address, patience: for_others(PATIENCE_PER_PEER, LONGEST_PATIENCE) });
            let calm = (CALM + CALM_PER_PEER.saturating_mul(others)).min(LONGEST_CALM);
            let share = f64::from(random()) / f64::from(u32::MAX);
            let turn = for_others(SPREAD_PER_PEER, LONGEST_SPREAD).mul_f64(share);
            self.mtu.begin(address, now + calm + turn);
        }
    }

    /// Follows the length of a ping of the peer: one that measures a smaller MTU than this side has found tells that the way
    /// is another.
    pub(crate) fn follow_length(&mut self, from: SocketAddr, bytes: usize, now: Monotonic) {
        let mtu = u16::try_from(bytes).ok().and_then(|bytes| bytes.checked_sub(WIREGUARD_BYTES));
        if let Some(mtu) = mtu.filter(|mtu| (SMALLEST..LARGEST).contains(mtu)) {
            self.mtu.on_ping(from, mtu, now);
        }
    }

    /// Measures the path in use if that was not done yet. One that is routed consists of two, each of which is measured by
    /// its own ends.
    pub(super) fn ensure_mtu(&mut self, now: Monotonic) {
        if let Some(current) = self.current.filter(|current| !current.lost && !self.is_routed()) {
            self.mtu.ensure(current.address, now);
        }
    }

    /// Returns a ping that is due to measure the path in use: where to, and for which MTU.
    pub(super) fn measuring_due(&mut self, now: Monotonic) -> Option<(SocketAddr, Option<u16>)> {
        loop {
            let search = self.mtu.search.as_mut()?;
            let address = search.address;
            let is_used = self.current.is_some_and(|current| current.address == address && !current.lost);
            let met = self.mtu.met.filter(|met| met.address == address);
            let Some(candidate) = self
                .candidates
                .get(&address)
                .filter(|one| is_used && (met.is_some() || one.answered.is_some()))
            else {
                self.mtu.search = None;
                return None;
            };
            let patience = candidate.patience().max(met.map(|met| met.patience).unwrap_or_default());
            let patience = patience + self.lag * 2;
            if let Some(length) = search.poll(patience, now) {
                return Some((address, (length != SHORT).then_some(length)));
            }
            if !search.is_over(now) {
                return None;
            }
            let was_heard = candidate.answered.is_some_and(|at| at >= search.begun);
            self.mtu.end_round(was_heard, now);
        }
    }
}

#[cfg(test)]
mod tests;
