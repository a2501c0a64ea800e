//! Shows that every pair of NATs meets that can, and that it stays so; started in the lab's VM by `cargo xtask lab
//! nat-matrix` and `cargo xtask lab soak`.

mod matrix;
mod soak;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use wgmesh_lab::NatKind;

/// What is shown.
#[derive(Parser)]
enum Show {
    /// Every pair's path and how long it took to find.
    Matrix {
        /// How many pairs meet at once.
        #[arg(long, default_value_t = 4)]
        at_once: usize,
        /// For how many seconds a pair is given a chance.
        #[arg(long, default_value_t = 30)]
        limit: u64,
        /// Only pairs whose name contains this.
        #[arg(long, default_value = "")]
        pair: String,
        /// Print what the daemons of a pair logged that is not as it should be.
        #[arg(long)]
        logs: bool,
    },
    /// Every pair that can meet, all at once, over WireGuard's rekeys.
    Soak {
        /// For how many seconds.
        #[arg(long, default_value_t = 420)]
        seconds: u64,
        /// Only pairs whose name contains this.
        #[arg(long, default_value = "")]
        pair: String,
    },
}

fn main() -> ExitCode {
    let is_good = match Show::parse() {
        Show::Matrix { at_once, limit, pair, logs } => {
            matrix::show(&chosen(&pair), at_once, Duration::from_secs(limit), logs)
        }
        Show::Soak { seconds, pair } => soak::show(&chosen(&pair), Duration::from_secs(seconds)),
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn chosen(part: &str) -> Vec<[NatKind; 2]> {
    let pairs: Vec<_> = NatKind::pairs().into_iter().filter(|pair| name(*pair).contains(part)).collect();
    assert!(!pairs.is_empty(), "no pair's name contains {part:?}");
    pairs
}

fn name([left, right]: [NatKind; 2]) -> String {
    format!("{left} × {right}")
}

/// Returns a table's cell for a duration in seconds.
fn seconds(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{:.2} s", duration.as_secs_f64()))
}
