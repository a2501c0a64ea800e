//! What can go wrong between us and the kernel, told apart where an operator must do something about it.

use std::fmt;

use nix::errno::Errno;

/// Says which step failed and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The kernel has no WireGuard.
    #[error(
        "this kernel has no WireGuard: load the module (`modprobe wireguard`), or install a kernel that has it, as \
         every distribution's own does since Linux 5.6"
    )]
    NoWireGuard,
    /// We lack a capability.
    #[error("not permitted to {step}: wgmesh needs CAP_NET_ADMIN")]
    NoPermission {
        /// What was tried.
        step: String,
    },
    /// The UDP port is taken.
    #[error(
        "cannot {step}: another program has the UDP port (`ss -ulpn` names it); set another `listen_port`"
    )]
    PortInUse {
        /// What was tried.
        step: String,
    },
    /// The host or the link does without IPv6.
    #[error("cannot {step}: IPv6 is disabled here")]
    NoIpv6 {
        /// What was tried.
        step: String,
    },
    /// Somebody else's route stands where ours should.
    #[error("cannot {step}: a route with the same destination and metric belongs to something else")]
    ForeignRoute {
        /// What was tried.
        step: String,
    },
    /// The kernel said no.
    #[error("cannot {step}: {refused}")]
    Refused {
        /// What was tried.
        step: String,
        /// The kernel's answer.
        refused: Refused,
    },
    /// The socket failed.
    #[error("cannot {step}: netlink: {}", errno.desc())]
    Socket {
        /// What was tried.
        step: String,
        /// Why it failed.
        errno: Errno,
    },
    /// The answer makes no sense to us.
    #[error("cannot {step}: the kernel's answer is not understood: {reason}")]
    Malformed {
        /// What was tried.
        step: String,
        /// What was wrong with it.
        reason: String,
    },
    /// The state changed under every attempt to read it.
    #[error("cannot {step}: it changed during every attempt")]
    Unsteady {
        /// What was tried.
        step: String,
    },
    /// The thread that owns the sockets is gone.
    #[error("the netlink thread has ended")]
    ThreadGone,
}

/// The kernel's refusal of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), where it has any.
    pub message: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.errno.desc())?;
        match &self.message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

/// A failure that does not yet know which step it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Refused(Refused),
    Socket(Errno),
    Malformed(String),
    Unsteady,
}

impl Failure {
    /// Returns whether the kernel refused with this error number.
    pub(super) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Refused(refused) if refused.errno == errno)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Socket(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

impl KernelError {
    /// Says why a link of WireGuard's kind was not made.
    pub(super) fn at_creation(step: impl Into<String>, failure: Failure) -> Self {
        if failure.is(Errno::EOPNOTSUPP) { Self::NoWireGuard } else { Self::at(step, failure) }
    }

    pub(super) fn at(step: impl Into<String>, failure: Failure) -> Self {
        let step = step.into();
        match failure {
            Failure::Refused(refused) => match refused.errno {
                Errno::EPERM => Self::NoPermission { step },
                Errno::EADDRINUSE => Self::PortInUse { step },
                _ => Self::Refused { step, refused },
            },
            Failure::Socket(errno) => Self::Socket { step, errno },
            Failure::Malformed(reason) => Self::Malformed { step, reason },
            Failure::Unsteady => Self::Unsteady { step },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> Failure {
        Failure::Refused(Refused { errno, message: None })
    }

    /// W-D43: a port that is taken is told apart.
    #[test]
    fn what_an_operator_must_act_on_has_its_own_kind() {
        let at = |errno| KernelError::at("bring the link up", refused(errno));
        assert!(matches!(at(Errno::EADDRINUSE), KernelError::PortInUse { .. }));
        assert!(matches!(at(Errno::EPERM), KernelError::NoPermission { .. }));
        assert!(matches!(at(Errno::EINVAL), KernelError::Refused { .. }));
    }

    /// `rtnl_newlink` in net/core/rtnetlink.c answers so where no module has the kind.
    #[test]
    fn a_kernel_without_wireguard_is_told_apart_and_what_to_do_is_said() {
        let error = KernelError::at_creation("make the link", refused(Errno::EOPNOTSUPP));
        assert!(error.to_string().contains("modprobe wireguard"), "{error}");
        let error = KernelError::at_creation("make the link", refused(Errno::EPERM));
        assert!(matches!(error, KernelError::NoPermission { .. }));
        let error = KernelError::at("add an address", refused(Errno::EOPNOTSUPP));
        assert!(matches!(error, KernelError::Refused { .. }), "only a link tells of the module");
    }

    #[test]
    fn an_error_names_the_step_and_the_kernels_own_words() {
        let message = Some("Nexthop has invalid gateway".into());
        let failure = Failure::Refused(Refused { errno: Errno::EINVAL, message });
        let text = KernelError::at("add route 10.0.0.0/8", failure).to_string();
        assert_eq!(text, "cannot add route 10.0.0.0/8: Invalid argument (Nexthop has invalid gateway)");
    }
}
