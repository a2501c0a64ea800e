//! What must hold at every moment of every run, checked on each datagram that a node sends and on each kernel.

use std::collections::BTreeMap;

use wgmesh_core::derive::PairKeys;
use wgmesh_core::identity::Sequence;
use wgmesh_core::key::PublicKey;
use wgmesh_core::message::{Announce, Disco, Hello, Paired, Phase, Stamp, Unproved};
use wgmesh_core::seal::{Kind, Opener};
use wgmesh_core::time::Monotonic;

use crate::applier::INTERVAL;
use crate::host::Host;
use crate::stun;

/// What was seen of the nodes so far.
#[derive(Default)]
pub struct Watch {
    sequences: BTreeMap<PublicKey, Sequence>,
    stamps: BTreeMap<PublicKey, Stamp>,
    pairs: BTreeMap<(PublicKey, PublicKey), PairKeys>,
}

impl Watch {
    /// Checks a datagram that `host` sends; `receivers` are the keys that a hello may be meant for.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn check_sent(
        &mut self,
        host: &Host,
        bytes: &[u8],
        receivers: &[PublicKey],
        world: Monotonic,
    ) -> Result<(), String> {
        let now = host.now(world);
        let (kind, content) = Opener::new(now)
            .open(host.keys(), bytes, now)
            .map_err(|error| format!("it sent {} bytes that no member can open: {error}", bytes.len()))?;
        match kind {
            Kind::Announce => {
                let announce = Announce::decode(&content).ok_or("it sent a malformed announce")?;
                self.check_sequence(announce.key, announce.sequence)
            }
            Kind::Hello => {
                let Some((receiver, hello)) = self.prove::<Hello>(host, &content, receivers) else {
                    return Err("it sent a hello that nobody at its address can prove".to_owned());
                };
                self.check_hello(host, receiver, &hello, world)
            }
            Kind::Disco | Kind::Bind | Kind::Notice => {
                Err("it sent on a link what belongs on WireGuard's port".to_owned())
            }
        }
    }

    /// Checks a datagram that `host` sends from WireGuard's port, to whichever of `members` it may be meant for. It may
    /// also be meant for a node that somebody made up.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn check_probe(
        &mut self,
        host: &Host,
        bytes: &[u8],
        members: &[PublicKey],
        world: Monotonic,
    ) -> Result<(), String> {
        let now = host.now(world);
        if stun::is_request(bytes) {
            return Ok(());
        }
        let (kind, content) = Opener::new(now)
            .open(host.keys(), bytes, now)
            .map_err(|error| format!("it sent {} bytes that no member can open: {error}", bytes.len()))?;
        match kind {
            Kind::Announce => Err("it sent an announce to a single node".to_owned()),
            Kind::Hello => match self.prove::<Hello>(host, &content, members) {
                Some((receiver, hello)) => self.check_hello(host, receiver, &hello, world),
                None => Ok(()),
            },
            Kind::Disco => match self.prove::<Disco>(host, &content, members) {
                Some((_, disco)) => self.check_stamp(disco.key, disco.stamp),
                None => Ok(()),
            },
            Kind::Bind => Ok(()),
            Kind::Notice => Err("it sent to a node what belongs into the DHT".to_owned()),
        }
    }

    /// Checks what a host holds.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn check_host(host: &Host) -> Result<(), String> {
        let Some(mesh) = host.mesh() else { return Ok(()) };
        if host.spins() {
            let reason = mesh.poll_timeout().map(|(_, reason)| reason);
            return Err(format!("it wants to be called again at once, again and again, for {reason:?}"));
        }
        if mesh.store().len() > host.plan.max_peers {
            return Err(format!("it holds {} peers", mesh.store().len()));
        }
        Ok(())
    }

    fn check_hello(
        &mut self,
        host: &Host,
        receiver: PublicKey,
        hello: &Hello,
        world: Monotonic,
    ) -> Result<(), String> {
        self.check_sequence(hello.key, hello.stamp.sequence)?;
        self.check_stamp(hello.key, hello.stamp)?;
        let excused = host.was_sabotaged_within(2 * INTERVAL, world);
        if hello.phase >= Phase::Installed && host.kernel.peer(receiver).is_none() && !excused {
            return Err(format!("it says {:?} of a peer that its kernel does not hold", hello.phase));
        }
        Ok(())
    }

    fn check_stamp(&mut self, key: PublicKey, stamp: Stamp) -> Result<(), String> {
        let last = self.stamps.insert(key, stamp);
        match last.filter(|last| stamp <= *last) {
            Some(last) => Err(format!("its stamp went from {last:?} to {stamp:?}")),
            None => Ok(()),
        }
    }

    fn check_sequence(&mut self, key: PublicKey, sequence: Sequence) -> Result<(), String> {
        let last = self.sequences.insert(key, sequence);
        match last.filter(|last| sequence < *last) {
            Some(last) => Err(format!("its sequence went back from {} to {}", last.0, sequence.0)),
            None => Ok(()),
        }
    }

    /// Returns for whom of `receivers` a message is, and the message.
    fn prove<T: Paired>(
        &mut self,
        host: &Host,
        content: &[u8],
        receivers: &[PublicKey],
    ) -> Option<(PublicKey, T)> {
        receivers.iter().filter(|receiver| **receiver != host.public_key()).find_map(|receiver| {
            let pair = self.pair(host, *receiver);
            Some((*receiver, Unproved::decode(content)?.prove(*receiver, pair)?))
        })
    }

    fn pair(&mut self, host: &Host, receiver: PublicKey) -> &PairKeys {
        let (own, secret) = (host.public_key(), &host.disk.state.wg_private_key);
        let ends = (own.min(receiver), own.max(receiver));
        self.pairs.entry(ends).or_insert_with(|| host.keys().pair(secret, own, receiver))
    }
}
