//! Addresses of the mesh link.
//!
//! They are added without the kernel's prefix route, because our own routes carry our protocol number, and v6
//! ones without duplicate address detection, because an address derived from a key that is in use elsewhere is
//! settled by the mesh, and a second of waiting would be lost on every start.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::Failure;
use super::socket::{Request, Socket};

/// Lists the addresses of one link, or those of all (`None`) that can be used, with the link that each is on. When one can be that
/// was tentative (RFC 4862 section 5.4), Linux gives notice once more.
pub(super) fn read(socket: &mut Socket, link: Option<u32>) -> Result<Vec<(u32, IpNet)>, Failure> {
    let mut request = AddressMessage::default();
    request.header.index = link.unwrap_or(0);
    let found = socket.dump(&RouteNetlinkMessage::GetAddress(request))?;
    Ok(found
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        })
        .filter(|message| link.is_some() || is_usable(message))
        .filter_map(interpret)
        .filter(|(index, _)| link.is_none_or(|link| *index == link))
        .collect())
}

/// Builds the request that adds an address.
pub(super) fn addition(link: u32, address: IpNet) -> Request<RouteNetlinkMessage> {
    let message = RouteNetlinkMessage::NewAddress(message(link, address));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Builds the request that takes an address away.
pub(super) fn removal(link: u32, address: IpNet) -> Request<RouteNetlinkMessage> {
    Request { message: RouteNetlinkMessage::DelAddress(message(link, address)), flags: 0 }
}

fn message(link: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = link;
    message.header.prefix_len = address.prefix_len();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    let flags = match address {
        IpNet::V4(_) => AddressFlags::Noprefixroute,
        IpNet::V6(_) => AddressFlags::Noprefixroute | AddressFlags::Nodad,
    };
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Flags(flags),
    ];
    message
}

/// Whether packets may be sent from it: no other host is still being asked whether it has the address, nor has one said so.
fn is_usable(message: &AddressMessage) -> bool {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    flags.is_none_or(|flags| {
        let is_sure = !flags.contains(AddressFlags::Tentative) || flags.contains(AddressFlags::Optimistic);
        is_sure && !flags.contains(AddressFlags::Dadfailed)
    })
}

/// Takes `IFA_LOCAL` where there is one: on a point-to-point link `IFA_ADDRESS` is the other end's.
fn interpret(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let ip: IpAddr = local.or(address)?;
    Some((message.header.index, IpNet::new(ip, message.header.prefix_len).ok()?))
}

/// Returns whether it is an IPv6 link-local address, which the kernel makes by itself.
pub(super) fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}
