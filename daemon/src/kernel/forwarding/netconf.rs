//! Whether the host forwards packets of a family on all its links, which rtnetlink tells of in a message of its own
//! (`linux/netconf.h`).

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable as _, NetlinkDeserializable, NetlinkHeader, NetlinkPayload,
    NetlinkSerializable, Nla as _, NlasIterator, Parseable as _,
};
use nix::libc;

use super::super::error::Failure;
use super::super::socket::{Socket, malformed};

/// `RTM_GETNETCONF`.
const GET: u16 = 82;

/// `NETCONFA_IFINDEX`, and the value that stands for all links.
const INDEX: u16 = 1;
const ALL_LINKS: i32 = -1;

/// `NETCONFA_FORWARDING`.
const FORWARDING: u16 = 2;

/// Bytes before the attributes: the family, aligned.
const HEADER: usize = 4;

/// A request or an answer.
#[derive(Clone, Debug)]
struct Netconf {
    family: u8,
    attributes: Vec<DefaultNla>,
}

/// Reads whether packets of a family are forwarded on all links.
pub(super) fn forwards_everywhere(socket: &mut Socket, ipv6: bool) -> Result<bool, Failure> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let request = Netconf {
        family: u8::try_from(family).expect("address families are small"),
        attributes: vec![DefaultNla::new(INDEX, ALL_LINKS.to_ne_bytes().to_vec())],
    };
    let answer = socket.get(request)?;
    let value = answer.attributes.iter().find(|attribute| attribute.kind() == FORWARDING);
    let mut bytes = [0; 4];
    let value = value.filter(|value| value.value_len() == bytes.len());
    value.ok_or_else(|| malformed("no forwarding in it"))?.emit_value(&mut bytes);
    Ok(i32::from_ne_bytes(bytes) > 0)
}

impl NetlinkSerializable for Netconf {
    fn message_type(&self) -> u16 {
        GET
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..HEADER].copy_from_slice(&[self.family, 0, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[HEADER..]);
    }
}

impl NetlinkDeserializable for Netconf {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let rest =
            payload.get(HEADER..).ok_or_else(|| DecodeError::buffer_too_small(payload.len(), HEADER))?;
        let attributes = NlasIterator::new(rest)
            .map(|attribute| DefaultNla::parse(&attribute?))
            .collect::<Result<_, _>>()?;
        Ok(Self { family: payload[0], attributes })
    }
}

impl From<Netconf> for NetlinkPayload<Netconf> {
    fn from(message: Netconf) -> Self {
        Self::InnerMessage(message)
    }
}
