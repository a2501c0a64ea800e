//! A token bucket: so many at once, then one per interval.

use std::time::Duration;

use crate::time::Monotonic;

/// Allows a burst, then a steady rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    burst: u32,
    interval: Duration,
    tokens: u32,
    /// When the last whole token was added.
    refilled: Monotonic,
}

impl TokenBucket {
    /// Makes a full bucket of `burst` tokens that gets one more each `interval`.
    pub const fn new(burst: u32, interval: Duration, now: Monotonic) -> Self {
        Self { burst, interval, tokens: burst, refilled: now }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Monotonic) -> bool {
        let fresh = self.fresh(now);
        if fresh >= self.burst - self.tokens {
            self.tokens = self.burst;
            self.refilled = now;
        } else {
            self.tokens += fresh;
            self.refilled = self.refilled + self.interval * fresh;
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }

    /// Whether it is as good as a new one.
    pub const fn is_full(&self, now: Monotonic) -> bool {
        self.fresh(now) >= self.burst - self.tokens
    }

    const fn fresh(&self, now: Monotonic) -> u32 {
        let interval = self.interval.as_nanos();
        let fresh = now.since(self.refilled).as_nanos() / if interval == 0 { 1 } else { interval };
        if fresh > u32::MAX as u128 { u32::MAX } else { fresh as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let at = |millis: u64| Monotonic::from_nanos(millis * 1_000_000);
        let mut bucket = TokenBucket::new(3, Duration::from_millis(100), at(0));
        let taken = |bucket: &mut TokenBucket, millis| (0..10).filter(|_| bucket.take(at(millis))).count();
        assert_eq!(taken(&mut bucket, 0), 3);
        assert_eq!(taken(&mut bucket, 99), 0);
        assert_eq!(taken(&mut bucket, 150), 1);
        assert_eq!(taken(&mut bucket, 200), 1);
        assert_eq!(taken(&mut bucket, 100_000), 3);
    }
}
