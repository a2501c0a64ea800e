//! What the host passes on for the mesh, and what of it we switch on: one pure function, [`decide`].
//!
//! A host passes on an IPv4 packet if forwarding is on for the link that it came in on. Where that is off and the mesh
//! needs it, we switch it on for that link alone, and keep everything else as it was: a packet that would not have been
//! passed on before still is not, unless it goes between the mesh and a network that this node advertises, or between two
//! peers that have asked for it.
//!
//! Invariants:
//! - What was switched on is written down in the rules ([`Rule::Rest`]) before it is switched on, and switched off before
//!   the rules go. So it is taken back even after a crash, and by whichever process comes next.
//! - Where the host forwards on all links, by the operator's own will or by Docker's, nothing is ours to switch.
//! - IPv6 has one switch for the whole host, and turning it on takes away default routes that came by router
//!   advertisements. That is for the operator to decide, and only reported.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::kernel::InterfaceName;

/// What the host is to pass on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Networks behind this node, which the mesh reaches through it.
    pub networks: BTreeSet<IpNet>,
    /// Networks of peers between which packets go on, from the first to the second.
    pub between: BTreeSet<(IpNet, IpNet)>,
}

impl Forwarding {
    /// Whether nothing is to be passed on.
    pub fn is_nothing(&self) -> bool {
        self.networks.is_empty() && self.between.is_empty()
    }

    /// Whether something of IPv4 is to be passed on, or of IPv6.
    pub fn has_family(&self, ipv6: bool) -> bool {
        let of_peers = self.between.iter().map(|(from, _)| from);
        self.networks.iter().chain(of_peers).any(|network| network.addr().is_ipv6() == ipv6)
    }
}

/// One rule of our chain, in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// From a network of one peer to one of another: accepted.
    Between(IpNet, IpNet),
    /// From the mesh to a network behind this node: accepted.
    To(IpNet),
    /// From such a network to the mesh: accepted.
    From(IpNet),
    /// Any other IPv4 packet that comes in on a link that passes packets on only because of us: dropped.
    Rest(String),
}

/// What stands before the link's name in the text of [`Rule::Rest`].
const SWITCHED_ON: &str = "forwarding switched on: ";

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between(from, to) => write!(f, "between peers, {from} to {to}"),
            Self::To(network) => write!(f, "to {network}"),
            Self::From(network) => write!(f, "from {network}"),
            Self::Rest(link) => write!(f, "{SWITCHED_ON}{link}"),
        }
    }
}

/// The host as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Whether IPv4 forwarding is on for all links, and so for those to come.
    pub everywhere: bool,
    /// The links, and whether IPv4 forwarding is on for each.
    pub links: BTreeMap<String, bool>,
    /// The links through which each network behind this node is reached.
    pub ways: BTreeMap<IpNet, BTreeSet<String>>,
    /// The texts of the rules in our table; `None` without a table.
    pub rules: Option<Vec<String>>,
    /// What this process has switched on, in case somebody took our table away.
    pub switched: BTreeSet<String>,
}

/// What is to be done about it, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Links whose IPv4 forwarding goes off.
    pub off: BTreeSet<String>,
    /// The table's new rules, if it must change; without rules there is to be no table.
    pub rules: Option<Vec<Rule>>,
    /// Links whose IPv4 forwarding goes on.
    pub on: BTreeSet<String>,
    /// The links that pass packets on because of us, once all is done.
    pub switched: BTreeSet<String>,
}

/// Decides what makes the host pass on what is wanted and no more.
pub fn decide(want: &Forwarding, interface: &InterfaceName, host: &Host) -> Change {
    let noted = host.rules.iter().flatten().filter_map(|text| text.strip_prefix(SWITCHED_ON));
    let before: BTreeSet<String> = noted.map(str::to_owned).chain(host.switched.iter().cloned()).collect();
    let needed = if host.everywhere { BTreeSet::new() } else { needed_links(want, interface, host) };
    let is_on = |link: &String| host.links.get(link) == Some(&true);
    let switched: BTreeSet<String> =
        needed.iter().filter(|link| !is_on(link) || before.contains(*link)).cloned().collect();
    // On every link it is on by somebody else's will, ours among them.
    let is_to_go = |link: &&String| !host.everywhere && !needed.contains(*link) && is_on(link);
    let rules = rules(want, &switched);
    let texts: Vec<String> = rules.iter().map(ToString::to_string).collect();
    let is_right =
        host.rules.as_deref().unwrap_or_default() == texts && host.rules.is_some() != texts.is_empty();
    Change {
        off: before.iter().filter(is_to_go).cloned().collect(),
        rules: (!is_right).then_some(rules),
        on: needed.into_iter().filter(|link| !is_on(link)).collect(),
        switched,
    }
}

/// Returns the links on which IPv4 packets must be let in, as far as they are there.
fn needed_links(want: &Forwarding, interface: &InterfaceName, host: &Host) -> BTreeSet<String> {
    let behind = want.networks.iter().filter(|network| network.addr().is_ipv4());
    let ways = behind.filter_map(|network| host.ways.get(network)).flatten().cloned();
    let own = want.has_family(false).then(|| interface.as_str().to_owned());
    own.into_iter().chain(ways).filter(|link| host.links.contains_key(link)).collect()
}

fn rules(want: &Forwarding, switched: &BTreeSet<String>) -> Vec<Rule> {
    let between = want.between.iter().map(|&(from, to)| Rule::Between(from, to));
    let networks = want.networks.iter().flat_map(|&network| [Rule::To(network), Rule::From(network)]);
    let rest = switched.iter().cloned().map(Rule::Rest);
    between.chain(networks).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(networks: &[&str]) -> Forwarding {
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        Forwarding { networks, between: BTreeSet::new() }
    }

    fn between(from: &str, to: &str) -> Forwarding {
        let [from, to] = [from, to].map(|text| text.parse().unwrap());
        Forwarding { networks: BTreeSet::new(), between: [(from, to), (to, from)].into() }
    }

    /// A host with the mesh's link, two others, and a network behind the second.
    fn host(on: &[&str]) -> Host {
        let links = ["wgmesh0", "eth0", "eth1"].map(|name| (name.to_owned(), on.contains(&name)));
        let ways = [("10.7.0.0/24".parse().unwrap(), ["eth1".to_owned()].into())];
        Host { links: links.into(), ways: ways.into(), ..Host::default() }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn decide(want: &Forwarding, host: &Host) -> Change {
        super::decide(want, &"wgmesh0".parse().unwrap(), host)
    }

    /// Carries a change out on the model.
    fn follow(host: &mut Host, change: &Change) {
        for (links, state) in [(&change.off, false), (&change.on, true)] {
            host.links.extend(links.iter().map(|link| (link.clone(), state)));
        }
        if let Some(rules) = &change.rules {
            host.rules = (!rules.is_empty()).then(|| rules.iter().map(ToString::to_string).collect());
        }
        host.switched.clone_from(&change.switched);
    }

    /// W-D45, W-D46: the two links that need it are switched on, and nothing else comes through them.
    #[test]
    fn a_network_behind_a_host_needs_two_links_and_leaves_the_others_alone() {
        let mut host = host(&[]);
        let network = "10.7.0.0/24".parse().unwrap();
        let change = decide(&want(&["10.7.0.0/24"]), &host);
        let rules = vec![
            Rule::To(network),
            Rule::From(network),
            Rule::Rest("eth1".to_owned()),
            Rule::Rest("wgmesh0".to_owned()),
        ];
        assert_eq!((change.on.clone(), change.rules.clone()), (names(&["eth1", "wgmesh0"]), Some(rules)));
        follow(&mut host, &change);
        let again = decide(&want(&["10.7.0.0/24"]), &host);
        assert_eq!(
            (again.on.len(), again.off.len(), again.rules),
            (0, 0, None),
            "a converged host is left alone"
        );
    }

    /// W-D46: after a crash too, when only the rules still tell what was switched on.
    #[test]
    fn what_was_switched_on_is_switched_off_again_and_nothing_else() {
        let mut host = host(&["eth0"]);
        let change = decide(&want(&["10.7.0.0/24"]), &host);
        follow(&mut host, &change);
        host.switched.clear();
        let change = decide(&Forwarding::default(), &host);
        assert_eq!(change.off, names(&["eth1", "wgmesh0"]));
        assert_eq!(change.rules, Some(Vec::new()));
        follow(&mut host, &change);
        assert_eq!(host.links.values().filter(|on| **on).count(), 1, "eth0 forwards by somebody else's will");
        assert_eq!(decide(&Forwarding::default(), &host), Change::default());
    }

    /// A flushed ruleset must not make what we switched on look like the operator's.
    #[test]
    fn a_table_that_somebody_took_away_comes_back_whole() {
        let mut host = host(&[]);
        let wanted = want(&["10.7.0.0/24"]);
        let change = decide(&wanted, &host);
        follow(&mut host, &change);
        host.rules = None;
        assert_eq!(decide(&wanted, &host).rules, change.rules);
    }

    /// Docker and `sysctl net.ipv4.ip_forward=1` mean all links: what is passed on there is not ours to drop.
    #[test]
    fn on_a_host_that_forwards_everywhere_nothing_is_switched_and_nothing_dropped() {
        let mut host = host(&[]);
        let wanted = want(&["10.7.0.0/24"]);
        let change = decide(&wanted, &host);
        follow(&mut host, &change);
        host.everywhere = true;
        host.links.values_mut().for_each(|on| *on = true);
        let change = decide(&wanted, &host);
        let network = "10.7.0.0/24".parse().unwrap();
        assert_eq!(change.rules, Some(vec![Rule::To(network), Rule::From(network)]));
        assert!(change.on.is_empty() && change.off.is_empty() && change.switched.is_empty());
        follow(&mut host, &change);
        let gone = decide(&Forwarding::default(), &host);
        assert!(gone.off.is_empty(), "it stays on for whoever wanted it");
    }

    /// W-D46: what two peers have asked for goes through, and nothing between others.
    #[test]
    fn only_between_peers_that_asked_are_packets_passed_on() {
        let wanted = between("10.1.0.1/32", "10.1.0.2/32");
        let mut host = host(&[]);
        let change = decide(&wanted, &host);
        let [one, other] = ["10.1.0.1/32", "10.1.0.2/32"].map(|text| text.parse().unwrap());
        let rules =
            vec![Rule::Between(one, other), Rule::Between(other, one), Rule::Rest("wgmesh0".to_owned())];
        assert_eq!((change.on.clone(), change.rules.clone()), (names(&["wgmesh0"]), Some(rules)));
        follow(&mut host, &change);
        assert_eq!(decide(&wanted, &host).rules, None);
        let gone = decide(&Forwarding::default(), &host);
        assert_eq!((gone.off, gone.rules), (names(&["wgmesh0"]), Some(Vec::new())));
        let change = decide(&between("fd01::1/128", "fd01::2/128"), &super::tests::host(&[]));
        assert!(change.on.is_empty(), "IPv6 has no switch of a link");
    }

    #[test]
    fn an_ipv6_network_switches_nothing_of_ipv4() {
        let change = decide(&want(&["fd07::/64"]), &host(&[]));
        assert!(change.on.is_empty());
        assert_eq!(change.rules.map(|rules| rules.len()), Some(2));
    }
}
