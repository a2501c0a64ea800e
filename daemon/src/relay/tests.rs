//! On loopback: real sockets, addresses in 127.0.0.0/8.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;
use wgmesh_core::key::SecretKey;
use wgmesh_ebpf_common::DATA;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
const ALSO_HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 10));

/// Two nodes and a relay between them.
struct Scene {
    relay: Relay,
    nodes: [UdpSocket; 2],
    entry: Forwarding,
}

impl Scene {
    async fn new() -> Self {
        Self::with(Rates::default()).await
    }

    async fn with(rates: Rates) -> Self {
        let nodes = [node().await, node().await];
        let pair = [1, 2].map(|byte| SecretKey::from_random([byte; 32]).public());
        let ports = [free_port(), free_port()];
        let mut relay = Relay::new(rates);
        let entry = Forwarding { pair, ports, ends: [None; 2] };
        relay.follow(&[entry]);
        Self { relay, nodes, entry }
    }

    async fn bound() -> Self {
        Self::new().await.bind().await
    }

    async fn bind(self) -> Self {
        let mut scene = self;
        let end = |node: &UdpSocket, local| Some(RelayEnd { peer: node.local_addr().unwrap(), local });
        scene.entry.ends = [end(&scene.nodes[0], HERE), end(&scene.nodes[1], ALSO_HERE)];
        scene.relay.follow(&[scene.entry]);
        // The pair's task takes the ends up before anything that comes later.
        tokio::task::yield_now().await;
        scene
    }

    async fn send(&self, node: usize, bytes: &[u8]) {
        let address = [HERE, ALSO_HERE][node];
        self.nodes[node].send_to(bytes, (address, self.entry.ports[node])).await.unwrap();
    }

    async fn heard(&self, node: usize) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 4096];
        let received = timeout(PATIENCE, self.nodes[node].recv_from(&mut buffer)).await;
        let (length, from) = received.expect("something is passed on").unwrap();
        (buffer[..length].to_vec(), from)
    }

    /// Waits until so many packets were refused.
    async fn refused(&self, count: u64) {
        let waited = timeout(PATIENCE, async {
            while self.relay.traffic().refused < count {
                tokio::task::yield_now().await;
            }
        });
        waited.await.expect("it is refused");
    }
}

async fn node() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

fn free_port() -> u16 {
    std::net::UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn what_comes_to_one_port_leaves_from_the_other_and_from_the_address_that_the_end_knows() {
    let scene = Scene::bound().await;
    let packet = [4, 0, 0, 0, 7];
    scene.send(0, &packet).await;
    assert_eq!(scene.heard(1).await, (packet.to_vec(), (ALSO_HERE, scene.entry.ports[1]).into()));
    scene.send(1, &packet).await;
    assert_eq!(scene.heard(0).await, (packet.to_vec(), (HERE, scene.entry.ports[0]).into()));
    let traffic = scene.relay.traffic();
    assert_eq!((traffic.packets, traffic.bytes, traffic.refused), (2, 10, 0));
}

#[tokio::test]
async fn nothing_is_passed_on_before_both_ends_are_bound() {
    let mut scene = Scene::new().await;
    scene.send(0, &[4, 0, 0, 0]).await;
    scene.refused(1).await;
    let peer = scene.nodes[0].local_addr().unwrap();
    scene.entry.ends[0] = Some(RelayEnd { peer, local: HERE });
    scene.relay.follow(&[scene.entry]);
    scene.send(0, &[4, 0, 0, 0]).await;
    scene.refused(2).await;
    assert_eq!(scene.relay.traffic().packets, 0);
}

/// W-D12: data beyond the limit is dropped, and a handshake comes through all the same.
#[tokio::test]
async fn what_is_beyond_a_limit_is_dropped() {
    let slow = NonZeroU32::new(1);
    for rates in [Rates { flow: slow, all: None }, Rates { flow: None, all: slow }] {
        let scene = Scene::with(rates).await.bind().await;
        let exceeded = timeout(PATIENCE, async {
            while scene.relay.traffic().limited == 0 {
                scene.send(0, &[&[DATA, 0, 0, 0], [7; 8_000].as_slice()].concat()).await;
                tokio::task::yield_now().await;
            }
        });
        exceeded.await.unwrap_or_else(|_| panic!("{rates:?} should be exceeded"));
        scene.send(0, &[1, 0, 0, 0]).await;
        while scene.heard(1).await.0 != [1, 0, 0, 0] {}
    }
}

#[tokio::test]
async fn a_stranger_reaches_neither_end() {
    let scene = Scene::bound().await;
    let stranger = node().await;
    for (port, address) in scene.entry.ports.into_iter().zip([HERE, ALSO_HERE]) {
        stranger.send_to(&[4, 0, 0, 0], (address, port)).await.unwrap();
    }
    scene.refused(2).await;
    assert_eq!(scene.relay.traffic().packets, 0);
}

#[tokio::test]
async fn a_bind_goes_up_with_all_that_the_core_must_know_of_it() {
    let mut scene = Scene::bound().await;
    scene.send(1, &[1, 4, 9]).await;
    let event = timeout(PATIENCE, scene.relay.next()).await.unwrap();
    let Event::Bind(bind) = event else { panic!("it should be a bind") };
    let from = scene.nodes[1].local_addr().unwrap();
    assert_eq!(
        bind,
        BindReceived { port: scene.entry.ports[1], local: ALSO_HERE, from, bytes: vec![1, 4, 9] }
    );
}

#[tokio::test]
async fn a_pair_that_is_gone_gives_its_ports_back() {
    let mut scene = Scene::bound().await;
    scene.relay.follow(&[]);
    let is_free = || std::net::UdpSocket::bind(("0.0.0.0", scene.entry.ports[0])).is_ok();
    let freed = timeout(PATIENCE, async {
        while !is_free() {
            tokio::task::yield_now().await;
        }
    });
    freed.await.expect("the sockets are closed");
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_reported() {
    let taken = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let pair = [1, 2].map(|byte| SecretKey::from_random([byte; 32]).public());
    let mut relay = Relay::new(Rates::default());
    relay.follow(&[Forwarding { pair, ports: [free_port(), port], ends: [None; 2] }]);
    let event = timeout(PATIENCE, relay.next()).await.unwrap();
    assert!(matches!(event, Event::RelayPortTaken(taken) if taken == port));
}
