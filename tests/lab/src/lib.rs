//! Hosts, switches and faults on a real kernel, for tests that run as root: see `cargo xtask lab`.
//!
//! A [`Host`] is a thread in network, mount and host-name namespaces of its own. What it runs lives in them too, so
//! every host has its own links, `/sys`, `/sys/fs/bpf` and name, and can use the interface names and ports that it
//! would use alone on a machine. Nothing is made outside of such namespaces but one temporary folder per [`Lab`],
//! which goes when the lab is dropped; the rest the kernel takes back even where the lab's process is killed.
//!
//! A wrong result is a panic, as everywhere in tests; [`Lab`] then prints the log of each daemon it ran.
//!
//! `wg`, `ip`, `ping`, `nft`, `tc` and `tcpdump` are used here as witnesses that know nothing of our own code.

mod capture;
mod cut;
mod daemon;
mod host;
mod internet;
mod lan;
mod link;
mod log;
mod namespace;
mod pair;
mod parallel;
mod pings;
mod poll;
mod probe;
mod relayed;
mod socket;
mod strangers;
mod two_links;
mod usage;
mod wireguard;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use capture::Capture;
pub use cut::Cut;
pub use daemon::{Daemon, Settings, WITHOUT_EBPF};
pub use host::{Host, Process};
pub use internet::{
    DhtNodes, GATEWAY, Internet, Member, Nat, NatKind, Site, StunServers, TorrentNode, Traffic,
};
pub use lan::Lan;
pub use link::{Link, Switch};
pub use log::{first_logged, show};
pub use namespace::Namespace;
pub use pair::{Outcome, Pair, View, secret};
pub use parallel::in_parallel;
pub use pings::{Pings, Replies, Reply};
pub use poll::{eventually, least_of_three, wait_for};
pub use probe::{Answer, Probe};
pub use relayed::{Family, INNER, RELAY_PORTS, Relayed, WIREGUARD_PORT};
pub use socket::bind_udp;
pub use strangers::Strangers;
pub use two_links::TwoLinks;
pub use usage::{Memory, Sent, Usage};
pub use wireguard::{Manual, Recipe, wire_by_hand};

/// Counts the labs of this process, so that those of tests which run at once differ.
static LABS: AtomicUsize = AtomicUsize::new(0);

/// One test's network: the folder in which its hosts keep their files.
pub struct Lab {
    folder: PathBuf,
}

impl Lab {
    /// Makes a lab without hosts. The name is the test's, for those who read its logs.
    pub fn new(name: &str) -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("wgmesh-lab-{}-{number}-{name}", std::process::id()));
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        Self { folder }
    }

    /// Adds a host without links.
    pub fn host(&self, name: &str) -> Host {
        let folder = self.folder.join(name);
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        Host::new(name, folder)
    }

    /// Adds a switch without links.
    pub fn switch(&self, name: &str) -> Switch {
        Switch::new(name)
    }

    /// Plugs a cable into the host and the switch. The host's end gets the addresses, each with its prefix length;
    /// it is called `eth0`, the next one `eth1`, and so on.
    pub fn link(&self, host: &Host, switch: &Switch, addresses: &[&str]) -> Link {
        Link::new(host, switch, addresses)
    }

    /// Returns where the lab keeps its files.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    fn print_logs(&self) {
        for host in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let log = host.path().join(daemon::LOG);
            if let Ok(text) = fs::read(&log) {
                eprintln!(
                    "--- log of {} ---\n{}",
                    host.file_name().display(),
                    String::from_utf8_lossy(&text)
                );
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}
