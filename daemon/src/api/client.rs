//! The command line's end of the local API: one request, one answer, no runtime.
//!
//! It speaks HTTP/1.0, to which a server answers with a body that is neither chunked nor followed by anything,
//! so that reading to the end is the whole protocol.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use wgmesh_core::explanation::Explanation;
use wgmesh_core::key::PublicKey;
use wgmesh_core::status::Status;
use wgmesh_core::stun::Report;

use super::routes::{Leaving, Pong, Target};
use crate::config::Reloaded;
use crate::pins::{Pin, Pins, Removal};

/// A little more than the server's own patience, so that its explanation arrives first.
const TIMEOUT: Duration = Duration::from_secs(7);

/// How long a daemon may take to withdraw everything: as long as systemd gives it, `TimeoutStopSec=`.
const LEAVE_PATIENCE: Duration = Duration::from_secs(15);

/// How often it is looked whether a daemon that leaves is gone.
const LEAVE_POLL: Duration = Duration::from_millis(20);

/// More than the status of the largest mesh takes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// A daemon that gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no daemon is running for this mesh: nothing answers at {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket is not ours to use.
    #[error("no permission to use {}: run as root", .0.display())]
    Permission(PathBuf),
    /// The conversation broke off.
    #[error("cannot talk to the daemon at {}: {source}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon answered that it cannot.
    #[error("the daemon refused: {0}")]
    Refused(String),
    /// It said that it would leave, and runs on.
    #[error("the daemon was asked to leave and is still there after {} s", LEAVE_PATIENCE.as_secs())]
    StillThere,
    /// The answer makes no sense, as from a daemon of another version.
    #[error("cannot understand the daemon's answer ({0}); if it was upgraded, restart it")]
    Malformed(String),
}

/// Asks the daemon behind a socket for its status.
///
/// # Errors
/// [`Error`] if there is no daemon, no permission or no usable answer.
pub fn status(socket: &Path) -> Result<Status, Error> {
    ask(socket, "GET", "/v1/status", &())
}

/// Has the daemon ask its STUN servers anew, and returns what it then knows. Takes up to 5 s.
///
/// # Errors
/// As [`status`].
pub fn netcheck(socket: &Path) -> Result<Report, Error> {
    ask(socket, "POST", "/v1/netcheck", &())
}

/// Has the daemon ping a peer once. `None` if the peer does not answer within 2 s.
///
/// # Errors
/// As [`status`].
pub fn ping(socket: &Path, key: PublicKey) -> Result<Option<Pong>, Error> {
    ask(socket, "POST", "/v1/ping", &Target { key })
}

/// Names a peer or a node to the daemon.
///
/// # Errors
/// As [`status`], and [`Error::Refused`] with the daemon's reason.
pub fn add_peer(socket: &Path, pin: &Pin) -> Result<(), Error> {
    ask::<Result<(), String>>(socket, "POST", "/v1/peers/add", pin)?.map_err(Error::Refused)
}

/// Has the daemon let go of a peer or a node. Returns whether it was there.
///
/// # Errors
/// As [`status`].
pub fn remove_peer(socket: &Path, removal: &Removal) -> Result<bool, Error> {
    ask(socket, "POST", "/v1/peers/remove", removal)
}

/// Asks the daemon whom the operator has named.
///
/// # Errors
/// As [`status`].
pub fn pins(socket: &Path) -> Result<Pins, Error> {
    ask(socket, "GET", "/v1/pins", &())
}

/// Asks the daemon how a peer is reached and why so. `None` if it does not know the peer.
///
/// # Errors
/// As [`status`].
pub fn explain(socket: &Path, key: PublicKey) -> Result<Option<Explanation>, Error> {
    ask(socket, "POST", "/v1/explain", &Target { key })
}

/// Has the daemon say goodbye, take everything back and end, and waits until it has.
///
/// # Errors
/// As [`status`], and [`Error::StillThere`] if it takes too long.
pub fn leave(socket: &Path, leaving: Leaving) -> Result<(), Error> {
    ask::<()>(socket, "POST", "/v1/leave", &leaving)?;
    let end = Instant::now() + LEAVE_PATIENCE;
    while Instant::now() < end {
        match UnixStream::connect(socket) {
            // It goes away with the process, or is left behind by it.
            Err(_) => return Ok(()),
            Ok(_) => std::thread::sleep(LEAVE_POLL),
        }
    }
    Err(Error::StillThere)
}

/// Has the daemon read its configuration anew. Returns what came of it.
///
/// # Errors
/// As [`status`], and [`Error::Refused`] with what is wrong in the configuration.
pub fn reload(socket: &Path) -> Result<Reloaded, Error> {
    ask::<Result<Reloaded, String>>(socket, "POST", "/v1/reload", &())?.map_err(Error::Refused)
}

fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    path: &str,
    question: &impl Serialize,
) -> Result<T, Error> {
    let malformed = |error: serde_json::Error| Error::Malformed(error.to_string());
    let question = serde_json::to_vec(question).map_err(malformed)?;
    let answer = exchange(socket, method, path, &question).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning(socket.into()),
        io::ErrorKind::PermissionDenied => Error::Permission(socket.into()),
        _ => Error::Io { socket: socket.into(), source },
    })?;
    serde_json::from_slice(&body(answer)?).map_err(malformed)
}

fn exchange(socket: &Path, method: &str, path: &str, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let length = question.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), question].concat())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Splits an answer at the empty line (RFC 1945 §6) and returns its body if the status is 200.
fn body(mut answer: Vec<u8>) -> Result<Vec<u8>, Error> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let malformed = || Error::Malformed("it is no HTTP".to_owned());
    let split =
        answer.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD).ok_or_else(malformed)?;
    let body = answer.split_off(split + END_OF_HEAD.len());
    let head = String::from_utf8_lossy(&answer);
    let code = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).ok_or_else(malformed)?;
    match code.trim() {
        "200" => Ok(body),
        code if body.is_empty() => Err(Error::Refused(format!("HTTP status {code}"))),
        _ => Err(Error::Refused(String::from_utf8_lossy(&body).into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_has_a_body() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\na: b\r\n\r\n{}\r\n\r\n".to_vec()).unwrap(), b"{}\r\n\r\n");
        for (answer, expected) in [
            (&b"HTTP/1.0 503 Service Unavailable\r\n\r\ntoo busy"[..], "the daemon refused: too busy"),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", "the daemon refused: HTTP status 404"),
            (b"", "it is no HTTP"),
            (b"HTTP/1.0 200 OK\r\n", "it is no HTTP"),
            (b"SSH-2.0-x\r\n\r\n", "it is no HTTP"),
        ] {
            let error = body(answer.to_vec()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
