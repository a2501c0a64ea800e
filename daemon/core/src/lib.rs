//! The sans-I/O heart of wgmesh.
pub mod config;
pub mod kernel;
pub mod key;
pub mod time;
