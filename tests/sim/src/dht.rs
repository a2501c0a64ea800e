//! Mainline DHT as a store that anyone may read and write: mutable items (BEP 44) and swarms (BEP 5), slow, forgetful and as
//! hostile as it is told to be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use wgmesh_core::dht::{DhtEvent, Failure, ItemKey, Order, Request, RequestId, Swarm};

use crate::random::Random;

/// The store, and how well it works.
#[derive(Debug)]
pub struct VirtualDht {
    /// Whether anybody answers at all.
    pub answers: bool,
    /// The share of answers to single questions that get lost.
    pub loss: f64,
    /// Values that are handed out with every item, as by someone who knows its key.
    pub planted: Vec<Vec<u8>>,
    /// Addresses that are handed out with every swarm.
    pub decoys: Vec<SocketAddrV4>,
    /// Requests so far.
    pub requests: u64,
    /// Who has stored what, and who has announced itself, which has no value.
    pub writes: Vec<(IpAddr, Option<Vec<u8>>)>,
    items: BTreeMap<ItemKey, (i64, Vec<u8>)>,
    swarms: BTreeMap<Swarm, BTreeSet<SocketAddrV4>>,
}

impl Default for VirtualDht {
    fn default() -> Self {
        Self {
            answers: true,
            loss: 0.0,
            planted: Vec::new(),
            decoys: Vec::new(),
            requests: 0,
            writes: Vec::new(),
            items: BTreeMap::new(),
            swarms: BTreeMap::new(),
        }
    }
}

impl VirtualDht {
    /// Carries out what a host at this address asks for, and returns what it hears of it.
    pub(crate) fn carry_out(&mut self, from: IpAddr, order: Order, random: &mut Random) -> Vec<DhtEvent> {
        let Order::Ask { id, request } = order else { return Vec::new() };
        self.requests += 1;
        if !self.answers {
            let failure = Failure::Trouble("no node of the DHT answers".to_owned());
            return vec![DhtEvent::Done { id, outcome: Err(failure) }];
        }
        if random.chance(self.loss) {
            return vec![DhtEvent::Done { id, outcome: Ok(()) }];
        }
        let (mut events, outcome) = match request {
            Request::FindPeers { swarm } => (vec![self.peers(id, swarm)], Ok(())),
            Request::Announce { swarm, port } => {
                self.writes.push((from, None));
                if let SocketAddr::V4(address) = SocketAddr::new(from, port) {
                    self.swarms.entry(swarm).or_default().insert(address);
                }
                (Vec::new(), Ok(()))
            }
            Request::Get { key } => (self.values(id, &key), Ok(())),
            Request::Put { key, sequence, replaces, value } => {
                self.writes.push((from, Some(value.clone())));
                (Vec::new(), self.put(key, sequence, replaces, value))
            }
        };
        events.push(DhtEvent::Done { id, outcome });
        events
    }

    fn peers(&self, id: RequestId, swarm: Swarm) -> DhtEvent {
        let members = self.swarms.get(&swarm).into_iter().flatten();
        DhtEvent::Peers { id, addresses: members.chain(&self.decoys).copied().collect() }
    }

    fn values(&self, id: RequestId, key: &ItemKey) -> Vec<DhtEvent> {
        let planted = (1..).zip(&self.planted).map(|(sequence, value)| (sequence, value.clone()));
        let stored = self.items.get(key).cloned();
        let item = |(sequence, value)| DhtEvent::Item { id, sequence, value };
        planted.chain(stored).map(item).collect()
    }

    fn put(
        &mut self,
        key: ItemKey,
        sequence: i64,
        replaces: Option<i64>,
        value: Vec<u8>,
    ) -> Result<(), Failure> {
        if let Some((stored, _)) = self.items.get(&key)
            && (replaces.is_some_and(|replaces| replaces != *stored) || sequence < *stored)
        {
            return Err(Failure::Overtaken);
        }
        self.items.insert(key, (sequence, value));
        Ok(())
    }
}
