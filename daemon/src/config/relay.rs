//! The table `[relay]`.

use std::num::{NonZeroU16, NonZeroU32};

use serde::Deserialize;
use wgmesh_core::config::{RelayMode, RelaySettings};

use super::document;
use crate::relay::Rates;

/// How peers without a path of their own are reached, and what is done for others that have none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// How peers are reached that have no path of their own.
    #[serde(default, deserialize_with = "document::text")]
    pub mode: Mode,
    /// Whether peers on no common link are reached through relays alone, unless one of the two is public.
    #[serde(default)]
    pub force: bool,
    /// Whether this node is a relay for others; by default it is where nothing is between it and the internet.
    pub serve: Option<bool>,
    /// The most pairs of nodes that it is a relay for.
    #[serde(default = "default_max_pairs")]
    pub max_pairs: NonZeroU16,
    /// How much it passes on for all of them together, in Mbit/s; without a number as much as comes.
    pub rate: Option<NonZeroU32>,
    /// How much it passes on from one end of a pair to the other, in Mbit/s.
    pub pair_rate: Option<NonZeroU32>,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            force: false,
            serve: None,
            max_pairs: default_max_pairs(),
            rate: None,
            pair_rate: None,
        }
    }
}

/// How peers are reached that have no path of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Through nodes that pass on what they cannot read.
    #[default]
    Sealed,
    /// Through nodes that route it and can read it, where both ends and the relay are set to this.
    Routed,
    /// Not at all.
    Off,
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "sealed" => Ok(Self::Sealed),
            "routed" => Ok(Self::Routed),
            "off" => Ok(Self::Off),
            _ => Err(format!("unknown mode `{name}`")),
        }
    }
}

impl Relay {
    /// Returns how much is passed on at most.
    pub fn rates(&self) -> Rates {
        Rates { flow: self.pair_rate, all: self.rate }
    }

    /// Returns what of it concerns the core.
    pub(super) fn settings(&self) -> RelaySettings {
        let mode = match self.mode {
            Mode::Sealed => RelayMode::Sealed,
            Mode::Routed => RelayMode::Routed,
            Mode::Off => RelayMode::Off,
        };
        RelaySettings { mode, serve: self.serve, max_pairs: self.max_pairs.get().into(), force: self.force }
    }
}

const fn default_max_pairs() -> NonZeroU16 {
    NonZeroU16::new(1024).expect("1024 is not zero")
}
