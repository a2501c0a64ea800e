//! The record of a host that has yet to start.

use std::net::SocketAddr;

use wgmesh_core::identity::Sequence;
use wgmesh_core::nat::Nat;
use wgmesh_core::record::{Record, SignedRecord, may_be_an_endpoint};
use wgmesh_core::time::Monotonic;

use super::{Host, Surroundings};
use crate::random::Random;

impl Host {
    /// Returns the record that the node would sign before it knows anything of its NAT.
    pub fn first_record(
        &self,
        surroundings: &Surroundings,
        world: Monotonic,
        random: &mut Random,
    ) -> SignedRecord {
        let state = &self.disk.state;
        let settings = super::settings(&self.plan, surroundings.number);
        let addresses = surroundings.underlay.iter().flat_map(|link| &link.addresses);
        let candidates = addresses.map(|net| SocketAddr::new(net.addr(), settings.listen_port));
        let record = Record {
            key: state.wg_pubkey,
            sequence: Sequence(1),
            hostname: settings.hostname,
            nonce: state.nonce,
            subnet: settings.subnet.unwrap_or_else(|| self.keys.default_subnet()),
            listen_port: settings.listen_port,
            routes: Vec::new(),
            issued: self.now(world).wall,
            lifetime_s: 3600,
            candidates: candidates.filter(|address| may_be_an_endpoint(*address)).collect(),
            nat: Nat::Unknown,
            exchange_port: self.exchange_port(),
            introducer: false,
            relay: false,
        };
        SignedRecord::sign(record, &state.wg_private_key, self.keys.network_id(), random.generator())
    }
}
