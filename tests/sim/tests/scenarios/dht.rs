//! Hosts that share nothing but the secret and find each other in the DHT.

use std::net::SocketAddrV4;
use std::time::Duration;

use wgmesh_core::status::{SourceState, Status};
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::{Dependence, Firewall, Kind};
use wgmesh_sim::network::{HostId, SegmentId};
use wgmesh_sim::outsider;
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{mins, secs};

/// A world with STUN servers in which everybody knows the secret and the DHT.
struct Strangers {
    world: World,
    nodes: Vec<HostId>,
    sites: Vec<SegmentId>,
}

impl Strangers {
    fn new(seed: u64, kinds: &[Kind]) -> Self {
        Self::with(seed, kinds, &HostPlan::default())
    }

    fn with(seed: u64, kinds: &[Kind], plan: &HostPlan) -> Self {
        let mut world = World::new(seed);
        world.add_stun_server(true);
        world.add_stun_server(false);
        let plan = HostPlan { dht: true, ..plan.clone() };
        let sites: Vec<_> = kinds.iter().map(|&kind| world.add_site(kind)).collect();
        let nodes = sites.iter().map(|&site| world.add_host(plan.clone(), &[site])).collect();
        Self { world, nodes, sites }
    }

    fn start(&mut self) -> Result<(), Violation> {
        self.nodes.iter().try_for_each(|&node| self.world.start(node))
    }

    fn meet(&mut self, limit: Duration) -> Result<Duration, Violation> {
        self.start()?;
        self.world.run_until_meshed(limit)
    }

    /// Returns how long a host takes to join two others once the DHT works again that was dead at its start.
    fn late(seed: u64, plan: &HostPlan) -> Result<Duration, Violation> {
        let mut strangers = Self::with(seed, &[Kind::None, Kind::PortRestricted, Kind::None], plan);
        let [first, second, late] = strangers.nodes[..] else { unreachable!("there are three") };
        strangers.world.start(first)?;
        strangers.world.start(second)?;
        strangers.world.run_for(mins(1))?;
        strangers.world.dht().answers = false;
        strangers.world.start(late)?;
        strangers.world.run_for(mins(2))?;
        assert!(strangers.status(2).peers.is_empty());
        strangers.world.dht().answers = true;
        strangers.world.run_until_meshed(mins(10))
    }

    fn status(&self, node: usize) -> Status {
        self.world.status(self.nodes[node]).expect("its daemon runs")
    }

    fn dropped(&self, reason: &str) -> u64 {
        (0..self.nodes.len()).filter_map(|node| self.status(node).drops.get(reason).copied()).sum()
    }
}

/// W-X25, W-X30, X-10: by records alone, whatever NAT is between them, and without anybody to introduce them.
#[test]
fn any_two_that_can_have_a_direct_path_meet_by_the_dht_alone() -> Result<(), Violation> {
    for [one, other] in Kind::pairs() {
        let mut strangers = Strangers::new(1, &[one, other]);
        let span = strangers.meet(secs(40))?;
        assert!(span < secs(30), "{span:?}: {one:?} with {other:?}");
        let status = strangers.status(0);
        if status.peers.iter().any(|peer| peer.sources.iter().any(|source| source == "dht")) {
            let source = status.sources.iter().find(|source| source.name == "dht").unwrap();
            assert_eq!((source.state, &source.error), (SourceState::Running, &None));
        } else {
            // It was told by the other, which had read its notice first.
            assert!(status.peers.iter().all(|peer| peer.sources.iter().any(|source| source == "incoming")));
        }
    }
    Ok(())
}

/// W-X29: who comes later is found within a round of those who wait alone.
#[test]
fn a_stranger_who_comes_later_is_found() -> Result<(), Violation> {
    for kind in [Kind::None, Kind::PortRestricted] {
        let mut strangers = Strangers::new(2, &[kind, kind]);
        strangers.world.start(strangers.nodes[0])?;
        strangers.world.run_for(mins(20))?;
        strangers.world.start(strangers.nodes[1])?;
        let span = strangers.world.run_until_meshed(secs(60))?;
        assert!(span < secs(45), "{span:?} with {kind:?}");
    }
    Ok(())
}

/// W-X31: the DHT itself is IPv4; the records in it name addresses of both families.
#[test]
fn two_whom_their_nats_part_find_each_others_ipv6_in_the_dht() -> Result<(), Violation> {
    let mut strangers = Strangers::new(10, &[Kind::Symmetric, Kind::Symmetric]);
    for &site in &strangers.sites {
        let firewall = Firewall::new(Dependence::AddressAndPort, secs(60));
        strangers.world.set_ipv6(site, Some(firewall))?;
    }
    let span = strangers.meet(secs(60))?;
    assert!(span < secs(30), "{span:?}");
    let endpoint = strangers.status(0).peers[0].path.as_ref().map(|path| path.endpoint);
    assert!(endpoint.is_some_and(|endpoint| endpoint.is_ipv6()), "{endpoint:?}");
    Ok(())
}

/// More nodes than the board has slots; one of them has a public address, which the others find by its flag or by the
/// swarm and which introduces them (W-X21).
#[test]
fn more_strangers_than_slots_become_one_mesh() -> Result<(), Violation> {
    let kinds = [[Kind::None; 1].as_slice(), &[Kind::PortRestricted; 11]].concat();
    let mut strangers = Strangers::new(3, &kinds);
    let span = strangers.meet(secs(120))?;
    assert!(span < secs(90), "{span:?}");
    Ok(())
}

/// W-X26, W-X28: clocks that differ by most of an hour, on both sides of its turn.
#[test]
fn clocks_that_differ_do_not_part_anybody() -> Result<(), Violation> {
    for skew_millis in [-50 * 60_000, 50 * 60_000] {
        let mut strangers = Strangers::new(4, &[Kind::None, Kind::PortRestricted]);
        let node = strangers.nodes[1];
        strangers.world.change(node, |host| host.plan.skew_millis = skew_millis);
        strangers.meet(secs(60))?;
    }
    Ok(())
}

/// W-X29: at rest a node asks every five minutes, and after three hours still knows what it should.
#[test]
fn a_mesh_at_rest_asks_seldom_and_stays_whole() -> Result<(), Violation> {
    let mut strangers = Strangers::new(5, &[Kind::None, Kind::PortRestricted, Kind::PortRestricted]);
    strangers.meet(secs(60))?;
    strangers.world.run_for(mins(10))?;
    let before = strangers.world.dht().requests;
    strangers.world.run_for(mins(180))?;
    let rounds = (strangers.world.dht().requests - before) / 3 / 10;
    assert!((30..=60).contains(&rounds), "{rounds} rounds of each node in three hours");
    assert!(strangers.world.is_meshed());
    Ok(())
}

/// A host whose notice is still stored, and that is dead, is nobody's peer for longer than any other dead one.
#[test]
fn a_notice_keeps_no_dead_host_alive() -> Result<(), Violation> {
    let mut strangers = Strangers::new(6, &[Kind::None, Kind::None, Kind::PortRestricted]);
    strangers.meet(secs(60))?;
    strangers.world.run_for(mins(5))?;
    strangers.world.reboot(strangers.nodes[2]);
    strangers.world.run_for(mins(11))?;
    let mut seen = 0;
    for _ in 0..60 {
        strangers.world.run_for(mins(1))?;
        seen += usize::from(strangers.status(0).peers.len() > 1);
    }
    assert!(seen <= 10, "it was back for {seen} of 60 minutes");
    Ok(())
}

/// Two that lost each other for so long that each has forgotten the other meet again by the DHT.
#[test]
fn two_that_were_parted_for_long_meet_again() -> Result<(), Violation> {
    let mut strangers = Strangers::new(7, &[Kind::None, Kind::PortRestricted]);
    strangers.meet(secs(60))?;
    let first = strangers.sites[0];
    strangers.world.partition_internet(|site| u32::from(site == first));
    strangers.world.run_for(mins(30))?;
    assert!(strangers.status(0).peers.iter().all(|peer| peer.last_handshake_s.is_none_or(|age| age > 180)));
    strangers.world.partition_internet(|_| 0);
    let span = strangers.world.run_until_meshed(mins(3))?;
    assert!(span < mins(2), "{span:?}");
    Ok(())
}

/// DESIGN 4, X-54: no DHT, bad DHT, DHT that comes late.
#[test]
fn a_dht_that_fails_is_told_and_used_once_it_works() -> Result<(), Violation> {
    let mut strangers = Strangers::new(8, &[Kind::None, Kind::PortRestricted]);
    strangers.world.dht().answers = false;
    strangers.start()?;
    strangers.world.run_for(mins(30))?;
    let source = strangers.status(0).sources.into_iter().find(|source| source.name == "dht").unwrap();
    assert_eq!(source.state, SourceState::Failing);
    assert!(source.error.is_some() && source.last_ok_s.is_none());

    strangers.world.dht().answers = true;
    strangers.world.dht().loss = 0.5;
    let span = strangers.world.run_until_meshed(mins(5))?;
    assert!(span < mins(3), "{span:?}");
    Ok(())
}

/// who starts while nobody of the DHT answers, and is alone, joins those that met before once it works again.
#[test]
fn a_cold_start_in_a_dead_dht_joins_the_others_once_it_works() -> Result<(), Violation> {
    let span = Strangers::late(11, &HostPlan::default())?;
    assert!(span < secs(60), "{span:?}");
    Ok(())
}

/// W-X29: where records travel by the DHT alone, a node behind a NAT that has reached somebody learns of a newcomer when it
/// looks again, which is after five minutes.
#[test]
fn without_gossip_and_exchange_a_newcomer_is_found_in_the_next_round() -> Result<(), Violation> {
    let plan = HostPlan { gossip: false, exchange: false, ..HostPlan::default() };
    let span = Strangers::late(12, &plan)?;
    assert!(secs(60) < span && span < mins(6), "{span:?}");
    Ok(())
}

/// W-X27, X-10: what strangers and members plant is dropped, counted, and parts nobody; of the addresses that a swarm
/// names few are dialled.
#[test]
fn planted_values_and_addresses_are_counted_and_part_nobody() -> Result<(), Violation> {
    let mut strangers = Strangers::new(9, &[Kind::None, Kind::PortRestricted]);
    let host = strangers.world.host(strangers.nodes[0]);
    let (keys, now) = (host.keys().clone(), host.now(strangers.world.now()));
    let random = strangers.world.random();
    let mut broken =
        outsider::notice(&keys, &[outsider::invented_record(&keys, &[], now, random)], now, random);
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let mut forged = outsider::invented_record(&keys, &[], now, random);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let forged = outsider::notice(&keys, &[forged], now, random);
    strangers.world.dht().planted = vec![vec![7; 40], vec![7; 1001], vec![7; 200], broken, forged];
    strangers.world.dht().decoys =
        (1..=250).map(|host| SocketAddrV4::new([198, 18, 0, host].into(), 51_900)).collect();

    strangers.meet(secs(60))?;
    strangers.world.run_for(mins(2))?;
    for reason in ["dht size", "dht oversized", "dht unknown", "dht forged"] {
        assert!(strangers.dropped(reason) > 0, "{reason}");
    }
    assert_eq!(strangers.status(0).peers.len(), 1);
    Ok(())
}

/// a notice of the past, which anybody can store again, is counted and brings nothing back.
#[test]
fn an_old_notice_that_is_stored_again_is_counted_and_believed_by_nobody() -> Result<(), Violation> {
    let mut strangers = Strangers::new(10, &[Kind::None, Kind::None]);
    strangers.meet(secs(60))?;
    strangers.world.run_for(mins(1))?;
    let old: Vec<_> = strangers.world.dht().writes.iter().filter_map(|(_, value)| value.clone()).collect();
    assert!(!old.is_empty());
    let node = strangers.nodes[0];
    strangers.world.crash(node);
    strangers.world.start(node)?;
    strangers.world.run_until_meshed(secs(60))?;
    strangers.world.run_for(mins(1))?;
    let key = strangers.world.host(node).public_key();
    let held = |strangers: &Strangers| {
        let mesh = strangers.world.host(strangers.nodes[1]).mesh().expect("it runs");
        mesh.store().get(key).map(|peer| peer.record().record().sequence)
    };
    let sequence = held(&strangers);
    strangers.world.dht().planted = old;
    strangers.world.run_for(mins(12))?;
    assert!(strangers.dropped("dht replayed") > 0, "{:?}", strangers.status(1).drops);
    assert!(sequence.is_some() && held(&strangers) >= sequence, "{sequence:?}");
    assert!(strangers.world.is_meshed(), "{:?}", strangers.world.why_unmeshed());
    Ok(())
}
