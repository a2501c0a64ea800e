//! What a mesh must live through, on virtual time.

mod faults;
mod fleet;
mod hostile;
mod join;
mod random;
mod restart;
