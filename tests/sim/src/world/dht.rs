//! How the hosts of a world reach its DHT.

use std::time::Duration;

use wgmesh_core::dht::{DhtEvent, Order};

use super::{Happening, Violation, World};
use crate::dht::VirtualDht;
use crate::network::HostId;

/// What a lookup takes, at least and at most.
const LOOKUP: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];

impl World {
    /// Returns the DHT, to be changed.
    pub const fn dht(&mut self) -> &mut VirtualDht {
        &mut self.dht
    }

    /// Has the DHT answer a host, each time later.
    pub(super) fn ask_dht(&mut self, id: HostId, order: Order) {
        let from = self.address_or_any(id);
        let run = self.hosts[id.0].runs();
        let at = self.now + LOOKUP[0] + self.random.up_to(LOOKUP[1] - LOOKUP[0]);
        for event in self.dht.carry_out(from, order, &mut self.random) {
            self.schedule.push(at, Happening::Dht { host: id, event: Box::new(event), run });
        }
    }

    pub(super) fn on_dht(&mut self, id: HostId, event: DhtEvent, run: u64) -> Result<(), Violation> {
        if self.hosts[id.0].runs() != run {
            return Ok(());
        }
        self.trace.number(id.0 as u64);
        self.act(id, |host, now| {
            host.hear_dht(event, now);
            host.handle_timeout(now);
        })
    }
}
