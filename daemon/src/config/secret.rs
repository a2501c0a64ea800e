//! Where the mesh secret comes from: systemd's credential, then the configured file, then
//! `/etc/wgmesh/secret.env`. Never from an argument or the environment, which any user of the host can read.
//!
//! Where the file's name with `.cred` behind it is there instead, systemd keeps the secret encrypted for this host
//! (systemd-creds(1)) and decrypts it for the service alone.
//!
//! A file that others may read is refused: whoever read it is in the mesh for good.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wgmesh_core::kernel::InterfaceName;
use wgmesh_core::secret::{InvalidSecret, MeshSecret};
use zeroize::Zeroizing;

use super::{DIRECTORY, File};

/// What the secret is called in `secret.env`, and may be called in the other files.
const VARIABLE: &str = "WGMESH_SECRET";

/// The name of systemd's credential (`LoadCredential=secret:…`).
const CREDENTIAL: &str = "secret";

/// More than any secret has; keeps a wrong path such as `/dev/zero` from filling memory.
const MAX_BYTES: u64 = 4096;

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of the places has one.
    #[error("no secret in {places}; make one with: wgmesh init --output {suggested}", suggested = suggested.display())]
    Missing {
        /// Where it was looked for.
        places: String,
        /// Where it would be found.
        suggested: PathBuf,
    },
    /// Only the service is given it.
    #[error("{}: systemd decrypts this secret for the service alone: start that (`wgmesh install-service`)", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// A file is there and cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that more than its owner may read.
    #[error("{path}: others may read this secret (mode {mode:04o}); run: chmod 600 {path}", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file without a usable secret.
    #[error("{}: {source}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidSecret,
    },
}

/// A secret, and the file it was in.
#[derive(Debug)]
pub struct Found {
    /// The secret.
    pub secret: MeshSecret,
    /// The file.
    pub path: PathBuf,
}

/// Reads the secret of a mesh from the first place that has one.
///
/// # Errors
/// [`Error`] if no place has one, or the first that has one is exposed, unreadable or holds no secret.
pub fn find(config: &File) -> Result<Found, Error> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    find_in(config, credentials.as_deref(), Path::new(DIRECTORY))
}

/// Returns the file that the unit `wgmesh@.service` hands over, and the default of `secret_file`.
pub fn unit_path(interface: &InterfaceName) -> PathBuf {
    default_path(interface, Path::new(DIRECTORY))
}

fn default_path(interface: &InterfaceName, directory: &Path) -> PathBuf {
    directory.join(format!("{interface}.secret"))
}

fn configured(config: &File, directory: &Path) -> PathBuf {
    config.secret_file.clone().unwrap_or_else(|| default_path(&config.interface, directory))
}

fn find_in(config: &File, credentials: Option<&Path>, directory: &Path) -> Result<Found, Error> {
    // systemd sets a credential's owner and mode itself, with an access list that shows as group bits.
    if let Some(path) = credentials.map(|directory| directory.join(CREDENTIAL))
        && let Some(text) = read(&path, Exposure::Systemd)?
    {
        return parse(&text, path);
    }
    let file = configured(config, directory);
    let environment = directory.join("secret.env");
    for path in [&file, &environment] {
        if let Some(text) = read(path, Exposure::Refused)? {
            return parse(&text, path.clone());
        }
        let encrypted = PathBuf::from(format!("{}.cred", path.display()));
        if path == &file && encrypted.exists() {
            return Err(Error::Encrypted { path: encrypted });
        }
        if config.secret_file.is_some() && path == &file {
            break;
        }
    }
    let places = match config.secret_file {
        Some(_) => file.display().to_string(),
        None => format!("{} or {}", file.display(), environment.display()),
    };
    Err(Error::Missing { places, suggested: file })
}

/// Whose word on a file's permissions counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exposure {
    Systemd,
    Refused,
}

/// Reads a file; `None` if there is none.
fn read(path: &Path, exposure: Exposure) -> Result<Option<Zeroizing<String>>, Error> {
    let failed = |source| Error::Read { path: path.into(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if exposure == Exposure::Refused && mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.into(), mode });
    }
    // Room for everything, so that no reallocation leaves a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize));
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Takes `WGMESH_SECRET=…` if there is such a line, the whole text otherwise.
fn parse(text: &str, path: PathBuf) -> Result<Found, Error> {
    let assigned =
        text.lines().find_map(|line| line.trim().strip_prefix(VARIABLE)?.trim_start().strip_prefix('='));
    let bare = assigned.unwrap_or(text).trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| bare.strip_prefix(*quote)?.strip_suffix(*quote));
    match MeshSecret::parse(unquoted.unwrap_or(bare)) {
        Ok(secret) => Ok(Found { secret, path }),
        Err(source) => Err(Error::Invalid { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SECRET: &str = "a-secret-of-the-test-bed";

    fn put(directory: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn config(directory: &Path, text: &str) -> File {
        let path = put(directory, "wgmesh0.toml", text, 0o644);
        File::load(&path).unwrap()
    }

    /// W-D48, X-46: the credential wins over the file, the file over `secret.env`.
    #[test]
    fn the_credential_comes_first_then_the_file_then_the_environment_file() {
        let directory = tempfile::tempdir().unwrap();
        let credentials = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "");
        let environment = put(directory.path(), "secret.env", &format!("WGMESH_SECRET={SECRET}\n"), 0o600);
        let find = |config| find_in(config, Some(credentials.path()), directory.path()).unwrap().path;
        assert_eq!(find(&config), environment);

        let file = put(directory.path(), "wgmesh0.secret", SECRET, 0o600);
        assert_eq!(find(&config), file);

        let credential = put(credentials.path(), "secret", SECRET, 0o440);
        assert_eq!(find(&config), credential);
    }

    /// W-D48: a secret that others may read is refused, with the command that mends it.
    #[test]
    fn a_readable_secret_is_refused_with_the_command_that_mends_it() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "");
        for mode in [0o640, 0o604, 0o644, 0o660] {
            let path = put(directory.path(), "secret.env", &format!("WGMESH_SECRET={SECRET}"), mode);
            let error = find_in(&config, None, directory.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
            assert!(!error.contains(SECRET), "{error}");
        }
    }

    #[test]
    fn a_missing_secret_names_the_places_and_the_command() {
        let directory = tempfile::tempdir().unwrap();
        let error = find_in(&config(directory.path(), ""), None, directory.path()).unwrap_err().to_string();
        assert!(error.contains("wgmesh0.secret or "), "{error}");
        assert!(error.contains("wgmesh init --output"), "{error}");
    }

    /// Found in a review: of a secret that systemd keeps encrypted nothing was known, so the way to make a new one was shown.
    #[test]
    fn an_encrypted_secret_is_for_the_service_alone() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "");
        put(directory.path(), "secret.env", &format!("WGMESH_SECRET={SECRET}"), 0o600);
        let encrypted = put(directory.path(), "wgmesh0.secret.cred", "k6iUCUh0RJCQyvL8k8q1UyAAAAAB", 0o600);
        let error = find_in(&config, None, directory.path()).unwrap_err();
        assert!(matches!(&error, Error::Encrypted { path } if *path == encrypted), "{error}");
        let plain = put(directory.path(), "wgmesh0.secret", SECRET, 0o600);
        assert_eq!(find_in(&config, None, directory.path()).unwrap().path, plain);
    }

    #[test]
    fn a_configured_file_that_is_missing_is_not_replaced_by_another_secret() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), "secret.env", &format!("WGMESH_SECRET={SECRET}"), 0o600);
        let config = config(directory.path(), "secret_file = \"mine.secret\"");
        let error = find_in(&config, None, directory.path()).unwrap_err().to_string();
        assert!(error.contains(&directory.path().join("mine.secret").display().to_string()), "{error}");
    }

    /// W-D38: every way to write one secret down names the same mesh.
    #[test]
    fn quotes_white_space_and_the_variable_name_do_not_matter() {
        let uri = MeshSecret::from_random([5; 32]).to_uri();
        let uri = uri.as_str();
        for text in [
            uri.to_owned(),
            format!("  {uri}?name=fleet\n"),
            format!("WGMESH_SECRET={uri}"),
            format!("# made by hand\nWGMESH_SECRET = \"{uri}\"\n"),
            format!("WGMESH_SECRET='{uri}'\r\n"),
        ] {
            let found = parse(&text, PathBuf::from("secret")).unwrap();
            assert_eq!(found.secret.to_uri().as_str(), uri, "{text:?}");
        }
    }

    #[test]
    fn a_weak_or_empty_secret_is_an_error_that_names_the_file() {
        for text in ["", "  \n", "short", "WGMESH_SECRET=", "wgmesh://v9/AAAA"] {
            let error = parse(text, PathBuf::from("/etc/wgmesh/x.secret")).unwrap_err().to_string();
            assert!(error.starts_with("/etc/wgmesh/x.secret: "), "{error}");
        }
    }
}
