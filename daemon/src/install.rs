//! `wgmesh install-service` and `uninstall-service`: the unit's files, and the conversation with systemd.
//!
//! No process is started by us. Where a program of systemd must run (to make the user and the directories),
//! systemd is asked to run it as a transient unit. Files that a package installed are used as they are. The
//! secret, the configuration and the state are never removed.

mod systemd;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use wgmesh_core::forwarding::Forwarding;
use wgmesh_core::kernel::{InterfaceName, Link, OWNER_PREFIX, Write};

use self::systemd::Systemd;
use crate::config::{File, secret};
use crate::ebpf::{self, EbpfError, EbpfSettings};
use crate::kernel::{Kernel, KernelError};

/// A text file of the service: where it goes, where a package would have put it, and what is in it.
struct ServiceFile {
    path: &'static str,
    packaged: &'static str,
    content: &'static str,
}

const UNIT: ServiceFile = ServiceFile {
    path: "etc/systemd/system/wgmesh@.service",
    packaged: "usr/lib/systemd/system/wgmesh@.service",
    content: include_str!("../../systemd/wgmesh@.service"),
};

const USERS: ServiceFile = ServiceFile {
    path: "etc/sysusers.d/wgmesh.conf",
    packaged: "usr/lib/sysusers.d/wgmesh.conf",
    content: include_str!("../../systemd/sysusers.d/wgmesh.conf"),
};

const DIRECTORIES: ServiceFile = ServiceFile {
    path: "etc/tmpfiles.d/wgmesh.conf",
    packaged: "usr/lib/tmpfiles.d/wgmesh.conf",
    content: include_str!("../../systemd/tmpfiles.d/wgmesh.conf"),
};

/// The binary's path as the unit names it.
const EXECUTABLE: &str = "/usr/bin/wgmesh";

/// The unit's `RuntimeDirectory=`.
const RUNTIME_DIRECTORY: &str = "/run/wgmesh";

/// The settings by which systemd hands over a secret (systemd.exec(5)).
const PLAIN: &str = "LoadCredential";
const ENCRYPTED: &str = "LoadCredentialEncrypted";

/// Directories that the unit's sandbox hides, and a binary in them with them.
const HIDDEN: [&str; 6] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp", "/sys"];

/// The file from which systemd hands the secret over.
enum Handed {
    /// As it is.
    Plain(PathBuf),
    /// Decrypted (systemd-creds(1)).
    Encrypted(PathBuf),
}

impl Handed {
    /// Returns the drop-in that says so, unless the unit does.
    fn drop_in(&self, interface: &InterfaceName) -> Option<String> {
        let (key, path) = match self {
            Self::Plain(path) if *path == secret::unit_path(interface) => return None,
            Self::Plain(path) => (PLAIN, path),
            Self::Encrypted(path) => (ENCRYPTED, path),
        };
        Some(format!("[Service]\n{PLAIN}=\n{key}=secret:{}\n", path.display()))
    }
}

/// A service that could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The service would not find this binary.
    #[error("the service cannot run {}, which its sandbox hides: copy it to /usr/local/bin and run that", .0.display())]
    HiddenExecutable(PathBuf),
    /// The unit does not know of this directory.
    #[error("`{key} = \"{}\"`: the unit lets the daemon write to {allowed} only; leave the key out", set.display())]
    OtherDirectory {
        /// The key.
        key: &'static str,
        /// What it says.
        set: PathBuf,
        /// What the unit allows.
        allowed: &'static str,
    },
    /// The service could not read its configuration.
    #[error("{0}")]
    UnreadableConfig(String),
    /// The secret cannot be used.
    #[error(transparent)]
    Secret(#[from] secret::Error),
    /// systemd did not do what it was asked.
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    /// What a daemon left in the kernel cannot be removed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Nor can what it left of eBPF.
    #[error(transparent)]
    Ebpf(#[from] EbpfError),
}

/// Installs, enables and starts the service of one mesh. Returns what was done, and what is left to do, as lines
/// for a human.
///
/// # Errors
/// [`Error`], before anything was changed if the secret or the configuration does not fit the unit.
pub async fn install(config: &File) -> Result<Vec<String>, Error> {
    let root = Path::new("/");
    let executable = std::env::current_exe().map_err(failed("find", Path::new("/proc/self/exe")))?;
    let secret = match secret::find(config) {
        Ok(found) => Handed::Plain(found.path),
        Err(secret::Error::Encrypted { path }) => Handed::Encrypted(path),
        Err(error) => return Err(error.into()),
    };
    check_directories(config)?;
    config.unreadable_to_service().map_or(Ok(()), |why| Err(Error::UnreadableConfig(why)))?;
    let mut done = write_files(root, &config.interface, &executable, &secret)?;
    let unit = instance(&config.interface);
    if !sd_notify::booted().unwrap_or(false) {
        done.push(format!("systemd is not running here; on the host run: systemctl enable --now {unit}"));
        return Ok(done);
    }
    let systemd = Systemd::connect().await?;
    systemd.reload().await?;
    systemd.run("sysusers", "systemd-sysusers", &installed(root, &USERS)).await?;
    systemd.run("tmpfiles", "systemd-tmpfiles", &installed(root, &DIRECTORIES)).await?;
    systemd.enable(&unit).await?;
    systemd.restart(&unit).await?;
    done.push(format!("{unit} is enabled and running"));
    Ok(done)
}

/// Stops and disables the service of one mesh, takes what it left out of the kernel, and removes the unit's files if no
/// other mesh uses them.
///
/// # Errors
/// [`Error`] if systemd, the kernel or the file system refuses.
pub async fn uninstall(interface: &InterfaceName) -> Result<Vec<String>, Error> {
    let root = Path::new("/");
    let unit = instance(interface);
    let systemd = if sd_notify::booted().unwrap_or(false) { Some(Systemd::connect().await?) } else { None };
    let mut done = Vec::new();
    if let Some(systemd) = &systemd {
        systemd.stop(&unit).await?;
        systemd.disable(&unit).await?;
        done.push(format!("{unit} is stopped and disabled"));
    }
    done.extend(remove_leftovers(interface).await?);
    done.extend(remove_files(root, interface, has_other_daemons(interface))?);
    if let Some(systemd) = &systemd {
        systemd.reload().await?;
    }
    done.push(
        "kept: the secret and configuration in /etc/wgmesh, the node's key in /var/lib/wgmesh".to_owned(),
    );
    Ok(done)
}

/// Removes what a stopped service has left in the kernel: it stops cleanly, unless it failed in the middle of a restart
/// and left its tunnels to a successor that never came. The link's alias says that it is ours, so neither the secret nor
/// the configuration is needed, which may be what was wrong. Addresses and routes go with the link; what was passed on for
/// the mesh, and eBPF, do not.
async fn remove_leftovers(interface: &InterfaceName) -> Result<Vec<String>, Error> {
    if UnixStream::connect(Path::new(RUNTIME_DIRECTORY).join(format!("{interface}.sock"))).is_ok() {
        return Ok(vec![format!("kept: {interface}, which a daemon serves that systemd did not start")]);
    }
    let mut done = Vec::new();
    let kernel = Kernel::open(interface.clone())?;
    if let Some(failure) = kernel.forward(Forwarding::default()).await?.failure {
        return Err(failure.into());
    }
    if let Link::WireGuard { alias: Some(alias), .. } = kernel.observe().await?.link
        && alias.starts_with(OWNER_PREFIX)
    {
        kernel.apply([Write::DeleteLink].into()).await?;
        done.push(format!("removed {interface}, which the service had left behind"));
    }
    ebpf::remove_leftovers(&EbpfSettings::new(interface.clone()))?;
    Ok(done)
}

/// Whether a daemon of another mesh runs, enabled or not.
fn has_other_daemons(interface: &InterfaceName) -> bool {
    let own = format!("{interface}.sock");
    let files = fs::read_dir(RUNTIME_DIRECTORY).into_iter().flatten().flatten();
    let mut others = files.filter(|file| file.file_name() != own.as_str());
    others.any(|file| UnixStream::connect(file.path()).is_ok())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

fn instance(interface: &InterfaceName) -> String {
    // A name may hold `-`, which systemd takes for a path separator only in names that it escaped itself.
    format!("wgmesh@{interface}.service")
}

fn check_directories(config: &File) -> Result<(), Error> {
    let keys = [
        ("state_dir", &config.state_dir, "/var/lib/wgmesh"),
        ("runtime_dir", &config.runtime_dir, RUNTIME_DIRECTORY),
    ];
    match keys.into_iter().find(|(_, set, allowed)| set.as_path() != Path::new(allowed)) {
        Some((key, set, allowed)) => Err(Error::OtherDirectory { key, set: set.clone(), allowed }),
        None => Ok(()),
    }
}

fn installed(root: &Path, file: &ServiceFile) -> PathBuf {
    let packaged = root.join(file.packaged);
    if packaged.exists() { packaged } else { root.join(file.path) }
}

fn write_files(
    root: &Path,
    interface: &InterfaceName,
    executable: &Path,
    secret: &Handed,
) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    let packaged = root.join(UNIT.packaged).exists();
    if !packaged {
        if HIDDEN.iter().any(|hidden| executable.starts_with(hidden)) {
            return Err(Error::HiddenExecutable(executable.into()));
        }
        let unit = UNIT.content.replace(EXECUTABLE, &executable.display().to_string());
        done.extend(write(&root.join(UNIT.path), &unit)?);
        for file in [USERS, DIRECTORIES] {
            done.extend(write(&root.join(file.path), file.content)?);
        }
    }
    // The unit hands over /etc/wgmesh/<interface>.secret; another place needs a word of its own.
    let drop_in = drop_in(root, interface);
    match secret.drop_in(interface) {
        _ if is_foreign(&drop_in) => {
            done.push(format!("kept {}, which is not of our making", drop_in.display()))
        }
        Some(text) => done.extend(write(&drop_in, &text)?),
        None => done.extend(remove(&drop_in)?),
    }
    Ok(done)
}

/// Removes the files of one mesh, and those that all share unless another is enabled or runs.
fn remove_files(root: &Path, interface: &InterfaceName, others_run: bool) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    let drop_in = drop_in(root, interface);
    match is_foreign(&drop_in) {
        true => done.push(format!("kept {}, which is not of our making", drop_in.display())),
        false => done.extend(remove(&drop_in)?),
    }
    if let Some(directory) = drop_in.parent() {
        // Fails if somebody else keeps drop-ins there, which is as it should be.
        let _ = fs::remove_dir(directory);
    }
    let wanted = root.join("etc/systemd/system/multi-user.target.wants");
    remove(&wanted.join(instance(interface)))?;
    let others = fs::read_dir(&wanted).into_iter().flatten().flatten();
    let is_ours = |name: &OsStr| name.to_string_lossy().starts_with("wgmesh@");
    if !others_run && others.into_iter().all(|entry| !is_ours(&entry.file_name())) {
        for file in [UNIT, DIRECTORIES, USERS] {
            done.extend(remove(&root.join(file.path))?);
        }
    }
    Ok(done)
}

fn drop_in(root: &Path, interface: &InterfaceName) -> PathBuf {
    root.join(format!("etc/systemd/system/{}.d/secret.conf", instance(interface)))
}

/// Whether there is a drop-in that somebody else wrote.
fn is_foreign(drop_in: &Path) -> bool {
    let Ok(text) = fs::read_to_string(drop_in) else { return false };
    let ours = [PLAIN, ENCRYPTED].map(|key| format!("[Service]\n{PLAIN}=\n{key}=secret:/"));
    let path = ours.iter().find_map(|start| text.strip_prefix(start)?.strip_suffix('\n'));
    path.is_none_or(|path| path.contains('\n'))
}

/// Writes a file unless it is as it should be; tells what was done.
fn write(path: &Path, content: &str) -> Result<Option<String>, Error> {
    if fs::read(path).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(None);
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
    }
    fs::write(path, content).map_err(failed("write", path))?;
    Ok(Some(format!("wrote {}", path.display())))
}

/// Removes a file if there is one; tells what was done.
fn remove(path: &Path) -> Result<Option<String>, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(format!("removed {}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINARY: &str = "/usr/local/bin/wgmesh";

    fn name(text: &str) -> InterfaceName {
        text.parse().unwrap()
    }

    fn install_files(root: &Path, interface: &str, secret: &str) -> Vec<String> {
        write_files(root, &name(interface), Path::new(BINARY), &Handed::Plain(secret.into())).unwrap()
    }

    /// W-D47, X-47: the unit starts the binary itself, with no shell in between.
    #[test]
    fn the_written_unit_starts_this_binary_directly() {
        let root = tempfile::tempdir().unwrap();
        install_files(root.path(), "wgmesh0", "/etc/wgmesh/wgmesh0.secret");
        let unit = fs::read_to_string(root.path().join(UNIT.path)).unwrap();
        assert!(unit.contains("\nExecStart=/usr/local/bin/wgmesh run --interface %i\n"), "{unit}");
        assert!(unit.contains("\nExecReload=/usr/local/bin/wgmesh reload --interface %i\n"), "{unit}");
        assert!(!unit.contains(EXECUTABLE), "{unit}");
        assert!(root.path().join(USERS.path).exists());
        assert!(root.path().join(DIRECTORIES.path).exists());
        assert!(!drop_in(root.path(), &name("wgmesh0")).exists());
    }

    #[test]
    fn a_second_installation_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(install_files(root.path(), "wgmesh0", "/etc/wgmesh/wgmesh0.secret").len(), 3);
        assert!(install_files(root.path(), "wgmesh0", "/etc/wgmesh/wgmesh0.secret").is_empty());
    }

    /// W-D48, X-46: a secret in `secret.env` reaches the service as a credential, without a copy.
    #[test]
    fn a_secret_elsewhere_is_handed_over_by_a_drop_in() {
        let root = tempfile::tempdir().unwrap();
        install_files(root.path(), "wgmesh0", "/etc/wgmesh/secret.env");
        let text = fs::read_to_string(drop_in(root.path(), &name("wgmesh0"))).unwrap();
        assert_eq!(text, "[Service]\nLoadCredential=\nLoadCredential=secret:/etc/wgmesh/secret.env\n");

        install_files(root.path(), "wgmesh0", "/etc/wgmesh/wgmesh0.secret");
        assert!(!drop_in(root.path(), &name("wgmesh0")).exists());
    }

    /// Found in a review: what an operator had written to have the secret decrypted was overwritten, and removed at the end.
    #[test]
    fn an_encrypted_secret_is_handed_over_and_a_drop_in_of_the_operators_is_left_alone() {
        let (root, interface) = (tempfile::tempdir().unwrap(), name("wgmesh0"));
        let drop_in = drop_in(root.path(), &interface);
        let encrypted = Handed::Encrypted("/etc/wgmesh/wgmesh0.secret.cred".into());
        let text = || fs::read_to_string(&drop_in).unwrap();

        write_files(root.path(), &interface, Path::new(BINARY), &encrypted).unwrap();
        assert!(
            text().ends_with("\nLoadCredentialEncrypted=secret:/etc/wgmesh/wgmesh0.secret.cred\n"),
            "{}",
            text()
        );
        install_files(root.path(), "wgmesh0", "/etc/wgmesh/wgmesh0.secret");
        assert!(!drop_in.exists());

        let example = include_str!("../../systemd/encrypted-secret.conf.example");
        fs::write(&drop_in, example).unwrap();
        for secret in ["/etc/wgmesh/wgmesh0.secret", "/etc/wgmesh/secret.env"] {
            let done = install_files(root.path(), "wgmesh0", secret);
            assert!(done.iter().any(|line| line.starts_with("kept ")), "{done:?}");
        }
        remove_files(root.path(), &interface, false).unwrap();
        assert_eq!(text(), example);
    }

    #[test]
    fn files_of_a_package_are_used_as_they_are() {
        let root = tempfile::tempdir().unwrap();
        let packaged = root.path().join(UNIT.packaged);
        fs::create_dir_all(packaged.parent().unwrap()).unwrap();
        fs::write(packaged, "the package's").unwrap();
        assert!(install_files(root.path(), "wgmesh0", "/etc/wgmesh/wgmesh0.secret").is_empty());
        assert!(!root.path().join(UNIT.path).exists());
    }

    #[test]
    fn a_binary_that_the_sandbox_hides_is_refused_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let binary = Path::new("/home/me/target/debug/wgmesh");
        let error =
            write_files(root.path(), &name("wgmesh0"), binary, &Handed::Plain("/s".into())).unwrap_err();
        assert!(matches!(error, Error::HiddenExecutable(_)), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// W-D47: the files go with the last mesh that used them.
    #[test]
    fn the_last_mesh_takes_the_units_files_along() {
        let root = tempfile::tempdir().unwrap();
        let wanted = root.path().join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wanted).unwrap();
        for interface in ["wgmesh0", "wgmesh1"] {
            install_files(root.path(), interface, "/etc/wgmesh/secret.env");
            fs::write(wanted.join(instance(&name(interface))), "").unwrap();
        }

        remove_files(root.path(), &name("wgmesh0"), false).unwrap();
        assert!(root.path().join(UNIT.path).exists());
        assert!(!drop_in(root.path(), &name("wgmesh0")).parent().unwrap().exists());

        let others_run = true;
        remove_files(root.path(), &name("wgmesh1"), others_run).unwrap();
        assert!(root.path().join(UNIT.path).exists(), "one that is not enabled runs");

        remove_files(root.path(), &name("wgmesh1"), false).unwrap();
        for file in [UNIT, USERS, DIRECTORIES] {
            assert!(!root.path().join(file.path).exists(), "{}", file.path);
        }
    }
}
