//! A configuration that is read anew while the daemon runs with it: what of it counts at once, and what only after a
//! restart.
//!
//! What is wrong with the file is found before anything of it counts. A key that needs a restart keeps the value that it
//! runs with, so it is named again by every reload until there is one.

use serde::{Deserialize, Serialize};

use super::overrides::Overrides;
use super::{Discovery, Error, File, Limits, Nat, Privacy, Relay};

/// What a reload has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The keys that have another value from now on.
    pub changed: Vec<String>,
    /// The keys that will have another value after a restart.
    pub needs_restart: Vec<String>,
    /// What made no sense in the file that overrides, each with its place and reason.
    pub skipped: Vec<String>,
}

/// When a new value of a key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    AtOnce,
    AfterRestart,
}

impl File {
    /// Reads the same configuration once more. Returns what to run with from now on, and what has changed.
    ///
    /// # Errors
    /// As for the first reading; whatever is in force stays as it is.
    pub fn reload(&self) -> Result<(Self, Reloaded), Error> {
        let mut found = match (self.is_optional, self.path.parent()) {
            (true, Some(directory)) => Self::of_interface_in(directory, &self.interface)?,
            (true, None) | (false, _) => Self::load(&self.path)?,
        };
        let skipped = found.apply(Overrides::load(&self.overrides_path()));
        let differing = self.differences(&found);
        let keys = |when| {
            let keys = differing.iter().filter(move |(_, counts)| *counts == when);
            keys.map(|(key, _)| (*key).to_owned()).collect()
        };
        let (changed, needs_restart) = (keys(Counts::AtOnce), keys(Counts::AfterRestart));
        Ok((self.taking(found), Reloaded { changed, needs_restart, skipped }))
    }

    /// Takes what is set beside the file. Returns what made no sense there, each with its place and reason.
    pub fn take_overrides(&mut self) -> Vec<String> {
        self.apply(Overrides::load(&self.overrides_path()))
    }

    fn apply(&mut self, (overrides, skipped): (Overrides, Vec<String>)) -> Vec<String> {
        let Overrides { advertise_routes, log_level } = overrides;
        self.advertise_routes =
            advertise_routes.unwrap_or_else(|| std::mem::take(&mut self.advertise_routes));
        self.log_level = log_level.unwrap_or(self.log_level);
        skipped
    }

    /// Lists the keys whose values differ. It names every field, so that none is forgotten here.
    fn differences(&self, found: &Self) -> Vec<(&'static str, Counts)> {
        use Counts::{AfterRestart, AtOnce};
        let Self {
            interface,
            secret_file,
            listen_port,
            subnet,
            hostname,
            state_dir,
            runtime_dir,
            log_level,
            advertise_routes,
            accept_routes,
            discovery: _,
            nat: _,
            relay: _,
            privacy: _,
            limits: _,
            path: _,
            is_optional: _,
        } = found;
        let keys = [
            ("interface", AfterRestart, *interface != self.interface),
            ("secret_file", AfterRestart, *secret_file != self.secret_file),
            ("listen_port", AfterRestart, *listen_port != self.listen_port),
            ("subnet", AfterRestart, *subnet != self.subnet),
            ("hostname", AfterRestart, *hostname != self.hostname),
            ("state_dir", AfterRestart, *state_dir != self.state_dir),
            ("runtime_dir", AfterRestart, *runtime_dir != self.runtime_dir),
            ("log_level", AtOnce, *log_level != self.log_level),
            ("advertise_routes", AtOnce, *advertise_routes != self.advertise_routes),
            ("accept_routes", AtOnce, *accept_routes != self.accept_routes),
        ];
        let keys = keys.into_iter().chain(self.differences_in_tables(found));
        keys.filter(|(.., differs)| *differs).map(|(key, counts, _)| (key, counts)).collect()
    }

    fn differences_in_tables(&self, found: &Self) -> [(&'static str, Counts, bool); 23] {
        use Counts::{AfterRestart, AtOnce};
        let Self { discovery, nat, relay, privacy, limits, .. } = self;
        let Discovery {
            enabled_methods,
            bootstrap_nodes,
            dns_seeds,
            static_peers,
            exchange_port,
            profile,
            target_peers,
            max_peers: session_limit,
            max_peers_per_exchange,
            min_peer_age,
            exchange_interval,
            dht,
        } = &found.discovery;
        let Nat { stun_servers, punching } = &found.nat;
        let Relay { mode, force, serve, max_pairs, rate, pair_rate } = &found.relay;
        let Privacy { dandelion } = &found.privacy;
        let Limits { max_peers } = &found.limits;
        [
            ("discovery.enabled_methods", AfterRestart, *enabled_methods != discovery.enabled_methods),
            ("discovery.bootstrap_nodes", AtOnce, *bootstrap_nodes != discovery.bootstrap_nodes),
            ("discovery.dns_seeds", AfterRestart, *dns_seeds != discovery.dns_seeds),
            ("discovery.static_peers", AtOnce, *static_peers != discovery.static_peers),
            ("discovery.exchange_port", AfterRestart, *exchange_port != discovery.exchange_port),
            ("discovery.profile", AfterRestart, profile != &discovery.profile),
            ("discovery.target_peers", AfterRestart, target_peers != &discovery.target_peers),
            ("discovery.max_peers", AfterRestart, session_limit != &discovery.max_peers),
            (
                "discovery.max_peers_per_exchange",
                AfterRestart,
                *max_peers_per_exchange != discovery.max_peers_per_exchange,
            ),
            ("discovery.min_peer_age", AfterRestart, *min_peer_age != discovery.min_peer_age),
            ("discovery.exchange_interval", AfterRestart, *exchange_interval != discovery.exchange_interval),
            ("discovery.dht.bootstrap", AtOnce, dht.bootstrap != discovery.dht.bootstrap),
            ("discovery.dht.port", AfterRestart, dht.port != discovery.dht.port),
            ("nat.stun_servers", AtOnce, *stun_servers != nat.stun_servers),
            ("nat.punching", AfterRestart, *punching != nat.punching),
            ("relay.mode", AfterRestart, *mode != relay.mode),
            ("relay.force", AfterRestart, *force != relay.force),
            ("relay.serve", AfterRestart, *serve != relay.serve),
            ("relay.max_pairs", AfterRestart, *max_pairs != relay.max_pairs),
            ("relay.rate", AfterRestart, *rate != relay.rate),
            ("relay.pair_rate", AfterRestart, *pair_rate != relay.pair_rate),
            ("privacy.dandelion", AfterRestart, *dandelion != privacy.dandelion),
            ("limits.max_peers", AfterRestart, *max_peers != limits.max_peers),
        ]
    }

    /// Returns this configuration with what counts at once of another.
    fn taking(&self, found: Self) -> Self {
        let mut next = self.clone();
        next.log_level = found.log_level;
        next.advertise_routes = found.advertise_routes;
        next.accept_routes = found.accept_routes;
        next.discovery.bootstrap_nodes = found.discovery.bootstrap_nodes;
        next.discovery.static_peers = found.discovery.static_peers;
        next.discovery.dht.bootstrap = found.discovery.dht.bootstrap;
        next.nat.stun_servers = found.nat.stun_servers;
        next
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::super::LogLevel;
    use super::*;

    const KEY: &str = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";

    /// A configuration file and a state directory, in one folder.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new(text: &str) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            place.write(text);
            place
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("mesh1.toml")
        }

        fn write(&self, text: &str) {
            let state = self.0.path().display();
            fs::write(self.path(), format!("state_dir = \"{state}\"\n{text}")).unwrap();
        }

        fn set(&self, text: &str) {
            fs::write(self.0.path().join("mesh1.reload"), text).unwrap();
        }
    }

    /// W-D7: everything that can change without a restart changes, and only that.
    #[test]
    fn what_counts_at_once_is_taken_and_the_rest_is_named() {
        let place = Place::new("");
        let running = File::load(&place.path()).unwrap();
        place.write(&format!(
            "log_level = \"debug\"\nadvertise_routes = [\"10.7.0.0/24\"]\naccept_routes = [\"10.0.0.0/8\"]\n\
             listen_port = 7\n[discovery]\nstatic_peers = [\"{KEY}\"]\nbootstrap_nodes = [\"mesh1\"]\n\
             [discovery.dht]\nbootstrap = [\"192.0.2.1\"]\nport = 6881\n[nat]\nstun_servers = []\npunching = false\n"
        ));

        let (next, reloaded) = running.reload().unwrap();

        let at_once = ["log_level", "advertise_routes", "accept_routes"];
        let listed = [
            "discovery.bootstrap_nodes",
            "discovery.static_peers",
            "discovery.dht.bootstrap",
            "nat.stun_servers",
        ];
        assert_eq!(reloaded.changed, [&at_once[..], &listed].concat());
        assert_eq!(reloaded.needs_restart, ["listen_port", "discovery.dht.port", "nat.punching"]);
        assert_eq!((next.log_level, next.advertise_routes.len()), (LogLevel::Debug, 1));
        assert_eq!((next.listen_port, next.nat.punching), (51820, true));
        assert!(next.nat.stun_servers.is_empty() && next.discovery.dht.port.is_none());

        let (after, again) = next.reload().unwrap();
        assert_eq!(after, next);
        assert_eq!((again.changed.len(), again.needs_restart), (0, reloaded.needs_restart));
    }

    /// the two keys of the other file count over those of the configuration.
    #[test]
    fn what_is_set_beside_the_file_counts_over_it() {
        let place = Place::new("advertise_routes = [\"10.7.0.0/24\"]\n");
        let mut running = File::load(&place.path()).unwrap();
        place.set("advertise-routes=10.8.0.0/24\nlog-level=trace\nx\n");

        let (next, reloaded) = running.reload().unwrap();

        assert_eq!(reloaded.changed, ["log_level", "advertise_routes"]);
        assert!(reloaded.skipped[0].ends_with("mesh1.reload:3: this is not KEY=VALUE"), "{reloaded:?}");
        assert_eq!(next.advertise_routes, ["10.8.0.0/24".parse().unwrap()].into());
        assert_eq!(next.log_level, LogLevel::Trace);

        running.take_overrides();
        assert_eq!(running, next, "a start takes what a reload takes");
        fs::remove_file(running.overrides_path()).unwrap();
        assert_eq!(running.reload().unwrap().0.advertise_routes, ["10.7.0.0/24".parse().unwrap()].into());
    }

    #[test]
    fn a_file_that_is_wrong_or_gone_is_an_error_with_its_place() {
        let place = Place::new("");
        let running = File::load(&place.path()).unwrap();
        place.write("advertise_routs = []\n");
        let error = running.reload().unwrap_err().to_string();
        assert!(error.contains("mesh1.toml:2:1: `advertise_routs`: unknown key"), "{error}");
        fs::remove_file(place.path()).unwrap();
        assert!(matches!(running.reload(), Err(Error::Read { .. })));
    }

    #[test]
    fn a_mesh_that_was_named_by_its_interface_still_needs_no_file() {
        let place = Place::new("advertise_routes = [\"10.7.0.0/24\"]\n");
        let running = File::of_interface_in(place.0.path(), &"mesh1".parse().unwrap()).unwrap();
        fs::remove_file(place.path()).unwrap();
        let (next, reloaded) = running.reload().unwrap();
        assert!(next.advertise_routes.is_empty());
        assert_eq!(reloaded.changed, ["advertise_routes"]);
        assert_eq!(reloaded.needs_restart, ["state_dir"]);
    }
}
