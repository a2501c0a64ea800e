//! Where log lines go: to the journal with their fields when systemd connected us to it, else to standard error,
//! in colour on a terminal.
//!
//! Only our own events follow the configured level. Other crates are held at WARN: a netlink library that traces
//! its messages would log private keys.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use wgmesh_core::kernel::InterfaceName;

use crate::config::LogLevel;

/// Changes the level while the daemon runs.
#[derive(Clone, Debug)]
pub struct Handle(reload::Handle<Targets, Registry>);

impl Handle {
    /// Logs at another level from now on.
    pub fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.0.reload(filter(level)) {
            tracing::warn!(%error, "cannot change the log level");
        }
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Starts logging for the whole process. A field `peer` becomes `WGMESH_PEER` in the journal, and every entry
/// has `WGMESH_INTERFACE`.
///
/// # Panics
/// If called twice.
pub fn start(interface: &InterfaceName, level: LogLevel) -> Handle {
    let (filter, handle) = reload::Layer::new(filter(level));
    let journal = if connected_to_journal() { journal(interface).ok() } else { None };
    let text = journal.is_none().then(|| {
        let colour =
            io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colour).with_target(false)
    });
    Registry::default().with(filter).with(journal).with(text).init();
    Handle(handle)
}

fn filter(level: LogLevel) -> Targets {
    // The prefix covers wgmesh_core too.
    Targets::new().with_default(LevelFilter::WARN).with_target("wgmesh", LevelFilter::from(level))
}

fn journal(interface: &InterfaceName) -> io::Result<tracing_journald::Layer> {
    // The crate's own mapping makes INFO a notice, which `journalctl -p notice` is meant to leave out.
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
        ..PriorityMappings::new()
    };
    Ok(tracing_journald::layer()?
        .with_field_prefix(Some("WGMESH".to_owned()))
        .with_syslog_identifier("wgmesh".to_owned())
        .with_priority_mappings(priorities)
        .with_custom_fields([("WGMESH_INTERFACE", interface.as_str())]))
}

/// Whether standard error is the stream that systemd connected to the journal. The variable alone says nothing:
/// children that redirect their output inherit it (systemd.exec(5), `$JOURNAL_STREAM`).
fn connected_to_journal() -> bool {
    let announced = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    nix::sys::stat::fstat(io::stderr().as_fd())
        .is_ok_and(|stderr| is_stream(&announced, stderr.st_dev, stderr.st_ino))
}

fn is_stream(announced: &str, device: u64, inode: u64) -> bool {
    announced.split_once(':').is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn only_the_announced_stream_is_the_journal() {
        assert!(is_stream("8:1234", 8, 1234));
        for announced in ["", "8", "8:", ":1234", "8:1235", "9:1234", "x:y", "8:1234:5"] {
            assert!(!is_stream(announced, 8, 1234), "{announced}");
        }
    }

    /// No level of ours lets a netlink library trace its messages, keys and all.
    #[test]
    fn other_crates_never_log_below_warn() {
        let filter = filter(LogLevel::Trace);
        for ours in ["wgmesh", "wgmesh::run", "wgmesh_core::mesh"] {
            assert!(filter.would_enable(ours, &Level::TRACE), "{ours}");
        }
        for foreign in ["netlink_proto", "rtnetlink::handle", "hyper", "aya"] {
            assert!(!filter.would_enable(foreign, &Level::INFO), "{foreign}");
            assert!(filter.would_enable(foreign, &Level::WARN), "{foreign}");
        }
    }

    #[test]
    fn the_configured_level_is_the_level_of_our_own_events() {
        let filter = filter(LogLevel::Warn);
        assert!(filter.would_enable("wgmesh::run", &Level::WARN));
        assert!(!filter.would_enable("wgmesh::run", &Level::INFO));
    }
}
