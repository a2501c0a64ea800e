//! What the answers of a round mean: pure functions, so that each rule stands in one place.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::nat::NatType;

/// Which senders a NAT lets in on a mapping (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Anyone.
    EndpointIndependent,
    /// Addresses that were sent to, from any of their ports.
    AddressDependent,
    /// Only addresses and ports that were sent to.
    AddressAndPortDependent,
    /// No server could tell.
    #[default]
    Unknown,
}

/// Where one destination saw us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    /// Whom we sent to.
    pub(super) destination: SocketAddr,
    /// Where that came from, to them.
    pub(super) mapped: SocketAddr,
}

/// Returns the mapped address that most servers saw, and how many did; the first of them where as many saw others.
pub(super) fn elect(mapped: impl Iterator<Item = SocketAddr> + Clone) -> Option<(SocketAddr, usize)> {
    let votes = |one: SocketAddr| mapped.clone().filter(|&other| other == one).count();
    // `max_by_key` would take the last of equals.
    mapped.clone().map(|one| (one, votes(one))).reduce(|best, next| if next.1 > best.1 { next } else { best })
}

/// Returns the type of the NAT that explains the sightings.
///
/// It takes two destinations at different IP addresses. Where any two of them saw the same mapped address, the
/// mapping is the same for all: a symmetric NAT never does that, but one lying server among honest ones looks like
/// one.
pub(super) fn nat_type(sightings: &[Sighting], filtering: Filtering, local: &[IpAddr]) -> NatType {
    let pairs = || {
        let later = |index: usize| sightings[index + 1..].iter();
        let pairs = sightings
            .iter()
            .enumerate()
            .flat_map(move |(index, one)| later(index).map(move |two| (one, two)));
        pairs.filter(|(one, two)| one.destination.ip() != two.destination.ip())
    };
    let Some((_, _)) = pairs().next() else { return NatType::Unknown };
    let Some((agreed, _)) = pairs().find(|(one, two)| one.mapped == two.mapped) else {
        return NatType::Symmetric;
    };
    let is_ours = local.contains(&agreed.mapped.ip());
    match filtering {
        Filtering::EndpointIndependent if is_ours => NatType::Open,
        Filtering::Unknown if is_ours => NatType::Open,
        Filtering::EndpointIndependent => NatType::FullCone,
        Filtering::AddressDependent => NatType::Restricted,
        Filtering::AddressAndPortDependent | Filtering::Unknown => NatType::PortRestricted,
    }
}

/// Whether the provider, too, translates addresses: our own address is one that providers give out behind their NAT
/// (RFC 6598), or the mapped one is such that there must be another NAT behind the servers that saw it.
pub(super) fn is_carrier_grade(mapped: SocketAddr, local: &[IpAddr]) -> bool {
    let is_translated = !local.contains(&mapped.ip());
    is_translated && (local.iter().any(is_shared) || is_shared(&mapped.ip()) || is_private(&mapped.ip()))
}

/// Whether an address is one of those between providers' NATs and their customers' routers (RFC 6598).
pub(super) fn is_shared(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0b1100_0000 == 64)
}

fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: [&str; 1] = ["10.0.0.2"];

    fn ips(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|one| one.parse().unwrap()).collect()
    }

    fn sightings(all: &[(&str, &str)]) -> Vec<Sighting> {
        let one = |(destination, mapped): &(&str, &str)| Sighting {
            destination: destination.parse().unwrap(),
            mapped: mapped.parse().unwrap(),
        };
        all.iter().map(one).collect()
    }

    fn elected(all: &[&str]) -> Option<(String, usize)> {
        let all: Vec<SocketAddr> = all.iter().map(|one| one.parse().unwrap()).collect();
        elect(all.iter().copied()).map(|(address, votes)| (address.to_string(), votes))
    }

    /// X-23, W-X10: most servers decide, the first where none has a majority, one where there is only one.
    #[test]
    fn the_most_seen_address_is_taken() {
        let (a, b, c) = ("198.51.100.1:1", "198.51.100.1:2", "203.0.113.6:6");
        assert_eq!(elected(&[]), None);
        assert_eq!(elected(&[a]), Some((a.into(), 1)));
        assert_eq!(elected(&[a, b]), Some((a.into(), 1)));
        assert_eq!(elected(&[c, a, a]), Some((a.into(), 2)));
        assert_eq!(elected(&[a, c, a]), Some((a.into(), 2)));
        assert_eq!(elected(&[b, a, a, b]), Some((b.into(), 2)));
    }

    /// L-12, X-21, X-22, X-23: mapping and filtering make the type.
    #[test]
    fn mapping_and_filtering_make_the_type() {
        use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent, Unknown};
        let same = sightings(&[("192.0.2.1:3478", "198.51.100.1:1"), ("192.0.2.2:3478", "198.51.100.1:1")]);
        let differ = sightings(&[("192.0.2.1:3478", "198.51.100.1:1"), ("192.0.2.2:3478", "198.51.100.1:2")]);
        for (filtering, translated, open) in [
            (EndpointIndependent, NatType::FullCone, NatType::Open),
            (AddressDependent, NatType::Restricted, NatType::Restricted),
            (AddressAndPortDependent, NatType::PortRestricted, NatType::PortRestricted),
            (Unknown, NatType::PortRestricted, NatType::Open),
        ] {
            assert_eq!(nat_type(&same, filtering, &ips(&LOCAL)), translated);
            assert_eq!(nat_type(&same, filtering, &ips(&["10.0.0.2", "198.51.100.1"])), open);
            assert_eq!(nat_type(&differ, filtering, &ips(&LOCAL)), NatType::Symmetric);
            assert_eq!(nat_type(&same[..1], filtering, &ips(&LOCAL)), NatType::Unknown);
            assert_eq!(nat_type(&[], filtering, &ips(&LOCAL)), NatType::Unknown);
        }
    }

    /// two ports of one server are one destination to a NAT that maps by address.
    #[test]
    fn one_server_asked_twice_is_not_two() {
        let twice = sightings(&[("192.0.2.1:3478", "198.51.100.1:1"), ("192.0.2.1:3479", "198.51.100.1:1")]);
        assert_eq!(nat_type(&twice, Filtering::Unknown, &[]), NatType::Unknown);
    }

    #[test]
    fn one_liar_does_not_make_a_nat_symmetric() {
        let all = sightings(&[
            ("192.0.2.66:3478", "203.0.113.9:9"),
            ("192.0.2.1:3478", "198.51.100.1:1"),
            ("192.0.2.2:3478", "198.51.100.1:1"),
        ]);
        assert_eq!(nat_type(&all, Filtering::Unknown, &[]), NatType::PortRestricted);
    }

    #[test]
    fn a_second_nat_at_the_provider_is_recognised() {
        for (mapped, local, expected) in [
            ("198.51.100.1:1", &["100.64.3.4"][..], true),
            ("198.51.100.1:1", &["100.127.255.1"], true),
            ("198.51.100.1:1", &["100.128.0.1"], false),
            ("198.51.100.1:1", &["192.168.1.2"], false),
            ("100.64.0.9:1", &["192.168.1.2"], true),
            ("10.4.5.6:1", &["192.168.1.2"], true),
            ("10.4.5.6:1", &["10.4.5.6"], false),
            ("100.64.3.4:1", &["100.64.3.4"], false),
            ("[fd00::1]:1", &["fd12::1"], true),
        ] {
            assert_eq!(
                is_carrier_grade(mapped.parse().unwrap(), &ips(local)),
                expected,
                "{mapped} {local:?}"
            );
        }
    }
}
