//! Tests on a real kernel, run as root by `cargo xtask lab`, which names the daemon's binary in `WGMESH_BIN`.
//!
//! Tests run side by side, so each makes its own [`wgmesh_lab::Lab`]. The tests in the module `systemd` need a
//! booted systemd and are, with those in `suspend`, the only ones that may change the machine itself; the latter have a
//! boot to themselves.

#![expect(clippy::unwrap_used, reason = "everything here is a test, helpers included")]

mod dht;
mod ebpf;
mod failover;
mod harness;
mod health;
mod kernel;
mod mesh;
mod nat;
mod operator;
mod paths;
mod suspend;
mod systemd;
