//! wgmesh's tc programs: they look at packets, count, note and relay.
//!
//! - `wgmesh_rx` and `wgmesh_tx` sit on the mesh interface and count what each peer sent and was sent. The inner
//!   source (received) or destination (sent) address leads to the peer, as WireGuard's own cryptokey routing does. They
//!   also tell of packets that nothing comes back for.
//! - `wgmesh_hs_rx` and `wgmesh_hs_tx` sit on the links below and report WireGuard's handshake messages. These are
//!   recognised by their wire format alone, so anybody can forge one: an event is a reason to look, never a fact.
//! - `wgmesh_relay` sits there too while this host relays for others, and sends the packets of the flows that the
//!   daemon named on to their other ends.
//!
//! Invariants: but for the packets of those flows none is changed, redirected or dropped, whatever goes wrong
//! ([`PASS_ON`] lets programs of others run after ours); no kernel-internal struct is read; nothing newer than
//! Linux 5.10 is used.
#![no_std]
#![no_main]

mod handshake;
mod packet;
mod relay;
mod silence;
mod traffic;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use wgmesh_ebpf_common::{RECEIVED, SENT};

/// "No opinion" to tc, and the same number as `TCX_NEXT`: the next program decides, or the packet goes on.
const PASS_ON: i32 = TC_ACT_UNSPEC;

/// Counts what peers sent to us.
#[classifier]
pub fn wgmesh_rx(context: TcContext) -> i32 {
    match traffic::count(&context, RECEIVED) {
        Some(()) | None => PASS_ON,
    }
}

/// Counts what we send to peers.
#[classifier]
pub fn wgmesh_tx(context: TcContext) -> i32 {
    match traffic::count(&context, SENT) {
        Some(()) | None => PASS_ON,
    }
}

/// Notes handshake messages that come in.
#[classifier]
pub fn wgmesh_hs_rx(context: TcContext) -> i32 {
    match handshake::note(&context, RECEIVED) {
        Some(()) | None => PASS_ON,
    }
}

/// Notes handshake messages that go out.
#[classifier]
pub fn wgmesh_hs_tx(context: TcContext) -> i32 {
    match handshake::note(&context, SENT) {
        Some(()) | None => PASS_ON,
    }
}

/// Sends on what this host relays.
#[classifier]
pub fn wgmesh_relay(context: TcContext) -> i32 {
    match relay::forward(&context) {
        Some(action) => action,
        None => PASS_ON,
    }
}

/// The helper that reads the boot clock is open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
