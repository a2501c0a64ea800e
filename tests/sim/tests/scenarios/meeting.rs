//! Two hosts in different networks and a public one that is their bootstrap node.

use std::net::SocketAddr;
use std::time::Duration;

use wgmesh_core::explanation::Explanation;
use wgmesh_core::status::{Peer, PeerState};
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::{Dependence, Firewall, Kind};
use wgmesh_sim::network::{Conditions, HostId, SegmentId};
use wgmesh_sim::world::{Violation, World};

use crate::fleet::secs;

/// DESIGN 14: a path that is lost is made up for within three seconds.
pub(crate) const FAILOVER: Duration = Duration::from_secs(3);

/// The hosts and their sites.
pub(crate) struct Meeting {
    pub(crate) world: World,
    pub(crate) introducer: HostId,
    pub(crate) nodes: [HostId; 2],
    pub(crate) sites: [SegmentId; 2],
    /// The introducer's site.
    public: SegmentId,
    /// Public nodes besides the introducer, and their sites.
    relays: Vec<(HostId, SegmentId)>,
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
            let relay = meeting.place_relay();
            meeting.relays.push(relay);
        }
        meeting
    }

    /// Adds one more relay, which starts now.
    pub(crate) fn add_relay(&mut self) -> Result<(), Violation> {
        let (relay, _) = self.place_relay();
        self.world.start(relay)
    }

    /// Says how long the introducer's line, and those of the other relays, take in one direction.
    pub(crate) fn set_latencies(&mut self, latencies: &[Duration]) {
        let sites = self.relays.iter().map(|&(_, site)| site);
        let sites: Vec<_> = [self.public].into_iter().chain(sites).collect();
        for (site, &latency) in sites.into_iter().zip(latencies) {
            self.world.set_conditions(site, Conditions { latency, ..Conditions::CLEAN });
        }
    }

    /// Says what the lines of the relays besides the introducer are like.
    pub(crate) fn set_other_relays(&mut self, conditions: Conditions) {
        for &(_, site) in &self.relays {
            self.world.set_conditions(site, conditions);
        }
    }

    fn place_relay(&mut self) -> (HostId, SegmentId) {
        let public = self.world.add_site(Kind::None);
        let plan = HostPlan { serve: None, bootstrap: vec![self.introducer], ..HostPlan::default() };
        (self.world.add_host(plan, &[public]), public)
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
        Self { world, introducer, nodes, sites, public, relays: Vec::new() }
    }

    /// Starts the introducer, then both others at once.
    pub(crate) fn start(&mut self) -> Result<(), Violation> {
        self.world.start(self.introducer)?;
        self.relays.iter().try_for_each(|&(relay, _)| self.world.start(relay))?;
        self.world.run_for(secs(5))?;
        self.nodes.into_iter().try_for_each(|node| self.world.start(node))
    }

    /// Starts all and waits until every pair that can be is direct. Returns how long that took.
    pub(crate) fn meet(&mut self) -> Result<Duration, Violation> {
        self.start()?;
        self.world.run_until_meshed(secs(60))
    }

    /// Starts all, and has the two talk until what happens after a start is over.
    pub(crate) fn meet_and_talk(&mut self) -> Result<(), Violation> {
        self.meet()?;
        let [one, other] = self.nodes;
        self.world.talk(one, other);
        self.world.run_for(secs(20))?;
        self.world.take_longest_silence();
        Ok(())
    }

    /// Has two relays that the talking pair uses go one after the other; another takes over each time.
    pub(crate) fn lose_relays(&mut self, lose: impl Fn(&mut World, HostId)) -> Result<(), Violation> {
        for _ in 0..2 {
            let relay = self.relay().expect("it is relayed");
            lose(&mut self.world, relay);
            self.world.run_for(secs(20))?;
            let silence = self.world.take_longest_silence();
            assert!(silence < FAILOVER, "{silence:?}");
            assert_ne!(self.relay(), Some(relay));
        }
        Ok(())
    }

    /// Gives both sites IPv6.
    pub(crate) fn bring_ipv6(&mut self) -> Result<(), Violation> {
        let firewall = || Some(Firewall::new(Dependence::AddressAndPort, secs(60)));
        self.sites.into_iter().try_for_each(|site| self.world.set_ipv6(site, firewall()))
    }

    /// Gives both sites IPv6, by which the talking pair becomes direct. Returns how long nothing arrived meanwhile.
    pub(crate) fn open_ipv6(&mut self) -> Result<Duration, Violation> {
        self.bring_ipv6()?;
        self.world.run_for(secs(60))?;
        assert_eq!(self.first_view().state, PeerState::Direct);
        Ok(self.world.take_longest_silence())
    }

    /// Returns what the first node says of the second.
    pub(crate) fn first_view(&self) -> Peer {
        self.view(self.nodes[0], self.nodes[1])
    }

    /// Returns what the first node's `wgmesh explain` tells of the second.
    pub(crate) fn explain(&self) -> Explanation {
        let [node, other] = self.nodes.map(|node| self.world.host(node));
        let mesh = node.mesh().expect("its daemon runs");
        mesh.explain(other.public_key(), node.now(self.world.now())).expect("it knows the other")
    }

    /// Returns the host that is the relay between the two, as the first sees it.
    pub(crate) fn relay(&self) -> Option<HostId> {
        let relay = self.first_view().path?.relay?;
        self.world.hosts().find(|(_, host)| host.public_key() == relay).map(|(id, _)| id)
    }

    /// Returns where the kernel of one of the two sends to the other.
    pub(crate) fn endpoint(&self, side: usize) -> Option<SocketAddr> {
        let key = self.world.host(self.nodes[1 - side]).public_key();
        self.world.host(self.nodes[side]).kernel.peer(key)?.endpoint
    }

    /// Returns the MTU that the first node says its path to the second has.
    pub(crate) fn mtu(&self) -> Option<u32> {
        self.first_view().path?.mtu
    }

    /// Returns what one node says of another.
    pub(crate) fn view(&self, from: HostId, of: HostId) -> Peer {
        let key = self.world.host(of).public_key();
        let status = self.world.status(from).expect("its daemon runs");
        status.peers.into_iter().find(|peer| peer.public_key == key).expect("it knows the other")
    }
}
