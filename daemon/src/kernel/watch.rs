//! Listens to the kernel's own notices of change and turns them into two wake-ups: something of our mesh's link
//! changed, or something of the underlay did.
//!
//! A wake-up says no more than that: whoever wakes reads the state. So nothing queues up, however much happens,
//! and an overflow of the socket is just both wake-ups at once. Our own writes wake us too: a link's notice does
//! not tell who caused it.
//!
//! Only a default route is in no list that whoever wakes reads, so what is known of those stays here ([`DefaultRoutes`]). They
//! are told of again and again, as addresses are, by whoever renews what a router advertises.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netlink_packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use tokio::sync::Notify;
use tracing::warn;
use wgmesh_core::kernel::{InterfaceName, ROUTE_PROTOCOL};

use super::error::KernelError;
use super::underlay::is_underlay;
use super::worker::LinkIndex;

/// What is listened to.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Bytes read at once; a notice is smaller than a dump's message.
const READ: usize = 32 * 1024;

/// More default routes than any host has; one more, and all are forgotten.
const MAX_DEFAULT_ROUTES: usize = 256;

/// The pause before a socket that failed is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// The two wake-ups. Each holds at most one, so a slow listener misses nothing and nothing piles up.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Our link, its addresses or our routes may have changed.
    pub mesh: Arc<Notify>,
    /// Another link, its addresses or a default route may have changed.
    pub underlay: Arc<Notify>,
    /// Whether a default route is another than when this was last asked.
    way_out: Arc<AtomicBool>,
}

impl Changes {
    /// Whether the way to everywhere is another than when this was last asked, or may be.
    pub fn take_way_out(&self) -> bool {
        self.way_out.swap(false, Ordering::Relaxed)
    }
}

/// The listening task.
pub struct Watcher {
    socket: TokioSocket,
    interface: InterfaceName,
    index: LinkIndex,
    defaults: DefaultRoutes,
    changes: Changes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Touched {
    mesh: bool,
    underlay: bool,
    way_out: bool,
}

impl Touched {
    const ALL: Self = Self { mesh: true, underlay: true, way_out: true };
}

/// The default routes that were told of: of each version of IP, table and priority the newest, and where it leads.
///
/// With a link or an address Linux removes routes of IPv4 without a word (`skip_notify_on_dev_down` in ip-sysctl), and notices
/// may be lost. After either nothing is known.
#[derive(Debug, Default)]
struct DefaultRoutes(BTreeMap<(u8, u32, u32), Vec<RouteAttribute>>);

impl DefaultRoutes {
    fn forget(&mut self) {
        self.0.clear();
    }

    /// Takes note of one. Returns whether it leads elsewhere than the one before, or that is not known.
    fn follow(&mut self, route: &RouteMessage, is_there: bool) -> bool {
        let mut key = (u8::from(route.header.address_family), u32::from(route.header.table), 0);
        let mut leads = Vec::new();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(table) => key.1 = *table,
                RouteAttribute::Priority(priority) => key.2 = *priority,
                RouteAttribute::Oif(_)
                | RouteAttribute::Gateway(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::MultiPath(_)
                | RouteAttribute::PrefSource(_) => leads.push(attribute.clone()),
                _ => {}
            }
        }
        if !is_there {
            self.0.remove(&key);
            return true;
        }
        if self.0.len() >= MAX_DEFAULT_ROUTES && !self.0.contains_key(&key) {
            self.forget();
        }
        self.0.insert(key, leads.clone()) != Some(leads)
    }
}

impl Watcher {
    pub(super) fn open(interface: InterfaceName, index: LinkIndex) -> Result<Self, KernelError> {
        let socket = subscribe().map_err(|f| KernelError::at("listen to the kernel's changes", f.into()))?;
        Ok(Self { socket, interface, index, defaults: DefaultRoutes::default(), changes: Changes::default() })
    }

    /// Returns the wake-ups that [`Self::run`] gives.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Listens for ever. Cancel-safe: it holds nothing that a new watcher would miss after its first reading.
    pub async fn run(mut self) {
        let mut buffer = vec![0; READ];
        loop {
            match self.receive(&mut buffer).await {
                Ok(length) => {
                    let ours = self.index.current();
                    let touched = touched(&buffer[..length], &self.interface, ours, &mut self.defaults);
                    self.wake(touched);
                }
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => self.wake(Touched::ALL),
                Err(error) => {
                    warn!(%error, "the kernel's notices of change stopped; listening anew");
                    self.reopen().await;
                    self.wake(Touched::ALL);
                }
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut free = &mut *buffer;
        let size = free.len();
        poll_fn(|context| self.socket.poll_recv(context, &mut free)).await?;
        Ok(size - free.len())
    }

    async fn reopen(&mut self) {
        loop {
            tokio::time::sleep(REOPEN).await;
            if let Ok(socket) = subscribe() {
                self.socket = socket;
                return;
            }
        }
    }

    fn wake(&mut self, touched: Touched) {
        if touched == Touched::ALL {
            self.defaults.forget();
        }
        if touched.mesh {
            self.changes.mesh.notify_one();
        }
        if touched.way_out {
            self.changes.way_out.store(true, Ordering::Relaxed);
        }
        if touched.underlay || touched.way_out {
            self.changes.underlay.notify_one();
        }
    }
}

fn subscribe() -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = GROUPS.iter().fold(0, |bits, group| bits | 1 << (*group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Says what the notices of one datagram are about. What cannot be read may be about anything.
fn touched(
    mut datagram: &[u8],
    interface: &InterfaceName,
    ours: Option<u32>,
    defaults: &mut DefaultRoutes,
) -> Touched {
    let mut touched = Touched::default();
    while !datagram.is_empty() {
        let Ok(notice) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            return Touched::ALL;
        };
        let about = about(&notice, interface, ours, defaults);
        touched.mesh |= about.mesh;
        touched.underlay |= about.underlay;
        touched.way_out |= about.way_out;
        let length = (notice.header.length as usize).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[length..];
    }
    touched
}

fn about(
    notice: &NetlinkMessage<RouteNetlinkMessage>,
    interface: &InterfaceName,
    ours: Option<u32>,
    defaults: &mut DefaultRoutes,
) -> Touched {
    let NetlinkPayload::InnerMessage(message) = &notice.payload else {
        return Touched::ALL;
    };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            let is_ours = Some(link.header.index) == ours || has_name(link, interface);
            let runs = matches!(message, RouteNetlinkMessage::NewLink(_))
                && link.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
            if !is_ours && !runs {
                defaults.forget();
            }
            Touched { mesh: is_ours, underlay: !is_ours && is_underlay(link), way_out: false }
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            let is_ours = Some(address.header.index) == ours;
            if !is_ours && matches!(message, RouteNetlinkMessage::DelAddress(_)) {
                defaults.forget();
            }
            Touched { mesh: is_ours, underlay: !is_ours, way_out: false }
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            let replaces = notice.header.flags & NLM_F_REPLACE != 0;
            let is_ours = is_our_route(route, ours);
            let is_default = route.header.destination_prefix_length == 0 && !is_ours;
            let is_new = matches!(message, RouteNetlinkMessage::NewRoute(_));
            let is_there = is_new && route.header.kind == RouteType::Unicast;
            let way_out = is_default && defaults.follow(route, is_there);
            Touched { mesh: replaces || is_ours, underlay: false, way_out }
        }
        _ => Touched::default(),
    }
}

fn has_name(link: &LinkMessage, interface: &InterfaceName) -> bool {
    let named = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::IfName(name) => name == interface.as_str(),
        _ => false,
    };
    link.attributes.iter().any(named)
}

/// A route that replaced one of ours carries its new owner's protocol, which is why replacements count on their own.
fn is_our_route(route: &RouteMessage, ours: Option<u32>) -> bool {
    let through_us = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index) == ours,
        _ => false,
    };
    route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) || route.attributes.iter().any(through_us)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::address::AddressMessage;
    use rtnetlink::packet_route::route::RouteAddress;

    use super::*;

    const TABLE: u8 = 254;

    fn default_route(gateway: u8, priority: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        (route.header.address_family, route.header.table) = (AddressFamily::Inet, TABLE);
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, gateway].into())),
            RouteAttribute::Oif(2),
            RouteAttribute::Priority(priority),
        ];
        route
    }

    /// Found in a review: each router advertisement, and each lease that was renewed, had every path sought anew.
    #[test]
    fn a_default_route_is_news_when_it_leads_elsewhere() {
        let mut defaults = DefaultRoutes::default();
        assert!(defaults.follow(&default_route(1, 100), true));
        assert!(!defaults.follow(&default_route(1, 100), true), "renewed");
        assert!(defaults.follow(&default_route(1, 200), true), "a second one");
        assert!(defaults.follow(&default_route(2, 100), true), "replaced");
        assert!(defaults.follow(&default_route(1, 100), true), "and back");
        assert!(!defaults.follow(&default_route(1, 200), true));
        assert!(defaults.follow(&default_route(1, 200), false), "removed");
        assert!(defaults.follow(&default_route(1, 200), true));
        assert_eq!(defaults.0.len(), 2);
        let mut unreachable = default_route(1, 100);
        unreachable.attributes.truncate(0);
        unreachable.attributes.push(RouteAttribute::Priority(100));
        assert!(defaults.follow(&unreachable, false), "replaced by one of another kind");
        assert!(defaults.follow(&default_route(1, 100), true));
    }

    /// Found in a review: what went with its link without a word was none of the news when it came back.
    #[test]
    fn after_a_link_or_an_address_has_gone_any_default_route_is_news() {
        let interface = "wgmesh0".parse().unwrap();
        let mut defaults = DefaultRoutes::default();
        let mut tell = |message| about(&NetlinkMessage::from(message), &interface, Some(7), &mut defaults);
        let route = || RouteNetlinkMessage::NewRoute(default_route(1, 100));
        let link = |flags| {
            let mut link = LinkMessage::default();
            (link.header.index, link.header.flags) = (2, flags);
            link
        };
        let running = LinkFlags::Up | LinkFlags::Running;
        assert!(tell(route()).way_out && !tell(route()).way_out);
        let stays = [
            RouteNetlinkMessage::NewLink(link(running)),
            RouteNetlinkMessage::NewAddress(AddressMessage::default()),
        ];
        for notice in stays {
            assert!(tell(notice).underlay && !tell(route()).way_out);
        }
        let goes = [
            RouteNetlinkMessage::NewLink(link(LinkFlags::Up)),
            RouteNetlinkMessage::DelLink(link(running)),
            RouteNetlinkMessage::DelAddress(AddressMessage::default()),
        ];
        for notice in goes {
            assert!(tell(notice).underlay && tell(route()).way_out);
        }
    }
}
