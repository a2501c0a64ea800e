//! `wgmesh doctor`: goes through what keeps a host from its mesh, from the ground up, and says what to do about it.
//!
//! It changes nothing. What only the daemon knows it asks the daemon for; what can be seen without one it looks at itself, so
//! that it also helps where no daemon starts.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use caps::{CapSet, Capability};
use serde::Serialize;
use wgmesh_core::kernel::OWNER_PREFIX;
use wgmesh_core::nat::NatType;
use wgmesh_core::status::{PeerState, SourceState, Status};

use super::{Error, peer};
use crate::api::client;
use crate::config::{self, File, secret};
use crate::kernel::chains_that_drop_input;
use crate::lan;

/// No clock that is right says less: the first day of 2025, in seconds since the epoch.
const NOT_BEFORE: Duration = Duration::from_secs(1_735_689_600);

/// How many peers that are not reached are named one by one.
const NAMED: usize = 5;

/// What one look has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    state: State,
    /// What is so, and what to do about it.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It may be as it should.
    Warning,
    /// It must be mended.
    Error,
}

pub(super) fn examine(config: Result<File, config::Error>, json: bool) -> Result<(), Error> {
    let findings = match config {
        Ok(config) => findings(&config),
        Err(error) => vec![error_of("configuration", error.to_string())],
    };
    let mut out = io::stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, &findings).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        findings.iter().try_for_each(|finding| writeln!(out, "{}", line(finding)))?;
    }
    let is_unwell = findings.iter().any(|finding| finding.state == State::Error);
    if is_unwell { Err(Error::Unwell) } else { Ok(()) }
}

fn findings(config: &File) -> Vec<Finding> {
    let mut findings = vec![configuration(config), permission(), wireguard(), clock()];
    findings.push(interface(config));
    match client::status(&config.socket_path()) {
        Ok(status) => {
            findings.extend(daemon(&status));
            findings.push(firewall(
                config,
                &status.node.listen_port.into_iter().collect::<Vec<_>>(),
                status.node.exchange_port,
            ));
            findings.extend(nat(config, &status));
            findings.extend(peers(&status));
        }
        Err(error) => {
            findings.push(error_of(
                "daemon",
                format!("{error}; `systemctl status wgmesh@{}` may say why", config.interface),
            ));
            findings.push(port(config.listen_port));
            findings.push(firewall(config, &[config.listen_port], None));
        }
    }
    findings
}

fn configuration(config: &File) -> Finding {
    match secret::find(config) {
        Ok(found) if found.secret.is_weak() => {
            let text = format!(
                "the secret in {} can be guessed; `wgmesh init` makes a strong one",
                found.path.display()
            );
            Finding { check: "configuration", state: State::Warning, text }
        }
        Ok(_) | Err(secret::Error::Encrypted { .. }) => match config.unreadable_to_service() {
            Some(text) => error_of("configuration", text),
            None => ok("configuration", "it can be used, and so can the secret"),
        },
        Err(error) => error_of("configuration", error.to_string()),
    }
}

fn permission() -> Finding {
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN) {
        Ok(true) => ok("permission", "this user may set up the network"),
        Ok(false) | Err(_) => Finding {
            check: "permission",
            state: State::Warning,
            text: "this user lacks CAP_NET_ADMIN: run `wgmesh doctor` as root to see more".to_owned(),
        },
    }
}

fn wireguard() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    if Path::new("/sys/module/wireguard").exists() {
        return ok("kernel", &format!("Linux {release} has WireGuard"));
    }
    let modules = Path::new("/lib/modules").join(&release);
    let lists = ["modules.dep", "modules.builtin"]
        .map(|list| fs::read_to_string(modules.join(list)).unwrap_or_default());
    match lists.iter().any(|list| list.contains("/wireguard.ko")) {
        true => ok("kernel", &format!("Linux {release} has WireGuard, and loads it when it is needed")),
        false => error_of(
            "kernel",
            format!(
                "Linux {release} has no module wireguard: install the distribution's own kernel, or boot the one whose modules are installed"
            ),
        ),
    }
}

fn clock() -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match now >= NOT_BEFORE {
        true => ok("clock", "it shows a time that can be"),
        false => error_of(
            "clock",
            "it is years behind: set it, and have NTP keep it (`timedatectl set-ntp true`)".to_owned(),
        ),
    }
}

/// Looks whose the link of our name is, by the alias that ours carry.
fn interface(config: &File) -> Finding {
    let link = Path::new("/sys/class/net").join(config.interface.as_str());
    let alias = fs::read_to_string(link.join("ifalias")).unwrap_or_default();
    let name = &config.interface;
    match (link.exists(), alias.starts_with(OWNER_PREFIX)) {
        (true, true) => ok("interface", &format!("{name} is there and ours")),
        (true, false) => error_of(
            "interface",
            format!("{name} is there and not ours: set another `interface`, or `ip link delete {name}`"),
        ),
        (false, _) => Finding {
            check: "interface",
            state: State::Warning,
            text: format!("{name} is not there; the daemon makes it"),
        },
    }
}

fn port(port: u16) -> Finding {
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => ok("port", &format!("UDP port {port} is free for WireGuard")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding {
            check: "port",
            state: State::Warning,
            text: format!(
                "UDP port {port} is taken (`ss -ulpn` says by whom): WireGuard will take the next that is free"
            ),
        },
        Err(error) => error_of("port", format!("UDP port {port} cannot be had: {error}")),
    }
}

fn daemon(status: &Status) -> Vec<Finding> {
    let mut findings = Vec::new();
    let problems = status.problems.iter().chain(&status.kernel.error);
    findings.extend(problems.map(|problem| error_of("daemon", problem.clone())));
    let lacking = match (status.ebpf.active, status.ebpf.error.as_deref()) {
        (true, None) => None,
        (true, Some(error)) => Some(format!("not all of it works: {error}")),
        (false, why) => Some(format!("no counters: {}", why.unwrap_or("its programs are not attached"))),
    };
    findings.extend(lacking.map(|text| Finding { check: "eBPF", state: State::Warning, text }));
    for source in status.sources.iter().filter(|source| source.state == SourceState::Failing) {
        let error = source.error.as_deref().unwrap_or("it fails");
        findings.push(Finding {
            check: "sources",
            state: State::Warning,
            text: format!("{}: {error}", source.name),
        });
    }
    if status.drops.get("tag").is_some_and(|&count| count > 0) {
        let text = "messages of another mesh or another hour were dropped: if no other mesh is on this link, a clock is off by hours, \
                    or somebody has another secret";
        findings.push(Finding { check: "clock", state: State::Warning, text: text.to_owned() });
    }
    if findings.iter().all(|finding| finding.state != State::Error) {
        findings.push(ok(
            "daemon",
            &format!("version {} runs, and the kernel holds what it should", status.version),
        ));
    }
    findings
}

/// Names the ports that others must get to, where a firewall may be in the way.
fn firewall(config: &File, wireguard: &[u16], exchange: Option<u16>) -> Finding {
    let chains = chains_that_drop_input();
    if chains.is_empty() {
        return ok("firewall", "no chain drops by its policy what comes in");
    }
    let has_lan = config.discovery.enabled_methods.contains(&config::Method::Lan);
    let lan = has_lan.then_some(config.listen_port);
    let text = format!(
        "the policy of {} drops what comes in: make sure that rules there let in {}",
        chains.join(" and "),
        ports_to_let_in(wireguard, exchange, lan).join(", ")
    );
    Finding { check: "firewall", state: State::Warning, text }
}

/// Names these ports; `lan` is the `listen_port` that is configured, where others are looked for on the LAN.
fn ports_to_let_in(wireguard: &[u16], exchange: Option<u16>, lan: Option<u16>) -> Vec<String> {
    let wireguard = wireguard.iter().map(|port| format!("UDP {port} (WireGuard)"));
    let exchange = exchange.map(|port| format!("TCP {port} (exchange)"));
    let lan = lan.map(|listen_port| match lan::node_port(listen_port) {
        Some(port) => format!("from the LAN UDP {} and {port} (announces, hellos)", lan::GROUP_PORT),
        None => format!(
            "from the LAN UDP {} (announces), and hellos to a port that only a fixed `listen_port` fixes",
            lan::GROUP_PORT
        ),
    });
    wireguard.chain(exchange).chain(lan).collect()
}

fn nat(config: &File, status: &Status) -> Option<Finding> {
    if !config.nat.punching || config.nat.stun_servers.is_empty() {
        return None;
    }
    let report = client::netcheck(&config.socket_path()).ok()?;
    let answers = report.servers.iter().filter(|server| server.mapped.is_some()).count();
    let has_peers = status.peers.iter().any(|peer| peer.state == PeerState::Direct);
    let warning =
        |text: &str| Some(Finding { check: "internet", state: State::Warning, text: text.to_owned() });
    match (answers, report.nat_type) {
        (0, _) if has_peers => warning(
            "no STUN server answers, and peers are reached all the same: this host may have no internet",
        ),
        (0, _) => warning(
            "no STUN server answers: there is no internet, or a firewall blocks UDP; let out UDP from WireGuard's port, and its answers in",
        ),
        (_, NatType::Symmetric) => warning(
            "the NAT is symmetric: peers behind port-restricted or symmetric NATs need a relay, or a port that is forwarded to WireGuard's",
        ),
        _ => Some(ok("internet", &format!("STUN works; the NAT is {}", report.nat_type.name()))),
    }
}

fn peers(status: &Status) -> Vec<Finding> {
    let unreached: Vec<_> = status
        .peers
        .iter()
        .filter(|peer| matches!(peer.state, PeerState::Connecting | PeerState::Offline))
        .collect();
    if status.peers.is_empty() {
        let text = "none is known: is the same secret on another host that runs, on this link or named in `discovery.bootstrap_nodes`?";
        return vec![Finding { check: "peers", state: State::Warning, text: text.to_owned() }];
    }
    let mut findings: Vec<_> = unreached
        .iter()
        .take(NAMED)
        .map(|one| {
            let why = one.why.as_deref().unwrap_or("it does not answer");
            let name = peer::label(one);
            let text = format!("{name} is not reached: {why} (`wgmesh explain {name}` says more)");
            Finding { check: "peers", state: State::Warning, text }
        })
        .collect();
    let (all, reached) = (status.peers.len(), status.peers.len() - unreached.len());
    findings.push(ok("peers", &format!("{reached} of {all} are reached")));
    findings
}

fn ok(check: &'static str, text: &str) -> Finding {
    Finding { check, state: State::Ok, text: text.to_owned() }
}

const fn error_of(check: &'static str, text: String) -> Finding {
    Finding { check, state: State::Error, text }
}

fn line(Finding { check, state, text }: &Finding) -> String {
    let mark = match state {
        State::Ok => "ok",
        State::Warning => "look",
        State::Error => "WRONG",
    };
    format!("{mark:<6} {check:<14} {text}")
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::example;
    use super::*;

    /// L-28, L-30, L-31: what is wrong comes with what to do.
    #[test]
    fn a_daemons_problems_are_errors_and_its_peers_are_explained() {
        let mut status = example();
        status.problems = vec!["this host is in 10.42.0.0/16".to_owned()];
        assert!(daemon(&status).contains(&error_of("daemon", status.problems[0].clone())));
        let unreached = peers(&status);
        assert!(
            unreached.iter().any(|finding| finding.text.contains("`wgmesh explain db2`")),
            "{unreached:?}"
        );
        status.peers.clear();
        assert!(peers(&status)[0].text.contains("same secret"));
    }

    #[test]
    fn a_part_of_ebpf_that_fails_is_a_warning() {
        let mut status = example();
        (status.ebpf.active, status.ebpf.error) = (true, Some("no room".to_owned()));
        assert!(daemon(&status).iter().any(|finding| finding.text == "not all of it works: no room"));
    }

    /// A second mesh on a host has a WireGuard port of its own, and so one for hellos.
    #[test]
    fn the_ports_to_let_in_are_those_of_this_mesh() {
        let ports = ports_to_let_in(&[51821], Some(443), Some(51821));
        assert_eq!(
            ports,
            [
                "UDP 51821 (WireGuard)",
                "TCP 443 (exchange)",
                "from the LAN UDP 51830 and 51832 (announces, hellos)"
            ]
        );
        let any = ports_to_let_in(&[40000], None, Some(0));
        assert!(any[1].contains("a fixed `listen_port`"), "{any:?}");
    }

    #[test]
    fn a_port_that_is_taken_is_said_to_be() {
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        assert_eq!(port(number).state, State::Warning);
        drop(taken);
        assert_eq!(port(number).state, State::Ok);
    }

    #[test]
    fn a_finding_reads_like_this() {
        assert_eq!(line(&ok("kernel", "Linux has it")), "ok     kernel         Linux has it");
    }
}
