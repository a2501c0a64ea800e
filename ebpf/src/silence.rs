//! Noticing packets that go to a peer while nothing comes back.
//!
//! The daemon watches the paths that it knows to be used; between two looks at the counters it would not know. So the
//! programs tell it, at most once a second and address, that packets have gone out for [`PATIENCE`] and none has come
//! in. What a processor sees of the other direction may not be all: what all of them saw stands in [`SILENCES`], which
//! nearly no packet touches, since each processor writes and reads it only a few times a second.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use wgmesh_ebpf_common::{Counters, HandshakeEvent, RECEIVED, SENT, Silence, UNANSWERED};

use crate::handshake;
use crate::packet::{self, Address};

/// For how long nothing must have come in, in nanoseconds; also how often an event is told.
const PATIENCE: u64 = 1_000_000_000;

/// Packets this far apart are no conversation that has stopped.
const LONGEST_PAUSE: u64 = 3_000_000_000;

/// How often a processor writes and reads [`SILENCES`]. Who was heard within this time is not quiet.
const PACE: u64 = 250_000_000;

/// How many addresses are followed at once; beyond, the one that was longest at rest makes room.
const MAX_SILENCES: u32 = 1024;

/// What went to and came from an address, as all processors saw it.
#[map]
static SILENCES: LruHashMap<Address, Silence> = LruHashMap::with_max_entries(MAX_SILENCES, 0);

/// Takes note of a packet of the account under which it was counted.
#[inline(always)]
pub(crate) fn note(account: &Address, counters: &mut Counters, direction: u8, now: u64) -> Option<()> {
    if direction == RECEIVED {
        if now.saturating_sub(counters.noted) < PACE {
            return None;
        }
        counters.noted = now;
        return heard(account, now);
    }
    let is_quiet = now.saturating_sub(counters.received.last_seen) >= PACE;
    if !is_quiet || now.saturating_sub(counters.checked) < PACE {
        return None;
    }
    counters.checked = now;
    sent(account, now)
}

#[inline(always)]
fn heard(account: &Address, now: u64) -> Option<()> {
    match SILENCES.get_ptr_mut(account) {
        // SAFETY: the map's own memory; what another processor writes at the same time is as good.
        Some(silence) => unsafe { (*silence).heard = now },
        None => {
            let first = Silence { heard: now, ..Silence::default() };
            SILENCES.insert(account, &first, 0).ok()?;
        }
    }
    Some(())
}

#[inline(always)]
fn sent(account: &Address, now: u64) -> Option<()> {
    let Some(silence) = SILENCES.get_ptr_mut(account) else {
        let first = Silence { begun: now, last: now, ..Silence::default() };
        return SILENCES.insert(account, &first, 0).ok();
    };
    // SAFETY: as above.
    let silence = unsafe { &mut *silence };
    if now.saturating_sub(silence.heard) < PACE {
        return None;
    }
    if silence.begun <= silence.heard || now.saturating_sub(silence.last) >= LONGEST_PAUSE {
        silence.begun = now;
    }
    silence.last = now;
    let is_long = now.saturating_sub(silence.begun) >= PATIENCE;
    if !is_long || now.saturating_sub(silence.told) < PATIENCE {
        return None;
    }
    silence.told = now;
    let address = packet::bytes(*account);
    let event =
        HandshakeEvent { at: now, address, interface: 0, port: 0, message: UNANSWERED, direction: SENT };
    handshake::tell(&event, true)
}
