//! Hooking programs to interfaces: by tcx links on Linux 6.6 and newer, by filters of a clsact qdisc before.
//!
//! Ours and foreign stand side by side on both. A tcx link is ours because it is pinned in our folder or held by this
//! process. A filter is ours by the pair of [`PRIORITY`] and a handle made from the mesh interface's name, so several
//! meshes share an underlay link. Nothing else is ever replaced or removed. A clsact qdisc that we had to add stays:
//! nobody could tell whether somebody else relies on it by now, and an empty one does nothing. Besides, Linux drops what is sent
//! over the link while a qdisc is added or removed (`dev_deactivate`), so it is better done once.

use std::io;
use std::path::Path;

use aya::pin::PinError;
use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use nix::errno::Errno;

use super::syscall;

/// The filters' priority: a number that hardly anybody chooses, and before those that the kernel gives out.
const PRIORITY: u16 = 0x57;

/// Why a program could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused the program at this interface.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel made or keeps a link of another kind.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The link could not be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A pin or an interface could not be looked at.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AttachError {
    fn errno(&self) -> Option<Errno> {
        let code = match self {
            Self::Program(
                ProgramError::TcError(TcError::NetlinkError(error)) | ProgramError::NetlinkError(error),
            ) => error.raw_os_error(),
            Self::Program(ProgramError::TcError(TcError::IoError(error))) | Self::Io(error) => {
                error.raw_os_error()
            }
            Self::Program(_) | Self::Link(_) | Self::Pin(_) => None,
        };
        code.map(Errno::from_raw)
    }
}

/// What a program is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// To count and to note.
    Watch,
    /// To relay.
    Relay,
}

/// How programs are hooked on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// By tcx links.
    Tcx,
    /// By clsact filters with this handle.
    Clsact(u32),
}

impl Hook {
    /// Chooses the hook for the programs of the mesh on `interface`. Programs that share a link and a direction are of
    /// different `roles`.
    pub(super) fn choose(interface: &str, role: Role) -> Self {
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => Self::Tcx,
            _ => Self::Clsact(handle_of(interface, role)),
        }
    }

    /// Attaches the program until the link is dropped or, with tcx, the process ends.
    pub(super) fn attach(
        self,
        program: &mut SchedClassifier,
        interface: &str,
        direction: TcAttachType,
    ) -> Result<SchedClassifierLink, AttachError> {
        let id = match self {
            Self::Tcx => {
                let first = TcAttachOptions::TcxOrder(LinkOrder::first());
                program.attach_with_options(interface, direction, first)?
            }
            Self::Clsact(handle) => {
                add_clsact(interface)?;
                attach_filter(program, interface, direction, handle)?
            }
        };
        Ok(program.take_link(id)?)
    }

    /// Attaches the program so that it stays when the process ends, in place of what an earlier run left.
    pub(super) fn attach_lasting(
        self,
        program: &mut SchedClassifier,
        interface: &str,
        direction: TcAttachType,
        pin: &Path,
    ) -> Result<(), AttachError> {
        if self == Self::Tcx && adopt(program, pin)? {
            return Ok(());
        }
        let link = self.attach(program, interface, direction)?;
        match self {
            Self::Tcx => drop(FdLink::try_from(link)?.pin(pin)?),
            // Dropping the link would take the filter away.
            Self::Clsact(_) => std::mem::forget(link),
        }
        Ok(())
    }

    /// Takes away what [`attach_lasting`](Self::attach_lasting) left; nothing there is fine.
    pub(super) fn detach_lasting(self, interface: &str, direction: TcAttachType, pin: &Path) {
        match self {
            // One whose interface is gone cannot be detached, and need not be.
            Self::Tcx => {
                syscall::detach_pinned(pin).ok();
                remove_pin(pin).ok();
            }
            Self::Clsact(handle) => detach_filter(interface, direction, handle),
        }
    }
}

/// Takes every filter of this mesh from all links, whichever run made it; tcx links go with their pins.
pub(super) fn detach_filters(mesh: &str) {
    let Ok(links) = nix::net::if_::if_nameindex() else { return };
    for link in links.iter().filter_map(|link| link.name().to_str().ok()) {
        for hook in [Role::Watch, Role::Relay].map(|role| Hook::choose(mesh, role)) {
            if let Hook::Clsact(handle) = hook {
                detach_filter(link, TcAttachType::Ingress, handle);
                detach_filter(link, TcAttachType::Egress, handle);
            }
        }
    }
}

fn detach_filter(interface: &str, direction: TcAttachType, handle: u32) {
    // A link detaches when it is dropped. An interface that is gone took its filters along.
    SchedClassifierLink::attached(interface, direction, PRIORITY, handle.into(), None).map(drop).ok();
}

/// Puts the program into the link that is pinned there. Tells whether that worked: a link whose interface is gone
/// is dead for ever, and its pin is removed.
fn adopt(program: &mut SchedClassifier, pin: &Path) -> Result<bool, AttachError> {
    let replaced = PinnedLink::from_pin(pin)
        .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)))
        .map_err(AttachError::from)
        .and_then(|link| Ok(program.attach_to_link(link)?));
    let Ok(id) = replaced else {
        remove_pin(pin)?;
        return Ok(false);
    };
    // The pin keeps the link; our descriptor is not needed.
    drop(program.take_link(id)?);
    Ok(true)
}

/// Makes our filter. One that an earlier run left has the same name, priority and handle, and is replaced in one
/// step; where there is none, the kernel says so.
fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
    handle: u32,
) -> Result<SchedClassifierLinkId, AttachError> {
    let handle = TcHandle::from(handle);
    let left = SchedClassifierLink::attached(interface, direction, PRIORITY, handle, None)?;
    match program.attach_to_link(left).map_err(AttachError::from) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => {
            let ours = NlOptions { priority: PRIORITY, handle, classid: None };
            Ok(program.attach_with_options(interface, direction, TcAttachOptions::Netlink(ours))?)
        }
        other => other,
    }
}

fn add_clsact(interface: &str) -> Result<(), AttachError> {
    match tc::qdisc_add_clsact(interface).map_err(ProgramError::from).map_err(AttachError::from) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// Makes the filters' handle from the mesh interface's name (FNV-1a) and the role, never zero, which means "choose one".
fn handle_of(interface: &str, role: Role) -> u32 {
    let hash = interface
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    match role {
        Role::Watch => hash.max(1),
        Role::Relay => (!hash).max(1),
    }
}

/// Removes a pin if it is there.
fn remove_pin(pin: &Path) -> io::Result<()> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Role, handle_of};

    #[test]
    fn meshes_on_one_host_have_filters_of_their_own() {
        for role in [Role::Watch, Role::Relay] {
            assert_ne!(handle_of("wgmesh0", role), handle_of("wgmesh1", role));
            assert_ne!(handle_of("", role), 0);
        }
        assert_ne!(handle_of("wgmesh0", Role::Watch), handle_of("wgmesh0", Role::Relay));
    }
}
