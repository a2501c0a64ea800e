//! What comes to the ports of a relay, and where it goes from there.

use wgmesh_core::seal;

use super::{Violation, World};
use crate::host::Relaying;
use crate::network::{Datagram, HostId, Payload};

impl World {
    /// Does with a datagram to one of a relay's ports what the relay does.
    pub(super) fn on_relay_port(&mut self, id: HostId, datagram: &Datagram) -> Result<(), Violation> {
        let Datagram { from, to, ref payload } = *datagram;
        if let Payload::Daemon(bytes) = payload
            && seal::is_bind(bytes)
        {
            self.trace.bytes(bytes);
            return self.act(id, |host, now| {
                host.receive_bind(to.ip(), from, to.port(), bytes);
                host.handle_timeout(now);
            });
        }
        let Some((port, next)) = self.host(id).relayed(to.port(), from) else { return Ok(()) };
        let copies = match (self.host(id).plan.relaying, payload) {
            (Relaying::Nothing, _) => 0,
            (Relaying::Flood, _) => 100,
            (_, Payload::Daemon(_)) | (Relaying::Honest, _) => 1,
            (Relaying::Messages, Payload::WireGuard(_)) => 0,
            (Relaying::Handshakes, Payload::WireGuard(message)) => u64::from(message.body.is_handshake()),
            (Relaying::Half, Payload::WireGuard(_)) => u64::from(!self.host(id).is_higher_port(port)),
        };
        self.hosts[id.0].totals.relayed += copies;
        for _ in 0..copies {
            let arrivals = self.network.send(id, port, next, payload);
            self.schedule_all(arrivals);
        }
        Ok(())
    }

    /// Whether there is a node that both hosts reach and that passes on their packets.
    pub(super) fn share_relay(&self, one: HostId, other: HostId) -> bool {
        self.hosts().any(|(id, host)| {
            ![one, other].contains(&id)
                && host.mesh().is_some()
                && host.plan.secret == self.host(one).plan.secret
                && host.plan.serve != Some(false)
                && host.plan.relaying == Relaying::Honest
                && [one, other].iter().all(|end| self.network.are_connected(*end, id))
        })
    }
}
