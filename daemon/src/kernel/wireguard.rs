//! WireGuard devices over generic netlink: read whole, written in parts.

mod reader;
mod writer;

pub(super) use reader::{Reader, Reading};
pub(super) use writer::Writer;
