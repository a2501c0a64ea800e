//! What a process costs its host, by the kernel's own account.

use std::fs;
use std::ops::Sub;
use std::path::PathBuf;
use std::time::Duration;

/// What a process's memory amounts to, in KiB; shared pages are divided among those who share them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// All of it (PSS).
    pub proportional: u64,
    /// Of that, what is in no file: heap, stacks, and written pages of data.
    pub anonymous: u64,
    /// Of that, pages of files: the program's code and constants.
    pub files: u64,
}

impl Memory {
    /// Reads what the process uses now.
    ///
    /// # Panics
    /// Where there is no such process.
    #[track_caller]
    pub fn of(process: u32) -> Self {
        let text = read(process, "smaps_rollup");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(number).unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        Self { proportional: field("Pss"), anonymous: field("Pss_Anon"), files: field("Pss_File") }
    }
}

/// What left a process's host on its first link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Bytes, with the link's headers.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// What a process has used up since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time of all its threads.
    pub processor: Duration,
    /// How often one of its threads slept and was woken, which no load of the machine changes.
    pub wakeups: u64,
    /// What was sent on the host's `eth0`, by whomever.
    pub sent: Sent,
}

impl Usage {
    /// Reads what the process has used so far. Threads that ended are not counted.
    ///
    /// # Panics
    /// Where there is no such process.
    #[track_caller]
    pub fn of(process: u32) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process lives");
        let tasks: Vec<_> = tasks.flatten().map(|task| task.path()).collect();
        let spent = |task: &PathBuf| number(&fs::read_to_string(task.join("schedstat")).ok()?);
        let woken = |task: &PathBuf| {
            let text = fs::read_to_string(task.join("status")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            number(line?)
        };
        let processor = Duration::from_nanos(tasks.iter().filter_map(spent).sum());
        let wakeups = tasks.iter().filter_map(woken).sum();
        let devices = read(process, "net/dev");
        let link = devices.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
        let numbers: Vec<u64> = link.unwrap_or_default().split_whitespace().filter_map(number).collect();
        // Eight columns of what was received come first (proc_pid_net(5)).
        let sent = Sent { bytes: numbers[8], packets: numbers[9] };
        Self { processor, wakeups, sent }
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            processor: self.processor - earlier.processor,
            wakeups: self.wakeups - earlier.wakeups,
            sent: Sent {
                bytes: self.sent.bytes - earlier.sent.bytes,
                packets: self.sent.packets - earlier.sent.packets,
            },
        }
    }
}

#[track_caller]
fn read(process: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{process}/{file}"))
        .unwrap_or_else(|error| panic!("cannot read {file} of process {process}: {error}"))
}

/// Returns the number that a text begins with.
fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}
