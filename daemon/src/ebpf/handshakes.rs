//! Handshake messages that crossed the underlay, as a stream.
//!
//! The programs recognise a message by its form alone, so a stranger can forge one and flood us with them: an event
//! is only a hint to look at WireGuard's own state. Repeats within a batch are merged, a batch is bounded, and there is
//! a pause between two batches, so a flood costs a bounded amount of work. A lone event is told at once, if it is awaited.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use wgmesh_core::kernel::{Direction, HandshakeMessage, HandshakeSeen};
use wgmesh_ebpf_common::{HandshakeEvent, INITIATION, RECEIVED, RESPONSE, RING_BYTES, SENT, UNANSWERED};

use crate::clock;

/// How long events are gathered after a batch was told: 200 wake-ups a second at most.
const PAUSE: Duration = Duration::from_millis(5);

/// How many different messages a batch tells of. What is beyond is dropped with the next ones to come: whoever
/// sees so many looks at all peers anyway.
const BATCH: usize = 64;

/// How many events the ring buffer holds, each with the kernel's 8 bytes before it: as many as are read in one go,
/// because a flood could fill it as fast as we empty it.
const RING_EVENTS: usize = RING_BYTES as usize / (size_of::<HandshakeEvent>() + 8);

/// The handshake messages that cross the underlay, from the moment of loading on.
pub struct Handshakes {
    ring: AsyncFd<RingBuf<MapData>>,
    not_before: Instant,
    /// Inner addresses to which packets go and from which nothing comes.
    unanswered: Vec<Ipv6Addr>,
}

impl Handshakes {
    /// Registers the ring buffer with the tokio runtime that calls.
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring buffer owns its descriptor, returns the same one always, and closes it only when it is
        // dropped, which `AsyncFd` does after it has deregistered.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(io::Error::from)?;
        Ok(Self { ring, not_before: Instant::now(), unanswered: Vec::new() })
    }

    /// Waits for messages that are awaited ([`super::EbpfTraffic::await_handshakes`]) and returns what was seen, each once, in
    /// the order of first sight. It is nothing where there is only word of unanswered packets. Cancel-safe.
    ///
    /// # Errors
    /// The reactor is gone: no further call will succeed.
    pub async fn next_batch(&mut self) -> io::Result<Vec<HandshakeSeen>> {
        loop {
            // Before the pause, which is over unless messages follow each other.
            drop(self.ring.readable().await?);
            if Instant::now() < self.not_before {
                sleep_until(self.not_before).await;
            }
            let mut guard = self.ring.readable_mut().await?;
            let (batch, emptied) = drain(guard.get_inner_mut(), &mut self.unanswered);
            if emptied {
                guard.clear_ready();
            }
            if !batch.is_empty() || !self.unanswered.is_empty() {
                self.not_before = Instant::now() + PAUSE;
                return Ok(batch);
            }
        }
    }

    /// Returns the messages that nobody has been woken for, as [`Self::next_batch`] does.
    pub fn waiting(&mut self) -> Vec<HandshakeSeen> {
        drain(self.ring.get_mut(), &mut self.unanswered).0
    }

    /// Whether there is word of unanswered packets that nobody has taken.
    pub const fn has_unanswered(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Returns the inner addresses that leave packets unanswered, as told beside the last batch. IPv4 ones are mapped.
    pub(super) fn take_unanswered(&mut self) -> Vec<Ipv6Addr> {
        std::mem::take(&mut self.unanswered)
    }
}

/// Reads what the ring buffer holds, and says whether that was all.
fn drain(ring: &mut RingBuf<MapData>, unanswered: &mut Vec<Ipv6Addr>) -> (Vec<HandshakeSeen>, bool) {
    let mut batch = Vec::new();
    for _ in 0..RING_EVENTS {
        let Some(item) = ring.next() else { return (batch, true) };
        if let Some(seen) = parse(&item) {
            merge(&mut batch, seen);
        }
        if let Some(address) = parse_unanswered(&item)
            && unanswered.len() < BATCH
            && !unanswered.contains(&address)
        {
            unanswered.push(address);
        }
    }
    (batch, false)
}

/// Adds a message to a batch, or the time of a repeated one.
fn merge(batch: &mut Vec<HandshakeSeen>, seen: HandshakeSeen) {
    let is_same = |known: &HandshakeSeen| HandshakeSeen { at: seen.at, ..*known } == seen;
    match batch.iter().position(is_same) {
        Some(known) => batch[known].at = seen.at,
        None if batch.len() < BATCH => batch.push(seen),
        None => {}
    }
}

/// Reads an event of packets that nothing comes back for; `None` where it is another.
fn parse_unanswered(item: &[u8]) -> Option<Ipv6Addr> {
    let event = HandshakeEvent::from_bytes(item.try_into().ok()?);
    (event.message == UNANSWERED).then(|| event.address.into())
}

/// Reads one event; `None` where it is not of the form that our programs write.
fn parse(item: &[u8]) -> Option<HandshakeSeen> {
    let event = HandshakeEvent::from_bytes(item.try_into().ok()?);
    let message = match event.message {
        INITIATION => HandshakeMessage::Initiation,
        RESPONSE => HandshakeMessage::Response,
        _ => return None,
    };
    let direction = match event.direction {
        RECEIVED => Direction::Received,
        SENT => Direction::Sent,
        _ => return None,
    };
    Some(HandshakeSeen { endpoint: endpoint(&event), message, direction, at: clock::at(event.at) })
}

/// Returns the other end; the scope is given where it belongs to the address, as WireGuard's own endpoints do.
fn endpoint(event: &HandshakeEvent) -> SocketAddr {
    let address = Ipv6Addr::from(event.address);
    match address.to_ipv4_mapped() {
        Some(address) => SocketAddr::new(address.into(), event.port),
        None => {
            let scope = if address.is_unicast_link_local() { event.interface } else { 0 };
            SocketAddrV6::new(address, event.port, 0, scope).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event of a response that went to port 51820 over interface 3.
    fn event(address: &str) -> [u8; 32] {
        let address: Ipv6Addr = address.parse().unwrap();
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&7_u64.to_ne_bytes());
        bytes[8..24].copy_from_slice(&address.octets());
        bytes[24..28].copy_from_slice(&3_u32.to_ne_bytes());
        bytes[28..30].copy_from_slice(&51820_u16.to_ne_bytes());
        bytes[30..].copy_from_slice(&[RESPONSE, SENT]);
        bytes
    }

    #[test]
    fn an_event_becomes_endpoint_message_and_direction() {
        let seen = parse(&event("::ffff:192.0.2.7")).unwrap();

        assert_eq!(seen.endpoint, "192.0.2.7:51820".parse().unwrap());
        assert_eq!((seen.message, seen.direction), (HandshakeMessage::Response, Direction::Sent));
        assert_eq!(seen.at, clock::at(7));
    }

    #[test]
    fn a_message_that_is_repeated_counts_once_with_its_last_time() {
        let mut batch = Vec::new();
        for (port, at) in [(1, 1), (2, 2), (1, 3)] {
            let seen = parse(&event("::ffff:192.0.2.7")).unwrap();
            let endpoint = SocketAddr::new(seen.endpoint.ip(), port);
            merge(&mut batch, HandshakeSeen { endpoint, at: clock::at(at), ..seen });
        }
        let times: Vec<_> = batch.iter().map(|seen| (seen.endpoint.port(), seen.at)).collect();
        assert_eq!(times, [(1, clock::at(3)), (2, clock::at(2))]);
    }

    #[test]
    fn a_link_local_endpoint_carries_its_interface_and_a_global_one_none() {
        let local = parse(&event("fe80::1")).unwrap();
        let global = parse(&event("2001:db8::1")).unwrap();

        assert_eq!(local.endpoint, "[fe80::1%3]:51820".parse().unwrap());
        assert_eq!(global.endpoint, "[2001:db8::1]:51820".parse().unwrap());
    }

    #[test]
    fn word_of_unanswered_packets_names_the_inner_address() {
        let mut silence = event("fd00::7");
        silence[30] = UNANSWERED;
        assert_eq!(parse_unanswered(&silence), Some("fd00::7".parse().unwrap()));
        assert_eq!(parse(&silence), None);
    }

    #[test]
    fn what_our_programs_never_write_is_skipped() {
        let good = event("fe80::1");
        let (mut other_message, mut other_direction) = (good, good);
        other_message[30] = 4;
        other_direction[31] = 2;

        assert_eq!(parse(&other_message), None);
        assert_eq!(parse(&other_direction), None);
        assert_eq!(parse(&good[1..]), None);
        assert_eq!(parse_unanswered(&good), None);
        assert_eq!(parse_unanswered(&other_direction[1..]), None);
    }
}
