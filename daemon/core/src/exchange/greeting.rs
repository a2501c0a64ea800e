//! How a stream becomes a session: hello, proof, room, and the choice between two sessions with one node.

use minicbor::bytes::ByteVec;

use super::event::{CloseReason, Output, SessionId};
use super::frame::Frame;
use super::session::{Claimed, Live, Phase, Pulse, Session};
use super::{Context, Exchange, FAIR_TIME, MAX_DUPLICATES, MAX_FROM_ONE_NETWORK, MAX_GREETING, Network};
use crate::key::PublicKey;
use crate::message::Token;
use crate::record::SignedRecord;
use crate::standing::Book;
use crate::sync::Records;
use crate::time::Monotonic;

impl Exchange {
    pub(super) fn on_opened<R: Records>(
        &mut self,
        id: SessionId,
        session: Session,
        context: &Context<'_, R>,
    ) {
        let network = Network::of(session.remote.ip());
        let greeting = self.sessions.values().filter(|s| s.dialed.is_none() && s.live().is_none());
        let from_there = greeting.clone().filter(|s| Network::of(s.remote.ip()) == network).count();
        if let Some(target) = session.dialed {
            self.targets.on_opened(target.address, id);
        } else if greeting.count() >= MAX_GREETING || from_there >= MAX_FROM_ONE_NETWORK {
            self.outputs.push_back(Output::Close { id, reason: CloseReason::Full });
            return;
        }
        self.sessions.insert(id, session);
        let record: ByteVec = context.own.as_bytes().to_vec().into();
        self.send(id, &Frame::Hello { record, run: self.run });
    }

    /// Takes in a frame of one who has yet to prove who it is.
    pub(super) fn greet<R: Records>(
        &mut self,
        id: SessionId,
        claimed: Option<Claimed>,
        bytes: &[u8],
        context: &Context<'_, R>,
    ) -> Result<(), CloseReason> {
        let session = self.sessions.get_mut(&id).expect("the caller has found it");
        match (claimed, Frame::decode(bytes)) {
            (None, Some(Frame::Hello { record, run })) => {
                let (claimed, proof) = Claimed::check(session, &record, run, context)?;
                let key = claimed.record.record().key;
                if context.book.is_shut_out(key, context.wall) {
                    return Err(CloseReason::ShutOut);
                }
                session.phase = Phase::Greeting(Some(claimed));
                self.send(id, &proof);
                Ok(())
            }
            (Some(claimed), Some(Frame::Proof(proof))) => {
                let (record, run) = claimed.prove(&proof)?;
                self.on_proved(id, record, run, context)
            }
            (_, _) => Err(CloseReason::NotGreeted),
        }
    }

    fn on_proved<R: Records>(
        &mut self,
        id: SessionId,
        record: SignedRecord,
        run: Token,
        context: &Context<'_, R>,
    ) -> Result<(), CloseReason> {
        let (key, now) = (record.record().key, context.now);
        let others = self.sessions_with(key);
        match others.len() {
            0 => self.make_room(context.book, now).inspect_err(|_| {
                // Who it is it has proved: it gets to be known, and finds others through the mesh.
                self.outputs.push_back(Output::Record {
                    record: record.clone(),
                    from: key,
                    direct: true,
                    heard_at: now,
                });
            })?,
            MAX_DUPLICATES.. => return Err(CloseReason::Duplicate),
            _ => {}
        }
        let next_ping = self.next_ping(now);
        let session = self.sessions.get_mut(&id).expect("it was just proved");
        session.phase = Phase::Live(Live::new(key, run, next_ping, self.sharing, now));
        let (remote, dialed) = (session.remote, session.dialed);
        if let Some(target) = dialed {
            self.targets.on_met(target.address, key, now);
            self.outputs.push_back(Output::Met { address: target.address, key });
        }
        if others.is_empty() {
            self.outputs.push_back(Output::Up { key, remote });
        }
        self.outputs.push_back(Output::Record { record, from: key, direct: true, heard_at: now });
        self.settle(id, &others, run, context);
        if dialed.is_some() {
            self.ping(id, context.records, now);
        }
        Ok(())
    }

    /// Decides between a new session and `others` with the same node.
    fn settle<R: Records>(
        &mut self,
        id: SessionId,
        others: &[SessionId],
        run: Token,
        context: &Context<'_, R>,
    ) {
        let own = context.own.record().key;
        let rank = self.sessions.get(&id).map(|session| session.rank(own));
        for &other in others {
            let Some(session) = self.sessions.get(&other) else { continue };
            let Some(live) = session.live() else { continue };
            let is_resting = matches!(live.pulse, Pulse::Resting(_));
            if live.run != run || rank < Some(session.rank(own)) {
                self.close(other, CloseReason::Duplicate, context.now);
            } else if is_resting {
                // Its answer will close the new one, its silence the old one.
                self.ping(other, context.records, context.now);
            }
        }
    }

    /// Closes the worse sessions with a node, after `id` was heard from.
    pub(super) fn collapse(&mut self, id: SessionId, key: PublicKey, own: PublicKey, now: Monotonic) {
        let all = self.sessions_with(key);
        if all.len() < 2 {
            return;
        }
        let best = all.iter().copied().min_by_key(|id| self.sessions[id].rank(own));
        if best == Some(id) {
            for other in all.into_iter().filter(|&other| other != id) {
                self.close(other, CloseReason::Duplicate, now);
            }
        }
    }

    /// Makes room for one more live session, if need be and if it can.
    fn make_room(&mut self, book: &Book, now: Monotonic) -> Result<(), CloseReason> {
        let live = || self.sessions.iter().filter_map(|(&id, session)| Some((id, session, session.live()?)));
        if live().count() < self.limits.max {
            return Ok(());
        }
        let network = |session: &Session| Network::of(session.remote.ip());
        let crowd =
            |session: &Session| live().filter(|(_, other, _)| network(other) == network(session)).count();
        let (worst, _, _) = live()
            .filter(|(_, session, live)| session.dialed.is_none() && now.since(live.since) >= FAIR_TIME)
            .min_by_key(|(_, session, live)| {
                (book.reputation(live.key).class(), std::cmp::Reverse(crowd(session)), live.since)
            })
            .ok_or(CloseReason::Full)?;
        self.close(worst, CloseReason::Full, now);
        Ok(())
    }
}
