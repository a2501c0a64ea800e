//! Small JSON files that must survive: the node's identity and its peer cache.
//!
//! Invariants: a reader finds the old content or the new, never a mixture, whatever dies in between (write to a
//! temporary file, fsync, rename, fsync of the directory); files are 0600 in a 0700 directory; a file that does
//! not parse is moved aside, never deleted and never written over. A save that fails leaves the old file whole
//! and is the caller's to repeat.
//!
//! One process per mesh uses these files ([`crate::api::Lock`]), so the temporary file has a fixed name and
//! a left-over of a crash is simply written over.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// More than the cache of the largest mesh takes; what is longer is not ours.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What the name of a file that was moved aside goes on with, before the time.
const CORRUPT: &str = ".corrupt-";

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    /// Returns what kind of failure it was.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// A file that holds one `T`.
#[derive(Debug)]
pub struct StateFile<T> {
    path: PathBuf,
    content: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> StateFile<T> {
    /// Names the file; nothing is touched yet.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, content: PhantomData }
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file. `None` if there is none, or if it held no `T` and was moved aside.
    ///
    /// # Errors
    /// If a file is there and cannot be read or moved. The caller must not go on as if there were none: it would
    /// take on a new identity.
    pub fn load(&self) -> Result<Option<T>, Error> {
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::new("read", &self.path)(error)),
        };
        match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let kept = self.quarantine()?;
                // The error's own text may quote the file, which may hold a key.
                tracing::warn!(
                    file = %self.path.display(),
                    kept = %kept.display(),
                    line = error.line(),
                    column = error.column(),
                    "unreadable state moved aside"
                );
                Ok(None)
            }
        }
    }

    /// Replaces the file's content.
    ///
    /// # Errors
    /// If the new content could not be made durable; the old file is then untouched.
    pub fn save(&self, value: &T) -> Result<(), Error> {
        // JSON of the identity holds the private key, so the buffer is wiped. Its room is kept ample because a
        // reallocation would leave a copy behind.
        let mut text = Zeroizing::new(Vec::with_capacity(4096));
        serde_json::to_writer_pretty(&mut *text, value)
            .map_err(|error| Error::new("encode", &self.path)(error.into()))?;
        text.push(b'\n');
        self.replace(|file| file.write_all(&text))
    }

    fn replace(&self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(Error::new("create", directory))?;
        let temporary = beside(&self.path, ".new");
        let written = write_durably(&temporary, fill).and_then(|()| fs::rename(&temporary, &self.path));
        if let Err(error) = written {
            // Best effort: it also frees the space that a full disk lacks, and the next save truncates it anyway.
            let _ = fs::remove_file(&temporary);
            return Err(Error::new("write", &self.path)(error));
        }
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::new("sync", directory))
    }

    fn quarantine(&self) -> Result<PathBuf, Error> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Several in one second are several starts of a broken service: the next free second will do.
        let free = (seconds..).map(|second| beside(&self.path, &format!("{CORRUPT}{second}")));
        for kept in free.take(1000) {
            match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &kept, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => return Ok(kept),
                Err(nix::Error::EEXIST) => {}
                Err(error) => return Err(Error::new("move aside", &self.path)(error.into())),
            }
        }
        Err(Error::new("move aside", &self.path)(io::ErrorKind::AlreadyExists.into()))
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{length} bytes is too large for state"),
        ));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
    io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut text)?;
    Ok(text)
}

fn write_durably(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    // A left-over keeps the mode that it was made with, which was 0600 too unless somebody changed it: so afresh.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    fill(&mut file)?;
    file.sync_all()
}

/// Removes a file for good, and what of it was moved aside: that may hold an old key. That nothing is there is as good.
pub fn forget(path: &Path) {
    let corrupt = beside(path, CORRUPT);
    let is_of_it = |entry: &fs::DirEntry| {
        entry.path().as_os_str().as_bytes().starts_with(corrupt.as_os_str().as_bytes())
    };
    let kept =
        path.parent().and_then(|directory| fs::read_dir(directory).ok()).into_iter().flatten().flatten();
    let kept: Vec<PathBuf> = kept.filter(is_of_it).map(|entry| entry.path()).collect();
    for path in kept.iter().map(PathBuf::as_path).chain([path]) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, file = %path.display(), "cannot forget this file");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
