//! A mesh of tinc, for comparison: what it costs at rest was the measure when the goals were set.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use wgmesh_lab::{Host, Lan, Process, eventually};

use super::PATIENCE;

/// Daemons of tinc on hosts of their own, each of which was told of the first one.
pub(super) struct Tinc {
    pub(super) daemons: Vec<Process>,
    _lan: Lan,
}

impl Tinc {
    /// Starts so many and waits until the first reaches all others.
    pub(super) fn start(nodes: u8) -> Self {
        let lan = Lan::new("tinc", nodes);
        // Its device is not there before.
        lan.hosts[0].run(["modprobe", "tun"]);
        for (index, host) in lan.hosts.iter().enumerate() {
            configure(host, index);
        }
        // It takes nobody whose key it does not have.
        for (index, host) in lan.hosts.iter().enumerate() {
            let own = description(host, index);
            for other in lan.hosts.iter().filter(|other| other.name() != host.name()) {
                fs::copy(&own, description(other, index)).expect("the other host's folder can be written");
            }
        }
        let start = |host: &Host| {
            let folder = folder(host);
            let [pid_file, folder] = [folder.join("pid"), folder].map(|path| path.display().to_string());
            host.spawn(["tincd", "--config", &folder, "--pidfile", &pid_file, "--no-detach"])
        };
        let daemons = lan.hosts.iter().map(start).collect();
        eventually(PATIENCE, || (1..lan.hosts.len()).all(|index| lan.hosts[0].pings(inner(index))));
        Self { daemons, _lan: lan }
    }
}

fn configure(host: &Host, index: usize) {
    let folder = folder(host);
    fs::create_dir_all(folder.join("hosts")).expect("the host's folder can be written");
    let write =
        |file: PathBuf, text: String| fs::write(file, text).expect("the host's folder can be written");
    let first = if index > 0 { "ConnectTo = node0\n" } else { "" };
    write(folder.join("tinc.conf"), format!("Name = node{index}\nInterface = tinc0\n{first}"));
    let (outer, inner) = (Lan::address(index), inner(index));
    write(description(host, index), format!("Address = {outer}\nSubnet = {inner}/32\n"));
    let up = folder.join("tinc-up");
    write(
        up.clone(),
        format!("#!/bin/sh\nip address add {inner}/24 dev $INTERFACE\nip link set $INTERFACE up\n"),
    );
    fs::set_permissions(up, Permissions::from_mode(0o755)).expect("it was just written");
    // A short key, which is quickly made and is used at the start only.
    host.run(["tincd", "--config", &folder.display().to_string(), "--generate-keys=1024"]);
}

fn folder(host: &Host) -> PathBuf {
    host.folder().join("tinc")
}

/// Returns what a host knows of one of them.
fn description(host: &Host, index: usize) -> PathBuf {
    folder(host).join("hosts").join(format!("node{index}"))
}

fn inner(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 8, 0, Lan::address(index).octets()[3])
}
