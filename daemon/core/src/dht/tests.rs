use super::*;
use crate::key::SecretKey;
use crate::secret::MeshSecret;
use crate::time::WallClock;

/// One node's source and the orders that it gave.
struct Node {
    dht: Dht,
    keys: MeshKeys,
    now: Now,
    sequence: Sequence,
    alone: bool,
    stored: BTreeMap<ItemKey, i64>,
}

impl Node {
    fn new() -> Self {
        let now = Now {
            monotonic: Monotonic::from_nanos(1 << 40),
            wall: WallClock::from_millis(1_800_000_000_000),
        };
        let own = SecretKey::from_random([1; 32]).public();
        let mut node = Self {
            dht: Dht::new(own, [7; 32], now.monotonic),
            keys: MeshKeys::derive(&MeshSecret::from_random([1; 32]).mesh_key()),
            now,
            sequence: Sequence(1),
            alone: true,
            stored: BTreeMap::new(),
        };
        assert!(node.drive().is_empty(), "nothing is asked before there is anybody to ask");
        node.dht.handle(DhtEvent::Opened, node.now.monotonic);
        node
    }

    fn drive(&mut self) -> Vec<Order> {
        self.dht.note(self.alone, self.sequence, self.now.monotonic);
        self.dht.handle_timeout(&self.keys, self.now);
        if self.dht.is_ready_to_write() {
            let own = Publication { sequence: self.sequence, is_empty: false, port: Some(51_900) };
            self.dht.write(own, &self.keys, |_| false, || vec![1], self.now);
        }
        std::iter::from_fn(|| self.dht.poll_order()).collect()
    }

    fn pass(&mut self, span: Duration) {
        self.now.monotonic = self.now.monotonic + span;
        self.now.wall =
            WallClock::from_millis(self.now.wall.as_millis() + u64::try_from(span.as_millis()).unwrap());
    }

    /// Answers what is asked until nothing more is, and returns all of it.
    fn answer(&mut self, outcome: &Result<(), Failure>) -> Vec<Order> {
        let mut all = Vec::new();
        loop {
            let orders = self.drive();
            if orders.is_empty() {
                return all;
            }
            for order in &orders {
                if let Order::Ask { id, request } = order {
                    self.store_and_find(*id, request);
                    self.dht.handle(DhtEvent::Done { id: *id, outcome: outcome.clone() }, self.now.monotonic);
                }
            }
            all.extend(orders);
        }
    }

    /// Tells the same outcome of all requests.
    fn conclude(&mut self, orders: Vec<Order>, outcome: &Result<(), Failure>) {
        for order in orders {
            let Order::Ask { id, .. } = order else { continue };
            self.dht.handle(DhtEvent::Done { id, outcome: outcome.clone() }, self.now.monotonic);
        }
    }

    /// Keeps what is put, and gives it back as this node's own.
    fn store_and_find(&mut self, id: RequestId, request: &Request) {
        match request {
            Request::Put { key, sequence, .. } => {
                self.stored.insert(key.clone(), *sequence);
            }
            Request::Get { key } => {
                let Some(&sequence) = self.stored.get(key) else { return };
                let event = DhtEvent::Item { id, sequence, value: vec![1] };
                if let Some(Found::Item { slot, .. }) = self.dht.handle(event, self.now.monotonic) {
                    let own = SecretKey::from_random([1; 32]).public();
                    self.dht.note_occupant(slot, Some(own), sequence);
                }
            }
            Request::FindPeers { .. } | Request::Announce { .. } => {}
        }
    }

    /// Returns how long the node waits now before it does something.
    fn wait(&mut self) -> Duration {
        assert!(self.drive().is_empty());
        self.dht.poll_timeout().unwrap().since(self.now.monotonic)
    }
}

fn count(orders: &[Order], is_meant: impl Fn(&Request) -> bool) -> usize {
    orders.iter().filter(|order| matches!(order, Order::Ask { request, .. } if is_meant(request))).count()
}

fn puts(orders: &[Order]) -> usize {
    count(orders, |request| matches!(request, Request::Put { .. }))
}

const OK: Result<(), Failure> = Ok(());

fn trouble(words: &str) -> Result<(), Failure> {
    Err(Failure::Trouble(words.to_owned()))
}

/// W-X25, W-X26, W-X29: both hours are read, then both written, items and swarms alike.
#[test]
fn a_round_reads_both_hours_and_then_writes_to_both() {
    let mut node = Node::new();
    let orders = node.answer(&OK);
    assert_eq!(count(&orders, |request| matches!(request, Request::Get { .. })), 2 * usize::from(SLOTS));
    assert_eq!(count(&orders, |request| matches!(request, Request::FindPeers { .. })), 2);
    assert_eq!(puts(&orders), 2);
    assert_eq!(count(&orders, |request| matches!(request, Request::Announce { port: 51_900, .. })), 2);
    let keys: std::collections::BTreeSet<_> = orders
        .iter()
        .filter_map(|order| match order {
            Order::Ask { request: Request::Get { key } | Request::Put { key, .. }, .. } => Some(key.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(keys.len(), 2 * usize::from(SLOTS), "what is written is what is read");
}

/// quick at first, then every 30 s, until somebody is reached; then ever more slowly down to every 5 min.
#[test]
fn a_node_alone_asks_often_and_one_that_is_not_every_five_minutes() {
    let mut node = Node::new();
    let mut waits = Vec::new();
    for _ in 0..8 {
        node.answer(&OK);
        let wait = node.wait();
        waits.push(wait.as_secs_f64());
        node.pass(wait);
    }
    assert!(waits[0] < 1.2 && waits[1] < 2.3, "{waits:?}");
    assert!((27.0..=33.0).contains(&waits[7]), "{waits:?}");

    node.alone = false;
    let mut wait = Duration::ZERO;
    for _ in 0..5 {
        node.pass(wait);
        node.answer(&OK);
        wait = node.wait();
    }
    assert!((270..=330).contains(&wait.as_secs()), "{wait:?}");

    node.alone = true;
    assert!(!node.drive().is_empty(), "left alone, it asks at once");
}

/// W-X26: every 15 minutes, and at once on change.
#[test]
fn a_notice_is_written_again_every_fifteen_minutes_and_after_a_change() {
    let mut node = Node::new();
    node.alone = false;
    assert_eq!(puts(&node.answer(&OK)), 2);
    let mut written = Vec::new();
    while written.len() < 2 {
        let wait = node.wait();
        node.pass(wait);
        let orders = node.answer(&OK);
        written.extend((puts(&orders) > 0).then_some(node.now.monotonic));
    }
    let span = written[1].since(written[0]).as_secs();
    assert!((15 * 60..=21 * 60).contains(&span), "{span} s");

    node.sequence = Sequence(2);
    node.pass(Duration::from_secs(1));
    node.drive();
    node.pass(Duration::from_secs(1));
    assert_eq!(puts(&node.answer(&OK)), 2);
}

#[test]
fn changes_without_end_are_not_written_without_end() {
    let mut node = Node::new();
    node.alone = false;
    node.answer(&OK);
    let mut rounds = 0;
    for sequence in 2..122 {
        node.sequence = Sequence(sequence);
        node.pass(Duration::from_millis(500));
        rounds += usize::from(puts(&node.answer(&OK)) > 0);
    }
    assert!((3..=6).contains(&rounds), "{rounds} rounds in a minute");
}

/// DESIGN 4: a failure is told and tried again, ever more slowly where others are reached.
#[test]
fn without_an_answer_nothing_is_written_and_the_error_is_told() {
    let mut node = Node::new();
    node.alone = false;
    let dead = trouble("no node answers");
    let orders = node.answer(&dead);
    assert_eq!(puts(&orders), 0);
    assert_eq!(orders.last(), Some(&Order::Rest));
    let error = Some("no node answers".to_owned());
    assert_eq!(node.dht.health(), Health { last_ok: None, stored: None, nodes: 0, error });
    let mut waits = Vec::new();
    for _ in 0..5 {
        let wait = node.wait();
        waits.push(wait.as_secs());
        node.pass(wait);
        node.answer(&dead);
    }
    assert!(waits[0] < 70 && waits[4] > 260, "{waits:?}");

    node.dht.handle(DhtEvent::Opened, node.now.monotonic);
    assert_eq!(puts(&node.answer(&OK)), 2, "more nodes are known, so it asks at once");
    let now = node.now.monotonic;
    node.dht.handle(DhtEvent::Nodes(vec!["192.0.2.1:6881".parse().unwrap()]), now);
    assert_eq!(node.dht.health(), Health { last_ok: Some(now), stored: Some(now), nodes: 1, error: None });
}

/// W-X33, X-13: the node of the DHT rests between rounds that are far apart, and its contacts are noted before.
#[test]
fn the_shell_may_rest_when_the_next_round_is_far() {
    let mut node = Node::new();
    let orders = node.answer(&OK);
    assert_eq!(orders.last(), Some(&Order::ListNodes), "alone, the next round is near");
    node.alone = false;
    node.pass(Duration::from_secs(5));
    let orders = node.answer(&OK);
    assert_eq!(orders[orders.len() - 2..], [Order::ListNodes, Order::Rest]);
}

/// who looks for others notes the contacts at least every two minutes, and the first at once.
#[test]
fn the_nodes_that_answer_are_noted_every_two_minutes() {
    let mut node = Node::new();
    let mut noted = Vec::new();
    for second in 0..20 * 60 {
        if node.answer(&OK).contains(&Order::ListNodes) {
            noted.push(second);
        }
        node.pass(Duration::from_secs(1));
    }
    let longest = noted.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(noted[0] == 0 && longest <= Some(120), "{noted:?}");
}

/// DESIGN 4: it is also told, but for what is no fault of the DHT.
#[test]
fn a_write_that_failed_is_done_again() {
    let told =
        [(trouble("lost"), Some("nothing can be stored: lost".to_owned())), (Err(Failure::Overtaken), None)];
    for (outcome, error) in told {
        let mut node = Node::new();
        let reads = node.drive();
        node.conclude(reads, &OK);
        let writes = node.drive();
        assert_eq!(puts(&writes), 2);
        node.conclude(writes, &outcome);
        assert_eq!(node.dht.health().error, error);
        assert_eq!(node.drive(), [Order::ListNodes]);
        let wait = node.wait();
        node.pass(wait);
        assert_eq!(puts(&node.answer(&OK)), 2);
        assert_eq!(node.dht.health().error, None);
    }
}

#[test]
fn what_the_shell_never_answers_is_given_up() {
    let mut node = Node::new();
    assert!(!node.drive().is_empty());
    node.pass(REQUEST_LIMIT);
    node.drive();
    assert_eq!(node.dht.health().error.as_deref(), Some("the DHT does not answer"));
    let wait = node.wait();
    node.pass(wait);
    assert!(!node.drive().is_empty(), "and asked again");
}

/// W-X27, X-10: what comes back is only taken for what was asked, and a slot's value only if it is newer.
#[test]
fn answers_that_nobody_asked_for_are_nothing() {
    let mut node = Node::new();
    let orders = node.drive();
    let id_of = |is_meant: &dyn Fn(&Request) -> bool| {
        orders.iter().find_map(|order| match order {
            Order::Ask { id, request } if is_meant(request) => Some(*id),
            _ => None,
        })
    };
    let item = id_of(&|request| matches!(request, Request::Get { .. })).unwrap();
    let swarm = id_of(&|request| matches!(request, Request::FindPeers { .. })).unwrap();
    let now = node.now.monotonic;
    let value = |id, sequence| DhtEvent::Item { id, sequence, value: vec![1] };
    assert!(node.dht.handle(value(RequestId(999), 1), now).is_none());
    assert!(node.dht.handle(value(swarm, 1), now).is_none());
    let Some(Found::Item { slot, .. }) = node.dht.handle(value(item, 5), now) else {
        panic!("a value is found")
    };
    node.dht.note_occupant(slot, None, 5);
    assert!(node.dht.handle(value(item, 5), now).is_none(), "the same");
    assert!(node.dht.handle(value(item, 4), now).is_none(), "older");
    assert!(node.dht.handle(value(item, 6), now).is_some(), "newer");
    node.dht.handle(DhtEvent::Done { id: item, outcome: OK }, now);
    assert!(node.dht.handle(value(item, 7), now).is_none(), "late");
}

/// W-D20: a record is taken once; an older one is a copy that somebody keeps.
#[test]
fn a_record_is_news_once() {
    let mut node = Node::new();
    let now = node.now.monotonic;
    let key = SecretKey::from_random([9; 32]).public();
    let seen: Vec<_> = [5, 5, 4, 6].map(|sequence| node.dht.freshness(key, Sequence(sequence), now)).into();
    assert_eq!(seen, [Freshness::New, Freshness::Known, Freshness::Old, Freshness::New]);
    for byte in 0..=u8::MAX {
        for other in 0..5 {
            let mut random = [byte; 32];
            random[1] = other;
            node.dht.freshness(SecretKey::from_random(random).public(), Sequence(1), now);
        }
    }
    assert_eq!(node.dht.taken.len(), MAX_TAKEN);
}

#[test]
fn leads_are_few_and_do_not_last() {
    let mut node = Node::new();
    for host in 0..20 {
        node.pass(Duration::from_secs(1));
        node.dht.note_lead(SocketAddr::from(([203, 0, 113, host], 51_900)), node.now.monotonic);
    }
    assert_eq!(node.dht.leads().count(), MAX_LEADS);
    node.pass(LEAD_LIFETIME);
    node.answer(&OK);
    assert_eq!(node.dht.leads().count(), 0);
}

/// W-X26, W-X31: names last for an hour, and nobody without the secret can tell them.
#[test]
fn each_hour_and_each_secret_has_names_of_its_own() {
    let keys = |byte| MeshKeys::derive(&MeshSecret::from_random([byte; 32]).mesh_key());
    let [now, before] = Hour::current(WallClock::from_millis(1_800_000_000_000));
    assert_eq!(before.0 + 1, now.0);
    assert_ne!(now.swarm(&keys(1)), before.swarm(&keys(1)));
    assert_ne!(now.swarm(&keys(1)), now.swarm(&keys(2)));
    let items = |hour| Slot::all(hour).map(|slot| slot.key(&keys(1))).collect::<Vec<_>>();
    let (one, other) = (items(now), items(before));
    assert!(one.iter().all(|key| key.seed == one[0].seed && key.seed != other[0].seed));
    let salts: std::collections::BTreeSet<_> = one.iter().chain(&other).map(|key| key.salt).collect();
    assert_eq!(salts.len(), 2 * usize::from(SLOTS));
}
