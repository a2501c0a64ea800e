//! The core's clocks: `CLOCK_BOOTTIME`, with which the eBPF programs stamp too, and the time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use wgmesh_core::time::{Monotonic, Now, WallClock};

/// What the core's clock shows at boot: it must be able to tell when somebody was heard before this host was up.
const AT_BOOT: Duration = Duration::from_secs(24 * 3600);

/// What is shorter may be the time that it takes to look at two clocks; no machine sleeps and wakes as fast.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);

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

/// How long the machine has slept since it was booted, if that is known.
pub(crate) struct Suspend(Option<Duration>);

impl Suspend {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self(suspended())
    }

    /// Returns for how long the machine has slept since the last call, if it has.
    pub(crate) fn take(&mut self) -> Option<Duration> {
        let suspended = suspended()?;
        let span = suspended.saturating_sub(self.0.replace(suspended)?);
        (span >= SHORTEST_SLEEP).then_some(span)
    }
}

/// Returns by how much `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC`, which stands still while the machine sleeps; `None`
/// where this process was kept waiting between the two looks.
fn suspended() -> Option<Duration> {
    let running = || -> Duration {
        clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC").into()
    };
    let before = running();
    let boot = since_boot();
    (running().saturating_sub(before) < SHORTEST_SLEEP / 10).then(|| boot.saturating_sub(before))
}

/// Returns the moment at which `CLOCK_BOOTTIME` showed so many nanoseconds.
pub(crate) fn at(boot: u64) -> Monotonic {
    Monotonic::from_nanos(boot) + AT_BOOT
}
