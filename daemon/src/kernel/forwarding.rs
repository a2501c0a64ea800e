//! Has the host pass on what the mesh wants passed on: the switch of each link, and our own table in nf_tables.
//!
//! What is to be done is for [`wgmesh_core::forwarding::decide`] to say; here it is read and carried out. A link's switch is set by
//! rtnetlink (`IFLA_INET_CONF`), for which CAP_NET_ADMIN is enough, also where a sandbox hides `/proc/sys`.

mod legacy;
mod netconf;
mod nft;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use wgmesh_core::forwarding::{Change, Forwarding, Host, decide};
use wgmesh_core::kernel::InterfaceName;

use super::address;
use super::error::{Failure, KernelError};
use super::socket::Socket;

/// `IFLA_INET_CONF` and `IPV4_DEVCONF_FORWARDING` (`linux/if_link.h`, `linux/ip.h`).
const IPV4_CONFIGURATION: u16 = 1;
const IPV4_FORWARDING: u16 = 1;

/// What has come of passing packets on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// The links whose IPv4 forwarding is on because of us.
    pub switched: BTreeSet<String>,
    /// What keeps packets from being passed on, each a sentence for a human.
    pub obstacles: Vec<String>,
    /// What the kernel would not do; it is tried again.
    pub failure: Option<KernelError>,
}

/// A transaction is one datagram, and a rule takes almost a thousand bytes of it: room for all
/// that a plan may hold ([`wgmesh_core::plan::MAX_BETWEEN`]), twice over.
const ROOM: usize = 8 << 20;

/// The part of the netlink thread that does this.
#[derive(Default)]
pub(super) struct Forwarder {
    netfilter: Option<Socket>,
    switched: BTreeSet<String>,
}

/// The host's links.
#[derive(Default)]
struct Links {
    indices: BTreeMap<u32, String>,
    forwarding: BTreeMap<String, bool>,
}

impl Forwarder {
    /// Makes the host pass on what is wanted, and looks for what is in the way.
    pub(super) fn follow(
        &mut self,
        route: &mut Socket,
        interface: &InterfaceName,
        want: &Forwarding,
    ) -> Passage {
        let failure = self.carry_out(route, interface, want).err();
        let failure = failure.map(|failure| KernelError::at("pass packets on for the mesh", failure));
        let obstacles = self.obstacles(route, interface, want);
        if want.is_nothing() {
            self.netfilter = None;
        }
        Passage { switched: self.switched.clone(), obstacles, failure }
    }

    fn carry_out(
        &mut self,
        route: &mut Socket,
        interface: &InterfaceName,
        want: &Forwarding,
    ) -> Result<(), Failure> {
        let table = nft::table_name(interface);
        let rules = match self.netfilter().and_then(|netfilter| nft::read(netfilter, &table)) {
            // Without nf_tables there is nothing that could have been left behind.
            Err(_) if want.is_nothing() && self.switched.is_empty() => return Ok(()),
            outcome => outcome?,
        };
        if rules.is_none() && want.is_nothing() && self.switched.is_empty() {
            return Ok(());
        }
        let links = read_links(route)?;
        let host = Host {
            everywhere: netconf::forwards_everywhere(route, false)?,
            ways: ways(route, interface, want, &links)?,
            links: links.forwarding.clone(),
            rules,
            switched: self.switched.clone(),
        };
        let change = decide(want, interface, &host);
        self.apply(route, interface, &links, change)
    }

    fn apply(
        &mut self,
        route: &mut Socket,
        interface: &InterfaceName,
        links: &Links,
        change: Change,
    ) -> Result<(), Failure> {
        let index =
            |link: &String| links.indices.iter().find(|(_, name)| *name == link).map(|(&index, _)| index);
        for index in change.off.iter().filter_map(index) {
            set_forwarding(route, index, false)?;
        }
        if let Some(rules) = &change.rules {
            let rules_now = rules.iter().map(ToString::to_string).collect::<Vec<_>>();
            tracing::info!(table = nft::table_name(interface), rules = ?rules_now, "changing what is passed on");
            nft::replace(self.netfilter()?, interface, rules)?;
        }
        if change.switched != self.switched {
            tracing::info!(links = ?change.switched, "IPv4 forwarding is on because of the mesh");
        }
        self.switched = change.switched;
        for index in change.on.iter().filter_map(index) {
            set_forwarding(route, index, true)?;
        }
        Ok(())
    }

    /// Says what keeps packets from being passed on, as far as it can be seen. What cannot be read is no obstacle.
    fn obstacles(&mut self, route: &mut Socket, interface: &InterfaceName, want: &Forwarding) -> Vec<String> {
        let mut obstacles = Vec::new();
        if want.has_family(true) && !netconf::forwards_everywhere(route, true).unwrap_or(true) {
            obstacles.push(
                "IPv6 forwarding is off on this host, so no IPv6 packets are passed on to or from the mesh: set \
                 net.ipv6.conf.all.forwarding=1 (and accept_ra=2 on a link that gets its routes by router advertisements)"
                    .to_owned(),
            );
        }
        for ipv6 in [false, true].into_iter().filter(|&ipv6| want.has_family(ipv6)) {
            let family = if ipv6 { "ip6tables" } else { "iptables" };
            let chains = dropping_chains(self.netfilter().ok(), ipv6, Hook::Forward);
            obstacles.extend(chains.into_iter().map(|chain| {
                format!(
                    "the policy of {chain} drops forwarded packets unless a rule there accepts them; let in {interface}, \
                     as by `{family} -I FORWARD -i {interface} -j ACCEPT` and the same with -o"
                )
            }));
        }
        obstacles.sort();
        obstacles.dedup();
        obstacles
    }

    fn netfilter(&mut self) -> Result<&mut Socket, Failure> {
        match &mut self.netfilter {
            Some(socket) => Ok(socket),
            none => {
                let socket = Socket::open(NETLINK_NETFILTER)?;
                socket.make_room(ROOM);
                Ok(none.insert(socket))
            }
        }
    }
}

/// Where packets pass through the chains of a firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    /// On their way to a program of this host.
    Input,
    /// On their way through it.
    Forward,
}

/// Names the chains whose policy drops packets that come to this host, as far as they can be read.
pub fn chains_that_drop_input() -> Vec<String> {
    let mut netfilter = Socket::open(NETLINK_NETFILTER).ok();
    let families = [false, true].into_iter();
    let mut chains: Vec<_> =
        families.flat_map(|ipv6| dropping_chains(netfilter.as_mut(), ipv6, Hook::Input)).collect();
    chains.sort();
    chains.dedup();
    chains
}

fn dropping_chains(netfilter: Option<&mut Socket>, ipv6: bool, hook: Hook) -> Vec<String> {
    let chains = netfilter.and_then(|netfilter| nft::dropping_chains(netfilter, ipv6, hook).ok());
    let chains = chains.unwrap_or_default().into_iter().map(|chain| format!("nftables chain {chain}"));
    let family = if ipv6 { "ip6tables" } else { "iptables" };
    let name = match hook {
        Hook::Input => "INPUT",
        Hook::Forward => "FORWARD",
    };
    let legacy = legacy::drops(ipv6, hook).unwrap_or(false);
    chains.chain(legacy.then(|| format!("{family}-legacy chain filter {name}"))).collect()
}

fn read_links(socket: &mut Socket) -> Result<Links, Failure> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut links = Links::default();
    for message in socket.dump(&RouteNetlinkMessage::GetLink(request))? {
        let RouteNetlinkMessage::NewLink(message) = message else { continue };
        if message.header.flags.contains(LinkFlags::Loopback) {
            continue;
        }
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        if let (Some(name), Some(forwarding)) = (name, forwarding(&message)) {
            links.indices.insert(message.header.index, name.clone());
            links.forwarding.insert(name, forwarding);
        }
    }
    Ok(links)
}

/// Returns whether a link passes on IPv4 packets; `None` where it has no IPv4 at all.
fn forwarding(message: &LinkMessage) -> Option<bool> {
    let specs = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(specs) => Some(specs),
        _ => None,
    });
    let inet = specs.flatten().filter_map(|spec| match spec {
        AfSpecUnspec::Inet(inet) => Some(inet),
        _ => None,
    });
    inet.flatten().find_map(|part| match part {
        AfSpecInet::DevConf(configuration) => Some(configuration.forwarding != 0),
        _ => None,
    })
}

fn set_forwarding(socket: &mut Socket, index: u32, on: bool) -> Result<(), Failure> {
    let value = DefaultNla::new(IPV4_FORWARDING, u32::from(on).to_ne_bytes().to_vec());
    let mut bytes = vec![0; value.buffer_len()];
    value.emit(&mut bytes);
    let part = AfSpecInet::Other(DefaultNla::new(IPV4_CONFIGURATION | NLA_F_NESTED, bytes));
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![part])]));
    match socket.execute_one(RouteNetlinkMessage::SetLink(message), 0) {
        Err(failure) if !on && failure.is(Errno::ENODEV) => Ok(()),
        outcome => outcome,
    }
}

/// Finds the links through which each network is reached: the one that the routes lead to, and those whose own network is
/// part of it.
fn ways(
    socket: &mut Socket,
    interface: &InterfaceName,
    want: &Forwarding,
    links: &Links,
) -> Result<BTreeMap<IpNet, BTreeSet<String>>, Failure> {
    if want.networks.is_empty() {
        return Ok(BTreeMap::new());
    }
    let addresses = address::read(socket, None)?;
    let mut ways = BTreeMap::new();
    for &network in &want.networks {
        let inside =
            addresses.iter().filter(|(_, own)| network.contains(&own.trunc())).map(|&(index, _)| index);
        let mut through: BTreeSet<u32> = inside.collect();
        through.extend(way_to(socket, network)?);
        let names = through.iter().filter_map(|index| links.indices.get(index));
        let names = names.filter(|name| *name != interface.as_str()).cloned().collect();
        ways.insert(network, names);
    }
    Ok(ways)
}

/// Asks the kernel by which link it would send to a network.
fn way_to(socket: &mut Socket, network: IpNet) -> Result<Option<u32>, Failure> {
    let Some(host) = network.hosts().next() else { return Ok(None) };
    let mut request = RouteMessage::default();
    request.header.address_family = match host {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    request.header.destination_prefix_length = IpNet::from(host).prefix_len();
    request.attributes.push(RouteAttribute::Destination(host.into()));
    let answer = match socket.get(RouteNetlinkMessage::GetRoute(request)) {
        // One of this host's own addresses says nothing about the others.
        Ok(RouteNetlinkMessage::NewRoute(route)) if route.header.kind != RouteType::Local => route,
        Ok(_) | Err(Failure::Refused(_)) => return Ok(None),
        Err(failure) => return Err(failure),
    };
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    }))
}
