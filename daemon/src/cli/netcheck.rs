//! `wgmesh netcheck`: what the NAT in front of this host does, and what that means for its peers.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};

use wgmesh_core::nat::{NatType, Strategy};
use wgmesh_core::stun::{Filtering, Report, ServerReport};

use super::Error;
use crate::api::client;
use crate::config::File;

pub(super) fn show(config: &File, json: bool) -> Result<(), Error> {
    let report = client::netcheck(&config.socket_path())?;
    let mut out = io::stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    Ok(out.write_all(render(&report, config.nat.punching).as_bytes())?)
}

fn render(report: &Report, punching: bool) -> String {
    let mut lines = vec![
        format!(
            "NAT type   {}{}",
            report.nat_type,
            if report.cgnat { ", behind one of the provider" } else { "" }
        ),
        format!("IPv4       {}", mapped(report.mapped_v4)),
        format!("IPv6       {}", mapped(report.mapped_v6)),
        format!("filtering  {}", filtering(report.filtering)),
        format!("hairpin    {}", hairpin(report.hairpin)),
        format!("CGNAT      {}", if report.cgnat { "yes" } else { "no sign of it" }),
        format!("routers    {}", routers(&report.routers)),
    ];
    let label = std::iter::once("servers    ").chain(std::iter::repeat("           "));
    match report.servers.as_slice() {
        [] => lines.push("servers    none".to_owned()),
        servers => {
            let width = servers.iter().map(|server| server.address.to_string().len()).max().unwrap_or(0);
            lines.extend(label.zip(servers).map(|(label, one)| format!("{label}{}", server(one, width))));
        }
    }
    let introducers: Vec<_> = report.introducers.iter().map(ToString::to_string).collect();
    lines.push(match introducers.as_slice() {
        [] => "introduced by nobody yet: no peer is reached".to_owned(),
        introducers => format!("introduced by {}", introducers.join(", ")),
    });
    lines.push(String::new());
    lines.push(meaning(report, punching));
    lines.join("\n") + "\n"
}

fn mapped(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "no server answered".to_owned(), |address| format!("seen at {address}"))
}

const fn filtering(filtering: Filtering) -> &'static str {
    match filtering {
        Filtering::EndpointIndependent => "none: lets in anyone",
        Filtering::AddressDependent => "lets in the addresses that were sent to, from any port",
        Filtering::AddressAndPortDependent => "lets in only the addresses and ports that were sent to",
        Filtering::Unknown => "unknown: no server could test it",
    }
}

const fn hairpin(hairpin: Option<bool>) -> &'static str {
    match hairpin {
        Some(true) => "yes: what is sent to the outside address comes back in",
        Some(false) => "no: hosts behind this NAT reach each other by their own addresses only",
        None => "not tested",
    }
}

/// Two with private addresses are two NATs, unless the first one only routes.
fn routers(routers: &[Option<Ipv4Addr>]) -> String {
    let name = |router: &Option<Ipv4Addr>| router.map_or_else(|| "silent".to_owned(), |one| one.to_string());
    match routers {
        [] => "none has told its address".to_owned(),
        routers => routers.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

fn server(server: &ServerReport, width: usize) -> String {
    let address = server.address.to_string();
    match (server.mapped, server.rtt_ms) {
        (Some(mapped), Some(rtt)) => format!("{address:width$}  saw {mapped} after {rtt} ms"),
        (Some(mapped), None) => format!("{address:width$}  saw {mapped}"),
        (None, _) => format!("{address:width$}  did not answer"),
    }
}

/// Says what an operator can expect, and do.
fn meaning(report: &Report, punching: bool) -> String {
    let answered = report.servers.iter().filter(|server| server.mapped.is_some()).count();
    match report.nat_type {
        NatType::Unknown if !punching => {
            "`nat.punching` is off: no server is asked and no path through a NAT is looked for.".to_owned()
        }
        NatType::Unknown if report.servers.is_empty() => {
            "There is no server to ask: `nat.stun_servers` is empty, or none of its names could be resolved yet. \
             Every path is tried all the same."
                .to_owned()
        }
        NatType::Unknown if report.checking => {
            "The servers have not all been heard yet: ask again in a few seconds.".to_owned()
        }
        NatType::Unknown if answered == 0 => {
            "No server answered, so the type is not known: UDP may be blocked, or the servers may be down. \
             Every path is tried all the same."
                .to_owned()
        }
        NatType::Unknown => {
            "Only one server answered, and it takes two to tell the type. Every path is tried all the same."
                .to_owned()
        }
        NatType::Open => {
            "Nothing translates this host's address: whoever its firewall lets in reaches it directly, and it makes a \
             good bootstrap node."
                .to_owned()
        }
        known => match unreachable(known).as_slice() {
            [] => "Every peer can be reached directly.".to_owned(),
            others => format!(
                "Every peer can be reached directly, except those behind a NAT that is {}: they need a relay, or a \
                 port that is forwarded to WireGuard on one side.",
                others.join(" or ")
            ),
        },
    }
}

/// Returns the types of NAT behind which no direct path is possible.
fn unreachable(own: NatType) -> Vec<&'static str> {
    let blocked = |other: &NatType| !Strategy::of(own, *other).is_direct_possible();
    NatType::ALL.into_iter().filter(blocked).map(NatType::name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let mapped = Some("198.51.100.7:51820".parse().unwrap());
        let server = |address: &str, mapped, rtt_ms| ServerReport {
            address: address.parse().unwrap(),
            mapped,
            rtt_ms,
        };
        Report {
            servers: vec![
                server("192.0.2.1:3478", mapped, Some(12)),
                server("203.0.113.20:19302", None, None),
                server("192.0.2.3:3478", mapped, Some(30)),
            ],
            nat_type: NatType::PortRestricted,
            filtering: Filtering::AddressAndPortDependent,
            mapped_v4: mapped,
            mapped_v6: None,
            hairpin: Some(false),
            cgnat: false,
            routers: vec![Some([192, 168, 1, 1].into()), None, Some([203, 0, 113, 1].into())],
            ipv6: false,
            checking: false,
            introducers: vec!["hub".parse().unwrap(), "db1".parse().unwrap()],
        }
    }

    /// P-17, P-18, X-21: the finding that an operator reads, to the letter.
    #[test]
    fn the_finding_reads_like_this() {
        let expected = "\
NAT type   port-restricted
IPv4       seen at 198.51.100.7:51820
IPv6       no server answered
filtering  lets in only the addresses and ports that were sent to
hairpin    no: hosts behind this NAT reach each other by their own addresses only
CGNAT      no sign of it
routers    192.168.1.1, silent, 203.0.113.1
servers    192.0.2.1:3478      saw 198.51.100.7:51820 after 12 ms
           203.0.113.20:19302  did not answer
           192.0.2.3:3478      saw 198.51.100.7:51820 after 30 ms
introduced by hub, db1

Every peer can be reached directly, except those behind a NAT that is symmetric: they need a relay, or a port that is forwarded to WireGuard on one side.
";
        assert_eq!(render(&example(), true), expected);
    }

    /// P-20: the advice is that of the table of strategies.
    #[test]
    fn each_type_says_who_needs_a_relay() {
        for (nat_type, words) in [
            (NatType::Open, "Nothing translates this host's address"),
            (NatType::FullCone, "Every peer can be reached directly."),
            (NatType::Restricted, "Every peer can be reached directly."),
            (NatType::PortRestricted, "a NAT that is symmetric: they need a relay"),
            (NatType::Symmetric, "a NAT that is port-restricted or symmetric: they need a relay"),
        ] {
            let text = meaning(&Report { nat_type, ..example() }, true);
            assert!(text.contains(words), "{nat_type}: {text}");
        }
    }

    /// P-18: that nobody answers is a finding, not an error, and says what it may come from.
    #[test]
    fn an_unknown_type_says_why() {
        let mut report = Report { nat_type: NatType::Unknown, ..example() };
        assert!(meaning(&report, false).contains("`nat.punching` is off"));
        assert!(meaning(&report, true).contains("takes two"));
        report.servers.iter_mut().for_each(|server| server.mapped = None);
        assert!(meaning(&report, true).contains("UDP may be blocked"));
        report.checking = true;
        assert!(meaning(&report, true).contains("ask again"));
        report.servers.clear();
        assert!(meaning(&report, true).contains("`nat.stun_servers` is empty"));
        assert!(render(&report, true).contains("servers    none\n"));
    }

    #[test]
    fn the_json_has_the_documented_names() {
        let json = serde_json::to_value(example()).unwrap();
        assert_eq!(json["nat_type"], "port-restricted");
        assert_eq!(json["filtering"], "address-and-port-dependent");
        assert_eq!(json["mapped_v4"], "198.51.100.7:51820");
        assert_eq!(json["servers"][0]["rtt_ms"], 12);
        assert_eq!(json["introducers"][0], "hub");
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), example());
    }
}
