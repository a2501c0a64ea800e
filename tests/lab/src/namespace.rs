//! A thread in namespaces of its own, which runs what it is given.
//!
//! Linux keeps namespaces per thread, and what a thread starts inherits them. So nothing has to be named, mounted or
//! cleaned up: the namespaces end with the thread and with the last process that it started. The kernel kills those
//! when the thread ends, so a test process that is itself killed leaves none behind.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, gettid, sethostname};

type Job = Box<dyn FnOnce() + Send>;

/// The thread and the way to it.
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    thread_id: Pid,
}

impl Namespace {
    /// Makes namespaces whose host name is `name` and whose only link is a loopback that is up.
    pub fn new(name: &str) -> Self {
        let (jobs, queue) = channel::<Job>();
        let (report, started) = channel();
        let name = name.to_owned();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let entered = enter(&name);
            let lives = entered.is_ok();
            report.send(entered.map(|()| gettid())).ok();
            if lives {
                queue.into_iter().for_each(|job| job());
            }
        });
        let thread = thread.expect("a test machine has room for a thread");
        let thread_id = started.recv().expect("the thread reports before it ends");
        let thread_id =
            thread_id.unwrap_or_else(|error| panic!("cannot make namespaces (are we root?): {error}"));
        Self { jobs: Some(jobs), thread: Some(thread), thread_id }
    }

    /// Runs a piece of code in the namespaces: a socket that it opens belongs to this host. Code that waits keeps
    /// others from running here.
    ///
    /// # Panics
    /// Where the code does.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(code));
            answer.send(outcome).ok();
        });
        let jobs = self.jobs.as_ref().expect("the thread lives as long as we do");
        jobs.send(job).expect("the thread takes jobs as long as we live");
        match answered.recv().expect("each job answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a process in the namespaces, to be killed when they end.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        // SAFETY: between fork and exec only prctl is called, which allocates nothing and takes no lock.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        self.run(move || command.spawn())
    }

    /// Returns the thread's id, by which `ip link … netns` and `nsenter --target` find the namespaces.
    pub fn thread_id(&self) -> Pid {
        self.thread_id
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The thread ends with its queue.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Moves the calling thread.
fn enter(name: &str) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    sethostname(name)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // sysfs shows the links of the namespace that mounts it.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)?;
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
}
