//! `cargo xtask`: builds, demonstrates, tests and measures wgmesh.

mod ebpf;

use clap::Parser;

/// Builds, demonstrates, tests and measures wgmesh.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Builds the eBPF object that the daemon embeds.
    BuildEbpf,
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::BuildEbpf => {
            let object = ebpf::build_ebpf()?;
            println!("{}", object.display());
            Ok(())
        }
    }
}
