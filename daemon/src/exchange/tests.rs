use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wgmesh_core::exchange::MAX_FRAME_BYTES;
use wgmesh_core::secret::MeshSecret;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

fn keys(secret: u8) -> MeshKeys {
    MeshKeys::derive(&MeshSecret::from_random([secret; 32]).mesh_key())
}

/// Starts an exchange on a port that the system chooses.
fn start(secret: u8) -> Exchange {
    Exchange::start(&keys(secret), 0)
}

fn address(exchange: &Exchange) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, exchange.port().expect("it listens")).into()
}

fn target(exchange: &Exchange) -> Target {
    Target { address: address(exchange), expected: None }
}

async fn next(exchange: &mut Exchange) -> SessionEvent {
    timeout(PATIENCE, exchange.next()).await.expect("something happens")
}

async fn opened(exchange: &mut Exchange) -> (SessionId, Option<Target>, [u8; 32]) {
    match next(exchange).await {
        SessionEvent::Opened { id, dialed, exporter, .. } => (id, dialed, exporter),
        other => panic!("{other:?}"),
    }
}

async fn frame(exchange: &mut Exchange) -> Vec<u8> {
    match next(exchange).await {
        SessionEvent::Frame { bytes, .. } => bytes,
        other => panic!("{other:?}"),
    }
}

/// Two exchanges with a stream from the first to the second.
async fn pair() -> (Exchange, SessionId, Exchange, SessionId) {
    let (mut near, mut far) = (start(1), start(1));
    near.dial(target(&far));
    let (ours, ..) = opened(&mut near).await;
    let (theirs, ..) = opened(&mut far).await;
    (near, ours, far, theirs)
}

/// W-X17, W-X18.
#[tokio::test]
async fn nodes_with_the_same_secret_open_a_stream_and_share_its_exporter() {
    let (mut near, mut far) = (start(1), start(1));
    let target = target(&far);
    near.dial(target);
    let (ours, dialed, exporter) = opened(&mut near).await;
    assert_eq!(dialed, Some(target));
    let (theirs, dialed, same) = opened(&mut far).await;
    assert_eq!((dialed, same), (None, exporter));
    near.send(ours, b"there".to_vec());
    far.send(theirs, b"back".to_vec());
    assert_eq!(frame(&mut far).await, b"there");
    assert_eq!(frame(&mut near).await, b"back");
    near.dial(target);
    let (_, _, other) = opened(&mut near).await;
    assert_ne!(exporter, other, "each stream has its own");
}

/// W-X18: the handshake itself refuses.
#[tokio::test]
async fn another_secret_is_refused_on_both_ends() {
    let (mut near, far) = (start(1), start(2));
    let target = target(&far);
    near.dial(target);
    let failed = SessionEvent::DialFailed { target, error: "the other side has another secret".to_owned() };
    assert_eq!(next(&mut near).await, failed);
    while far.refused() == 0 {
        tokio::task::yield_now().await;
    }
}

/// Whoever knows the mesh's public key still has to show the private one.
#[tokio::test]
async fn one_without_the_secret_gets_nothing_though_it_takes_our_key() {
    let (mut near, mut far) = (start(1), start(1));
    near.tls = Arc::new(tls::tests::impostor(keys(1).tls_seed()));
    near.dial(target(&far));
    let (id, ..) = opened(&mut near).await;
    tokio::select! {
        event = next(&mut near) => assert!(matches!(event, SessionEvent::Closed { id: ended, .. } if ended == id)),
        event = far.next() => panic!("{event:?}"),
    }
    assert_eq!(far.refused(), 1);
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told() {
    let mut near = start(1);
    let closed = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let target = Target { address: closed, expected: None };
    near.dial(target);
    assert!(matches!(next(&mut near).await, SessionEvent::DialFailed { target: told, .. } if told == target));
}

/// W-X19: 64 KiB are a frame, one byte more is not.
#[tokio::test]
async fn the_longest_frame_passes_and_a_longer_one_ends_the_stream() {
    let (mut near, ours, mut far, theirs) = pair().await;
    near.send(ours, vec![7; MAX_FRAME_BYTES]);
    assert!(frame(&mut far).await == vec![7; MAX_FRAME_BYTES]);
    near.send(ours, vec![7; MAX_FRAME_BYTES + 1]);
    let reason = "a frame of 65537 bytes".to_owned();
    assert_eq!(next(&mut far).await, SessionEvent::Closed { id: theirs, reason });
    assert!(matches!(next(&mut near).await, SessionEvent::Closed { id, .. } if id == ours));
}

#[tokio::test]
async fn closing_sends_first_what_was_to_be_sent() {
    let (mut near, ours, mut far, theirs) = pair().await;
    (0..20).for_each(|number| near.send(ours, vec![number; 3000]));
    near.close(ours);
    for number in 0..20 {
        assert_eq!(frame(&mut far).await, vec![number; 3000]);
    }
    assert!(matches!(next(&mut far).await, SessionEvent::Closed { id, .. } if id == theirs));
    assert!(timeout(Duration::from_millis(50), near.next()).await.is_err(), "nothing more is told");
}

#[tokio::test]
async fn finishing_sends_the_last_words_of_all_streams() {
    let (mut near, ours, mut far, _) = pair().await;
    near.send(ours, b"goodbye".to_vec());
    let started = std::time::Instant::now();
    near.finish(PATIENCE).await;
    assert!(started.elapsed() < PATIENCE / 2, "and ends as soon as they are sent");
    assert_eq!(frame(&mut far).await, b"goodbye");
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_closed_and_holds_up_nobody() {
    let (mut near, ours, far, _) = pair().await;
    // The far side is never asked for events, so it stops to read.
    let mut sent = 0;
    let closed = loop {
        near.send(ours, vec![0; MAX_FRAME_BYTES]);
        sent += 1;
        if let Ok(event) = timeout(Duration::from_millis(1), near.next()).await {
            break event;
        }
        assert!(sent < 10_000, "never closed");
    };
    let reason = "the other side is too slow".to_owned();
    assert_eq!(closed, SessionEvent::Closed { id: ours, reason });
    drop(far);
}

#[tokio::test]
async fn rubbish_instead_of_tls_is_refused() {
    let mut far = start(1);
    let mut socket = TcpStream::connect(address(&far)).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::select! {
        read = socket.read_to_end(&mut answer) => drop(read),
        event = far.next() => panic!("{event:?}"),
    }
    assert!(answer.len() < 10, "an alert at most");
    assert_eq!(far.refused(), 1);
}

/// Slow strangers take a few places, for a while, and leave room for others.
#[tokio::test]
async fn strangers_who_say_nothing_are_few_and_do_not_keep_nodes_out() {
    let far = start(1);
    let mut mute = Vec::new();
    for _ in 0..MAX_FROM_ONE_NETWORK + 3 {
        mute.push(TcpStream::connect(address(&far)).await.unwrap());
    }
    while far.refused() < 3 {
        tokio::task::yield_now().await;
    }
    let near = start(1);
    // Another address of this host, as another network.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, 9), 0).into()).unwrap();
    let socket = socket.connect(address(&far)).await.unwrap();
    let dialed = near.tls.connect(socket, target(&far)).await;
    assert!(dialed.is_ok());
}

#[tokio::test]
async fn a_mute_stranger_is_closed_in_the_end() {
    let far = start(1);
    let mut mute = TcpStream::connect(address(&far)).await.unwrap();
    tokio::task::yield_now().await;
    tokio::time::pause();
    let closed = timeout(HANDSHAKE_PATIENCE * 2, mute.read(&mut [0; 1])).await;
    assert!(closed.is_ok(), "closed");
    assert_eq!(far.refused(), 1);
}

/// W-D43.
#[tokio::test]
async fn a_port_in_use_makes_it_take_the_next() {
    let first = start(1);
    let taken = first.port().unwrap();
    let second = Exchange::start(&keys(1), taken);
    assert!(second.port().is_some_and(|port| port > taken && port < taken.saturating_add(PORTS)));
}

#[tokio::test]
async fn it_listens_on_both_versions_of_ip() {
    let mut far = start(1);
    let mut near = start(1);
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        near.dial(Target { address: (ip, far.port().unwrap()).into(), expected: None });
        opened(&mut near).await;
        let SessionEvent::Opened { remote, .. } = next(&mut far).await else { panic!("not opened") };
        assert_eq!(remote.ip(), ip, "IPv4 looks like IPv4");
    }
}
