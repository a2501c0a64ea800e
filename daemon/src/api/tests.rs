use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use wgmesh_core::key::SecretKey;
use wgmesh_core::nat::NatType;
use wgmesh_core::status::{Ebpf, Health, Kernel, Node, Relay};
use wgmesh_core::stun::{Filtering, ServerReport};
use wgmesh_core::time::Monotonic;

use super::client::Error as ClientError;
use super::*;

fn example() -> Status {
    Status {
        version: "1".into(),
        uptime_s: 1,
        node: Node {
            interface: "wgmesh0".parse().unwrap(),
            public_key: SecretKey::from_random([1; 32]).public(),
            hostname: "db1".parse().unwrap(),
            mesh_ipv4: [10, 42, 0, 1].into(),
            mesh_ipv6: "fd00::1".parse().unwrap(),
            listen_port: Some(51820),
            exchange_port: None,
            nat_type: None,
            mapped: None,
        },
        peers: Vec::new(),
        sources: Vec::new(),
        sessions: Vec::new(),
        dials: Vec::new(),
        shut_out: Vec::new(),
        privacy: None,
        ebpf: Ebpf::default(),
        kernel: Kernel::default(),
        relay: Relay::default(),
        health: Health::default(),
        drops: [("seal".to_owned(), 3)].into(),
        relays_left: BTreeMap::new(),
        problems: Vec::new(),
    }
}

async fn ask(socket: PathBuf) -> Result<Status, ClientError> {
    tokio::task::spawn_blocking(move || client::status(&socket)).await.unwrap()
}

/// Runs a server whose mesh task answers as `answer` does; a question that it drops stays unanswered.
fn serve(socket: &Path, mut answer: impl FnMut(ApiRequest) + Send + 'static) -> tokio::task::JoinSet<()> {
    let server = Server::bind(socket.into(), Lock::take(socket).unwrap()).unwrap();
    let (mesh, mut questions) = mpsc::channel(1);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server.serve(mesh));
    tasks.spawn(async move {
        while let Some(question) = questions.recv().await {
            answer(question);
        }
    });
    tasks
}

/// Runs a server that knows its status, or drops the question.
fn start(socket: &Path, status: Option<Status>) -> tokio::task::JoinSet<()> {
    serve(socket, move |question| {
        if let (ApiRequest::Status(reply), Some(status)) = (question, status.clone()) {
            reply.send(status).unwrap();
        }
    })
}

fn report(checking: bool) -> Report {
    let mapped = Some("198.51.100.7:51820".parse().unwrap());
    Report {
        servers: vec![ServerReport { address: "192.0.2.1:3478".parse().unwrap(), mapped, rtt_ms: Some(12) }],
        nat_type: if checking { NatType::Unknown } else { NatType::PortRestricted },
        filtering: Filtering::AddressAndPortDependent,
        mapped_v4: mapped,
        mapped_v6: None,
        hairpin: Some(false),
        cgnat: false,
        routers: Vec::new(),
        ipv6: false,
        checking,
        introducers: Vec::new(),
    }
}

fn answered(at: u64) -> Answer {
    let last = LastAnswer {
        at: Monotonic::from_nanos(at),
        from: "192.168.7.2:51820".parse().unwrap(),
        rtt: Duration::from_micros(450),
    };
    Answer { last, kind: Kind::Lan }
}

/// W-D57: what the mesh task says is what the command line reads, over a socket that only its owner may use.
#[tokio::test]
async fn the_status_travels_over_a_private_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run").join("wgmesh0.sock");
    let _server = start(&socket, Some(example()));

    assert_eq!(ask(socket.clone()).await.unwrap(), example());

    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_question_that_is_dropped_is_answered_with_an_explanation() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let _server = start(&socket, None);
    let error = ask(socket).await.unwrap_err().to_string();
    assert_eq!(error, "the daemon refused: the daemon is shutting down");
}

#[tokio::test]
async fn a_second_server_is_told_who_is_running() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let _server = start(&socket, Some(example()));

    let error = Lock::take(&socket).unwrap_err().to_string();

    let expected = format!("already running: process {} serves this mesh", std::process::id());
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(ask(socket).await.unwrap(), example());
}

#[tokio::test]
async fn a_socket_left_by_a_dead_daemon_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(matches!(ask(socket.clone()).await, Err(ClientError::NotRunning(_))));

    let _server = start(&socket, Some(example()));

    assert_eq!(ask(socket).await.unwrap(), example());
}

#[tokio::test]
async fn a_server_that_goes_takes_its_socket_along() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let mut server = start(&socket, Some(example()));
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());

    server.shutdown().await;

    assert!(!socket.exists());
    assert!(matches!(ask(socket.clone()).await, Err(ClientError::NotRunning(_))));
    Lock::take(&socket).unwrap();
}

#[test]
fn strangers_may_not_ask() {
    let own = nix::unistd::geteuid().as_raw();
    assert!(may_ask(0));
    assert!(may_ask(own));
    assert!(!may_ask(own.wrapping_add(1)));
}

#[tokio::test]
async fn a_check_of_the_nat_is_awaited() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let mut looks = 0;
    let _server = serve(&socket, move |question| match question {
        ApiRequest::CheckNat(reply) => reply.send(report(true)).unwrap(),
        ApiRequest::NatReport(reply) => {
            looks += 1;
            reply.send(report(looks < 3)).unwrap();
        }
        other => panic!("{other:?}"),
    });

    let found = tokio::task::spawn_blocking(move || client::netcheck(&socket)).await.unwrap();

    assert_eq!(found.unwrap(), report(false));
}

#[tokio::test]
async fn a_ping_returns_the_answer_that_came_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let peer = SecretKey::from_random([2; 32]).public();
    let mut looks = 0;
    let _server = serve(&socket, move |question| match question {
        ApiRequest::Ping(key, reply) if key == peer => reply.send(Some(answered(1))).unwrap(),
        ApiRequest::LastAnswer(key, reply) if key == peer => {
            looks += 1;
            reply.send(Some(answered(if looks < 3 { 1 } else { 2 }))).unwrap();
        }
        other => panic!("{other:?}"),
    });

    let pong = tokio::task::spawn_blocking(move || client::ping(&socket, peer)).await.unwrap();

    let expected = Pong { from: "192.168.7.2:51820".parse().unwrap(), kind: "lan".to_owned(), rtt_us: 450 };
    assert_eq!(pong.unwrap(), Some(expected));
}

#[tokio::test]
async fn a_ping_that_nobody_answers_ends() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let _server = serve(&socket, |question| match question {
        ApiRequest::Ping(_, reply) | ApiRequest::LastAnswer(_, reply) => {
            reply.send(Some(answered(1))).unwrap();
        }
        other => panic!("{other:?}"),
    });
    let peer = SecretKey::from_random([2; 32]).public();

    let pong = tokio::task::spawn_blocking(move || client::ping(&socket, peer)).await.unwrap();

    assert_eq!(pong.unwrap(), None);
}

/// M-4, M-5, M-6: whom the operator names and drops reaches the daemon, and its refusal comes back.
#[tokio::test]
async fn naming_and_dropping_travel_to_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let mut pins = Pins::default();
    let _server = serve(&socket, move |question| match question {
        ApiRequest::AddPeer(Pin::Peer(_), reply) => reply.send(Err("not this one".to_owned())).unwrap(),
        ApiRequest::AddPeer(pin, reply) => {
            pins.add(pin);
            reply.send(Ok(())).unwrap();
        }
        ApiRequest::RemovePeer(removal, reply) => reply.send(pins.remove(&removal)).unwrap(),
        ApiRequest::Pins(reply) => reply.send(pins.clone()).unwrap(),
        other => panic!("{other:?}"),
    });
    let node: Pin = "mesh1:51900".parse().unwrap();
    let peer: Pin = SecretKey::from_random([2; 32]).public().to_string().parse().unwrap();
    let removal = Removal { key: None, node: Some("mesh1".to_owned().try_into().unwrap()) };

    tokio::task::spawn_blocking(move || {
        client::add_peer(&socket, &node).unwrap();
        let refusal = client::add_peer(&socket, &peer).unwrap_err().to_string();
        assert_eq!(refusal, "the daemon refused: not this one");
        assert_eq!(client::pins(&socket).unwrap().bootstrap_nodes.len(), 1);
        assert!(client::remove_peer(&socket, &removal).unwrap());
        assert!(!client::remove_peer(&socket, &removal).unwrap());
    })
    .await
    .unwrap();
}

/// W-D7: what came of a reload, or what is wrong in the file, reaches whoever asked for it.
#[tokio::test]
async fn a_reload_tells_what_came_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wgmesh0.sock");
    let found = Reloaded { changed: vec!["log_level".to_owned()], ..Reloaded::default() };
    let mut outcomes = vec![Err("a.toml:1:1: no".to_owned()), Ok(found.clone())];
    let _server = serve(&socket, move |question| match question {
        ApiRequest::Reload(reply) => reply.send(outcomes.pop().unwrap()).unwrap(),
        other => panic!("{other:?}"),
    });

    tokio::task::spawn_blocking(move || {
        assert_eq!(client::reload(&socket).unwrap(), found);
        let refusal = client::reload(&socket).unwrap_err().to_string();
        assert_eq!(refusal, "the daemon refused: a.toml:1:1: no");
    })
    .await
    .unwrap();
}
