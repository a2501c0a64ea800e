//! One L2 link and who is plugged into it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Conditions, HostId};

/// Which addresses the hosts of a segment have. Every host has the same last bits everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// Private IPv4 addresses (RFC 1918). Every sixteenth segment has the same.
    Private,
    /// IPv6 link-local addresses and no others.
    LinkLocal,
    /// IPv4 addresses of a carrier that translates again (RFC 6598).
    Shared,
    /// Public IPv4 addresses.
    Public,
}

/// Where a host is plugged in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plug {
    pub(super) host: HostId,
    pub(super) interface: u32,
    pub(super) up: bool,
    /// Only plugs of the same island hear each other; a gateway is on island zero.
    pub(super) island: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Segment {
    number: u8,
    addressing: Addressing,
    pub(super) has_global_v6: bool,
    pub(super) conditions: Conditions,
    /// The port to which nothing passes between its hosts.
    pub(super) filtered_port: Option<u16>,
    pub(super) plugs: Vec<Plug>,
}

impl Segment {
    pub(super) const fn new(number: u8, conditions: Conditions, addressing: Addressing) -> Self {
        Self { number, addressing, has_global_v6: false, conditions, filtered_port: None, plugs: Vec::new() }
    }

    pub(super) fn plug(&self, host: HostId) -> Option<Plug> {
        self.plugs.iter().find(|plug| plug.host == host).copied()
    }

    /// Returns the IPv4 network, if it has one.
    pub(super) fn network_v4(&self) -> Option<Ipv4Net> {
        let base = match self.addressing {
            Addressing::Private => Ipv4Addr::new(172, 16 + self.number % 16, 0, 0),
            Addressing::Shared => Ipv4Addr::new(100, 64 + self.number % 64, 0, 0),
            Addressing::Public => Ipv4Addr::new(45, self.number, 0, 0),
            Addressing::LinkLocal => return None,
        };
        Some(Ipv4Net::new(base, 16).expect("16 is a prefix length"))
    }

    /// Returns the global IPv6 network, while it has one.
    pub(super) fn network_v6(&self) -> Option<Ipv6Net> {
        let base = Ipv6Addr::new(0x2a00, self.number.into(), 0, 0, 0, 0, 0, 0);
        self.has_global_v6.then(|| Ipv6Net::new(base, 64).expect("64 is a prefix length"))
    }

    /// Returns the addresses of a host on it.
    pub(super) fn addresses(&self, host: HostId) -> Vec<IpNet> {
        let number = u16::try_from(host.0 + 1).expect("a world has fewer than 65,535 hosts");
        let v4 = self.network_v4().map(|net| {
            let address = Ipv4Addr::from_bits(net.addr().to_bits() | u32::from(number));
            IpNet::new(address.into(), net.prefix_len())
        });
        let bits = (u128::from(self.number) << 16) | u128::from(number);
        let in_v6 = |base: Ipv6Addr| IpNet::new(Ipv6Addr::from_bits(base.to_bits() | bits).into(), 64);
        let global = self.network_v6().map(|net| in_v6(net.addr()));
        let has_link_local = self.has_global_v6 || self.addressing == Addressing::LinkLocal;
        let link_local = has_link_local.then(|| in_v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)));
        let all = [v4, global, link_local].into_iter().flatten();
        all.map(|net| net.expect("16 and 64 are prefix lengths")).collect()
    }

    pub(super) fn has_address(&self, host: HostId, address: IpAddr) -> bool {
        self.addresses(host).iter().any(|net| net.addr() == address)
    }

    /// Whether a host on it finds the address on the link itself.
    pub(super) fn is_on_link(&self, host: HostId, to: SocketAddr) -> bool {
        let Some(plug) = self.plug(host) else { return false };
        let is_scope = match to {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => v6.scope_id() == plug.interface,
            SocketAddr::V4(_) | SocketAddr::V6(_) => true,
        };
        is_scope && self.addresses(host).iter().any(|net| net.contains(&to.ip()))
    }

    /// Returns the address that a host sends from to this one: of the same family, and link-local or group to
    /// link-local.
    pub(super) fn source(&self, host: HostId, to: IpAddr) -> Option<IpAddr> {
        let addresses = self.addresses(host);
        let is_local = |address: IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
        };
        let fits = |address: &IpAddr| address.is_ipv4() == to.is_ipv4() && is_local(*address) == is_local(to);
        addresses.iter().map(IpNet::addr).find(fits)
    }
}
