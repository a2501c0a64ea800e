use super::*;

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(81, 0, 0, 1);

fn at(seconds: u64) -> Monotonic {
    Monotonic::from_nanos(seconds * 1_000_000_000)
}

fn nat(behaviour: Behaviour) -> Nat {
    Nat::new(behaviour, EXTERNAL, Random::new(1))
}

fn inside(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 168, 0, last], 51820))
}

fn remote(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([62, 0, 0, last], port))
}

/// Every combination of mapping, filtering and ports.
fn all_behaviours() -> Vec<Behaviour> {
    let dependences = [Dependence::Endpoint, Dependence::Address, Dependence::AddressAndPort];
    let mut all = Vec::new();
    for mapping in dependences {
        for filtering in dependences {
            for ports in [Ports::Preserving, Ports::Random] {
                all.push(Behaviour { mapping, filtering, ports, ..Behaviour::FULL_CONE });
            }
        }
    }
    all
}

/// RFC 4787 §4.1: X1:x1 is the mapping towards Y1:y1, X2:x2 the one towards Y2:y2.
#[test]
fn a_mapping_changes_with_as_much_of_the_remote_endpoint_as_it_depends_on() {
    for dependence in [Dependence::Endpoint, Dependence::Address, Dependence::AddressAndPort] {
        let mut nat = nat(Behaviour { mapping: dependence, ..Behaviour::SYMMETRIC });
        let mut map = |remote| nat.outbound(inside(2), remote, at(0));
        let first = map(remote(1, 1000));
        assert_eq!(map(remote(1, 1000)), first, "the same remote endpoint");
        let other_port = map(remote(1, 2000)) == first;
        let other_address = map(remote(2, 1000)) == first;
        let expected = match dependence {
            Dependence::Endpoint => (true, true),
            Dependence::Address => (true, false),
            Dependence::AddressAndPort => (false, false),
        };
        assert_eq!((other_port, other_address), expected, "{dependence:?}");
    }
}

/// RFC 4787 §5.
#[test]
fn a_filter_lets_in_as_much_as_it_does_not_depend_on() {
    for behaviour in all_behaviours() {
        let mut nat = nat(Behaviour { inbound_refresh: false, ..behaviour });
        let external = nat.outbound(inside(2), remote(1, 1000), at(0));
        let mut enters = |from| nat.inbound(external.port(), from, at(1)) == Some(inside(2));
        let entered = (enters(remote(1, 1000)), enters(remote(1, 2000)), enters(remote(2, 1000)));
        let expected = match behaviour.filtering {
            Dependence::Endpoint => (true, true, true),
            Dependence::Address => (true, true, false),
            Dependence::AddressAndPort => (true, false, false),
        };
        assert_eq!(entered, expected, "{behaviour:?}");
        assert_eq!(nat.inbound(external.port() ^ 1, remote(1, 1000), at(1)), None, "a port without mapping");
    }
}

#[test]
fn ports_are_kept_while_they_are_free_or_are_any() {
    let mut keeping = nat(Behaviour::PORT_RESTRICTED);
    assert_eq!(keeping.outbound(inside(2), remote(1, 1000), at(0)).port(), 51820);
    let second = keeping.outbound(inside(3), remote(1, 1000), at(0));
    assert_ne!(second.port(), 51820, "the first host has it");
    assert_eq!(keeping.inbound(51820, remote(1, 1000), at(0)), Some(inside(2)));
    assert_eq!(keeping.inbound(second.port(), remote(1, 1000), at(0)), Some(inside(3)));
    let mut rewriting = nat(Behaviour::PORT_REWRITING);
    assert_ne!(rewriting.outbound(inside(2), remote(1, 1000), at(0)).port(), 51820);
}

/// RFC 4787 §4.3.
#[test]
fn a_mapping_lives_as_long_as_something_refreshes_it() {
    for inbound_refresh in [true, false] {
        let expiry = Duration::from_secs(30);
        let mut nat = nat(Behaviour { expiry, inbound_refresh, ..Behaviour::PORT_REWRITING });
        let first = nat.outbound(inside(2), remote(1, 1000), at(0));
        assert_eq!(nat.outbound(inside(2), remote(1, 1000), at(29)), first);
        assert_eq!(nat.inbound(first.port(), remote(1, 1000), at(58)), Some(inside(2)));
        let kept = nat.inbound(first.port(), remote(1, 1000), at(59));
        assert_eq!(kept, inbound_refresh.then_some(inside(2)));
        assert_ne!(nat.outbound(inside(2), remote(1, 1000), at(90)), first);
    }
}

#[test]
fn a_hole_closes_by_itself_while_another_keeps_the_mapping() {
    let mut nat = nat(Behaviour { expiry: Duration::from_secs(30), ..Behaviour::PORT_RESTRICTED });
    let external = nat.outbound(inside(2), remote(1, 1000), at(0));
    nat.outbound(inside(2), remote(2, 1000), at(20));
    assert_eq!(nat.inbound(external.port(), remote(1, 1000), at(40)), None);
    assert_eq!(nat.inbound(external.port(), remote(2, 1000), at(40)), Some(inside(2)));
}

#[test]
fn a_flush_and_a_new_address_end_every_mapping() {
    let mut nat = nat(Behaviour::PORT_REWRITING);
    let first = nat.outbound(inside(2), remote(1, 1000), at(0));
    nat.flush();
    assert_eq!(nat.inbound(first.port(), remote(1, 1000), at(0)), None);
    let second = nat.outbound(inside(2), remote(1, 1000), at(0));
    assert_ne!(first.port(), second.port());
    nat.set_external(Ipv4Addr::new(81, 0, 0, 9));
    assert_eq!(nat.inbound(second.port(), remote(1, 1000), at(0)), None);
    assert_eq!(nat.outbound(inside(2), remote(1, 1000), at(0)).ip(), IpAddr::from([81, 0, 0, 9]));
}

#[test]
fn a_firewall_lets_in_what_answers_and_nothing_else() {
    let mut firewall = Firewall::new(Dependence::AddressAndPort, Duration::from_secs(30));
    let host = "[2a00::1]:51820".parse().unwrap();
    let [peer, other] = ["[2a00::2]:51820", "[2a00::2]:51821"].map(|address| address.parse().unwrap());
    assert!(!firewall.admits(host, peer, at(0)));
    firewall.outbound(host, peer, at(0));
    assert!(firewall.admits(host, peer, at(29)));
    assert!(!firewall.admits(host, other, at(1)));
    assert!(!firewall.admits(host, peer, at(30)));
}

/// REQUIREMENTS §11, L-13: the seven kinds against each other.
#[test]
fn all_pairs_have_a_direct_path_but_those_of_a_symmetric_nat_with_one_that_looks_at_ports() {
    use Kind::{Cgnat, PortRestricted, PortRewriting, Symmetric};
    for [one, other] in Kind::pairs() {
        let looks_at_ports = |kind| matches!(kind, PortRestricted | PortRewriting | Symmetric | Cgnat);
        let is_impossible =
            (one == Symmetric && looks_at_ports(other)) || (other == Symmetric && looks_at_ports(one));
        let possible = direct_path_possible(one.layers(), other.layers());
        assert_eq!(possible, !is_impossible, "{one:?} with {other:?}");
    }
}

/// The rule is not only stated but follows from the boxes: each side sends to every address that it can know, again and
/// again, and answers whatever reaches it.
#[test]
fn the_rule_for_direct_paths_is_what_two_boxes_do() {
    for [one, other] in Kind::pairs() {
        let expected = direct_path_possible(one.layers(), other.layers());
        assert_eq!(Punch::new(one, other).succeeds(), expected, "{one:?} with {other:?}");
    }
}

/// Two hosts that send to each other through their boxes.
struct Punch {
    sides: [Vec<Nat>; 2],
    knows: [Vec<SocketAddr>; 2],
}

impl Punch {
    fn new(one: Kind, other: Kind) -> Self {
        let mut seed = 0;
        let mut sides = [one, other].map(|kind| {
            let boxes = kind.layers().iter().map(|&behaviour| {
                seed += 1;
                Nat::new(behaviour, Ipv4Addr::new(81, 0, 0, seed), Random::new(seed.into()))
            });
            boxes.collect::<Vec<_>>()
        });
        let server = remote(250, 3478);
        let seen = [0, 1].map(|side| send_out(&mut sides[side], host(side), server));
        Self { sides, knows: [vec![seen[1]], vec![seen[0]]] }
    }

    fn succeeds(mut self) -> bool {
        let mut heard = [false; 2];
        for _ in 0..4 {
            for side in 0..2 {
                for to in self.knows[side].clone() {
                    let from = send_out(&mut self.sides[side], host(side), to);
                    if let Some(host) = take_in(&mut self.sides[1 - side], to, from) {
                        assert_eq!(host, self::host(1 - side));
                        heard[1 - side] = true;
                        self.knows[1 - side].push(from);
                        self.knows[1 - side].dedup();
                    }
                }
            }
        }
        heard == [true; 2]
    }
}

fn host(side: usize) -> SocketAddr {
    let side = u8::try_from(side).unwrap();
    SocketAddr::from(([62, 1, 0, side], 51820))
}

fn send_out(boxes: &mut [Nat], host: SocketAddr, to: SocketAddr) -> SocketAddr {
    boxes.iter_mut().fold(host, |from, nat| nat.outbound(from, to, at(1)))
}

fn take_in(boxes: &mut [Nat], to: SocketAddr, from: SocketAddr) -> Option<SocketAddr> {
    boxes.iter_mut().rev().try_fold(to, |to, nat| {
        (IpAddr::V4(nat.external()) == to.ip()).then(|| nat.inbound(to.port(), from, at(1))).flatten()
    })
}
