//! The command line: what each command takes, and how it ends.
//!
//! Facts go to standard output, everything else to standard error. Exit codes are those of sysexits.h, which
//! systemd also shows by name: 0 done, 1 failed, 2 wrong usage, 69 no daemon is running, 77 no permission,
//! 78 the configuration or the secret is wrong, 79 the daemon has left the mesh as `wgmesh leave` asked.

mod check;
mod doctor;
mod explain;
mod init;
mod leave;
mod metrics;
mod netcheck;
mod peer;
mod peers;
mod ping;
mod reload;
mod run;
mod status;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use wgmesh_core::kernel::InterfaceName;

use crate::api::{self, client};
use crate::config::{self, File};
use crate::pins::Pin;
use crate::{install, privileges};

const EXIT_FAILED: u8 = 1;
const EXIT_UNAVAILABLE: u8 = 69;
const EXIT_NO_PERMISSION: u8 = 77;
const EXIT_CONFIGURATION: u8 = 78;
/// systemd does not start a daemon again that ends so: see `RestartPreventExitStatus=` in the unit.
const EXIT_LEFT: u8 = 79;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 69 no daemon is running, 77 no permission, \
                          78 the configuration or the secret is wrong, 79 left the mesh as `wgmesh leave` asked.";

const EXAMPLE: &str = "On the first host:\n  wgmesh init --output /etc/wgmesh/wgmesh0.secret\n  wgmesh install-service\n\
                       Copy the secret to the other hosts (mode 0600) and run `wgmesh install-service` there.";

/// One secret makes hosts a WireGuard mesh.
///
/// Give every host the same secret: they find each other, get their addresses, and keep kernel WireGuard right
/// with no server and no operator.
#[derive(Debug, Parser)]
#[command(name = "wgmesh", version, after_help = EXIT_CODES, after_long_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new secret, which is a new mesh.
    Init {
        /// Write it to this file, readable by its owner only, instead of printing it.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Run the daemon in the foreground.
    ///
    /// SIGTERM and SIGINT withdraw everything from the kernel; SIGUSR1 exits and leaves the tunnels working; SIGHUP reads
    /// the configuration anew, as `wgmesh reload` does.
    Run {
        #[command(flatten)]
        mesh: Mesh,
    },
    /// Show this node and its peers.
    Status {
        #[command(flatten)]
        mesh: Mesh,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
        /// Show public keys and IPv6 addresses too, and of every peer why it is not reached.
        #[arg(short, long, conflicts_with = "json")]
        wide: bool,
    },
    /// List the peers, and whom `wgmesh peer add` has named.
    Peers {
        #[command(flatten)]
        mesh: Mesh,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
        /// Show public keys and IPv6 addresses too, and of every peer why it is not reached.
        #[arg(short, long, conflicts_with = "json")]
        wide: bool,
    },
    /// Print the daemon's counters for monitoring, as OpenMetrics text.
    ///
    /// The daemon gives the same to `GET /metrics` on its socket. Prometheus takes it from a file by node_exporter's textfile
    /// collector: `wgmesh metrics > wgmesh.prom`.
    Metrics {
        #[command(flatten)]
        mesh: Mesh,
    },
    /// Name a peer or a node to the running daemon, or have it let go of one.
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Have the running daemon read its configuration anew.
    ///
    /// Takes up `log_level`, `advertise_routes`, `accept_routes`, `discovery.bootstrap_nodes`, `discovery.static_peers`,
    /// `discovery.dht.bootstrap` and `nat.stun_servers` without touching the tunnels, and says which other keys wait for a restart. `advertise-routes=` and
    /// `log-level=` in STATE_DIR/INTERFACE.reload count over the configuration file. If that file is wrong, everything stays as
    /// it was; a line of the other that makes no sense is skipped.
    Reload {
        #[command(flatten)]
        mesh: Mesh,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
    },
    /// Tell how a peer is reached, since when, what was tried, and why nothing better is used.
    Explain {
        /// The peer: its host name, its public key or the beginning of it, or its mesh address.
        peer: String,
        #[command(flatten)]
        mesh: Mesh,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
    },
    /// Look for what keeps this host from its mesh: configuration, kernel, permissions, ports, firewall, clock, NAT, peers.
    ///
    /// Works with and without a running daemon. Ends with code 1 if something must be mended. Run it as root, or less can be
    /// seen.
    Doctor {
        #[command(flatten)]
        mesh: Mesh,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
    },
    /// Leave the mesh: the daemon says goodbye, takes everything out of the kernel and ends.
    ///
    /// systemd does not start it again by itself; `systemctl start` brings the node back as it was, and a boot does too
    /// unless the unit is disabled.
    Leave {
        #[command(flatten)]
        mesh: Mesh,
        /// Forget the node's key, its peers and whom `peer add` has named: it would come back as a stranger.
        #[arg(long)]
        forget: bool,
    },
    /// Show what the NAT in front of this host does.
    ///
    /// Has the daemon ask its STUN servers (`nat.stun_servers`) anew, through WireGuard's own port, and shows where they
    /// see that port, the NAT's type, and which peers it keeps from being reached directly; names the routers on the way, and
    /// says whether the provider has a NAT of its own. Takes up to 5 seconds. That no server answers is a finding, not an
    /// error: the type is then `unknown`.
    Netcheck {
        #[command(flatten)]
        mesh: Mesh,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
    },
    /// Ping a peer's WireGuard port and show which address answers, how fast, and how the tunnel goes.
    ///
    /// Pings go from WireGuard's port to WireGuard's port, outside the tunnel. Ends with code 1, and the reason, if none
    /// is answered within 2 seconds each.
    Ping {
        /// The peer: its host name, its public key or the beginning of it, or its mesh address.
        peer: String,
        #[command(flatten)]
        mesh: Mesh,
        /// How many pings to send, one a second.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        /// Print JSON for programs, after the last ping.
        #[arg(long)]
        json: bool,
    },
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Install, enable and start the systemd service of a mesh.
    ///
    /// Needs the mesh's secret in place: make one with `wgmesh init`, or copy it from another host.
    InstallService(Instance),
    /// Stop the systemd service of a mesh and remove it. Secret, configuration and state stay.
    UninstallService(Instance),
    /// Print the manual pages, for `man -l -` and for packages.
    Man,
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum PeerCommand {
    /// Name a peer by its key, or a node to dial by its host. Kept over restarts, beside the configuration file.
    ///
    /// KEY names a peer that is always wanted; KEY@ADDRESS:PORT says where its WireGuard answers, too. HOST, HOST:PORT
    /// and either with #KEY name a node whose exchange is dialled over TLS; with a key, only its holder will do. Whoever is
    /// named must have the mesh's secret: nobody gets in by being named.
    ///
    /// Waits up to 10 s until a node has proved itself at a HOST and says which one it is. Where none has, or one with another
    /// key, that is an error, although the host stays named and is dialled on and on.
    Add {
        /// KEY[@ADDRESS:PORT] or HOST[:PORT][#KEY].
        peer: Pin,
        /// Wait for nobody.
        #[arg(long)]
        no_wait: bool,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        mesh: Mesh,
    },
    /// Let go of a peer, or of a host that was named.
    ///
    /// The peer leaves the kernel at once, is no longer named, and stays out on this node, also after a restart, until it is
    /// added again. Where the configuration names it, in `discovery.static_peers`, that counts from the next start on: take it
    /// out there too. On other nodes nothing changes: to shut a host out of the mesh, change the secret on all others.
    Remove {
        /// The peer: its host name, its public key or the beginning of it, or its mesh address; or a HOST[:PORT] that was named.
        peer: String,
        #[command(flatten)]
        mesh: Mesh,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Tell whether a configuration and its secret can be used.
    Check {
        /// The file [default: /etc/wgmesh/wgmesh0.toml].
        file: Option<PathBuf>,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
    },
}

/// Which mesh of this host is meant, where only one in /etc/wgmesh can be.
#[derive(Debug, Args)]
struct Instance {
    /// The mesh's interface, configured in /etc/wgmesh/INTERFACE.toml.
    #[arg(short, long, value_name = "INTERFACE", default_value_t = config::default_interface())]
    interface: InterfaceName,
}

/// Which mesh of this host is meant.
#[derive(Debug, Args)]
struct Mesh {
    /// The mesh's configuration file.
    #[arg(short, long, value_name = "FILE", conflicts_with = "interface")]
    config: Option<PathBuf>,
    /// The mesh's interface; stands for /etc/wgmesh/INTERFACE.toml [default: wgmesh0].
    #[arg(short, long, value_name = "INTERFACE")]
    interface: Option<InterfaceName>,
}

impl Mesh {
    fn load(self) -> Result<File, config::Error> {
        match (self.config, self.interface) {
            (Some(path), _) => File::load(&path),
            (None, Some(interface)) => File::of_interface(&interface),
            (None, None) => File::of_interface(&config::default_interface()),
        }
    }
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Secret(#[from] config::secret::Error),
    #[error("the configuration cannot be used")]
    Checked,
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    #[error(transparent)]
    Api(#[from] api::Error),
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Init(#[from] init::Error),
    #[error(transparent)]
    Install(#[from] install::Error),
    #[error("something keeps this host from its mesh")]
    Unwell,
    #[error("this node has left the mesh")]
    Left,
    #[error(transparent)]
    Unclear(#[from] peer::Unclear),
    #[error("{0} does not answer: {1}")]
    NoAnswer(String, String),
    #[error("{0} is named and dialled on and on, but not reached yet: {1}")]
    NotReached(String, String),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Run(#[from] crate::run::Error),
    #[error(
        "{0}: the service's files belong to its user, and the daemon has given away root's power over files of others; \
         start the service (`systemctl start wgmesh@{1}`), or set another `state_dir` and `runtime_dir`"
    )]
    ServicesFiles(#[source] crate::run::Error, InterfaceName),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(config::Error::Read { source, .. })
            | Self::Secret(config::secret::Error::Read { source, .. })
            | Self::Api(api::Error::File { source, .. })
            | Self::Install(
                install::Error::Secret(config::secret::Error::Read { source, .. })
                | install::Error::File { source, .. },
            ) if source.kind() == io::ErrorKind::PermissionDenied => EXIT_NO_PERMISSION,
            Self::Config(_)
            | Self::Secret(_)
            | Self::Checked
            | Self::Install(
                install::Error::Secret(_)
                | install::Error::OtherDirectory { .. }
                | install::Error::UnreadableConfig(_),
            ) => EXIT_CONFIGURATION,
            Self::Privileges(privileges::Error::NoNetAdmin) | Self::Client(client::Error::Permission(_)) => {
                EXIT_NO_PERMISSION
            }
            Self::Client(client::Error::NotRunning(_)) => EXIT_UNAVAILABLE,
            Self::ServicesFiles(..) => EXIT_NO_PERMISSION,
            Self::Left => EXIT_LEFT,
            Self::Run(error) if error.is_permission() => EXIT_NO_PERMISSION,
            Self::Run(error) if error.is_refusal() => EXIT_CONFIGURATION,
            Self::Privileges(_)
            | Self::Api(_)
            | Self::Client(_)
            | Self::Unclear(_)
            | Self::NoAnswer(..)
            | Self::NotReached(..)
            | Self::Unwell
            | Self::Init(_)
            | Self::Install(_)
            | Self::Runtime(_)
            | Self::Run(_)
            | Self::Output(_) => EXIT_FAILED,
        }
    }
}

/// Does what the process's arguments ask for.
pub fn main() -> ExitCode {
    match Arguments::parse().command.execute() {
        Ok(()) => ExitCode::SUCCESS,
        // Somebody closed the pipe, as `head` does: they have what they wanted.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to hear of a failure to write this.
            let _ = writeln!(io::stderr(), "wgmesh: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints one page for the whole and one for each command, as one document.
fn print_manual(output: &mut impl Write) -> io::Result<()> {
    let mut whole = command();
    whole.build();
    print_pages(&whole, output)
}

fn print_pages(command: &clap::Command, output: &mut impl Write) -> io::Result<()> {
    let title = command.get_display_name().unwrap_or_else(|| command.get_name());
    clap_mangen::Man::new(command.clone()).title(title).section("8").render(output)?;
    let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    inner.into_iter().try_for_each(|inner| print_pages(inner, output))
}

fn command() -> clap::Command {
    Arguments::command()
}

impl Command {
    fn execute(self) -> Result<(), Error> {
        match self {
            Self::Init { output } => Ok(init::make_secret(output.as_deref())?),
            Self::Run { mesh } => run::start(mesh.load()?),
            Self::Status { mesh, json, wide } => status::show(&mesh.load()?, json, wide),
            Self::Peers { mesh, json, wide } => peers::list(&mesh.load()?, json, wide),
            Self::Metrics { mesh } => metrics::print(&mesh.load()?),
            Self::Peer(PeerCommand::Add { peer, no_wait, json, mesh }) => {
                peers::add(&mesh.load()?, &peer, !no_wait, json)
            }
            Self::Peer(PeerCommand::Remove { peer, mesh }) => peers::remove(&mesh.load()?, &peer),
            Self::Reload { mesh, json } => reload::reload(&mesh.load()?, json),
            Self::Explain { peer, mesh, json } => explain::show(&mesh.load()?, &peer, json),
            Self::Doctor { mesh, json } => doctor::examine(mesh.load(), json),
            Self::Leave { mesh, forget } => tell(leave::leave(&mesh.load()?, forget)?),
            Self::Netcheck { mesh, json } => netcheck::show(&mesh.load()?, json),
            Self::Ping { peer, mesh, count, json } => ping::run(&mesh.load()?, &peer, count, json),
            Self::Config(ConfigCommand::Check { file, json }) => check::report(file, json),
            Self::InstallService(Instance { interface }) => {
                let config = File::of_interface(&interface)?;
                tell(runtime()?.block_on(install::install(&config))?)
            }
            Self::UninstallService(Instance { interface }) => {
                tell(runtime()?.block_on(install::uninstall(&interface))?)
            }
            Self::Man => Ok(print_manual(&mut io::stdout())?),
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut command(), "wgmesh", &mut io::stdout());
                Ok(())
            }
        }
    }
}

fn tell(lines: Vec<String>) -> Result<(), Error> {
    let mut out = io::stdout();
    Ok(lines.iter().try_for_each(|line| writeln!(out, "{line}"))?)
}

/// Makes a runtime of one thread: what waits here is the kernel, systemd and the network, never the processor.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_mesh_is_named_by_file_or_by_interface_but_not_both() {
        let parse = |arguments: &[&str]| Arguments::try_parse_from(arguments);
        assert!(parse(&["wgmesh", "run", "--config", "a.toml"]).is_ok());
        assert!(parse(&["wgmesh", "status", "--interface", "mesh1", "--json"]).is_ok());
        assert!(parse(&["wgmesh", "run", "--config", "a.toml", "--interface", "a"]).is_err());
        assert!(parse(&["wgmesh", "run", "--interface", "no/name"]).is_err());
    }

    /// M-4: what cannot name anybody is wrong usage, with the reason.
    #[test]
    fn a_peer_to_add_is_checked_before_the_daemon_is_asked() {
        let parse = |peer| Arguments::try_parse_from(["wgmesh", "peer", "add", peer]);
        assert!(parse("mesh1.example.org:51900").is_ok());
        let error = parse("short=").unwrap_err().to_string();
        assert!(error.contains("\"short=\" is no public key"), "{error}");
    }

    #[test]
    fn the_manual_tells_of_every_command() {
        let mut manual = Vec::new();
        print_manual(&mut manual).unwrap();
        let manual = String::from_utf8(manual).unwrap();
        assert!(manual.contains("wgmesh\\-peer\\-add"), "{manual}");
        for command in command().get_subcommands() {
            assert!(
                manual.contains(&format!("wgmesh\\-{}", command.get_name().replace('-', "\\-"))),
                "{}",
                command.get_name()
            );
        }
    }

    /// W-D48: no option takes the secret, where every user of the host could read it.
    #[test]
    fn no_argument_takes_the_secret() {
        for command in command().get_subcommands() {
            for argument in command.get_arguments() {
                assert!(!argument.get_id().as_str().contains("secret"), "{}", command.get_name());
            }
        }
    }
}
