//! The links that lead out of the host.

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkLayerType, LinkMessage,
};
use wgmesh_core::kernel::Underlay;

use super::error::Failure;
use super::socket::Socket;
use super::{address, link};

/// Lists the links that are up and running and can carry packets of the mesh.
pub(super) fn read(socket: &mut Socket) -> Result<Vec<Underlay>, Failure> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = socket.dump(&RouteNetlinkMessage::GetLink(request))?;
    let mut addresses: BTreeMap<u32, BTreeSet<_>> = BTreeMap::new();
    for (index, address) in address::read(socket, None)? {
        addresses.entry(index).or_default().insert(address);
    }
    Ok(links
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(message),
            _ => None,
        })
        .filter(|message| is_underlay(message))
        .filter_map(|message| {
            let index = message.header.index;
            interpret(message, addresses.remove(&index).unwrap_or_default())
        })
        .collect())
}

/// Returns whether a link may be part of the underlay, in whatever state it is.
pub(super) fn is_underlay(message: &LinkMessage) -> bool {
    let is_loopback = message.header.flags.contains(LinkFlags::Loopback);
    !is_loopback && link::kind(message) != Some(&InfoKind::Wireguard)
}

/// Leaves out what cannot send, and ports of a bridge or bond: their controller speaks for them.
fn interpret(message: &LinkMessage, addresses: BTreeSet<ipnet::IpNet>) -> Option<Underlay> {
    let flags = message.header.flags;
    let mut name = None;
    let mut is_port = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Controller(_) => is_port = addresses.is_empty(),
            _ => {}
        }
    }
    let can_send = flags.contains(LinkFlags::Up | LinkFlags::Running) && !is_port;
    can_send.then_some(Underlay {
        index: message.header.index,
        name: name?,
        multicast: flags.contains(LinkFlags::Multicast),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        addresses,
    })
}
