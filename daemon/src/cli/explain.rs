//! `wgmesh explain`: how one peer is reached, and why so.

use std::io::{self, Write};

use wgmesh_core::explanation::{Attempt, Explanation, LeftRelay, Tried};

use super::status::{self, units::ago};
use super::{Error, peer};
use crate::api::client;
use crate::config::File;

pub(super) fn show(config: &File, name: &str, json: bool) -> Result<(), Error> {
    let socket = config.socket_path();
    let known = client::status(&socket)?;
    let key = peer::find(&known, name)?.public_key;
    let explanation = client::explain(&socket, key)?.ok_or_else(|| peer::Unclear::unknown(&known, name))?;
    let mut out = io::stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, &explanation).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    Ok(lines(&explanation).iter().try_for_each(|line| writeln!(out, "{line}"))?)
}

fn lines(explanation: &Explanation) -> Vec<String> {
    let peer = &explanation.peer;
    let by = peer.path.as_ref().map(|path| format!(" by {}", status::path(path))).unwrap_or_default();
    let since = explanation.since_s.filter(|_| peer.path.is_some());
    let since = since.map(|seconds| format!(", since {}", ago(seconds))).unwrap_or_default();
    let mut lines = vec![format!("{} is {}{by}{since}", peer::label(peer), status::state(peer))];
    if let Some(seconds) = peer.last_handshake_s {
        let seen = peer.handshake_seen_s.map(|seconds| format!("; eBPF saw one answered {}", ago(seconds)));
        lines.push(format!("  handshake  {}{}", ago(seconds), seen.unwrap_or_default()));
    }
    lines.push(format!("  known by   {}", peer.sources.join(", ")));
    lines.push(format!("  search     {}", explanation.search));
    lines.extend(explanation.attempts.iter().map(|attempt| format!("  attempt    {}", past(attempt))));
    lines.extend(explanation.earlier.iter().map(|earlier| {
        let by = earlier.routed_by.map(|relay| format!(", routed by {relay}")).unwrap_or_default();
        format!("  before     {}{by}, left {}", earlier.endpoint, ago(earlier.left_s))
    }));
    lines.extend(explanation.left_relays.iter().map(|left| {
        let LeftRelay { relay, times, rests_s } = left;
        let times = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
        let rest = if *rests_s > 0 { format!("; not asked for {rests_s} s") } else { String::new() };
        format!("  relay      {relay} has failed {times}{rest}")
    }));
    lines.extend(explanation.candidates.iter().map(|tried| format!("  tried      {}", one(tried))));
    lines.extend(explanation.reasons.iter().map(|reason| format!("  why        {reason}")));
    lines
}

fn past(attempt: &Attempt) -> String {
    let outcome = match (attempt.found, attempt.took_ms) {
        (Some(address), Some(millis)) => format!("found {address} after {millis} ms"),
        (Some(address), None) => format!("found {address}"),
        (None, _) => "found nothing".to_owned(),
    };
    format!("began {}: {outcome}", ago(attempt.begun_s))
}

fn one(tried: &Tried) -> String {
    let Tried { address, kind, named_by, in_use, answered_s, rtt_us } = tried;
    let answer = match (answered_s, rtt_us) {
        (Some(seconds), Some(micros)) => {
            let millis = f64::from(u32::try_from(*micros).unwrap_or(u32::MAX)) / 1000.0;
            format!("answered {} after {millis:.1} ms", ago(*seconds))
        }
        (Some(seconds), None) => format!("answered {}", ago(*seconds)),
        (None, _) => "no answer".to_owned(),
    };
    let mark = if *in_use { "; in use" } else { "" };
    format!("{address} ({kind}, named by {named_by}): {answer}{mark}")
}

#[cfg(test)]
mod tests {
    use wgmesh_core::explanation::Earlier;

    use super::super::status::tests::example;
    use super::*;

    /// P-2: with what was tried and how long that took.
    #[test]
    fn an_explanation_reads_like_this() {
        let peer = example().peers[0].clone();
        let relay = peer.public_key;
        let tried = |address: &str, answered_s: Option<u64>| Tried {
            address: address.parse().unwrap(),
            kind: "lan".to_owned(),
            named_by: "record".to_owned(),
            in_use: answered_s.is_some(),
            answered_s,
            rtt_us: answered_s.map(|_| 450),
        };
        let explanation = Explanation {
            peer,
            since_s: Some(7),
            earlier: vec![
                Earlier { endpoint: "198.51.100.7:1".parse().unwrap(), routed_by: None, left_s: 7 },
                Earlier { endpoint: "198.51.100.8:1".parse().unwrap(), routed_by: Some(relay), left_s: 60 },
            ],
            left_relays: vec![LeftRelay { relay, times: 3, rests_s: 4 }],
            candidates: vec![tried("192.168.7.2:51820", Some(2)), tried("192.168.8.2:51820", None)],
            search: "an attempt is under way".to_owned(),
            attempts: vec![
                Attempt { begun_s: 1, found: None, took_ms: None },
                Attempt { begun_s: 9, found: "192.168.7.2:51820".parse().ok(), took_ms: Some(35) },
            ],
            reasons: vec!["there is nothing better".to_owned()],
        };
        let text = lines(&explanation).join("\n");
        println!("{text}");
        for part in [
            "db1 is direct by lan 192.168.7.2:51820, since 7 s ago",
            "search     an attempt is under way",
            "attempt    began 1 s ago: found nothing",
            "attempt    began 9 s ago: found 192.168.7.2:51820 after 35 ms",
            "before     198.51.100.7:1, left 7 s ago",
            &format!("before     198.51.100.8:1, routed by {relay}, left "),
            &format!("relay      {relay} has failed 3 times; not asked for 4 s"),
            "192.168.7.2:51820 (lan, named by record): answered 2 s ago after 0.5 ms; in use",
            "192.168.8.2:51820 (lan, named by record): no answer",
            "why        there is nothing better",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
