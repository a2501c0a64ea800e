//! The daemon's account for monitoring: OpenMetrics 1.0 text, which Prometheus reads, made from a [`Status`].
//!
//! It keeps nothing and counts nothing: what `wgmesh status` shows is what is told. So it needs no registry either, only
//! lines in the right order.

use std::fmt::{self, Display, Write as _};

use wgmesh_core::status::{Peer, PeerState, SourceState, Status};

/// What may go into a label's value as it is; nothing else that we tell has quotes, backslashes or line breaks.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            other => f.write_char(other),
        })
    }
}

/// What a family of metrics is.
#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    /// Its samples end in `_total`.
    Counter,
}

/// A value with its labels.
struct Sample<'a> {
    labels: Vec<(&'static str, &'a str)>,
    value: f64,
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        let (word, suffix) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
        };
        self.line(format_args!("# TYPE wgmesh_{name} {word}\n# HELP wgmesh_{name} {help}"));
        for Sample { labels, value } in samples {
            let pair = |(name, value): &(&str, &str)| format!("{name}=\"{}\"", Escaped(value));
            let labels: Vec<_> = labels.iter().map(pair).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            self.line(format_args!("wgmesh_{name}{suffix}{labels} {value}"));
        }
    }

    fn one(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help, [Sample { labels: Vec::new(), value }]);
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing into memory cannot fail");
    }
}

/// Returns a status as OpenMetrics text.
pub fn render(status: &Status) -> String {
    let mut text = Text::default();
    node(&mut text, status);
    peers(&mut text, &status.peers);
    relay(&mut text, status);
    health(&mut text, status);
    text.line(format_args!("# EOF"));
    text.0
}

const fn number(value: u64) -> f64 {
    value as f64
}

fn labelled<'a>(labels: impl IntoIterator<Item = (&'static str, &'a str)>, value: f64) -> Sample<'a> {
    Sample { labels: labels.into_iter().collect(), value }
}

fn node(text: &mut Text, status: &Status) {
    let node = &status.node;
    let labels = [
        ("version", status.version.as_str()),
        ("interface", node.interface.as_str()),
        ("hostname", node.hostname.as_str()),
        ("kernel", &status.kernel.release),
    ];
    text.family("node", Kind::Gauge, "This node.", [labelled(labels, 1.0)]);
    text.one("uptime_seconds", Kind::Gauge, "Since the daemon started.", number(status.uptime_s));
    text.one("problems", Kind::Gauge, "What is wrong now.", number(status.problems.len() as u64));
    let converged = f64::from(u8::from(status.kernel.converged));
    text.one("kernel_converged", Kind::Gauge, "Whether the kernel holds what it should.", converged);
    text.one(
        "kernel_writes",
        Kind::Counter,
        "Changes that were written to the kernel.",
        number(status.kernel.writes),
    );
    text.one("kernel_readings", Kind::Counter, "Readings of the kernel.", number(status.kernel.readings));
    let links = status.kernel.forwarding.iter().map(|link| labelled([("link", link.as_str())], 1.0));
    text.family("forwarding", Kind::Gauge, "Links whose IPv4 forwarding is on because of the mesh.", links);
    let running = |state| f64::from(u8::from(state == SourceState::Running));
    let sources =
        status.sources.iter().map(|one| labelled([("source", one.name.as_str())], running(one.state)));
    text.family("source_running", Kind::Gauge, "Whether a source of peers works.", sources);
    let drops =
        status.drops.iter().map(|(reason, &count)| labelled([("reason", reason.as_str())], number(count)));
    text.family("dropped", Kind::Counter, "Messages that were dropped.", drops);
    let left =
        status.relays_left.iter().map(|(why, &count)| labelled([("why", why.as_str())], number(count)));
    text.family("relays_left", Kind::Counter, "Relays to a peer that were left.", left);
}

const fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Connecting => "connecting",
        PeerState::Direct => "direct",
        PeerState::Relayed => "relayed",
        PeerState::Offline => "offline",
    }
}

fn peers(text: &mut Text, peers: &[Peer]) {
    let states = [PeerState::Connecting, PeerState::Direct, PeerState::Relayed, PeerState::Offline];
    let count = |state| number(peers.iter().filter(|peer| peer.state == state).count() as u64);
    let counts = states.map(|state| labelled([("state", state_name(state))], count(state)));
    text.family("peers", Kind::Gauge, "Known peers by how they are reached.", counts);
    let named: Vec<_> = peers
        .iter()
        .map(|peer| {
            let hostname = peer.hostname.as_ref().map(ToString::to_string).unwrap_or_default();
            (peer, peer.public_key.to_string(), hostname)
        })
        .collect();
    let mut family = |name, kind, help, value: &dyn Fn(&Peer) -> Option<f64>| {
        let samples = named.iter().filter_map(|(peer, key, hostname)| {
            Some(labelled([("peer", key.as_str()), ("hostname", hostname.as_str())], value(peer)?))
        });
        text.family(name, kind, help, samples);
    };
    family("peer_rx_bytes", Kind::Counter, "Bytes received, by WireGuard's count.", &|peer| {
        Some(number(peer.rx_bytes))
    });
    family("peer_tx_bytes", Kind::Counter, "Bytes sent, by WireGuard's count.", &|peer| {
        Some(number(peer.tx_bytes))
    });
    family("peer_handshake_age_seconds", Kind::Gauge, "Since WireGuard's last handshake.", &|peer| {
        peer.last_handshake_s.map(number)
    });
    family("peer_rtt_seconds", Kind::Gauge, "The measured round trip.", &|peer| {
        peer.path.as_ref()?.rtt_ms.map(|millis| f64::from(millis) / 1000.0)
    });
    family("peer_mtu_bytes", Kind::Gauge, "The largest packet that the path carries.", &|peer| {
        peer.path.as_ref()?.mtu.map(f64::from)
    });
}

fn relay(text: &mut Text, status: &Status) {
    let (relay, ebpf) = (&status.relay, &status.ebpf);
    text.one(
        "relay_serving",
        Kind::Gauge,
        "Whether it is a relay for others.",
        f64::from(u8::from(relay.serving)),
    );
    text.one("relay_pairs", Kind::Gauge, "Pairs of nodes that have ports here.", number(relay.pairs as u64));
    text.one(
        "relay_flows_ebpf",
        Kind::Gauge,
        "Flows relayed in the kernel.",
        number(ebpf.relayed_flows as u64),
    );
    let by = |daemon, kernel| [labelled([("by", "daemon")], daemon), labelled([("by", "ebpf")], kernel)];
    let packets = by(number(relay.traffic.packets), number(ebpf.relayed_packets));
    text.family("relay_packets", Kind::Counter, "Packets passed on for others.", packets);
    let bytes = by(number(relay.traffic.bytes), number(ebpf.relayed_bytes));
    text.family("relay_bytes", Kind::Counter, "Bytes passed on; those of eBPF with IP headers.", bytes);
    let limited = by(number(relay.traffic.limited), number(ebpf.relayed_limited));
    text.family("relay_limited", Kind::Counter, "Packets dropped because a limit was reached.", limited);
    text.one("relay_refused", Kind::Counter, "Packets from no bound end.", number(relay.traffic.refused));
    text.one("relay_lost", Kind::Counter, "Packets that could not be sent on.", number(relay.traffic.lost));
}

fn health(text: &mut Text, status: &Status) {
    let health = &status.health;
    text.one("tunnels_stale", Kind::Counter, "Tunnels that went stale.", number(health.stale));
    let probes = [("answered", health.probes_answered), ("lost", health.probes_lost)];
    let probes = probes.map(|(outcome, count)| labelled([("outcome", outcome)], number(count)));
    text.family("probes", Kind::Counter, "Probes through tunnels in doubt.", probes);
    text.one("peers_left_out", Kind::Counter, "Peers that answered no probe.", number(health.offline));
    text.one("peers_given_up", Kind::Counter, "Peers that stayed silent.", number(health.evicted));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Status {
        let peer = |key: u8, name: &str, state: &str| {
            serde_json::json!({
                "public_key": wgmesh_core::key::PublicKey::from_bytes([key; 32]), "hostname": name, "mesh_ipv4": "10.42.0.2",
                "mesh_ipv6": "fd00::2", "state": state, "rx_bytes": 1, "tx_bytes": 924, "sources": ["lan"],
            })
        };
        let status = serde_json::json!({
            "version": "0.1.0",
            "uptime_s": 185,
            "node": {
                "interface": "wgmesh0", "public_key": wgmesh_core::key::PublicKey::from_bytes([9; 32]), "hostname": "web1",
                "mesh_ipv4": "10.42.0.1", "mesh_ipv6": "fd00::1",
            },
            "peers": [peer(1, "db1", "direct"), peer(2, "db2", "offline")],
            "sources": [{ "name": "lan", "state": "running" }],
            "ebpf": { "active": true },
            "kernel": { "release": "6.12.9", "converged": true, "readings": 9, "writes": 7 },
            "drops": { "seal": 3 },
            "relays_left": { "lies": 2 },
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn what_the_status_shows_is_told() {
        let mut status = example();
        status.relay.traffic.packets = 17;
        status.ebpf.relayed_packets = 4;
        status.health.evicted = 2;
        status.kernel.forwarding = ["eth0".to_owned()].into();
        let text = render(&status);
        for line in [
            "wgmesh_node{version=\"0.1.0\",interface=\"wgmesh0\",hostname=\"web1\",kernel=\"6.12.9\"} 1",
            "wgmesh_peers{state=\"direct\"} 1",
            "wgmesh_peer_tx_bytes_total{peer=",
            "wgmesh_relay_packets_total{by=\"daemon\"} 17",
            "wgmesh_relay_packets_total{by=\"ebpf\"} 4",
            "wgmesh_peers_given_up_total 2",
            "wgmesh_forwarding{link=\"eth0\"} 1",
            "wgmesh_dropped_total{reason=\"seal\"} 3",
            "wgmesh_relays_left_total{why=\"lies\"} 2",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
    }

    /// OpenMetrics 1.0: a family stands together, and nothing is told twice.
    #[test]
    fn no_sample_is_told_twice() {
        let text = render(&example());
        let mut names: Vec<_> = text
            .lines()
            .map(|line| if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 })
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(Escaped("a\"b\\c\nd").to_string(), "a\\\"b\\\\c\\nd");
    }
}
