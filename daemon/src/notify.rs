//! What systemd is told: ready, reloading, stopping, one line of status, and the watchdog's food.
//!
//! The watchdog is fed only after every watched task has progressed since it was last fed, when they were asked to. A task that
//! hangs therefore starves it, even while the rest of the process is well, and systemd kills and starts us anew; the
//! kernel carries the mesh's packets meanwhile. Without `NOTIFY_SOCKET` nothing is sent.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::Notify;

/// The line to systemd.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// Connects to the socket that systemd named in the environment, if it did.
    ///
    /// # Errors
    /// If a socket was named and cannot be reached.
    pub fn from_environment() -> io::Result<Self> {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(address) => Self::connect(&address),
            None => Ok(Self { socket: None }),
        }
    }

    fn connect(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // systemd that does not read must not stop us; what is lost is only its view of us.
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(socket) })
    }

    /// Says that the interface and the loops are up.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Sets the line that `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(status)]);
    }

    /// Says that the configuration is being read anew; [`Notifier::ready`] must follow.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot tell systemd of the reload without a clock"),
        }
    }

    /// Says that the daemon is going down.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if let Err(error) = socket.send(lines.join("\n").as_bytes()) {
            tracing::debug!(%error, "systemd did not take a notification");
        }
    }

    /// Feeds the watchdog, forever, while everything watched progresses. Returns at once if systemd set no
    /// watchdog. Cancel-safe.
    ///
    /// Whatever is watched must step when it is [asked](Progress::ask), or at least once in a quarter of `WatchdogSec=`.
    pub async fn feed_watchdog(&self, watched: Vec<Watched>) {
        if let Some(timeout) = sd_notify::watchdog_enabled() {
            self.feed(timeout, Watchdog::new(watched)).await;
        }
    }

    async fn feed(&self, timeout: Duration, mut watchdog: Watchdog) {
        let mut tick = tokio::time::interval(timeout / 4);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match watchdog.stalled() {
                None => self.send(&[NotifyState::Watchdog]),
                Some(name) => tracing::debug!(task = name, "no progress since the last watchdog message"),
            }
            watchdog.ask();
        }
    }
}

/// A counter that a task steps whenever it went once around its loop.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Rounds>);

#[derive(Debug, Default)]
struct Rounds {
    count: AtomicU64,
    asked: Notify,
}

impl Progress {
    /// Counts one more round.
    pub fn step(&self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many rounds were counted.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Has the task show that it goes on.
    pub fn ask(&self) {
        self.0.asked.notify_one();
    }

    /// Counts a round whenever the task is [asked](Self::ask), and never ends: for a task that waits for other things, to be
    /// waited for beside them. Cancel-safe.
    pub async fn step_when_asked(&self) -> Infallible {
        loop {
            self.0.asked.notified().await;
            self.step();
        }
    }
}

/// A task that must progress for the daemon to count as alive.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The task's name in the log.
    pub name: &'static str,
    /// Its counter.
    pub progress: Progress,
}

/// Remembers how far each task was at the last feeding.
struct Watchdog {
    watched: Vec<(Watched, u64)>,
}

impl Watchdog {
    fn new(watched: Vec<Watched>) -> Self {
        Self { watched: watched.into_iter().map(|task| (task, 0)).collect() }
    }

    /// Names a task that did not progress since the last feeding, or counts this as a feeding.
    fn stalled(&mut self) -> Option<&'static str> {
        if let Some((task, _)) = self.watched.iter().find(|(task, fed_at)| task.progress.count() == *fed_at) {
            return Some(task.name);
        }
        for (task, fed_at) in &mut self.watched {
            *fed_at = task.progress.count();
        }
        None
    }

    /// Has every task show that it goes on, so that one without anything to do need not wake for that.
    fn ask(&self) {
        self.watched.iter().for_each(|(task, _)| task.progress.ask());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Systemd {
        socket: UnixDatagram,
        _directory: tempfile::TempDir,
    }

    impl Systemd {
        fn start() -> (Self, Notifier) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            let notifier = Notifier::connect(path.as_os_str()).unwrap();
            (Self { socket, _directory: directory }, notifier)
        }

        fn received(&self) -> Option<String> {
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
        }
    }

    fn watched(name: &'static str) -> Watched {
        Watched { name, progress: Progress::default() }
    }

    /// C-7: each message in the words of sd_notify(3).
    #[test]
    fn every_state_arrives_in_systemds_words() {
        let (systemd, notifier) = Systemd::start();
        notifier.ready("3 peers");
        assert_eq!(systemd.received().unwrap(), "READY=1\nSTATUS=3 peers");
        notifier.status("4 peers");
        assert_eq!(systemd.received().unwrap(), "STATUS=4 peers");
        notifier.stopping();
        assert_eq!(systemd.received().unwrap(), "STOPPING=1");
        notifier.reloading();
        let text = systemd.received().unwrap();
        let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn an_abstract_address_is_understood() {
        let name = format!("wgmesh-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::connect(OsStr::new(&format!("@{name}"))).unwrap().stopping();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
    }

    #[test]
    fn without_systemd_nothing_happens() {
        Notifier { socket: None }.ready("fine");
    }

    /// A task that has nothing to do goes on as long as it answers.
    #[tokio::test(start_paused = true)]
    async fn the_watchdog_asks_those_that_have_nothing_to_do() {
        let (systemd, notifier) = Systemd::start();
        let idle = watched("mesh");
        let timeout = Duration::from_secs(40);
        let feeding = notifier.feed(timeout, Watchdog::new(vec![idle.clone()]));
        let fed = async |rounds: u32| {
            tokio::time::sleep(timeout / 4 * rounds + Duration::from_secs(1)).await;
            std::iter::from_fn(|| systemd.received()).count()
        };
        let check = async {
            tokio::select! {
                never = idle.progress.step_when_asked() => match never {},
                fed = fed(3) => assert_eq!(fed, 3),
            }
            // What it has answered by then counts once more.
            assert_eq!(fed(3).await, 1);
        };
        tokio::select! {
            () = feeding => unreachable!("feeding never ends"),
            () = check => {}
        }
    }

    /// C-7: the watchdog is fed only while every watched task progresses.
    #[tokio::test(start_paused = true)]
    async fn the_watchdog_starves_while_one_of_the_tasks_hangs() {
        let (systemd, notifier) = Systemd::start();
        let (mesh, applier) = (watched("mesh"), watched("applier"));
        let timeout = Duration::from_secs(40);
        let feeding = notifier.feed(timeout, Watchdog::new(vec![mesh.clone(), applier.clone()]));
        let round = |steps: &[&Watched]| steps.iter().for_each(|task| task.progress.step());
        let check = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(systemd.received(), None, "nothing has progressed yet");
            for (steps, fed) in [
                (vec![&mesh, &applier], true),
                (vec![&mesh], false),
                (vec![&mesh], false),
                (vec![&applier], true),
                (vec![], false),
                (vec![&mesh, &applier, &applier], true),
            ] {
                round(&steps);
                tokio::time::sleep(timeout / 4).await;
                assert_eq!(systemd.received().as_deref(), fed.then_some("WATCHDOG=1"));
            }
        };
        tokio::select! {
            () = feeding => unreachable!("feeding never ends"),
            () = check => {}
        }
    }
}
