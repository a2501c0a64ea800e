//! What most scenarios begin with.

use std::collections::BTreeMap;
use std::time::Duration;

use wgmesh_core::key::PublicKey;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::kernel::wireguard::Handshake;
use wgmesh_sim::network::{Conditions, HostId, SegmentId};
use wgmesh_sim::world::{Violation, World};

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) const fn mins(mins: u64) -> Duration {
    Duration::from_secs(60 * mins)
}

/// Nodes on one LAN.
pub(crate) struct Fleet {
    pub(crate) world: World,
    pub(crate) lan: SegmentId,
    pub(crate) nodes: Vec<HostId>,
}

impl Fleet {
    /// Starts so many at once and returns before anything has happened.
    pub(crate) fn starting(
        seed: u64,
        count: usize,
        plan: &HostPlan,
        conditions: Conditions,
    ) -> Result<Self, Violation> {
        let mut world = World::new(seed);
        let lan = world.add_segment(conditions);
        let nodes = world.add_hosts(count, plan, lan);
        for &node in &nodes {
            world.start(node)?;
        }
        Ok(Self { world, lan, nodes })
    }

    /// Starts so many on a clean LAN and waits until they rest.
    pub(crate) fn resting(seed: u64, count: usize) -> Result<Self, Violation> {
        let mut fleet = Self::starting(seed, count, &HostPlan::default(), Conditions::CLEAN)?;
        fleet.world.run_until_meshed(secs(5))?;
        fleet.world.run_for(secs(20))?;
        Ok(fleet)
    }

    /// Returns the sessions that a node sends with.
    pub(crate) fn sessions(&self, node: HostId) -> BTreeMap<PublicKey, Handshake> {
        let host = self.world.host(node);
        let now = host.now(self.world.now()).monotonic;
        let live = host.kernel.peers().map(|(key, peer)| (key, peer.sending_session(now)));
        live.filter_map(|(key, session)| Some((key, session?))).collect()
    }

    /// Whether a node's kernel holds another as a peer.
    pub(crate) fn holds(&self, node: HostId, other: HostId) -> bool {
        self.world.host(node).kernel.peer(self.world.host(other).public_key()).is_some()
    }

    /// Whether a node knows of another, whose tunnel it may have given up for now.
    pub(crate) fn knows(&self, node: HostId, other: HostId) -> bool {
        let key = self.world.host(other).public_key();
        self.world.host(node).mesh().is_some_and(|mesh| mesh.store().get(key).is_some())
    }
}
