//! Names of other hosts become addresses, again and again: a name server may come up late, and names move.
//!
//! Each list has a task of its own; one name that fails costs the others nothing. A failure is tried again soon, then
//! more slowly, and at once when the host's links change; a success is looked up again after [`REFRESH`]. Looking up is
//! the C library's and may take long, so nobody ever waits for it; and where no route leads out it is not even begun.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How long a name's addresses are good for.
const REFRESH: Duration = Duration::from_secs(600);

/// The wait after the first failure; three times as long after each next one.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// A host and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name or address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What a list of services resolves to: for each that is known, its place in the list and an address. Services keep their
/// order.
pub type Resolved = Vec<(usize, SocketAddr)>;

/// A list of services that is being resolved for as long as this lives.
#[derive(Debug)]
pub struct Names {
    resolved: watch::Receiver<Resolved>,
    again: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Names {
    /// Starts to resolve. Must be called within a tokio runtime.
    pub fn resolve(services: Vec<Service>) -> Self {
        let (sender, resolved) = watch::channel(Resolved::new());
        let again = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        if !services.is_empty() {
            task.spawn(keep_resolved(services, sender, Arc::clone(&again)));
        }
        Self { resolved, again, _task: task }
    }

    /// Waits until there is something new. Never returns for an empty list. Cancel-safe.
    pub async fn changed(&mut self) -> Resolved {
        match self.resolved.changed().await {
            Ok(()) => self.resolved.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether nothing on the list has an address yet.
    pub fn is_unknown(&self) -> bool {
        self.resolved.borrow().is_empty()
    }

    /// Looks everything up anew: the host's links have changed.
    pub fn again(&self) {
        self.again.notify_one();
    }
}

async fn keep_resolved(services: Vec<Service>, sender: watch::Sender<Resolved>, again: Arc<Notify>) {
    let mut retry = FIRST_RETRY;
    loop {
        let (resolved, complete) = resolve_all(&services).await;
        // What was known stays known while the name server is silent.
        if complete || resolved.len() >= sender.borrow().len() {
            sender.send_if_modified(|known| {
                let differs = *known != resolved;
                *known = resolved;
                differs
            });
        }
        let pause = if complete { REFRESH } else { retry };
        retry = if complete { FIRST_RETRY } else { (retry * 3).min(REFRESH) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = again.notified() => retry = FIRST_RETRY,
        }
    }
}

/// Looks all names up side by side. Returns what was found, and whether that is everything.
async fn resolve_all(services: &[Service]) -> (Resolved, bool) {
    let mut lookups = JoinSet::new();
    let may_ask = is_route_out();
    for (place, Service { host, port }) in services.iter().cloned().enumerate() {
        if let Ok(ip) = host.parse::<IpAddr>() {
            lookups.spawn(std::future::ready(vec![(place, SocketAddr::new(ip, port))]));
            continue;
        }
        if !may_ask {
            continue;
        }
        lookups.spawn(async move {
            let found = tokio::net::lookup_host((host.as_str(), port)).await;
            match found {
                Ok(addresses) => addresses.map(|address| (place, address)).collect(),
                Err(error) => {
                    tracing::debug!(host, %error, "cannot resolve a name");
                    Vec::new()
                }
            }
        });
    }
    let mut resolved: Resolved = lookups.join_all().await.into_iter().flatten().collect();
    resolved.sort_unstable();
    let known = |place| resolved.iter().any(|(one, _)| *one == place);
    let complete = (0..services.len()).all(known);
    (resolved, complete)
}

/// Whether this host has a route to where no neighbour is: to networks that exist in books only (RFC 5737, RFC 3849), to
/// which nothing is sent.
fn is_route_out() -> bool {
    let leads_to = |from: IpAddr, to: IpAddr| {
        UdpSocket::bind((from, 0)).and_then(|socket| socket.connect((to, 9))).is_ok()
    };
    leads_to(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 51, 100, 1).into())
        || leads_to(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(host: &str) -> Service {
        Service { host: host.to_owned(), port: 7 }
    }

    #[tokio::test]
    async fn addresses_resolve_to_themselves_in_their_order() {
        let mut names = Names::resolve(vec![service("192.0.2.2"), service("2001:db8::1")]);
        let expected = vec![(0, "192.0.2.2:7".parse().unwrap()), (1, "[2001:db8::1]:7".parse().unwrap())];
        assert_eq!(names.changed().await, expected);
    }

    /// P-3, X-54: what has no address holds up nothing.
    #[tokio::test]
    async fn one_bad_name_costs_the_others_nothing() {
        let (resolved, complete) = resolve_all(&[service("no such host"), service("192.0.2.2")]).await;
        assert_eq!(resolved, [(1, "192.0.2.2:7".parse().unwrap())]);
        assert!(!complete);
    }
}
