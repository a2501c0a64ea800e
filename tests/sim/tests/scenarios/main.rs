//! What a mesh must live through, on virtual time.

mod faults;
mod fleet;
mod hostile;
mod join;
mod meeting;
mod nats;
mod random;
mod restart;
