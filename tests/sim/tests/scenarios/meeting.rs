//! Two hosts in different networks and a public one that is their bootstrap node.

use std::net::SocketAddr;
use std::time::Duration;

use wgmesh_core::status::Peer;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::Kind;
use wgmesh_sim::network::{HostId, SegmentId};
use wgmesh_sim::world::{Violation, World};

use crate::fleet::secs;

/// The hosts and their sites.
pub(crate) struct Meeting {
    pub(crate) world: World,
    pub(crate) introducer: HostId,
    pub(crate) nodes: [HostId; 2],
    pub(crate) sites: [SegmentId; 2],
    /// Public nodes besides the introducer.
    relays: Vec<HostId>,
}

impl Meeting {
    /// Builds it; the daemons do not run yet. Two STUN servers answer, one of them by RFC 5780.
    pub(crate) fn new(seed: u64, kinds: [Kind; 2]) -> Self {
        let mut world = World::new(seed);
        let sites = kinds.map(|kind| world.add_site(kind));
        Self::at(world, sites)
    }

    /// Builds it around two sites.
    pub(crate) fn at(world: World, sites: [SegmentId; 2]) -> Self {
        Self::build(world, sites, true, &[])
    }

    /// Builds it with so many public nodes that are relays; the first is the introducer.
    pub(crate) fn with_relays(seed: u64, kinds: [Kind; 2], relays: usize) -> Self {
        let mut world = World::new(seed);
        let sites = kinds.map(|kind| world.add_site(kind));
        Self::relayed_at(world, sites, relays)
    }

    /// Builds it around two sites, with so many public nodes that are relays; the first is the introducer.
    pub(crate) fn relayed_at(world: World, sites: [SegmentId; 2], relays: usize) -> Self {
        let mut meeting = Self::build(world, sites, true, &[]);
        meeting.world.change(meeting.introducer, |host| host.plan.serve = None);
        for _ in 1..relays {
            let public = meeting.world.add_site(Kind::None);
            let plan = HostPlan { serve: None, bootstrap: vec![meeting.introducer], ..HostPlan::default() };
            meeting.relays.push(meeting.world.add_host(plan, &[public]));
        }
        meeting
    }

    /// Builds it with hosts that have no bootstrap node, but met in an earlier run.
    pub(crate) fn remembered(seed: u64, kinds: [Kind; 2]) -> Self {
        let mut world = World::new(seed);
        let sites = kinds.map(|kind| world.add_site(kind));
        let mut meeting = Self::build(world, sites, false, &[]);
        let [one, other] = meeting.nodes;
        meeting.world.acquaint(&[meeting.introducer, one, other]);
        meeting
    }

    /// Builds it with a first host that has one more uplink.
    pub(crate) fn with_second_uplink(seed: u64, kinds: [Kind; 2], second: Kind) -> Self {
        let mut world = World::new(seed);
        let sites = kinds.map(|kind| world.add_site(kind));
        let second = world.add_site(second);
        Self::build(world, sites, true, &[second])
    }

    fn build(mut world: World, sites: [SegmentId; 2], bootstrap: bool, more: &[SegmentId]) -> Self {
        world.add_stun_server(true);
        world.add_stun_server(false);
        let public = world.add_site(Kind::None);
        let introducer = world.add_host(HostPlan::default(), &[public]);
        let bootstrap = if bootstrap { vec![introducer] } else { Vec::new() };
        let plan = HostPlan { bootstrap, ..HostPlan::default() };
        let first = world.add_host(plan.clone(), &[&[sites[0]], more].concat());
        let nodes = [first, world.add_host(plan, &[sites[1]])];
        Self { world, introducer, nodes, sites, relays: Vec::new() }
    }

    /// Starts the introducer, then both others at once.
    pub(crate) fn start(&mut self) -> Result<(), Violation> {
        self.world.start(self.introducer)?;
        self.relays.iter().try_for_each(|relay| self.world.start(*relay))?;
        self.world.run_for(secs(5))?;
        self.nodes.into_iter().try_for_each(|node| self.world.start(node))
    }

    /// Starts all and waits until every pair that can be is direct. Returns how long that took.
    pub(crate) fn meet(&mut self) -> Result<Duration, Violation> {
        self.start()?;
        self.world.run_until_meshed(secs(60))
    }

    /// Returns where the kernel of one of the two sends to the other.
    pub(crate) fn endpoint(&self, side: usize) -> Option<SocketAddr> {
        let key = self.world.host(self.nodes[1 - side]).public_key();
        self.world.host(self.nodes[side]).kernel.peer(key)?.endpoint
    }

    /// Returns the MTU that the first node says its path to the second has.
    pub(crate) fn mtu(&self) -> Option<u32> {
        self.view(self.nodes[0], self.nodes[1]).path?.mtu
    }

    /// Returns what one node says of another.
    pub(crate) fn view(&self, from: HostId, of: HostId) -> Peer {
        let key = self.world.host(of).public_key();
        let status = self.world.status(from).expect("its daemon runs");
        status.peers.into_iter().find(|peer| peer.public_key == key).expect("it knows the other")
    }
}
