//! Nodes that come and go for hours, and what must hold all the while.
//!
//! Every [`INTERVAL`] on average a node starts, leaves with a word, crashes, or crashes and comes back at once. One in
//! five has a wall clock that is off by up to [`MOST_SKEW_MILLIS`]. Then must hold:
//! - nobody that has run for [`CACHE_AGE`] holds a node that has been gone for longer than [`ZOMBIE_AGE`];
//! - every two nodes that have both run for [`SETTLED`] know each other;
//! - nobody holds more nodes than there are hosts: each keeps its key.

use std::time::Duration;

use wgmesh_core::time::Monotonic;

use crate::scale::{Number, Scale};

/// How long lies between two changes, on average.
const INTERVAL: Duration = Duration::from_secs(40);

/// The most by which a clock is off: less than what makes a record look expired.
const MOST_SKEW_MILLIS: i64 = 6 * 3600 * 1000;

/// How often a kernel is read: who is heard was heard by then.
const READING: Duration = Duration::from_secs(15);

/// After so long nobody may hold a node that is gone: ten minutes of silence since the last reading.
const ZOMBIE_AGE: Duration = Duration::from_secs(10 * 60 + READING.as_secs());

/// For so long a node that has just started may look for whom its cache has: perhaps it was away itself.
const CACHE_AGE: Duration = Duration::from_secs(6 * 60);

/// After so long a node must know all others: it was told of some that may have gone at that very moment.
const SETTLED: Duration = Duration::from_secs(120);

/// How often it is checked what must hold.
const CHECK: Duration = Duration::from_secs(15);

/// A mesh whose nodes come and go.
pub struct Churn {
    scale: Scale,
    next_change: Monotonic,
    changes: u64,
    oldest_zombie: Duration,
    most_held: usize,
}

impl Churn {
    /// Makes so many hosts, half of which start at once.
    pub fn new(seed: u64, hosts: usize) -> Self {
        let mut scale = Scale::new(seed, hosts);
        scale.read_kernels_each(READING);
        for host in 0..hosts {
            if host % 5 == 0 {
                let skew = scale.random().below(2 * MOST_SKEW_MILLIS.unsigned_abs());
                scale.set_skew(host, i64::try_from(skew).expect("some hours") - MOST_SKEW_MILLIS);
            }
            if host % 2 == 0 {
                scale.start(host);
            }
        }
        let next_change = scale.now() + SETTLED;
        Self { scale, next_change, changes: 0, oldest_zombie: Duration::ZERO, most_held: 0 }
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// Says which node is a zombie, or lost, and where.
    pub fn run_for(&mut self, span: Duration) -> Result<(), String> {
        let end = self.scale.now() + span;
        while self.scale.now() < end {
            self.scale.run_for(CHECK);
            if self.next_change <= self.scale.now() {
                self.change();
                self.next_change = self.scale.now() + self.scale.random().up_to(INTERVAL * 2);
            }
            self.check()?;
        }
        Ok(())
    }

    /// Returns how many nodes all that run hold, together.
    pub fn held(&self) -> usize {
        (0..self.scale.count()).filter_map(|node| self.scale.mesh(node)).map(|mesh| mesh.store().len()).sum()
    }

    /// Says in a line what has been seen so far.
    pub fn summary(&self) -> String {
        let running = (0..self.scale.count()).filter(|&node| self.scale.runs(node)).count();
        format!(
            "{} changes, {running} nodes run, the most held at once {}, gone and still held for at most {} s",
            self.changes,
            self.most_held,
            self.oldest_zombie.as_secs()
        )
    }

    fn change(&mut self) {
        let count = self.scale.count() as u64;
        let node = usize::try_from(self.scale.random().below(count)).expect("less than a count");
        self.changes += 1;
        if !self.scale.runs(node) {
            return self.scale.start(node);
        }
        match self.scale.random().below(3) {
            0 => self.scale.stop(node, true),
            1 => self.scale.stop(node, false),
            _ => {
                self.scale.stop(node, false);
                self.scale.start(node);
            }
        }
    }

    fn check(&mut self) -> Result<(), String> {
        let count = self.scale.count();
        for by in 0..count {
            let Some(mesh) = self.scale.mesh(by) else { continue };
            let held = mesh.store().len();
            self.most_held = self.most_held.max(held);
            if held >= count {
                return Err(format!("node {by} holds {held} nodes, and there are {count}"));
            }
            for of in (0..count).filter(|&of| of != by) {
                self.check_pair(by, of)?;
            }
        }
        Ok(())
    }

    fn check_pair(&mut self, by: Number, of: Number) -> Result<(), String> {
        let now = self.scale.now();
        let age = |node: Number| now.since(self.scale.changed_at(node));
        let holds = self.scale.held(by, of).is_some();
        let at = now.as_nanos() / 1_000_000_000;
        if holds && !self.scale.runs(of) && age(by) > CACHE_AGE {
            self.oldest_zombie = self.oldest_zombie.max(age(of));
            if age(of) > ZOMBIE_AGE {
                return Err(format!("at {at} s: node {by} holds {of}, which is gone for {:?}", age(of)));
            }
        }
        if !holds && self.scale.runs(of) && age(by).min(age(of)) > SETTLED {
            return Err(format!("at {at} s: node {by} does not know {of}, though both run"));
        }
        Ok(())
    }
}
