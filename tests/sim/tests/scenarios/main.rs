//! What a mesh must live through, on virtual time.

mod changes;
mod dht;
mod failover;
mod faults;
mod fleet;
mod gossip;
mod hostile;
mod join;
mod meeting;
mod nats;
mod path_attacks;
mod random;
mod relays;
mod restart;
mod scale;
mod sessions;
