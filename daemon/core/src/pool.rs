//! With whom to hold sessions: how many, and whom of those that could be asked.
//!
//! [`choose`] is one pure function. It fills the places one after the other, each by these criteria in order:
//!
//! 1. nobody from a network that has [`MAX_FROM_ONE_NETWORK`] places already, but for whoever is met on a link or named by the
//!    operator: a fleet may well be in one network;
//! 2. whoever is no poor partner before whoever is;
//! 3. whoever there is a session with already: what works is left alone;
//! 4. the network with the fewest places so far, so that no owner of one network has them all;
//! 5. trusted partners before strangers;
//! 6. the order in which the candidates came.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::key::PublicKey;
use crate::standing::Class;

/// The most places for one IPv4 network of 24 bits or one IPv6 network of 48 bits.
pub const MAX_FROM_ONE_NETWORK: usize = 10;

/// How many sessions a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// So many it looks for by itself.
    pub target: usize,
    /// The most it holds, those that others opened among them.
    pub max: usize,
}

/// What one owner is likely to have: an IPv4 network of 24 bits, an IPv6 network of 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network(IpAddr);

impl Network {
    /// Returns the network of an address.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() >> 8 << 8).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 80 << 80).into(),
        })
    }

    /// Returns its first address.
    pub const fn address(self) -> IpAddr {
        self.0
    }
}

/// A node that could be asked for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// The node.
    pub key: PublicKey,
    /// Where its packets come from.
    pub network: Network,
    /// How good a partner it was.
    pub class: Class,
    /// Whether there is a session with it.
    pub is_held: bool,
    /// Whether only so many are taken of its network: this host knows of it from afar only.
    pub is_limited: bool,
}

/// Chooses at most `places` of the prospects. `taken` are the networks of sessions that stay in any case.
pub fn choose(
    mut prospects: Vec<Prospect>,
    places: usize,
    taken: impl IntoIterator<Item = Network>,
) -> Vec<PublicKey> {
    let mut crowds: BTreeMap<Network, usize> = BTreeMap::new();
    taken.into_iter().for_each(|network| *crowds.entry(network).or_default() += 1);
    let mut limited = crowds.clone();
    let mut chosen = Vec::new();
    while chosen.len() < places {
        let crowd = |prospect: &Prospect| crowds.get(&prospect.network).copied().unwrap_or_default();
        let order = |prospect: &Prospect| {
            let is_poor = prospect.class == Class::Poor;
            (is_poor, !prospect.is_held, crowd(prospect), std::cmp::Reverse(prospect.class))
        };
        let has_room = |network| limited.get(&network).is_none_or(|&count| count < MAX_FROM_ONE_NETWORK);
        let fits = prospects.iter().enumerate().filter(|(_, one)| !one.is_limited || has_room(one.network));
        let Some((place, _)) = fits.min_by_key(|(place, one)| (order(one), *place)) else { break };
        let prospect = prospects.remove(place);
        *crowds.entry(prospect.network).or_default() += 1;
        *limited.entry(prospect.network).or_default() += usize::from(prospect.is_limited);
        chosen.push(prospect.key);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prospect(number: u8, address: &str) -> Prospect {
        Prospect {
            key: PublicKey::from_bytes([number; 32]),
            network: Network::of(address.parse().unwrap()),
            class: Class::Usual,
            is_held: false,
            is_limited: true,
        }
    }

    fn numbers(chosen: &[PublicKey]) -> Vec<u8> {
        chosen.iter().map(|key| key.as_bytes()[0]).collect()
    }

    fn chosen(prospects: &[Prospect], places: usize) -> Vec<u8> {
        numbers(&choose(prospects.to_vec(), places, []))
    }

    /// M-22: each criterion counts only among those that are equal by the ones before.
    #[test]
    fn whoever_serves_well_from_a_network_of_its_own_is_chosen_first() {
        let usual = prospect(1, "192.0.2.1");
        let trusted = Prospect { class: Class::Trusted, ..prospect(2, "192.0.2.2") };
        let poor = Prospect { class: Class::Poor, is_held: true, ..prospect(3, "198.51.100.1") };
        let elsewhere = prospect(4, "203.0.113.1");
        let held = Prospect { is_held: true, ..prospect(5, "192.0.2.5") };
        assert_eq!(chosen(&[usual, trusted, poor, elsewhere, held], 5), [5, 4, 2, 1, 3]);
        assert_eq!(chosen(&[usual, elsewhere], 1), [1], "the order decides at last");
    }

    /// a range of addresses that one owner has never fills the places.
    #[test]
    fn one_network_gets_ten_places_and_no_more() {
        let crowd: Vec<_> = (1..=40).map(|number| prospect(number, &format!("192.0.2.{number}"))).collect();
        let others = [prospect(50, "2001:db8:1::1"), prospect(51, "2001:db8:1:ffff::1")];
        let all = [crowd.as_slice(), &others].concat();
        let chosen = chosen(&all, 32);
        assert_eq!(chosen.len(), 12);
        assert!(chosen[1] == 50 && chosen.contains(&51));
        let mut near = crowd.clone();
        near[20..].iter_mut().for_each(|one| one.is_limited = false);
        assert_eq!(choose(near, 40, []).len(), 30, "ten of those from afar, and all others");
        let taken = [Network::of("192.0.2.200".parse().unwrap()); 9];
        assert_eq!(numbers(&choose(crowd, 5, taken)), [1]);
    }

    /// M-32: what is lost is replaced, and the rest stays.
    #[test]
    fn the_loss_of_one_moves_nobody_else() {
        let mut all: Vec<_> = (1..=9).map(|number| prospect(number, &format!("192.0.{number}.1"))).collect();
        let before = chosen(&all, 4);
        for one in &mut all {
            one.is_held = before.contains(&one.key.as_bytes()[0]);
        }
        all.retain(|one| one.key.as_bytes()[0] != before[1]);
        let mut after = chosen(&all, 4);
        after.retain(|number| !before.contains(number));
        assert_eq!(after, [5]);
    }
}
