//! A TOML document read with the care that a human's typing needs: each problem is placed by line, column and
//! key, and comes with what would be right there.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use ipnet::{IpNet, Ipv4Net};
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use wgmesh_core::record::MAX_ROUTES;

/// Every key, and what it takes. A table is listed by its own name too.
const KEYS: [(&str, &str); 39] = [
    ("interface", "the name of the WireGuard link, such as \"wgmesh0\""),
    ("secret_file", "the path of a file with the secret, such as \"/etc/wgmesh/wgmesh0.secret\""),
    ("listen_port", "a UDP port from 0 to 65535, 0 for any that is free"),
    ("subnet", "an IPv4 network from /8 to /29, such as \"10.42.0.0/16\""),
    ("hostname", "a name, such as \"db1\""),
    ("state_dir", "the path of a directory, such as \"/var/lib/wgmesh\""),
    ("runtime_dir", "the path of a directory, such as \"/run/wgmesh\""),
    ("log_level", "one of \"error\", \"warn\", \"info\", \"debug\", \"trace\""),
    ("advertise_routes", "a list of networks, such as [\"192.168.7.0/24\"]"),
    ("accept_routes", "a list of networks, such as [\"192.168.0.0/16\"]"),
    ("discovery", "a table: [discovery]"),
    ("discovery.enabled_methods", "a list of methods, such as [\"lan\"]"),
    (
        "discovery.bootstrap_nodes",
        "a list of hosts, such as [\"mesh1.example.org\", \"203.0.113.7:51900#KEY\"]",
    ),
    ("discovery.dns_seeds", "a list of names, such as [\"nodes.example.org\"]"),
    ("discovery.static_peers", "a list of peers, such as [\"KEY\", \"KEY@203.0.113.7:51820\"]"),
    ("discovery.exchange_port", "a TCP port from 1 to 65535"),
    ("discovery.profile", "one of \"minimal\", \"standard\", \"bridge\""),
    ("discovery.target_peers", "a number of sessions from 1 to 255"),
    ("discovery.max_peers", "a number of sessions from 1 to 255"),
    ("discovery.max_peers_per_exchange", "a number of records from 1 to 64"),
    ("discovery.min_peer_age", "a number of seconds from 0 to 65535"),
    ("discovery.exchange_interval", "a number of seconds from 1 to 65535"),
    ("discovery.dht", "a table: [discovery.dht]"),
    ("discovery.dht.bootstrap", "a list of hosts, such as [\"dht.example.org:6881\"]"),
    ("discovery.dht.port", "a UDP port from 1 to 65535"),
    ("nat", "a table: [nat]"),
    ("nat.stun_servers", "a list of hosts, such as [\"stun.example.org:3478\"]"),
    ("nat.punching", "true or false"),
    ("relay", "a table: [relay]"),
    ("relay.mode", "one of \"sealed\", \"routed\", \"off\""),
    ("relay.force", "true or false"),
    ("relay.serve", "true or false"),
    ("relay.max_pairs", "a number of pairs from 1 to 65535"),
    ("relay.rate", "a number of Mbit/s from 1"),
    ("relay.pair_rate", "a number of Mbit/s from 1"),
    ("privacy", "a table: [privacy]"),
    ("privacy.dandelion", "true or false"),
    ("limits", "a table: [limits]"),
    ("limits.max_peers", "a number of peers from 1 to 65535"),
];

/// Something wrong at one place of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The dotted key it concerns, where it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if let Some(key) = &self.key {
            write!(f, "`{key}`: ")?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Reads a document into `T` and tells which keys it sets.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<(T, BTreeSet<String>), Problem> {
    let table = DeTable::parse(text).map_err(|error| from_toml(text, &[], &error))?;
    let mut entries = Vec::new();
    collect(table.get_ref(), "", &mut entries);
    if let Some(entry) = entries.iter().find(|entry| KEYS.iter().all(|(known, _)| *known != entry.key)) {
        return Err(unknown_key(text, entry));
    }
    let value =
        T::deserialize(toml::Deserializer::from(table)).map_err(|error| from_toml(text, &entries, &error))?;
    Ok((value, entries.into_iter().map(|entry| entry.key).collect()))
}

/// A key that is set somewhere in the document.
struct Entry {
    key: String,
    key_span: Range<usize>,
    value_span: Range<usize>,
}

fn collect(table: &DeTable<'_>, prefix: &str, entries: &mut Vec<Entry>) {
    for (name, value) in table.iter() {
        let key = format!("{prefix}{}", name.get_ref());
        // What is inside an unknown table would only repeat the complaint.
        let known = KEYS.iter().any(|(known, _)| *known == key);
        entries.push(Entry { key: key.clone(), key_span: Spanned::span(name), value_span: value.span() });
        if let (true, DeValue::Table(inner)) = (known, value.get_ref()) {
            collect(inner, &format!("{key}."), entries);
        }
    }
}

fn unknown_key(text: &str, entry: &Entry) -> Problem {
    let (prefix, _) = entry.key.rsplit_once('.').map_or(("", ""), |(table, name)| (table, name));
    let siblings = || {
        KEYS.iter()
            .map(|(known, _)| *known)
            .filter(|known| known.rsplit_once('.').map_or("", |(t, _)| t) == prefix)
    };
    let nearest = siblings().min_by_key(|known| strsim::osa_distance(known, &entry.key));
    let hint = match nearest {
        Some(known) if strsim::osa_distance(known, &entry.key) <= entry.key.len().div_ceil(3) => {
            format!("did you mean `{known}`?")
        }
        _ => format!("known here: {}", siblings().collect::<Vec<_>>().join(", ")),
    };
    let (line, column) = position(text, entry.key_span.start);
    Problem { line, column, key: Some(entry.key.clone()), message: "unknown key".into(), hint: Some(hint) }
}

fn from_toml(text: &str, entries: &[Entry], error: &toml::de::Error) -> Problem {
    let at = error.span().map_or(text.len(), |span| span.start);
    let (line, column) = position(text, at);
    // Tables come before what is in them, so the last match is the innermost.
    let entry = entries.iter().rfind(|entry| {
        entry.value_span.contains(&at) || entry.key_span.contains(&at) || entry.value_span.start == at
    });
    let expects = |entry: &Entry| KEYS.iter().find(|(known, _)| *known == entry.key).map(|(_, takes)| *takes);
    Problem {
        line,
        column,
        key: entry.map(|entry| entry.key.clone()),
        message: error.message().trim().replace('\n', ", "),
        hint: entry.and_then(expects).map(|takes| format!("it takes {takes}")),
    }
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Reads a mesh subnet. Smaller than /29 and there would be nothing to derive addresses from; larger than /8 and
/// it would swallow other people's networks.
pub(super) fn subnet<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Ipv4Net>, D::Error> {
    let net = Ipv4Net::deserialize(from)?;
    if !(8..=29).contains(&net.prefix_len()) {
        return Err(D::Error::custom(format!("/{} is no size for a mesh", net.prefix_len())));
    }
    if net.addr() != net.network() {
        return Err(D::Error::custom(format!("{net} has host bits set: write {}", net.trunc())));
    }
    if net.addr().is_loopback() || net.addr().is_multicast() || net.addr().is_link_local() {
        return Err(D::Error::custom(format!("hosts can't have addresses in {net}")));
    }
    Ok(Some(net))
}

/// Reads a list of networks, each without host bits.
pub(super) fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<IpNet>, D::Error> {
    let nets = BTreeSet::<IpNet>::deserialize(from)?;
    check_networks(&nets).map_err(D::Error::custom)?;
    Ok(nets)
}

/// Reads the list of networks that a node offers to others.
pub(super) fn offers<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<IpNet>, D::Error> {
    let nets = BTreeSet::<IpNet>::deserialize(from)?;
    check_offers(&nets).map_err(D::Error::custom)?;
    Ok(nets)
}

/// Finds out whether a node can offer these networks: its record holds only so many.
pub(super) fn check_offers(nets: &BTreeSet<IpNet>) -> Result<(), String> {
    check_networks(nets)?;
    match nets.len() {
        0..=MAX_ROUTES => Ok(()),
        count => Err(format!("{count} networks are more than the {MAX_ROUTES} that a node can tell of")),
    }
}

fn check_networks(nets: &BTreeSet<IpNet>) -> Result<(), String> {
    match nets.iter().find(|net| net.addr() != net.network()) {
        Some(net) => Err(format!("{net} has host bits set: write {}", net.trunc())),
        None => Ok(()),
    }
}

/// Reads a list of texts that each stand for something, so that what is wrong with one is placed there and not at the
/// list's begin.
pub(super) fn texts<'de, D, C>(from: D) -> Result<C, D::Error>
where
    D: Deserializer<'de>,
    C: IntoIterator + FromIterator<C::Item>,
    C::Item: TryFrom<String, Error = String>,
{
    let texts = Vec::<Text<C::Item>>::deserialize(from)?;
    Ok(texts.into_iter().map(|Text(item)| item).collect())
}

/// Reads a text that stands for something.
pub(super) fn text<'de, D: Deserializer<'de>, T: TryFrom<String, Error = String>>(
    from: D,
) -> Result<T, D::Error> {
    Text::deserialize(from).map(|Text(item)| item)
}

/// One text. It is parsed while the reader is at its place.
struct Text<T>(T);

impl<'de, T: TryFrom<String, Error = String>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextVisitor(PhantomData))
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: TryFrom<String, Error = String>> Visitor<'_> for TextVisitor<T> {
    type Value = Text<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text<T>, E> {
        T::try_from(text.to_owned()).map(Text).map_err(E::custom)
    }
}
