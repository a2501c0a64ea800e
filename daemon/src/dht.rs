//! This host's node of Mainline DHT: carries out what [`wgmesh_core::dht`] orders.
//!
//! The node is started by the first request and ended when the core says that it may rest, since it wakes some 18 times a
//! second. It only ever asks: nothing is stored here for others. It begins with the hosts that the configuration names and
//! with nodes that answered before; where there is neither, a request fails at once and says so.
//!
//! A request that fails is told as such, and nothing else is held up. So is one in which the library panics, as answers of
//! strangers can have it do ([`crate::panics`]); the node is another then. Events wait in a channel of [`WAITING_EVENTS`];
//! when it is full, requests wait.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use mainline::async_dht::AsyncDht;
use mainline::errors::PutMutableError;
use mainline::{Id, MutableItem, SigningKey};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wgmesh_core::dht::{DhtEvent, Failure, ItemKey, Order, Request, RequestId};

use crate::panics::{contain, contain_async};

/// The hosts that let anybody into Mainline DHT, for those who name none of their own.
pub const PUBLIC_BOOTSTRAP: [&str; 4] = mainline::DEFAULT_BOOTSTRAP_NODES;

/// How long a node of the DHT may take to answer. Whoever takes longer is no good place to store anything, and every
/// lookup waits this long for those that are gone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// The most nodes that are remembered.
const MAX_REMEMBERED: usize = 64;

/// With how many of those a start begins, each start with others: every one of them is asked at once.
const BEGIN_WITH: usize = 16;

/// How long the end of the daemon waits for the list of nodes.
const LIST_PATIENCE: Duration = Duration::from_millis(200);

const WAITING_EVENTS: usize = 64;

/// The node, while it runs, and what it may begin with.
pub struct Dht {
    port: Option<NonZeroU16>,
    bootstrap: Vec<SocketAddrV4>,
    remembered: Vec<SocketAddrV4>,
    starts: usize,
    node: Option<AsyncDht>,
    /// Whether the library has panicked since that was started.
    broken: Arc<AtomicBool>,
    /// Whoever holds it looks up a slot once more.
    again: Arc<Mutex<()>>,
    tell: mpsc::Sender<DhtEvent>,
    told: mpsc::Receiver<DhtEvent>,
    tasks: JoinSet<()>,
}

impl Dht {
    /// Makes a node that does not run yet, with those that answered in earlier runs. Its UDP port is the one given, or any
    /// that is free.
    pub fn new(port: Option<NonZeroU16>, remembered: Vec<SocketAddrV4>) -> Self {
        let (tell, told) = mpsc::channel(WAITING_EVENTS);
        let (bootstrap, tasks) = (Vec::new(), JoinSet::new());
        let (broken, again) = (Arc::default(), Arc::default());
        Self { port, bootstrap, remembered, starts: 0, node: None, broken, again, tell, told, tasks }
    }

    /// Takes the addresses of the hosts to begin with. The DHT itself is IPv4.
    pub fn set_bootstrap(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let v4 = |address| match address {
            SocketAddr::V4(v4) => Some(v4),
            SocketAddr::V6(_) => None,
        };
        self.bootstrap = addresses.into_iter().filter_map(v4).collect();
    }

    /// Has the core begin: everything else has, and there may be somebody to ask.
    pub fn open(&self) {
        // The channel is empty before the first order.
        let _ = self.tell.try_send(DhtEvent::Opened);
    }

    /// Carries out an order. Must be called within a tokio runtime.
    pub fn carry_out(&mut self, order: Order) {
        while self.tasks.try_join_next().is_some() {}
        match order {
            Order::Ask { id, request } => self.ask(id, request),
            Order::ListNodes => {
                let Some(node) = self.node.clone() else { return };
                let (tell, broken) = (self.tell.clone(), Arc::clone(&self.broken));
                self.tasks.spawn(async move {
                    let nodes = contain_async(list(&node)).await.unwrap_or_else(|_| {
                        broken.store(true, Ordering::Relaxed);
                        Vec::new()
                    });
                    let _ = tell.send(DhtEvent::Nodes(nodes)).await;
                });
            }
            // What is still being listed keeps the node until it is.
            Order::Rest => self.node = None,
        }
    }

    /// Waits for the next thing that it has to tell. Cancel-safe.
    pub async fn next(&mut self) -> DhtEvent {
        let event = self.told.recv().await.expect("this holds a sender itself");
        if let DhtEvent::Nodes(nodes) = &event
            && !nodes.is_empty()
        {
            self.remembered.clone_from(nodes);
        }
        event
    }

    /// Ends it and returns the nodes that answer, if it runs.
    pub async fn finish(self) -> Option<Vec<SocketAddrV4>> {
        let nodes = timeout(LIST_PATIENCE, contain_async(list(&self.node?))).await.ok()?.ok()?;
        (!nodes.is_empty()).then_some(nodes)
    }

    fn ask(&mut self, id: RequestId, request: Request) {
        let node = self.running();
        let (tell, again, broken) = (self.tell.clone(), Arc::clone(&self.again), Arc::clone(&self.broken));
        self.tasks.spawn(async move {
            let outcome = match node {
                Ok(node) => contain_async(carry_out(&node, id, request, &tell, &again)).await,
                Err(error) => Ok(Err(Failure::Trouble(error))),
            };
            let outcome = outcome.unwrap_or_else(|panicked| {
                broken.store(true, Ordering::Relaxed);
                Err(Failure::Trouble(panicked.to_string()))
            });
            // Nobody listens at the end of the daemon.
            let _ = tell.send(DhtEvent::Done { id, outcome }).await;
        });
    }

    fn running(&mut self) -> Result<AsyncDht, String> {
        if self.broken.swap(false, Ordering::Relaxed) {
            self.node = None;
        }
        if let Some(node) = &self.node {
            return Ok(node.clone());
        }
        let begin_with = self.begin_with();
        if begin_with.is_empty() {
            return Err("no bootstrap host of the DHT has a known address, and no node of it is remembered"
                .to_owned());
        }
        let mut builder = mainline::Dht::builder();
        builder
            .bootstrap(&begin_with)
            .bind_address(Ipv4Addr::UNSPECIFIED)
            .port(self.port.map_or(0, NonZeroU16::get))
            .request_timeout(ANSWER_PATIENCE);
        let built = contain(|| builder.build()).map_err(|panicked| panicked.to_string())?;
        let node = built.map_err(|error| {
            let port = self.port.map(|port| format!(" on UDP port {port}")).unwrap_or_default();
            format!("cannot open a socket for the DHT{port}: {error}")
        })?;
        let node = node.as_async();
        tracing::debug!(nodes = begin_with.len(), "started a node of the DHT");
        self.starts += 1;
        self.node = Some(node.clone());
        Ok(node)
    }

    fn begin_with(&self) -> Vec<SocketAddrV4> {
        let skipped = (self.starts * BEGIN_WITH) % self.remembered.len().max(1);
        let remembered = self.remembered.iter().cycle().skip(skipped);
        let count = BEGIN_WITH.min(self.remembered.len());
        self.bootstrap.iter().chain(remembered.take(count)).copied().collect()
    }
}

/// Carries out one request, tells what it finds on the way, and returns how it went.
async fn carry_out(
    node: &AsyncDht,
    id: RequestId,
    request: Request,
    tell: &mpsc::Sender<DhtEvent>,
    again: &Mutex<()>,
) -> Result<(), Failure> {
    match request {
        Request::FindPeers { swarm } => {
            let mut found = node.get_peers(Id::from(swarm.0));
            while let Some(addresses) = found.next().await {
                let _ = tell.send(DhtEvent::Peers { id, addresses }).await;
            }
            Ok(())
        }
        Request::Announce { swarm, port } => {
            let announced = node.announce_peer(Id::from(swarm.0), Some(port)).await;
            announced.map(drop).map_err(|error| Failure::Trouble(error.to_string()))
        }
        Request::Get { key } => {
            // On a slow host the answers to all the lookups of a round come at once, and many are read too late.
            let seen = get(node, id, &key, tell).await;
            let mut answered = seen.answered;
            if seen.is_doubtful() {
                let _alone = again.lock().await;
                answered |= get(node, id, &key, tell).await.answered;
            }
            answered.then_some(()).ok_or_else(|| Failure::Trouble("no node of the DHT answers".to_owned()))
        }
        Request::Put { key, sequence, replaces, value } => {
            let signer = SigningKey::from_bytes(&key.seed);
            let item = MutableItem::new(signer, &value, sequence, Some(&key.salt));
            let stored = node.put_mutable(item, replaces).await.map_err(unstored)?;
            tracing::debug!(nodes = stored.stored_at, "stored a notice in the DHT");
            Ok(())
        }
    }
}

/// What a lookup of a slot has shown.
struct Seen {
    item: bool,
    answered: bool,
    most_are_silent: bool,
}

impl Seen {
    /// Whether the slot may hold something all the same.
    const fn is_doubtful(&self) -> bool {
        !self.item && self.most_are_silent
    }
}

async fn get(node: &AsyncDht, id: RequestId, key: &ItemKey, tell: &mpsc::Sender<DhtEvent>) -> Seen {
    let public = SigningKey::from_bytes(&key.seed).verifying_key().to_bytes();
    let mut newest = None;
    let mut found = node.get_mutable_detailed(&public, Some(&key.salt), None);
    while let Some(item) = found.items.next().await {
        // Most nodes have the same.
        if newest < Some(item.seq()) {
            newest = Some(item.seq());
            let event = DhtEvent::Item { id, sequence: item.seq(), value: item.value().to_vec() };
            let _ = tell.send(event).await;
        }
    }
    let outcome = found.outcome.recv().await;
    let (answered, silent) = (outcome.responded(), outcome.timed_out());
    tracing::debug!(answered, silent, ?newest, "looked up a slot in the DHT");
    Seen { item: newest.is_some(), answered: answered > 0, most_are_silent: silent > answered }
}

fn unstored(error: PutMutableError) -> Failure {
    match error {
        PutMutableError::Concurrency(_) => Failure::Overtaken,
        PutMutableError::Query(error) => Failure::Trouble(error.to_string()),
    }
}

/// Returns the nodes in the routing table.
async fn list(node: &AsyncDht) -> Vec<SocketAddrV4> {
    let nodes = node.to_bootstrap().await;
    nodes.iter().filter_map(|node| node.parse().ok()).take(MAX_REMEMBERED).collect()
}

#[cfg(test)]
mod tests;
