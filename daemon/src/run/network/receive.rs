//! What comes in, from a way that may not be there, as the mesh's events. Nothing comes by a way that is not.

use std::io;

use wgmesh_core::dht::DhtEvent;
use wgmesh_core::exchange::SessionEvent;
use wgmesh_core::mesh::{Event, Via};

use super::Way;
use crate::dht::Dht;
use crate::exchange::Exchange;
use crate::gossip::{self, Gossip};
use crate::lan::{Lan, Received};
use crate::wireguard_port::{self, WireguardPort};

pub(super) fn datagram(received: io::Result<Received>) -> Option<Event> {
    match received {
        Ok(Received { interface, from, bytes }) => {
            Some(Event::Datagram { via: Via::Link(interface), from, bytes })
        }
        // An error that an earlier send caused; the socket goes on.
        Err(error) => {
            tracing::debug!(%error, "cannot receive on the LAN");
            None
        }
    }
}

pub(super) fn disco(received: io::Result<wireguard_port::Received>) -> Option<Event> {
    match received {
        Ok(wireguard_port::Received { from, bytes }) => {
            Some(Event::Datagram { via: Via::WireGuard, from, bytes })
        }
        Err(error) => {
            tracing::debug!(%error, "cannot receive on WireGuard's port");
            None
        }
    }
}

pub(super) fn gossiped(received: io::Result<gossip::Received>) -> Option<Event> {
    match received {
        Ok(gossip::Received { from, bytes }) => Some(Event::Gossip { from, bytes }),
        // An error that an earlier send caused; the socket goes on.
        Err(error) => {
            tracing::debug!(%error, "cannot receive gossip");
            None
        }
    }
}

pub(super) async fn receive_gossip(gossip: &Option<Gossip>) -> io::Result<gossip::Received> {
    match gossip {
        Some(gossip) => gossip.receive().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn receive(lan: &Option<Way<Lan>>) -> io::Result<Received> {
    match lan {
        Some(Ok(lan)) => lan.receive().await,
        Some(Err(_)) | None => std::future::pending().await,
    }
}

pub(super) async fn receive_wireguard(
    port: &Option<Way<WireguardPort>>,
) -> io::Result<wireguard_port::Received> {
    match port {
        Some(Ok(port)) => port.receive().await,
        Some(Err(_)) | None => std::future::pending().await,
    }
}

pub(super) async fn next_session(exchange: &mut Option<Exchange>) -> SessionEvent {
    match exchange {
        Some(exchange) => exchange.next().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn next_of_dht(dht: &mut Option<Dht>) -> DhtEvent {
    match dht {
        Some(dht) => dht.next().await,
        None => std::future::pending().await,
    }
}
