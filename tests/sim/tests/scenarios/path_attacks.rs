//! What outsiders and members with bad intentions can do to paths: nothing but waste a bounded effort.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use wgmesh_core::key::PublicKey;
use wgmesh_core::message::{DiscoBody, PING_PADDING_BYTES};
use wgmesh_core::seal;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::nat::Kind;
use wgmesh_sim::network::{Conditions, Datagram, HostId, Payload};
use wgmesh_sim::outsider::{Forgery, invented_announce};
use wgmesh_sim::world::{LAN_PORT, Violation, World};

use crate::fleet::{millis, mins, secs};
use crate::meeting::Meeting;

/// WireGuard's port on every host.
const PORT: u16 = 51820;

/// What one node sends to an address in ten minutes because others claim to be there, in datagrams: seven in the first four
/// seconds, then ever fewer.
const WORTH: usize = 22;

/// What such a datagram weighs at most, in bytes.
const PING_BYTES: usize = 200;

/// Many invented nodes all claim to be at one address: what is sent there does not grow with their number.
#[test]
fn however_many_nodes_claim_a_victims_address_it_is_hardly_pinged() -> Result<(), Violation> {
    let mut world = World::new(1);
    let site = world.add_site(Kind::PortRestricted);
    let node = world.add_host(HostPlan { max_peers: 100, ..HostPlan::default() }, &[site]);
    let hostile = world.add_host(HostPlan::default(), &[site]);
    let public = world.add_site(Kind::None);
    let victim = world.add_host(HostPlan { secret: 9, ..HostPlan::default() }, &[public]);
    world.start(node)?;
    world.run_for(secs(5))?;
    let address = world.address(victim);
    let candidates: Vec<_> = (0..8).map(|port| SocketAddr::new(address, 40_000 + port)).collect();
    world.record();
    for _ in 0..90 {
        announce(&mut world, hostile, &candidates);
        world.run_for(millis(10))?;
    }
    world.run_for(mins(10))?;
    let sent = sent_to(&world.take_recording(), address);
    assert!(sent > 0, "one ping is fair");
    assert!(sent <= WORTH, "{sent} datagrams");
    Ok(())
}

/// Every node of a mesh hears of one record.
#[test]
fn a_victims_address_in_a_record_gets_a_few_short_pings_from_each_node() -> Result<(), Violation> {
    let mut world = World::new(11);
    let site = world.add_site(Kind::PortRestricted);
    let nodes = world.add_hosts(20, &HostPlan::default(), site);
    let hostile = world.add_host(HostPlan::default(), &[site]);
    let public = world.add_site(Kind::None);
    let victim = world.add_host(HostPlan { secret: 9, ..HostPlan::default() }, &[public]);
    nodes.iter().try_for_each(|&node| world.start(node))?;
    world.run_until_meshed(secs(10))?;
    let address = world.address(victim);
    let candidates: Vec<_> = (0..8).map(|port| SocketAddr::new(address, 40_000 + port)).collect();
    world.record();
    announce(&mut world, hostile, &candidates);
    world.run_for(secs(4))?;
    let at_first = world.take_recording();
    world.record();
    world.run_for(mins(10))?;
    let later = world.take_recording();
    let [at_first, later] = [at_first, later].map(|recording| pings_to(&recording, address));
    assert!(at_first.iter().chain(&later).all(|bytes| *bytes <= PING_BYTES));
    assert!((nodes.len()..=8 * nodes.len()).contains(&at_first.len()), "{} pings", at_first.len());
    assert!(later.len() <= (WORTH - 7) * nodes.len(), "{} pings", later.len());
    Ok(())
}

/// Issue "reach any peer", 5: whoever has others ping a victim spends more on it than the victim gets.
#[test]
fn offers_that_name_a_victim_cost_more_than_the_victim_gets() -> Result<(), Violation> {
    let mut meeting = Meeting::new(12, [Kind::None; 2]);
    meeting.meet()?;
    let [member, receiver] = meeting.nodes;
    let key = meeting.world.host(member).public_key();
    let victim: SocketAddr = "45.77.1.1:40000".parse().unwrap();
    let to = SocketAddr::new(meeting.world.address(receiver), PORT);
    let mut spent = 0;
    meeting.world.record();
    for round in 0..600 {
        let forged = Forged { member, claimed: key, to: receiver, counter: 2 * round };
        let crowd = [0, 1, 2].map(|port| SocketAddr::new(victim.ip(), 40_000 + 3 * round as u16 + port));
        let offer = forged.with(&meeting.world, |forgery| forgery.offer(&crowd)).into();
        let forged = Forged { counter: 2 * round + 1, ..forged };
        let bytes = forged.disco(&mut meeting.world, DiscoBody::Carried { from: key, offer });
        spent += bytes.len();
        meeting.world.inject(member, PORT, to, &Payload::Daemon(bytes.into()));
        meeting.world.run_for(millis(100))?;
    }
    meeting.world.run_for(mins(1))?;
    let pings = pings_to(&meeting.world.take_recording(), victim.ip());
    let received: usize = pings.iter().sum();
    assert!(pings.len() > 2 * WORTH, "what was spent buys pings: {}", pings.len());
    assert!(received < spent, "{received} bytes for {spent}");
    Ok(())
}

#[test]
fn a_single_record_has_its_addresses_pinged_for_a_while_and_no_longer() -> Result<(), Violation> {
    let mut world = World::new(2);
    let site = world.add_site(Kind::PortRestricted);
    let node = world.add_host(HostPlan::default(), &[site]);
    let hostile = world.add_host(HostPlan::default(), &[site]);
    let public = world.add_site(Kind::None);
    let victim = world.add_host(HostPlan { secret: 9, ..HostPlan::default() }, &[public]);
    world.start(node)?;
    world.run_for(secs(5))?;
    let address = world.address(victim);
    let candidates: Vec<_> = (0..8).map(|port| SocketAddr::new(address, 40_000 + port)).collect();
    world.record();
    announce(&mut world, hostile, &candidates);
    world.run_for(mins(11))?;
    let sent = sent_to(&world.take_recording(), address);
    assert!((1..=WORTH).contains(&sent), "{sent} datagrams");
    world.record();
    world.run_for(mins(20))?;
    assert_eq!(sent_to(&world.take_recording(), address), 0, "the node is forgotten");
    Ok(())
}

#[test]
fn addresses_at_which_no_host_can_be_are_never_pinged() -> Result<(), Violation> {
    let mut meeting = Meeting::new(3, [Kind::None; 2]);
    meeting.meet()?;
    let [member, receiver] = meeting.nodes;
    let key = meeting.world.host(member).public_key();
    let own = SocketAddr::new(meeting.world.address(receiver), PORT);
    let inner = meeting.world.host(receiver).kernel.addresses().next().expect("it has a mesh address");
    let inner = SocketAddr::new(inner.addr(), PORT);
    let mut wrong: Vec<SocketAddr> = [
        "127.0.0.1:51820",
        "255.255.255.255:51820",
        "239.192.1.1:51830",
        "0.0.0.0:51820",
        "169.254.1.1:51820",
        "45.1.1.1:0",
        "[::1]:51820",
        "[ff02::1]:51820",
        "[fe80::1]:51820",
        "[::ffff:45.1.1.1]:51820",
    ]
    .map(|address| address.parse().unwrap())
    .into();
    wrong.extend([own, inner]);
    let fair: SocketAddr = "45.77.1.1:40000".parse().unwrap();
    meeting.world.record();
    let to = meeting.world.host(receiver).public_key();
    for (counter, chunk) in (0..).zip(wrong.chunks(4)) {
        let forged = Forged { member, claimed: key, to: receiver, counter: 2 * counter };
        let offer = forged.with(&meeting.world, |forgery| forgery.offer(&[chunk, &[fair]].concat()));
        carry(&mut meeting, offer, to, 2 * counter + 1);
        meeting.world.run_for(secs(10))?;
    }
    let recording = meeting.world.take_recording();
    let pinged = |address: SocketAddr| recording.iter().any(|datagram| datagram.to == address);
    assert!(pinged(fair), "the offers came");
    // But for the two that only this host knows to be nobody's.
    assert_eq!(drops(&meeting.world, receiver, "bad address"), 10);
    let own_packets = recording.iter().filter(|datagram| datagram.from == own && datagram.to == own);
    assert_eq!(own_packets.count(), 0);
    for address in wrong.into_iter().filter(|address| *address != own) {
        assert!(!pinged(address), "{address}");
    }
    Ok(())
}

/// Everything that was ever sent from WireGuard's port is sent again, at once and later, by somebody else.
#[test]
fn replayed_pings_are_not_answered_and_move_nothing() -> Result<(), Violation> {
    let mut meeting = Meeting::new(4, [Kind::FullCone, Kind::None]);
    let elsewhere = meeting.world.add_site(Kind::None);
    let outsider = meeting.world.add_host(HostPlan { secret: 9, ..HostPlan::default() }, &[elsewhere]);
    meeting.world.record();
    meeting.meet()?;
    meeting.world.run_for(secs(20))?;
    let recording = meeting.world.take_recording();
    let before = endpoints(&meeting);
    let address = meeting.world.address(outsider);
    for pause in [millis(1), mins(3)] {
        meeting.world.run_for(pause)?;
        meeting.world.record();
        let mut replayed = 0;
        for datagram in &recording {
            let is_disco = matches!(&datagram.payload, Payload::Daemon(bytes) if bytes[..2] == [1, 3]);
            if datagram.from.port() == PORT && is_disco {
                replayed += 1;
                meeting.world.inject(outsider, PORT, datagram.to, &datagram.payload);
                meeting.world.run_for(millis(2))?;
            }
        }
        meeting.world.run_for(secs(5))?;
        assert!(replayed > 10, "{replayed}: pings and pongs of three pairs");
        assert_eq!(sent_to(&meeting.world.take_recording(), address), 0);
        assert!(meeting.world.is_meshed(), "{:?}", meeting.world.why_unmeshed());
        assert_eq!(endpoints(&meeting), before);
    }
    Ok(())
}

/// A member can prove its own messages and nobody else's.
#[test]
fn a_ping_in_anothers_name_is_refused() -> Result<(), Violation> {
    let mut meeting = Meeting::new(5, [Kind::None; 2]);
    meeting.meet()?;
    let ([member, receiver], claimed) = (meeting.nodes, meeting.introducer);
    let claimed = meeting.world.host(claimed).public_key();
    let before = endpoints(&meeting);
    meeting.world.record();
    let ping = DiscoBody::Ping { id: 1, padding: vec![0; PING_PADDING_BYTES].into() };
    let pong = DiscoBody::Pong { id: 1, seen: ([1; 4], 1).into() };
    for (number, body) in [ping, pong].into_iter().enumerate() {
        let forgery = Forged { member, claimed, to: receiver, counter: number as u64 };
        let bytes = forgery.disco(&mut meeting.world, body);
        let to = SocketAddr::new(meeting.world.address(receiver), PORT);
        meeting.world.inject(member, PORT, to, &Payload::Daemon(bytes.into()));
    }
    meeting.world.run_for(secs(1))?;
    assert_eq!(drops(&meeting.world, receiver, "forged"), 2);
    assert_eq!(endpoints(&meeting), before);
    Ok(())
}

/// Whoever carries an offer says whom it has it from, and that must be its author.
#[test]
fn an_offer_for_a_third_party_is_refused() -> Result<(), Violation> {
    let mut meeting = Meeting::new(6, [Kind::None; 2]);
    let third = meeting.world.add_site(Kind::None);
    let plan = HostPlan { bootstrap: vec![meeting.introducer], ..HostPlan::default() };
    let third = meeting.world.add_host(plan, &[third]);
    meeting.world.start(third)?;
    meeting.meet()?;
    let [member, receiver] = meeting.nodes;
    let claimed = meeting.world.host(third).public_key();
    let victim: SocketAddr = "45.77.1.1:40000".parse().unwrap();
    let to = meeting.world.host(receiver).public_key();
    let forged = Forged { member, claimed, to: receiver, counter: 1 };
    let offer = forged.with(&meeting.world, |forgery| forgery.offer(&[victim]));
    meeting.world.record();
    carry(&mut meeting, offer, to, 2);
    meeting.world.run_for(secs(10))?;
    assert_eq!(sent_to(&meeting.world.take_recording(), victim.ip()), 0);
    assert_eq!(drops(&meeting.world, receiver, "forged"), 1);
    Ok(())
}

#[test]
fn a_member_that_floods_an_introducer_with_offers_is_held_back() -> Result<(), Violation> {
    let mut meeting = Meeting::new(7, [Kind::None; 2]);
    meeting.meet()?;
    let [member, receiver] = meeting.nodes;
    let (key, to) = (meeting.world.host(member).public_key(), meeting.world.host(receiver).public_key());
    let carried = SocketAddr::new(meeting.world.address(receiver), PORT);
    meeting.world.record();
    for counter in 0..1000 {
        let forged = Forged { member, claimed: key, to: receiver, counter: 2 * counter };
        let offer = forged.with(&meeting.world, |forgery| forgery.offer(&[]));
        carry(&mut meeting, offer, to, 2 * counter + 1);
        meeting.world.run_for(millis(10))?;
    }
    let introducer = meeting.world.address(meeting.introducer);
    let from_introducer = |datagram: &&Datagram| datagram.from.ip() == introducer && datagram.to == carried;
    let sent = meeting.world.take_recording().iter().filter(from_introducer).count();
    // Sixteen at once, then four a second, besides what it has to say itself.
    assert!(sent < 16 + 4 * 10 + 30, "{sent} datagrams for a thousand offers");
    assert!(drops(&meeting.world, meeting.introducer, "carry limit") > 900);
    Ok(())
}

/// Who says that a relay is not needed any more says so for itself: the other end is asked, and goes on while it sends there.
#[test]
fn a_relay_that_one_end_alone_releases_goes_on() -> Result<(), Violation> {
    let mut meeting = Meeting::with_relays(9, [Kind::Symmetric; 2], 1);
    meeting.meet_and_talk()?;
    let before = endpoints(&meeting);
    let relay = meeting.relay().expect("it is relayed");
    let peer = meeting.world.host(meeting.nodes[1]).public_key();
    meeting.world.take_longest_silence();
    for counter in 0..100 {
        tell_introducer(&mut meeting, DiscoBody::Release { peer }, counter);
        meeting.world.run_for(millis(50))?;
    }
    assert_eq!((endpoints(&meeting), meeting.relay()), (before, Some(relay)));
    let silence = meeting.world.take_longest_silence();
    assert!(silence < millis(300), "{silence:?}");
    assert!(drops(&meeting.world, meeting.introducer, "carry limit") > 50, "and it is asked only so often");
    Ok(())
}

#[test]
fn a_storm_of_noise_on_wireguards_port_ends_no_tunnel() -> Result<(), Violation> {
    let mut meeting = Meeting::new(8, [Kind::FullCone, Kind::None]);
    let elsewhere = meeting.world.add_site(Kind::None);
    let outsider = meeting.world.add_host(HostPlan { secret: 9, ..HostPlan::default() }, &[elsewhere]);
    meeting.world.set_internet(Conditions { latency: millis(1), ..Conditions::INTERNET });
    meeting.meet()?;
    let [one, other] = meeting.nodes;
    meeting.world.talk(one, other);
    meeting.world.run_for(secs(5))?;
    meeting.world.take_longest_silence();
    let to = SocketAddr::new(meeting.world.address(other), PORT);
    for _ in 0..3000 {
        let noise = meeting.world.random().bytes().repeat(3);
        meeting.world.inject(outsider, PORT, to, &Payload::Daemon(noise.into()));
        meeting.world.run_for(millis(1))?;
    }
    let silence = meeting.world.take_longest_silence();
    assert!(silence < secs(1), "{silence:?}");
    Ok(())
}

/// A forgery by a host of the world.
struct Forged {
    member: HostId,
    claimed: PublicKey,
    to: HostId,
    counter: u64,
}

impl Forged {
    fn with<T>(&self, world: &World, make: impl FnOnce(Forgery<'_>) -> T) -> T {
        let to = world.host(self.to).public_key();
        let Self { member, claimed, counter, .. } = *self;
        make(Forgery { member: world.host(member), claimed, to, counter })
    }

    fn disco(&self, world: &mut World, body: DiscoBody) -> Vec<u8> {
        let now = world.host(self.member).now(world.now());
        let mut random = world.random().clone();
        self.with(world, |forgery| forgery.disco(body, now, &mut random))
    }
}

/// Has the first node ask the introducer to carry an offer to a node.
fn carry(meeting: &mut Meeting, offer: Vec<u8>, to: PublicKey, counter: u64) {
    tell_introducer(meeting, DiscoBody::Carry { to, offer: offer.into() }, counter);
}

/// Has the first node say something to the introducer.
fn tell_introducer(meeting: &mut Meeting, body: DiscoBody, counter: u64) {
    let member = meeting.nodes[0];
    let claimed = meeting.world.host(member).public_key();
    let forged = Forged { member, claimed, to: meeting.introducer, counter };
    let bytes = forged.disco(&mut meeting.world, body);
    let address = SocketAddr::new(meeting.world.address(meeting.introducer), PORT);
    meeting.world.inject(member, PORT, address, &Payload::Daemon(bytes.into()));
}

fn announce(world: &mut World, hostile: HostId, candidates: &[SocketAddr]) {
    let host = world.host(hostile);
    let (keys, now) = (host.keys().clone(), host.now(world.now()));
    let group = SocketAddr::from((keys.multicast_v4(), LAN_PORT));
    let bytes = invented_announce(&keys, candidates, now, world.random());
    world.inject(hostile, LAN_PORT, group, &Payload::Daemon(bytes.into()));
}

/// Returns how long each datagram to an address was, in bytes.
fn pings_to(recording: &[Datagram], address: IpAddr) -> Vec<usize> {
    let bytes = |datagram: &Datagram| match &datagram.payload {
        Payload::Daemon(bytes) => Some(bytes.len()),
        _ => None,
    };
    recording.iter().filter(|datagram| datagram.to.ip() == address).filter_map(bytes).collect()
}

fn sent_to(recording: &[Datagram], address: IpAddr) -> usize {
    recording.iter().filter(|datagram| datagram.to.ip() == address).count()
}

fn drops(world: &World, host: HostId, reason: &str) -> u64 {
    let mesh = world.host(host).mesh().expect("its daemon runs");
    mesh.drops().get(reason).copied().unwrap_or_default()
}

/// Returns where each kernel sends to each peer.
fn endpoints(meeting: &Meeting) -> BTreeMap<(HostId, PublicKey), Option<SocketAddr>> {
    let hosts = meeting.world.hosts();
    hosts
        .flat_map(|(id, host)| host.kernel.peers().map(move |(key, peer)| ((id, key), peer.endpoint)))
        .collect()
}

/// DESIGN 7: a relay learns where a node is from what only that node can have said, now and to this port. Whoever says again what
/// was said before, from elsewhere or to another port, moves nobody's packets.
#[test]
fn a_bind_that_is_said_again_from_elsewhere_moves_nothing() -> Result<(), Violation> {
    let mut meeting = Meeting::with_relays(1, [Kind::Symmetric; 2], 1);
    meeting.world.record();
    meeting.meet_and_talk()?;
    let is_bind = |sent: &Datagram| matches!(&sent.payload, Payload::Daemon(bytes) if seal::is_bind(bytes));
    let binds: Vec<_> = meeting.world.take_recording().into_iter().filter(is_bind).collect();
    let ports: BTreeSet<_> = binds.iter().map(|bind| bind.to).collect();
    assert_eq!(ports.len(), 2, "one for each of the pair");
    let public = meeting.world.add_site(Kind::None);
    let hostile = meeting.world.add_host(HostPlan { secret: 9, ..HostPlan::default() }, &[public]);
    for (bind, &to) in binds.iter().flat_map(|bind| ports.iter().map(move |to| (bind, to))) {
        meeting.world.inject(hostile, PORT, to, &bind.payload);
        meeting.world.run_for(millis(300))?;
    }
    let silence = meeting.world.take_longest_silence();
    assert!(silence < millis(300), "{silence:?}");
    let drops = meeting.world.host(meeting.introducer).mesh().expect("it runs").drops();
    let dropped: u64 = ["replayed", "forged", "seal"].iter().filter_map(|reason| drops.get(reason)).sum();
    assert_eq!(usize::try_from(dropped).ok(), Some(binds.len() * 2), "{drops:?}");
    Ok(())
}
