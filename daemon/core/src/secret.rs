//! The one thing an operator hands out: the mesh secret, and the mesh key it becomes.
//!
//! A secret is either 32 random bytes, written `wgmesh://v1/<base64url>` by `wgmesh init`, or any other text of
//! at least [`MIN_CHARS`] characters. The latter is stretched with Argon2id, because whatever is published under
//! it (in the DHT, say) lets anyone guess offline. A bare secret and its `wgmesh://v1/` form name the same mesh.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The shortest text taken as a secret.
pub const MIN_CHARS: usize = 16;

const URI_PREFIX: &str = "wgmesh://v1/";
const ARGON2_MEMORY_KIB: u32 = 64 * 1024;
const ARGON2_PASSES: u32 = 3;
const ARGON2_SALT: &[u8] = b"wgmesh secret v1";

/// A text that cannot be a mesh secret. Never shows the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Nothing but white space.
    #[error("the secret is empty; `wgmesh init` makes one")]
    Empty,
    /// Fewer than [`MIN_CHARS`] characters.
    #[error(
        "the secret has {0} characters, and needs at least {MIN_CHARS}; `wgmesh init` makes a strong one"
    )]
    TooShort(usize),
    /// A `wgmesh://` URI of another version.
    #[error("the secret is a wgmesh:// URI of a version this wgmesh does not know; it takes wgmesh://v1/…")]
    UnknownVersion,
}

/// What every host of a mesh has in common.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub enum MeshSecret {
    /// 32 bytes from a good random source.
    Random([u8; 32]),
    /// Text that a person may have thought up.
    Chosen(String),
}

impl MeshSecret {
    /// Wraps 32 random bytes.
    pub const fn from_random(bytes: [u8; 32]) -> Self {
        Self::Random(bytes)
    }

    /// Reads a secret in any of its forms, ignoring white space around it and a `?query` behind a URI.
    ///
    /// # Errors
    /// [`InvalidSecret`] for text that is too short or a URI of another version.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.trim();
        let body = match text.strip_prefix(URI_PREFIX) {
            Some(rest) => rest.split('?').next().unwrap_or_default(),
            None if text.starts_with("wgmesh://") => return Err(InvalidSecret::UnknownVersion),
            None => text,
        };
        if body.is_empty() {
            return Err(InvalidSecret::Empty);
        }
        if let Some(bytes) = random_bytes(body) {
            return Ok(Self::Random(bytes));
        }
        match body.chars().count() {
            short @ ..MIN_CHARS => Err(InvalidSecret::TooShort(short)),
            _ => Ok(Self::Chosen(body.to_owned())),
        }
    }

    /// Whether a person may have thought it up, so that it can be guessed.
    pub const fn is_weak(&self) -> bool {
        matches!(self, Self::Chosen(_))
    }

    /// Writes it as a URI.
    pub fn to_uri(&self) -> Zeroizing<String> {
        let body = match self {
            Self::Random(bytes) => Zeroizing::new(BASE64URL.encode(bytes)),
            Self::Chosen(text) => Zeroizing::new(text.clone()),
        };
        Zeroizing::new(format!("{URI_PREFIX}{}", body.as_str()))
    }

    /// Derives the mesh key. A chosen secret takes 64 MiB and most of a second (Argon2id, RFC 9106).
    pub fn mesh_key(&self) -> MeshKey {
        match self {
            Self::Random(bytes) => MeshKey(*bytes),
            Self::Chosen(text) => MeshKey(stretch(text.as_bytes())),
        }
    }
}

impl std::fmt::Debug for MeshSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MeshSecret(hidden)")
    }
}

/// The root of everything a mesh derives; see [`crate::derive`].
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MeshKey([u8; 32]);

impl MeshKey {
    /// Returns the 32 bytes.
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn random_bytes(body: &str) -> Option<[u8; 32]> {
    let bytes = Zeroizing::new(BASE64URL.decode(body).ok()?);
    bytes.as_slice().try_into().ok()
}

fn stretch(text: &[u8]) -> [u8; 32] {
    let parameters = argon2::Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, 1, Some(32))
        .expect("the constants are within Argon2's limits");
    let mut key = [0; 32];
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters)
        .hash_password_into(text, ARGON2_SALT, &mut key)
        .expect("salt and output lengths are within Argon2's limits");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> [u8; 32] {
        *MeshSecret::parse(text).unwrap().mesh_key().as_bytes()
    }

    /// W-D38.
    #[test]
    fn a_bare_secret_and_its_uri_with_a_query_name_the_same_mesh() {
        let uri = MeshSecret::from_random([42; 32]).to_uri();
        let bare = uri.strip_prefix(URI_PREFIX).unwrap();
        assert_eq!(key(&uri), [42; 32]);
        assert_eq!(key(bare), [42; 32]);
        assert_eq!(key(&format!("  {}?name=office\n", uri.as_str())), [42; 32]);
    }

    #[test]
    fn a_chosen_secret_is_weak_and_stretched() {
        let secret = MeshSecret::parse("correct horse battery").unwrap();
        assert!(secret.is_weak());
        assert_eq!(secret.mesh_key().as_bytes(), &key("wgmesh://v1/correct horse battery?x"));
        assert_ne!(&secret.mesh_key().as_bytes()[..21], b"correct horse battery");
    }

    #[test]
    fn what_is_no_secret_is_refused_with_its_reason() {
        assert_eq!(MeshSecret::parse(" \n").unwrap_err(), InvalidSecret::Empty);
        assert_eq!(MeshSecret::parse("wgmesh://v1/?a").unwrap_err(), InvalidSecret::Empty);
        assert_eq!(MeshSecret::parse("fifteen letters").unwrap_err(), InvalidSecret::TooShort(15));
        assert_eq!(MeshSecret::parse("wgmesh://v9/abc").unwrap_err(), InvalidSecret::UnknownVersion);
    }

    #[test]
    fn debug_output_hides_the_secret() {
        assert_eq!(format!("{:?}", MeshSecret::from_random([1; 32])), "MeshSecret(hidden)");
    }
}
