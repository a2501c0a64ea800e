//! A virtual network on virtual time: hundreds of hosts in one process, each with the real [`wgmesh_core::mesh::Mesh`]
//! around a model of its kernel.
//!
//! A [`world::World`] is made from a seed, and the same seed gives the same run to the last byte ([`trace`]). Time
//! only passes by events. Modelled are L2 segments with their faults and the internet
//! between them ([`network`]), NATs ([`nat`]), STUN servers ([`stun`]), a DHT ([`dht`]), Linux's WireGuard with its
//! handshakes and timers ([`kernel`]), the applier ([`applier`]), files, clocks, sockets that overflow ([`host`]), and
//! people: operators who delete things, outsiders who record and replay.
//!
//! Not modelled: cryptography of WireGuard itself, packets of users.

pub mod applier;
pub mod churn;
pub mod dht;
pub mod host;
pub mod kernel;
pub mod log;
pub mod nat;
pub mod network;
pub mod outsider;
pub mod random;
pub mod scale;
pub mod schedule;
pub mod stun;
pub mod trace;
pub mod watch;
pub mod world;
