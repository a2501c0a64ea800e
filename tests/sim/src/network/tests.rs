use super::*;
use crate::nat::{Behaviour, Dependence, Kind};

const PORT: u16 = 51820;

/// A network on which tests move single datagrams by hand.
struct Bench {
    network: Network,
    hosts: usize,
}

impl Bench {
    fn new() -> Self {
        Self { network: Network::new(Random::new(1)), hosts: 0 }
    }

    fn site(&mut self, behaviour: Option<Behaviour>, carrier: Option<SegmentId>) -> SegmentId {
        let addressing = if behaviour.is_some() { Addressing::Private } else { Addressing::Public };
        let site = self.network.add_segment(Conditions::CLEAN, addressing);
        self.network.add_gateway(site, carrier, behaviour);
        site
    }

    fn carrier(&mut self, behaviour: Behaviour) -> SegmentId {
        let carrier = self.network.add_segment(Conditions::CLEAN, Addressing::Shared);
        self.network.add_gateway(carrier, None, Some(behaviour));
        carrier
    }

    fn host(&mut self, site: SegmentId) -> HostId {
        let host = HostId(self.hosts);
        self.hosts += 1;
        self.network.attach(site, host);
        host
    }

    fn address(&self, host: HostId) -> SocketAddr {
        let underlay = self.network.underlay(host);
        SocketAddr::new(underlay[0].addresses.first().unwrap().addr(), PORT)
    }

    /// Sends and returns who got it, and from whom it seems to be.
    fn send(&mut self, from: HostId, to: SocketAddr) -> Option<(Stop, SocketAddr)> {
        let payload = Payload::Daemon([0; 4].into());
        let mut arrivals = self.network.send(from, PORT, to, &payload);
        while let Some(arrival) = arrivals.pop() {
            match arrival.stop {
                Stop::Host { .. } | Stop::Server(_) => return Some((arrival.stop, arrival.datagram.from)),
                Stop::Inside(_) | Stop::Outside(_) => {
                    arrivals.extend(self.network.forward(&arrival, Monotonic::default()));
                }
            }
        }
        None
    }

    /// Returns where a host seems to be, asked from a server.
    fn seen(&mut self, host: HostId) -> SocketAddr {
        let server = SocketAddr::new(self.network.add_server(), 3478);
        self.send(host, server).expect("the server is there").1
    }

    fn reaches(&mut self, from: HostId, to: SocketAddr, host: HostId) -> bool {
        self.send(from, to).is_some_and(|(stop, _)| stop == Stop::Host { host, interface: 2 })
    }
}

#[test]
fn public_hosts_reach_each_other_as_they_are() {
    let mut bench = Bench::new();
    let [one, other] = [(); 2].map(|()| {
        let site = bench.site(None, None);
        bench.host(site)
    });
    let (from, to) = (bench.address(one), bench.address(other));
    assert_eq!(bench.send(one, to), Some((Stop::Host { host: other, interface: 2 }, from)));
}

#[test]
fn a_host_behind_a_nat_is_seen_at_its_box_and_only_answered() {
    let mut bench = Bench::new();
    let (home, office) = (bench.site(Some(Behaviour::PORT_RESTRICTED), None), bench.site(None, None));
    let (inside, public) = (bench.host(home), bench.host(office));
    let mapped = bench.seen(inside);
    assert_ne!(mapped.ip(), bench.address(inside).ip());
    assert!(!bench.reaches(public, mapped, inside), "nothing went there yet");
    let to = bench.address(public);
    assert_eq!(bench.send(inside, to), Some((Stop::Host { host: public, interface: 2 }, mapped)));
    assert!(bench.reaches(public, mapped, inside));
    let private = bench.address(inside);
    assert_eq!(bench.send(public, private), None, "private addresses lead nowhere");
}

#[test]
fn two_boxes_translate_one_after_the_other() {
    let mut bench = Bench::new();
    let carrier = bench.carrier(Behaviour::PORT_REWRITING);
    let home = bench.site(Some(Behaviour::PORT_RESTRICTED), Some(carrier));
    let office = bench.site(None, None);
    let (inside, public) = (bench.host(home), bench.host(office));
    let mapped = bench.seen(inside);
    assert_ne!(mapped.port(), PORT, "the carrier's box rewrites");
    let to = bench.address(public);
    bench.send(inside, to);
    assert!(bench.reaches(public, mapped, inside));
}

/// RFC 4787 §6: what loops back comes from the external address.
#[test]
fn a_hairpin_leads_back_in_if_the_box_has_one() {
    for hairpin in [true, false] {
        let mut bench = Bench::new();
        let carrier = bench.carrier(Behaviour { hairpin, ..Behaviour::FULL_CONE });
        let [one, other] = [(); 2].map(|()| {
            let site = bench.site(Some(Behaviour::FULL_CONE), Some(carrier));
            bench.host(site)
        });
        let (from, to) = (bench.seen(one), bench.seen(other));
        let expected = hairpin.then_some((Stop::Host { host: other, interface: 2 }, from));
        assert_eq!(bench.send(one, to), expected);
        assert_eq!(bench.network.are_connected(one, other), hairpin);
    }
}

#[test]
fn a_box_with_a_new_address_is_a_stranger() {
    let mut bench = Bench::new();
    let (home, office) = (bench.site(Some(Behaviour::FULL_CONE), None), bench.site(None, None));
    let (inside, public) = (bench.host(home), bench.host(office));
    let before = bench.seen(inside);
    bench.network.renumber(home);
    assert!(!bench.reaches(public, before, inside));
    let after = bench.seen(inside);
    assert_ne!(before.ip(), after.ip());
    assert!(bench.reaches(public, after, inside));
}

#[test]
fn global_ipv6_needs_both_to_send() {
    let mut bench = Bench::new();
    let [one, other] = [Behaviour::SYMMETRIC; 2].map(|behaviour| {
        let site = bench.site(Some(behaviour), None);
        let firewall = Firewall::new(Dependence::AddressAndPort, Duration::from_secs(30));
        bench.network.set_ipv6(site, Some(firewall));
        bench.host(site)
    });
    let global = |host| {
        let underlay = bench.network.underlay(host);
        let addresses = underlay[0].addresses.iter().map(|net| net.addr());
        let is_global = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if !v6.is_unicast_link_local());
        SocketAddr::new(addresses.into_iter().find(is_global).unwrap(), PORT)
    };
    let (from, to) = (global(one), global(other));
    assert!(!bench.reaches(one, to, other));
    assert!(bench.reaches(other, from, one), "the first packet opened its own side");
    assert!(bench.reaches(one, to, other));
    assert!(bench.network.are_connected(one, other));
}

#[test]
fn islands_of_the_internet_do_not_hear_each_other() {
    let mut bench = Bench::new();
    let (one, other) = (bench.site(None, None), bench.site(None, None));
    let hosts = [one, other].map(|site| bench.host(site));
    let to = bench.address(hosts[1]);
    bench.network.partition_internet(|segment| u32::from(segment == one));
    assert!(!bench.reaches(hosts[0], to, hosts[1]));
    assert!(!bench.network.are_connected(hosts[0], hosts[1]));
    bench.network.partition_internet(|_| 0);
    assert!(bench.reaches(hosts[0], to, hosts[1]));
}

#[test]
fn a_group_stays_on_its_segment() {
    let mut bench = Bench::new();
    let carrier = bench.carrier(Behaviour::FULL_CONE);
    let home = bench.site(Some(Behaviour::FULL_CONE), Some(carrier));
    let [one, other] = [home, carrier].map(|site| bench.host(site));
    let group = SocketAddr::from(([239, 192, 1, 1], 51830));
    let payload = Payload::Daemon([0; 4].into());
    assert!(bench.network.send_on(one, 2, 51830, group, &payload).is_empty());
    assert!(bench.network.send_on(other, 2, 51830, group, &payload).is_empty());
}

/// The rule says for all pairs of kinds what really passes: each side sends to where a server saw the other, and answers
/// what it hears.
#[test]
fn what_counts_as_connected_can_be_punched() {
    for one in Kind::ALL {
        for other in Kind::ALL {
            let mut bench = Bench::new();
            let hosts = [one, other].map(|kind| {
                let site = match *kind.layers() {
                    [] => bench.site(None, None),
                    [behaviour] => bench.site(Some(behaviour), None),
                    [behaviour, .., outer] => {
                        let carrier = bench.carrier(outer);
                        bench.site(Some(behaviour), Some(carrier))
                    }
                };
                bench.host(site)
            });
            let mut goals = [vec![bench.seen(hosts[1])], vec![bench.seen(hosts[0])]];
            let mut heard = [false; 2];
            for side in [0, 1, 0, 1, 0, 1] {
                for to in goals[side].clone() {
                    if let Some((_, from)) = bench.send(hosts[side], to) {
                        heard[1 - side] = true;
                        goals[1 - side].push(from);
                    }
                }
            }
            let connected = bench.network.are_connected(hosts[0], hosts[1]);
            assert_eq!(heard == [true; 2], connected, "{one:?} with {other:?}");
        }
    }
}
