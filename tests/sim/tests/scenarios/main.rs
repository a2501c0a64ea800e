//! What a mesh must live through, on virtual time.

mod changes;
mod dandelion;
mod dht;
mod failover;
mod faults;
mod fleet;
mod gossip;
mod health;
mod hostile;
mod join;
mod meeting;
mod nats;
mod path_attacks;
mod random;
mod relays;
mod restart;
mod routed;
mod routes;
mod scale;
mod sessions;
mod sleep;
