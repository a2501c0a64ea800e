//! What a mesh must live through, on virtual time.

mod join;
