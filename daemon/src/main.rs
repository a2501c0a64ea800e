//! The `wgmesh` binary: see [`wgmesh::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    wgmesh::cli::main()
}
