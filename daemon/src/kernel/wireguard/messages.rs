//! Builds the messages that change a device, each small enough for the kernel.
//!
//! A netlink attribute's length is 16 bits, so all peers of one message share 64 KiB: more of them take more
//! messages, and a peer with many inner addresses takes several parts.

use ipnet::IpNet;
use netlink_packet_core::Emitable;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};
use wgmesh_core::kernel::{PeerWrite, Write};
use wgmesh_core::key::PublicKey;

/// The most bytes of peers in one message: well below 64 KiB, and small enough that one message never holds the
/// device's lock for long.
const MESSAGE: usize = 30 * 1024;

/// The most inner addresses in one part of a peer. Each takes at most 40 bytes, so a part is less than half a message.
const PART: usize = 256;

/// Returns the attributes of each message that a write takes; none for a write that is not about the device.
pub(super) fn messages(write: &Write) -> Vec<Vec<WireguardAttribute>> {
    match write {
        Write::SetDevice { private_key, listen_port, fwmark } => {
            let key = private_key.as_ref().map(|key| WireguardAttribute::PrivateKey(*key.as_bytes()));
            let port = listen_port.map(WireguardAttribute::ListenPort);
            let mark = fwmark.map(WireguardAttribute::Fwmark);
            vec![[port, mark, key].into_iter().flatten().collect()]
        }
        Write::RemovePeers(keys) => pack(keys.iter().map(removal)),
        Write::SetPeers(peers) => pack(peers.iter().flat_map(parts)),
        Write::CreateLink { .. }
        | Write::MarkLink(_)
        | Write::SetMtu(_)
        | Write::AddAddress(_)
        | Write::RemoveAddress(_)
        | Write::SetUp
        | Write::AddRoute(_)
        | Write::RemoveRoute(_)
        | Write::DeleteLink => Vec::new(),
    }
}

/// Fills messages with peers, in order.
fn pack(peers: impl Iterator<Item = WireguardPeer>) -> Vec<Vec<WireguardAttribute>> {
    let mut messages = Vec::new();
    let mut message = Vec::new();
    let mut size = 0;
    for peer in peers {
        let length = peer.buffer_len();
        if size + length > MESSAGE && !message.is_empty() {
            messages.push(vec![WireguardAttribute::Peers(std::mem::take(&mut message))]);
            size = 0;
        }
        size += length;
        message.push(peer);
    }
    if !message.is_empty() {
        messages.push(vec![WireguardAttribute::Peers(message)]);
    }
    messages
}

fn removal(key: &PublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ])
}

/// Splits a peer. Only the first part may create the peer. None replaces the inner addresses: in between a peer would have
/// none, and packets would be dropped.
fn parts(write: &PeerWrite) -> Vec<WireguardPeer> {
    let prefixes: Vec<_> = write.allowed_ips.iter().flatten().map(prefix).collect();
    let mut rest = prefixes.chunks(PART);
    let mut parts = vec![first_part(write, rest.next().unwrap_or_default())];
    parts.extend(rest.map(|prefixes| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*write.key.as_bytes()),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            WireguardPeerAttribute::AllowedIps(prefixes.to_vec()),
        ])
    }));
    parts
}

fn first_part(write: &PeerWrite, prefixes: &[WireguardAllowedIp]) -> WireguardPeer {
    let mut flags = WireguardPeerFlags::empty();
    flags.set(WireguardPeerFlags::UpdateOnly, !write.create);
    let mut attributes =
        vec![WireguardPeerAttribute::PublicKey(*write.key.as_bytes()), WireguardPeerAttribute::Flags(flags)];
    let preshared = write.preshared_key.as_ref();
    attributes.extend(preshared.map(|key| WireguardPeerAttribute::PresharedKey(*key.as_bytes())));
    attributes.extend(write.endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.extend(write.keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    if !prefixes.is_empty() {
        attributes.push(WireguardPeerAttribute::AllowedIps(prefixes.to_vec()));
    }
    WireguardPeer(attributes)
}

fn prefix(prefix: &IpNet) -> WireguardAllowedIp {
    let family = match prefix {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(prefix.network()),
        WireguardAllowedIpAttr::Cidr(prefix.prefix_len()),
    ])
}

#[cfg(test)]
mod tests {
    use wgmesh_core::key::{PresharedKey, SecretKey};

    use super::*;

    fn peer(n: u32, prefixes: u32) -> PeerWrite {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let prefix = |m: u32| IpNet::new((0x0a00_0000 + m).to_be_bytes().into(), 32).unwrap();
        PeerWrite {
            key: PublicKey::from_bytes(key),
            create: true,
            preshared_key: Some(PresharedKey::from_bytes([5; 32])),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            keepalive: Some(25),
            allowed_ips: Some((0..prefixes).map(prefix).collect()),
        }
    }

    fn peers_of(message: &[WireguardAttribute]) -> &[WireguardPeer] {
        match message {
            [WireguardAttribute::Peers(peers)] => peers,
            other => panic!("peers expected: {} attributes", other.len()),
        }
    }

    fn flags(peer: &WireguardPeer) -> WireguardPeerFlags {
        let flags = peer.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        flags.unwrap()
    }

    fn prefixes(peer: &WireguardPeer) -> usize {
        let lists = peer.iter().filter_map(|attribute| match attribute {
            WireguardPeerAttribute::AllowedIps(prefixes) => Some(prefixes.len()),
            _ => None,
        });
        lists.sum()
    }

    /// W-D10: ten thousand peers go into messages that the kernel takes, each peer once and in order.
    #[test]
    fn ten_thousand_peers_are_split_into_messages_that_fit() {
        let messages = messages(&Write::SetPeers((0..10_000).map(|n| peer(n, 2)).collect()));

        assert!(messages.iter().all(|message| message.as_slice().buffer_len() <= MESSAGE + 4));
        let keys: Vec<_> =
            messages.iter().flat_map(|message| peers_of(message)).map(|p| p[0].clone()).collect();
        assert_eq!(keys.len(), 10_000);
        assert_eq!(keys[9_999], WireguardPeerAttribute::PublicKey(*peer(9_999, 0).key.as_bytes()));
    }

    #[test]
    fn a_peer_with_many_prefixes_is_made_once_and_then_added_to() {
        let messages = messages(&Write::SetPeers(vec![peer(1, 3000)]));

        let parts: Vec<_> = messages.iter().flat_map(|message| peers_of(message)).collect();
        assert!(messages.iter().all(|message| message.as_slice().buffer_len() <= MESSAGE + 4));
        assert_eq!(parts.iter().map(|part| prefixes(part)).sum::<usize>(), 3000);
        assert_eq!(flags(parts[0]), WireguardPeerFlags::empty());
        assert!(parts[1..].iter().all(|part| flags(part) == WireguardPeerFlags::UpdateOnly));
    }

    #[test]
    fn a_change_of_one_field_says_nothing_of_the_others() {
        let change = PeerWrite {
            create: false,
            preshared_key: None,
            endpoint: None,
            keepalive: Some(0),
            allowed_ips: None,
            ..peer(1, 0)
        };

        let messages = messages(&Write::SetPeers(vec![change]));

        let part = &peers_of(&messages[0])[0];
        assert_eq!(flags(part), WireguardPeerFlags::UpdateOnly);
        assert_eq!(part[2..], [WireguardPeerAttribute::PersistentKeepalive(0)]);
    }

    /// DESIGN 4: never `WGDEVICE_F_REPLACE_PEERS`.
    #[test]
    fn no_write_ever_replaces_all_peers() {
        let private_key = Some(SecretKey::from_random([1; 32]));
        let device = Write::SetDevice { private_key, listen_port: Some(1), fwmark: Some(0) };
        let removal = Write::RemovePeers(vec![peer(1, 0).key]);

        for write in [device, removal, Write::SetPeers(vec![peer(1, 1)])] {
            let mut attributes = messages(&write).into_iter().flatten();
            assert!(!attributes.any(|attribute| matches!(attribute, WireguardAttribute::Flags(_))));
        }
    }
}
