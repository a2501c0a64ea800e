//! The `wgmesh` daemon and its command line.
fn main() {}
