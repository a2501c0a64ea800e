//! The core's clocks: `CLOCK_BOOTTIME`, with which the eBPF programs stamp too, and the time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use wgmesh_core::time::{Monotonic, Now, WallClock};

/// What the core's clock shows at boot: it must be able to tell when somebody was heard before this host was up.
const AT_BOOT: Duration = Duration::from_secs(24 * 3600);

/// Reads the clock that counts suspend (`CLOCK_BOOTTIME`) and the time of day.
pub(crate) fn now() -> Now {
    // A clock before 1970 counts as 1970: the core tolerates any clock.
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        monotonic: at(u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX)),
        wall: WallClock::from_millis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Returns what `CLOCK_BOOTTIME` shows.
pub(crate) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39").into()
}

/// Returns the moment at which `CLOCK_BOOTTIME` showed so many nanoseconds.
pub(crate) fn at(boot: u64) -> Monotonic {
    Monotonic::from_nanos(boot) + AT_BOOT
}
