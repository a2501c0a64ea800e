//! Writes a device's settings and its peers, through wireguard-uapi, which splits what does not fit a message.

use std::net::IpAddr;

use ipnet::IpNet;
use neli::err::{NlError, WrappedError};
use nix::errno::Errno;
use wgmesh_core::kernel::{PeerWrite, Write};
use wgmesh_core::key::{PublicKey, SecretKey};
use wireguard_uapi::WgSocket;
use wireguard_uapi::err::{ConnectError, SetDeviceError};
use wireguard_uapi::set::{AllowedIp, Device, Peer, WgPeerF};

use crate::kernel::error::{Failure, Refused};
use crate::kernel::socket::malformed;

/// WireGuard's generic netlink socket, for writing.
pub(in crate::kernel) struct Writer {
    socket: WgSocket,
}

impl Writer {
    pub(in crate::kernel) fn open() -> Result<Self, Failure> {
        match WgSocket::connect() {
            Ok(socket) => Ok(Self { socket }),
            Err(ConnectError::NlError(error)) => Err(failure(error)),
            Err(ConnectError::ResolveFamilyError(error)) => Err(failure(error)),
        }
    }

    /// Carries out a write that concerns the device or its peers; there is nothing to do for any other.
    pub(in crate::kernel) fn write(&mut self, link: u32, write: &Write) -> Result<(), Failure> {
        match write {
            Write::SetDevice { private_key, listen_port, fwmark } => {
                let mut device = Device::from_ifindex(link);
                device.private_key = private_key.as_ref().map(SecretKey::as_bytes);
                device.listen_port = *listen_port;
                device.fwmark = *fwmark;
                self.send(device)
            }
            Write::RemovePeers(keys) => {
                let removal =
                    |key| Peer::from_public_key(PublicKey::as_bytes(key)).flags(vec![WgPeerF::RemoveMe]);
                self.send(Device::from_ifindex(link).peers(keys.iter().map(removal).collect()))
            }
            Write::SetPeers(writes) => {
                let prefixes: Vec<Vec<_>> = writes.iter().map(prefixes).collect();
                let peers = writes.iter().zip(&prefixes).map(|(write, prefixes)| peer(write, prefixes));
                self.send(Device::from_ifindex(link).peers(peers.collect()))
            }
            _ => Ok(()),
        }
    }

    fn send(&mut self, device: Device<'_>) -> Result<(), Failure> {
        match self.socket.set_device(device) {
            Ok(()) => Ok(()),
            Err(SetDeviceError::NlError(error)) => Err(failure(error)),
            Err(SetDeviceError::NlSerError(error)) => Err(malformed(error)),
        }
    }
}

fn prefixes(write: &PeerWrite) -> Vec<(IpAddr, u8)> {
    write.allowed_ips.iter().flatten().map(|prefix: &IpNet| (prefix.network(), prefix.prefix_len())).collect()
}

fn peer<'a>(write: &'a PeerWrite, prefixes: &'a [(IpAddr, u8)]) -> Peer<'a> {
    let mut peer = Peer::from_public_key(write.key.as_bytes());
    if !write.create {
        peer.flags.push(WgPeerF::UpdateOnly);
    }
    if write.allowed_ips.is_some() {
        peer.flags.push(WgPeerF::ReplaceAllowedIps);
    }
    peer.preshared_key = write.preshared_key.as_ref().map(|key| key.as_bytes());
    peer.endpoint = write.endpoint.as_ref();
    peer.persistent_keepalive_interval = write.keepalive;
    peer.allowed_ips =
        prefixes.iter().map(|(ipaddr, length)| AllowedIp { ipaddr, cidr_mask: Some(*length) }).collect();
    peer
}

fn failure<T: std::fmt::Debug, P: std::fmt::Debug>(error: NlError<T, P>) -> Failure {
    match error {
        NlError::Nlmsgerr(answer) => {
            Failure::Refused(Refused { errno: Errno::from_raw(answer.error.saturating_neg()), message: None })
        }
        NlError::Wrapped(WrappedError::IOError(error)) => error.into(),
        other => malformed(other),
    }
}
