//! Gives away every power that the daemon does not need.
//!
//! Linux keeps capabilities per thread and hands them on to new threads, so [`keep_needed`] runs before the
//! first thread is started. What stays: NET_ADMIN (links, addresses, routes, WireGuard, attaching eBPF), NET_RAW
//! (raw sockets on WireGuard's own port), BPF and PERFMON (loading the eBPF programs).
//!
//! After the programs are loaded, [`drop_loading`] takes PERFMON away, which only the verifier asks for. BPF goes
//! too on Linux 5.19 and newer; before commit c8644cd0efe7 every bpf(2) call, also the reading of a map, needs
//! it where `kernel.unprivileged_bpf_disabled` is set, as distributions do.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const NEEDED: [Capability; 4] =
    [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_BPF, Capability::CAP_PERFMON];

/// Locked memory for maps and ring buffer, in bytes. Only kernels before 5.11 count them against this limit.
const LOCKED_MEMORY: u64 = 128 * 1024 * 1024;

/// The first kernel on which a loaded map can be read without CAP_BPF.
const MAPS_WITHOUT_CAP_BPF: (u32, u32) = (5, 19);

/// Powers that are missing or could not be given away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Without it, nothing can be done at all.
    #[error(
        "no permission to set up the network: run as root or with CAP_NET_ADMIN, as the unit wgmesh@.service does"
    )]
    NoNetAdmin,
    /// The kernel refused.
    #[error("cannot reduce capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel refused.
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivileges(nix::Error),
}

/// Leaves this thread, and those it will start, the needed capabilities of those that it has.
///
/// # Errors
/// [`Error::NoNetAdmin`] if the daemon could not work, before anything was changed.
pub fn keep_needed() -> Result<(), Error> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN)? {
        return Err(Error::NoNetAdmin);
    }
    raise_locked_memory();
    nix::sys::prctl::set_no_new_privs().map_err(Error::NoNewPrivileges)?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for unneeded in caps::runtime::thread_all_supported().difference(&CapsHashSet::from(NEEDED)) {
            caps::drop(None, CapSet::Bounding, *unneeded)?;
        }
    }
    keep(&NEEDED)
}

/// Takes from this thread what only the loading of eBPF programs needs. Threads that already run keep theirs:
/// each that loaded, or was started before, calls this for itself.
///
/// # Errors
/// If the kernel refused.
pub fn drop_loading() -> Result<(), Error> {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    keep(needed_after_loading(&release.unwrap_or_default()))
}

fn needed_after_loading(release: &str) -> &'static [Capability] {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    if version.is_some_and(|version| version >= MAPS_WITHOUT_CAP_BPF) {
        &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW]
    } else {
        &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_BPF]
    }
}

fn keep(needed: &[Capability]) -> Result<(), Error> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = needed.iter().copied().filter(|one| permitted.contains(one)).collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    Ok(caps::set(None, CapSet::Permitted, &kept)?)
}

/// Must come before CAP_SYS_RESOURCE goes. A failure shows as eBPF that does not load, which is not fatal.
fn raise_locked_memory() {
    let raised = getrlimit(Resource::RLIMIT_MEMLOCK).and_then(|(soft, hard)| {
        setrlimit(Resource::RLIMIT_MEMLOCK, soft.max(LOCKED_MEMORY), hard.max(LOCKED_MEMORY))
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "cannot raise the limit of locked memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a thread of its own, because it is the thread's capabilities that go.
    fn in_a_thread<T: Send>(task: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(task).join().unwrap())
    }

    fn permitted() -> CapsHashSet {
        caps::read(None, CapSet::Permitted).unwrap()
    }

    /// C-8: no more than the four are left, in no set.
    #[test]
    fn only_the_needed_capabilities_are_left() {
        let before = permitted();
        let outcome = in_a_thread(|| {
            let outcome = keep_needed();
            (outcome, permitted(), caps::read(None, CapSet::Inheritable).unwrap())
        });
        let (outcome, after, inheritable) = outcome;
        if before.contains(&Capability::CAP_NET_ADMIN) {
            outcome.unwrap();
            assert_eq!(after, before.intersection(&CapsHashSet::from(NEEDED)).copied().collect());
            assert!(inheritable.is_empty());
        } else {
            assert!(matches!(outcome, Err(Error::NoNetAdmin)), "{outcome:?}");
            assert_eq!(after, before);
        }
        assert_eq!(permitted(), before, "another thread's capabilities are its own");
    }

    #[test]
    fn without_net_admin_the_error_says_what_to_do() {
        let outcome = in_a_thread(|| {
            caps::clear(None, CapSet::Effective).unwrap();
            keep_needed()
        });
        assert!(outcome.unwrap_err().to_string().contains("run as root or with CAP_NET_ADMIN"));
    }

    /// C-8: PERFMON goes after loading everywhere, BPF where maps can be read without it.
    #[test]
    fn what_only_loading_needs_goes_afterwards() {
        for (release, bpf_stays) in [
            ("5.10.0-32-cloud-amd64", true),
            ("5.18.19", true),
            ("5.19.0-rc1", false),
            ("6.1.0-18-amd64", false),
            ("6.12.9+deb13", false),
            ("", true),
            ("mainline", true),
        ] {
            let needed = needed_after_loading(release);
            assert_eq!(needed.contains(&Capability::CAP_BPF), bpf_stays, "{release}");
            assert!(!needed.contains(&Capability::CAP_PERFMON), "{release}");
        }
    }

    #[test]
    fn dropping_for_good_cannot_be_undone() {
        in_a_thread(|| {
            drop_loading().unwrap();
            assert!(!permitted().contains(&Capability::CAP_PERFMON));
            assert!(caps::raise(None, CapSet::Effective, Capability::CAP_PERFMON).is_err());
        });
    }
}
