//! Links: read, created, marked, changed and deleted.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkUnspec, LinkWireguard};
use wgmesh_core::kernel::{InterfaceName, Link, OwnerMark};

use super::error::Failure;
use super::socket::{Request, Socket, malformed};

/// Reads the link of this name.
pub(super) fn read(socket: &mut Socket, name: &InterfaceName) -> Result<Link, Failure> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.as_str().to_owned()));
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match socket.get(RouteNetlinkMessage::GetLink(request)) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(interpret(&message)),
        Ok(_) => Err(malformed("no link message")),
        Err(failure) if failure.is(Errno::ENODEV) => Ok(Link::Missing),
        Err(failure) => Err(failure),
    }
}

/// Creates the link. One that is there already is an error: only a new reading can tell whose it is.
pub(super) fn create(socket: &mut Socket, name: &InterfaceName, mtu: u32) -> Result<(), Failure> {
    let message = LinkWireguard::new(name.as_str()).mtu(mtu).build();
    socket.execute_one(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Builds the request that puts our mark on the link.
pub(super) fn mark(index: u32, owner: &OwnerMark) -> Request<RouteNetlinkMessage> {
    change(LinkUnspec::new_with_index(index).alias(owner.as_str()).build())
}

/// Builds the request that sets the link's MTU in bytes.
pub(super) fn set_mtu(index: u32, mtu: u32) -> Request<RouteNetlinkMessage> {
    change(LinkUnspec::new_with_index(index).mtu(mtu).build())
}

/// Builds the request that brings the link up.
pub(super) fn set_up(index: u32) -> Request<RouteNetlinkMessage> {
    change(LinkUnspec::new_with_index(index).up().build())
}

/// Builds the request that deletes the link.
pub(super) fn delete(index: u32) -> Request<RouteNetlinkMessage> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

fn change(message: LinkMessage) -> Request<RouteNetlinkMessage> {
    Request { message: RouteNetlinkMessage::NewLink(message), flags: 0 }
}

fn interpret(message: &LinkMessage) -> Link {
    if kind(message) != Some(&InfoKind::Wireguard) {
        return Link::OtherKind { kind: kind(message).map_or_else(|| "unknown".into(), ToString::to_string) };
    }
    let mut alias = None;
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfAlias(text) => alias = Some(text.clone()),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    let up = message.header.flags.contains(LinkFlags::Up);
    Link::WireGuard { index: message.header.index, alias, up, mtu, ipv6: has_ipv6(message) }
}

/// Returns what kind of virtual link it is; physical ones have none.
pub(super) fn kind(message: &LinkMessage) -> Option<&InfoKind> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

/// Returns whether the link has an IPv6 side (`inet6_dev`) that is not switched off.
fn has_ipv6(message: &LinkMessage) -> bool {
    let specs = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(specs) => Some(specs),
        _ => None,
    });
    let inet6 = specs.flatten().filter_map(|spec| match spec {
        AfSpecUnspec::Inet6(inet6) => Some(inet6),
        _ => None,
    });
    inet6.flatten().any(|part| matches!(part, AfSpecInet6::DevConf(conf) if conf.disable_ipv6 == 0))
}
