//! WireGuard's own port, used beside the kernel's WireGuard: raw sockets and STUN against servers and NATs that are not
//! ours, while a tunnel lives on that port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability, CapsHashSet};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use wgmesh::wireguard_port::WireguardPort;
use wgmesh_core::nat::NatType;
use wgmesh_core::seal::MAX_PROBE_BYTES;
use wgmesh_core::stun::{Filtering, Handled, Report, Stun};
use wgmesh_core::time::Monotonic;
use wgmesh_lab::{
    Host, Internet, Lab, Link, Manual, NatKind, Process, StunServers, bind_udp, eventually, wire_by_hand,
};

/// WireGuard's port everywhere in the lab.
const PORT: u16 = 51820;

/// Longer than a packet travels through the lab, and than a handshake takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long is waited for what must not come.
const QUIET: Duration = Duration::from_millis(500);

/// W-X7, W-X8, W-X10, W-X11, P-16, P-18, L-12, X-22, DESIGN 6: behind each kind of NAT, STUN finds the mapping that the
/// kernel's WireGuard of a peer sees, and the type, while a tunnel lives on the same port and loses nothing.
#[test]
fn stun_finds_the_mapping_of_wireguards_port_while_the_tunnel_lives() {
    let internet = Internet::new("paths-stun");
    let _stun = StunServers::start(&internet);
    for (number, kind) in (1..).zip(NatKind::ALL) {
        let site = internet.site(&format!("{kind:?}"), kind);
        let outer = Ipv4Addr::new(192, 0, 2, number);
        let peer = internet.server(&format!("peer{number}"), &[outer]);
        let tunnel = Tunnel::new(&site.host, site.public().into(), &peer, outer.into());

        let report = tunnel.while_pinging(|| {
            ask(&site.host, &StunServers::ADDRESSES.map(SocketAddr::V4), site.address.into())
        });

        let expected = match kind {
            NatKind::None => NatType::Open,
            NatKind::FullCone => NatType::FullCone,
            NatKind::AddressRestricted => NatType::Restricted,
            NatKind::PortRestricted | NatKind::PortRewriting | NatKind::Cgnat => NatType::PortRestricted,
            NatKind::Symmetric => NatType::Symmetric,
        };
        println!("{kind}: {}", serde_json::to_string(&report).unwrap());
        assert_eq!(report.nat_type, expected, "{kind}");
        let mapped = report.mapped_v4.unwrap();
        let endpoint = tunnel.endpoint_seen_by_peer();
        assert_eq!(mapped.ip(), endpoint.ip(), "{kind}");
        assert_eq!(mapped == endpoint, kind != NatKind::Symmetric, "{kind}: {mapped} and {endpoint}");
        assert!(report.servers.iter().all(|server| server.mapped.is_some() && server.rtt_ms.is_some()));
    }
}

/// W-X7: IPv6 has no NAT here; what is seen is the host's own address.
#[test]
fn stun_works_over_ipv6() {
    let pair = Pair::new("paths-stun6");
    let [first, second] = [Pair::RIGHT_V6, Pair::RIGHT_V6_SECOND].map(|address| address.to_string());
    let mut words = vec!["turnserver", "-n", "-L", &first, "-L", &second, "--alt-listening-port", "3479"];
    words.extend(["--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--stun-only"]);
    words.extend(["--no-stdout-log", "--log-file=/dev/null", "--pidfile=/dev/null"]);
    let _server = pair.right.spawn(words);
    eventually(PATIENCE, || pair.right.run(["ss", "-lun"]).contains(&format!("[{second}]:3479")));
    let tunnel = pair.tunnel_v6();

    let servers = [SocketAddr::new(Pair::RIGHT_V6.into(), 3478)];
    let report = tunnel.while_pinging(|| ask(&pair.left, &servers, Pair::LEFT_V6.into()));

    println!("{}", serde_json::to_string(&report).unwrap());
    assert_eq!(report.mapped_v6, Some(SocketAddr::new(Pair::LEFT_V6.into(), PORT)));
    assert_eq!((report.nat_type, report.filtering), (NatType::Open, Filtering::EndpointIndependent));
    assert!(report.ipv6);
}

/// P-18, X-54: with every server gone, the type is unknown after three seconds, and nothing else suffers.
#[test]
fn stun_without_an_answer_is_over_after_three_seconds() {
    let pair = Pair::new("paths-silence");
    let tunnel = pair.tunnel_v4();
    let servers = [3, 4].map(|last| SocketAddr::from(([192, 0, 2, last], 3478)));
    let started = Instant::now();

    let report = tunnel.while_pinging(|| ask(&pair.left, &servers, Pair::LEFT.into()));

    assert_eq!((report.nat_type, report.mapped_v4), (NatType::Unknown, None));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

/// DESIGN 6: datagrams leave from WireGuard's port with a checksum that the other kernel accepts, come in beside the
/// tunnel, and WireGuard's own packets never reach us.
#[test]
fn datagrams_pass_beside_a_tunnel_and_wireguards_own_never_wake_us() {
    let pair = Pair::new("paths-beside");
    for (tunnel, left, right) in [
        (pair.tunnel_v4(), SocketAddr::from((Pair::LEFT, PORT)), SocketAddr::from((Pair::RIGHT, 0))),
        (pair.tunnel_v6(), SocketAddr::from((Pair::LEFT_V6, PORT)), SocketAddr::from((Pair::RIGHT_V6, 0))),
    ] {
        let load = tunnel.load();
        let before = tunnel.packets_received();
        let passed = || tunnel.packets_received() - before;
        while passed() < 500 {
            let span = Duration::from_secs(1);
            let received = with_port(&pair.left, move |port| async move { count(&port, span).await });
            assert_eq!(received, 0, "of {} packets of WireGuard", passed());
        }
        println!("{left}: {} packets of WireGuard, none of them seen", passed());
        drop(load);

        let outsider = plain_socket(&pair.right, right);
        let to = outsider.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            let (length, from) = outsider.recv_from(&mut buffer).unwrap();
            // Too long for us, then one of WireGuard's kinds, then ours.
            outsider.send_to(&[7; MAX_PROBE_BYTES + 1], from).unwrap();
            outsider.send_to(&[1, 0, 0, 0, 9, 9, 9], from).unwrap();
            outsider.send_to(&buffer[..length], from).unwrap();
            (from, buffer[..length].to_vec())
        });
        let question = [&[1, 7][..], &[0xa5; 1198]].concat();
        let sent = question.clone();
        let answer = with_port(&pair.left, move |port| async move {
            port.send(to, &sent);
            tokio::time::timeout(PATIENCE, port.receive()).await.unwrap().unwrap()
        });
        assert_eq!(echo.join().unwrap(), (left, question.clone()));
        assert_eq!((answer.from, answer.bytes), (to, question));
        assert!(tunnel.pings(), "the tunnel lives on");
    }
}

/// DESIGN 6: hosts of one link without any other address meet by their link-local ones.
#[test]
fn a_link_local_address_can_be_sent_to() {
    let pair = Pair::new("paths-link-local");
    let address = |host: &Host| -> Ipv6Addr {
        let shown = host.run(["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"]);
        let words: Vec<&str> = shown.split_whitespace().collect();
        words[3].split('/').next().unwrap().parse().unwrap()
    };
    let index =
        |host: &Host| -> u32 { host.run(["cat", "/sys/class/net/eth0/ifindex"]).trim().parse().unwrap() };
    let here = SocketAddrV6::new(address(&pair.right), 0, 0, index(&pair.right));
    let outsider = plain_socket(&pair.right, here.into());
    let port = outsider.local_addr().unwrap().port();
    let there = SocketAddrV6::new(address(&pair.right), port, 0, index(&pair.left));

    with_port(&pair.left, move |port| async move { port.send(there.into(), b"hello") });

    let mut buffer = [0; 100];
    let (length, from) = outsider.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
    assert_eq!((from.ip(), from.port()), (address(&pair.left).into(), PORT));
}

/// W-D3: WireGuard may be given another port while we run; what waits from the old one is not ours any more.
#[test]
fn the_port_can_change() {
    let pair = Pair::new("paths-port");
    let outsider = plain_socket(&pair.right, (Pair::RIGHT, 0).into());
    let received = with_port(&pair.left, move |mut port| async move {
        let send = |text: &[u8], to: u16| outsider.send_to(text, (Pair::LEFT, to)).unwrap();
        send(b"first", PORT);
        port.receive().await.unwrap();
        send(b"of the old port", PORT);
        tokio::time::sleep(QUIET).await;
        port.set_port(60000).unwrap();
        send(b"still of the old port", PORT);
        send(b"of the new port", 60000);
        let received = tokio::time::timeout(PATIENCE, port.receive()).await.unwrap().unwrap();
        port.send(outsider.local_addr().unwrap(), b"from the new port");
        (received.bytes, outsider.recv_from(&mut [0; 100]).unwrap().1)
    });
    assert_eq!(received, (b"of the new port".to_vec(), (Pair::LEFT, 60000).into()));
}

/// C-8: opening takes CAP_NET_RAW and no more; what is open works without anything.
#[test]
fn only_opening_takes_a_capability() {
    let pair = Pair::new("paths-capabilities");
    let outsider = plain_socket(&pair.right, (Pair::RIGHT, 0).into());
    let to = outsider.local_addr().unwrap();
    let refused = pair.left.namespace().run(move || {
        // Capabilities belong to a thread: this one does not live long.
        let thread = std::thread::spawn(move || {
            let keep = |kept: &[Capability]| {
                let kept: CapsHashSet = kept.iter().copied().collect();
                caps::set(None, CapSet::Effective, &kept).unwrap();
                caps::set(None, CapSet::Permitted, &kept).unwrap();
            };
            runtime().block_on(async {
                keep(&[Capability::CAP_NET_RAW]);
                let mut port = WireguardPort::open(PORT).unwrap();
                keep(&[]);
                port.set_port(PORT + 1).unwrap();
                port.send(to, b"without any power");
                WireguardPort::open(PORT).unwrap_err().kind()
            })
        });
        thread.join().unwrap()
    });
    assert_eq!(refused, std::io::ErrorKind::PermissionDenied);
    let (_, from) = outsider.recv_from(&mut [0; 100]).unwrap();
    assert_eq!(from, (Pair::LEFT, PORT + 1).into());
}

/// DESIGN 4: a host without IPv6 has the rest.
#[test]
fn a_host_without_ipv6_has_the_rest() {
    let pair = Pair::new("paths-no-ipv6");
    pair.left.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    let outsider = plain_socket(&pair.right, (Pair::RIGHT, 0).into());
    let to = outsider.local_addr().unwrap();
    with_port(&pair.left, move |port| async move {
        port.send((Pair::RIGHT_V6, 9).into(), b"nowhere");
        port.send(to, b"there");
    });
    let mut buffer = [0; 100];
    let (length, _) = outsider.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"there");
}

/// Two hosts on one switch.
struct Pair {
    left: Host,
    right: Host,
    _links: [Link; 2],
    _lab: Lab,
}

impl Pair {
    const LEFT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const LEFT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const RIGHT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
    const RIGHT_V6_SECOND: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let switch = lab.switch("switch");
        let (left, right) = (lab.host("left"), lab.host("right"));
        let plug = |host: &Host, addresses: &[IpAddr]| {
            let length = |ip: &IpAddr| if ip.is_ipv4() { 24 } else { 64 };
            let addresses: Vec<String> = addresses.iter().map(|ip| format!("{ip}/{}", length(ip))).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            lab.link(host, &switch, &addresses)
        };
        let links = [
            plug(&left, &[Self::LEFT.into(), Self::LEFT_V6.into()]),
            plug(&right, &[Self::RIGHT.into(), Self::RIGHT_V6.into(), Self::RIGHT_V6_SECOND.into()]),
        ];
        eventually(PATIENCE, || left.pings(Self::RIGHT) && left.pings(Self::RIGHT_V6));
        Self { left, right, _links: links, _lab: lab }
    }

    fn tunnel_v4(&self) -> Tunnel<'_> {
        Tunnel::new(&self.left, Self::LEFT.into(), &self.right, Self::RIGHT.into())
    }

    fn tunnel_v6(&self) -> Tunnel<'_> {
        Tunnel::new(&self.left, Self::LEFT_V6.into(), &self.right, Self::RIGHT_V6.into())
    }
}

/// Kernel WireGuard between two hosts, made by hand.
struct Tunnel<'a> {
    from: &'a Host,
    to: &'a Host,
}

impl<'a> Tunnel<'a> {
    const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];

    /// Makes the tunnel, in the place of an earlier one.
    fn new(from: &'a Host, from_outer: IpAddr, to: &'a Host, to_outer: IpAddr) -> Self {
        for host in [from, to] {
            host.exec(["ip", "link", "delete", "wg0"]);
        }
        wire_by_hand(&[
            Manual { host: from, outer: from_outer, inner: Self::INNER[0].into() },
            Manual { host: to, outer: to_outer, inner: Self::INNER[1].into() },
        ]);
        let tunnel = Self { from, to };
        eventually(PATIENCE, || tunnel.pings());
        tunnel
    }

    fn pings(&self) -> bool {
        self.from.pings(Self::INNER[1])
    }

    /// Does something while pings pass, of which none is lost.
    fn while_pinging<T>(&self, action: impl FnOnce() -> T) -> T {
        let before = self.packets_received();
        let ping = self.from.spawn(["ping", "-n", "-q", "-i", "0.05", &Self::INNER[1].to_string()]);
        eventually(PATIENCE, || self.packets_received() > before);
        let outcome = action();
        let output = String::from_utf8(ping.interrupt().stdout).unwrap();
        let number = |what: &str| -> u32 {
            let part = output.split([',', '\n']).find(|part| part.contains(what)).unwrap();
            part.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (sent, answered) = (number("packets transmitted"), number("received"));
        // The last one may still be on its way.
        assert!(answered > 0 && sent - answered <= 1, "{output}");
        outcome
    }

    /// Loads the tunnel in both directions.
    fn load(&self) -> Process {
        self.to.spawn(["ping", "-n", "-q", "-i", "0.005", "-s", "1000", &Self::INNER[0].to_string()])
    }

    /// Returns how many packets came out of the tunnel here.
    fn packets_received(&self) -> u64 {
        self.from.run(["cat", "/sys/class/net/wg0/statistics/rx_packets"]).trim().parse().unwrap()
    }

    /// Returns where the other end's kernel saw this one.
    fn endpoint_seen_by_peer(&self) -> SocketAddr {
        let shown = self.to.run(["wg", "show", "wg0", "endpoints"]);
        shown.split_whitespace().last().unwrap().parse().unwrap()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs code on a host with its WireGuard port opened.
fn with_port<F: Future>(host: &Host, code: impl FnOnce(WireguardPort) -> F + Send + 'static) -> F::Output
where
    F::Output: Send + 'static,
{
    host.namespace().run(|| runtime().block_on(async { code(WireguardPort::open(PORT).unwrap()).await }))
}

/// Binds an ordinary socket on a host, whose reading ends in time.
fn plain_socket(host: &Host, address: SocketAddr) -> UdpSocket {
    let socket = host.namespace().run(move || bind_udp(address));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Counts what comes in.
async fn count(port: &WireguardPort, span: Duration) -> usize {
    let mut received = 0;
    let end = tokio::time::Instant::now() + span;
    while let Ok(result) = tokio::time::timeout_at(end, port.receive()).await {
        result.unwrap();
        received += 1;
    }
    received
}

/// Asks STUN servers from the host's WireGuard port until there is nothing more to ask for.
fn ask(host: &Host, servers: &[SocketAddr], local: IpAddr) -> Report {
    let servers = servers.to_vec();
    with_port(host, move |port| async move {
        let begin = Instant::now();
        let now = || Monotonic::default() + begin.elapsed();
        let mut rng = ChaCha8Rng::from_seed([3; 32]);
        let mut stun = Stun::new();
        stun.restart(&[local], now());
        stun.set_servers(&servers, now());
        while stun.report().checking {
            while let Some((to, bytes)) = stun.poll_transmit(now(), &mut rng) {
                port.send(to, &bytes);
            }
            let wait = stun.poll_timeout().map_or(PATIENCE, |at| at.since(now()));
            if let Ok(received) = tokio::time::timeout(wait, port.receive()).await {
                let received = received.unwrap();
                let handled = stun.handle_datagram(received.from, &received.bytes, now());
                assert!(matches!(handled, Handled::Taken), "{handled:?} from {}", received.from);
            }
            stun.handle_timeout(now());
        }
        stun.report()
    })
}
