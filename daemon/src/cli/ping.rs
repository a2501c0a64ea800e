//! `wgmesh ping`: how far away a peer's WireGuard is, and by which path.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;
use wgmesh_core::key::PublicKey;
use wgmesh_core::status::{Path, Peer, PeerState};

use super::peer::{self, label};
use super::{Error, status};
use crate::api::{Pong, client};
use crate::config::File;

/// From the begin of one ping to that of the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is printed for programs.
#[derive(Debug, Serialize)]
struct Account<'a> {
    public_key: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    /// How the tunnel goes.
    state: PeerState,
    /// Whether the tunnel goes by no third node.
    direct: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a Path>,
    /// Each ping in order; `null` where it was not answered.
    pings: Vec<Option<Round>>,
    #[serde(flatten)]
    summary: Summary,
    /// Why nothing was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Round {
    from: String,
    kind: String,
    rtt_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Summary {
    sent: usize,
    received: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ms: Option<f64>,
}

pub(super) fn run(config: &File, name: &str, count: u32, json: bool) -> Result<(), Error> {
    let socket = config.socket_path();
    let before = client::status(&socket)?;
    let key = peer::find(&before, name)?.public_key;
    let mut out = io::stdout();
    let mut pongs = Vec::new();
    let begin = Instant::now();
    for number in 0..count {
        let due = begin + INTERVAL * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let pong = client::ping(&socket, key)?;
        if !json {
            writeln!(out, "{}", line(pong.as_ref()))?;
        }
        pongs.push(pong);
    }
    // The pings themselves may have changed the path, and the reasons.
    let after = client::status(&socket)?;
    let peer = after.peers.iter().find(|peer| peer.public_key == key);
    let peer = peer.ok_or_else(|| Error::NoAnswer(name.to_owned(), "it was removed meanwhile".to_owned()))?;
    let why = pongs.iter().all(Option::is_none).then(|| reason(peer, config.nat.punching));
    if json {
        serde_json::to_writer_pretty(&mut out, &account(peer, &pongs, why.as_deref()))
            .map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", conclusion(peer, &pongs))?;
    }
    why.map_or(Ok(()), |why| Err(Error::NoAnswer(label(peer), why)))
}

fn line(pong: Option<&Pong>) -> String {
    match pong {
        Some(pong) => format!("answer from {} ({}) after {:.2} ms", pong.from, pong.kind, millis(pong)),
        None => "no answer".to_owned(),
    }
}

fn conclusion(peer: &Peer, pongs: &[Option<Pong>]) -> String {
    let Summary { sent, received, min_ms, avg_ms, max_ms } = summary(pongs);
    let times = match (min_ms, avg_ms, max_ms) {
        (Some(min), Some(avg), Some(max)) => format!("; min/avg/max {min:.2}/{avg:.2}/{max:.2} ms"),
        _ => String::new(),
    };
    let path = peer.path.as_ref().map(|path| format!(" by {}", status::path(path))).unwrap_or_default();
    format!(
        "{}: {sent} sent, {received} received{times}; the tunnel is {}{path}",
        label(peer),
        status::state(peer)
    )
}

fn account<'a>(peer: &'a Peer, pongs: &[Option<Pong>], why: Option<&'a str>) -> Account<'a> {
    let round =
        |pong: &Pong| Round { from: pong.from.to_string(), kind: pong.kind.clone(), rtt_ms: millis(pong) };
    Account {
        public_key: peer.public_key,
        hostname: peer.hostname.as_ref().map(|hostname| hostname.as_str()),
        state: peer.state,
        direct: peer.state == PeerState::Direct,
        path: peer.path.as_ref(),
        pings: pongs.iter().map(|pong| pong.as_ref().map(round)).collect(),
        summary: summary(pongs),
        why,
    }
}

fn summary(pongs: &[Option<Pong>]) -> Summary {
    let times: Vec<f64> = pongs.iter().flatten().map(millis).collect();
    let total: u64 = pongs.iter().flatten().map(|pong| pong.rtt_us).sum();
    let count = u64::try_from(times.len()).unwrap_or(u64::MAX);
    Summary {
        sent: pongs.len(),
        received: times.len(),
        min_ms: times.iter().copied().reduce(f64::min),
        avg_ms: total.checked_div(count).map(to_millis),
        max_ms: times.iter().copied().reduce(f64::max),
    }
}

fn millis(pong: &Pong) -> f64 {
    to_millis(pong.rtt_us)
}

fn to_millis(micros: u64) -> f64 {
    // More than an hour is no round trip.
    f64::from(u32::try_from(micros).unwrap_or(u32::MAX)) / 1000.0
}

fn reason(peer: &Peer, punching: bool) -> String {
    match (&peer.why, peer.state) {
        _ if !punching => "`nat.punching` is off on this host, so nothing is pinged".to_owned(),
        (Some(why), _) => why.clone(),
        (None, PeerState::Direct | PeerState::Relayed) => {
            "its tunnel had a handshake lately, but nothing answers between the WireGuard ports".to_owned()
        }
        (None, PeerState::Connecting | PeerState::Offline) => "no path to it is known yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::example;
    use super::*;

    fn pong(rtt_us: u64) -> Option<Pong> {
        Some(Pong { from: "192.168.7.2:51820".parse().unwrap(), kind: "lan".to_owned(), rtt_us })
    }

    #[test]
    fn pings_read_like_this() {
        let pongs = [pong(450), None, pong(1_250)];
        assert_eq!(line(pongs[0].as_ref()), "answer from 192.168.7.2:51820 (lan) after 0.45 ms");
        assert_eq!(line(None), "no answer");
        assert_eq!(
            conclusion(&example().peers[0], &pongs),
            "db1: 3 sent, 2 received; min/avg/max 0.45/0.85/1.25 ms; the tunnel is direct by lan 192.168.7.2:51820"
        );
        assert_eq!(
            conclusion(&example().peers[1], &[None]),
            "db2: 1 sent, 0 received; the tunnel is connecting"
        );
    }

    #[test]
    fn the_json_has_the_documented_names() {
        let status = example();
        let json =
            serde_json::to_value(account(&status.peers[0], &[pong(450), None, pong(1_250)], None)).unwrap();
        assert_eq!(json["hostname"], "db1");
        assert_eq!(json["state"], "direct");
        assert_eq!(json["direct"], true);
        assert_eq!(json["path"]["kind"], "lan");
        assert_eq!((&json["sent"], &json["received"]), (&3.into(), &2.into()));
        assert_eq!(json["pings"][0]["rtt_ms"], 0.45);
        assert_eq!(json["pings"][0]["from"], "192.168.7.2:51820");
        assert!(json["pings"][1].is_null());
        assert_eq!((&json["min_ms"], &json["max_ms"]), (&0.45.into(), &1.25.into()));
        assert!(json.get("why").is_none());

        let silent =
            serde_json::to_value(account(&status.peers[1], &[None], Some("nobody is home"))).unwrap();
        assert_eq!(silent["why"], "nobody is home");
        assert!(silent.get("min_ms").is_none(), "what is unknown is left out");
    }

    #[test]
    fn silence_has_a_reason() {
        let mut peer = example().peers[1].clone();
        assert!(reason(&peer, false).contains("`nat.punching` is off"));
        assert_eq!(reason(&peer, true), "no path to it is known yet");
        peer.why = Some("both NATs are symmetric".to_owned());
        assert_eq!(reason(&peer, true), "both NATs are symmetric");
    }
}
