//! A STUN server (RFC 8489) with two addresses and two ports, as RFC 5780 wants it to tell kinds of NATs apart.
//!
//! Written from the RFCs and not with the core's client, so that the two cannot be wrong in the same way.

use std::net::{IpAddr, SocketAddr};

use crate::network::{Datagram, Payload};

/// Where STUN servers listen.
pub const PORT: u16 = 3478;

/// The other port that RFC 5780 wants.
const OTHER_PORT: u16 = 3479;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_RESPONSE: u16 = 0x0101;
const MAGIC_COOKIE: u32 = 0x2112_a442;
const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;

/// The bits of CHANGE-REQUEST (RFC 5780 §7.2).
const CHANGE_ADDRESS: u32 = 4;
const CHANGE_PORT: u32 = 2;

/// One server.
#[derive(Clone, Debug)]
pub struct StunServer {
    /// Whether it is up.
    pub answers: bool,
    addresses: [IpAddr; 2],
    /// Whether it tells of its other address and does as CHANGE-REQUEST asks.
    tells_other: bool,
}

impl StunServer {
    /// Starts a server.
    pub const fn new(addresses: [IpAddr; 2], tells_other: bool) -> Self {
        Self { answers: true, addresses, tells_other }
    }

    /// Returns where it is asked.
    pub const fn main_address(&self) -> SocketAddr {
        SocketAddr::new(self.addresses[0], PORT)
    }

    /// Whether it has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Returns its answer to a datagram, if that is a question.
    pub fn answer(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<Datagram> {
        let request = Request::parse(bytes).filter(|_| self.answers)?;
        let is_port = [PORT, OTHER_PORT].contains(&to.port());
        if !is_port {
            return None;
        }
        let change = if self.tells_other { request.change } else { 0 };
        let ip = if change & CHANGE_ADDRESS != 0 { self.other_address(to.ip()) } else { to.ip() };
        let port = if change & CHANGE_PORT != 0 { other_port(to.port()) } else { to.port() };
        let origin = SocketAddr::new(ip, port);
        let mut attributes = attribute(XOR_MAPPED_ADDRESS, &address_value(from, Some(request.transaction)));
        if self.tells_other {
            let other = SocketAddr::new(self.other_address(to.ip()), other_port(to.port()));
            attributes.extend(attribute(RESPONSE_ORIGIN, &address_value(origin, None)));
            attributes.extend(attribute(OTHER_ADDRESS, &address_value(other, None)));
        }
        let mut answer = Vec::new();
        answer.extend(BINDING_RESPONSE.to_be_bytes());
        answer.extend(length(&attributes));
        answer.extend(MAGIC_COOKIE.to_be_bytes());
        answer.extend(request.transaction);
        answer.extend(attributes);
        Some(Datagram { from: origin, to: from, payload: Payload::Daemon(answer.into()) })
    }

    fn other_address(&self, address: IpAddr) -> IpAddr {
        let [one, other] = self.addresses;
        if address == one { other } else { one }
    }
}

/// Whether bytes are a Binding Request.
pub fn is_request(bytes: &[u8]) -> bool {
    Request::parse(bytes).is_some()
}

struct Request {
    transaction: [u8; 12],
    change: u32,
}

impl Request {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[kind_high, kind_low, length_high, length_low], rest) = bytes.split_first_chunk()?;
        let (&cookie, rest) = rest.split_first_chunk()?;
        let (&transaction, mut attributes) = rest.split_first_chunk()?;
        let is_request = u16::from_be_bytes([kind_high, kind_low]) == BINDING_REQUEST
            && usize::from(u16::from_be_bytes([length_high, length_low])) == attributes.len()
            && u32::from_be_bytes(cookie) == MAGIC_COOKIE;
        let mut change = 0;
        while let Some((&[a, b, c, d], value)) = attributes.split_first_chunk() {
            let (kind, length) = (u16::from_be_bytes([a, b]), usize::from(u16::from_be_bytes([c, d])));
            if kind == CHANGE_REQUEST {
                change = value.first_chunk().copied().map_or(0, u32::from_be_bytes);
            }
            attributes = value.get(length.next_multiple_of(4)..)?;
        }
        is_request.then_some(Self { transaction, change })
    }
}

const fn other_port(port: u16) -> u16 {
    if port == PORT { OTHER_PORT } else { PORT }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), &length(value)[..], value].concat()
}

fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).expect("an answer is short").to_be_bytes()
}

/// Encodes an address, hidden under the cookie and the transaction where one is given (RFC 8489 §14.2).
fn address_value(address: SocketAddr, transaction: Option<[u8; 12]>) -> Vec<u8> {
    let mut mask = [0; 16];
    if let Some(transaction) = transaction {
        mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        mask[4..].copy_from_slice(&transaction);
    }
    let (family, octets) = match address.ip() {
        IpAddr::V4(v4) => (1, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2, v6.octets().to_vec()),
    };
    let masked = |bytes: &[u8]| bytes.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect::<Vec<_>>();
    [vec![0, family], masked(&address.port().to_be_bytes()), masked(&octets)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSACTION: [u8; 12] = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn request(attributes: &[u8]) -> Vec<u8> {
        let head = [&BINDING_REQUEST.to_be_bytes(), &length(attributes)[..], &MAGIC_COOKIE.to_be_bytes()];
        [&head.concat(), &TRANSACTION[..], attributes].concat()
    }

    /// The addresses and bytes of RFC 5769 §2.2 and §2.3.
    #[test]
    fn addresses_are_hidden_as_in_the_test_vectors() {
        let v4 = "192.0.2.1:32853".parse().unwrap();
        assert_eq!(address_value(v4, Some(TRANSACTION)), [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let v6 = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        let expected = [
            0, 2, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe,
            0xd2, 0xb9, 0xd9,
        ];
        assert_eq!(address_value(v6, Some(TRANSACTION)), expected);
    }

    #[test]
    fn a_request_is_answered_from_where_it_asks_for() {
        let addresses = ["62.0.0.1", "62.0.0.2"].map(|address| address.parse().unwrap());
        let (from, to) = ("81.0.0.1:40000".parse().unwrap(), SocketAddr::new(addresses[0], PORT));
        let change = |bits: u32| request(&attribute(CHANGE_REQUEST, &bits.to_be_bytes()));
        for (tells_other, bits, expected) in [
            (true, 0, SocketAddr::new(addresses[0], PORT)),
            (true, CHANGE_PORT, SocketAddr::new(addresses[0], OTHER_PORT)),
            (true, CHANGE_ADDRESS | CHANGE_PORT, SocketAddr::new(addresses[1], OTHER_PORT)),
            (false, CHANGE_ADDRESS | CHANGE_PORT, SocketAddr::new(addresses[0], PORT)),
        ] {
            let answer = StunServer::new(addresses, tells_other).answer(from, to, &change(bits)).unwrap();
            assert_eq!((answer.from, answer.to), (expected, from));
        }
    }

    #[test]
    fn nothing_but_a_request_is_answered() {
        let server = StunServer::new(["62.0.0.1", "62.0.0.2"].map(|a| a.parse().unwrap()), true);
        let (from, to) = ("81.0.0.1:40000".parse().unwrap(), "62.0.0.1:3478".parse().unwrap());
        let whole = request(&[]);
        assert!(server.answer(from, to, &whole).is_some());
        for length in 0..whole.len() {
            assert!(server.answer(from, to, &whole[..length]).is_none());
        }
        assert!(server.answer(from, "62.0.0.1:80".parse().unwrap(), &whole).is_none());
    }
}
