//! `cargo xtask`: builds, demonstrates, tests and measures wgmesh.

mod bench;
mod demo;
mod deny;
mod ebpf;
mod lab;
mod package;
mod progress;
mod setup;
mod sim;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

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
    /// Shows the main job in the lab: three hosts with one secret become a mesh.
    Demo,
    /// Measures the product in the lab, beside WireGuard made by hand.
    Bench(bench::Arguments),
    /// Makes a Debian package and a plain archive in `target/package`.
    Package(package::Arguments),
    /// Checks licences, sources and advisories of what we depend on.
    Deny,
    /// Passes every check: format, lints, unit and simulation tests, then the lab.
    Test,
    /// Runs a fleet on a virtual network and prints its figures.
    Sim(sim::Arguments),
    /// Checks what the style asks for and no compiler checks.
    Tidy,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::BuildEbpf => {
            let object = ebpf::build_ebpf()?;
            println!("{}", object.display());
            Ok(())
        }
        Task::Setup => setup::ensure(),
        Task::Lab(arguments) => lab::main(&arguments),
        Task::Demo => demo::main(),
        Task::Package(arguments) => package::main(&arguments),
        Task::Deny => deny::main(),
        Task::Bench(arguments) => bench::main(&arguments),
        Task::Test => test::main(),
        Task::Sim(arguments) => sim::main(&arguments),
        Task::Tidy => tidy::main(),
    }
}
