//! Messages that no honest node sends: what a member of the mesh with bad intentions can make up.

use wgmesh_core::address::AddressNonce;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::identity::Sequence;
use wgmesh_core::key::SecretKey;
use wgmesh_core::message::{Announce, Token};
use wgmesh_core::record::{Record, SignedRecord};
use wgmesh_core::seal::{Kind, seal};
use wgmesh_core::time::Now;

use crate::random::Random;

/// Makes the sealed announce of a node that does not exist.
pub fn invented_announce(keys: &MeshKeys, now: Now, random: &mut Random) -> Vec<u8> {
    let secret = SecretKey::from_random(random.bytes());
    let record = Record {
        key: secret.public(),
        sequence: Sequence(now.wall.as_millis()),
        hostname: "nobody".parse().expect("a host name"),
        nonce: AddressNonce::default(),
        subnet: keys.default_subnet(),
        listen_port: 51820,
        routes: Vec::new(),
        issued: now.wall,
        lifetime_s: 3600,
        candidates: Vec::new(),
        nat: wgmesh_core::nat::Nat::Unknown,
        exchange_port: None,
        introducer: false,
    };
    let record = SignedRecord::sign(record, &secret, keys.network_id(), random.generator());
    let announce = Announce {
        key: secret.public(),
        sequence: record.record().sequence,
        token: Token(random.below(u64::MAX)),
        record: Some(record.as_bytes().to_vec().into()),
    };
    seal(keys, Kind::Announce, &announce.encode(), now, random.generator())
}
