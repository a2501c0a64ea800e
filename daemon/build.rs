//! Finds the eBPF object that the daemon embeds: `WGMESH_EBPF_OBJECT` if set, else what `xtask build-ebpf` made.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=WGMESH_EBPF_OBJECT");
    let object = env::var_os("WGMESH_EBPF_OBJECT").map_or_else(built_by_xtask, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-env=WGMESH_EBPF_OBJECT_PATH={}", object.display());
    } else {
        println!("cargo::error=no eBPF object at {}: run `cargo xtask build-ebpf` first", object.display());
    }
}

fn built_by_xtask() -> PathBuf {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    package.parent().expect("the package is in the workspace").join("target/ebpf/wgmesh.o")
}
