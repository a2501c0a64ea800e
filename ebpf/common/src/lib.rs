//! The plain structs that the eBPF programs and the daemon share.
#![no_std]
