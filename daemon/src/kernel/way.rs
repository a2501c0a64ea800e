//! Which way a packet would leave this host: the kernel's own answer, asked with a socket of one's own.
//!
//! It holds for the moment: whoever keeps a [`Way`] asks again when the underlay changes, and now and then.

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{Failure, KernelError};
use super::socket::{Socket, malformed};

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface's index.
    pub interface: u32,
    /// The longest IP packet that goes that way in one piece, as far as the kernel knows.
    pub mtu: u32,
}

/// Asks the kernel for ways.
pub struct Router {
    socket: Socket,
}

impl Router {
    /// Opens the socket.
    ///
    /// # Errors
    /// There is no netlink, or no descriptor is left.
    pub fn open() -> Result<Self, KernelError> {
        let socket = Socket::open(NETLINK_ROUTE).map_err(|f| KernelError::at("open a netlink socket", f))?;
        Ok(Self { socket })
    }

    /// Finds the way of a packet that this host would send from one of its addresses.
    ///
    /// # Errors
    /// There is no route, it leads to this very host, or the address is not ours.
    pub fn find(&mut self, from: IpAddr, to: IpAddr) -> Result<Way, KernelError> {
        self.ask(from, to).map_err(|failure| KernelError::at(format!("find the way to {to}"), failure))
    }

    fn ask(&mut self, from: IpAddr, to: IpAddr) -> Result<Way, Failure> {
        let mut request = RouteMessage::default();
        request.header.address_family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let length = if to.is_ipv4() { 32 } else { 128 };
        request.header.destination_prefix_length = length;
        request.header.source_prefix_length = length;
        request.attributes =
            vec![RouteAttribute::Destination(to.into()), RouteAttribute::Source(from.into())];
        let answer = self.socket.get(RouteNetlinkMessage::GetRoute(request))?;
        let RouteNetlinkMessage::NewRoute(route) = answer else { return Err(malformed("no route message")) };
        let (interface, limit) = interpret(&route).ok_or_else(|| malformed("no route out of this host"))?;
        let mtu = self.mtu(interface)?;
        Ok(Way { interface, mtu: limit.map_or(mtu, |limit| limit.min(mtu)) })
    }

    /// Reads a link's MTU.
    fn mtu(&mut self, index: u32) -> Result<u32, Failure> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answer = self.socket.get(RouteNetlinkMessage::GetLink(request))?;
        let RouteNetlinkMessage::NewLink(link) = answer else { return Err(malformed("no link message")) };
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        mtu.ok_or_else(|| malformed("a link without an MTU"))
    }
}

/// Reads the interface of a route that leads out of the host, and the limit that was set or learned for packets there.
fn interpret(route: &RouteMessage) -> Option<(u32, Option<u32>)> {
    let mut interface = None;
    let mut limit = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                limit = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu).filter(|mtu| *mtu != 0),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (route.header.kind == RouteType::Unicast).then_some((interface?, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = kind;
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_way_out_has_an_interface_and_perhaps_a_limit() {
        let limited = vec![RouteAttribute::Oif(3), RouteAttribute::Metrics(vec![RouteMetric::Mtu(1280)])];
        assert_eq!(interpret(&route(RouteType::Unicast, limited.clone())), Some((3, Some(1280))));
        assert_eq!(interpret(&route(RouteType::Unicast, vec![RouteAttribute::Oif(3)])), Some((3, None)));
        assert_eq!(interpret(&route(RouteType::Local, limited)), None);
        assert_eq!(interpret(&route(RouteType::Unicast, Vec::new())), None);
    }
}
