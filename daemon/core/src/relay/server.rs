//! The relay's side: which pairs have ports, and where their ends are.
//!
//! Invariants:
//! - No port belongs to two pairs.
//! - There are at most [`Limits::pairs`] pairs, of which one node has asked for at most [`Limits::pairs_per_peer`].
//! - A pair without a bind for [`LIFETIME`] is gone, and one that never had both ends bound after [`UNBOUND_LIFETIME`].

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::{Forwarding, Refusal, RelayEnd};
use crate::key::PublicKey;
use crate::time::Monotonic;

/// For how long a pair keeps its ports without a bind: three of those that come each minute.
const LIFETIME: Duration = Duration::from_secs(180);

/// For how long a pair keeps its ports that has yet to bind both ends: several attempts.
const UNBOUND_LIFETIME: Duration = Duration::from_secs(30);

/// After so many ports in use, no other is tried for a pair.
const DRAWS: usize = 64;

/// How much a relay serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most pairs.
    pub pairs: usize,
    /// The most pairs that one node may ask for.
    pub pairs_per_peer: usize,
    /// Where its ports are.
    pub ports: RangeInclusive<u16>,
}

/// What a bind has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The other node of the pair.
    pub peer: PublicKey,
    /// The port that it has to send to.
    pub port: u16,
    /// Whether it has bound too.
    pub is_complete: bool,
}

/// What a node's word has changed that it needs the relay no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// Nothing: there is no such pair.
    Unknown,
    /// The other node has not said so lately.
    ByOne,
    /// The pair is no more.
    ByBoth,
}

/// The pairs of one relay.
#[derive(Clone, Debug)]
pub struct Server {
    limits: Limits,
    /// A port that no pair gets.
    avoided: Option<u16>,
    pairs: BTreeMap<[PublicKey; 2], Allocation>,
    ports: BTreeMap<u16, [PublicKey; 2]>,
    is_changed: bool,
}

/// For how long the word of one node of a pair that it needs the relay no more waits for that of the other.
const RELEASE_LIFETIME: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Allocation {
    asked_by: PublicKey,
    ports: [u16; 2],
    ends: [Option<RelayEnd>; 2],
    heard: Monotonic,
    /// Who has released it last, and when.
    released: Option<(PublicKey, Monotonic)>,
}

impl Server {
    /// Starts without any pair.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, avoided: None, pairs: BTreeMap::new(), ports: BTreeMap::new(), is_changed: false }
    }

    /// Draws a port no more that is WireGuard's own: what comes there would be taken for a pair's.
    pub const fn avoid(&mut self, port: u16) {
        self.avoided = Some(port);
    }

    /// Takes up the pairs of an earlier run, whose ends are where they were.
    pub fn restore(&mut self, table: &[Forwarding], now: Monotonic) {
        for &Forwarding { pair, ports, ends } in table {
            let is_sound = pair[0] < pair[1] && ports[0] != ports[1];
            let is_free = ports.iter().all(|port| !self.ports.contains_key(port));
            if is_sound && is_free && self.pairs.len() < self.limits.pairs {
                self.insert(pair, Allocation { asked_by: pair[0], ports, ends, heard: now, released: None });
            }
        }
    }

    /// Gives a pair its ports, or those that it has. `draw` makes random numbers. Returns the asking node's port, then
    /// that of the other.
    ///
    /// # Errors
    /// [`Refusal::Full`] where a limit is reached.
    pub fn allocate(
        &mut self,
        asked_by: PublicKey,
        peer: PublicKey,
        draw: impl FnMut() -> u32,
        now: Monotonic,
    ) -> Result<[u16; 2], Refusal> {
        let pair = sorted(asked_by, peer);
        if let Some(allocation) = self.pairs.get(&pair) {
            return Ok(own_first(pair, asked_by, allocation.ports));
        }
        let asked = self.pairs.values().filter(|allocation| allocation.asked_by == asked_by).count();
        if self.pairs.len() >= self.limits.pairs || asked >= self.limits.pairs_per_peer {
            return Err(Refusal::Full);
        }
        let ports = self.draw_ports(draw).ok_or(Refusal::Full)?;
        self.insert(pair, Allocation { asked_by, ports, ends: [None; 2], heard: now, released: None });
        Ok(own_first(pair, asked_by, ports))
    }

    /// Follows a bind of a node to a port. Returns `None` if the port is not its own.
    pub fn bind(&mut self, key: PublicKey, port: u16, end: RelayEnd, now: Monotonic) -> Option<Bound> {
        let pair = *self.ports.get(&port)?;
        let allocation = self.pairs.get_mut(&pair)?;
        let side = (0..2).find(|&side| pair[side] == key && allocation.ports[side] == port)?;
        allocation.heard = now;
        self.is_changed |= allocation.ends[side].replace(end) != Some(end);
        let other = 1 - side;
        let is_complete = allocation.ends[other].is_some();
        Some(Bound { peer: pair[other], port: allocation.ports[other], is_complete })
    }

    /// Gives the pair of a port that another program has two other ports. Returns its nodes and their ports.
    pub fn move_ports(&mut self, port: u16, draw: impl FnMut() -> u32) -> Option<[(PublicKey, u16); 2]> {
        let pair = *self.ports.get(&port)?;
        let allocation = self.remove(pair)?;
        let ports = self.draw_ports(draw)?;
        self.insert(pair, Allocation { ports, ends: [None; 2], ..allocation });
        Some([0, 1].map(|side| (pair[side], ports[side])))
    }

    /// Ends one pair if both of its nodes say so at about the same time.
    pub fn release(&mut self, by: PublicKey, peer: PublicKey, now: Monotonic) -> Released {
        let pair = sorted(by, peer);
        let Some(allocation) = self.pairs.get_mut(&pair) else { return Released::Unknown };
        let word = allocation.released.replace((by, now));
        if word.is_none_or(|(who, at)| who != peer || now.since(at) >= RELEASE_LIFETIME) {
            return Released::ByOne;
        }
        self.remove(pair);
        Released::ByBoth
    }

    /// Ends every pair of a node.
    pub fn forget(&mut self, key: PublicKey) {
        self.remove_all(|pair, _| pair.contains(&key));
    }

    /// Ends every pair.
    pub fn clear(&mut self) {
        self.remove_all(|_, _| true);
    }

    /// Ends the pairs that nobody uses any more.
    pub fn handle_timeout(&mut self, now: Monotonic) {
        self.remove_all(|_, allocation| allocation.expiry() <= now);
    }

    /// Returns when [`Server::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        self.pairs.values().map(Allocation::expiry).min()
    }

    /// Returns the whole table if it is another than at the last call.
    pub fn poll_table(&mut self) -> Option<Arc<Vec<Forwarding>>> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let forwarding = |(&pair, allocation): (&[PublicKey; 2], &Allocation)| Forwarding {
            pair,
            ports: allocation.ports,
            ends: allocation.ends,
        };
        Some(Arc::new(self.pairs.iter().map(forwarding).collect()))
    }

    /// Returns how many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Returns how many pairs there may be.
    pub const fn limit(&self) -> usize {
        self.limits.pairs
    }

    fn insert(&mut self, pair: [PublicKey; 2], allocation: Allocation) {
        for port in allocation.ports {
            self.ports.insert(port, pair);
        }
        self.pairs.insert(pair, allocation);
        self.is_changed = true;
    }

    fn remove(&mut self, pair: [PublicKey; 2]) -> Option<Allocation> {
        let allocation = self.pairs.remove(&pair)?;
        for port in allocation.ports {
            self.ports.remove(&port);
        }
        self.is_changed = true;
        Some(allocation)
    }

    fn remove_all(&mut self, is_over: impl Fn(&[PublicKey; 2], &Allocation) -> bool) {
        let over: Vec<_> = self
            .pairs
            .iter()
            .filter(|(pair, allocation)| is_over(pair, allocation))
            .map(|(&pair, _)| pair)
            .collect();
        for pair in over {
            self.remove(pair);
        }
    }

    fn draw_ports(&self, mut draw: impl FnMut() -> u32) -> Option<[u16; 2]> {
        let (first, last) = (*self.limits.ports.start(), *self.limits.ports.end());
        let width = u32::from(last.saturating_sub(first)) + 1;
        let mut drawn = (0..DRAWS)
            .map(|_| first.saturating_add(u16::try_from(draw() % width).unwrap_or(u16::MAX)))
            .filter(|port| self.avoided != Some(*port) && !self.ports.contains_key(port));
        let one = drawn.next()?;
        Some([one, drawn.find(|port| *port != one)?])
    }
}

impl Allocation {
    fn expiry(&self) -> Monotonic {
        let is_bound = self.ends.iter().all(Option::is_some);
        self.heard + if is_bound { LIFETIME } else { UNBOUND_LIFETIME }
    }
}

fn sorted(one: PublicKey, other: PublicKey) -> [PublicKey; 2] {
    [one.min(other), one.max(other)]
}

fn own_first(pair: [PublicKey; 2], own: PublicKey, [lower, higher]: [u16; 2]) -> [u16; 2] {
    if pair[0] == own { [lower, higher] } else { [higher, lower] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, key};

    fn end(port: u16) -> RelayEnd {
        RelayEnd { peer: ([203, 0, 113, 1], port).into(), local: [192, 0, 2, 1].into() }
    }

    fn server(pairs: usize, pairs_per_peer: usize) -> Server {
        Server::new(Limits { pairs, pairs_per_peer, ports: 50_000..=50_999 })
    }

    /// Counts up, so that every draw is another port.
    fn counter() -> impl FnMut() -> u32 {
        let mut next = 0;
        move || {
            next += 1;
            next
        }
    }

    /// Found wanting in simulation: one pair in eight thousand got WireGuard's port, and the relay itself was out of reach for
    /// whoever it relayed for.
    #[test]
    fn no_pair_has_wireguards_own_port() {
        let mut server = Server::new(Limits { pairs: 9, pairs_per_peer: 9, ports: 50_000..=50_004 });
        server.avoid(50_001);
        let mut draw = counter();
        let drawn = [2, 3].map(|other| server.allocate(key(1), key(other), &mut draw, at(0)).unwrap());
        assert!(!drawn.as_flattened().contains(&50_001), "{drawn:?}");
        assert_eq!(server.allocate(key(1), key(4), &mut draw, at(0)), Err(Refusal::Full));
    }

    #[test]
    fn a_pair_has_two_ports_whoever_asks_and_however_often() {
        let mut server = server(10, 10);
        let [one, other] = server.allocate(key(1), key(2), counter(), at(0)).unwrap();
        assert_ne!(one, other);
        assert_eq!(server.allocate(key(1), key(2), counter(), at(1)), Ok([one, other]));
        assert_eq!(server.allocate(key(2), key(1), counter(), at(1)), Ok([other, one]));
        assert_eq!(server.len(), 1);
        let [third, fourth] = server.allocate(key(1), key(3), counter(), at(1)).unwrap();
        assert!(![one, other].contains(&third) && ![one, other].contains(&fourth));
    }

    #[test]
    fn nothing_is_bound_but_by_the_node_whose_port_it_is() {
        let mut server = server(10, 10);
        let [one, other] = server.allocate(key(1), key(2), counter(), at(0)).unwrap();
        assert_eq!(server.bind(key(1), other, end(1), at(0)), None);
        assert_eq!(server.bind(key(3), one, end(1), at(0)), None);
        assert_eq!(server.bind(key(1), one + 100, end(1), at(0)), None);
        let table = server.poll_table().unwrap();
        assert!(table[0].bound().is_none() && table[0].ends == [None; 2]);

        let bound = server.bind(key(1), one, end(1), at(0)).unwrap();
        assert_eq!(bound, Bound { peer: key(2), port: other, is_complete: false });
        assert!(server.bind(key(2), other, end(2), at(0)).unwrap().is_complete);
        let table = server.poll_table().unwrap();
        let side = usize::from(table[0].pair[0] != key(1));
        assert_eq!(table[0].ports[side], one);
        assert_eq!(table[0].ends[side], Some(end(1)));
        assert_eq!(table[0].ends[1 - side], Some(end(2)));
    }

    #[test]
    fn the_table_is_told_when_it_changes_and_only_then() {
        let mut server = server(10, 10);
        assert!(server.poll_table().is_none());
        let [one, _] = server.allocate(key(1), key(2), counter(), at(0)).unwrap();
        assert!(server.poll_table().is_some());
        server.bind(key(1), one, end(1), at(0));
        assert!(server.poll_table().is_some());
        server.bind(key(1), one, end(1), at(5));
        assert!(server.poll_table().is_none(), "it is where it was");
        server.bind(key(1), one, end(7), at(6));
        assert!(server.poll_table().is_some(), "its NAT has another address");
    }

    #[test]
    fn a_pair_ends_when_both_release_it() {
        let mut server = server(10, 10);
        server.allocate(key(1), key(2), counter(), at(0)).unwrap();
        assert_eq!(server.release(key(1), key(3), at(1)), Released::Unknown);
        for _ in 0..2 {
            assert_eq!(server.release(key(1), key(2), at(1)), Released::ByOne);
        }
        assert_eq!(server.release(key(2), key(1), at(2)), Released::ByOne, "the other's word is old");
        assert_eq!(server.len(), 1);
        assert_eq!(server.release(key(1), key(2), at(2)), Released::ByBoth);
        assert!(server.is_empty());
    }

    #[test]
    fn a_pair_lives_for_as_long_as_one_of_its_nodes_binds() {
        let mut server = server(10, 10);
        let [one, other] = server.allocate(key(1), key(2), counter(), at(0)).unwrap();
        assert_eq!(server.poll_timeout(), Some(at(30)));
        server.bind(key(1), one, end(1), at(20));
        assert_eq!(server.poll_timeout(), Some(at(50)), "only one end is bound");
        server.bind(key(2), other, end(2), at(30));
        assert_eq!(server.poll_timeout(), Some(at(210)));
        server.bind(key(1), one, end(1), at(200));
        server.handle_timeout(at(379));
        assert_eq!(server.len(), 1);
        server.handle_timeout(at(380));
        assert!(server.is_empty());
        assert_eq!(server.poll_table().as_deref(), Some(&Vec::new()));
    }

    /// One node that asks for the world leaves room for others, and all together end somewhere.
    #[test]
    fn limits_hold_for_each_node_and_for_all() {
        let mut server = server(5, 3);
        let mut draw = counter();
        let mut ask = |one, other| server.allocate(key(one), key(other), &mut draw, at(0)).is_ok();
        let first: Vec<_> = (2..7).map(|other| ask(1, other)).collect();
        assert_eq!(first, [true, true, true, false, false]);
        assert!(ask(2, 1), "it has its ports");
        let second: Vec<_> = (11..15).map(|other| ask(10, other)).collect();
        assert_eq!(second, [true, true, false, false]);
    }

    #[test]
    fn a_port_that_another_program_has_is_left_with_its_twin() {
        let mut server = server(10, 10);
        let mut draw = counter();
        let before = server.allocate(key(1), key(2), &mut draw, at(0)).unwrap();
        server.bind(key(1), before[0], end(1), at(0));
        let moved = server.move_ports(before[1], &mut draw).unwrap();
        assert!(moved.iter().all(|(_, port)| !before.contains(port)));
        let table = server.poll_table().unwrap();
        assert_eq!(table.len(), 1);
        assert_eq!(table[0].ends, [None; 2], "each must bind anew");
        assert_eq!(server.move_ports(before[0], &mut draw), None);
    }

    #[test]
    fn what_an_earlier_run_left_goes_on_as_it_was() {
        let mut server = server(10, 10);
        let [one, other] = server.allocate(key(1), key(2), counter(), at(0)).unwrap();
        server.bind(key(1), one, end(1), at(0));
        server.bind(key(2), other, end(2), at(0));
        let table = server.poll_table().unwrap();
        let mut next = self::server(10, 10);
        next.restore(&table, at(9));
        assert_eq!(next.poll_table(), Some(table));
        assert_eq!(next.poll_timeout(), Some(at(189)));
        assert!(next.bind(key(1), one, end(1), at(10)).unwrap().is_complete);
    }

    #[test]
    fn no_pair_of_a_node_that_left_remains() {
        let mut server = server(10, 10);
        let mut draw = counter();
        for other in [2, 3] {
            server.allocate(key(1), key(other), &mut draw, at(0)).unwrap();
        }
        server.allocate(key(2), key(3), &mut draw, at(0)).unwrap();
        server.forget(key(1));
        assert_eq!(server.len(), 1);
        server.clear();
        assert!(server.is_empty() && server.poll_timeout().is_none());
    }
}
