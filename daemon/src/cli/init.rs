//! `wgmesh init`: a new secret.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wgmesh_core::secret::MeshSecret;
use zeroize::{Zeroize, Zeroizing};

/// A secret that could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("{} is there already: a new secret would cut this host off its mesh; move the old one away first", .0.display())]
    Exists(PathBuf),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Makes a secret and prints it, or writes it to a file that was not there before.
pub(super) fn make_secret(output: Option<&Path>) -> Result<(), Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    let uri = MeshSecret::from_random(bytes).to_uri();
    bytes.zeroize();
    let line = Zeroizing::new(format!("{}\n", uri.as_str()));
    match output {
        Some(path) => write_new(path, line.as_bytes()),
        None => io::stdout()
            .write_all(line.as_bytes())
            .map_err(|source| Error::Write { path: "standard output".into(), source }),
    }
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), Error> {
    let written = || {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let filled = file.write_all(content).and_then(|()| file.sync_all());
        // Half a secret would be taken for a whole one later.
        filled.inspect_err(|_| drop(fs::remove_file(path)))
    };
    written().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(path.into()),
        _ => Error::Write { path: path.into(), source },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// W-D38: the secret that `init` makes is strong, and only its owner can read it.
    #[test]
    fn a_new_secret_is_strong_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc").join("wgmesh0.secret");

        make_secret(Some(&path)).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("wgmesh://v1/"), "{text}");
        assert!(!MeshSecret::parse(&text).unwrap().is_weak());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_old_secret_is_never_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wgmesh0.secret");
        fs::write(&path, "the old one").unwrap();

        let error = make_secret(Some(&path)).unwrap_err();

        assert!(matches!(error, Error::Exists(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "the old one");
    }

    #[test]
    fn two_secrets_differ() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        paths.iter().for_each(|path| make_secret(Some(path)).unwrap());
        assert_ne!(fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
    }
}
