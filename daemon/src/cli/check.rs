//! `wgmesh config check`: whether a configuration and its secret can be used.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;
use crate::config::{self, Dht, File, Method, Mode, Problem, secret};

const WEAK: &str = "the secret was not made by `wgmesh init`: if a person thought it up, others can guess it";

/// The finding as programs read it.
#[derive(Debug, Default, Serialize)]
struct Finding {
    ok: bool,
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Where in the file the error is.
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    problem: Option<Problem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

pub(super) fn report(file: Option<PathBuf>, json: bool) -> Result<(), Error> {
    let file = file.unwrap_or_else(|| {
        Path::new(config::DIRECTORY).join(format!("{}.toml", config::default_interface()))
    });
    let outcome = check(&file);
    if !json {
        let warnings = outcome?;
        let mut out = io::stdout();
        warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))?;
        return Ok(writeln!(out, "{}: OK", file.display())?);
    }
    let finding = match &outcome {
        Ok(warnings) => Finding { ok: true, file, warnings: warnings.clone(), ..Finding::default() },
        Err(error) => {
            Finding { file, error: Some(error.to_string()), problem: placed(error), ..Finding::default() }
        }
    };
    serde_json::to_writer_pretty(io::stdout(), &finding).map_err(io::Error::from)?;
    writeln!(io::stdout())?;
    outcome.map(drop).map_err(|_| Error::Checked)
}

fn placed(error: &Error) -> Option<Problem> {
    match error {
        Error::Config(config::Error::Invalid { problem, .. }) => Some(problem.clone()),
        _ => None,
    }
}

/// Returns warnings about a configuration that works.
fn check(path: &Path) -> Result<Vec<String>, Error> {
    let file = File::load(path)?;
    let weak = match secret::find(&file) {
        Ok(found) => found.secret.is_weak().then(|| format!("{}: {WEAK}", found.path.display())),
        Err(secret::Error::Encrypted { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(weak.into_iter().chain(file.unreadable_to_service()).chain(idle(&file)).collect())
}

/// Says what is set and has no effect, or less than one would think.
fn idle(file: &File) -> Vec<String> {
    let cases = about_sessions(file).into_iter().chain(about_the_dht(file)).chain([
        (
            file.nat.punching && file.nat.stun_servers.len() == 1,
            "`nat.stun_servers` names one server: it takes two to tell the type of a NAT",
        ),
        (
            file.relay.force && (file.relay.mode == Mode::Off || !file.nat.punching),
            "`relay.force` has no effect: `relay.mode` is `off`, or `nat.punching` is false",
        ),
    ]);
    cases.filter(|(applies, _)| *applies).map(|(_, words)| words.to_owned()).collect()
}

fn lacks(file: &File, method: Method) -> bool {
    !file.discovery.enabled_methods.contains(&method)
}

fn about_sessions(file: &File) -> [(bool, &'static str); 6] {
    let discovery = &file.discovery;
    let no_sessions = lacks(file, Method::Exchange);
    [
        (
            !discovery.bootstrap_nodes.is_empty() && (lacks(file, Method::Bootstrap) || no_sessions),
            "`discovery.bootstrap_nodes` is not used: `discovery.enabled_methods` lacks `bootstrap` or `exchange`",
        ),
        (
            !discovery.static_peers.is_empty() && lacks(file, Method::Manual),
            "`discovery.static_peers` is not used: `discovery.enabled_methods` lacks `manual`",
        ),
        (
            !discovery.dns_seeds.is_empty() && (lacks(file, Method::Dns) || no_sessions),
            "`discovery.dns_seeds` is not used: `discovery.enabled_methods` lacks `dns` or `exchange`",
        ),
        (
            discovery.exchange_port.is_some() && no_sessions,
            "`discovery.exchange_port` is not used: `discovery.enabled_methods` lacks `exchange`",
        ),
        (
            discovery.target_peers > discovery.max_peers && discovery.max_peers.is_some(),
            "`discovery.target_peers` is more than `discovery.max_peers`, which counts",
        ),
        (
            no_sessions
                && (discovery.profile.is_some()
                    || discovery.target_peers.is_some()
                    || discovery.max_peers.is_some()),
            "`discovery.profile`, `target_peers` and `max_peers` are not used: `discovery.enabled_methods` lacks `exchange`",
        ),
    ]
}

fn about_the_dht(file: &File) -> [(bool, &'static str); 5] {
    let (no_dht, no_gossip) = (lacks(file, Method::Dht), lacks(file, Method::Gossip));
    let dht = &file.discovery.dht;
    [
        (
            *dht != Dht::default() && no_dht,
            "`discovery.dht.bootstrap` is not used: `discovery.enabled_methods` lacks `dht`",
        ),
        (
            dht.bootstrap.is_empty() && !no_dht,
            "`discovery.dht.bootstrap` is empty: the DHT is only found by nodes of it that an earlier run has met",
        ),
        (
            !no_dht && no_gossip && lacks(file, Method::Exchange),
            "`discovery.enabled_methods` has `dht` and neither `exchange` nor `gossip`: two hosts meet as fast, but a node that \
             has met one looks for others only every five minutes, and nobody tells it of them sooner",
        ),
        (
            file.privacy.dandelion && no_dht,
            "`privacy.dandelion` is not used: `discovery.enabled_methods` lacks `dht`",
        ),
        (
            file.privacy.dandelion && no_gossip && !no_dht,
            "`privacy.dandelion` keeps this node out of the DHT: `discovery.enabled_methods` lacks `gossip`, by which others \
             are asked to publish it",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn configured(secret: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let secret_path = directory.path().join("s");
        fs::write(&secret_path, secret).unwrap();
        fs::set_permissions(secret_path, fs::Permissions::from_mode(0o600)).unwrap();
        let path = directory.path().join("mesh1.toml");
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn two_lines_and_a_secret_are_enough() {
        let secret = wgmesh_core::secret::MeshSecret::from_random([1; 32]).to_uri();
        let (_directory, path) = configured(&secret, "interface = \"mesh1\"\nsecret_file = \"s\"\n");
        assert_eq!(check(&path).unwrap(), Vec::<String>::new());
    }

    /// W-D38: a secret that a person thought up works, with a warning.
    #[test]
    fn a_weak_secret_is_warned_about() {
        let (_directory, path) = configured("correct horse battery", "secret_file = \"s\"");
        let warnings = check(&path).unwrap();
        assert!(warnings[0].contains("others can guess it"), "{warnings:?}");
    }

    #[test]
    fn a_relay_that_is_forced_and_never_sought_is_warned_about() {
        let secret = wgmesh_core::secret::MeshSecret::from_random([1; 32]).to_uri();
        for (more, warned) in [("", false), ("mode = \"off\"\n", true), ("[nat]\npunching = false\n", true)] {
            let text = format!("secret_file = \"s\"\n[relay]\nforce = true\n{more}");
            let (_directory, path) = configured(&secret, &text);
            let warnings = check(&path).unwrap();
            assert_eq!(warnings.iter().any(|warning| warning.contains("`relay.force`")), warned, "{text}");
        }
    }

    #[test]
    fn what_has_no_effect_is_warned_about() {
        let secret = wgmesh_core::secret::MeshSecret::from_random([1; 32]).to_uri();
        let text = "secret_file = \"s\"\n[discovery]\nenabled_methods = [\"lan\"]\nexchange_port = 1\nprofile = \"bridge\"\n\
                    bootstrap_nodes = [\"mesh1\"]\ndns_seeds = [\"mesh2\"]\nstatic_peers = [\"pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=\"]\n\
                    [discovery.dht]\nbootstrap = []\n[nat]\nstun_servers = [\"stun.example.org\"]\n[privacy]\ndandelion = true\n";
        let (_directory, path) = configured(&secret, text);
        let warnings = check(&path).unwrap();
        for key in [
            "bootstrap_nodes",
            "dns_seeds",
            "static_peers",
            "exchange_port",
            "profile",
            "dht.bootstrap",
            "stun_servers",
            "privacy.dandelion",
        ] {
            assert_eq!(warnings.iter().filter(|warning| warning.contains(key)).count(), 1, "{warnings:?}");
        }
    }

    /// W-X29: nothing but the DHT's slow rounds would tell a third host of the others.
    #[test]
    fn the_dht_alone_is_warned_about() {
        let secret = wgmesh_core::secret::MeshSecret::from_random([1; 32]).to_uri();
        for (methods, count) in [("\"dht\"", 1), ("\"dht\", \"gossip\"", 0), ("\"dht\", \"exchange\"", 0)] {
            let text = format!("secret_file = \"s\"\n[discovery]\nenabled_methods = [{methods}]\n");
            let (_directory, path) = configured(&secret, &text);
            assert_eq!(check(&path).unwrap().len(), count, "{methods}");
        }
    }

    #[test]
    fn who_has_nobody_to_be_published_by_is_told() {
        let secret = wgmesh_core::secret::MeshSecret::from_random([1; 32]).to_uri();
        let text =
            "secret_file = \"s\"\n[discovery]\nenabled_methods = [\"dht\"]\n[privacy]\ndandelion = true\n";
        let (_directory, path) = configured(&secret, text);
        assert!(check(&path).unwrap().iter().any(|warning| warning.contains("lacks `gossip`")));
    }

    #[test]
    fn an_error_has_its_place_for_programs_too() {
        let (_directory, path) = configured("", "secret_file = \"s\"\nlisten_prot = 1");
        let error = check(&path).unwrap_err();
        assert_eq!(error.exit_code(), 78);
        let finding =
            Finding { problem: placed(&error), error: Some(error.to_string()), ..Finding::default() };
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!((&json["line"], &json["key"]), (&2.into(), &"listen_prot".into()));
        assert_eq!(json["hint"], "did you mean `listen_port`?");
    }
}
