//! `xtask build-ebpf`: builds the eBPF object that the daemon embeds, and first whatever that takes.
//!
//! No nightly compiler is needed. The pinned stable one compiles `core` for the BPF target from its own `rust-src`
//! component, and `bpf-linker` is built against the very LLVM library that ships with the compiler, because the
//! linker reads the compiler's bitcode. Everything is kept under `target/`; what is there and fits is not built
//! again. Nothing outside `target/` changes but rustup's `rust-src` component and cargo's own caches.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The linker's version: one whose features know the LLVM of the pinned compiler.
const LINKER_VERSION: &str = "0.13.0";

/// An environment variable that names a `bpf-linker` to use instead of building one, for packagers.
const LINKER_VARIABLE: &str = "BPF_LINKER";

/// The target triple; every architecture that we run on is little-endian.
const TARGET: &str = "bpfel-unknown-none";

/// Builds the eBPF object and returns where it is.
pub(crate) fn build_ebpf() -> Result<PathBuf> {
    let workspace = Workspace::find()?;
    let compiler = Compiler::ask(&workspace)?;
    compiler.ensure_rust_src(&workspace)?;
    let linker = match env::var_os(LINKER_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => ensure_linker(&workspace, &compiler)?,
    };
    let built = compile(&workspace, &linker)?;
    let object = workspace.target.join("ebpf/wgmesh.o");
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Where things are.
struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
        Ok(Self { root: root.to_owned(), target: root.join("target") })
    }

    /// Makes a command that runs in the workspace and knows nothing of the cargo that runs us: its flags, profiles
    /// and library paths are meant for other targets.
    fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            if is_leak(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        command
    }
}

/// Tells whether a variable would carry our own cargo's settings into a child's.
fn is_leak(name: &str) -> bool {
    const NAMES: [&str; 5] =
        ["CARGO", "CARGO_ENCODED_RUSTFLAGS", "LD_LIBRARY_PATH", "RUSTDOCFLAGS", "RUSTFLAGS"];
    const PREFIXES: [&str; 6] =
        ["CARGO_BUILD_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PROFILE_", "CARGO_TARGET_", "RUSTC"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The compiler that rust-toolchain.toml pins.
struct Compiler {
    sysroot: PathBuf,
    version: String,
    llvm_major: String,
}

impl Compiler {
    fn ask(workspace: &Workspace) -> Result<Self> {
        let sysroot = output(workspace.command("rustc").args(["--print", "sysroot"]))?;
        let version = output(workspace.command("rustc").arg("-vV"))?;
        let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let llvm_major =
            llvm.and_then(|llvm| llvm.split('.').next()).context("rustc names no LLVM version")?;
        let llvm_major = llvm_major.to_owned();
        Ok(Self { sysroot: sysroot.trim().into(), version, llvm_major })
    }

    fn ensure_rust_src(&self, workspace: &Workspace) -> Result<()> {
        if self.sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
            return Ok(());
        }
        run(workspace.command("rustup").args(["component", "add", "rust-src"]))
            .context("the compiler's rust-src component is missing and rustup did not add it")
    }

    fn library_folder(&self) -> PathBuf {
        self.sysroot.join("lib")
    }

    /// Finds the LLVM library itself. Beside it stands a linker script of a similar name that `lld` cannot follow
    /// from elsewhere.
    fn llvm_library(&self) -> Result<PathBuf> {
        let folder = self.library_folder();
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let libraries = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("libLLVM"));
        let largest = libraries.max_by_key(|entry| entry.metadata().map_or(0, |data| data.len()));
        largest.map(|entry| entry.path()).with_context(|| {
            let folder = folder.display();
            format!("no libLLVM in {folder}: set {LINKER_VARIABLE} to a bpf-linker of the same LLVM")
        })
    }
}

/// Returns the path of a linker that fits the compiler, built now unless the last one still fits.
fn ensure_linker(workspace: &Workspace, compiler: &Compiler) -> Result<PathBuf> {
    let tools = workspace.target.join("tools");
    let linker = tools.join("bin/bpf-linker");
    let stamp = tools.join("bpf-linker.stamp");
    let wanted = format!("{LINKER_VERSION}\n{}\n{}", compiler.sysroot.display(), compiler.version);
    if linker.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(linker);
    }
    eprintln!("building bpf-linker {LINKER_VERSION} (once, about a minute)");
    let llvm = tools.join("llvm");
    link_llvm(&llvm, &compiler.llvm_library()?)?;
    let build = tools.join("build");
    let mut install = workspace.command("cargo");
    install.args(["install", "bpf-linker", "--quiet", "--locked", "--force", "--no-default-features"]);
    install.arg("--version").arg(format!("={LINKER_VERSION}"));
    install.arg("--features").arg(format!("llvm-{}", compiler.llvm_major));
    install.arg("--root").arg(&tools).arg("--target-dir").arg(&build);
    install.env("LLVM_PREFIX", &llvm);
    let search_path = format!("-Clink-arg=-Wl,-rpath,{}", compiler.library_folder().display());
    install.env("CARGO_ENCODED_RUSTFLAGS", search_path);
    run(&mut install).context("bpf-linker did not build")?;
    fs::remove_dir_all(&build).ok();
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(linker)
}

/// Makes the folder that the linker's build takes for an LLVM installation.
fn link_llvm(folder: &Path, library: &Path) -> Result<()> {
    let libraries = folder.join("lib");
    fs::create_dir_all(&libraries).with_context(|| format!("cannot make {}", libraries.display()))?;
    let link = libraries.join("libLLVM.so");
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
    }
    std::os::unix::fs::symlink(library, &link).with_context(|| format!("cannot make {}", link.display()))
}

/// Compiles the programs; cargo itself knows when there is nothing to do. Neither debug information nor BTF is
/// asked for: the programs read no kernel struct, and the daemon's loader hands the kernel bare instructions.
fn compile(workspace: &Workspace, linker: &Path) -> Result<PathBuf> {
    let folder = workspace.target.join("ebpf/build");
    let mut build = workspace.command("cargo");
    build.args(["build", "--quiet", "--release", "--package", "wgmesh-ebpf", "--target", TARGET]);
    build.args(["-Z", "build-std=core"]).arg("--target-dir").arg(&folder);
    build.env("RUSTC_BOOTSTRAP", "1");
    build.env("CARGO_ENCODED_RUSTFLAGS", format!("-Clinker={}", linker.display()));
    run(&mut build).context("the eBPF programs did not build")?;
    Ok(folder.join(TARGET).join("release/wgmesh-ebpf"))
}

/// Copies the object only where its content differs, so that the daemon is not built again for nothing.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|found| found == content) {
        return Ok(());
    }
    fs::write(to, content).with_context(|| format!("cannot write {}", to.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} ended with {status}", command.get_program());
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("the answer is not text")
}

#[cfg(test)]
mod tests {
    use super::is_leak;

    #[test]
    fn a_child_cargo_keeps_registry_settings_and_loses_build_settings() {
        for kept in
            ["PATH", "CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX", "RUSTUP_TOOLCHAIN"]
        {
            assert!(!is_leak(kept), "{kept}");
        }
        for lost in
            ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO", "RUSTC_WRAPPER", "CARGO_PROFILE_RELEASE_LTO"]
        {
            assert!(is_leak(lost), "{lost}");
        }
    }
}
