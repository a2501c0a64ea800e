//! What is said once both sides have proved who they are.

use std::collections::BTreeSet;

use super::frame::Frame;
use super::session::Session;
use super::{
    Context, Exchange, Forward, MAX_FORWARD_BYTES, MAX_FRAME_BYTES, Misbehaviour, Output, SessionId,
};
use crate::key::PublicKey;
use crate::record::SignedRecord;
use crate::standing::Deed;
use crate::sync::{self, Answer, Entry, Message, Records, Summary, Told};
use crate::time::Monotonic;

impl Exchange {
    pub(super) fn on_live_frame<R: Records>(
        &mut self,
        id: SessionId,
        bytes: &[u8],
        context: &Context<'_, R>,
    ) {
        let now = context.now;
        let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) else { return };
        let key = live.key;
        if !live.frames.take(now) {
            self.shut_out(key, Misbehaviour::Flood, now);
            return;
        }
        let outcome = match Frame::decode(bytes) {
            Some(frame) => self.on_known_frame(id, key, frame, context),
            None => Err(Misbehaviour::Malformed),
        };
        if let Err(reason) = outcome {
            self.strike(id, reason, now);
        }
        self.collapse(id, key, context.own.record().key, now);
    }

    fn on_known_frame<R: Records>(
        &mut self,
        id: SessionId,
        key: PublicKey,
        frame: Frame,
        context: &Context<'_, R>,
    ) -> Result<(), Misbehaviour> {
        match frame {
            Frame::Hello { .. } | Frame::Proof(_) => return Err(Misbehaviour::OutOfPlace),
            Frame::Ping { number, summary } => self.on_ping(id, number, summary, context),
            Frame::Pong { number } => {
                let next = self.next_ping(context.now);
                let live = self.sessions.get_mut(&id).and_then(Session::live_mut);
                if live.is_some_and(|live| live.on_pong(number, next, context.now)) {
                    self.outputs.push_back(Output::Deed { key, deed: Deed::Served });
                }
            }
            Frame::Forward(forward) => return self.on_forward(key, forward, context.own.record().key),
            Frame::Sync(Message::Summary(summary)) => self.on_summary(id, summary, context),
            Frame::Sync(Message::Records(records)) => {
                let outcome = self.on_records(id, &records, context);
                self.ask_next(id, context.records, context.now);
                return outcome;
            }
            Frame::Sync(message) => self.on_sync(id, message, context),
        }
        Ok(())
    }

    fn on_ping<R: Records>(
        &mut self,
        id: SessionId,
        number: u64,
        summary: Summary,
        context: &Context<'_, R>,
    ) {
        self.send(id, &Frame::Pong { number });
        // Whoever asks is alive: one heartbeat serves both ends.
        let next = self.next_ping(context.now);
        if let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) {
            live.rest_until(next);
        }
        self.on_summary(id, summary, context);
    }

    /// Takes what is for this node, and what its author asks this node to carry.
    fn on_forward(&mut self, by: PublicKey, forward: Forward, own: PublicKey) -> Result<(), Misbehaviour> {
        let may = forward.body.len() <= MAX_FORWARD_BYTES
            && forward.from != own
            && forward.from != forward.to
            && (forward.to == own || forward.from == by);
        if !may {
            return Err(Misbehaviour::Forward);
        }
        self.outputs.push_back(Output::Forwarded { by, forward });
        Ok(())
    }

    fn on_summary<R: Records>(&mut self, id: SessionId, summary: Summary, context: &Context<'_, R>) {
        let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) else { return };
        if !live.sync.may_sync(context.now) {
            return;
        }
        let Answer { messages, wanted: _ } =
            sync::answer(&Message::Summary(summary), context.records, MAX_FRAME_BYTES);
        if !messages.is_empty() {
            live.sync.on_difference(context.now);
        }
        for message in messages {
            self.send(id, &Frame::Sync(message));
        }
    }

    fn on_sync<R: Records>(&mut self, id: SessionId, mut message: Message, context: &Context<'_, R>) {
        if let Message::Ask(keys) = &mut message {
            keys.truncate(self.sharing.max);
        }
        let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) else { return };
        let Answer { messages, wanted } = sync::answer(&message, context.records, MAX_FRAME_BYTES);
        if matches!(message, Message::Ask(_)) && !messages.is_empty() {
            live.sync.on_progress();
        }
        live.want(wanted);
        for message in messages {
            self.send(id, &Frame::Sync(message));
        }
        self.ask_next(id, context.records, context.now);
    }

    /// Goes on asking for what the other side has offered, but not for what another session is about to bring.
    pub(super) fn ask_next<R: Records>(&mut self, id: SessionId, records: &R, now: Monotonic) {
        let elsewhere = self.sessions.iter().filter(|&(&other, _)| other != id);
        let elsewhere = elsewhere.filter_map(|(_, session)| session.live());
        let in_flight: BTreeSet<_> = elsewhere.flat_map(|live| live.in_flight(now)).copied().collect();
        let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) else { return };
        if let Some(ask) = live.ask_next(&in_flight, records, now) {
            self.send(id, &ask);
        }
    }

    /// Takes records that are news. Unasked ones beyond what an honest node sends are left to the next
    /// synchronisation.
    fn on_records<R: Records>(
        &mut self,
        id: SessionId,
        records: &[Told],
        context: &Context<'_, R>,
    ) -> Result<(), Misbehaviour> {
        let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) else { return Ok(()) };
        let mut answered = false;
        for told in records.iter().take(sync::MAX_ASKED) {
            let (key, sequence) = SignedRecord::claimed(&told.record).map_err(Misbehaviour::Record)?;
            let asked = live.was_asked(key);
            answered |= asked;
            let is_wanted = context.records.wants(Entry { key, sequence });
            // Before the signature is: a partner must not have this node verify as many as it likes.
            if is_wanted && (asked || live.unasked.take(context.now)) {
                let record = SignedRecord::verify(&told.record, context.keys.network_id())
                    .map_err(Misbehaviour::Record)?;
                let direct = key == live.key;
                let heard_at = sync::heard_at(told.silence_s, context.now);
                self.outputs.push_back(Output::Record { record, from: live.key, direct, heard_at });
            }
        }
        if answered {
            live.on_answered();
        }
        Ok(())
    }

    fn strike(&mut self, id: SessionId, reason: Misbehaviour, now: Monotonic) {
        let Some(live) = self.sessions.get_mut(&id).and_then(Session::live_mut) else { return };
        let key = live.key;
        tracing::debug!(peer = %key.short(), %reason, "bad input on a session");
        let forgives = live.forgives();
        if matches!(reason, Misbehaviour::Record(_)) {
            self.outputs.push_back(Output::Deed { key, deed: Deed::BadRecord });
        }
        if !forgives {
            self.shut_out(key, reason, now);
        }
    }
}
