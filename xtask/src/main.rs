//! `cargo xtask`: builds, demonstrates, tests and measures wgmesh.
fn main() {}
