//! One round of questions to the servers of one IP version.
//!
//! A *refresh* asks all servers at once. A *full* round also finds out what the NAT filters, for which the order
//! matters: a NAT lets in whom it has sent to, so the server's second address must not have been sent to before.
//! First one server is found that answers; if it has a second IP address, it is asked to answer from there (RFC 5780
//! §4.4); only then are the other servers and that second address asked what they see (§4.3).

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng;

use super::message::{AnswerFrom, Binding, Id};
use super::transaction::{Outcome, Transaction};
use super::verdict::{Filtering, Sighting};
use crate::time::Monotonic;

/// How long a round lasts at most.
pub(super) const BUDGET: Duration = Duration::from_secs(3);

/// After how long without an answer the next server is tried. Longer than nearly all round trips, and short enough
/// that finding, filtering and comparing fit [`BUDGET`].
const NEXT_SERVER: Duration = Duration::from_millis(300);

/// How much a round finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Mapped addresses only.
    Refresh,
    /// The NAT's filtering too.
    Full,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To learn what this configured server, by its index, sees.
    Server(usize),
    /// To learn what a server's second address sees.
    SecondAddress,
    /// To be answered from another IP address.
    FilterByAddress,
    /// To be answered from another port.
    FilterByPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Finding { next_at: Monotonic },
    Filtering,
    Comparing,
}

/// A round under way.
#[derive(Clone, Debug)]
pub(super) struct Round {
    depth: Depth,
    servers: Vec<SocketAddr>,
    started: Monotonic,
    phase: Phase,
    requests: Vec<(Purpose, Transaction)>,
}

impl Round {
    /// Begins a round with at least one server.
    pub(super) fn new(depth: Depth, servers: Vec<SocketAddr>, now: Monotonic) -> Self {
        let phase = match depth {
            Depth::Refresh => Phase::Comparing,
            Depth::Full => Phase::Finding { next_at: now },
        };
        let mut round = Self { depth, servers, started: now, phase, requests: Vec::new() };
        if depth == Depth::Refresh {
            round.ask_others(now);
        }
        round
    }

    pub(super) fn depth(&self) -> Depth {
        self.depth
    }

    /// Returns the request with that id.
    pub(super) fn request_mut(&mut self, id: &Id) -> Option<&mut Transaction> {
        self.requests.iter_mut().map(|(_, request)| request).find(|request| request.is(id))
    }

    /// Goes on as far as answers and time allow, and returns whether the round is over.
    pub(super) fn advance(&mut self, now: Monotonic) -> bool {
        if now >= self.started + BUDGET {
            return true;
        }
        for (_, request) in &mut self.requests {
            request.advance(now);
        }
        if let Phase::Finding { next_at } = self.phase {
            self.advance_finding(next_at, now);
        }
        if self.phase == Phase::Filtering && self.is_filtering_settled() {
            self.compare(now);
        }
        // Also a round of no answers: then all servers were asked, and all are settled.
        let all_asked = self.phase == Phase::Comparing || self.asked_servers() == self.servers.len();
        all_asked
            && self.phase != Phase::Filtering
            && self.requests.iter().all(|(_, request)| request.is_settled())
    }

    /// Returns the next moment at which [`Self::advance`] or [`Self::poll_transmit`] has something to do.
    pub(super) fn poll_timeout(&self) -> Monotonic {
        let next_server = match self.phase {
            Phase::Finding { next_at } if self.asked_servers() < self.servers.len() => Some(next_at),
            Phase::Finding { .. } | Phase::Filtering | Phase::Comparing => None,
        };
        let requests = self.requests.iter().filter_map(|(_, request)| request.poll_timeout());
        requests.chain(next_server).fold(self.started + BUDGET, Ord::min)
    }

    /// Returns a request that is due.
    pub(super) fn poll_transmit(
        &mut self,
        now: Monotonic,
        rng: &mut impl Rng,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        self.requests.iter_mut().find_map(|(_, request)| request.poll_transmit(now, rng))
    }

    /// Returns what the configured server of that index answered, and after how long.
    pub(super) fn answer_of(&self, server: usize) -> Option<(Binding, Duration)> {
        let (_, request) = self.requests.iter().find(|(purpose, _)| *purpose == Purpose::Server(server))?;
        request.answer()
    }

    /// Returns where we were seen, by whom: configured servers in their order, then a second address.
    pub(super) fn sightings(&self) -> Vec<Sighting> {
        let seen = |(purpose, request): &(Purpose, Transaction)| {
            let (binding, _) = request.answer()?;
            let order = match purpose {
                Purpose::Server(index) => *index,
                Purpose::SecondAddress => self.servers.len(),
                Purpose::FilterByAddress | Purpose::FilterByPort => return None,
            };
            Some((order, Sighting { destination: request.to(), mapped: binding.mapped }))
        };
        let mut all: Vec<_> = self.requests.iter().filter_map(seen).collect();
        all.sort_by_key(|(order, _)| *order);
        all.into_iter().map(|(_, sighting)| sighting).collect()
    }

    /// Returns what the tests say of the NAT's filtering. A test that was cut short says nothing.
    pub(super) fn filtering(&self) -> Filtering {
        let test = |purpose| self.request_for(purpose);
        let (Some(by_address), Some(by_port)) = (test(Purpose::FilterByAddress), test(Purpose::FilterByPort))
        else {
            return Filtering::Unknown;
        };
        match (by_address.outcome, by_port.outcome) {
            (Outcome::Answered(..), _) => Filtering::EndpointIndependent,
            (Outcome::Silent, Outcome::Answered(..)) => Filtering::AddressDependent,
            (Outcome::Silent, Outcome::Silent) => Filtering::AddressAndPortDependent,
            (Outcome::Waiting | Outcome::Refused, _) | (_, Outcome::Waiting | Outcome::Refused) => {
                Filtering::Unknown
            }
        }
    }

    fn advance_finding(&mut self, next_at: Monotonic, now: Monotonic) {
        let found = (0..self.servers.len()).find_map(|index| Some((index, self.answer_of(index)?.0)));
        if let Some((index, binding)) = found {
            match binding.other.filter(|other| self.is_untouched(*other, index)) {
                Some(other) => self.filter(self.servers[index], other, now),
                None => self.compare(now),
            }
        } else if now >= next_at && self.asked_servers() < self.servers.len() {
            self.ask(self.asked_servers(), now);
            self.phase = Phase::Finding { next_at: now + NEXT_SERVER };
        }
    }

    /// Whether the second address really is another, to which nothing was sent in this round.
    fn is_untouched(&self, other: SocketAddr, server: usize) -> bool {
        other.is_ipv4() == self.servers[server].is_ipv4()
            && other.port() != self.servers[server].port()
            && self.requests.iter().all(|(_, request)| request.to().ip() != other.ip())
    }

    fn filter(&mut self, server: SocketAddr, other: SocketAddr, now: Monotonic) {
        let other_port = SocketAddr::new(server.ip(), other.port());
        let by_address = Transaction::new(server, AnswerFrom::OtherAddress, other, now);
        let by_port = Transaction::new(server, AnswerFrom::OtherPort, other_port, now);
        self.requests.push((Purpose::FilterByAddress, by_address));
        self.requests.push((Purpose::FilterByPort, by_port));
        self.phase = Phase::Filtering;
    }

    fn is_filtering_settled(&self) -> bool {
        let test = |purpose| self.request_for(purpose);
        test(Purpose::FilterByAddress).is_some_and(|request| request.answer().is_some())
            || [Purpose::FilterByAddress, Purpose::FilterByPort]
                .into_iter()
                .all(|purpose| test(purpose).is_some_and(|request| request.is_settled()))
    }

    fn compare(&mut self, now: Monotonic) {
        self.phase = Phase::Comparing;
        let others = (0..self.servers.len()).filter_map(|index| self.answer_of(index)?.0.other);
        let second =
            others.into_iter().find(|other| self.servers.iter().all(|server| server.ip() != other.ip()));
        self.ask_others(now);
        if let Some(second) = second.filter(|second| second.is_ipv4() == self.servers[0].is_ipv4()) {
            self.requests.push((Purpose::SecondAddress, Transaction::ask(second, now)));
        }
    }

    fn ask_others(&mut self, now: Monotonic) {
        for server in self.asked_servers()..self.servers.len() {
            self.ask(server, now);
        }
    }

    fn ask(&mut self, server: usize, now: Monotonic) {
        self.requests.push((Purpose::Server(server), Transaction::ask(self.servers[server], now)));
    }

    /// Servers are asked in their order, so this is also the next one's index.
    fn asked_servers(&self) -> usize {
        self.requests.iter().filter(|(purpose, _)| matches!(purpose, Purpose::Server(_))).count()
    }

    fn request_for(&self, wanted: Purpose) -> Option<&Transaction> {
        self.requests.iter().find(|(purpose, _)| *purpose == wanted).map(|(_, request)| request)
    }
}
