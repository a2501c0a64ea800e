//! One request, repeated until it is answered or given up (RFC 8489 §6.2.1).

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng;

use super::message::{self, AnswerFrom, Binding, Id};
use crate::time::Monotonic;

/// When a request is sent, counted from the first time: half of the standard's pace, because a round has to fit its
/// 3 s and an answer to any of the three counts.
const SENDINGS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(750)];

/// How long after the first sending nothing is waited for any more. Three phases of a round fit its 3 s.
const PATIENCE: Duration = Duration::from_millis(1250);

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Still to be told.
    Waiting,
    /// Not answered in time. A late answer still counts.
    Silent,
    /// Answered, so long after it was first sent.
    Answered(Binding, Duration),
    /// The server does not do what it was asked for.
    Refused,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    to: SocketAddr,
    answer_from: AnswerFrom,
    /// The one address from which an answer is taken.
    answerer: SocketAddr,
    /// Drawn with the first sending.
    id: Option<Id>,
    begun: Monotonic,
    sent: usize,
    pub(super) outcome: Outcome,
}

impl Transaction {
    /// Prepares a request that `answerer` shall answer.
    pub(super) fn new(to: SocketAddr, answer_from: AnswerFrom, answerer: SocketAddr, now: Monotonic) -> Self {
        Self { to, answer_from, answerer, id: None, begun: now, sent: 0, outcome: Outcome::Waiting }
    }

    /// Prepares a plain request.
    pub(super) fn ask(server: SocketAddr, now: Monotonic) -> Self {
        Self::new(server, AnswerFrom::SameAddress, server, now)
    }

    pub(super) fn to(&self) -> SocketAddr {
        self.to
    }

    /// Whether this is the request with that id.
    pub(super) fn is(&self, id: &Id) -> bool {
        self.id.as_ref() == Some(id)
    }

    /// Whether an answer from there is to be believed.
    pub(super) fn is_answerer(&self, from: SocketAddr) -> bool {
        (self.answerer.ip(), self.answerer.port()) == (from.ip(), from.port())
    }

    /// Gives up where it is time to.
    pub(super) fn advance(&mut self, now: Monotonic) {
        if self.outcome == Outcome::Waiting && now >= self.begun + PATIENCE {
            self.outcome = Outcome::Silent;
        }
    }

    /// Takes the first answer; repeated ones change nothing.
    pub(super) fn take(&mut self, answer: Option<Binding>, now: Monotonic) {
        if matches!(self.outcome, Outcome::Waiting | Outcome::Silent) {
            let waited = now.since(self.begun);
            self.outcome = answer.map_or(Outcome::Refused, |binding| Outcome::Answered(binding, waited));
        }
    }

    /// Returns what was answered.
    pub(super) fn answer(&self) -> Option<(Binding, Duration)> {
        match self.outcome {
            Outcome::Answered(binding, waited) => Some((binding, waited)),
            Outcome::Waiting | Outcome::Silent | Outcome::Refused => None,
        }
    }

    /// Whether nothing more is to be waited for.
    pub(super) fn is_settled(&self) -> bool {
        self.outcome != Outcome::Waiting
    }

    /// Returns the next moment at which it sends or gives up.
    pub(super) fn poll_timeout(&self) -> Option<Monotonic> {
        (self.outcome == Outcome::Waiting).then(|| self.begun + *SENDINGS.get(self.sent).unwrap_or(&PATIENCE))
    }

    /// Returns the request if it is time to send it.
    pub(super) fn poll_transmit(
        &mut self,
        now: Monotonic,
        rng: &mut impl Rng,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let due = self.begun + *SENDINGS.get(self.sent)?;
        if self.outcome != Outcome::Waiting || now < due {
            return None;
        }
        if self.sent == 0 {
            // The pace counts from when it really went out.
            self.begun = now;
        }
        self.sent += 1;
        let id = *self.id.get_or_insert_with(|| {
            let mut id = Id::default();
            rng.fill_bytes(&mut id);
            id
        });
        Some((self.to, message::request(id, self.answer_from)))
    }
}
