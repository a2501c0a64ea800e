//! A machine of the lab.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::namespace::Namespace;
use crate::{Capture, Daemon, Settings};

/// A host with its own links, files and processes.
pub struct Host {
    name: String,
    folder: PathBuf,
    namespace: Arc<Namespace>,
    links: AtomicUsize,
}

impl Host {
    pub(crate) fn new(name: &str, folder: PathBuf) -> Self {
        let namespace = Namespace::new(name);
        namespace.run(|| {
            // Duplicate address detection keeps a new IPv6 address from use for a second or two.
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
                .expect("root may write its own settings");
        });
        let host = Self {
            name: name.to_owned(),
            folder,
            namespace: Arc::new(namespace),
            links: AtomicUsize::new(0),
        };
        host.run(["ip", "link", "set", "lo", "up"]);
        host
    }

    /// Returns the host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the folder in which the host keeps its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the namespaces, for code that must run in them.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs a program to its end, whatever that is.
    #[track_caller]
    pub fn exec<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Output {
        let mut command = command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.start(command);
        child.wait_with_output().expect("a child of ours can be waited for")
    }

    /// Runs a program that must succeed, and returns what it printed.
    #[track_caller]
    pub fn run<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> String {
        let words: Vec<_> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let output = self.exec(&words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?} on {} ended with {}: {errors}", self.name, output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a program that must succeed, with a text as its input.
    #[track_caller]
    pub fn feed<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>, input: &str) -> String {
        feed(&self.namespace, command(words), input)
    }

    /// Starts a program that runs until it is dropped.
    #[track_caller]
    pub fn spawn<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Process {
        let mut command = command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Process { child: Some(self.start(command)) }
    }

    /// Tells whether one ping is answered within a second.
    #[track_caller]
    pub fn pings(&self, address: impl Into<IpAddr>) -> bool {
        self.exec(["ping", "-n", "-q", "-c", "1", "-W", "1", &address.into().to_string()]).status.success()
    }

    /// Forbids forwarding in the two ways of others: tables such as Docker's, and a policy of `iptables-legacy`.
    #[track_caller]
    pub fn forbid_forwarding(&self) {
        let docker = "add table ip filter\nadd chain ip filter DOCKER\n\
                      add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\n";
        self.feed(["nft", "-f", "-"], docker);
        self.run(["iptables-legacy", "-P", "FORWARD", "DROP"]);
    }

    /// Returns what [`Host::forbid_forwarding`] has made.
    #[track_caller]
    pub fn foreign_rules(&self) -> [String; 2] {
        [self.run(["nft", "list", "table", "ip", "filter"]), self.run(["iptables-legacy", "-S"])]
    }

    /// Runs the product's command line to its end.
    #[track_caller]
    pub fn wgmesh<Word: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = Word>) -> Output {
        let mut command = Command::new(crate::daemon::binary());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.start(command).wait_with_output().expect("a child of ours can be waited for")
    }

    /// Writes the settings into the host's folder and starts the daemon with them. What an earlier daemon of this
    /// host left there is kept.
    #[track_caller]
    pub fn daemon(&self, settings: &Settings) -> Daemon {
        Daemon::start(self, &self.namespace, settings)
    }

    /// Returns what the host's daemons have logged so far.
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.folder.join(crate::daemon::LOG)).unwrap_or_default()
    }

    /// Records what passes the interface and fits the filter, in tcpdump's words; an empty one fits everything.
    #[track_caller]
    pub fn capture(&self, interface: &str, filter: &str) -> Capture {
        Capture::start(self, interface, filter)
    }

    #[track_caller]
    fn start(&self, command: Command) -> Child {
        let program = command.get_program().to_owned();
        let started = self.namespace.spawn(command);
        started.unwrap_or_else(|error| panic!("cannot start {program:?} on {}: {error}", self.name))
    }

    /// Returns the namespaces for those who may outlive the host.
    pub(crate) fn shared_namespace(&self) -> Arc<Namespace> {
        Arc::clone(&self.namespace)
    }

    /// Returns the name of the next link.
    pub(crate) fn next_link(&self) -> String {
        format!("eth{}", self.links.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns how many links the host has been given.
    pub(crate) fn links(&self) -> usize {
        self.links.load(Ordering::Relaxed)
    }
}

/// A program that runs in the background.
pub struct Process {
    child: Option<Child>,
}

impl Process {
    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("only taken by what consumes it").id()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        let child = self.child.take().expect("only taken here and when dropped");
        child.wait_with_output().expect("a child of ours can be waited for")
    }

    /// Signals it.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let child = self.child.as_ref().expect("only taken by what consumes it");
        crate::daemon::signal(child, signal);
    }

    /// Asks it by SIGINT to end, and waits for that.
    pub fn interrupt(self) -> Output {
        self.signal(nix::sys::signal::Signal::SIGINT);
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn command<Word: AsRef<OsStr>>(words: impl IntoIterator<Item = Word>) -> Command {
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().expect("a command has a program"));
    command.args(words);
    command
}

/// Runs a command that must succeed, with a text as its input.
#[track_caller]
pub(crate) fn feed(namespace: &Namespace, mut command: Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let line = format!("{command:?}");
    let mut child = namespace.spawn(command).unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
    let mut stdin = child.stdin.take().expect("the input is piped");
    stdin.write_all(input.as_bytes()).unwrap_or_else(|error| panic!("{line} takes no input: {error}"));
    drop(stdin);
    let output = child.wait_with_output().expect("a child of ours can be waited for");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line} ended with {} on\n{input}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
