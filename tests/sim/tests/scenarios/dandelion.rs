//! Hosts that others publish in the DHT.

use std::collections::BTreeSet;
use std::net::IpAddr;

use wgmesh_core::dandelion::Epoch;
use wgmesh_core::dht::Notice;
use wgmesh_core::key::PublicKey;
use wgmesh_core::record::SignedRecord;
use wgmesh_core::seal::Opener;
use wgmesh_core::time::{Now, WallClock};
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::Kind;
use wgmesh_sim::network::HostId;
use wgmesh_sim::world::{Violation, World};

use crate::fleet::{mins, secs};
use crate::meeting::Meeting;

fn strangers(world: &mut World, count: usize, dandelion: bool) -> Vec<HostId> {
    let plan = HostPlan { dht: true, dandelion, ..HostPlan::default() };
    (0..count)
        .map(|_| {
            let site = world.add_site(Kind::None);
            world.add_host(plan.clone(), &[site])
        })
        .collect()
}

/// Returns who has stored whose records since this was last asked, and who has announced itself.
fn writes(world: &mut World, reader: HostId) -> (Vec<(IpAddr, PublicKey)>, Vec<IpAddr>) {
    let writes = std::mem::take(&mut world.dht().writes);
    let keys = world.host(reader).keys().clone();
    let millis = 1_800_000_000_000 + u64::try_from(world.elapsed().as_millis()).expect("it is days at most");
    let now = Now { wall: WallClock::from_millis(millis), ..Now::default() };
    let mut stored = Vec::new();
    let mut announced = Vec::new();
    for (from, value) in writes {
        let Some(value) = value else {
            announced.push(from);
            continue;
        };
        // Each is stored under two hours, and would be a replay the second time.
        let (_, content) = Opener::new(now).open(&keys, &value, now).expect("it is sealed");
        for bytes in Notice::decode(&content).expect("it is a notice").records {
            let record = SignedRecord::verify(&bytes, keys.network_id()).expect("it is signed");
            stored.push((from, record.record().key));
        }
    }
    (stored, announced)
}

/// W-D31, W-D33, X-49: nobody that watches the DHT sees a node's address store that node's record.
#[test]
fn a_node_is_published_by_others_only_and_found_all_the_same() -> Result<(), Violation> {
    let mut world = World::new(1);
    let nodes = strangers(&mut world, 6, true);
    nodes.iter().try_for_each(|&node| world.start(node))?;
    world.run_until_meshed(mins(3))?;
    world.run_for(mins(2))?;
    let _ = writes(&mut world, nodes[0]);
    world.run_for(mins(40))?;
    let (stored, announced) = writes(&mut world, nodes[0]);
    assert!(announced.is_empty(), "{announced:?}");
    let published: BTreeSet<PublicKey> = stored.iter().map(|(_, key)| *key).collect();
    assert!(published.len() >= 4, "{stored:?}");
    for &node in &nodes {
        let (address, key) = (world.address(node), world.host(node).public_key());
        assert!(!stored.contains(&(address, key)), "node-{} stores itself", node.0);
        let is_published = |world: &mut World| {
            let privacy = world.status(node).unwrap().privacy.expect("its operator asked for it");
            privacy.published_by_another
        };
        // After each renewal of its record it is not, for as long as another takes to store it.
        assert!(world.run_until(mins(5), is_published)?.is_some(), "node-{}", node.0);
    }
    let late = strangers(&mut world, 1, true);
    world.start(late[0])?;
    world.run_until_meshed(secs(90))?;
    Ok(())
}

/// Issue "find anyone" (fail-safe): nodes that throw away what they should pass on keep nobody from being published by another,
/// and make nobody publish itself.
#[test]
fn nodes_that_drop_stems_keep_nobody_out() -> Result<(), Violation> {
    let mut world = World::new(3);
    let nodes = strangers(&mut world, 6, true);
    let (droppers, honest) = nodes.split_at(2);
    for &node in droppers {
        world.change(node, |host| host.plan.drops_stems = true);
    }
    nodes.iter().try_for_each(|&node| world.start(node))?;
    world.run_until_meshed(mins(3))?;
    world.run_for(mins(2))?;
    let _ = writes(&mut world, nodes[0]);
    let mut unpublished = 0;
    for _ in 0..60 {
        world.run_for(mins(1))?;
        let is_published = |node: &HostId| {
            world.status(*node).and_then(|status| status.privacy).is_some_and(|one| one.published_by_another)
        };
        unpublished += honest.iter().filter(|node| !is_published(node)).count();
    }
    // Where nobody began anew, two in five stems would end with the first hop, for ten minutes each.
    assert!(unpublished < 60 * honest.len() / 4, "{unpublished} minutes of {}", 60 * honest.len());
    let (stored, announced) = writes(&mut world, nodes[0]);
    assert!(announced.is_empty(), "{announced:?}");
    for &node in honest {
        let (address, key) = (world.address(node), world.host(node).public_key());
        assert!(
            stored.iter().any(|(_, published)| *published == key),
            "node-{} is published by nobody",
            node.0
        );
        assert!(!stored.contains(&(address, key)), "node-{} stores itself", node.0);
    }
    let by_droppers =
        stored.iter().filter(|(from, _)| droppers.iter().any(|&node| world.address(node) == *from));
    assert_eq!(by_droppers.count(), 0, "they have dropped all");
    Ok(())
}

/// The other way round: without a word from its operator a node publishes itself.
#[test]
fn a_node_that_asks_for_nothing_stores_its_own_record() -> Result<(), Violation> {
    let mut world = World::new(2);
    let nodes = strangers(&mut world, 2, false);
    nodes.iter().try_for_each(|&node| world.start(node))?;
    world.run_until_meshed(mins(3))?;
    let (stored, announced) = writes(&mut world, nodes[0]);
    let own = (world.address(nodes[0]), world.host(nodes[0]).public_key());
    assert!(stored.contains(&own) && announced.contains(&own.0));
    assert_eq!(world.status(nodes[0]).unwrap().privacy, None);
    Ok(())
}

/// W-D33: where only others may publish a node, its packets are relayed by those that the epoch draws, whichever is nearest.
#[test]
fn the_relay_of_a_private_pair_is_one_that_the_epoch_has_drawn() -> Result<(), Violation> {
    for seed in 0..10 {
        let mut meeting = Meeting::with_relays(seed, [Kind::Symmetric; 2], 5);
        for node in meeting.nodes {
            meeting.world.change(node, |host| host.plan.dandelion = true);
        }
        meeting.meet_and_talk()?;
        let dead = meeting.relay().expect("it is relayed");
        meeting.world.crash(dead);
        meeting.world.run_for(secs(20))?;

        let relay = meeting.relay().map(|relay| meeting.world.host(relay).public_key());

        let chooser = meeting.nodes.map(|node| meeting.world.host(node));
        let chooser = chooser.into_iter().min_by_key(|host| host.public_key()).expect("there are two");
        let others = meeting.world.hosts().filter(|(id, _)| *id != dead && !meeting.nodes.contains(id));
        let others: Vec<_> = others.map(|(_, host)| host.public_key()).collect();
        let epoch = Epoch::of(chooser.now(meeting.world.now()).wall);
        let drawn = epoch.relays(chooser.keys(), chooser.public_key(), &others);
        assert!(relay.is_some_and(|relay| drawn.contains(&relay)), "seed {seed}: {relay:?} of {drawn:?}");
    }
    Ok(())
}
