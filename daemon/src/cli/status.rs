//! `wgmesh status`: the daemon's own account, as a table for people or as JSON for programs.

pub(super) mod units;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use wgmesh_core::path::Kind;
use wgmesh_core::status::{
    Dial, Health, Path, Peer, PeerState, Privacy, Relay, SourceState, Status, Traffic,
};

use self::units::{ago, bytes, span};
use super::{Error, peer};
use crate::api::client;
use crate::config::File;

const BOLD: &str = "\x1b[1m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// The columns of [`columns`] that are aligned at their right end.
const NUMBERS: std::ops::RangeInclusive<usize> = 4..=6;

/// How many peers are explained where nobody asked for all.
const EXPLAINED: usize = 10;

/// How the account is shown to people.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    /// With public keys and IPv6 addresses, and each peer explained.
    pub(super) wide: bool,
    /// With the terminal's colours.
    pub(super) colour: bool,
}

pub(super) fn show(config: &File, json: bool, wide: bool) -> Result<(), Error> {
    let status = client::status(&config.socket_path())?;
    let mut out = io::stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, &status).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let colour = may_colour(out.is_terminal());
    Ok(out.write_all(render(&status, Style { wide, colour }).as_bytes())?)
}

/// Whether colours are welcome (no-color.org).
pub(super) fn may_colour(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn render(status: &Status, style: Style) -> String {
    let mut lines = head(status, style);
    lines.push(String::new());
    lines.extend(peers_explained(&status.peers, style));
    lines.join("\n") + "\n"
}

/// Shows the peers as a table, and below it what is wrong with whom.
pub(super) fn peers_explained(known: &[Peer], style: Style) -> Vec<String> {
    match known {
        [] => vec!["No peers yet.".to_owned()],
        known => [peers(known, style), reasons(known, style)].concat(),
    }
}

fn head(status: &Status, style: Style) -> Vec<String> {
    let node = &status.node;
    let title = format!("{} on {}, up {}", node.hostname, node.interface, span(status.uptime_s));
    let mut lines = vec![
        paint(&title, BOLD, style),
        format!("  address   {}, {}", node.mesh_ipv4, node.mesh_ipv6),
        format!("  key       {}", node.public_key),
    ];
    if let Some(port) = node.listen_port {
        lines.push(format!("  port      {port}"));
    }
    if let Some(port) = node.exchange_port {
        lines.push(format!("  exchange  TCP port {port}"));
    }
    if let Some(nat) = &node.nat_type {
        let seen = node.mapped.map(|mapped| format!(", seen at {mapped}")).unwrap_or_default();
        lines.push(format!("  NAT       {nat}{seen}"));
    }
    lines.push(format!("  kernel    {}", kernel(status)));
    if !status.kernel.forwarding.is_empty() {
        let links: Vec<_> = status.kernel.forwarding.iter().map(String::as_str).collect();
        lines.push(format!("  forwards  on {}, for as long as it is wanted", links.join(", ")));
    }
    lines.push(format!("  eBPF      {}", ebpf(status)));
    lines.push(format!("  sources   {}", sources(status)));
    lines.extend(dials(&status.dials).map(|dial| format!("  dials     {dial}")));
    lines.extend(relay(&status.relay).map(|relay| format!("  relay     {relay}")));
    lines.extend(health(&status.health).map(|health| format!("  health    {health}")));
    lines.extend(status.privacy.map(|privacy| format!("  privacy   {}", describe(privacy))));
    lines.extend(counts(&status.relays_left).map(|counts| format!("  left      relays: {counts}")));
    lines.extend(counts(&status.drops).map(|counts| format!("  dropped   {counts}")));
    lines.extend(status.problems.iter().map(|problem| paint(&format!("  problem   {problem}"), RED, style)));
    lines
}

fn kernel(status: &Status) -> String {
    let kernel = &status.kernel;
    let state = match (&kernel.error, kernel.converged) {
        (Some(error), _) => format!("refuses: {error}"),
        (None, true) => "as it should be".to_owned(),
        (None, false) => "being brought in line".to_owned(),
    };
    format!("{}, {state} ({} writes)", kernel.release, kernel.writes)
}

fn ebpf(status: &Status) -> String {
    let ebpf = &status.ebpf;
    match (ebpf.active, &ebpf.attachment, &ebpf.error) {
        (true, attachment, error) => {
            let attachment = attachment.as_ref().map(|attachment| format!(" ({attachment})"));
            let relaying = (ebpf.relayed_flows > 0).then(|| {
                format!(", relaying {} flows ({} packets)", ebpf.relayed_flows, ebpf.relayed_packets)
            });
            let lacking = error.as_ref().map(|error| format!("; not all of it: {error}"));
            [attachment, relaying, lacking]
                .into_iter()
                .flatten()
                .fold("counting".to_owned(), |all, one| all + &one)
        }
        (false, _, Some(error)) => format!("off: {error}"),
        (false, _, None) => "off".to_owned(),
    }
}

/// Says what was counted, by reason, if anything was.
fn counts(counts: &BTreeMap<String, u64>) -> Option<String> {
    let each: Vec<String> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    (!each.is_empty()).then(|| each.join(", "))
}

/// Says which addresses are dialed in vain, since when and why.
fn dials(dials: &[Dial]) -> impl Iterator<Item = String> {
    let in_vain = dials.iter().filter(|dial| !dial.connected && dial.failures > 0);
    in_vain.map(|Dial { address, tried_s, took_ms, failures, error, .. }| {
        let last = tried_s.map(|seconds| format!(", last {}", ago(seconds))).unwrap_or_default();
        let took = took_ms.map(|millis| format!(" for {millis} ms")).unwrap_or_default();
        format!(
            "{address} {failures} times in vain{last}{took}: {}",
            error.as_deref().unwrap_or("the session ended")
        )
    })
}

/// Says what this node does for others, if it does or would do anything.
fn relay(relay: &Relay) -> Option<String> {
    let Relay { serving, pairs, max_pairs, routed_pairs, traffic } = relay;
    let passed_on = format!("{} passed on in {} packets", bytes(traffic.bytes), traffic.packets);
    let routed = match routed_pairs {
        0 => String::new(),
        pairs => format!(", routing for {pairs} pairs"),
    };
    let does_anything = *serving || *pairs > 0 || *routed_pairs > 0;
    does_anything.then(|| format!("for {pairs} of at most {max_pairs} pairs, {passed_on}{routed}"))
}

/// Says what was wrong with tunnels since the start, if anything was.
fn health(health: &Health) -> Option<String> {
    let Health { stale, probes_answered: _, probes_lost, offline, evicted } = health;
    (*stale > 0).then(|| {
        format!("{stale} tunnels stale, {evicted} peers given up, {offline} left out for a while, {probes_lost} probes lost")
    })
}

fn describe(privacy: Privacy) -> String {
    let by = if privacy.published_by_another {
        "published by another node"
    } else {
        "not published by another node"
    };
    format!("{by}, publishes {} others", privacy.publishes)
}

fn sources(status: &Status) -> String {
    let one = |source: &wgmesh_core::status::Source| match (source.state, &source.error) {
        (SourceState::Running, _) => match &source.dht {
            Some(dht) => format!("{} ({} nodes answer)", source.name, dht.nodes),
            None => source.name.clone(),
        },
        (SourceState::Starting, _) => format!("{} (starting)", source.name),
        (SourceState::Failing, Some(error)) => format!("{} (failing: {error})", source.name),
        (SourceState::Failing, None) => format!("{} (failing)", source.name),
    };
    match status.sources.as_slice() {
        [] => "none".to_owned(),
        sources => sources.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

fn peers(peers: &[Peer], style: Style) -> Vec<String> {
    let counted = peers.iter().any(|peer| peer.ebpf.is_some());
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns(counted, style));
    for peer in peers {
        table.add_row(row(peer, counted, style));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if NUMBERS.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let colours = std::iter::once(BOLD).chain(peers.iter().map(|peer| colour(peer.state)));
    table.lines().zip(colours).map(|(line, colour)| paint(line.trim_end(), colour, style)).collect()
}

/// Says of each peer that has something wrong what it is.
fn reasons(peers: &[Peer], style: Style) -> Vec<String> {
    let all: Vec<String> = peers
        .iter()
        .filter_map(|peer| Some(format!("{}: {}", peer::label(peer), peer.why.as_ref()?)))
        .collect();
    let shown = if style.wide { all.len() } else { EXPLAINED };
    let mut lines: Vec<String> = all.iter().take(shown).cloned().collect();
    if all.len() > shown {
        lines.push(format!("... and {} more: see `wgmesh status --wide`", all.len() - shown));
    }
    if !lines.is_empty() {
        lines.insert(0, String::new());
    }
    lines
}

fn columns(counted: bool, style: Style) -> Vec<&'static str> {
    let mut columns = vec!["NAME", "ADDRESS", "STATE", "PATH", "HANDSHAKE", "RECEIVED", "SENT"];
    if counted {
        columns.push("EBPF IN/OUT");
    }
    columns.push("VIA");
    if style.wide {
        columns.extend(["IPV6", "KEY"]);
    }
    columns
}

fn row(peer: &Peer, counted: bool, style: Style) -> Vec<String> {
    let none = || "-".to_owned();
    let mut cells = vec![
        peer::label(peer),
        peer.mesh_ipv4.to_string(),
        state(peer),
        peer.path.as_ref().map_or_else(none, path),
        peer.last_handshake_s.map_or_else(|| "never".to_owned(), ago),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
    ];
    if counted {
        cells.push(peer.ebpf.as_ref().map_or_else(none, traffic));
    }
    cells.push(peer.sources.join(", "));
    if style.wide {
        cells.extend([peer.mesh_ipv6.to_string(), peer.public_key.to_string()]);
    }
    cells
}

/// Names how a peer is reached; of a relay that routes it is said, because that one can read.
pub(super) fn state(peer: &Peer) -> String {
    let is_routed = peer.path.as_ref().is_some_and(|path| path.kind == Kind::Routed.name());
    let name = match peer.state {
        PeerState::Connecting => "connecting",
        PeerState::Direct => "direct",
        PeerState::Relayed if is_routed => "relayed (routed)",
        PeerState::Relayed => "relayed",
        PeerState::Offline => "offline",
    };
    name.to_owned()
}

fn colour(state: PeerState) -> &'static str {
    match state {
        PeerState::Direct => "",
        PeerState::Connecting | PeerState::Relayed => YELLOW,
        PeerState::Offline => RED,
    }
}

pub(super) fn path(path: &Path) -> String {
    match path.rtt_ms {
        Some(rtt) => format!("{} {} {rtt} ms", path.kind, path.endpoint),
        None => format!("{} {}", path.kind, path.endpoint),
    }
}

/// Inner bytes and packets, which differ from WireGuard's count by its overhead and keepalives.
fn traffic(traffic: &Traffic) -> String {
    let one = |count, packets| format!("{} ({packets})", bytes(count));
    format!("{} / {}", one(traffic.rx_bytes, traffic.rx_packets), one(traffic.tx_bytes, traffic.tx_packets))
}

fn paint(text: &str, colour: &str, style: Style) -> String {
    if style.colour && !colour.is_empty() { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
}

#[cfg(test)]
pub(super) mod tests;
