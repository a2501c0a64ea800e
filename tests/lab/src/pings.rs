//! A stream of pings through a tunnel: which of them were answered, and when.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::host::{Host, Process};

/// An answered ping.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// Its place in the stream, from one on.
    pub sequence: u32,
    /// When the answer came.
    pub at: SystemTime,
}

/// Pings that go on in the background.
pub struct Pings {
    ping: Process,
    output: PathBuf,
}

/// What came of a stream.
#[derive(Clone, Debug)]
pub struct Replies {
    /// The answered ones, in the order of their answers.
    pub replies: Vec<Reply>,
    /// When the stream ended.
    pub end: SystemTime,
}

impl Pings {
    /// Starts to ping, each time with so many bytes behind ICMP's header.
    #[track_caller]
    pub fn start(from: &Host, target: impl Into<IpAddr>, interval: Duration, bytes: u32) -> Self {
        let target = target.into();
        let output = from.folder().join(format!("pings-{target}"));
        // Into a file: nobody reads a pipe until the end, and it holds few lines.
        let line = format!(
            "exec ping -n -D -i {} -s {bytes} {target} > '{}'",
            interval.as_secs_f64(),
            output.display()
        );
        Self { ping: from.spawn(["sh", "-c", &line]), output }
    }

    /// Ends the stream and returns what came of it.
    ///
    /// # Panics
    /// Where `ping` wrote nothing.
    pub fn finish(self) -> Replies {
        let end = SystemTime::now();
        self.ping.interrupt();
        let text = fs::read_to_string(&self.output).expect("the shell has made the file");
        Replies { replies: text.lines().filter_map(reply).collect(), end }
    }
}

impl Replies {
    /// Returns how many were sent before the last one that was answered, it included.
    pub fn sent(&self) -> usize {
        self.replies.iter().map(|reply| reply.sequence as usize).max().unwrap_or_default()
    }

    /// Returns the longest time without an answer after a moment.
    pub fn longest_silence(&self, after: SystemTime) -> Duration {
        let later = self.replies.iter().map(|reply| reply.at).filter(|at| *at > after).chain([self.end]);
        let mut last = after;
        let mut longest = Duration::ZERO;
        for at in later {
            longest = longest.max(at.duration_since(last).unwrap_or_default());
            last = last.max(at);
        }
        longest
    }

    /// Returns how many pings between the first answer after a moment and the last one were not answered.
    pub fn lost_after(&self, after: SystemTime) -> usize {
        let mut later: Vec<_> =
            self.replies.iter().filter(|reply| reply.at > after).map(|reply| reply.sequence).collect();
        later.sort_unstable();
        later.dedup();
        match later[..] {
            [first, .., last] => (last - first) as usize + 1 - later.len(),
            [_] | [] => 0,
        }
    }
}

/// Reads a line like `[1700000000.123456] 64 bytes from 10.0.0.1: icmp_seq=7 ttl=64 time=0.5 ms`.
fn reply(line: &str) -> Option<Reply> {
    let (stamp, rest) = line.strip_prefix('[')?.split_once(']')?;
    let at = UNIX_EPOCH + Duration::from_secs_f64(stamp.parse().ok()?);
    let (_, rest) = rest.split_once("bytes from")?.1.split_once("icmp_seq=")?;
    let sequence = rest.split(' ').next()?.parse().ok()?;
    Some(Reply { sequence, at })
}
