//! How much a relay passes on at most.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use wgmesh_ebpf_common::{DATA, Meter};

/// Bytes of a packet's IP and UDP headers, which count as they do where eBPF passes it on.
const HEADERS_V4: u64 = 28;
const HEADERS_V6: u64 = 48;

/// Limits in Mbit/s of IP packets; without a number as much as comes is passed on. eBPF and the daemon's sockets each keep
/// to them by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// From one end of a pair to the other.
    pub flow: Option<NonZeroU32>,
    /// Of all pairs together.
    pub all: Option<NonZeroU32>,
}

impl Rates {
    /// Returns the limit of one direction of a pair.
    pub fn meter_of_flow(self) -> Meter {
        Meter::new(self.flow.map_or(0, NonZeroU32::get))
    }

    /// Returns the limit of all pairs together.
    pub fn meter_of_all(self) -> Meter {
        Meter::new(self.all.map_or(0, NonZeroU32::get))
    }
}

/// What keeps one pair to the limits.
#[derive(Clone, Debug)]
pub(super) struct Limiter {
    /// Of what comes to each of the pair's ports.
    flows: [Meter; 2],
    all: Arc<Mutex<Meter>>,
    /// When the meters' time began.
    since: Instant,
}

impl Limiter {
    /// Returns the first pair's; others are clones of one that was never asked.
    pub(super) fn new(rates: Rates) -> Self {
        let all = Arc::new(Mutex::new(rates.meter_of_all()));
        Self { flows: [rates.meter_of_flow(); 2], all, since: Instant::now() }
    }

    /// Whether a packet may be passed on that came to one of the pair's ports.
    pub(super) fn admit(&mut self, side: usize, is_ipv4: bool, bytes: &[u8]) -> bool {
        let now = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let length = bytes.len() as u64 + if is_ipv4 { HEADERS_V4 } else { HEADERS_V6 };
        let is_data = bytes.first() == Some(&DATA);
        self.flows[side].admit(length, is_data, now) && {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.admit(length, is_data, now)
        }
    }
}
