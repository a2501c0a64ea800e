//! What passed an interface, by tcpdump.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::{Host, Process};
use crate::poll::eventually;

/// The size of a capture file's header: until it is there, tcpdump does not listen yet.
const HEADER: u64 = 24;

/// A recording that goes on until it is finished or dropped.
pub struct Capture {
    file: PathBuf,
    process: Process,
}

impl Capture {
    #[track_caller]
    pub(crate) fn start(host: &Host, interface: &str, filter: &str) -> Self {
        let file = host.folder().join(format!("{interface}.pcap"));
        fs::remove_file(&file).ok();
        let path = file.display().to_string();
        let process = host.spawn([
            "tcpdump",
            "-Z",
            "root",
            "--immediate-mode",
            "-U",
            "-i",
            interface,
            "-w",
            &path,
            filter,
        ]);
        eventually(Duration::from_secs(10), || fs::metadata(&file).is_ok_and(|data| data.len() >= HEADER));
        Self { file, process }
    }

    /// Ends the recording and returns the capture file's bytes, in which payloads stand as they were on the wire.
    pub fn finish(self) -> Vec<u8> {
        self.process.interrupt();
        fs::read(&self.file).unwrap_or_else(|error| panic!("cannot read {}: {error}", self.file.display()))
    }

    /// Returns the recording's file.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }
}
