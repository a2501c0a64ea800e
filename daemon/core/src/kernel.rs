//! The kernel's state as the core speaks of it: what we want ([`Desired`]), what is there ([`Observed`]), and
//! the steps from one to the other ([`Write`]).
//!
//! Nothing here touches a kernel. The applier in the daemon and the fake kernel of the simulation both observe
//! into [`Observed`] and carry out the same [`Write`]s, in the order given.
//!
//! Owned state is: a WireGuard link whose alias (`IFLA_IFALIAS`) is our [`OwnerMark`], everything configured on
//! that device, its addresses, and the routes on it that carry [`ROUTE_PROTOCOL`]. Anything else is foreign.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::forwarding::Forwarding;
use crate::key::{PresharedKey, PublicKey, SecretKey};
use crate::time::{Monotonic, WallClock};

/// `rtm_protocol` of every route we add. 0x57 ('W') is assigned to no routing daemon in Linux's
/// `include/uapi/linux/rtnetlink.h` nor in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 0x57;

/// A session this old should have been renewed by a keepalive (`REKEY_AFTER_TIME`, 120 s, and some seconds to do it).
pub const SESSION_OVERDUE: Duration = Duration::from_secs(135);

/// What a peer's traffic may grow by between two reports and be nothing new where eBPF watches it, in bytes: hardly more than
/// WireGuard's own messages and gossip in half a minute, so that a packet each five seconds is told of within fifteen.
pub const LITTLE_TRAFFIC: u64 = 400;

/// A Linux interface name: 1 to 15 of `A-Z a-z 0-9 _ - .`, a letter first (`IFNAMSIZ`, `dev_valid_name`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// A name that Linux or systemd would not take as an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no interface name: it takes 1 to 15 of A-Z a-z 0-9 _ - . and starts with a letter")]
pub struct InvalidInterfaceName(String);

impl InterfaceName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(name: &str) -> Result<Self, InvalidInterfaceName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
        if starts_well && name.len() <= 15 && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidInterfaceName(name.to_owned()))
        }
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InvalidInterfaceName;

    fn try_from(name: String) -> Result<Self, InvalidInterfaceName> {
        name.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the alias of every link of ours starts with, whichever mesh it serves.
pub const OWNER_PREFIX: &str = "wgmesh:";

/// The alias that says whose a link is: [`OWNER_PREFIX`] and eight hex digits of the network id, so that a link left
/// by another mesh is told from one left by this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerMark(String);

impl OwnerMark {
    /// Makes the mark of the mesh with this public tag.
    pub fn new(tag: [u8; 4]) -> Self {
        Self(format!("{OWNER_PREFIX}{:08x}", u32::from_be_bytes(tag)))
    }

    /// Returns the alias text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Everything the kernel should hold for one mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The link's name.
    pub interface: InterfaceName,
    /// The alias that marks it ours.
    pub owner: OwnerMark,
    /// The device's private key.
    pub private_key: SecretKey,
    /// The UDP port that WireGuard listens on.
    pub listen_port: u16,
    /// The mark on WireGuard's own packets, for policy routing.
    pub fwmark: Option<u32>,
    /// The link's MTU in bytes.
    pub mtu: u32,
    /// Addresses with their prefix lengths. Added without the kernel's prefix route (`IFA_F_NOPREFIXROUTE`),
    /// and v6 ones without duplicate address detection: our own routes and derivation stand in for both.
    pub addresses: BTreeSet<IpNet>,
    /// The device's peers.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
    /// Routes through the device, all with [`ROUTE_PROTOCOL`].
    pub routes: BTreeSet<Route>,
    /// What the host is to pass on for the mesh.
    pub forwarding: Forwarding,
}

/// One peer as the kernel should hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPeer {
    /// The pair's symmetric key; `None` leaves what is there.
    pub preshared_key: Option<PresharedKey>,
    /// What to do about the endpoint.
    pub endpoint: Endpoint,
    /// WireGuard's persistent keepalive in whole seconds; zero means off. Going from off to on makes the kernel
    /// send at once and so starts a handshake: never turn it on before the peer has an endpoint, because a failed
    /// attempt silences WireGuard for five seconds (`REKEY_TIMEOUT`).
    pub keepalive: u16,
    /// The inner addresses that belong to the peer.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// How firmly the core holds to an endpoint. The kernel roams on its own, and that is news, not drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// No opinion: whatever the kernel has, also nothing.
    Keep,
    /// This one if the kernel has none.
    IfUnset(SocketAddr),
    /// This one, now.
    Set(SocketAddr),
}

/// A route through the mesh device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// What it leads to.
    pub destination: IpNet,
    /// The mesh address of the relay that it goes through, for routed relays; on-link otherwise.
    pub gateway: Option<IpAddr>,
    /// `RTA_PRIORITY`; lower wins.
    pub metric: u32,
    /// `RTAX_MTU` in bytes; the link's own without it.
    pub mtu: Option<u32>,
}

/// Everything the kernel does hold, as one complete reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The link of our name.
    pub link: Link,
    /// The device's own settings; `None` unless the link is a WireGuard link.
    pub device: Option<Device>,
    /// The device's peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
    /// The link's addresses, without v6 link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// Routes on the link that carry [`ROUTE_PROTOCOL`].
    pub routes: BTreeSet<Route>,
}

impl Observed {
    /// Whether nobody need be told of this reading: nothing is new since the earlier one. Where a session is missing, that is
    /// told by the second reading that shows it.
    pub fn may_be_kept_back(&self, earlier: &Self, traffic: u64, is_first: bool, now: WallClock) -> bool {
        self.is_quiet_since(earlier, traffic) && (is_first || self.has_all_sessions(now))
    }

    /// Whether nothing has changed since the earlier reading but traffic, by no more than so many bytes each way for each peer,
    /// and sessions that were renewed in time.
    fn is_quiet_since(&self, earlier: &Self, traffic: u64) -> bool {
        let is_quiet = |peer: &ObservedPeer, before: &ObservedPeer| {
            let ObservedPeer {
                preshared_key,
                endpoint,
                keepalive,
                allowed_ips,
                last_handshake,
                rx_bytes,
                tx_bytes,
            } = peer;
            let is_renewed = |(at, before): (WallClock, WallClock)| at.since(before) <= SESSION_OVERDUE;
            *preshared_key == before.preshared_key
                && *endpoint == before.endpoint
                && *keepalive == before.keepalive
                && *allowed_ips == before.allowed_ips
                && (*last_handshake == before.last_handshake
                    || last_handshake.zip(before.last_handshake).is_some_and(is_renewed))
                && rx_bytes.abs_diff(before.rx_bytes) <= traffic
                && tx_bytes.abs_diff(before.tx_bytes) <= traffic
        };
        (&self.link, &self.device, &self.addresses, &self.routes)
            == (&earlier.link, &earlier.device, &earlier.addresses, &earlier.routes)
            && self.peers.keys().eq(earlier.peers.keys())
            && self.peers.values().zip(earlier.peers.values()).all(|(peer, before)| is_quiet(peer, before))
    }

    /// Whether every peer has a session that is not overdue.
    fn has_all_sessions(&self, now: WallClock) -> bool {
        let is_current = |at: WallClock| now.since(at) <= SESSION_OVERDUE;
        self.peers.values().all(|peer| peer.last_handshake.is_some_and(is_current))
    }
}

/// A link of our name, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// No link has the name.
    #[default]
    Missing,
    /// A link has the name and is not WireGuard's.
    OtherKind {
        /// `IFLA_INFO_KIND`, or "unknown".
        kind: String,
    },
    /// A WireGuard link has the name.
    WireGuard {
        /// The kernel's interface index.
        index: u32,
        /// `IFLA_IFALIAS`.
        alias: Option<String>,
        /// Whether `IFF_UP` is set.
        up: bool,
        /// The MTU in bytes.
        mtu: u32,
        /// Whether it can hold IPv6 addresses: IPv6 is neither disabled on the host nor on the link.
        ipv6: bool,
    },
}

/// A WireGuard device's own settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The public key of the private key it holds; `None` where it holds none.
    pub public_key: Option<PublicKey>,
    /// The UDP port; zero while WireGuard has none.
    pub listen_port: u16,
    /// The mark on its packets; zero means none.
    pub fwmark: u32,
}

/// One peer as the kernel holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPeer {
    /// The pair's symmetric key; `None` where it is all zero.
    pub preshared_key: Option<PresharedKey>,
    /// Where the kernel would send.
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds; zero means off.
    pub keepalive: u16,
    /// The inner addresses that belong to the peer.
    pub allowed_ips: BTreeSet<IpNet>,
    /// When the last handshake was completed; `None` if never.
    pub last_handshake: Option<WallClock>,
    /// Bytes received from the peer, WireGuard's own included.
    pub rx_bytes: u64,
    /// Bytes sent to the peer, WireGuard's own included.
    pub tx_bytes: u64,
}

/// One step that changes the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Creates the WireGuard link, down, and marks it.
    CreateLink {
        /// The alias to put on it.
        owner: OwnerMark,
        /// The MTU in bytes.
        mtu: u32,
    },
    /// Marks the link that is there.
    MarkLink(OwnerMark),
    /// Sets the MTU in bytes.
    SetMtu(u32),
    /// Sets the device's own keys, port and mark.
    SetDevice {
        /// The private key, if it must change.
        private_key: Option<SecretKey>,
        /// The port, if it must change.
        listen_port: Option<u16>,
        /// The mark, if it must change; zero clears it.
        fwmark: Option<u32>,
    },
    /// Takes peers off the device.
    RemovePeers(Vec<PublicKey>),
    /// Adds or changes peers. Fields that are `None` stay as they are.
    SetPeers(Vec<PeerWrite>),
    /// Adds an address.
    AddAddress(IpNet),
    /// Takes an address away.
    RemoveAddress(IpNet),
    /// Brings the link up.
    SetUp,
    /// Adds a route, or replaces the one with the same destination and metric if it is ours.
    AddRoute(Route),
    /// Takes a route away.
    RemoveRoute(Route),
    /// Deletes the link and with it all that hangs on it.
    DeleteLink,
}

/// The change of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerWrite {
    /// Which peer.
    pub key: PublicKey,
    /// Whether the peer is new; a change of an existing one is sent with `WGPEER_F_UPDATE_ONLY`, so that it can
    /// never bring back a peer that somebody just removed.
    pub create: bool,
    /// The pair's symmetric key.
    pub preshared_key: Option<PresharedKey>,
    /// Where to send.
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds; zero turns it off.
    pub keepalive: Option<u16>,
    /// The inner addresses that the peer is to have besides those that it has; whoever has one of them loses it.
    pub allowed_ips: Option<BTreeSet<IpNet>>,
}

/// A link that carries packets to the world outside the mesh: up, running, and neither loopback nor WireGuard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The kernel's interface index.
    pub index: u32,
    /// The link's name. Not an [`InterfaceName`]: that is what we take for our own, Linux allows more.
    pub name: String,
    /// Whether it can send to a multicast group (`IFF_MULTICAST`).
    pub multicast: bool,
    /// Whether its packets start with an Ethernet header.
    pub ethernet: bool,
    /// Its addresses with their prefix lengths, v6 link-local ones too.
    pub addresses: BTreeSet<IpNet>,
}

/// What eBPF counted for one peer since its programs were first attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTraffic {
    /// Inner bytes received from the peer.
    pub rx_bytes: u64,
    /// Inner packets received from the peer.
    pub rx_packets: u64,
    /// Inner bytes sent to the peer.
    pub tx_bytes: u64,
    /// Inner packets sent to the peer.
    pub tx_packets: u64,
    /// How long before the reading the last packet from the peer was seen; `None` if none ever was.
    pub rx_age: Option<Duration>,
    /// How long before the reading the last packet to the peer was seen; `None` if none ever was.
    pub tx_age: Option<Duration>,
}

/// A WireGuard handshake message that crossed the underlay, as eBPF saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeSeen {
    /// The other end's outer address.
    pub endpoint: SocketAddr,
    /// Which of the two messages it was.
    pub message: HandshakeMessage,
    /// Which way it went.
    pub direction: Direction,
    /// When.
    pub at: Monotonic,
}

/// WireGuard's handshake messages (whitepaper §5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeMessage {
    /// Type 1.
    Initiation,
    /// Type 2.
    Response,
}

/// Which way a packet went, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It came in.
    Received,
    /// It went out.
    Sent,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32])
    }

    fn second(second: u64) -> WallClock {
        WallClock::from_millis(second * 1000)
    }

    /// Two peers with sessions since the seconds 100 and 200.
    fn reading() -> Observed {
        let peer =
            |at| ObservedPeer { last_handshake: Some(second(at)), rx_bytes: 5000, ..ObservedPeer::default() };
        Observed { peers: [(key(1), peer(100)), (key(2), peer(200))].into(), ..Observed::default() }
    }

    fn with(change: impl FnOnce(&mut ObservedPeer)) -> Observed {
        let mut reading = reading();
        change(reading.peers.get_mut(&key(1)).unwrap());
        reading
    }

    #[test]
    fn little_traffic_and_a_session_renewed_in_time_are_nothing_new() {
        let quiet = [
            with(|peer| peer.rx_bytes += 500),
            with(|peer| peer.tx_bytes += 500),
            with(|peer| peer.last_handshake = Some(second(221))),
        ];
        let news = [
            with(|peer| peer.rx_bytes += 501),
            with(|peer| peer.tx_bytes += 501),
            // As another device of the same name would show.
            with(|peer| peer.rx_bytes = 0),
            with(|peer| peer.last_handshake = Some(second(240))),
            with(|peer| peer.last_handshake = None),
            with(|peer| peer.endpoint = Some("192.0.2.1:1".parse().unwrap())),
            with(|peer| peer.keepalive += 1),
            Observed { peers: reading().peers.into_iter().take(1).collect(), ..Observed::default() },
            Observed { link: Link::OtherKind { kind: "bridge".to_owned() }, ..reading() },
            Observed { addresses: ["10.0.0.1/8".parse().unwrap()].into(), ..reading() },
        ];
        assert!(quiet.iter().all(|quiet| quiet.is_quiet_since(&reading(), 500)));
        assert!(quiet[..2].iter().all(|quiet| !quiet.is_quiet_since(&reading(), 0)));
        for news in news {
            assert!(!news.is_quiet_since(&reading(), 500), "{news:?}");
        }
        let first = with(|peer| peer.last_handshake = None);
        assert!(!reading().is_quiet_since(&first, 500), "it is the first session");
    }

    #[test]
    fn a_session_that_was_not_renewed_in_time_is_missed() {
        assert!(reading().has_all_sessions(second(235)));
        assert!(!reading().has_all_sessions(second(236)));
        assert!(!with(|peer| peer.last_handshake = None).has_all_sessions(second(201)));
        let keeps_back = |is_first| reading().may_be_kept_back(&reading(), 0, is_first, second(236));
        assert_eq!([true, false].map(keeps_back), [true, false]);
    }
}
