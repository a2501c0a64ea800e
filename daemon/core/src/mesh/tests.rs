use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use super::*;
use crate::config::{Hostname, RelayMode, RelaySettings, Sharing};
use crate::contact::{Contact, Place, Via};
use crate::identity::Sequence;
use crate::kernel::Link;
use crate::pool::Places;
use crate::reconcile::{apply_to, diff};
use crate::secret::MeshSecret;
use crate::status::SourceState;
use crate::store::Outcome;
use crate::time::WallClock;

/// The port that the nodes' hellos come from.
const PORT: u16 = 51831;

/// A node at 192.0.2.`number`, with what it was told to send.
struct Node {
    mesh: Mesh,
    from: SocketAddr,
}

impl Node {
    fn start(number: u8, at: Now) -> Self {
        let settings = Settings {
            interface: "wgmesh0".parse().unwrap(),
            hostname: Hostname::from_system("node"),
            listen_port: 51820,
            subnet: None,
            advertise_routes: BTreeSet::new(),
            accept_routes: BTreeSet::new(),
            lan: true,
            punching: true,
            exchange: false,
            gossip: true,
            exchange_port: None,
            dht: false,
            dandelion: false,
            relay: RelaySettings { mode: RelayMode::Sealed, serve: None, max_pairs: 16, force: false },
            max_peers: 10,
            sessions: Places { target: 4, max: 32 },
            sharing: Sharing::default(),
        };
        let keys = MeshKeys::derive(&MeshSecret::from_random([7; 32]).mesh_key());
        let state = NodeState::from_random([number; 32]);
        let address: IpNet = format!("192.0.2.{number}/24").parse().unwrap();
        let (name, addresses) = ("eth0".to_owned(), BTreeSet::from([address]));
        let underlay = vec![Underlay { index: 2, name, multicast: true, ethernet: true, addresses }];
        let mut mesh = Mesh::new(settings, keys, state, underlay, [number; 32], at);
        mesh.handle(Event::Started(Arc::default()), at);
        Self { mesh, from: SocketAddr::new(address.addr(), PORT) }
    }

    fn key(&self) -> PublicKey {
        self.mesh.record.record().key
    }

    /// Lets go of a peer, as where its tunnel stays stale.
    fn forget(&mut self, key: PublicKey) {
        self.mesh.forget(key);
        self.mesh.contacts.settle();
        self.mesh.reach.paths.settle();
    }

    /// Lets its kernel hold what it wants. Returns what it sends, as [`Self::sent`] does.
    fn settle(&mut self, at: Now) -> Vec<Event> {
        let mut sent = Vec::new();
        loop {
            let generation = self.mesh.planned.generation;
            if self.mesh.planned.answered < generation {
                let outcome = Ok(Arc::default());
                self.mesh.handle(Event::Kernel(KernelReport { generation, outcome, fresh: true }), at);
            }
            sent.extend(self.sent());
            if self.mesh.planned.answered == self.mesh.planned.generation {
                return sent;
            }
        }
    }

    fn set_routes(&mut self, advertised: &[IpNet], accepted: &[IpNet], at: Now) {
        let [advertise_routes, accept_routes] =
            [advertised, accepted].map(|nets| nets.iter().copied().collect());
        self.mesh.handle(Event::Reconfigure { advertise_routes, accept_routes }, at);
    }

    fn routes_to(&self, net: IpNet) -> bool {
        self.mesh.desired().is_some_and(|plan| plan.routes.iter().any(|route| route.destination == net))
    }

    /// Returns what it sends, as it arrives at another node.
    fn sent(&mut self) -> Vec<Event> {
        let commands = std::iter::from_fn(|| self.mesh.poll_command());
        let sent = commands.filter_map(|command| match command {
            Command::Send(Transmit { bytes, .. }) => {
                Some(Event::Datagram { via: Via::Link(2), from: self.from, bytes })
            }
            Command::SaveState(_)
            | Command::SaveCache(_)
            | Command::SaveBook(_)
            | Command::Apply { .. }
            | Command::Probe(_)
            | Command::Look => None,
            Command::Dht(_) | Command::SaveDhtNodes(_) => None,
            Command::Relay(_) | Command::SaveRouted(_) => None,
            Command::Gossip { .. }
            | Command::Dial(_)
            | Command::SendFrame { .. }
            | Command::CloseSession(_) => None,
        });
        sent.collect()
    }
}

fn at(millis: u64) -> Monotonic {
    now(millis).monotonic
}

fn now(millis: u64) -> Now {
    Now {
        monotonic: Monotonic::from_nanos(millis * 1_000_000),
        wall: WallClock::from_millis(1_800_000_000_000 + millis),
    }
}

/// Two nodes of which the first has asked the second, whose answer comes just when the first would ask again.
fn asked() -> (Node, Vec<Event>) {
    let (mut one, mut other) = (Node::start(1, now(0)), Node::start(2, now(0)));
    let announces = (one.sent(), other.sent());
    one.mesh.handle_all(announces.1, now(1));
    other.mesh.handle_all(announces.0, now(1));
    // Nobody's kernel holds anybody yet: the first hello waits for it until its time is over.
    one.mesh.handle(Event::Timeout, now(200));
    let question = one.sent();
    assert_eq!(question.len(), 1);
    other.mesh.handle_all(question, now(201));
    let answer = other.sent();
    assert!(!answer.is_empty());
    (one, answer)
}

/// A busy node reads late. If it then asked all those again whose answers wait, it would be busier still.
#[test]
fn nobody_is_asked_again_whose_answer_waits() {
    let (mut one, answer) = asked();
    one.mesh.handle(Event::Timeout, now(500));
    assert_eq!(one.sent().len(), 1, "without an answer, the question is repeated");
    drop(answer);

    let (mut one, answer) = asked();
    one.mesh.handle_all(std::iter::once(Event::Timeout).chain(answer), now(500));
    assert_eq!(one.sent().len(), 0, "neither kernel holds the other yet: there is nothing to confirm");
}

/// Two nodes that have met, and all that the second said meanwhile.
fn met() -> (Node, Node, Vec<Event>) {
    let (mut one, mut other) = (Node::start(1, now(0)), Node::start(2, now(0)));
    let mut told = (one.settle(now(0)), other.settle(now(0)));
    let mut all = Vec::new();
    for at in (0..1000).step_by(50).map(now) {
        all.extend(told.1.clone());
        one.mesh.handle_all(told.1.into_iter().chain([Event::Timeout]), at);
        other.mesh.handle_all(told.0.into_iter().chain([Event::Timeout]), at);
        told = (one.settle(at), other.settle(at));
    }
    assert!(one.mesh.contacts.get(&other.key()).unwrap().proved_place().is_some());
    (one, other, all)
}

/// A hello echoes a token of this run for as long as the run lasts, also once its sender is gone.
#[test]
fn copies_of_hellos_move_nothing_after_their_sender_was_given_up() {
    let (mut one, other, said) = met();
    one.forget(other.key());
    for event in said {
        let Event::Datagram { via, bytes, .. } = event else { continue };
        let from = SocketAddr::from(([192, 0, 2, 66], PORT));
        one.mesh.handle(Event::Datagram { via, from, bytes }, now(1002));
    }
    assert!(one.mesh.drops()["replayed"] > 0);
    let contact = one.mesh.contacts.get(&other.key());
    assert_eq!(contact.and_then(Contact::proved_place), None);
}

#[test]
fn so_many_are_given_up_that_all_must_prove_themselves_anew() {
    let (mut one, _, _) = met();
    let token = one.mesh.token;
    let place = Place { via: Via::Link(2), address: one.from };
    for number in 0..=1024_u32 {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let key = PublicKey::from_bytes(key);
        let stamp = Stamp { sequence: Sequence(1), counter: 1 };
        assert_eq!(one.mesh.token, token);
        one.mesh.contacts.entry(key).or_insert_with(|| Contact::new(place, true, Some(stamp), at(0)));
        one.forget(key);
    }
    assert_ne!(one.mesh.token, token);
    assert!(one.mesh.reach.last_stamps.is_empty());
}

/// A peer that was given up and comes back is heard in gossip again.
#[test]
fn gossip_knows_the_addresses_of_a_peer_that_recovers() {
    let (mut one, other, _) = met();
    let from = SocketAddr::new(other.mesh.addresses().v4.into(), one.mesh.keys.gossip_port());
    let is_known = |one: &mut Node| {
        let before = one.mesh.drops().get("gossip of a stranger").copied();
        one.mesh.handle(Event::Gossip { from, bytes: vec![0] }, now(1003));
        one.mesh.drops().get("gossip of a stranger").copied() == before
    };
    assert!(is_known(&mut one));
    one.forget(other.key());
    one.mesh.reach.tunnels.health.evict(other.key(), at(1002));
    assert!(!is_known(&mut one));
    one.mesh.note_claim(other.key(), Outcome::Refreshed, true);
    assert!(is_known(&mut one));
}

/// Whatever counts what others want carried counts for peers only: it is forgotten with them.
#[test]
fn nothing_is_kept_for_those_who_are_no_peers() {
    let (mut one, other, _) = met();
    assert!(one.mesh.take_carry(other.key(), now(1002)));
    let kept = one.mesh.reach.carries.len();
    assert!(!one.mesh.take_carry(PublicKey::from_bytes([9; 32]), now(1002)));
    assert_eq!(one.mesh.reach.carries.len(), kept);
}

/// A host that was behind a NAT and has a public address now is not to be looked for behind that NAT.
#[test]
fn what_peers_saw_goes_once_they_see_this_host_itself() {
    let (mut one, other, _) = met();
    let seen = "203.0.113.7:4000".parse().unwrap();
    one.mesh.on_seen(other.key(), seen, now(1002));
    assert_eq!(one.mesh.mapped(), [seen]);
    one.mesh.on_seen(other.key(), SocketAddr::new(one.from.ip(), 51820), now(1003));
    assert_eq!(one.mesh.mapped(), []);
}

/// What gossip sent is no traffic, whichever reports come between.
#[test]
fn only_a_reading_tells_of_traffic() {
    let (mut one, other, _) = met();
    let report = |one: &mut Node, fresh, tx_bytes| {
        let endpoint = Some(SocketAddr::new(other.from.ip(), 51820));
        let last_handshake = Some(now(1000).wall);
        let peer = ObservedPeer { endpoint, last_handshake, tx_bytes, ..ObservedPeer::default() };
        let outcome = Ok(Arc::new(Observed { peers: [(other.key(), peer)].into(), ..Observed::default() }));
        let generation = one.mesh.planned.generation;
        one.mesh.handle(Event::Kernel(KernelReport { generation, outcome, fresh }), now(1002));
        one.mesh.reach.paths.get(&other.key()).is_some_and(|paths| paths.is_used(at(1002)))
    };
    assert!(!report(&mut one, true, 0));
    let said = crate::gossip::Output::Send { to: other.key(), bytes: vec![0; 1000] };
    one.mesh.follow_gossip_output(said, now(1002));
    assert!(!report(&mut one, false, 0));
    assert!(!report(&mut one, true, 1000));
    assert!(report(&mut one, true, 2000));
}

/// With `mode = "off"` an earlier run's relay may still be the kernel's endpoint. Nothing is due for it.
#[test]
fn without_relays_none_is_looked_for() {
    let (mut one, other, _) = met();
    one.mesh.settings.relay.mode = RelayMode::Off;
    assert!(!one.mesh.look_for_another_relay(other.key(), now(1002)));
    assert!(one.mesh.relays.seekers.is_empty());
    assert_eq!(one.mesh.next_relay_step(), None);
}

/// M-28, M-32: whoever passes on forged records in gossip is not listened to any more, by a node without sessions too.
#[test]
fn forged_records_in_gossip_cost_their_sender_its_voice() {
    let (mut one, mut other) = (Node::start(1, now(0)), Node::start(2, now(0)));
    one.settle(now(0));
    let told = other.settle(now(0));
    one.mesh.handle_all(told, now(1));
    one.settle(now(1));
    let from = SocketAddr::new(other.mesh.addresses().v4.into(), one.mesh.keys.gossip_port());
    let mut forged = other.mesh.record.as_bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let bytes = crate::gossip::passing_on(&forged);
    for _ in 0..4 {
        one.mesh.handle(Event::Gossip { from, bytes: bytes.clone() }, now(2));
    }
    let dropped = ["bad record in gossip", "misbehaved", "gossip of one shut out"]
        .map(|reason| one.mesh.drops().get(reason).copied());
    assert_eq!(dropped, [Some(2), Some(1), Some(2)]);
}

/// W-D7, W-D9: a network that is advertised, accepted and withdrawn on running nodes.
#[test]
fn routes_are_told_and_taken_at_once() {
    let net: IpNet = "10.77.0.0/24".parse().unwrap();
    let (mut one, mut other) = (Node::start(1, now(0)), Node::start(2, now(0)));
    one.settle(now(0));
    other.settle(now(0));

    other.set_routes(&[net], &[], now(10));
    let told = other.settle(now(10));
    one.mesh.handle_all(told, now(11));
    one.settle(now(11));
    assert_eq!(
        one.mesh.store().iter().map(|(_, peer)| peer.record().record().routes.len()).sum::<usize>(),
        1
    );
    assert!(!one.routes_to(net), "nobody has accepted it");

    one.set_routes(&[], &[net], now(20));
    assert!(one.routes_to(net));
    one.settle(now(20));

    other.set_routes(&[], &[], now(30));
    let told = other.settle(now(30));
    one.mesh.handle_all(told, now(31));
    assert!(!one.routes_to(net));
}

/// W-D7: a reload of what is in force anyway.
#[test]
fn routes_that_stay_as_they_are_cause_nothing() {
    let net = "10.77.0.0/24".parse().unwrap();
    let mut node = Node::start(1, now(0));
    node.set_routes(&[net], &[net], now(0));
    node.settle(now(0));
    let sequence = node.mesh.record.record().sequence;

    node.set_routes(&[net], &[net], now(1));

    assert!(node.mesh.poll_command().is_none());
    assert_eq!(node.mesh.record.record().sequence, sequence);
}

/// A node that has nothing to do is not one that was stopped.
#[test]
fn only_who_is_called_late_has_stood_still() {
    let mut node = Node::start(1, now(0));
    node.settle(now(0));
    let (due, _) = node.mesh.poll_timeout().unwrap();
    assert!(due < now(6000).monotonic, "alone it announces itself each five seconds");
    assert_eq!(node.mesh.standstill(now(12_990).monotonic), Some(Duration::from_millis(12_990)));

    (node.mesh.talk, node.mesh.announcing.announce_at) = (None, None);
    assert_eq!(
        node.mesh.standstill(now(36_990).monotonic),
        None,
        "a report of the kernel is due each half minute"
    );
    assert_eq!(node.mesh.standstill(now(37_000).monotonic), Some(Duration::from_secs(37)));
}

/// P-9: whoever is named no more may be forgotten like any other peer.
#[test]
fn a_peer_that_is_released_stays_and_ages() {
    let (mut one, mut other) = (Node::start(1, now(0)), Node::start(2, now(0)));
    let key = other.mesh.public_key();
    one.mesh.handle_all(other.sent(), now(1));
    one.mesh.handle(Event::AddPeer(key, None), now(2));
    assert_eq!(one.mesh.store().next_removal(), None);

    one.mesh.handle(Event::ReleasePeer(key), now(3));

    assert!(one.mesh.store().get(key).is_some());
    assert!(one.mesh.store().next_removal().is_some());
}

/// W-X32: a default route changes where packets leave, and no link or address with it.
#[test]
fn a_new_default_route_has_stun_ask_again() {
    let mut node = Node::start(1, now(0));
    let server = SocketAddr::from(([203, 0, 113, 1], 3478));
    node.mesh.handle(Event::StunServers(vec![server]), now(0));
    (0..100).for_each(|step| node.mesh.handle(Event::Timeout, now(step * 100)));
    let asks = |node: &mut Node| {
        let commands = std::iter::from_fn(|| node.mesh.poll_command());
        let to_server =
            |command: &Command| matches!(command, Command::Send(sent) if sent.to == Recipient::Node(server));
        commands.filter(to_server).count()
    };
    assert!(asks(&mut node) > 0);
    node.mesh.handle(Event::Timeout, now(11_000));
    assert_eq!(asks(&mut node), 0, "the round is over");
    let links = node.mesh.underlay.clone();
    node.mesh.handle(Event::Underlay(links), now(12_000));
    assert!(asks(&mut node) > 0);
}

/// M-5: whoever was removed is taken from nobody, whatever it says and over a restart, until it is named again.
#[test]
fn a_peer_that_was_removed_comes_back_only_when_it_is_named() {
    let (mut one, mut other) = (Node::start(1, now(0)), Node::start(2, now(0)));
    let key = other.mesh.public_key();
    one.mesh.handle_all(other.sent(), now(1));
    one.mesh.handle(Event::RemovePeer(key), now(2));
    let renew = |other: &mut Node, at| {
        other.set_routes(&[format!("10.{}.0.0/24", at / 1000).parse().unwrap()], &[], now(at));
        other.settle(now(at))
    };
    one.mesh.handle_all(renew(&mut other, 1000), now(1001));
    assert!(one.mesh.store().is_empty() && one.mesh.drops().contains_key("removed"));

    one.mesh.handle(Event::Timeout, now(10_000));
    let saved = std::iter::from_fn(|| one.mesh.poll_command()).find_map(|command| match command {
        Command::SaveBook(book) => Some(book),
        _ => None,
    });
    let mut one = Node::start(1, now(20_000));
    one.mesh.take_book(saved.expect("a removal is written soon"), now(20_000));
    one.mesh.handle_all(renew(&mut other, 21_000), now(21_001));
    assert!(one.mesh.store().is_empty());
    assert_eq!(one.mesh.status(now(21_002)).shut_out[0].public_key, key);

    for (at, named) in [(22_000, Event::AddPeer(key, None)), (24_000, Event::Welcome(key))] {
        one.mesh.handle(named, now(at));
        one.mesh.handle_all(renew(&mut other, at + 1000), now(at + 1001));
        assert!(one.mesh.store().get(key).is_some());
        assert!(one.mesh.status(now(at + 1002)).shut_out.is_empty());
        one.mesh.handle(Event::RemovePeer(key), now(at + 1003));
        assert!(one.mesh.store().is_empty());
    }
}

/// a record that others keep is taken for its lifetime and the day by which clocks may differ, whatever the window against
/// replayed messages.
#[test]
fn a_record_that_others_keep_is_taken_for_an_hour_and_the_tolerance() {
    let record = Node::start(2, now(0)).mesh.record.clone();
    let last = 25 * 3_600_000;
    for (at, is_taken) in [(last, true), (last + 1, false)] {
        let mut one = Node::start(1, now(at));
        one.mesh.on_told(record.clone(), crate::store::Source::Gossip, now(at).monotonic, now(at));
        assert_eq!(one.mesh.store().len(), usize::from(is_taken), "after {at} ms");
        assert_eq!(one.mesh.drops().contains_key("expired"), !is_taken);
    }
}

/// Found in a review: nobody has told of a peer that an earlier run has left in the kernel, so there was nothing to remove.
#[test]
fn a_peer_that_only_the_kernel_knows_can_be_removed_too() {
    let mut node = Node::start(1, now(0));
    let key = Node::start(2, now(0)).key();
    node.settle(now(0));
    node.mesh.orphans.insert(key, ObservedPeer::default());
    node.mesh.dirty = true;
    let is_planned = |node: &mut Node, at| {
        node.mesh.handle(Event::Timeout, at);
        node.mesh.desired().is_some_and(|plan| plan.peers.contains_key(&key))
    };
    assert!(is_planned(&mut node, now(1)));
    node.settle(now(2));

    node.mesh.handle(Event::RemovePeer(key), now(3));

    assert!(!is_planned(&mut node, now(4)));
}

/// W-X43, W-X44: what is off is not there, what has nothing to work with says so, and neither is in the other's way.
#[test]
fn each_source_tells_of_itself() {
    let mut node = Node::start(1, now(0));
    let states = |node: &Node| {
        let sources = node.mesh.status(now(9)).sources;
        sources.into_iter().map(|source| (source.name, source.state)).collect::<Vec<_>>()
    };
    let running = |name: &str| (name.to_owned(), SourceState::Running);
    let starting = |name: &str| (name.to_owned(), SourceState::Starting);
    assert_eq!(states(&node), [running("lan"), starting("gossip"), running("cache")]);
    let stranger = Node::start(2, now(0)).mesh.public_key();
    node.mesh.handle(Event::AddPeer(stranger, None), now(1));
    node.mesh.handle(Event::Underlay(Vec::new()), now(2));
    let failing = ("lan".to_owned(), SourceState::Failing);
    assert_eq!(states(&node), [failing, starting("manual"), starting("gossip"), running("cache")]);
}

/// Where somebody else's link is in the place of ours, our tunnels are gone, and `status` says why.
#[test]
fn a_link_in_the_place_of_ours_is_no_tunnel_and_told_of() {
    let mut node = Node::start(1, now(0));
    node.settle(now(1));
    let refused = KernelTrouble::Refused("wgmesh0 is a bridge".to_owned());
    let generation = node.mesh.planned.generation;
    let desired = node.mesh.desired().unwrap();
    let mut observed = Observed::default();
    let writes = diff(desired, &observed).unwrap();
    apply_to(&mut observed, &writes);
    let outcome = Ok(Arc::new(observed));
    node.mesh.handle(Event::Kernel(KernelReport { generation, outcome, fresh: true }), now(1));
    assert!(matches!(node.mesh.observed.as_ref().unwrap().link, Link::WireGuard { .. }));
    for at in [2, 3] {
        let report = KernelReport { generation, outcome: Err(refused.clone()), fresh: false };
        node.mesh.handle(Event::Kernel(report), now(at));
        assert_eq!(node.mesh.observed.as_ref().unwrap().link, Link::Missing);
        let status = node.mesh.status(now(at));
        assert!(!status.kernel.converged);
        assert_eq!(status.problems, ["wgmesh0 is a bridge"]);
    }
}
