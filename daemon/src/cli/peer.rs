//! Which peer an operator means: by host name, key, the beginning of a key, or mesh address.

use std::net::IpAddr;

use wgmesh_core::config::Hostname;
use wgmesh_core::key::PublicKey;
use wgmesh_core::status::{Peer, Status};

/// The shortest beginning of a key that names a peer: one in 16 million keys has it by chance.
const MIN_PREFIX: usize = 4;

/// A name that fits no peer, or several.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unclear {
    #[error("no peer is called {name:?}{}", nearest.as_ref().map(|one| format!("; did you mean `{one}`?")).unwrap_or_default())]
    Unknown { name: String, nearest: Option<String> },
    #[error("{name:?} is this node itself")]
    Own { name: String },
    #[error("{name:?} may be {}: name the peer by its address or key", peers.join(" or "))]
    Ambiguous { name: String, peers: Vec<String> },
}

impl Unclear {
    pub(super) fn unknown(status: &Status, name: &str) -> Self {
        Self::Unknown { name: name.to_owned(), nearest: nearest(status, name) }
    }
}

/// Finds a peer. A whole key, an address or a host name counts before the beginning of a key.
pub(super) fn find<'a>(status: &'a Status, name: &str) -> Result<&'a Peer, Unclear> {
    let node = &status.node;
    let address: Option<IpAddr> = name.parse().ok();
    let is_exact = |key: PublicKey, hostname: Option<&Hostname>, addresses: [IpAddr; 2]| {
        key.to_string() == name
            || address.is_some_and(|address| addresses.contains(&address))
            || hostname.is_some_and(|hostname| hostname.as_str().eq_ignore_ascii_case(name))
    };
    let is_own =
        is_exact(node.public_key, Some(&node.hostname), [node.mesh_ipv4.into(), node.mesh_ipv6.into()]);
    let exactly = |peer: &&Peer| {
        is_exact(peer.public_key, peer.hostname.as_ref(), [peer.mesh_ipv4.into(), peer.mesh_ipv6.into()])
    };
    let begins = |peer: &&Peer| name.len() >= MIN_PREFIX && peer.public_key.to_string().starts_with(name);
    let exact: Vec<&Peer> = status.peers.iter().filter(exactly).collect();
    let found = match exact.as_slice() {
        [] if is_own => return Err(Unclear::Own { name: name.to_owned() }),
        [] => status.peers.iter().filter(begins).collect(),
        _ => exact,
    };
    match found.as_slice() {
        [peer] => Ok(peer),
        [] => Err(Unclear::unknown(status, name)),
        several => Err(Unclear::Ambiguous {
            name: name.to_owned(),
            peers: several.iter().map(|peer| format!("{} ({})", label(peer), peer.mesh_ipv4)).collect(),
        }),
    }
}

/// Returns what a peer is called: its host name, or the beginning of its key.
pub(super) fn label(peer: &Peer) -> String {
    peer.hostname.as_ref().map_or_else(|| peer.public_key.short(), ToString::to_string)
}

fn nearest(status: &Status, name: &str) -> Option<String> {
    let names = status.peers.iter().filter_map(|peer| peer.hostname.as_ref());
    let (distance, nearest) =
        names.map(|known| (strsim::osa_distance(known.as_str(), name), known.to_string())).min()?;
    (distance <= name.len().div_ceil(3)).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::example;
    use super::*;

    fn found(name: &str) -> Result<String, String> {
        find(&example(), name).map(label).map_err(|unclear| unclear.to_string())
    }

    #[test]
    fn a_peer_is_found_by_every_name_that_it_has() {
        let db1 = example().peers[0].clone();
        let key = db1.public_key.to_string();
        for name in ["db1", "DB1", "10.42.0.2", "fd00::2", "fd00:0:0::2", &key, &key[..4]] {
            assert_eq!(found(name), Ok("db1".to_owned()), "{name}");
        }
        assert!(found(&key[..3]).is_err());
    }

    #[test]
    fn a_name_that_fits_nobody_says_so() {
        assert_eq!(found("db7").unwrap_err(), "no peer is called \"db7\"; did you mean `db1`?");
        assert_eq!(found("10.42.0.77").unwrap_err(), "no peer is called \"10.42.0.77\"");
        assert_eq!(found("web1").unwrap_err(), "\"web1\" is this node itself");
        assert_eq!(found("10.42.0.1").unwrap_err(), "\"10.42.0.1\" is this node itself");
    }

    #[test]
    fn a_name_that_fits_two_lists_them() {
        let mut status = example();
        status.peers[1].hostname = status.peers[0].hostname.clone();
        let expected =
            "\"db1\" may be db1 (10.42.0.2) or db1 (10.42.0.3): name the peer by its address or key";
        assert_eq!(find(&status, "db1").unwrap_err().to_string(), expected);

        let mut bytes = *status.peers[0].public_key.as_bytes();
        bytes[31] ^= 1;
        status.peers[1].public_key = PublicKey::from_bytes(bytes);
        let prefix = &status.peers[0].public_key.to_string()[..8];
        assert!(matches!(find(&status, prefix), Err(Unclear::Ambiguous { .. })));
        let whole = status.peers[1].public_key.to_string();
        assert_eq!(find(&status, &whole).unwrap().mesh_ipv4, status.peers[1].mesh_ipv4);
    }
}
