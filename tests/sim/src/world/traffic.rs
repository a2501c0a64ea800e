//! What users send through the mesh: pairs of hosts that talk all the time, and how long either hears nothing.

use std::net::SocketAddr;
use std::time::Duration;

use wgmesh_core::time::Monotonic;

use super::{Happening, Violation, World};
use crate::kernel::Packet;
use crate::network::HostId;

/// How often each side of a talk sends.
const INTERVAL: Duration = Duration::from_millis(100);

/// What it usually sends: a ping with IPv4's header.
const BYTES: u64 = 84;

/// One direction of a talk.
#[derive(Debug)]
pub(super) struct Talk {
    from: HostId,
    to: HostId,
    bytes: u64,
    heard: u64,
    heard_at: Monotonic,
    longest_silence: Duration,
    /// Where it only answers what it hears: how much that was when it last did.
    answered: Option<u64>,
}

impl World {
    /// Has two hosts send to each other all the time from now on, wherever their kernels lead that.
    pub fn talk(&mut self, one: HostId, other: HostId) {
        self.talk_in(one, other, BYTES);
    }

    /// Has two hosts send so many bytes at a time to each other; what is longer than the route's MTU goes in pieces.
    pub fn talk_in(&mut self, one: HostId, other: HostId, bytes: u64) {
        for (from, to) in [(one, other), (other, one)] {
            self.begin_talk(from, to, bytes, None);
        }
    }

    /// Has one host send so many bytes at a time to another, which answers as much as it hears, as a ping has it.
    pub fn ping_in(&mut self, one: HostId, other: HostId, bytes: u64) {
        self.begin_talk(one, other, bytes, None);
        self.begin_talk(other, one, bytes, Some(0));
    }

    fn begin_talk(&mut self, from: HostId, to: HostId, bytes: u64, answered: Option<u64>) {
        let heard_at = self.now;
        let talk = Talk { from, to, bytes, heard: 0, heard_at, longest_silence: Duration::ZERO, answered };
        self.talks.push(talk);
        self.schedule.push(self.now, Happening::Talk(self.talks.len() - 1));
    }

    /// Returns the longest time for which any talking host has heard nothing since the last call.
    pub fn take_longest_silence(&mut self) -> Duration {
        let now = self.now;
        let silences = self.talks.iter_mut().map(|talk| {
            let silence = talk.longest_silence.max(now.since(talk.heard_at));
            (talk.longest_silence, talk.heard_at) = (Duration::ZERO, now);
            silence
        });
        silences.max().unwrap_or_default()
    }

    /// Returns a host's IPv4 address inside the mesh, with no port of note.
    fn inner_address(&self, id: HostId) -> Option<SocketAddr> {
        let own = self.host(id).kernel.addresses().find(|net| net.addr().is_ipv4())?;
        Some(SocketAddr::new(own.addr(), 0))
    }

    pub(super) fn on_talk(&mut self, number: usize) -> Result<(), Violation> {
        let Talk { from, to, bytes, .. } = self.talks[number];
        let [source, destination] = [from, to].map(|id| self.inner_address(id));
        let heard = source.map_or(0, |source| self.host(to).kernel.heard_from(source.ip()));
        let talk = &mut self.talks[number];
        if heard != talk.heard {
            talk.longest_silence = talk.longest_silence.max(self.now.since(talk.heard_at));
            (talk.heard, talk.heard_at) = (heard, self.now);
        }
        self.schedule.push(self.now + INTERVAL, Happening::Talk(number));
        let asked = destination.map_or(0, |asker| self.host(from).kernel.heard_from(asker.ip()));
        let answered = &mut self.talks[number].answered;
        if answered.is_some() && answered.replace(asked) == Some(asked) {
            return Ok(());
        }
        self.act(from, |host, now| {
            let clocks = host.now(now);
            if let (Some(from), Some(to)) = (source, destination) {
                host.kernel.send_to(&Packet { from, to, datagram: None }, bytes, clocks);
            }
            host.handle_timeout(now);
        })
    }
}
