//! The bpf(2) calls that aya 0.14 makes only from inside its own loader, or not at all.
//!
//! That loader first reads and parses the type information of the whole kernel (20 ms and 11 MiB on a fast machine,
//! a good part of the time to join under emulation), which programs that read no kernel struct have no use for. From
//! 0.15 on aya leaves that out, but it asks for a newer compiler than the one we pin; this module goes when that
//! changes. The only unsafe code of the eBPF part is here and where the ring buffer is registered with the reactor.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attr, bpf_attr__bindgen_ty_16, bpf_cmd, bpf_insn, bpf_prog_type};
use nix::libc;

/// Loads a tc program and returns its descriptor. The verifier's words go to `log` if it is not empty.
pub(super) fn load_classifier(
    name: &CStr,
    license: &CStr,
    instructions: &[bpf_insn],
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    // SAFETY: bpf_attr is a C union of integers; all zero is how the kernel wants unused fields.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: BPF_PROG_LOAD reads this member of the union, which is all integers.
    let program = unsafe { &mut attributes.__bindgen_anon_3 };
    program.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    program.insns = instructions.as_ptr() as u64;
    program.insn_cnt = instructions.len() as u32;
    program.license = license.as_ptr() as u64;
    let room = program.prog_name.len() - 1;
    for (to, from) in program.prog_name[..room].iter_mut().zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    if !log.is_empty() {
        program.log_level = 1;
        program.log_buf = log.as_mut_ptr() as u64;
        program.log_size = log.len() as u32;
    }
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel just opened this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins what the descriptor stands for at a path on bpffs.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    // SAFETY: as above.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: BPF_OBJ_PIN reads this member of the union, which is all integers.
    let object = unsafe { &mut attributes.__bindgen_anon_4 };
    object.bpf_fd = fd.as_raw_fd() as u32;
    object.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Ends the link that is pinned at a path on bpffs, at once. Without this it ends some time after its last reference, the pin,
/// is gone (`bpf_link_put` in kernel/bpf/syscall.c), and until then its program cannot be put there anew.
pub(super) fn detach_pinned(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: as above.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: BPF_OBJ_GET reads this member of the union, which is all integers.
    let object = unsafe { &mut attributes.__bindgen_anon_4 };
    object.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel just opened this descriptor for us, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: as above.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.link_detach = bpf_attr__bindgen_ty_16 { link_fd: link.as_raw_fd() as u32 };
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes).map(drop)
}

/// Calls bpf(2).
fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    let size = size_of::<bpf_attr>();
    // SAFETY: the attributes are initialised, as long as said, and every pointer in them outlives the call, because
    // the callers borrow what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
