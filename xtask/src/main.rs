//! `cargo xtask`: builds, demonstrates, tests and measures wgmesh.

mod ebpf;
mod lab;
mod progress;
mod setup;
mod workspace;

use clap::Parser;

/// Builds, demonstrates, tests and measures wgmesh.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Builds the eBPF object that the daemon embeds.
    BuildEbpf,
    /// Installs what the other commands need from Debian and from rustup.
    Setup,
    /// Runs the tests of `tests/lab` on a real kernel, or opens a shell there.
    Lab(lab::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::BuildEbpf => {
            let object = ebpf::build_ebpf()?;
            println!("{}", object.display());
            Ok(())
        }
        Task::Setup => setup::ensure(),
        Task::Lab(arguments) => lab::main(&arguments),
    }
}
