//! Reads both clocks for the core.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use wgmesh_core::time::{Monotonic, Now, WallClock};

/// What the core's clock shows at boot: it must be able to tell when somebody was heard before this host was up.
const AT_BOOT: Duration = Duration::from_secs(24 * 3600);

/// Reads the clock that counts suspend (`CLOCK_BOOTTIME`) and the time of day.
pub(super) fn now() -> Now {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(boot.tv_sec()).expect("boot time is not negative");
    let nanos = u64::try_from(boot.tv_nsec()).expect("boot time is not negative");
    // A clock before 1970 counts as 1970: the core tolerates any clock.
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        monotonic: Monotonic::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
            + AT_BOOT,
        wall: WallClock::from_millis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
    }
}
