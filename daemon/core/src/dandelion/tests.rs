use std::collections::BTreeSet;

use super::*;
use crate::secret::MeshSecret;
use crate::sync::tests::record_of;

const NOW: Now = Now {
    monotonic: Monotonic::from_nanos(1_000_000_000_000),
    wall: WallClock::from_millis(1_800_000_000_000),
};

fn mesh(secret: u8) -> MeshKeys {
    MeshKeys::derive(&MeshSecret::from_random([secret; 32]).mesh_key())
}

fn after(seconds: u64) -> Now {
    let span = Duration::from_secs(seconds);
    Now {
        monotonic: NOW.monotonic + span,
        wall: WallClock::from_millis(NOW.wall.as_millis() + seconds * 1000),
    }
}

/// Nodes that all reach each other.
struct World {
    keys: MeshKeys,
    nodes: BTreeMap<PublicKey, (SignedRecord, Dandelion)>,
    now: Now,
    /// Who drops what it should pass on.
    dropping: BTreeSet<PublicKey>,
    longest: u8,
}

impl World {
    fn new(count: u16) -> Self {
        let node = |number: u16| {
            let record = record_of(number, 1);
            let mut seed = [3; 32];
            seed[..2].copy_from_slice(&number.to_be_bytes());
            let own = record.record().key;
            (own, (record, Dandelion::new(own, seed)))
        };
        let nodes = (0..count).map(node).collect();
        Self { keys: mesh(1), nodes, now: NOW, dropping: BTreeSet::new(), longest: 0 }
    }

    /// Has all nodes do what is due, until nobody says anything.
    fn settle(&mut self) {
        let keys: Vec<_> = self.nodes.keys().copied().collect();
        let mut said = Vec::new();
        for &own in &keys {
            said.extend(self.on(own, |record, dandelion, context| dandelion.drive(Some(record), context)));
        }
        while let Some((from, output)) = said.pop() {
            said.extend(match output {
                Output::Stem { to, record, hops } => {
                    self.longest = self.longest.max(hops);
                    if self.dropping.contains(&to) {
                        continue;
                    }
                    self.on(to, |_, dandelion, context| dandelion.handle_stem(from, record, hops, context))
                }
                Output::Done { to, .. } if !self.nodes.contains_key(&to) => continue,
                Output::Done { to, entry } => {
                    self.on(to, |_, dandelion, _| dandelion.handle_done(from, entry))
                }
            });
        }
    }

    fn on(
        &mut self,
        own: PublicKey,
        act: impl FnOnce(&SignedRecord, &mut Dandelion, &Context<'_>),
    ) -> Vec<(PublicKey, Output)> {
        let reached: Vec<_> = self.nodes.keys().copied().filter(|key| *key != own).collect();
        let (record, dandelion) = self.nodes.get_mut(&own).unwrap();
        act(record, dandelion, &Context { keys: &self.keys, reached: &reached, now: self.now });
        dandelion.take_outputs().into_iter().map(|output| (own, output)).collect()
    }

    fn publishers(&self, of: PublicKey) -> Vec<PublicKey> {
        let publishes = |dandelion: &Dandelion| {
            dandelion.published(self.now.wall).iter().any(|record| record.record().key == of)
        };
        self.nodes.iter().filter(|(_, (_, one))| publishes(one)).map(|(&key, _)| key).collect()
    }

    fn unpublished(&self) -> usize {
        self.nodes.values().filter(|(_, dandelion)| !dandelion.is_published()).count()
    }
}

/// W-D32, X-49: whoever knows the secret and the time finds the same relays, and others in the next epoch.
#[test]
fn all_nodes_agree_on_epochs_and_relays() {
    let peers: Vec<_> = (0..20).map(|number| record_of(number, 1).record().key).collect();
    let [node, reached] = [&peers[..1], &peers[1..]];
    let (early, late) = (Epoch::of(NOW.wall), Epoch::of(after(599).wall));
    assert_eq!(early, late);
    let relays = early.relays(&mesh(1), node[0], reached);
    assert_eq!(relays.len(), RELAYS);
    let backwards: Vec<_> = reached.iter().rev().copied().collect();
    assert_eq!(late.relays(&mesh(1), node[0], &backwards), relays);
    assert_ne!(early.relays(&mesh(2), node[0], reached), relays);
    assert_ne!(Epoch::of(after(600).wall).relays(&mesh(1), node[0], reached), relays);
}

/// W-D31: by another, after four hops at most.
#[test]
fn every_node_is_published_by_another() {
    let mut world = World::new(30);
    world.settle();
    assert_eq!(world.longest, MAX_HOPS);
    let looping = world.unpublished();
    // A record that went in a circle is published when the embargo is over.
    world.now = after(45);
    world.settle();
    for &key in world.nodes.keys() {
        let publishers = world.publishers(key);
        assert!(!publishers.is_empty() && !publishers.contains(&key), "{key}: {publishers:?}");
    }
    assert!(looping < 10, "{looping}");
}

/// W-D31: a hop in ten is the last.
#[test]
fn a_relay_publishes_one_record_in_ten_by_itself() {
    let mut world = World::new(252);
    let [relay, from] = [0, 1].map(|place| *world.nodes.keys().nth(place).unwrap());
    let is_other = |record: &SignedRecord| ![relay, from].contains(&record.record().key);
    let records = (0..1000).map(|number| record_of(number % 252, 2 + u64::from(number / 252)));
    let mut published = 0;
    for record in records.filter(is_other) {
        let said = world.on(relay, |_, dandelion, context| dandelion.handle_stem(from, record, 1, context));
        published += said.iter().filter(|(_, output)| matches!(output, Output::Done { .. })).count();
    }
    assert!((60..140).contains(&published), "{published}");
    let (_, dandelion) = &world.nodes[&relay];
    assert!(dandelion.published.len() <= MAX_PUBLISHED && dandelion.carried.len() <= MAX_CARRIED);
}

/// nobody that drops records keeps anyone from being published.
#[test]
fn a_third_of_nodes_that_drop_everything_delay_publication_and_no_more() {
    let mut world = World::new(30);
    world.dropping = world.nodes.keys().copied().step_by(3).collect();
    for step in 0..12 {
        world.now = after(step * 45);
        world.settle();
    }
    let honest: Vec<_> = world.nodes.keys().copied().filter(|key| !world.dropping.contains(key)).collect();
    let lost = honest.iter().filter(|key| world.publishers(**key).is_empty()).count();
    // Whose two relays both drop everything waits for the next epoch.
    assert!(lost <= 4, "{lost} of {}", honest.len());
    for step in 0..12 {
        world.now = after(600 + step * 45);
        world.settle();
    }
    let lost = honest.iter().filter(|key| world.publishers(**key).is_empty()).count();
    assert!(lost <= 4, "{lost} of {}", honest.len());
}

#[test]
fn a_node_that_is_gone_is_published_no_longer_than_its_next_epoch() {
    let mut world = World::new(10);
    world.settle();
    // What went in a circle is published by now, too.
    world.now = after(45);
    world.settle();
    let gone = *world.nodes.keys().next().unwrap();
    world.nodes.remove(&gone);
    world.now = after(700);
    world.settle();
    world.now = after(1300);
    world.settle();
    assert_eq!(world.publishers(gone), []);
}

#[test]
fn nobody_ends_the_stem_of_another_by_a_word() {
    let mut world = World::new(10);
    let own = *world.nodes.keys().next().unwrap();
    let said = world.on(own, |record, dandelion, context| dandelion.drive(Some(record), context));
    let Some((_, Output::Stem { to, record, .. })) = said.first() else { panic!("{said:?}") };
    let (to, entry) = (*to, Entry::of(record));
    let liar = *world.nodes.keys().find(|key| ![own, to].contains(key)).unwrap();
    world.on(own, |_, dandelion, _| dandelion.handle_done(liar, entry));
    assert!(!world.nodes[&own].1.is_published());
    world.on(own, |_, dandelion, _| dandelion.handle_done(to, entry));
    assert!(world.nodes[&own].1.is_published());
}

/// No timeout may stay in the past: the daemon would come back at once, again and again.
#[test]
fn who_can_ask_nobody_has_nothing_due() {
    for is_private in [false, true] {
        let mut world = World::new(10);
        let own = *world.nodes.keys().next().unwrap();
        world.on(own, |record, dandelion, context| dandelion.drive(Some(record), context));
        let (record, dandelion) = world.nodes.get_mut(&own).unwrap();
        let now = after(1300);
        assert!(dandelion.poll_timeout().is_some_and(|at| at < now.monotonic));
        let record = is_private.then_some(&*record);
        assert!(dandelion.is_due(record, now));
        dandelion.drive(record, &Context { keys: &world.keys, reached: &[], now });
        assert_eq!(dandelion.poll_timeout(), None, "private: {is_private}");
    }
}
