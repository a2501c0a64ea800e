//! Nodes to dial whose addresses are in DNS: names that stand for whichever nodes their zone lists today (P-4 to P-8, P-10).
//!
//! DNS is asked only while fewer than [`FEW`] peers are reached, at most once in [`PAUSE`], and never waited for. What it
//! says is a place to dial and no more: whoever answers there must have the secret. No key is held for such a name, since
//! the nodes behind it change.

use std::time::Duration;

use tokio::time::Instant;
use wgmesh_core::exchange::Target;
use wgmesh_core::mesh::Seed;
use wgmesh_core::status::{Source, SourceState};

use crate::config::{File, Method};
use crate::names::{Names, Service};

/// As many peers are enough to hear of the others from (REQUIREMENTS section 10).
const FEW: usize = 3;

/// The shortest time between two beginnings (P-7). In between, [`Names`] repeats by itself, ever more slowly.
const PAUSE: Duration = Duration::from_secs(60);

/// The most addresses that are dialled; a zone may list more than anybody needs.
const MAX_SEEDS: usize = 16;

/// Where nodes are looked for.
pub(super) struct DnsSeeds {
    services: Vec<Service>,
    names: Names,
    found: Vec<Seed>,
    is_asking: bool,
    asked: Option<Instant>,
    answered: Option<Instant>,
}

impl DnsSeeds {
    /// Takes the names of a configuration. Nothing is asked yet.
    pub(super) fn new(config: &File, port: u16) -> Self {
        let discovery = &config.discovery;
        let wanted = discovery.enabled_methods.contains(&Method::Dns);
        let seeds = discovery.dns_seeds.iter().filter(|_| wanted);
        let services: Vec<Service> =
            seeds.map(|seed| Service { host: seed.host.clone(), port: seed.port.unwrap_or(port) }).collect();
        let names = Names::resolve(Vec::new());
        Self { services, names, found: Vec::new(), is_asking: false, asked: None, answered: None }
    }

    /// Begins to ask where few peers are reached, and ends where there are enough. Returns whether what was found is void.
    pub(super) fn follow_reached(&mut self, reached: usize) -> bool {
        let is_due = self.asked.is_none_or(|at| at.elapsed() >= PAUSE);
        if self.is_asking && reached >= FEW {
            self.is_asking = false;
            self.names = Names::resolve(Vec::new());
            return !std::mem::take(&mut self.found).is_empty();
        }
        if !self.is_asking && reached < FEW && is_due && !self.services.is_empty() {
            tracing::debug!(reached, "looking for nodes by DNS");
            self.is_asking = true;
            self.asked = Some(Instant::now());
            self.names = Names::resolve(self.services.clone());
        }
        false
    }

    /// Waits until other addresses are known. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        let resolved = self.names.changed().await;
        self.answered = Some(Instant::now());
        let target = |(_, address)| Seed { name: None, target: Target { address, expected: None } };
        self.found = resolved.into_iter().take(MAX_SEEDS).map(target).collect();
    }

    /// Returns what was found.
    pub(super) fn seeds(&self) -> impl Iterator<Item = Seed> {
        self.found.iter().cloned()
    }

    /// Asks again: the host's links have changed.
    pub(super) fn again(&self) {
        self.names.again();
    }

    /// Returns how it goes, where there are names to ask for.
    pub(super) fn status(&self) -> Option<Source> {
        let first = self.services.first()?;
        let is_stuck = self.is_asking && self.found.is_empty();
        let (state, error) = match is_stuck {
            true => (SourceState::Failing, Some(format!("no address of {} is known", first.host))),
            false => (SourceState::Running, None),
        };
        let last_ok_s = self.answered.map(|at| at.elapsed().as_secs());
        Some(Source { name: "dns".to_owned(), state, last_ok_s, error, dht: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(text: &str) -> DnsSeeds {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh1.toml");
        std::fs::write(&path, format!("[discovery]\n{text}")).unwrap();
        DnsSeeds::new(&File::load(&path).unwrap(), 51_900)
    }

    /// P-4, P-7, P-8: asked while few are reached, told with the mesh's own port, and not again at once.
    #[tokio::test(start_paused = true)]
    async fn names_are_asked_while_few_peers_are_reached() {
        let mut dns = seeds("dns_seeds = [\"192.0.2.1\", \"192.0.2.2:7\"]");
        assert!(!dns.follow_reached(FEW) && !dns.is_asking, "there are enough");
        assert!(!dns.follow_reached(0));
        dns.changed().await;
        let found: Vec<String> = dns.seeds().map(|seed| seed.target.address.to_string()).collect();
        assert_eq!(found, ["192.0.2.1:51900", "192.0.2.2:7"]);
        assert_eq!(dns.status().unwrap().state, SourceState::Running);
        assert!(dns.follow_reached(FEW), "they are let go");
        assert_eq!(dns.seeds().count(), 0);
        assert!(!dns.follow_reached(0) && !dns.is_asking, "it was asked just now");
        tokio::time::advance(PAUSE).await;
        dns.follow_reached(0);
        assert!(dns.is_asking);
    }

    /// W-X44: off is off, and what cannot be found says so.
    #[tokio::test]
    async fn a_source_that_is_off_or_fails_is_told_apart() {
        assert!(seeds("").status().is_none());
        assert!(seeds("dns_seeds = [\"mesh\"]\nenabled_methods = [\"exchange\"]").status().is_none());
        let mut dns = seeds("dns_seeds = [\"mesh.invalid\"]");
        dns.follow_reached(0);
        let status = dns.status().unwrap();
        assert_eq!(
            (status.state, status.error.unwrap().as_str()),
            (SourceState::Failing, "no address of mesh.invalid is known")
        );
    }
}
