//! The daemon under test.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use wgmesh::api::client;

use crate::StunServers;
use crate::host::Host;
use crate::namespace::Namespace;
use crate::poll::wait_for;

/// The name of the file in a host's folder that takes what its daemons print.
pub(crate) const LOG: &str = "daemon.log";

/// How long a daemon may take to tell what it is expected to: one that works is ready in a fraction of a second.
const NOTIFICATION: Duration = Duration::from_secs(30);

/// The name of the interface of whom the lab starts.
const INTERFACE: &str = "wgmesh0";

/// Between two questions to a daemon that does not listen yet.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a daemon may take to withdraw everything and end.
const STOP: Duration = Duration::from_secs(10);

/// On which port the exchange listens where a test must know.
const EXCHANGE_PORT: u16 = 51900;

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The mesh's secret.
    pub secret: String,
    /// More of the configuration, in TOML: first keys of the top level, then tables.
    pub more: String,
    /// What is logged.
    pub log_level: &'static str,
    /// Whether the kernel lets it load programs.
    pub has_ebpf: bool,
}

impl Settings {
    /// Settings with nothing but a secret. Much is logged, for whoever reads why a test failed.
    pub fn new(secret: &str) -> Self {
        Self { secret: secret.to_owned(), more: String::new(), log_level: "debug", has_ebpf: true }
    }

    /// Logs what a daemon does that nobody told otherwise: what is measured is not the logging.
    pub fn with_usual_log(self) -> Self {
        Self { log_level: "info", ..self }
    }

    /// Has the kernel refuse to load programs for it.
    pub fn without_ebpf(self) -> Self {
        Self { has_ebpf: false, ..self }
    }

    /// Adds lines of TOML.
    pub fn with(mut self, lines: &str) -> Self {
        self.more += lines;
        self.more.push('\n');
        self
    }

    /// Adds that peers are found by nothing but the exchange with these nodes, and that STUN is asked of the lab's
    /// servers. Begins tables, so keys of the top level come before.
    pub fn over_internet(self, introducers: &[Ipv4Addr]) -> Self {
        self.over_internet_with(introducers, "")
    }

    /// The same, with more lines of TOML for the table `discovery`.
    pub fn over_internet_with(self, introducers: &[Ipv4Addr], discovery: &str) -> Self {
        let nodes: Vec<_> = introducers.iter().map(|node| format!("\"{node}:{EXCHANGE_PORT}\"")).collect();
        let stun = StunServers::ADDRESSES.map(|server| format!("\"{server}\"")).join(", ");
        self.with(&format!(
            "[discovery]\nenabled_methods = [\"bootstrap\", \"exchange\"]\nexchange_port = {EXCHANGE_PORT}\n\
             bootstrap_nodes = [{}]\n{discovery}\n[nat]\nstun_servers = [{stun}]",
            nodes.join(", ")
        ))
    }
}

/// Takes CAP_PERFMON and CAP_BPF away, which the setpriv of Debian 11 knows by number only, and what stood for both before.
pub const WITHOUT_EBPF: &str = "-cap_38,-cap_39,-sys_admin";

/// A running daemon; dropped, it is killed.
pub struct Daemon {
    child: Child,
    config: PathBuf,
    socket: PathBuf,
    started: Instant,
    notifications: Receiver<(Instant, String)>,
}

impl Daemon {
    #[track_caller]
    pub(crate) fn start(host: &Host, namespace: &Namespace, settings: &Settings) -> Self {
        let config = write_config(host, settings);
        let api = host.folder().join("run").join(INTERFACE).with_extension("sock");
        let log = File::options().create(true).append(true).open(host.folder().join(LOG));
        let log = log.unwrap_or_else(|error| panic!("cannot open the log: {error}"));
        let (socket, notifications) = notify_socket(host);
        let mut command = Command::new(if settings.has_ebpf { binary() } else { "setpriv".into() });
        if !settings.has_ebpf {
            command.args(["--bounding-set", WITHOUT_EBPF]).arg(binary());
        }
        command.args(["run", "--config"]).arg(&config).env("NOTIFY_SOCKET", &socket);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        let started = Instant::now();
        let child =
            namespace.spawn(command).unwrap_or_else(|error| panic!("cannot start the daemon: {error}"));
        Self { child, config, socket: api, started, notifications }
    }

    /// Waits until the daemon tells its service manager that it is ready, and returns how long that took from its
    /// start.
    ///
    /// # Panics
    /// Where it does not, or ends.
    #[track_caller]
    pub fn wait_ready(&self) -> Duration {
        self.wait_notification("READY=1")
    }

    /// Waits for a line in what the daemon tells its service manager, such as `STOPPING=1`, passing over what comes
    /// before; returns when it came, counted from the daemon's start.
    ///
    /// # Panics
    /// Where it does not come in time.
    #[track_caller]
    pub fn wait_notification(&self, line: &str) -> Duration {
        let end = Instant::now() + NOTIFICATION;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok((at, message)) = self.notifications.recv_timeout(left) else {
                panic!("the daemon did not say {line} within {} s", NOTIFICATION.as_secs());
            };
            if message.lines().any(|found| found == line) {
                return at - self.started;
            }
        }
    }

    /// Returns what `wgmesh status --json` prints, without a process for each look: that would cost the emulated
    /// processors more than the daemons do. One that was started just now is given the time to listen.
    ///
    /// # Panics
    /// Where it gives no answer.
    #[track_caller]
    pub fn status_json(&self) -> Value {
        let status = loop {
            match client::status(&self.socket) {
                Err(client::Error::NotRunning(_)) if self.started.elapsed() <= NOTIFICATION => {
                    std::thread::sleep(PAUSE);
                }
                status => break status,
            }
        };
        let status = status.unwrap_or_else(|error| panic!("no status: {error}"));
        serde_json::to_value(status).expect("a status is JSON")
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns when the process was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Returns the configuration's path.
    pub fn config(&self) -> &std::path::Path {
        &self.config
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self::signal(&self.child, signal);
    }

    /// Asks the daemon by SIGTERM to end.
    ///
    /// # Panics
    /// Where it does not end in time, or not with success.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit();
        assert!(status.success(), "the daemon ended with {status}");
    }

    /// Kills the daemon by SIGKILL, which it cannot notice.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_exit();
    }

    /// Waits until the daemon ends by itself.
    ///
    /// # Panics
    /// Where it does not.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_for(STOP, || self.child.try_wait().expect("a child of ours can be waited for"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Returns the product's binary, which the lab's runner names.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("WGMESH_BIN").expect("WGMESH_BIN names the wgmesh binary: run `cargo xtask lab`").into()
}

/// Signals a child that was not waited for yet.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id()).expect("Linux process ids fit");
    kill(Pid::from_raw(id), signal).unwrap_or_else(|error| panic!("cannot send {signal}: {error}"));
}

fn write_config(host: &Host, settings: &Settings) -> PathBuf {
    let folder = host.folder();
    let (secret, config) = (folder.join("secret"), folder.join(INTERFACE).with_extension("toml"));
    let (state, runtime) = (folder.join("state"), folder.join("run"));
    for folder in [&state, &runtime] {
        fs::create_dir_all(folder)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
    }
    write(&secret, &settings.secret);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let paths = [("secret_file", &secret), ("state_dir", &state), ("runtime_dir", &runtime)];
    let paths: String = paths.iter().map(|(key, path)| format!("{key} = {path:?}\n")).collect();
    let Settings { log_level, more, .. } = settings;
    write(&config, &format!("interface = \"{INTERFACE}\"\nlog_level = \"{log_level}\"\n{paths}{more}"));
    config
}

fn write(path: &std::path::Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// Plays the service manager: reads what the daemon tells it, so that the daemon never waits for a full queue. The
/// thread ends some time after its receiver.
fn notify_socket(host: &Host) -> (PathBuf, Receiver<(Instant, String)>) {
    let path = host.folder().join("notify");
    fs::remove_file(&path).ok();
    let socket =
        UnixDatagram::bind(&path).unwrap_or_else(|error| panic!("cannot bind {}: {error}", path.display()));
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a second is a valid timeout");
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let message = match socket.recv(&mut buffer) {
                Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    String::new()
                }
                Err(_) => return,
            };
            if sender.send((Instant::now(), message)).is_err() {
                return;
            }
        }
    });
    (path, receiver)
}
