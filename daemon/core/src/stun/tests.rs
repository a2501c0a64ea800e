//! The client against a small world of its own: one NAT, a few servers, virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::message::AnswerFrom;
use super::message::tests::{read_request, refusal, response};
use super::*;

const OUTSIDE: &str = "198.51.100.1";
const INSIDE: &str = "10.0.0.2";
const PORT: u16 = 51820;

/// One way between host and server.
const WAY: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq)]
enum Mapping {
    None,
    Same,
    PerDestination,
}

/// What a server does beyond answering where it sees us.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Rfc5780,
    Lying,
    Dead,
    Refusing,
    /// Answers from an address that nobody asked.
    FromElsewhere,
}

struct World {
    stun: Stun,
    rng: ChaCha8Rng,
    now: Monotonic,
    mapping: Mapping,
    filtering: Filtering,
    outside: IpAddr,
    hairpin: bool,
    servers: BTreeMap<SocketAddr, Kind>,
    mappings: BTreeMap<SocketAddr, u16>,
    sent_to: BTreeSet<SocketAddr>,
    /// On their way to us.
    flying: Vec<(Monotonic, SocketAddr, Vec<u8>)>,
    requests: usize,
    drops: Vec<&'static str>,
    changes: Vec<(Duration, Option<SocketAddr>, NatType)>,
    started: Monotonic,
}

impl World {
    fn new(mapping: Mapping, filtering: Filtering, servers: &[(&str, Kind)]) -> Self {
        let started = Monotonic::from_nanos(1_000_000_000_000);
        let mut world = Self {
            stun: Stun::new(),
            rng: ChaCha8Rng::from_seed([5; 32]),
            now: started,
            mapping,
            filtering,
            outside: OUTSIDE.parse().unwrap(),
            hairpin: false,
            servers: servers.iter().map(|(at, kind)| (server(at), *kind)).collect(),
            mappings: BTreeMap::new(),
            sent_to: BTreeSet::new(),
            flying: Vec::new(),
            requests: 0,
            drops: Vec::new(),
            changes: Vec::new(),
            started,
        };
        let local = if mapping == Mapping::None { OUTSIDE } else { INSIDE };
        world.stun.restart(&[local.parse().unwrap()], started);
        let order: Vec<SocketAddr> = servers.iter().map(|(at, _)| server(at)).collect();
        world.stun.set_servers(&order, started);
        world
    }

    /// Lets time pass.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut turns_at_once = 0;
        loop {
            while let Some((to, bytes)) = self.stun.poll_transmit(self.now, &mut self.rng) {
                self.send(to, &bytes);
            }
            if self.stun.take_change() {
                let mapped = self.stun.mapped_v4().or(self.stun.mapped_v6());
                self.changes.push((self.now.since(self.started), mapped, self.stun.nat_type()));
            }
            let arrival = self.flying.iter().map(|(at, ..)| *at).min();
            let next = self.stun.poll_timeout().into_iter().chain(arrival).fold(end, Ord::min);
            turns_at_once = if next > self.now { 0 } else { turns_at_once + 1 };
            assert!(turns_at_once < 5, "the clock stands still");
            if next >= end {
                self.now = end;
                return;
            }
            self.now = next.max(self.now);
            let (arrived, flying) =
                std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| *at <= self.now);
            self.flying = flying;
            let arrived: Vec<(Monotonic, SocketAddr, Vec<u8>)> = arrived;
            for (_, from, bytes) in arrived {
                if let Handled::Dropped(why) = self.stun.handle_datagram(from, &bytes, self.now) {
                    self.drops.push(why);
                }
            }
            self.stun.handle_timeout(self.now);
        }
    }

    fn mapped(&mut self, to: SocketAddr) -> SocketAddr {
        let next = 40_000 + u16::try_from(self.mappings.len()).unwrap();
        let port = match self.mapping {
            Mapping::None | Mapping::Same => PORT,
            Mapping::PerDestination => *self.mappings.entry(to).or_insert(next),
        };
        SocketAddr::new(self.outside, port)
    }

    fn is_let_in(&self, from: SocketAddr) -> bool {
        match self.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.sent_to.iter().any(|to| to.ip() == from.ip()),
            Filtering::AddressAndPortDependent | Filtering::Unknown => self.sent_to.contains(&from),
        }
    }

    fn send(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.requests += 1;
        self.sent_to.insert(to);
        let mapped = self.mapped(to);
        if to.ip() == self.outside {
            if self.hairpin {
                self.flying.push((self.now + WAY, mapped, bytes.to_vec()));
            }
            return;
        }
        let (id, answer_from) = read_request(bytes);
        let second = |at: SocketAddr| SocketAddr::new(second_ip(at.ip()), 3479);
        // A second address is a server like the first.
        let found = self.servers.iter().find(|(at, _)| **at == to || second(**at) == to);
        let Some((&first, &kind)) = found else { return };
        let other = (kind == Kind::Rfc5780).then(|| second(first));
        let from = match (answer_from, other) {
            (AnswerFrom::SameAddress, _) => to,
            (AnswerFrom::OtherPort, Some(other)) => SocketAddr::new(to.ip(), other.port()),
            (AnswerFrom::OtherAddress, Some(other)) => other,
            (_, None) => return,
        };
        let (from, answer) = match kind {
            Kind::Dead => return,
            Kind::Refusing => (from, refusal(id)),
            Kind::Lying => (from, response(id, "203.0.113.66:666".parse().unwrap(), None)),
            Kind::FromElsewhere => ("192.0.2.200:3478".parse().unwrap(), response(id, mapped, None)),
            Kind::Plain | Kind::Rfc5780 => (from, response(id, mapped, other)),
        };
        if kind == Kind::FromElsewhere || self.is_let_in(from) {
            self.flying.push((self.now + WAY * 2, from, answer));
        }
    }

    /// The types that were told, one for each change.
    fn types(&self) -> Vec<NatType> {
        self.changes.iter().map(|(.., nat_type)| *nat_type).collect()
    }
}

fn server(at: &str) -> SocketAddr {
    SocketAddr::new(at.parse().unwrap(), 3478)
}

fn second_ip(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 100).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 100).into()),
    }
}

fn outside(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(OUTSIDE.parse().unwrap(), port))
}

const THREE: [(&str, Kind); 3] =
    [("192.0.2.1", Kind::Rfc5780), ("192.0.2.2", Kind::Plain), ("192.0.2.3", Kind::Plain)];

/// P-16, P-18, L-12, X-21, X-22: each kind of NAT is told by its behaviour, within the 3 s.
#[test]
fn each_kind_of_nat_is_recognised() {
    use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    for (mapping, filtering, expected) in [
        (Mapping::None, EndpointIndependent, NatType::Open),
        (Mapping::None, AddressDependent, NatType::Restricted),
        (Mapping::None, AddressAndPortDependent, NatType::PortRestricted),
        (Mapping::Same, EndpointIndependent, NatType::FullCone),
        (Mapping::Same, AddressDependent, NatType::Restricted),
        (Mapping::Same, AddressAndPortDependent, NatType::PortRestricted),
        (Mapping::PerDestination, EndpointIndependent, NatType::Symmetric),
        (Mapping::PerDestination, AddressAndPortDependent, NatType::Symmetric),
    ] {
        for servers in [&THREE[..], &THREE[..1]] {
            let mut world = World::new(mapping, filtering, servers);
            world.run(Duration::from_secs(3));
            let report = world.stun.report();
            assert_eq!(report.nat_type, expected, "{} servers, {filtering:?}", servers.len());
            assert_eq!(report.filtering, filtering);
            assert_eq!(world.stun.mapped_v4().unwrap().ip(), world.outside);
            assert_eq!(world.drops, [""; 0]);
        }
    }
}

/// servers that are only compared leave the filter unknown, which counts as the strictest.
#[test]
fn plain_servers_are_compared() {
    let plain = [("192.0.2.1", Kind::Plain), ("192.0.2.2", Kind::Plain)];
    for (mapping, expected) in [
        (Mapping::None, NatType::Open),
        (Mapping::Same, NatType::PortRestricted),
        (Mapping::PerDestination, NatType::Symmetric),
    ] {
        let mut world = World::new(mapping, Filtering::EndpointIndependent, &plain);
        world.run(Duration::from_millis(200));
        assert_eq!(world.stun.nat_type(), expected);
        assert_eq!(world.stun.report().filtering, Filtering::Unknown);
    }
}

/// an address comes with the first answer, a type takes two servers.
#[test]
fn one_server_gives_an_address_but_no_type() {
    let mut world = World::new(Mapping::Same, Filtering::EndpointIndependent, &[("192.0.2.1", Kind::Plain)]);
    world.run(Duration::from_secs(3));
    assert_eq!(world.changes, [(WAY * 2, outside(PORT), NatType::Unknown)]);
}

/// W-X10, X-23: two agree, so the third's lie counts for nothing in the end, wherever it stands.
#[test]
fn one_lying_server_does_not_win_over_two() {
    for liar in 0..3 {
        let mut servers = THREE.map(|(at, _)| (at, Kind::Plain));
        servers[liar].1 = Kind::Lying;
        let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &servers);
        world.run(Duration::from_secs(3));
        assert_eq!(world.stun.mapped_v4(), outside(PORT));
        assert_eq!(world.stun.nat_type(), NatType::PortRestricted);
        assert_eq!(world.stun.report().servers[liar].mapped, Some("203.0.113.66:666".parse().unwrap()));
    }
}

/// P-18, X-54: silence makes the type unknown after at most 3 s, and is asked again later.
#[test]
fn servers_that_all_fail_make_the_type_unknown() {
    for kind in [Kind::Dead, Kind::Refusing, Kind::FromElsewhere] {
        let servers = THREE.map(|(at, _)| (at, kind));
        let mut world = World::new(Mapping::Same, Filtering::EndpointIndependent, &servers);
        world.run(Duration::from_secs(3));
        assert!(!world.stun.report().checking);
        assert_eq!(world.changes, []);
        assert_eq!((world.stun.mapped_v4(), world.stun.nat_type()), (None, NatType::Unknown));

        world.servers.values_mut().for_each(|kind| *kind = Kind::Plain);
        world.run(Duration::from_secs(15));
        assert_eq!(world.stun.nat_type(), NatType::PortRestricted);
    }
}

#[test]
fn a_dead_first_server_costs_less_than_half_a_second() {
    let servers = [("192.0.2.9", Kind::Dead), THREE[0], THREE[1]];
    let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &servers);
    world.run(Duration::from_millis(400));
    assert_eq!(world.stun.mapped_v4(), outside(PORT));
    world.run(Duration::from_millis(2600));
    assert_eq!(world.stun.nat_type(), NatType::Restricted);
}

/// W-X8: an answer counts only from the server that was asked.
#[test]
fn an_answer_from_elsewhere_is_dropped() {
    let mut world =
        World::new(Mapping::Same, Filtering::EndpointIndependent, &[("192.0.2.1", Kind::FromElsewhere)]);
    world.run(Duration::from_secs(3));
    assert_eq!(world.drops, ["a STUN answer from somebody else"; 3]);
}

/// W-X8: nor does one to a question that was never put.
#[test]
fn an_answer_without_a_question_is_dropped() {
    let mut world = World::new(Mapping::Same, Filtering::EndpointIndependent, &THREE);
    world.run(Duration::from_secs(3));
    let answer = response([9; 12], "203.0.113.1:1".parse().unwrap(), None);
    let unasked = Handled::Dropped("a STUN message that nobody asked for");
    assert_eq!(world.stun.handle_datagram(server("192.0.2.1"), &answer, world.now), unasked);
    let request = message::request([9; 12], AnswerFrom::SameAddress);
    assert_eq!(world.stun.handle_datagram(server("192.0.2.1"), &request, world.now), unasked);
    let mut broken = answer;
    broken[21] = 0x77;
    broken[23] = 0xff;
    let verdict = world.stun.handle_datagram(server("192.0.2.1"), &broken, world.now);
    assert_eq!(verdict, Handled::Dropped("a broken STUN message"));
    assert_eq!(
        world.stun.handle_datagram(server("192.0.2.1"), b"something else", world.now),
        Handled::NotStun
    );
}

/// W-X8: without a server there is nothing to say and nothing to wait for.
#[test]
fn without_servers_nothing_is_sent() {
    let mut world = World::new(Mapping::Same, Filtering::EndpointIndependent, &[]);
    world.stun.restart(&[], world.now);
    world.run(Duration::from_secs(600));
    assert_eq!((world.requests, world.stun.poll_timeout(), world.changes.len()), (0, None, 0));

    let mut world = World::new(Mapping::Same, Filtering::EndpointIndependent, &THREE);
    world.run(Duration::from_secs(10));
    world.stun.set_servers(&[], world.now);
    let asked = world.requests;
    world.run(Duration::from_secs(600));
    assert_eq!((world.requests, world.stun.mapped_v4()), (asked, None));
}

/// W-X32: a new outside address is noticed with the next refresh, and the type found out anew.
#[test]
fn a_refresh_notices_a_new_address() {
    let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &THREE);
    world.run(Duration::from_secs(100));
    assert_eq!(world.types(), [NatType::Unknown, NatType::Restricted]);
    world.outside = "203.0.113.50".parse().unwrap();
    world.filtering = Filtering::AddressAndPortDependent;
    world.sent_to.clear();

    world.run(Duration::from_secs(65));

    assert_eq!(world.stun.mapped_v4(), Some("203.0.113.50:51820".parse().unwrap()));
    assert_eq!(world.stun.nat_type(), NatType::PortRestricted);
    let (at, mapped, _) = world.changes[2];
    assert_eq!((at, mapped), (Duration::from_secs(120) + WAY * 2, world.stun.mapped_v4()));
}

/// W-X32: a lost path may mean a new outside address, and is no reason to ask more often than every three seconds.
#[test]
fn a_refresh_that_is_asked_for_notices_a_new_address_at_once() {
    let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &THREE);
    world.run(Duration::from_secs(30));
    world.outside = "203.0.113.50".parse().unwrap();
    world.sent_to.clear();
    world.stun.refresh(world.now);
    world.run(Duration::from_millis(100));
    assert_eq!(world.stun.mapped_v4(), Some("203.0.113.50:51820".parse().unwrap()));

    world.run(Duration::from_secs(10));
    let asked = world.requests;
    for _ in 0..100 {
        world.stun.refresh(world.now);
        world.run(Duration::from_millis(10));
    }
    assert_eq!(world.requests - asked, THREE.len());
}

/// W-X32: a change of the network is followed at once, but no faster than once a second.
#[test]
fn a_restart_finds_the_new_address_at_once_and_a_flapping_link_does_not_flood() {
    let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &THREE);
    world.run(Duration::from_secs(30));
    world.outside = "203.0.113.50".parse().unwrap();
    world.sent_to.clear();
    world.stun.restart(&["10.9.9.9".parse().unwrap()], world.now);
    world.run(Duration::from_millis(100));
    assert_eq!(world.stun.mapped_v4(), Some("203.0.113.50:51820".parse().unwrap()));

    let asked = world.requests;
    for _ in 0..100 {
        world.run(Duration::from_millis(10));
        world.stun.restart(&["10.9.9.9".parse().unwrap()], world.now);
    }
    assert!(world.requests - asked <= 12, "{} requests", world.requests - asked);
}

/// the filter is not judged again by a second address that the NAT may remember.
#[test]
fn a_restart_behind_the_same_nat_keeps_the_type() {
    for filtering in [Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
        let mut world = World::new(Mapping::Same, filtering, &THREE);
        world.run(Duration::from_secs(30));
        let before = world.stun.report();
        world.stun.restart(&[INSIDE.parse().unwrap()], world.now);
        world.run(Duration::from_secs(30));
        assert_eq!(world.stun.report(), before);
    }
}

/// One silent round is bad luck; the second says that the way out is gone.
#[test]
fn what_was_known_survives_one_silent_round() {
    let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &THREE);
    world.run(Duration::from_secs(50));
    world.servers.values_mut().for_each(|kind| *kind = Kind::Dead);
    world.run(Duration::from_secs(15));
    assert_eq!(world.stun.mapped_v4(), outside(PORT));
    world.run(Duration::from_secs(15));
    assert_eq!((world.stun.mapped_v4(), world.stun.nat_type()), (None, NatType::Unknown));
}

/// A symmetric NAT's ports change with every timeout: no news.
#[test]
fn a_symmetric_nat_does_not_make_news_each_minute() {
    let mut world = World::new(Mapping::PerDestination, Filtering::AddressAndPortDependent, &THREE);
    for _ in 0..10 {
        world.run(Duration::from_secs(61));
        // The next ports are others.
        let shift = u16::try_from(world.mappings.len()).unwrap();
        world.mappings.values_mut().for_each(|port| *port += shift * 7);
    }
    assert_eq!(world.types(), [NatType::Unknown, NatType::Symmetric]);
}

/// Hairpin is tested where there is a NAT with one mapping.
#[test]
fn hairpin_is_recognised() {
    for (mapping, hairpin, expected) in [
        (Mapping::Same, true, Some(true)),
        (Mapping::Same, false, Some(false)),
        (Mapping::None, true, None),
        (Mapping::PerDestination, true, None),
    ] {
        let mut world = World::new(mapping, Filtering::EndpointIndependent, &THREE);
        world.hairpin = hairpin;
        world.run(Duration::from_secs(5));
        assert_eq!(world.stun.report().hairpin, expected);
    }
}

#[test]
fn a_second_nat_is_in_the_report() {
    let mut world = World::new(Mapping::Same, Filtering::EndpointIndependent, &THREE);
    world.run(Duration::from_secs(5));
    assert!(!world.stun.report().cgnat);
    world.stun.restart(&["100.70.1.2".parse().unwrap()], world.now);
    assert!(world.stun.report().cgnat);
}

/// P-17: also where the home's own router stands between the two.
#[test]
fn a_providers_router_on_the_way_is_a_second_nat() {
    let world = World::new(Mapping::Same, Filtering::EndpointIndependent, &THREE);
    for (second, expected) in [([100, 64, 0, 1], true), ([100, 128, 0, 1], false), ([10, 0, 0, 1], false)] {
        let mut report = world.stun.report();
        let routers = vec![Some([192, 168, 1, 1].into()), None, Some(second.into())];
        report.note_routers(routers.clone());
        assert_eq!((report.cgnat, report.routers), (expected, routers));
    }
}

/// W-X7: IPv6 has rounds of its own, and its type counts where there is nothing else.
#[test]
fn ipv6_is_asked_too() {
    let servers = [("2001:db8::1", Kind::Rfc5780), ("2001:db8::2", Kind::Plain)];
    let mut world = World::new(Mapping::None, Filtering::AddressAndPortDependent, &servers);
    world.outside = "2001:db8:77::1".parse().unwrap();
    world.stun.restart(&[world.outside], world.now);
    world.run(Duration::from_secs(4));
    let report = world.stun.report();
    assert_eq!(report.mapped_v6, Some("[2001:db8:77::1]:51820".parse().unwrap()));
    assert_eq!((report.mapped_v4, report.ipv6, report.nat_type), (None, true, NatType::PortRestricted));
}

#[test]
fn at_rest_each_server_is_asked_once_a_minute() {
    let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &THREE);
    world.run(Duration::from_secs(59));
    let asked = world.requests;
    world.run(Duration::from_secs(600));
    assert_eq!(world.requests - asked, 30);
}

#[test]
fn more_servers_than_are_asked_are_left_out() {
    let servers: Vec<SocketAddr> = (1..50).map(|host| server(&format!("192.0.2.{host}"))).collect();
    let mut stun = Stun::new();
    stun.set_servers(&[&servers[..], &servers[..]].concat(), Monotonic::default());
    assert_eq!(stun.report().servers.len(), MAX_SERVERS);
}

proptest! {
    /// STYLE 22: whatever comes, in whatever order, nothing panics, no round outlasts its budget, and the address is
    /// never one that no answer told.
    #[test]
    fn random_operations_keep_the_invariants(operations in proptest::collection::vec((0u8..8, any::<u16>()), 1..60)) {
        let mut world = World::new(Mapping::Same, Filtering::AddressDependent, &THREE);
        for (operation, argument) in operations {
            match operation {
                0 => world.stun.restart(&[INSIDE.parse().unwrap()], world.now),
                1 => world.mapping = Mapping::PerDestination,
                2 => world.mapping = Mapping::Same,
                3 => world.servers.values_mut().for_each(|kind| *kind = Kind::Dead),
                4 => world.servers.values_mut().for_each(|kind| *kind = Kind::Rfc5780),
                5 => {
                    let all: Vec<SocketAddr> = world.servers.keys().copied().take(usize::from(argument % 4)).collect();
                    world.stun.set_servers(&all, world.now);
                }
                6 => {
                    let bytes = response([1; 12], "203.0.113.1:1".parse().unwrap(), None);
                    world.stun.handle_datagram(server("192.0.2.1"), &bytes, world.now);
                }
                _ => world.stun.handle_timeout(world.now),
            }
            world.run(Duration::from_millis(argument.into()));
            if let Some(mapped) = world.stun.mapped_v4() {
                prop_assert_eq!(mapped.ip(), world.outside);
            }
        }
        world.run(Duration::from_secs(56));
        world.stun.restart(&[INSIDE.parse().unwrap()], world.now);
        world.run(Duration::from_millis(5500));
        prop_assert!(!world.stun.report().checking);
    }
}
