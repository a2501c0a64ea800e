//! WireGuard's keys as types: 32 bytes each, base64 in text, never printed when they are secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A key that is not 32 bytes of standard base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a WireGuard key is 32 bytes in base64: 44 characters, the last one '='")]
pub struct InvalidKey;

fn decode(text: &str) -> Result<[u8; 32], InvalidKey> {
    let bytes = zeroize::Zeroizing::new(BASE64.decode(text.trim()).map_err(|_| InvalidKey)?);
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| InvalidKey)
}

/// A node's identity: its X25519 public key, as WireGuard uses it. Ordered bytewise, which decides every tie
/// between nodes ("the lower key").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Wraps the 32 bytes of a Curve25519 point.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first eight characters of the base64 text, enough for a log line.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(Self)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// A node's X25519 private key. Wiped when dropped; `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretKey {
    bytes: [u8; 32],
    /// Derived once: each look at the kernel compares it with the device's.
    #[zeroize(skip)]
    public: PublicKey,
}

impl SecretKey {
    /// Makes a private key of 32 random bytes, clamped as RFC 7748 §5 asks.
    pub fn from_random(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] &= 127;
        bytes[31] |= 64;
        let secret = x25519_dalek::StaticSecret::from(bytes);
        Self { bytes, public: PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes()) }
    }

    /// Returns the 32 bytes, for the kernel and for the signing code.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Returns the public half.
    pub const fn public(&self) -> PublicKey {
        self.public
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

impl TryFrom<String> for SecretKey {
    type Error = InvalidKey;

    fn try_from(mut text: String) -> Result<Self, InvalidKey> {
        let key = decode(&text).map(Self::from_random);
        text.zeroize();
        key
    }
}

impl From<SecretKey> for String {
    fn from(key: SecretKey) -> Self {
        BASE64.encode(key.bytes)
    }
}

/// WireGuard's optional symmetric key of a pair (its fourth secret, whitepaper §5.2). Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// Wraps 32 secret bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes, for the kernel.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_survives_its_text_form() {
        let key = SecretKey::from_random([7; 32]).public();
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for text in ["", "abc", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "!"] {
            assert_eq!(text.parse::<PublicKey>(), Err(InvalidKey), "{text:?}");
        }
    }

    #[test]
    fn debug_output_hides_secrets() {
        let secret = SecretKey::from_random([9; 32]);
        assert!(!format!("{secret:?}").contains(&String::from(secret.clone())));
        assert_eq!(format!("{:?}", PresharedKey::from_bytes([3; 32])), "PresharedKey(hidden)");
    }

    #[test]
    fn the_public_half_matches_rfc_7748() {
        let alice = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
            0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = SecretKey::from_random(alice).public();
        assert_eq!(&public.as_bytes()[..4], &[0x85, 0x20, 0xf0, 0x09]);
    }
}
