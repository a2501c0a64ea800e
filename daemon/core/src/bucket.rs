//! A token bucket: so many at once, then one per interval.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
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

    /// Puts a token back that was taken for something that turned out to be welcome.
    pub const fn give_back(&mut self) {
        if self.tokens < self.burst {
            self.tokens += 1;
        }
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

/// A bucket for each address: of IPv6, for each network of 64 bits, of which one host may have them all; but for each
/// link-local one.
///
/// At most [`AddressBuckets::MAX`] addresses are kept account of. Buckets that are full again make room; where none is,
/// an address that is not among them gets nothing.
#[derive(Clone, Debug)]
pub struct AddressBuckets {
    burst: u32,
    interval: Duration,
    buckets: BTreeMap<IpAddr, TokenBucket>,
}

impl AddressBuckets {
    /// The most addresses (P-15).
    pub const MAX: usize = 4096;

    /// Makes buckets of `burst` tokens that get one more each `interval`.
    pub const fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, buckets: BTreeMap::new() }
    }

    /// Takes a token of an address if there is one.
    pub fn take(&mut self, address: IpAddr, now: Monotonic) -> bool {
        let address = owner_of(address);
        if self.buckets.len() >= Self::MAX && !self.buckets.contains_key(&address) {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= Self::MAX {
                return false;
            }
        }
        let full = || TokenBucket::new(self.burst, self.interval, now);
        self.buckets.entry(address).or_insert_with(full).take(now)
    }

    /// Puts back a token that was taken for something that turned out to be welcome.
    pub fn give_back(&mut self, address: IpAddr) {
        if let Some(bucket) = self.buckets.get_mut(&owner_of(address)) {
            bucket.give_back();
        }
    }
}

/// Returns whom an address belongs to: of IPv6, the network of 64 bits, unless all hosts of a link are in it (RFC 4291 §2.5.6).
pub(crate) fn owner_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P-15.
    #[test]
    fn each_address_has_a_bucket_of_its_own_as_far_as_there_is_room() {
        let at = |seconds: u64| Monotonic::from_nanos(seconds * 1_000_000_000);
        let mut buckets = AddressBuckets::new(2, Duration::from_secs(1));
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let taken = |buckets: &mut AddressBuckets, ip, now| (0..5).filter(|_| buckets.take(ip, now)).count();
        assert_eq!(taken(&mut buckets, address(1), at(0)), 2);
        buckets.give_back(address(1));
        assert_eq!(taken(&mut buckets, address(1), at(0)), 1);
        let same: [IpAddr; 2] = ["2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        assert_eq!(same.map(|ip| taken(&mut buckets, ip, at(0))), [2, 0]);
        let on_link: [IpAddr; 2] = ["fe80::1".parse().unwrap(), "fe80::2".parse().unwrap()];
        assert_eq!(on_link.map(|ip| taken(&mut buckets, ip, at(0))), [2, 2], "X-28");
        (2..=4093).for_each(|number| assert!(buckets.take(address(number), at(0))));
        assert!(!buckets.take(address(5000), at(0)), "no room");
        assert!(buckets.take(address(4093), at(0)), "and those inside keep theirs");
        assert!(buckets.take(address(5000), at(10)), "the others are full again");
        assert!(buckets.buckets.len() <= AddressBuckets::MAX);
    }

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
