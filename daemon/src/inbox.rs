//! A socket that is waited on for what comes in, and never for room to send.
//!
//! A datagram that cannot be sent at once is lost, as the network might lose it. tokio's own sockets are nevertheless
//! woken whenever room to send comes back, which is after nearly every datagram that was sent.

use std::io;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A non-blocking socket.
#[derive(Debug)]
pub(crate) struct Inbox(AsyncFd<Socket>);

impl Inbox {
    /// Watches a socket, which must be non-blocking. Must be called within a tokio runtime.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        // SAFETY: a `Socket` owns its descriptor, which stays open and the same until the socket is dropped, and
        // `AsyncFd` drops it only after it has deregistered.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self(socket))
    }

    /// Returns the socket itself, to send from and to configure.
    pub(crate) fn socket(&self) -> &Socket {
        self.0.get_ref()
    }

    /// Waits until `read` finds something. Cancel-safe.
    pub(crate) async fn read<R>(&self, mut read: impl FnMut(&Socket) -> io::Result<R>) -> io::Result<R> {
        self.0.async_io(Interest::READABLE, |socket| read(socket)).await
    }

    /// Calls `read` if something waits already.
    ///
    /// # Errors
    /// `WouldBlock` where nothing does.
    pub(crate) fn try_read<R>(&self, read: impl FnOnce(&Socket) -> io::Result<R>) -> io::Result<R> {
        self.0.try_io(Interest::READABLE, read)
    }
}
