//! The daemon's answers to the command line: HTTP/1.1 and JSON on `<runtime_dir>/<interface>.sock`.
//!
//! Only root and the daemon's own user may ask: the socket is 0600, and the peer's credentials are checked too.
//! The server holds no state. It asks the mesh task through a bounded channel; when that is full the caller
//! waits, and after a few seconds is told that the daemon is busy. What takes the network's time, as a ping, is asked for
//! and then looked after again and again: no question ever holds up the mesh.
//!
//! [`Lock`] makes sure that one process serves a mesh. The kernel gives it back when the process dies, however
//! it dies, so a socket found under the lock is a left-over and is replaced.

pub mod client;
mod routes;

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::serve::Listener;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use wgmesh_core::explanation::Explanation;
use wgmesh_core::key::PublicKey;
use wgmesh_core::path::{Kind, LastAnswer};
use wgmesh_core::status::Status;
use wgmesh_core::stun::Report;

pub use self::routes::{Leaving, Pong};
use crate::config::Reloaded;
use crate::pins::{Pin, Pins, Removal};

/// A question to the mesh task. Dropping the sender unanswered tells the caller that the daemon
/// is shutting down.
#[derive(Debug)]
pub enum ApiRequest {
    /// Asks for everything that `wgmesh status` shows.
    Status(oneshot::Sender<Status>),
    /// Has the STUN servers asked anew, and asks for what is known until they answer.
    CheckNat(oneshot::Sender<Report>),
    /// Asks for what STUN has found out.
    NatReport(oneshot::Sender<Report>),
    /// Has a peer pinged, and asks for the answer to an earlier ping.
    Ping(PublicKey, oneshot::Sender<Option<Answer>>),
    /// Asks for the last ping that a peer has answered.
    LastAnswer(PublicKey, oneshot::Sender<Option<Answer>>),
    /// Names a peer or a node; answered with why that cannot be.
    AddPeer(Pin, oneshot::Sender<Result<(), String>>),
    /// Wants a peer or a node gone; answered with whether it was there.
    RemovePeer(Removal, oneshot::Sender<bool>),
    /// Asks whom the operator has named.
    Pins(oneshot::Sender<Pins>),
    /// Asks how a peer is reached and why so.
    Explain(PublicKey, oneshot::Sender<Option<Explanation>>),
    /// Wants this node to leave the mesh, and perhaps to forget who it was; answered before it goes.
    Leave(Leaving, oneshot::Sender<()>),
    /// Has the configuration read anew; answered with what came of it, or with what is wrong in it.
    Reload(oneshot::Sender<Result<Reloaded, String>>),
}

/// A ping that a peer has answered, and what kind of address it answered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When, from where and after how long.
    pub last: LastAnswer,
    /// The kind of address.
    pub kind: Kind,
}

/// A socket that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process serves this mesh.
    #[error("already running: process {process} serves this mesh (it holds {})", lock.display())]
    AlreadyRunning {
        /// Its process id, as it wrote it down.
        process: String,
        /// The lock that it holds.
        lock: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

/// The right to serve one mesh on this host, held as long as the value lives.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<fs::File>,
}

impl Lock {
    /// Takes the lock that belongs to a socket.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`] if another process has it.
    pub fn take(socket: &Path) -> Result<Self, Error> {
        let path = socket.with_extension("lock");
        let directory = socket.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("create", directory))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let noted = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                noted.map_err(failed("write", &path))?;
                Ok(Self { _file: file })
            }
            Err((mut file, nix::Error::EWOULDBLOCK)) => {
                let mut process = String::new();
                let _ = file.read_to_string(&mut process);
                Err(Error::AlreadyRunning { process, lock: path })
            }
            Err((_, error)) => Err(failed("lock", &path)(error.into())),
        }
    }
}

/// A socket that listens. It is removed when the value goes.
#[derive(Debug)]
pub struct Server {
    listener: Guarded,
    socket: Socket,
}

#[derive(Debug)]
struct Socket {
    path: PathBuf,
    _lock: Lock,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Best effort: whoever takes the lock next replaces a socket that stayed.
        let _ = fs::remove_file(&self.path);
    }
}

impl Server {
    /// Binds the socket, replacing what a dead process left.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn bind(path: PathBuf, lock: Lock) -> Result<Self, Error> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace", &path)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed("listen on", &path))?;
        let socket = Socket { path, _lock: lock };
        // Between the two calls the check of credentials alone stands guard.
        fs::set_permissions(&socket.path, Permissions::from_mode(0o600))
            .map_err(failed("protect", &socket.path))?;
        Ok(Self { listener: Guarded(listener), socket })
    }

    /// Answers until dropped. Cancel-safe: an answer under way is cut off, nothing else is lost.
    pub async fn serve(self, mesh: mpsc::Sender<ApiRequest>) {
        let Self { listener, socket } = self;
        if let Err(error) = axum::serve(listener, routes::router(mesh)).await {
            tracing::error!(%error, socket = %socket.path.display(), "the command line gets no more answers");
        }
    }
}

/// A listener that hangs up on everybody but root and our own user (SO_PEERCRED, unix(7)).
#[derive(Debug)]
struct Guarded(UnixListener);

impl Listener for Guarded {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            let (stream, _) = Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(caller) if may_ask(caller.uid()) => return (stream, ()),
                Ok(caller) => tracing::warn!(uid = caller.uid(), "refused a stranger on the local socket"),
                Err(error) => tracing::debug!(%error, "a caller without credentials"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests;
