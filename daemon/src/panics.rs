//! What a panic ends: the whole daemon, which systemd starts again while its tunnels go on. A part that is missing without a
//! word would be worse.
//!
//! Except for the library of Mainline DHT, which strangers can have panic by what they answer: that ends a request and its
//! node, and the next request begins with another. That they have it use up its stack nothing could contain: what is nested
//! as deep as a datagram is long takes less than half of it, in an optimised build.

#[cfg(panic = "abort")]
compile_error!("a panic that is contained must unwind: build without `panic = \"abort\"`");

use std::any::Any;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// The library's own thread.
const CONTAINED_THREAD: &str = "Mainline Dht actor thread";

thread_local! {
    /// Whether this thread does something of which a panic is caught.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// A panic that was caught, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the library panicked: {0}")]
pub struct Panicked(String);

/// Has every panic from now on end the process, but for those that are contained.
pub fn abort_unless_contained() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        if !CONTAINED.get() && std::thread::current().name() != Some(CONTAINED_THREAD) {
            std::process::abort();
        }
    }));
}

/// Does something that may panic.
///
/// # Errors
/// [`Panicked`].
pub fn contain<T>(task: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outer = CONTAINED.replace(true);
    // What a panic leaves in between is not looked at again: the caller throws it away.
    let outcome = catch_unwind(AssertUnwindSafe(task));
    CONTAINED.set(outer);
    outcome.map_err(|panic| Panicked(words(&*panic)))
}

/// Waits for something that may panic. As safe to cancel as that is.
///
/// # Errors
/// [`Panicked`].
pub async fn contain_async<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    let poll = poll_fn(|context| match contain(|| future.as_mut().poll(context)) {
        Ok(poll) => poll.map(Ok),
        Err(panicked) => Poll::Ready(Err(panicked)),
    });
    poll.await
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".to_owned())
}

#[cfg(test)]
mod tests;
