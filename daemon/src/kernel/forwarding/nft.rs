//! Our table in nf_tables, and what the tables of others do to forwarded packets.
//!
//! The table is replaced in one batch, which the kernel takes as a whole or not at all, and known again by the texts of
//! its rules. Tables of others are only ever read.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    HookNumber, Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload,
    Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily as Family,
};
use nix::errno::Errno;
use nix::libc;
use wgmesh_core::forwarding::Rule;
use wgmesh_core::kernel::InterfaceName;

use super::super::error::Failure;
use super::super::socket::{Request, Socket};

/// The one chain of our table.
const CHAIN: &str = "forward";

/// Priority `filter`: after what changes destinations, beside everybody else who filters.
const PRIORITY: u32 = 0;

/// The type of a rule's comment in its user data, as `nft` writes it (libnftnl, `udata.h`).
const COMMENT: u8 = 0;

/// The verdicts and the policy of a chain (`linux/netfilter.h`).
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

type Expression = ListAttribute<ExpressionAttribute>;

/// Returns the name of a mesh's table, in the family `inet`.
pub(super) fn table_name(interface: &InterfaceName) -> String {
    format!("wgmesh-{interface}")
}

/// Reads the texts of the rules in our table, in their order; `None` without a table.
pub(super) fn read(socket: &mut Socket, table: &str) -> Result<Option<Vec<String>>, Failure> {
    match socket.get(message(Family::Inet, NfTablesMessage::GetTable(table_message(table)))) {
        Ok(_) => {}
        Err(failure) if failure.is(Errno::ENOENT) => return Ok(None),
        Err(failure) => return Err(failure),
    }
    let attributes = vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(CHAIN.to_owned())];
    let found = socket.dump(&message(Family::Inet, NfTablesMessage::GetRule(RuleMessage { attributes })))?;
    let texts = found.iter().filter_map(|message| match &message.inner {
        NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) => Some(comment(rule)),
        _ => None,
    });
    Ok(Some(texts.collect()))
}

/// Puts a table with these rules in the place of the one that may be there. Without rules there is no table afterwards.
pub(super) fn replace(socket: &mut Socket, interface: &InterfaceName, rules: &[Rule]) -> Result<(), Failure> {
    let table = table_name(interface);
    let new = |inner| Request { message: message(Family::Inet, inner), flags: NLM_F_CREATE };
    let add = || new(NfTablesMessage::NewTable(table_message(&table)));
    // A table can only be deleted where one is.
    let mut batch = vec![add(), new(NfTablesMessage::DeleteTable(table_message(&table)))];
    if !rules.is_empty() {
        batch.push(add());
        batch.push(new(NfTablesMessage::NewChain(chain_message(&table))));
        for rule in rules {
            let attributes = vec![
                RuleAttribute::Table(table.clone()),
                RuleAttribute::Chain(CHAIN.to_owned()),
                RuleAttribute::Expressions(expressions(rule, interface)),
                RuleAttribute::UserData(user_data(&rule.to_string())),
            ];
            let Request { message, flags } = new(NfTablesMessage::NewRule(RuleMessage { attributes }));
            batch.push(Request { message, flags: flags | NLM_F_APPEND });
        }
    }
    let mark = |inner| {
        NetfilterMessage::new(
            NetfilterHeader::new(Family::Unspec, 0, libc::NFNL_SUBSYS_NFTABLES as u16),
            inner,
        )
    };
    socket.execute_batch(mark(ControlMessage::BatchBegin), batch, mark(ControlMessage::BatchEnd))
}

/// Names the chains of others through which a family's packets pass at a hook, and which drop what they do not know.
pub(super) fn dropping_chains(
    socket: &mut Socket,
    ipv6: bool,
    hook: super::Hook,
) -> Result<Vec<String>, Failure> {
    let (family, name) = if ipv6 { (Family::IPv6, "ip6") } else { (Family::IPv4, "ip") };
    let mut dropping = Vec::new();
    for (family, name) in [(family, name), (Family::Inet, "inet")] {
        let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let found = socket.dump(&message(family, all))?;
        dropping.extend(found.iter().filter_map(|message| match &message.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) => {
                dropping_chain(chain, hook).map(|chain| format!("{name} {chain}"))
            }
            _ => None,
        }));
    }
    Ok(dropping)
}

fn dropping_chain(chain: &ChainMessage, hook: super::Hook) -> Option<String> {
    let wanted = Hook::Number(match hook {
        super::Hook::Input => InetHookNumber::LocalIn.into(),
        super::Hook::Forward => forward_hook(),
    });
    let (mut table, mut name, mut is_there, mut drops) = (None, None, false, false);
    for attribute in &chain.attributes {
        match attribute {
            ChainAttribute::Table(text) => table = Some(text),
            ChainAttribute::Name(text) => name = Some(text),
            ChainAttribute::Policy(policy) => drops = *policy == DROP,
            ChainAttribute::Hook(hook) => is_there = hook.contains(&wanted),
            _ => {}
        }
    }
    (is_there && drops).then_some(format!("{} {}", table?, name?))
}

fn forward_hook() -> HookNumber {
    InetHookNumber::Forward.into()
}

fn message(family: Family, inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

fn table_message(table: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] }
}

fn chain_message(table: &str) -> ChainMessage {
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(CHAIN.to_owned()),
            ChainAttribute::Hook(vec![Hook::Number(forward_hook()), Hook::Priority(PRIORITY)]),
            ChainAttribute::Policy(ACCEPT),
            ChainAttribute::Type("filter".to_owned()),
        ],
    }
}

/// Returns the text beside a rule; nothing for a rule that somebody else has put there.
fn comment(rule: &RuleMessage) -> String {
    let data = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::UserData(data) => Some(data.as_slice()),
        _ => None,
    });
    let text = data.filter(|data| data.first() == Some(&COMMENT)).and_then(|data| data.get(2..));
    text.map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()).unwrap_or_default()
}

fn user_data(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("a rule's text is short");
    [&[COMMENT, length], text.as_bytes(), &[0]].concat()
}

fn expressions(rule: &Rule, interface: &InterfaceName) -> Vec<Expression> {
    let (from_mesh, to_mesh) =
        (has_link(MetaKey::Iifname, interface.as_str()), has_link(MetaKey::Oifname, interface.as_str()));
    let (matches, verdict) = match rule {
        Rule::Between(from, to) => {
            let networks = [in_network(*from, Side::Source), in_network(*to, Side::Destination)].concat();
            (vec![from_mesh, to_mesh, networks], ACCEPT)
        }
        Rule::To(network) => (vec![from_mesh, in_network(*network, Side::Destination)], ACCEPT),
        Rule::From(network) => (vec![to_mesh, in_network(*network, Side::Source)], ACCEPT),
        Rule::Rest(link) => (vec![has_link(MetaKey::Iifname, link), has_family(false)], DROP),
    };
    matches.into_iter().flatten().chain([verdict_of(verdict)]).collect()
}

fn has_link(key: MetaKey, link: &str) -> Vec<Expression> {
    // Compared to its full length, as the kernel loads it (`IFNAMSIZ`).
    let mut name = link.as_bytes().to_vec();
    name.resize(libc::IFNAMSIZ, 0);
    vec![load(key), equals(name)]
}

fn has_family(ipv6: bool) -> Vec<Expression> {
    let family = if ipv6 { Family::IPv6 } else { Family::IPv4 };
    vec![load(MetaKey::Nfproto), equals(vec![family.into()])]
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

fn in_network(network: IpNet, side: Side) -> Vec<Expression> {
    let octets = |address| match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (mask, wanted) = (octets(network.netmask()), octets(network.network()));
    let length = u32::try_from(mask.len()).expect("4 or 16");
    // RFC 791 §3.1, RFC 8200 §3.
    let offset = match (network, side) {
        (IpNet::V4(_), Side::Source) => 12,
        (IpNet::V4(_), Side::Destination) => 16,
        (IpNet::V6(_), Side::Source) => 8,
        (IpNet::V6(_), Side::Destination) => 24,
    };
    let load = Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(libc::NFT_PAYLOAD_NETWORK_HEADER as u32),
        Payload::Offset(offset),
        Payload::Len(length),
    ]);
    let masked = Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(length),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ]);
    let mut all = has_family(network.addr().is_ipv6());
    all.extend([load.into(), masked.into(), equals(wanted)]);
    all
}

fn load(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)]).into()
}

fn equals(value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
    .into()
}

fn verdict_of(code: u32) -> Expression {
    let verdict = DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(code))]);
    Expressions::Immediate(vec![Immediate::DestinationRegister(Register::Verdict), Immediate::Data(verdict)])
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rules_text_is_read_back_as_it_was_written() {
        let text = Rule::To("10.7.0.0/24".parse().unwrap()).to_string();
        let rule = RuleMessage { attributes: vec![RuleAttribute::UserData(user_data(&text))] };
        assert_eq!(comment(&rule), text);
        assert_eq!(comment(&RuleMessage { attributes: Vec::new() }), "");
    }

    /// W-D46: a policy of another hook, or one that accepts, is no obstacle.
    #[test]
    fn only_a_chain_that_drops_packets_of_the_hook_is_named() {
        let chain = |hook: InetHookNumber, policy| ChainMessage {
            attributes: vec![
                ChainAttribute::Table("filter".to_owned()),
                ChainAttribute::Name("FORWARD".to_owned()),
                ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(0)]),
                ChainAttribute::Policy(policy),
            ],
        };
        let named = |hook, policy| dropping_chain(&chain(hook, policy), super::super::Hook::Forward);
        assert_eq!(named(InetHookNumber::Forward, DROP), Some("filter FORWARD".to_owned()));
        assert_eq!(named(InetHookNumber::Forward, ACCEPT), None);
        assert_eq!(named(InetHookNumber::LocalIn, DROP), None);
    }
}
