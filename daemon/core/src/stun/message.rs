//! STUN messages (RFC 8489), as far as a client that only asks for its address needs them.
//!
//! The codec is `stun-rs`. What it yields is checked here for sense: an address that no packet can be sent to is no
//! answer.

use std::net::{IpAddr, SocketAddr};

use stun_rs::attributes::discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress};
use stun_rs::attributes::stun::{MappedAddress, XorMappedAddress};
use stun_rs::methods::BINDING;
use stun_rs::{
    MessageClass, MessageDecoderBuilder, MessageEncoderBuilder, StunMessage, StunMessageBuilder,
    TransactionId,
};

/// The header of each message: type, length, cookie, transaction id.
const HEADER_BYTES: usize = 20;

/// RFC 8489 §5.
const COOKIE: [u8; 4] = 0x2112_A442_u32.to_be_bytes();

/// The longest message that is looked at: a server's answer is some 100 bytes.
const MAX_BYTES: usize = 1280;

/// What makes a request and its answer belong together: 96 random bits.
pub(super) type Id = [u8; 12];

/// From where a request wants to be answered (RFC 5780 §7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerFrom {
    /// The address that it was sent to.
    SameAddress,
    /// The same IP address, another port.
    OtherPort,
    /// Another IP address and another port.
    OtherAddress,
}

/// What a server tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    /// Where the server saw the request come from.
    pub(super) mapped: SocketAddr,
    /// The server's second address, where it has one (RFC 5780 §7.4).
    pub(super) other: Option<SocketAddr>,
}

/// A message from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A Binding Request: to a client, that is its own, come back.
    Request(Id),
    /// A Binding Success Response. Without a content where the address in it makes no sense.
    Success(Id, Option<Binding>),
    /// A Binding Error Response.
    Error(Id),
}

/// Whether the bytes have the form of a STUN message: two zero bits, a length that fits, and the cookie.
pub(super) fn is_stun(bytes: &[u8]) -> bool {
    let Some((header, content)) = bytes.split_at_checked(HEADER_BYTES) else { return false };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    header[0] & 0b1100_0000 == 0 && header[4..8] == COOKIE && length == content.len() && length % 4 == 0
}

/// Writes a Binding Request.
pub(super) fn request(id: Id, answer_from: AnswerFrom) -> Vec<u8> {
    let change = match answer_from {
        AnswerFrom::SameAddress => None,
        AnswerFrom::OtherPort => Some(ChangeRequestFlags::ChangePort.into()),
        AnswerFrom::OtherAddress => Some(ChangeRequestFlags::ChangeIp | ChangeRequestFlags::ChangePort),
    };
    let mut builder =
        StunMessageBuilder::new(BINDING, MessageClass::Request).with_transaction_id(TransactionId::from(id));
    if change.is_some() {
        builder = builder.with_attribute(ChangeRequest::new(change));
    }
    let mut bytes = vec![0; 64];
    let encoder = MessageEncoderBuilder::default().build();
    let length =
        encoder.encode(&mut bytes, &builder.build()).expect("a header and one attribute fit 64 bytes");
    bytes.truncate(length);
    bytes
}

/// Reads bytes that [`is_stun`], or returns `None` where they are broken or of another kind.
pub(super) fn parse(bytes: &[u8]) -> Option<Message> {
    if bytes.len() > MAX_BYTES {
        return None;
    }
    let (message, length) = MessageDecoderBuilder::default().build().decode(bytes).ok()?;
    if length != bytes.len() || message.method() != BINDING {
        return None;
    }
    let id = *message.transaction_id().as_bytes();
    match message.class() {
        MessageClass::Request => Some(Message::Request(id)),
        MessageClass::SuccessResponse => Some(Message::Success(id, binding(&message))),
        MessageClass::ErrorResponse => Some(Message::Error(id)),
        MessageClass::Indication => None,
    }
}

fn binding(message: &StunMessage) -> Option<Binding> {
    let xored = message.get::<XorMappedAddress>().and_then(|found| found.as_xor_mapped_address().ok());
    let plain = message.get::<MappedAddress>().and_then(|found| found.as_mapped_address().ok());
    let other = message.get::<OtherAddress>().and_then(|found| found.as_other_address().ok());
    let mapped =
        xored.map(|found| *found.socket_address()).or_else(|| plain.map(|found| *found.socket_address()))?;
    let other = other.map(|found| *found.socket_address()).filter(is_sendable);
    is_sendable(&mapped).then_some(Binding { mapped, other })
}

/// Whether a packet from elsewhere can have this as its source or destination.
fn is_sendable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let special = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    !special && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && address.port() != 0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 5769 §2.2.
    const RESPONSE_V4: [u8; 80] = [
        0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa,
        0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f,
        0x72, 0x20, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43, 0x00, 0x08, 0x00,
        0x14, 0x2b, 0x91, 0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53,
        0xf0, 0x6b, 0xe7, 0xd7, 0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96,
    ];

    /// RFC 5769 §2.3.
    const RESPONSE_V6: [u8; 92] = [
        0x01, 0x01, 0x00, 0x48, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa,
        0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f,
        0x72, 0x20, 0x00, 0x20, 0x00, 0x14, 0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1,
        0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9, 0x00, 0x08, 0x00, 0x14, 0xa3, 0x82, 0x95, 0x4e,
        0x4b, 0xe6, 0x7b, 0xf1, 0x17, 0x84, 0xc9, 0x7c, 0x82, 0x92, 0xc2, 0x75, 0xbf, 0xe3, 0xed, 0x41, 0x80,
        0x28, 0x00, 0x04, 0xc8, 0xfb, 0x0b, 0x4c,
    ];

    const VECTOR_ID: Id = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    /// Writes what a server answers.
    pub(in crate::stun) fn response(id: Id, mapped: SocketAddr, other: Option<SocketAddr>) -> Vec<u8> {
        let mut builder = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
            .with_transaction_id(TransactionId::from(id))
            .with_attribute(XorMappedAddress::from(mapped));
        if let Some(other) = other {
            builder = builder.with_attribute(OtherAddress::from(other));
        }
        encode(builder)
    }

    /// Writes a server's refusal.
    pub(in crate::stun) fn refusal(id: Id) -> Vec<u8> {
        encode(
            StunMessageBuilder::new(BINDING, MessageClass::ErrorResponse)
                .with_transaction_id(TransactionId::from(id)),
        )
    }

    /// Returns a request's id, and from where it wants to be answered.
    pub(in crate::stun) fn read_request(bytes: &[u8]) -> (Id, AnswerFrom) {
        let (message, _) = MessageDecoderBuilder::default().build().decode(bytes).unwrap();
        assert_eq!((message.method(), message.class()), (BINDING, MessageClass::Request));
        let change = message.get::<ChangeRequest>().map(|found| found.as_change_request().unwrap().flags());
        let answer_from = match change {
            None => AnswerFrom::SameAddress,
            Some(flags) if flags.contains(ChangeRequestFlags::ChangeIp) => AnswerFrom::OtherAddress,
            Some(_) => AnswerFrom::OtherPort,
        };
        (*message.transaction_id().as_bytes(), answer_from)
    }

    fn encode(builder: StunMessageBuilder) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        let length = MessageEncoderBuilder::default().build().encode(&mut bytes, &builder.build()).unwrap();
        bytes.truncate(length);
        bytes
    }

    fn mapped(bytes: &[u8]) -> Option<SocketAddr> {
        match parse(bytes) {
            Some(Message::Success(_, binding)) => binding.map(|binding| binding.mapped),
            _ => None,
        }
    }

    /// X-4, W-X8: the vectors of RFC 5769, of both IP versions.
    #[test]
    fn the_vectors_of_the_standard_are_read() {
        for (bytes, expected) in [
            (&RESPONSE_V4[..], "192.0.2.1:32853"),
            (&RESPONSE_V6[..], "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
        ] {
            assert!(is_stun(bytes));
            let binding = Binding { mapped: expected.parse().unwrap(), other: None };
            assert_eq!(parse(bytes), Some(Message::Success(VECTOR_ID, Some(binding))));
        }
    }

    /// W-X7: a request is a header, or a header and one attribute, with the flags where RFC 5780 has them.
    #[test]
    fn requests_are_written_as_the_standards_say() {
        let header = |length| [&[0, 1, 0, length][..], &COOKIE, &VECTOR_ID].concat();
        assert_eq!(request(VECTOR_ID, AnswerFrom::SameAddress), header(0));
        let change = |flags| [&header(8)[..], &[0, 3, 0, 4, 0, 0, 0, flags]].concat();
        assert_eq!(request(VECTOR_ID, AnswerFrom::OtherPort), change(2));
        assert_eq!(request(VECTOR_ID, AnswerFrom::OtherAddress), change(6));
        assert_eq!(parse(&header(0)), Some(Message::Request(VECTOR_ID)));
    }

    /// W-X8: servers of RFC 3489's time tell the address without the mask.
    #[test]
    fn a_mapped_address_without_the_mask_is_read_too() {
        let address: SocketAddr = "198.51.100.7:4000".parse().unwrap();
        let builder = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
            .with_transaction_id(TransactionId::from([1; 12]))
            .with_attribute(MappedAddress::from(address));
        assert_eq!(mapped(&encode(builder)), Some(address));
    }

    /// W-X8: what nobody can send to is no address.
    #[test]
    fn addresses_that_make_no_sense_are_no_answer() {
        for nonsense in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "127.0.0.1:5",
            "224.0.0.1:5",
            "255.255.255.255:5",
            "169.254.1.1:5",
            "192.0.2.1:0",
            "[::]:5",
            "[::1]:5",
            "[ff02::1]:5",
            "[fe80::1]:5",
            "[::ffff:192.0.2.1]:5",
        ] {
            let bytes = response([1; 12], nonsense.parse().unwrap(), None);
            assert_eq!(parse(&bytes), Some(Message::Success([1; 12], None)), "{nonsense}");
            let bytes = response([1; 12], "192.0.2.9:9".parse().unwrap(), Some(nonsense.parse().unwrap()));
            let Some(Message::Success(_, Some(binding))) = parse(&bytes) else { panic!("{nonsense}") };
            assert_eq!(binding.other, None, "{nonsense}");
        }
    }

    #[test]
    fn what_is_shorter_or_longer_than_it_says_is_not_stun() {
        for end in 0..RESPONSE_V4.len() {
            assert!(!is_stun(&RESPONSE_V4[..end]), "{end}");
            parse(&RESPONSE_V4[..end]);
        }
        assert!(!is_stun(&[&RESPONSE_V4[..], &[0; 4]].concat()));
        let mut other_cookie = RESPONSE_V4;
        other_cookie[5] ^= 1;
        assert!(!is_stun(&other_cookie));
    }

    proptest! {
        /// W-X8: hostile bytes never panic.
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            is_stun(&bytes);
            parse(&bytes);
        }

        #[test]
        fn broken_messages_never_panic(at in 0usize..92, value: u8, second in 0usize..92, other: u8, end in 20usize..=92) {
            let mut bytes = RESPONSE_V6;
            bytes[at] = value;
            bytes[second] = other;
            parse(&bytes[..end]);
        }
    }
}
