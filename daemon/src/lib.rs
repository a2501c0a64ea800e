//! The shells around `wgmesh-core`: everything of the daemon that touches sockets, netlink, files or the clock.
//!
//! [`cli`] is what an operator types, [`config`] what they write down. The daemon itself keeps its identity in
//! [`state`], answers the command line through [`api`], logs through [`journal`], and tells systemd through
//! [`notify`] how it is.

pub mod api;
pub mod applier;
pub mod cli;
mod clock;
pub mod config;
pub mod dht;
pub mod ebpf;
pub mod exchange;
mod fragment;
pub mod gossip;
pub mod hops;
mod inbox;
pub mod install;
pub mod journal;
pub mod kernel;
pub mod lan;
pub mod metrics;
pub mod names;
pub mod notify;
pub mod panics;
pub mod pins;
pub mod privileges;
pub mod probe;
pub mod relay;
pub mod run;
pub mod state;
pub mod traffic;
pub mod wireguard_port;
