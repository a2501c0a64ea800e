//! The plain structs that the eBPF programs and the daemon share, and the names both know them by.
//!
//! Every struct is `repr(C)`, has no padding and any bit pattern is a valid value, because the kernel copies it
//! byte for byte between the two sides. Sizes and alignments are asserted here, so that a change on one side only
//! cannot build. Pinned maps outlive the daemon: whoever changes a struct that a pinned map holds changes its size
//! too, and the loader then makes the map anew.
#![cfg_attr(not(test), no_std)]

mod meter;

pub use meter::Meter;

/// How many single addresses, and how many networks of each family, the maps hold: two addresses for each of 4,096
/// peers, and as much again. More are not counted.
pub const MAX_PREFIXES: u32 = 16_384;

/// The ring buffer's size in bytes: a multiple of the page size and room for some 1,600 events.
pub const RING_BYTES: u32 = 64 * 1024;

/// [`HandshakeEvent::message`] where no message was seen: packets have gone to the inner address for a second, and
/// nothing has come back.
pub const UNANSWERED: u8 = 0;

/// How many flows are relayed in the kernel: two for each pair. Packets of more are left to the daemon.
pub const MAX_RELAYED: u32 = 4_096;

/// How the first two bytes of a sealed probe between two peers look: the envelope's version and kind
/// (`wgmesh_core::seal`). A relay carries those beside WireGuard's own messages, and nothing else.
pub const PROBE: [u8; 2] = [1, 3];

/// WireGuard's message types that the programs look for (whitepaper §5.4).
pub const INITIATION: u8 = 1;
/// The answer to [`INITIATION`].
pub const RESPONSE: u8 = 2;

/// The message that carries data.
pub const DATA: u8 = 4;

/// [`HandshakeEvent::direction`] of a message that came in.
pub const RECEIVED: u8 = 0;
/// [`HandshakeEvent::direction`] of a message that went out.
pub const SENT: u8 = 1;

/// A peer's WireGuard public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PeerKey(pub [u8; 32]);

/// What went one way between this host and a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Bytes of the inner packets, their IP headers included.
    pub bytes: u64,
    /// Packets, those inside an aggregate counted one by one.
    pub packets: u64,
    /// Nanoseconds on the boot clock at the last packet; zero means never.
    pub last_seen: u64,
}

/// The counters of one address on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// From the peer.
    pub received: Flow,
    /// To the peer.
    pub sent: Flow,
    /// When this processor last wrote into, and last read from, what all of them know ([`Silence`]).
    pub noted: u64,
    /// See `noted`.
    pub checked: u64,
}

/// What all processors know of the two directions of one address, in nanoseconds on the boot clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Silence {
    /// The last packet that came in.
    pub heard: u64,
    /// The first packet that went out since, and the last.
    pub begun: u64,
    /// See `begun`.
    pub last: u64,
    /// When an event was last told.
    pub told: u64,
}

/// Which packets are relayed as one flow, in words as they stand in the packet: a program copies a word in one
/// instruction where it takes four for its bytes. Addresses are IPv6 ones, IPv4 mapped (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct RelayKey {
    /// Who sent the packet.
    pub source: [u32; 4],
    /// To which of our addresses.
    pub destination: [u32; 4],
    /// The sender's port and ours.
    pub ports: u32,
}

/// Where the packets of a flow go, and how many went there; addresses and ports as in [`RelayKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RelayHop {
    /// IP packets that were sent on.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// Packets that were dropped because a limit was reached.
    pub limited: u64,
    /// How much of the flow passes.
    pub meter: Meter,
    /// The address of ours from which they go, of the same IP version as the flow's own.
    pub source: [u32; 4],
    /// Where they go.
    pub destination: [u32; 4],
    /// The port of ours and the receiver's.
    pub ports: u32,
    /// The interface that leads there.
    pub interface: u32,
    /// The longest IP packet that goes there in one piece.
    pub longest: u32,
    /// Always zero: it keeps the struct without padding.
    pub reserved: u32,
}

/// A WireGuard handshake message that crossed the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HandshakeEvent {
    /// Nanoseconds on the boot clock.
    pub at: u64,
    /// The other end's address; IPv4 as an IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2).
    pub address: [u8; 16],
    /// The interface it crossed, which is the scope of a link-local address.
    pub interface: u32,
    /// The other end's UDP port.
    pub port: u16,
    /// [`INITIATION`] or [`RESPONSE`]; or [`UNANSWERED`].
    pub message: u8,
    /// [`RECEIVED`] or [`SENT`].
    pub direction: u8,
}

impl HandshakeEvent {
    /// Reads an event as a program wrote it.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let [t0, t1, t2, t3, t4, t5, t6, t7, address @ .., i0, i1, i2, i3, p0, p1, message, direction] =
            *bytes;
        Self {
            at: u64::from_ne_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            address,
            interface: u32::from_ne_bytes([i0, i1, i2, i3]),
            port: u16::from_ne_bytes([p0, p1]),
            message,
            direction,
        }
    }
}

const _: () = {
    assert!(size_of::<PeerKey>() == 32 && align_of::<PeerKey>() == 1);
    assert!(size_of::<Flow>() == 24 && align_of::<Flow>() == 8);
    assert!(size_of::<Counters>() == 64 && align_of::<Counters>() == 8);
    assert!(size_of::<Silence>() == 32 && align_of::<Silence>() == 8);
    assert!(size_of::<RelayKey>() == 36 && align_of::<RelayKey>() == 4);
    assert!(size_of::<Meter>() == 16 && align_of::<Meter>() == 8);
    assert!(size_of::<RelayHop>() == 88 && align_of::<RelayHop>() == 8);
    assert!(size_of::<HandshakeEvent>() == 32 && align_of::<HandshakeEvent>() == 8);
};

#[cfg(feature = "user")]
mod user {
    use super::{Counters, Meter, PeerKey, RelayHop, RelayKey};

    // SAFETY: `repr(transparent)` over bytes; every bit pattern is valid.
    unsafe impl aya::Pod for PeerKey {}
    // SAFETY: `repr(C)`, integers only, no padding (asserted above); every bit pattern is valid.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: `repr(C)`, integers only, no padding (asserted above); every bit pattern is valid.
    unsafe impl aya::Pod for RelayKey {}
    // SAFETY: `repr(C)`, integers only, no padding (asserted above); every bit pattern is valid.
    unsafe impl aya::Pod for RelayHop {}
    // SAFETY: `repr(C)`, integers only, no padding (asserted above); every bit pattern is valid.
    unsafe impl aya::Pod for Meter {}
}
