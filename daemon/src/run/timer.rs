//! The mesh's timer. It wakes the thread once for each deadline, where the wheel of tokio's timers wakes it at each of its
//! levels, and once more where a deadline comes nearer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wgmesh_core::time::Monotonic;

use crate::clock;

/// Waits for one deadline after the other, by the clock that [`clock::now`] reads.
pub(super) struct Timer {
    fd: AsyncFd<Descriptor>,
    armed: Option<Monotonic>,
}

struct Descriptor(TimerFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// Makes it in the tokio runtime that calls.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        // SAFETY: the timer owns its descriptor, returns the same one always, and closes it only when it is dropped, which
        // `AsyncFd` does after it has deregistered.
        let fd = unsafe { AsyncFd::register_with_interest(Descriptor(timer), Interest::READABLE) };
        Ok(Self { fd: fd.map_err(io::Error::from)?, armed: None })
    }

    /// Waits until then, or forever. Cancel-safe.
    ///
    /// # Errors
    /// The kernel takes no timer, or the reactor is gone.
    pub(super) async fn until(&mut self, deadline: Option<Monotonic>) -> io::Result<()> {
        let Some(deadline) = deadline else { return std::future::pending().await };
        loop {
            let left = deadline.since(clock::now().monotonic);
            if left.is_zero() {
                return Ok(());
            }
            // What is armed stays so over calls with the same deadline.
            if self.armed.replace(deadline) != Some(deadline) {
                let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
                self.fd.get_ref().0.set(expiration, TimerSetTimeFlags::empty())?;
            }
            self.fd.readable().await?.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Where nothing else would wake the thread: a deadline that comes nearer, one that is over, and one after another.
    #[tokio::test]
    async fn it_ends_at_each_deadline_and_not_before() {
        let mut timer = Timer::new().unwrap();
        let start = clock::now().monotonic;
        let at = |millis| Some(start + Duration::from_millis(millis));
        tokio::select! {
            biased;
            _ = timer.until(at(3_600_000)) => unreachable!("an hour is not over"),
            () = tokio::task::yield_now() => {}
        }
        for millis in [20, 20, 0, 40] {
            timer.until(at(millis)).await.unwrap();
            assert!(at(millis) <= Some(clock::now().monotonic));
        }
    }
}
