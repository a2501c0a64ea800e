//! The sans-I/O heart of wgmesh: identity, records, discovery, peer store, plan and reconcile.
//!
//! Nothing here knows a socket, a file, a clock or an async runtime. A shell feeds [`mesh::Mesh`] with events and
//! carries out its commands; the daemon does so with the real kernel, the simulation with a model of it.

pub mod address;
pub mod bucket;
pub mod cache;
pub mod config;
pub mod contact;
pub mod dandelion;
pub mod derive;
pub mod dht;
pub mod exchange;
pub mod explanation;
pub mod forwarding;
pub mod gossip;
pub mod health;
pub mod identity;
pub mod kernel;
pub mod key;
pub mod mesh;
pub mod message;
pub mod nat;
pub mod path;
pub mod plan;
pub mod pool;
pub mod reconcile;
pub mod record;
pub mod relay;
pub mod seal;
pub mod secret;
pub mod standing;
pub mod status;
pub mod store;
pub mod stun;
pub mod sync;
#[cfg(test)]
mod testing;
pub mod time;
pub mod timed;
mod wire;
