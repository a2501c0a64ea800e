//! Decides whose a link is.
//!
//! The alias (`IFLA_IFALIAS`) says so. Creating a link and marking it are two steps, so a bare WireGuard link (no
//! alias, no key, no peers, no address, down) is what a crash between the two leaves behind: nobody's, and ours to
//! take. Whoever configures a link makes it theirs, marked or not.

use crate::kernel::{InterfaceName, Link, OWNER_PREFIX, Observed, OwnerMark};

/// Says why a link of the wanted name is not touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{interface} is {found}: give this mesh another `interface` in its configuration, or remove that link \
     (`ip link delete {interface}`)"
)]
pub struct Refusal {
    /// The link's name.
    pub interface: InterfaceName,
    /// What is there instead.
    pub found: Foreign,
}

/// A link that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// It is no WireGuard link.
    #[error("already there, as a link of kind \"{0}\"")]
    OtherKind(String),
    /// Its alias names another owner.
    #[error("a WireGuard link that belongs to \"{0}\"")]
    Aliased(String),
    /// It has no alias, but somebody set it up.
    #[error("a WireGuard link that something other than wgmesh set up")]
    Configured,
}

/// Whose a link is.
pub(super) enum Owner {
    /// There is none.
    NoLink,
    /// This mesh's.
    Us,
    /// Another mesh's, which used the name before.
    OtherMesh,
    /// Nobody's yet: made, and neither marked nor configured.
    Nobody,
    /// Somebody else's.
    Foreign(Foreign),
}

pub(super) fn owner_of(observed: &Observed, owner: &OwnerMark) -> Owner {
    match &observed.link {
        Link::Missing => Owner::NoLink,
        Link::OtherKind { kind } => Owner::Foreign(Foreign::OtherKind(kind.clone())),
        Link::WireGuard { alias: Some(alias), .. } if alias == owner.as_str() => Owner::Us,
        Link::WireGuard { alias: Some(alias), .. } if alias.starts_with(OWNER_PREFIX) => Owner::OtherMesh,
        Link::WireGuard { alias: Some(alias), .. } => Owner::Foreign(Foreign::Aliased(alias.clone())),
        Link::WireGuard { alias: None, up: true, .. } => Owner::Foreign(Foreign::Configured),
        Link::WireGuard { alias: None, up: false, .. } if is_bare(observed) => Owner::Nobody,
        Link::WireGuard { alias: None, up: false, .. } => Owner::Foreign(Foreign::Configured),
    }
}

fn is_bare(observed: &Observed) -> bool {
    let has_key = observed.device.as_ref().is_some_and(|device| device.public_key.is_some());
    !has_key && observed.peers.is_empty() && observed.addresses.is_empty()
}
