//! What a mesh must live through, on virtual time.

mod faults;
mod fleet;
mod join;
mod restart;
