//! Datagrams between mesh addresses: they go through the tunnel of the two hosts, or nowhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{Happening, Violation, World};
use crate::network::{HEADER_BYTES, HostId};

/// How a datagram begins that holds a record to be published: gossip's version, and CBOR's array of two with kind 3.
const STEM: [u8; 3] = [1, 0x82, 3];

/// A datagram on its way.
#[derive(Debug)]
pub(super) struct Gossiped {
    from: SocketAddr,
    to: HostId,
    bytes: Vec<u8>,
}

/// Which host had which mesh address when it was looked for last.
pub(super) type Owners = BTreeMap<(u8, IpAddr), HostId>;

impl World {
    /// Sends a datagram from one host's mesh address to another's.
    pub(super) fn gossip(&mut self, id: HostId, to: SocketAddr, bytes: Vec<u8>) {
        let size = HEADER_BYTES + bytes.len() as u64;
        let totals = &mut self.hosts[id.0].totals;
        totals.gossip += 1;
        totals.gossip_bytes += size;
        let own = self.host(id).kernel.addresses().find(|net| net.addr().is_ipv4() == to.is_ipv4());
        let (Some(own), Some(other)) = (own, self.owner_of(id, to.ip())) else { return };
        let from = SocketAddr::new(own.addr(), self.host(id).keys().gossip_port());
        let delay = self.mesh_delay(id, other);
        let (key, now) = (self.host(other).public_key(), self.host(id).now(self.now));
        self.hosts[id.0].kernel.send_data(key, size, now);
        let loss = self.network.loss(id);
        let Some(delay) = delay.filter(|_| !self.random.chance(loss)) else { return };
        let gossiped = Gossiped { from, to: other, bytes };
        self.schedule.push(self.now + delay, Happening::Gossip(Box::new(gossiped)));
    }

    /// Has a datagram come to a host's mesh address, as from any other.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn deliver_gossip(&mut self, to: HostId, from: SocketAddr, bytes: Vec<u8>) -> Result<(), Violation> {
        self.on_gossiped(Gossiped { from, to, bytes })
    }

    pub(super) fn on_gossiped(&mut self, gossiped: Gossiped) -> Result<(), Violation> {
        let Gossiped { from, to, bytes } = gossiped;
        self.trace.number(to.0 as u64);
        self.trace.bytes(&bytes);
        if self.host(to).plan.drops_stems && bytes.starts_with(&STEM) {
            return Ok(());
        }
        self.act(to, |host, now| {
            host.receive_gossip(from, bytes);
            host.handle_timeout(now);
        })
    }

    /// Returns which host of the same mesh has an inner address.
    pub(super) fn owner_of(&mut self, id: HostId, address: IpAddr) -> Option<HostId> {
        let secret = self.host(id).plan.secret;
        let has = |host: HostId| self.host(host).kernel.addresses().any(|net| net.addr() == address);
        let remembered = self.owners.get(&(secret, address)).copied().filter(|&host| has(host));
        let found = remembered.or_else(|| {
            let of_mesh = |host: &HostId| self.host(*host).plan.secret == secret && has(*host);
            self.hosts().map(|(host, _)| host).find(of_mesh)
        })?;
        self.owners.insert((secret, address), found);
        Some(found)
    }
}
