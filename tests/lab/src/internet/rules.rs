//! A router's nftables rules.
//!
//! Linux keeps ports by itself where it can, and lets back in only what answers: that is the port-restricted cone. The
//! wider filters note which inner host owns a public port, and to whom it has sent; the mappings that do not keep ports
//! name the port, or have it drawn. What nobody asked for is dropped before Linux remembers it: a flow of the router's
//! own would take the port from the inner host's. Some kernels show
//! these rules what passes between two ports of one bridge; that is none of the router's business.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Which public port an inner one gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The same, for all destinations.
    Keeping,
    /// Another one, for all destinations.
    Rewriting,
    /// A random one for each destination.
    Random,
}

/// Who may send to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filtering {
    /// Everybody.
    None,
    /// The addresses that the inner host has sent to.
    Address,
    /// The addresses and ports that the inner host has sent to.
    AddressAndPort,
}

/// The first of the inner ports that a rewriting router maps: WireGuard's usual one.
const FIRST_PORT: u16 = 51820;

/// How many inner ports a rewriting router maps. Others are kept.
const PORTS: u16 = 4;

/// IPv6 is not translated: whoever was not asked is kept out.
const IPV6_RULES: &str = r#"
table ip6 lab
delete table ip6 lab
table ip6 lab {
    chain forward {
        type filter hook forward priority 0; policy drop;
        iifname "lan0" oifname "lan0" accept
        iifname "lan*" oifname "eth0" accept
        ct state established,related accept
    }
}"#;

/// What a router does.
pub(super) struct Rules {
    pub(super) mapping: Mapping,
    pub(super) filtering: Filtering,
    pub(super) public: Ipv4Addr,
    pub(super) hairpin: bool,
    pub(super) lifetime: Duration,
    /// Counts the flushes, so that the ports of a rewriting router differ after each.
    pub(super) generation: u16,
}

impl Rules {
    /// Returns a file for `nft -f` that replaces all rules, and forgets what they noted.
    pub(super) fn text(&self) -> String {
        let (inward, outward, hairpin) = (self.inward(), self.outward(), self.hairpin());
        let (public, lifetime) = (self.public, self.lifetime.as_secs());
        format!(
            r#"{IPV6_RULES}
table ip lab
delete table ip lab
table ip lab {{
    counter sent_packets {{ }}
    counter sent_flows {{ }}
    map owners {{ type inet_service : ipv4_addr; flags dynamic, timeout; timeout {lifetime}s; }}
    set partners {{ type inet_service . ipv4_addr; flags dynamic, timeout; timeout {lifetime}s; }}
    chain turning {{
        type filter hook prerouting priority -150;
        iifname "lan*" ip daddr {public} meta mark set 1
    }}
    chain inward {{
        type nat hook prerouting priority -100;
        {inward}
        {hairpin}
    }}
    chain outward {{
        type nat hook postrouting priority 100;
        meta mark 1 snat to {public}
        oifname "eth0" meta l4proto udp ip daddr != 192.0.2.0/24 counter name sent_flows
        {outward}
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        iifname "lan0" oifname "lan0" accept
        iifname "lan1" oifname "lan1" accept
        iifname "lan*" oifname "eth0" meta l4proto udp ip daddr != 192.0.2.0/24 counter name sent_packets
        iifname "lan*" meta l4proto udp update @owners {{ udp sport : ip saddr }}
        iifname "lan*" meta l4proto udp update @partners {{ udp sport . ip daddr }}
        iifname "lan*" oifname "eth0" accept
        ct state established,related accept
        ct status dnat accept
    }}
    chain input {{
        type filter hook input priority 0; policy drop;
        meta l4proto icmp accept
        ct state established,related accept
    }}
}}
"#
        )
    }

    fn inward(&self) -> &'static str {
        match self.filtering {
            Filtering::None => r#"iifname "eth0" dnat to udp dport map @owners"#,
            Filtering::Address => {
                r#"iifname "eth0" udp dport . ip saddr @partners dnat to udp dport map @owners"#
            }
            Filtering::AddressAndPort => "",
        }
    }

    fn hairpin(&self) -> String {
        assert!(
            !self.hairpin || self.mapping == Mapping::Keeping,
            "hairpinning needs a NAT that keeps ports"
        );
        if self.hairpin {
            format!(r#"iifname "lan*" ip daddr {} dnat to udp dport map @owners"#, self.public)
        } else {
            String::new()
        }
    }

    fn outward(&self) -> String {
        let mut rules = String::new();
        if self.mapping == Mapping::Rewriting {
            for number in 0..PORTS {
                let (inner, outer) = (FIRST_PORT + number, 40020 + 100 * self.generation + number);
                writeln!(rules, r#"oifname "eth0" udp sport {inner} snat to {}:{outer}"#, self.public)
                    .expect("a string takes all");
            }
        }
        let random = if self.mapping == Mapping::Random { " fully-random" } else { "" };
        write!(rules, r#"oifname "eth0" masquerade{random}"#).expect("a string takes all");
        rules
    }
}
