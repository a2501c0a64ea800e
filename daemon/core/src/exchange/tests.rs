use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::record::Record;
use crate::record::tests::sample;
use crate::secret::MeshSecret;
use crate::standing::BAN;
use crate::sync::Told;
use crate::sync::tests::Table;

const SECOND: Duration = Duration::from_secs(1);

struct Node {
    secret: SecretKey,
    exchange: Exchange,
    table: Table,
    book: Book,
    /// What the mesh was told, besides records.
    told: Vec<Output>,
    closed: Vec<CloseReason>,
}

impl Node {
    fn key(&self) -> PublicKey {
        self.secret.public()
    }

    fn ups_and_downs(&self) -> (usize, usize) {
        let ups = self.told.iter().filter(|output| matches!(output, Output::Up { .. })).count();
        let downs = self.told.iter().filter(|output| matches!(output, Output::Down { .. })).count();
        (ups, downs)
    }
}

/// One end of a stream.
type End = (usize, SessionId);

/// Nodes that reach each other at once, on virtual time.
struct World {
    keys: MeshKeys,
    now: Monotonic,
    nodes: Vec<Node>,
    /// Both directions of every open stream.
    streams: BTreeMap<End, End>,
    /// Streams whose frames vanish.
    holes: Vec<End>,
    next_id: u64,
    frames: usize,
    bytes: usize,
}

impl World {
    fn new(count: u8) -> Self {
        let mut world = Self {
            keys: MeshKeys::derive(&MeshSecret::from_random([1; 32]).mesh_key()),
            now: Monotonic::default(),
            nodes: Vec::new(),
            streams: BTreeMap::new(),
            holes: Vec::new(),
            next_id: 0,
            frames: 0,
            bytes: 0,
        };
        (0..count).for_each(|number| world.add(number, 1));
        world
    }

    fn add(&mut self, number: u8, run: u8) {
        let secret = SecretKey::from_random([number + 1; 32]);
        let exchange = Exchange::new(
            Places { target: 4, max: 32 },
            Sharing::default(),
            [run.wrapping_mul(31) ^ number; 32],
        );
        let mut table = Table::default();
        table.take(&self.sign(&secret, 1));
        table.buried.insert(secret.public());
        self.nodes.push(Node {
            secret,
            exchange,
            table,
            book: Book::default(),
            told: Vec::new(),
            closed: Vec::new(),
        });
    }

    fn sign(&self, secret: &SecretKey, sequence: u64) -> SignedRecord {
        let record = Record { sequence: crate::identity::Sequence(sequence), ..sample(secret) };
        SignedRecord::sign(record, secret, self.keys.network_id(), &mut ChaCha8Rng::from_seed([3; 32]))
    }

    fn address(node: usize) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::new(10, 0, 0, u8::try_from(node).unwrap()).into(), 51_900)
    }

    fn target(&self, node: usize) -> Target {
        Target { address: Self::address(node), expected: Some(self.nodes[node].key()) }
    }

    fn with<T>(&mut self, node: usize, act: impl FnOnce(&mut Exchange, &Context<'_, Table>) -> T) -> T {
        let wall = self.wall();
        let Node { secret, exchange, table, book, .. } = &mut self.nodes[node];
        let own = &table.held[&secret.public()];
        act(exchange, &Context { keys: &self.keys, secret, own, records: table, book, now: self.now, wall })
    }

    fn wall(&self) -> WallClock {
        WallClock::from_millis(self.now.as_nanos() / 1_000_000)
    }

    fn handle(&mut self, node: usize, event: SessionEvent) {
        self.with(node, |exchange, context| exchange.handle(event, context));
    }

    fn want(&mut self, node: usize, targets: &[usize]) {
        let targets: Vec<_> = targets.iter().map(|&target| self.target(target)).collect();
        let now = self.now;
        self.nodes[node].exchange.want(targets, Vec::new(), now);
        self.settle();
    }

    fn change(&mut self, node: usize, sequence: u64) {
        let record = self.sign(&self.nodes[node].secret, sequence);
        let now = self.now;
        let node = &mut self.nodes[node];
        node.table.held.insert(node.secret.public(), record.clone());
        node.exchange.push(&record, None, now);
    }

    fn open(&mut self, dialer: usize, target: Target) -> Option<(SessionId, SessionId)> {
        let acceptor = (0..self.nodes.len()).find(|&node| Self::address(node) == target.address)?;
        let [ours, theirs] = [self.next_id, self.next_id + 1].map(SessionId);
        self.next_id += 2;
        self.streams.insert((dialer, ours), (acceptor, theirs));
        self.streams.insert((acceptor, theirs), (dialer, ours));
        let mut exporter = [0; 32];
        exporter[..8].copy_from_slice(&ours.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let opened = |id, remote, dialed| SessionEvent::Opened { id, remote, dialed, exporter };
        self.handle(dialer, opened(ours, target.address, Some(target)));
        self.handle(acceptor, opened(theirs, Self::address(dialer), None));
        Some((ours, theirs))
    }

    /// Opens a stream on which the dialer says nothing by itself, and returns the acceptor's end.
    fn open_mutely(&mut self, dialer: usize, acceptor: usize) -> SessionId {
        let target = Target { address: Self::address(acceptor), expected: None };
        let (ours, theirs) = self.open(dialer, target).expect("there is such a node");
        self.holes.push((dialer, ours));
        self.settle();
        theirs
    }

    /// Has a stranger from a network of its own connect, who then says nothing.
    fn accept_stranger(&mut self, node: usize, number: usize) {
        let (id, network) = (SessionId(1000 + number as u64), u8::try_from(number).unwrap());
        let remote = SocketAddr::new(Ipv4Addr::new(10, 1, network, 1).into(), 7);
        self.handle(node, SessionEvent::Opened { id, remote, dialed: None, exporter: [0; 32] });
    }

    /// Carries out everything that the nodes want done.
    fn settle(&mut self) {
        while let Some((node, output)) = self.next_output() {
            match output {
                Output::Dial(target) => {
                    if self.open(node, target).is_none() {
                        self.handle(node, SessionEvent::DialFailed { target, error: "refused".into() });
                    }
                }
                Output::Send { id, bytes } => self.carry((node, id), bytes),
                Output::Close { id, reason } => {
                    self.nodes[node].closed.push(reason);
                    self.cut((node, id));
                }
                Output::Record { record, from, .. } => {
                    let now = self.now;
                    let Node { exchange, table, .. } = &mut self.nodes[node];
                    if table.wants(Entry::of(&record)) {
                        exchange.push(&record, Some(from), now);
                    }
                    table.take(&record);
                }
                Output::Deed { .. } | Output::Met { .. } => {}
                told => {
                    if let Output::Misbehaved { key, .. } = &told {
                        let wall = self.wall();
                        self.nodes[node].book.ban(*key, wall);
                    }
                    self.nodes[node].told.push(told);
                }
            }
        }
    }

    fn next_output(&mut self) -> Option<(usize, Output)> {
        let mut nodes = self.nodes.iter_mut().enumerate();
        nodes.find_map(|(number, node)| Some((number, node.exchange.poll_output()?)))
    }

    fn carry(&mut self, from: End, bytes: Vec<u8>) {
        assert!(bytes.len() <= MAX_FRAME_BYTES);
        let Some(&(node, id)) = self.streams.get(&from).filter(|_| !self.holes.contains(&from)) else {
            return;
        };
        self.frames += 1;
        self.bytes += bytes.len();
        self.handle(node, SessionEvent::Frame { id, bytes });
    }

    fn cut(&mut self, end: End) {
        let hole = self.holes.contains(&end);
        let Some(other) = self.streams.remove(&end) else { return };
        self.streams.remove(&other);
        if !hole {
            self.handle(
                other.0,
                SessionEvent::Closed { id: other.1, reason: "closed by the other side".into() },
            );
        }
    }

    /// Lets a stream swallow everything, in both directions.
    fn swallow(&mut self, end: End) {
        self.holes.extend([end, self.streams[&end]]);
    }

    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            self.settle();
            let next = self.nodes.iter().filter_map(|node| node.exchange.poll_timeout()).min();
            let Some(next) = next.filter(|&next| next <= until) else { break };
            self.now = self.now.max(next);
            for node in 0..self.nodes.len() {
                self.with(node, |exchange, context| exchange.handle_timeout(context));
            }
        }
        self.now = until;
    }

    fn sessions(&self, node: usize) -> Vec<SessionView> {
        self.nodes[node].exchange.sessions().collect()
    }

    fn end_of(&self, node: usize) -> End {
        *self.streams.keys().find(|end| end.0 == node).expect("a stream")
    }

    /// Sends a frame in a node's name, over its newest stream.
    fn say(&mut self, node: usize, frame: &Frame) {
        self.say_bytes(node, frame.encode());
    }

    fn say_bytes(&mut self, node: usize, bytes: Vec<u8>) {
        let end = *self.streams.keys().rfind(|end| end.0 == node).expect("a stream");
        self.carry(end, bytes);
        self.settle();
    }
}

/// W-X19, W-X20, M-16.
#[test]
fn two_nodes_prove_themselves_and_then_hold_the_same() {
    let mut world = World::new(4);
    // Each knows somebody that the other does not.
    let [c, d] = [2, 3].map(|node| world.sign(&world.nodes[node].secret, 5));
    world.nodes[0].table.take(&c);
    world.nodes[1].table.take(&d);
    world.want(0, &[1]);
    world.pass(SECOND);
    assert_eq!(world.nodes[0].table.held, world.nodes[1].table.held);
    assert_eq!(world.nodes[0].table.held.len(), 4);
    assert_eq!(world.nodes[0].ups_and_downs(), (1, 0));
}

/// P-11, P-12: who asks for few at once asks more often, and who gives few at once gives the others another time.
#[test]
fn an_exchange_moves_no_more_records_at_once_than_either_side_wants() {
    let exchange = |asking, giving| {
        let mut world = World::new(2);
        for number in 0..20 {
            let other = world.sign(&SecretKey::from_random([100 + number; 32]), 5);
            world.nodes[0].table.take(&other);
        }
        for (node, max) in [(0, giving), (1, asking)] {
            world.nodes[node].exchange.sharing.max = max;
        }
        world.want(0, &[1]);
        world.pass(SECOND);
        let (held, frames) = (world.nodes[1].table.held.len(), world.frames);
        world.pass(SECOND * 600);
        (held, frames, world.nodes[1].table.held.len())
    };
    let (all, frames, _) = exchange(MAX_ASKED, MAX_ASKED);
    assert_eq!(exchange(5, MAX_ASKED), (all, frames + 6, all), "four asks and four answers");
    let (at_once, _, later) = exchange(MAX_ASKED, 5);
    assert_eq!((at_once, later), (all - 15, all));
}

/// P-14: who disagrees for long compares as often as the operator wants, and no more often.
#[test]
fn nodes_that_never_agree_compare_in_the_chosen_interval() {
    let frames = |interval| {
        let mut world = World::new(2);
        let gone = world.sign(&SecretKey::from_random([100; 32]), 5);
        world.nodes[0].table.take(&gone);
        world.nodes[1].table.buried.insert(gone.record().key);
        for node in &mut world.nodes {
            node.exchange.sharing.interval = interval;
        }
        world.want(0, &[1]);
        world.pass(Duration::from_secs(3600));
        world.frames
    };
    let [usual, quick] = [300, 30].map(|seconds| frames(Duration::from_secs(seconds)));
    assert!(quick > usual + 60, "{quick} frames in an hour, {usual} usually");
}

#[test]
fn a_change_reaches_every_node_of_a_chain_within_a_delay_for_each_hop() {
    let mut world = World::new(6);
    (0..5).for_each(|node| world.want(node, &[node + 1]));
    world.pass(SECOND);
    world.change(0, 9);
    world.pass(NEWS_DELAY * 5 + Duration::from_millis(1));
    let key = world.nodes[0].key();
    for node in &world.nodes {
        assert_eq!(node.table.held[&key].record().sequence.0, 9);
    }
}

#[test]
fn changes_that_come_together_go_out_together() {
    let mut world = World::new(2);
    world.want(0, &[1]);
    world.pass(SECOND);
    world.frames = 0;
    (2..20).for_each(|sequence| world.change(0, sequence));
    world.pass(NEWS_DELAY);
    assert_eq!(world.frames, 1);
    assert_eq!(world.nodes[1].table.held, world.nodes[0].table.held);
}

#[test]
fn a_quiet_session_costs_its_heartbeat() {
    let mut world = World::new(2);
    world.want(0, &[1]);
    world.pass(SECOND);
    (world.frames, world.bytes) = (0, 0);
    world.pass(SECOND * 600);
    assert!((36..=46).contains(&world.frames) && world.bytes < 2000, "{} {}", world.frames, world.bytes);
    assert_eq!(world.sessions(0)[0].round_trip, Some(Duration::ZERO));
}

/// M-33, X-41.
#[test]
fn another_node_at_the_expected_address_is_refused_by_name() {
    let mut world = World::new(3);
    let target = Target { address: World::address(1), expected: Some(world.nodes[2].key()) };
    world.nodes[0].exchange.want(vec![target], Vec::new(), Monotonic::default());
    world.settle();
    let reason = CloseReason::WrongKey { expected: world.nodes[2].key(), found: world.nodes[1].key() };
    assert_eq!(world.nodes[0].closed, vec![reason.clone()]);
    assert_eq!(world.nodes[0].ups_and_downs(), (0, 0));
    let (_, view) = world.nodes[0].exchange.targets().next().unwrap();
    assert_eq!(view.error.as_ref(), Some(&reason.to_string()));
    assert_eq!(view.tried, Some((Monotonic::default(), Some(Duration::ZERO))), "P-2: when, and for how long");
    assert_eq!(view.failures, 1);
}

/// A member has everyone's record, but no other node's private key.
#[test]
fn a_member_cannot_pose_as_another_node() {
    let mut world = World::new(3);
    let stolen = world.sign(&world.nodes[2].secret, 1);
    let id = world.open_mutely(1, 0);
    let frame = |frame: Frame| SessionEvent::Frame { id, bytes: frame.encode() };
    world.handle(0, frame(Frame::Hello { record: stolen.as_bytes().to_vec().into(), run: Token(1) }));
    let pair = world.keys.pair(&world.nodes[1].secret, world.nodes[2].key(), world.nodes[0].key());
    use hmac::Mac as _;
    let forged: [u8; 32] = frame::proof(&pair, &[0; 32], world.nodes[2].key(), frame::Role::Dialer)
        .finalize()
        .into_bytes()
        .into();
    world.handle(0, frame(Frame::Proof(forged.into())));
    world.settle();
    assert_eq!(world.nodes[0].closed, vec![CloseReason::BadProof]);
    assert_eq!(world.nodes[0].ups_and_downs(), (0, 0));
}

/// The same proof is worth nothing on another TLS connection, or from the other end.
#[test]
fn a_proof_holds_for_one_session_and_one_end() {
    let world = World::new(2);
    let [a, b] = [&world.nodes[0], &world.nodes[1]];
    let pair = world.keys.pair(&a.secret, a.key(), b.key());
    let bytes = |exporter, prover, role| {
        use hmac::Mac as _;
        frame::proof(&pair, &exporter, prover, role).finalize().into_bytes()
    };
    let proof = bytes([0; 32], a.key(), frame::Role::Dialer);
    assert_ne!(proof, bytes([1; 32], a.key(), frame::Role::Dialer));
    assert_ne!(proof, bytes([0; 32], b.key(), frame::Role::Dialer));
    assert_ne!(proof, bytes([0; 32], a.key(), frame::Role::Acceptor));
}

#[test]
fn nothing_is_taken_from_one_who_has_not_proved_who_it_is() {
    let mut world = World::new(3);
    let own = world.nodes[1].key();
    let news = world.sign(&world.nodes[2].secret, 5);
    let early = [
        Frame::Sync(Message::record(&news)),
        Frame::Forward(Forward { from: own, to: world.nodes[0].key(), body: vec![1].into() }),
        Frame::Pong { number: 0 },
    ];
    for frame in early {
        let id = world.open_mutely(1, 0);
        world.handle(0, SessionEvent::Frame { id, bytes: frame.encode() });
        world.settle();
    }
    assert_eq!(world.nodes[0].closed, vec![CloseReason::NotGreeted; 3]);
    assert_eq!((world.nodes[0].told.len(), world.nodes[0].table.held.len()), (0, 1));
}

#[test]
fn a_silent_stranger_is_closed_after_its_time() {
    let mut world = World::new(2);
    world.open_mutely(1, 0);
    world.pass(GREETING_PATIENCE - SECOND);
    assert!(world.nodes[0].closed.is_empty());
    world.pass(SECOND);
    assert_eq!(world.nodes[0].closed, vec![CloseReason::GreetingTimeout]);
}

/// one network gets a share of the room for strangers, and all of them no more than there is.
#[test]
fn strangers_beyond_the_cap_are_closed_at_once() {
    let mut world = World::new(2);
    for _ in 0..MAX_FROM_ONE_NETWORK + 3 {
        world.open_mutely(1, 0);
    }
    assert_eq!(world.nodes[0].closed, vec![CloseReason::Full; 3]);
    (MAX_FROM_ONE_NETWORK..MAX_GREETING + 2).for_each(|number| world.accept_stranger(0, number));
    world.settle();
    assert_eq!(world.nodes[0].closed, vec![CloseReason::Full; 5]);
}

/// A timeout that stays in the past would have the daemon come back at once, again and again.
#[test]
fn a_node_without_room_does_not_wake_to_dial() {
    let mut world = World::new(1);
    world.nodes[0].exchange.limits = Places { target: 4, max: 0 };
    (0..MAX_GREETING).for_each(|number| world.accept_stranger(0, number));
    let target = Target { address: World::address(7), expected: None };
    world.nodes[0].exchange.want(Vec::new(), vec![target], world.now);
    world.with(0, |exchange, context| exchange.handle_timeout(context));
    assert!(world.nodes[0].exchange.poll_timeout().is_some_and(|at| at > world.now), "a greeting's time");
}

#[test]
fn a_node_that_dials_itself_notices_and_leaves_it() {
    let mut world = World::new(1);
    world.want(0, &[]);
    let target = Target { address: World::address(0), expected: None };
    world.nodes[0].exchange.want(vec![target], Vec::new(), Monotonic::default());
    world.pass(ITSELF_WAIT - SECOND);
    assert!(world.nodes[0].closed.contains(&CloseReason::Itself));
    assert_eq!((world.nodes[0].ups_and_downs(), world.next_id), ((0, 0), 2), "dialed once");
}

/// M-13, M-24: a blackhole is noticed within two intervals.
#[test]
fn a_session_that_died_without_a_word_is_gone_within_two_heartbeats_and_dialed_anew() {
    let mut world = World::new(2);
    world.want(0, &[1]);
    world.pass(SECOND);
    let end = world.end_of(0);
    world.swallow(end);
    world.pass(HEARTBEAT * 2);
    assert_eq!(world.nodes[0].closed, vec![CloseReason::Silent]);
    assert_eq!(world.sessions(0).len(), 1, "a new one");
    assert_eq!(world.sessions(1).len(), 1, "and the old one is gone there too");
}

/// M-34.
#[test]
fn a_target_that_refuses_is_dialed_ever_more_slowly_but_for_ever() {
    let mut world = World::new(1);
    let target = Target { address: World::address(7), expected: None };
    world.nodes[0].exchange.want(Vec::new(), vec![target], Monotonic::default());
    let dials = |world: &mut World| {
        let mut dials = 0;
        while let Some(output) = world.nodes[0].exchange.poll_output() {
            assert_eq!(output, Output::Dial(target));
            dials += 1;
            world.handle(0, SessionEvent::DialFailed { target, error: "refused".into() });
        }
        dials
    };
    let mut at = Vec::new();
    for second in 0..3600 {
        world.now = Monotonic::default() + SECOND * second;
        world.with(0, |exchange, context| exchange.handle_timeout(context));
        at.extend((0..dials(&mut world)).map(|_| second));
    }
    let waits: Vec<u32> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[0] <= 2 && waits[2] <= 6, "{waits:?}");
    assert!(waits.iter().all(|&wait| wait <= 376) && waits[9..].iter().all(|&wait| wait >= 225), "{waits:?}");
}

#[test]
fn of_two_sessions_that_both_dialed_the_one_of_the_lower_key_stays() {
    let mut world = World::new(2);
    let targets = [0, 1].map(|node| world.target(node));
    world.nodes[0].exchange.want(vec![targets[1]], Vec::new(), Monotonic::default());
    world.nodes[1].exchange.want(vec![targets[0]], Vec::new(), Monotonic::default());
    world.pass(SECOND * 200);
    let lower = usize::from(world.nodes[1].key() < world.nodes[0].key());
    for node in [0, 1] {
        let sessions = world.sessions(node);
        assert_eq!((sessions.len(), sessions[0].dialed), (1, node == lower));
        assert_eq!(world.nodes[node].ups_and_downs(), (1, 0));
    }
    assert_eq!(world.next_id, 4, "nobody dials again");
}

#[test]
fn a_restarted_node_takes_the_place_of_its_dead_session_at_once() {
    for dialer in [0, 1] {
        let mut world = World::new(2);
        world.want(1 - dialer, &[dialer]);
        world.pass(SECOND);
        let end = world.end_of(1);
        world.swallow(end);
        world.nodes.remove(1);
        world.add(1, 2);
        world.want(1, &[0]);
        world.pass(SECOND);
        assert_eq!((world.sessions(0).len(), world.sessions(1).len()), (1, 1));
        assert_eq!(world.nodes[0].table.held, world.nodes[1].table.held);
    }
}

#[test]
fn a_dead_session_gives_way_to_a_live_one_even_where_the_rule_prefers_it() {
    for first in [0, 1] {
        let mut world = World::new(2);
        world.want(first, &[1 - first]);
        world.pass(SECOND);
        world.want(first, &[]);
        let end = world.end_of(first);
        world.swallow(end);
        // The other side has noticed, and comes by a new way.
        let gone = world.streams[&end];
        world.handle(gone.0, SessionEvent::Closed { id: gone.1, reason: "no route".into() });
        world.want(1 - first, &[first]);
        world.pass(PONG_PATIENCE + SECOND * 2);
        assert_eq!((world.sessions(0).len(), world.sessions(1).len()), (1, 1));
        assert_eq!(world.nodes[first].ups_and_downs(), (1, 0));
    }
}

#[test]
fn at_the_limit_the_longest_accepted_session_makes_room_after_its_time() {
    let mut world = World::new(5);
    world.nodes[0].exchange.limits = Places { target: 4, max: 3 };
    (1..4).for_each(|node| world.want(node, &[0]));
    world.want(4, &[0]);
    assert_eq!(world.sessions(0).len(), 3);
    assert!(!world.nodes[0].exchange.is_connected(world.nodes[4].key()), "the others have just come");
    world.pass(FAIR_TIME * 6);
    assert_eq!(world.sessions(0).len(), 3);
    let records = world.nodes[4].table.held.len();
    assert_eq!(records, 5, "everyone had its turn");
}

/// Whoever offers what it never gives keeps this node from nobody who does.
#[test]
fn who_is_asked_in_vain_does_not_keep_others_from_being_asked() {
    let mut world = World::new(3);
    (1..3).for_each(|node| world.want(node, &[0]));
    let secret = SecretKey::from_random([99; 32]);
    let record = world.sign(&secret, 1);
    let offer = Frame::Sync(Message::Offer(vec![Entry::of(&record)]));
    world.say(1, &offer);
    world.nodes[2].table.take(&record);
    world.pass(SECOND * 5);
    world.say(2, &offer);
    assert!(world.nodes[0].table.held.contains_key(&secret.public()));
}

/// A signature costs this node much, and whoever repeats records nothing.
#[test]
fn a_record_that_nobody_wants_is_not_verified() {
    let mut world = World::new(2);
    world.want(1, &[0]);
    let mut known = world.nodes[0].table.held[&world.nodes[1].key()].as_bytes().to_vec();
    *known.last_mut().unwrap() ^= 1;
    let told =
        |bytes: Vec<u8>| Frame::Sync(Message::Records(vec![Told { record: bytes.into(), silence_s: 0 }]));
    (0..100).for_each(|_| world.say(1, &told(known.clone())));
    assert_eq!(world.sessions(0).len(), 1, "nothing was found wrong with it");
}

/// X-29, M-28.
#[test]
fn a_node_that_sends_rubbish_is_shut_out_for_a_day() {
    let mut world = World::new(2);
    world.want(1, &[0]);
    let mut record = world.sign(&world.nodes[1].secret, 7).as_bytes().to_vec();
    *record.last_mut().unwrap() ^= 1;
    let rubbish = [
        b"hello".to_vec(),
        Frame::Proof([0; 32].into()).encode(),
        Frame::Sync(Message::Records(vec![crate::sync::Told { record: record.into(), silence_s: 0 }]))
            .encode(),
    ];
    (0..7).for_each(|n| world.say_bytes(1, rubbish[n % 3].clone()));
    assert!(world.nodes[0].closed.is_empty(), "a few are forgiven");
    world.say_bytes(1, b"hello".to_vec());
    let key = world.nodes[1].key();
    let misbehaved = Output::Misbehaved { key, reason: Misbehaviour::Malformed };
    assert!(world.nodes[0].told.contains(&misbehaved));
    world.pass(BAN - SECOND);
    assert!(world.sessions(0).is_empty() && world.nodes[0].closed.contains(&CloseReason::ShutOut));
    world.pass(SECOND * 400);
    assert_eq!(world.sessions(0).len(), 1, "and then welcome again");
}

#[test]
fn a_flood_of_frames_ends_the_session() {
    let mut world = World::new(2);
    world.want(1, &[0]);
    let end = world.end_of(1);
    (0..600).for_each(|_| world.carry(end, Frame::Pong { number: 0 }.encode()));
    world.settle();
    let reason = CloseReason::Misbehaved(Misbehaviour::Flood);
    assert_eq!(world.nodes[0].closed, vec![reason]);
}

/// W-X36: over sessions that NATs let be.
#[test]
fn an_introducer_is_asked_to_carry_and_carries_in_its_author_s_name_only() {
    let mut world = World::new(3);
    world.want(0, &[1]);
    world.want(2, &[1]);
    let [a, introducer, c] = [0, 1, 2].map(|node| world.nodes[node].key());
    let forward = |from, to, length| Forward { from, to, body: vec![7; length].into() };
    assert!(world.nodes[0].exchange.forward(introducer, forward(a, c, MAX_FORWARD_BYTES)));
    assert!(!world.nodes[0].exchange.forward(c, forward(a, c, 1)), "no session");
    assert!(!world.nodes[0].exchange.forward(introducer, forward(a, c, MAX_FORWARD_BYTES + 1)));
    world.settle();
    let asked = Output::Forwarded { by: a, forward: forward(a, c, MAX_FORWARD_BYTES) };
    assert_eq!(world.nodes[1].told.last(), Some(&asked));
    assert!(world.nodes[1].exchange.forward(c, forward(a, c, MAX_FORWARD_BYTES)));
    world.settle();
    let came = Output::Forwarded { by: introducer, forward: forward(a, c, MAX_FORWARD_BYTES) };
    assert_eq!(world.nodes[2].told.last(), Some(&came));

    let told = world.nodes[1].told.len();
    for bad in [forward(c, a, 1), forward(introducer, c, 1), forward(a, a, 1), forward(a, c, 1001)] {
        world.say(0, &Frame::Forward(bad));
    }
    assert_eq!(world.nodes[1].told.len(), told, "dropped");
}

#[test]
fn a_goodbye_travels_though_nobody_holds_the_node_any_more() {
    let mut world = World::new(2);
    world.want(0, &[1]);
    let secret = SecretKey::from_random([99; 32]);
    let left = Record { lifetime_s: 0, ..sample(&secret) };
    let left =
        SignedRecord::sign(left, &secret, world.keys.network_id(), &mut ChaCha8Rng::from_seed([3; 32]));
    let now = world.now;
    world.nodes[0].exchange.push(&left, None, now);
    world.pass(NEWS_DELAY);
    assert!(world.nodes[1].table.held[&secret.public()].record().is_goodbye());
}

#[test]
fn nobody_is_told_anything_about_itself() {
    let mut world = World::new(2);
    world.want(0, &[1]);
    let forged = world.sign(&world.nodes[0].secret, 1000);
    world.say(1, &Frame::Sync(Message::record(&forged)));
    assert_eq!(world.nodes[0].table.held[&world.nodes[0].key()].record().sequence.0, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// W-X19, W-X20: over any connected graph of sessions, with streams that break.
    #[test]
    fn any_fleet_converges(links in prop::collection::vec((0_usize..8, 0_usize..8), 0..12), cuts in prop::collection::vec((0_usize..8, any::<bool>()), 0..6)) {
        let mut world = World::new(8);
        for node in 1..8 {
            let mut wanted: Vec<usize> = links.iter().filter(|link| link.0 == node).map(|link| link.1).collect();
            wanted.push(node - 1);
            world.want(node, &wanted);
        }
        for (sequence, (node, silently)) in cuts.into_iter().enumerate() {
            world.change(node, 10 + sequence as u64);
            let Some(&end) = world.streams.keys().find(|end| end.0 == node) else { continue };
            match silently {
                true => world.swallow(end),
                false => {
                    world.cut(end);
                    world.handle(node, SessionEvent::Closed { id: end.1, reason: "cut".into() });
                }
            }
            world.pass(SECOND * 7);
        }
        world.pass(SECOND * 240);
        for node in 0..8 {
            prop_assert_eq!(&world.nodes[node].table.held, &world.nodes[0].table.held);
            let mut keys: Vec<_> = world.sessions(node).into_iter().map(|session| session.key).collect();
            let all = keys.len();
            keys.sort_unstable();
            keys.dedup();
            prop_assert_eq!(keys.len(), all, "one session for each pair");
        }
    }

    #[test]
    fn no_bytes_are_too_strange_for_a_session(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..20),
        greeted: bool,
        kind in 0_u8..6,
    ) {
        let mut world = World::new(2);
        match greeted {
            true => world.want(1, &[0]),
            false => drop(world.open(1, Target { address: World::address(0), expected: None })),
        }
        let end = world.end_of(1);
        for mut frame in frames {
            // Often right at the beginning: an array of two, and a kind.
            if frame.len() > 2 && frame[2] % 2 == 0 {
                (frame[0], frame[1]) = (0x82, kind);
            }
            world.carry(end, frame);
        }
        world.settle();
        world.pass(SECOND);
    }
}
