//! STUN servers that are not ours: coturn with two public addresses, as RFC 5780 asks.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::Internet;
use crate::host::{Host, Process};
use crate::poll::eventually;
use crate::socket::bind_udp;

/// A Binding Request (RFC 5389 §6): type, no attributes, the cookie, and a transaction id of our choice.
const BINDING_REQUEST: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// Longer than coturn takes to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a request is sent, one a second.
const REQUESTS: u32 = 5;

/// One running server with two addresses and two ports, which look like two servers to whoever does not ask more.
pub struct StunServers {
    /// The machine.
    pub host: Host,
    _process: Process,
}

impl StunServers {
    /// Where it answers.
    pub const ADDRESSES: [SocketAddrV4; 2] = [
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 251), 3478),
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 252), 3478),
    ];

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// Where it does not.
    #[track_caller]
    pub fn start(internet: &Internet) -> Self {
        let [first, second] = Self::ADDRESSES.map(|address| *address.ip());
        let host = internet.server("stun", &[first, second]);
        let [first, second] = [first, second].map(|address| address.to_string());
        let mut words = vec!["turnserver", "-n", "-L", &first, "-L", &second, "--alt-listening-port", "3479"];
        words.extend(["--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--stun-only"]);
        words.extend(["--no-stdout-log", "--log-file=/dev/null", "--pidfile=/dev/null"]);
        let process = host.spawn(words);
        eventually(PATIENCE, || {
            Self::ADDRESSES.iter().all(|server| Self::mapped(&host, 0, *server).is_some())
        });
        Self { host, _process: process }
    }

    /// Asks a server from a port of the host what address it sees; `None` where no answer comes to any of five requests,
    /// as one may be lost on a busy machine.
    pub fn mapped(host: &Host, port: u16, server: SocketAddrV4) -> Option<SocketAddrV4> {
        host.namespace().run(move || {
            let socket = bind_udp((Ipv4Addr::UNSPECIFIED, port));
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a second is a valid timeout");
            (0..REQUESTS).find_map(|_| {
                socket.send_to(&BINDING_REQUEST, server).ok()?;
                let mut answer = [0; 512];
                let (length, _) = socket.recv_from(&mut answer).ok()?;
                xor_mapped(&answer[..length])
            })
        })
    }
}

/// Finds XOR-MAPPED-ADDRESS (RFC 5389 §15.2) in an answer to our request, for IPv4.
fn xor_mapped(answer: &[u8]) -> Option<SocketAddrV4> {
    let mut rest = answer.get(20..)?;
    loop {
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let length = usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]));
        if let (0x0020, [_, 1, port_high, port_low, a, b, c, d]) = (kind, rest.get(4..4 + length)?) {
            let port = u16::from_be_bytes([port_high ^ 0x21, port_low ^ 0x12]);
            return Some(SocketAddrV4::new([a ^ 0x21, b ^ 0x12, c ^ 0xa4, d ^ 0x42].into(), port));
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
}
