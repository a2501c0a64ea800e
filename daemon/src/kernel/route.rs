//! Routes through the mesh link, all in the main table and all with our protocol number.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use nix::errno::Errno;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use wgmesh_core::kernel::{ROUTE_PROTOCOL, Route};

use super::error::Failure;
use super::socket::{Request, Socket};

/// Reads our routes on one link.
pub(super) fn read(socket: &mut Socket, link: u32, ipv6: bool) -> Result<BTreeSet<Route>, Failure> {
    let mut routes = read_family(socket, link, AddressFamily::Inet)?;
    if ipv6 {
        routes.append(&mut read_family(socket, link, AddressFamily::Inet6)?);
    }
    Ok(routes)
}

fn read_family(socket: &mut Socket, link: u32, family: AddressFamily) -> Result<BTreeSet<Route>, Failure> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    request.attributes.push(RouteAttribute::Oif(link));
    let found = match socket.dump(&RouteNetlinkMessage::GetRoute(request)) {
        // The main table is made with the first address or route of a network namespace.
        Err(failure) if failure.is(Errno::ENOENT) => Vec::new(),
        outcome => outcome?,
    };
    Ok(found
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) => interpret(message, link),
            _ => None,
        })
        .collect())
}

/// Builds the request that adds a route where none with its destination and metric is.
pub(super) fn addition(link: u32, route: &Route) -> Request<RouteNetlinkMessage> {
    let message = RouteNetlinkMessage::NewRoute(new_route(link, route));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Builds the request that puts a route in the place of the one with its destination and metric, whoever's it is.
pub(super) fn replacement(link: u32, route: &Route) -> Request<RouteNetlinkMessage> {
    let message = RouteNetlinkMessage::NewRoute(new_route(link, route));
    Request { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// Builds the request that removes a route of whatever scope and type, if its protocol is ours.
pub(super) fn removal(link: u32, route: &Route) -> Request<RouteNetlinkMessage> {
    let mut message = message(link, route);
    message.header.scope = RouteScope::NoWhere;
    Request { message: RouteNetlinkMessage::DelRoute(message), flags: 0 }
}

/// An on-link route has link scope: with the wider scope the kernel would not look up a gateway through it.
fn new_route(link: u32, route: &Route) -> RouteMessage {
    let mut message = message(link, route);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (route.destination, route.gateway) {
        (IpNet::V4(_), None) => RouteScope::Link,
        (IpNet::V4(_) | IpNet::V6(_), _) => RouteScope::Universe,
    };
    message
}

fn message(link: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match route.destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.attributes = vec![
        RouteAttribute::Destination(route.destination.network().into()),
        RouteAttribute::Oif(link),
        RouteAttribute::Priority(route.metric),
    ];
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

/// Reads a route back, if it is ours: older kernels do not filter by all that we ask for.
fn interpret(message: &RouteMessage, link: u32) -> Option<Route> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let ours = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
        && message.header.table == RouteHeader::RT_TABLE_MAIN
        && message.attributes.contains(&RouteAttribute::Oif(link));
    let mut destination = unspecified;
    let mut gateway = None;
    let mut metric = 0;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Metrics(metrics) => mtu = metrics.iter().find_map(as_mtu),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    ours.then_some(Route { destination, gateway, metric, mtu })
}

fn as_mtu(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, gateway: Option<&str>) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|text| text.parse().unwrap()),
            metric: 77,
            mtu: None,
        }
    }

    #[test]
    fn a_route_is_read_back_as_it_was_written() {
        for route in [
            route("10.1.0.0/16", None),
            route("10.2.0.0/16", Some("10.1.0.9")),
            route("fd00::/64", None),
            route("0.0.0.0/0", None),
            Route { mtu: Some(1220), ..route("10.3.0.1/32", None) },
            Route { mtu: Some(1200), ..route("fd00::1/128", None) },
        ] {
            assert_eq!(interpret(&new_route(5, &route), 5), Some(route));
        }
    }

    /// W-D44: routes of others are not ours, even on our link.
    #[test]
    fn a_route_with_another_protocol_link_or_table_is_not_ours() {
        let message = new_route(5, &route("10.1.0.0/16", None));
        assert_eq!(interpret(&message, 6), None);

        let mut foreign = message.clone();
        foreign.header.protocol = RouteProtocol::Static;
        assert_eq!(interpret(&foreign, 5), None);

        let mut elsewhere = message;
        elsewhere.header.table = 100;
        assert_eq!(interpret(&elsewhere, 5), None);
    }
}
