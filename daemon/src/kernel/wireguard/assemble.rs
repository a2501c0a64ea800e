//! Puts a device with all its peers together from the messages of a dump.
//!
//! The kernel spreads a device over as many messages as it takes, and a peer with many inner addresses over several
//! of them: the later parts carry only the peer's key and further addresses.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardMessage, WireguardPeer,
    WireguardPeerAttribute, WireguardTimeSpec,
};
use wgmesh_core::kernel::{Device, ObservedPeer};
use wgmesh_core::key::{PresharedKey, PublicKey};
use wgmesh_core::time::WallClock;

/// What a device holds.
pub(super) type Reading = (Device, BTreeMap<PublicKey, ObservedPeer>);

/// A peer's part that does not say whose it is, or an address that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer's part has no key, or an inner address no length")]
pub(super) struct Incomplete;

/// Puts a device together from the messages that the kernel spread it over.
pub(super) fn assemble(parts: impl IntoIterator<Item = WireguardMessage>) -> Result<Reading, Incomplete> {
    let mut device = Device::default();
    let mut peers = BTreeMap::new();
    for attribute in parts.into_iter().flat_map(|part| part.attributes) {
        match attribute {
            WireguardAttribute::PublicKey(key) => device.public_key = Some(PublicKey::from_bytes(key)),
            WireguardAttribute::ListenPort(port) => device.listen_port = port,
            WireguardAttribute::Fwmark(mark) => device.fwmark = mark,
            WireguardAttribute::Peers(found) => {
                for part in found {
                    add_part(&mut peers, part)?;
                }
            }
            _ => {}
        }
    }
    Ok((device, peers))
}

fn add_part(peers: &mut BTreeMap<PublicKey, ObservedPeer>, part: WireguardPeer) -> Result<(), Incomplete> {
    let key = part.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey::from_bytes(*key)),
        _ => None,
    });
    let peer = peers.entry(key.ok_or(Incomplete)?).or_default();
    for attribute in part.0 {
        match attribute {
            WireguardPeerAttribute::PresharedKey(key) if key == [0; 32] => {}
            WireguardPeerAttribute::PresharedKey(key) => {
                peer.preshared_key = Some(PresharedKey::from_bytes(key));
            }
            WireguardPeerAttribute::Endpoint(address) => peer.endpoint = Some(address),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(time) => peer.last_handshake = wall_clock(time),
            WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = bytes,
            WireguardPeerAttribute::AllowedIps(prefixes) => {
                for prefix in &prefixes {
                    peer.allowed_ips.insert(prefix_of(prefix).ok_or(Incomplete)?);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn prefix_of(attributes: &WireguardAllowedIp) -> Option<IpNet> {
    let mut address = None;
    let mut length = None;
    for attribute in attributes.iter() {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(bits) => length = Some(*bits),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

/// Returns the time, or `None` for the zero with which the kernel says never.
fn wall_clock(time: WireguardTimeSpec) -> Option<WallClock> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let milliseconds = u64::try_from(time.nano_seconds).ok()? / 1_000_000;
    let millis = seconds.saturating_mul(1000).saturating_add(milliseconds);
    (millis != 0).then_some(WallClock::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use netlink_packet_wireguard::{WireguardAddressFamily, WireguardCmd};

    use super::*;

    fn prefix(n: u32) -> WireguardAllowedIp {
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
            WireguardAllowedIpAttr::IpAddr(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))),
            WireguardAllowedIpAttr::Cidr(32),
        ])
    }

    fn key(n: u32) -> [u8; 32] {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        key
    }

    fn whole(n: u32, prefixes: impl IntoIterator<Item = u32>) -> WireguardPeer {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key(n)),
            WireguardPeerAttribute::PresharedKey([5; 32]),
            WireguardPeerAttribute::Endpoint("[fe80::1%3]:51820".parse().unwrap()),
            WireguardPeerAttribute::PersistentKeepalive(25),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec {
                seconds: 1000,
                nano_seconds: 5_000_000,
            }),
            WireguardPeerAttribute::RxBytes(1),
            WireguardPeerAttribute::TxBytes(2),
            WireguardPeerAttribute::AllowedIps(prefixes.into_iter().map(prefix).collect()),
        ])
    }

    fn continued(n: u32, prefixes: impl IntoIterator<Item = u32>) -> WireguardPeer {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key(n)),
            WireguardPeerAttribute::AllowedIps(prefixes.into_iter().map(prefix).collect()),
        ])
    }

    fn message(peers: Vec<WireguardPeer>) -> WireguardMessage {
        WireguardMessage { cmd: WireguardCmd::SetDevice, attributes: vec![WireguardAttribute::Peers(peers)] }
    }

    #[test]
    fn a_peer_that_the_kernel_split_is_one_peer() {
        let parts = [
            message(vec![whole(1, 0..3), whole(2, 3..5)]),
            message(vec![continued(2, 5..9)]),
            message(vec![continued(2, 9..10), whole(3, 10..11)]),
        ];

        let (_, peers) = assemble(parts).unwrap();

        let second = &peers[&PublicKey::from_bytes(key(2))];
        assert_eq!(peers.len(), 3);
        assert_eq!(second.allowed_ips.len(), 7);
        assert_eq!((second.keepalive, second.rx_bytes, second.tx_bytes), (25, 1, 2));
        assert_eq!(second.last_handshake, Some(WallClock::from_millis(1_000_005)));
        assert!(second.endpoint.is_some() && second.preshared_key.is_some());
    }

    /// W-D10: ten thousand peers, each of them split, come back whole.
    #[test]
    fn ten_thousand_split_peers_come_back_whole() {
        let parts = (0..10_000)
            .flat_map(|n| [message(vec![whole(n, [2 * n])]), message(vec![continued(n, [2 * n + 1])])]);

        let (_, peers) = assemble(parts).unwrap();

        assert_eq!(peers.len(), 10_000);
        assert!(peers.values().all(|peer| peer.allowed_ips.len() == 2 && peer.keepalive == 25));
    }

    #[test]
    fn zero_means_no_preshared_key_and_no_handshake() {
        let blank = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key(1)),
            WireguardPeerAttribute::PresharedKey([0; 32]),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec::default()),
        ]);

        let (_, peers) = assemble([message(vec![blank])]).unwrap();

        assert_eq!(peers[&PublicKey::from_bytes(key(1))], ObservedPeer::default());
    }

    #[test]
    fn a_part_without_a_key_is_an_error() {
        let nameless = WireguardPeer(vec![WireguardPeerAttribute::RxBytes(1)]);
        assert_eq!(assemble([message(vec![nameless])]), Err(Incomplete));
    }

    #[test]
    fn the_devices_own_settings_are_read() {
        let attributes = vec![
            WireguardAttribute::PublicKey(key(7)),
            WireguardAttribute::ListenPort(51820),
            WireguardAttribute::Fwmark(9),
        ];

        let (device, _) = assemble([WireguardMessage { cmd: WireguardCmd::SetDevice, attributes }]).unwrap();

        let expected =
            Device { public_key: Some(PublicKey::from_bytes(key(7))), listen_port: 51820, fwmark: 9 };
        assert_eq!(device, expected);
    }
}
