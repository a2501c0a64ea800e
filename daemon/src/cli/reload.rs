//! `wgmesh reload`: what came of it, in lines for a human or as JSON for programs.

use std::io::{self, Write};

use super::{Error, tell};
use crate::api::client;
use crate::config::{File, Reloaded};

/// Has the daemon of this configuration read it anew.
pub(super) fn reload(config: &File, json: bool) -> Result<(), Error> {
    let reloaded = client::reload(&config.socket_path())?;
    if !json {
        return tell(lines(&reloaded));
    }
    let mut out = io::stdout();
    serde_json::to_writer_pretty(&mut out, &reloaded).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

fn lines(reloaded: &Reloaded) -> Vec<String> {
    let Reloaded { changed, needs_restart, skipped } = reloaded;
    let changes = match changed.as_slice() {
        [] => "nothing has changed".to_owned(),
        keys => format!("changed: {}", keys.join(", ")),
    };
    let waiting =
        (!needs_restart.is_empty()).then(|| format!("needs a restart: {}", needs_restart.join(", ")));
    let skipped = skipped.iter().map(|line| format!("skipped: {line}"));
    [changes].into_iter().chain(waiting).chain(skipped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W-D7: an operator sees what counts now, what does not yet, and what never will.
    #[test]
    fn every_finding_has_a_line() {
        assert_eq!(lines(&Reloaded::default()), ["nothing has changed"]);
        let reloaded = Reloaded {
            changed: vec!["log_level".to_owned(), "accept_routes".to_owned()],
            needs_restart: vec!["listen_port".to_owned()],
            skipped: vec!["/var/lib/wgmesh/wgmesh0.reload:1: this is not KEY=VALUE".to_owned()],
        };
        let expected = [
            "changed: log_level, accept_routes",
            "needs a restart: listen_port",
            "skipped: /var/lib/wgmesh/wgmesh0.reload:1: this is not KEY=VALUE",
        ];
        assert_eq!(lines(&reloaded), expected);
    }
}
