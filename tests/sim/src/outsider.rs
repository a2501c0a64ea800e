//! Messages that no honest node sends: what a member of the mesh with bad intentions can make up.

use std::net::SocketAddr;

use wgmesh_core::address::AddressNonce;
use wgmesh_core::derive::{MeshKeys, PairKeys};
use wgmesh_core::dht::Notice;
use wgmesh_core::identity::Sequence;
use wgmesh_core::key::{PublicKey, SecretKey};
use wgmesh_core::message::{Announce, Choice, Disco, DiscoBody, Offer, Paired as _, Stamp, Token};
use wgmesh_core::record::{Record, SignedRecord};
use wgmesh_core::seal::{Kind, seal};
use wgmesh_core::time::Now;

use crate::host::Host;
use crate::random::Random;

/// Makes the signed record of a node that does not exist and says that it is at these addresses.
pub fn invented_record(keys: &MeshKeys, candidates: &[SocketAddr], now: Now, random: &mut Random) -> Vec<u8> {
    sign_invented(keys, candidates, now, random).as_bytes().to_vec()
}

/// Makes the sealed announce of a node that does not exist and says that it is at these addresses.
pub fn invented_announce(
    keys: &MeshKeys,
    candidates: &[SocketAddr],
    now: Now,
    random: &mut Random,
) -> Vec<u8> {
    let record = sign_invented(keys, candidates, now, random);
    announce(keys, &record, record.record().sequence, now, random)
}

/// Makes the sealed announce of somebody else's record, which a member has signed with a key of its own.
pub fn stolen_announce(keys: &MeshKeys, record: Record, now: Now, random: &mut Random) -> Vec<u8> {
    let secret = SecretKey::from_random(random.bytes());
    let record = SignedRecord::sign(record, &secret, keys.network_id(), random.generator());
    announce(keys, &record, record.record().sequence, now, random)
}

/// Announces a record as its node has signed it, whether or not that still holds, under any sequence.
pub fn announce(
    keys: &MeshKeys,
    record: &SignedRecord,
    sequence: Sequence,
    now: Now,
    random: &mut Random,
) -> Vec<u8> {
    let announce = Announce {
        key: record.record().key,
        sequence,
        token: Token(random.below(u64::MAX)),
        record: Some(record.as_bytes().to_vec().into()),
    };
    seal(keys, Kind::Announce, &announce.encode(), now, random.generator())
}

/// Seals a notice for the DHT with whatever stands for records.
pub fn notice(keys: &MeshKeys, records: &[Vec<u8>], now: Now, random: &mut Random) -> Vec<u8> {
    let notice = Notice { records: records.iter().map(|record| record.clone().into()).collect() };
    seal(keys, Kind::Notice, &notice.encode(), now, random.generator())
}

fn sign_invented(keys: &MeshKeys, candidates: &[SocketAddr], now: Now, random: &mut Random) -> SignedRecord {
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
        candidates: candidates.to_vec(),
        nat: wgmesh_core::nat::Nat::Unknown,
        exchange_port: None,
        introducer: false,
        relay: false,
    };
    SignedRecord::sign(record, &secret, keys.network_id(), random.generator())
}

/// What a member says in another's name, proved as well as it can.
#[derive(Clone, Copy)]
pub struct Forgery<'a> {
    /// The member.
    pub member: &'a Host,
    /// Whose message it is said to be; the member's own if it is honest in this.
    pub claimed: PublicKey,
    /// For whom.
    pub to: PublicKey,
    /// Rises with every message of the member.
    pub counter: u64,
}

impl Forgery<'_> {
    /// Makes a sealed message to WireGuard's port.
    pub fn disco(&self, body: DiscoBody, now: Now, random: &mut Random) -> Vec<u8> {
        let disco = Disco { key: self.claimed, stamp: self.stamp(), token: Token(1), body };
        let content = disco.encode_proved(self.to, &self.pair());
        seal(self.member.keys(), Kind::Disco, &content, now, random.generator())
    }

    /// Makes an offer of a path.
    pub fn offer(&self, candidates: &[SocketAddr]) -> Vec<u8> {
        let offer = Offer {
            key: self.claimed,
            stamp: self.stamp(),
            token: Token(1),
            candidates: candidates.to_vec(),
            answer: false,
            relays: Vec::new(),
            wants_relay: false,
            routed: false,
        };
        offer.encode_proved(self.to, &self.pair())
    }

    /// Makes a word that a relay was chosen.
    pub fn choice(&self, relay: PublicKey) -> Vec<u8> {
        Choice { key: self.claimed, stamp: self.stamp(), relay }.encode_proved(self.to, &self.pair())
    }

    fn stamp(&self) -> Stamp {
        // Far above what the member's own daemon uses.
        Stamp { sequence: self.member.disk.state.sequence, counter: (1 << 40) + self.counter }
    }

    fn pair(&self) -> PairKeys {
        let secret = &self.member.disk.state.wg_private_key;
        self.member.keys().pair(secret, self.member.public_key(), self.to)
    }
}
