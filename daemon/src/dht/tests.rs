use std::time::Instant;

use mainline::Testnet;
use wgmesh_core::dht::Swarm;

use super::*;

const KEY: ItemKey = ItemKey { seed: [7; 32], salt: [1; 8] };

/// A DHT of a few nodes on the loopback, with nobody else in it.
async fn testnet() -> Testnet {
    tokio::task::spawn_blocking(|| Testnet::builder(6).build().unwrap()).await.unwrap()
}

fn dht(testnet: &Testnet) -> Dht {
    let mut dht = Dht::new(None, Vec::new());
    dht.set_bootstrap(testnet.bootstrap.iter().map(|node| node.parse().unwrap()));
    dht
}

/// Carries out a request and returns all that is told of it.
async fn ask(dht: &mut Dht, number: u64, request: Request) -> Vec<DhtEvent> {
    dht.carry_out(Order::Ask { id: RequestId(number), request });
    let mut events = Vec::new();
    while !matches!(events.last(), Some(DhtEvent::Done { .. })) {
        events.push(timeout(Duration::from_secs(30), dht.next()).await.unwrap());
    }
    events
}

fn done(number: u64) -> DhtEvent {
    DhtEvent::Done { id: RequestId(number), outcome: Ok(()) }
}

/// W-X25, W-X28, X-10: what one host stores and announces, another finds, by nodes that are remembered alone.
#[tokio::test]
async fn what_one_stores_and_announces_another_finds() {
    let testnet = testnet().await;
    let mut one = dht(&testnet);
    let put =
        |sequence, value: &[u8]| Request::Put { key: KEY, sequence, replaces: None, value: value.to_vec() };
    assert_eq!(ask(&mut one, 1, put(5, b"first")).await, [done(1)]);
    assert_eq!(ask(&mut one, 2, put(6, b"second")).await, [done(2)]);
    let old = ask(&mut one, 3, put(4, b"old")).await;
    let overtaken = DhtEvent::Done { id: RequestId(3), outcome: Err(Failure::Overtaken) };
    assert_eq!(old, [overtaken]);
    let swarm = Swarm([9; 20]);
    assert_eq!(ask(&mut one, 4, Request::Announce { swarm, port: 51_900 }).await, [done(4)]);
    one.carry_out(Order::ListNodes);
    one.carry_out(Order::Rest);
    assert!(one.node.is_none());
    let DhtEvent::Nodes(nodes) = one.next().await else { panic!("it lists nodes") };
    assert!(!nodes.is_empty());

    let mut other = Dht::new(None, nodes);
    let events = ask(&mut other, 1, Request::Get { key: KEY }).await;
    let value = DhtEvent::Item { id: RequestId(1), sequence: 6, value: b"second".to_vec() };
    assert_eq!(events, [value, done(1)]);
    let events = ask(&mut other, 2, Request::FindPeers { swarm }).await;
    let expected = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 51_900);
    let names_it = |event: &DhtEvent| matches!(event, DhtEvent::Peers { addresses, .. } if addresses.contains(&expected));
    assert!(events.iter().any(names_it), "{events:?}");
    assert!(other.finish().await.is_some_and(|nodes| !nodes.is_empty()));
}

/// DESIGN 4: without anybody to ask, a request fails at once; with nobody who answers, soon.
#[tokio::test]
async fn failures_are_told() {
    let mut nowhere = Dht::new(None, Vec::new());
    let events = ask(&mut nowhere, 1, Request::Get { key: KEY }).await;
    let error = |events: &[DhtEvent]| match events {
        [DhtEvent::Done { outcome: Err(Failure::Trouble(error)), .. }] => error.clone(),
        _ => panic!("{events:?}"),
    };
    assert!(error(&events).starts_with("no bootstrap host of the DHT has a known address"));
    assert!(nowhere.node.is_none());

    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut dead = Dht::new(None, Vec::new());
    dead.set_bootstrap([silent.local_addr().unwrap()]);
    let events = ask(&mut dead, 1, Request::Get { key: KEY }).await;
    assert_eq!(error(&events), "no node of the DHT answers");
}

/// Found wanting in the lab: what was looked up again at once, with all the others, was read too late again, for minutes.
#[tokio::test]
async fn slots_are_looked_up_again_one_after_the_other() {
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut dead = Dht::new(None, Vec::new());
    dead.set_bootstrap([silent.local_addr().unwrap()]);
    let begin = Instant::now();
    (1..=3)
        .for_each(|id| dead.carry_out(Order::Ask { id: RequestId(id), request: Request::Get { key: KEY } }));
    for _ in 0..3 {
        assert!(matches!(dead.next().await, DhtEvent::Done { outcome: Err(_), .. }));
    }
    assert!(begin.elapsed() >= ANSWER_PATIENCE * 4, "{:?}", begin.elapsed());
}

/// A host that is too slow for all the answers at once must not take a slot for empty.
#[tokio::test]
async fn a_slot_that_seems_empty_is_looked_up_again_where_most_nodes_are_silent() {
    let testnet = testnet().await;
    let silent: Vec<_> =
        (0..20).map(|_| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    for (most_are_silent, lookups) in [(false, 1), (true, 2)] {
        let mut dht = dht(&testnet);
        let count = if most_are_silent { silent.len() } else { 1 };
        dht.bootstrap.extend(silent.iter().take(count).map(|socket| match socket.local_addr().unwrap() {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(_) => unreachable!("it is bound to IPv4"),
        }));
        assert_eq!(ask(&mut dht, 1, Request::Get { key: KEY }).await, [done(1)]);
        silent[0].set_nonblocking(true).unwrap();
        let mut asked = 0;
        let mut buffer = [0; 1500];
        while let Ok(length) = silent[0].recv(&mut buffer) {
            asked += usize::from(buffer[..length].windows(8).any(|part| part == b"1:q3:get"));
        }
        assert_eq!(asked, lookups);
    }
}

#[test]
fn each_start_begins_with_other_remembered_nodes() {
    let node = |number| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, number), 1);
    let mut dht = Dht::new(None, (0..40).map(node).collect());
    dht.set_bootstrap([node(99).into(), "[2001:db8::1]:1".parse().unwrap()]);
    let first = dht.begin_with();
    assert_eq!((first.len(), first[0], first[1]), (BEGIN_WITH + 1, node(99), node(0)));
    dht.starts += 1;
    assert_eq!(dht.begin_with()[1], node(16));
    dht.remembered.truncate(3);
    assert_eq!(dht.begin_with().len(), 4);
}

/// An operator who lets only chosen ports out chooses this one too; as long as another program has it, the reason names it.
#[tokio::test]
async fn its_port_may_be_chosen() {
    let testnet = testnet().await;
    let taken = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut dht = Dht::new(NonZeroU16::new(port), Vec::new());
    dht.set_bootstrap(testnet.bootstrap.iter().map(|node| node.parse().unwrap()));
    let find = || Request::FindPeers { swarm: Swarm([9; 20]) };
    let events = ask(&mut dht, 1, find()).await;
    let [DhtEvent::Done { outcome: Err(Failure::Trouble(why)), .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(why.contains(&format!("on UDP port {port}")), "{why}");
    drop(taken);
    assert_eq!(ask(&mut dht, 2, find()).await.last(), Some(&done(2)));
    assert!(std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_err(), "the DHT has it");
}

/// Found in a review: an announcement that is refused with a code that is only for items (BEP 44) has the library panic, and
/// strangers are asked to store announcements.
#[tokio::test]
async fn a_refusal_that_has_the_library_panic_is_a_failure_like_any_other() {
    let mut dht = Dht::new(None, Vec::new());
    dht.set_bootstrap([refusing_node()]);
    let announce = || Request::Announce { swarm: Swarm([9; 20]), port: 51_900 };
    for number in 1..=2 {
        let events = ask(&mut dht, number, announce()).await;
        let [DhtEvent::Done { outcome: Err(Failure::Trouble(why)), .. }] = &events[..] else {
            panic!("{events:?}")
        };
        assert!(why.starts_with("the library panicked"), "{why}");
    }
    assert_eq!(dht.starts, 2, "the node is another then");
}

/// A node of the DHT that answers every lookup and refuses every announcement.
fn refusing_node() -> SocketAddr {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || refuse(&socket));
    address
}

fn refuse(socket: &std::net::UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let query = &buffer[..length];
        let key = b"1:t4:";
        let at = query.windows(key.len()).position(|window| window == key).unwrap() + key.len();
        let name = b"announce_peer";
        let [answer, kind]: [&[u8]; 2] = match query.windows(name.len()).any(|window| window == name) {
            true => [b"d1:eli301e6:refusee1:t4:", b"1:y1:ee"],
            false => [b"d1:rd2:id20:aaaaaaaaaaaaaaaaaaaa5:nodes0:5:token4:abcde1:t4:", b"1:y1:re"],
        };
        socket.send_to(&[answer, &query[at..at + 4], kind].concat(), from).unwrap();
    }
}
