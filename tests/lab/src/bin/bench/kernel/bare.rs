//! Peers set with nothing but a socket: the messages are made beforehand, so that only the kernel's own work and the
//! exchange are timed. They say the same as the product's, and are made by other hands.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{read, write};

/// The most bytes of peers in one message, as in the product.
const MESSAGE: usize = 30 * 1024;

/// `NLM_F_REQUEST`, and with `NLM_F_ACK`.
const REQUEST: u16 = 1;
const ACKNOWLEDGED: u16 = 1 | 4;
/// `NLMSG_ERROR`, which an acknowledgement is too, with the number zero.
const ERROR: u16 = 2;
/// `GENL_ID_CTRL`, its command that looks a family up, and the attributes of a family's number and name.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// WireGuard's command that changes a device (`linux/wireguard.h`).
const SET_DEVICE: u8 = 1;
/// The device's attribute of its private key.
const PRIVATE_KEY: u16 = 3;
/// Marks an attribute that holds others.
const NESTED: u16 = 1 << 15;
/// Bytes of a netlink and a generic netlink header.
const HEADERS: usize = 16 + 4;

/// A peer as the messages carry it.
pub(in super::super) struct BarePeer {
    pub(in super::super) key: [u8; 32],
    pub(super) preshared_key: [u8; 32],
    pub(super) endpoint: SocketAddr,
    pub(super) keepalive: u16,
    pub(in super::super) addresses: [IpAddr; 2],
}

/// Gives a link that is there its private key, then sets peers on it, and returns how long those took. Without a key the
/// kernel would be spared the most of its work: an X25519 for each peer (`wg_noise_precompute_static_static`).
pub(super) fn set(link: &str, private_key: &[u8; 32], peers: &[BarePeer]) -> Duration {
    let protocol = SockProtocol::NetlinkGeneric;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), protocol);
    let socket = socket.expect("every Linux has generic netlink");
    let family = family(&socket);
    let device = attribute(2, format!("{link}\0").as_bytes());
    let mut messages = vec![Vec::new()];
    for peer in peers.iter().map(encoded) {
        if messages[messages.len() - 1].len() + peer.len() > MESSAGE {
            messages.push(Vec::new());
        }
        let last = messages.len() - 1;
        messages[last].extend(peer);
    }
    let messages: Vec<_> = messages
        .into_iter()
        .map(|peers| {
            message(family, ACKNOWLEDGED, SET_DEVICE, &[&device[..], &attribute(8 | NESTED, &peers)].concat())
        })
        .collect();
    let keyed = [&device[..], &attribute(PRIVATE_KEY, private_key)].concat();
    execute(&socket, &message(family, ACKNOWLEDGED, SET_DEVICE, &keyed));
    let begin = Instant::now();
    for message in &messages {
        execute(&socket, message);
    }
    begin.elapsed()
}

fn execute(socket: &OwnedFd, message: &[u8]) {
    let answer = exchange(socket, message);
    assert_eq!(answer[4..6], ERROR.to_ne_bytes(), "an acknowledgement");
    assert_eq!(answer[16..20], [0; 4], "no error");
}

fn family(socket: &OwnedFd) -> u16 {
    let name = attribute(FAMILY_NAME, b"wireguard\0");
    let answer = exchange(socket, &message(CONTROL, REQUEST, GET_FAMILY, &name));
    let mut rest = &answer[HEADERS..];
    loop {
        let [l0, l1, k0, k1, ..] = *rest else { panic!("the kernel has no WireGuard") };
        if u16::from_ne_bytes([k0, k1]) == FAMILY_ID {
            return u16::from_ne_bytes([rest[4], rest[5]]);
        }
        rest = &rest[usize::from(u16::from_ne_bytes([l0, l1])).next_multiple_of(4)..];
    }
}

fn exchange(socket: &OwnedFd, message: &[u8]) -> Vec<u8> {
    write(socket, message).expect("the kernel takes messages of this size");
    let mut answer = vec![0; 8 * 1024];
    let length = read(socket.as_fd(), &mut answer).expect("each request is answered");
    answer.truncate(length);
    answer
}

fn message(kind: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).expect("a message is far shorter");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port, which nobody asks for; then command, version, and two reserved bytes.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    message
}

/// Encodes a peer: public key, flag "replace inner addresses", preshared key, endpoint, keepalive, inner addresses.
fn encoded(peer: &BarePeer) -> Vec<u8> {
    let SocketAddr::V4(endpoint) = peer.endpoint else { panic!("endpoints are IPv4 ones here") };
    let [p0, p1] = endpoint.port().to_be_bytes();
    let [a, b, c, d] = endpoint.ip().octets();
    let inet = (AddressFamily::Inet as u16).to_ne_bytes();
    let endpoint = [inet[0], inet[1], p0, p1, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
    let addresses: Vec<u8> = peer.addresses.iter().flat_map(inner).collect();
    let peer = [
        attribute(1, &peer.key),
        attribute(3, &2_u32.to_ne_bytes()),
        attribute(2, &peer.preshared_key),
        attribute(4, &endpoint),
        attribute(5, &peer.keepalive.to_ne_bytes()),
        attribute(9 | NESTED, &addresses),
    ];
    attribute(NESTED, &peer.concat())
}

/// Encodes an inner address: family, address, prefix length.
fn inner(address: &IpAddr) -> Vec<u8> {
    let (family, bytes, length) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, address.octets().to_vec(), 32),
        IpAddr::V6(address) => (AddressFamily::Inet6, address.octets().to_vec(), 128),
    };
    let parts = [attribute(1, &(family as u16).to_ne_bytes()), attribute(2, &bytes), attribute(3, &[length])];
    attribute(NESTED, &parts.concat())
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + content.len()).expect("an attribute is shorter than 64 KiB");
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(content);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}
