//! What is known of one IP version's NAT, and when it is asked for again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::Rng;

use super::message::{AnswerFrom, Message};
use super::round::{Depth, Round};
use super::transaction::Transaction;
use super::verdict::{self, Filtering};
use super::{Handled, ServerReport};
use crate::nat::NatType;
use crate::time::Monotonic;

/// How often mapped addresses are asked for (W-X32). It also keeps the mapping towards the servers.
const REFRESH: Duration = Duration::from_secs(60);

/// How soon after a refresh that nobody answered the next comes.
const RETRY: Duration = Duration::from_secs(10);

/// After so many refreshes in a row that nobody answered, what was known is forgotten: one lost round proves nothing.
const MAX_SILENT_REFRESHES: u8 = 2;

/// Restarts come closer together than this only as one: a link that flaps must not flood the servers.
const MIN_BETWEEN_RESTARTS: Duration = Duration::from_secs(1);

/// Refreshes that are asked for come no closer together than this: paths are lost more often than addresses change.
const MIN_BETWEEN_REFRESHES: Duration = Duration::from_secs(3);

/// One IP version.
#[derive(Debug, Default)]
pub(super) struct Family {
    servers: Vec<ServerReport>,
    local: Vec<IpAddr>,
    round: Option<Round>,
    next_round: Option<(Monotonic, Depth)>,
    last_restart: Option<Monotonic>,
    last_round: Option<Monotonic>,
    silent_refreshes: u8,
    mapped: Option<SocketAddr>,
    /// What [`Self::mapped`] was when the round began.
    mapped_before: Option<SocketAddr>,
    nat_type: NatType,
    filtering: Filtering,
    hairpin: Option<bool>,
    /// Sent to our own mapped address: does it come back?
    hairpin_test: Option<Transaction>,
}

impl Family {
    pub(super) fn mapped(&self) -> Option<SocketAddr> {
        self.mapped
    }

    pub(super) fn nat_type(&self) -> NatType {
        self.nat_type
    }

    pub(super) fn filtering(&self) -> Filtering {
        self.filtering
    }

    pub(super) fn hairpin(&self) -> Option<bool> {
        self.hairpin
    }

    pub(super) fn is_carrier_grade(&self) -> bool {
        self.mapped.is_some_and(|mapped| verdict::is_carrier_grade(mapped, &self.local))
    }

    pub(super) fn is_busy(&self) -> bool {
        let waits = matches!(self.next_round, Some((_, Depth::Full)));
        waits || self.round.is_some() || self.hairpin_test.is_some()
    }

    /// Returns what each server last said.
    pub(super) fn servers(&self) -> &[ServerReport] {
        &self.servers
    }

    /// Takes another list of servers; begins anew if it really is another.
    pub(super) fn set_servers(&mut self, servers: Vec<SocketAddr>, now: Monotonic) {
        if servers.iter().eq(self.servers.iter().map(|server| &server.address)) {
            return;
        }
        self.servers = servers.into_iter().map(ServerReport::unasked).collect();
        (self.round, self.hairpin_test, self.next_round) = (None, None, None);
        if self.servers.is_empty() {
            self.forget();
        } else {
            self.next_round = Some((now, Depth::Full));
        }
        self.advance(now);
    }

    /// Begins anew after the network has changed.
    pub(super) fn restart(&mut self, local: &[IpAddr], now: Monotonic) {
        self.local = local.to_vec();
        if !self.servers.is_empty() {
            let allowed = self.last_restart.map_or(now, |last| last + MIN_BETWEEN_RESTARTS);
            self.next_round = Some((now.max(allowed), Depth::Full));
            self.advance(now);
        }
    }

    /// Asks all servers at once where we are, unless that was asked just now.
    pub(super) fn refresh(&mut self, now: Monotonic) {
        let is_due = self.last_round.is_none_or(|last| now.since(last) >= MIN_BETWEEN_REFRESHES);
        let waits_for_refresh = matches!(self.next_round, Some((_, Depth::Refresh)));
        if is_due && self.round.is_none() && waits_for_refresh {
            self.next_round = Some((now, Depth::Refresh));
            self.advance(now);
        }
    }

    /// Takes a message that was sent to us.
    pub(super) fn handle(&mut self, from: SocketAddr, message: Message, now: Monotonic) -> Option<Handled> {
        let (id, answer) = match message {
            Message::Request(id) => {
                self.hairpin_test.take_if(|test| test.is(&id))?;
                self.hairpin = Some(true);
                return Some(Handled::Taken);
            }
            Message::Success(id, Some(binding)) => (id, Some(binding)),
            Message::Success(id, None) => {
                self.round.as_mut()?.request_mut(&id)?;
                return Some(Handled::Dropped("a STUN answer that makes no sense"));
            }
            Message::Error(id) => (id, None),
        };
        let request = self.round.as_mut()?.request_mut(&id)?;
        if !request.is_answerer(from) {
            return Some(Handled::Dropped("a STUN answer from somebody else"));
        }
        if answer.is_some_and(|binding| binding.mapped.is_ipv4() != from.is_ipv4()) {
            return Some(Handled::Dropped("a STUN answer that makes no sense"));
        }
        request.take(answer, now);
        self.advance(now);
        Some(Handled::Taken)
    }

    /// Does what answers and time ask for.
    pub(super) fn advance(&mut self, now: Monotonic) {
        if let Some((_, depth)) = self.next_round.take_if(|(at, _)| *at <= now) {
            self.begin(depth, now);
        }
        if let Some(mut round) = self.round.take() {
            let is_over = round.advance(now);
            self.learn_early(&round);
            if is_over {
                self.conclude(&round, now);
            } else {
                self.round = Some(round);
            }
        }
        if let Some(test) = &mut self.hairpin_test {
            test.advance(now);
        }
        if self.hairpin_test.take_if(|test| test.is_settled()).is_some() {
            self.hairpin = Some(false);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Monotonic> {
        let round = self.round.as_ref().map(Round::poll_timeout);
        let next = self.next_round.map(|(at, _)| at);
        let hairpin = self.hairpin_test.as_ref().and_then(Transaction::poll_timeout);
        round.into_iter().chain(next).chain(hairpin).min()
    }

    pub(super) fn poll_transmit(
        &mut self,
        now: Monotonic,
        rng: &mut impl Rng,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let round = self.round.as_mut().and_then(|round| round.poll_transmit(now, rng));
        round.or_else(|| self.hairpin_test.as_mut()?.poll_transmit(now, rng))
    }

    fn begin(&mut self, depth: Depth, now: Monotonic) {
        if depth == Depth::Full {
            self.last_restart = Some(now);
            self.hairpin_test = None;
        }
        self.last_round = Some(now);
        self.mapped_before = self.mapped;
        let servers = self.servers.iter().map(|server| server.address).collect();
        self.round = Some(Round::new(depth, servers, now));
        self.next_round = Some((now + REFRESH, Depth::Refresh));
    }

    /// After a change of the network one answer is enough to go on with, in quiet times it takes two.
    fn learn_early(&mut self, round: &Round) {
        let Some((mapped, votes)) = self.elect(round) else { return };
        if round.depth() == Depth::Full || self.mapped.is_none() || votes >= 2 {
            self.adopt(mapped);
        }
    }

    fn conclude(&mut self, round: &Round, now: Monotonic) {
        for (index, server) in self.servers.iter_mut().enumerate() {
            let answer = round.answer_of(index);
            server.mapped = answer.map(|(binding, _)| binding.mapped);
            server.rtt_ms = answer.map(|(_, waited)| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        }
        let Some((mapped, _)) = self.elect(round) else {
            return self.conclude_silent(round, now);
        };
        self.silent_refreshes = 0;
        // The second address may have been sent to not long ago, and then the test shows too much: only a mapping
        // that is new has a filter that surely is.
        if self.mapped_before != Some(mapped) || self.filtering == Filtering::Unknown {
            self.filtering = round.filtering();
        }
        let told = verdict::nat_type(&round.sightings(), self.filtering, &self.local);
        if told != NatType::Unknown || round.depth() == Depth::Full {
            self.nat_type = told;
        }
        self.adopt(mapped);
        match round.depth() {
            Depth::Full => self.test_hairpin(now),
            // Another mapping may be that of another NAT.
            Depth::Refresh if self.mapped != self.mapped_before => self.next_round = Some((now, Depth::Full)),
            Depth::Refresh => {}
        }
    }

    fn conclude_silent(&mut self, round: &Round, now: Monotonic) {
        self.silent_refreshes = self.silent_refreshes.saturating_add(1);
        if round.depth() == Depth::Full || self.silent_refreshes >= MAX_SILENT_REFRESHES {
            self.forget();
        }
        if let Some((at, _)) = &mut self.next_round {
            *at = (*at).min(now + RETRY);
        }
    }

    fn forget(&mut self) {
        (self.mapped, self.nat_type) = (None, NatType::Unknown);
        (self.filtering, self.hairpin) = (Filtering::Unknown, None);
    }

    fn elect(&self, round: &Round) -> Option<(SocketAddr, usize)> {
        let answers = (0..self.servers.len()).filter_map(|index| Some(round.answer_of(index)?.0.mapped));
        verdict::elect(answers)
    }

    /// A symmetric NAT's port is different for everybody and changes all the time: there, only a new IP address is news.
    fn adopt(&mut self, mapped: SocketAddr) {
        let is_same_nat = self.mapped.is_some_and(|known| known.ip() == mapped.ip());
        if !(self.nat_type == NatType::Symmetric && is_same_nat) {
            self.mapped = Some(mapped);
        }
    }

    fn test_hairpin(&mut self, now: Monotonic) {
        self.hairpin = None;
        let mapped = self.mapped.filter(|mapped| !self.local.contains(&mapped.ip()));
        let test = mapped.filter(|_| self.nat_type != NatType::Symmetric);
        self.hairpin_test = test.map(|mapped| Transaction::new(mapped, AnswerFrom::SameAddress, mapped, now));
    }
}
