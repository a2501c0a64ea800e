//! What many unit tests need.

use crate::key::{PublicKey, SecretKey};
use crate::time::Monotonic;

/// Returns the same key for the same number.
pub(crate) fn key(number: u8) -> PublicKey {
    SecretKey::from_random([number; 32]).public()
}

/// Returns the time so many seconds after the beginning.
pub(crate) fn at(seconds: u64) -> Monotonic {
    Monotonic::from_nanos(seconds * 1_000_000_000)
}
