//! What may be sent to an address at which nobody has answered yet.
//!
//! Whoever has the secret can name a stranger's address: in a record, which every node of the mesh then has, in offers, or
//! by sending in the stranger's name. So whatever is sent there has to be worth it:
//!
//! - What the peer itself has spent on offers and hellos to this node it is worth in bytes ([`Credit`]). A ping is worth
//!   the answer to it and no more.
//! - Beyond that an address gets [`AT_ONCE`] datagrams, whoever names it and however often, and then fewer and fewer: one
//!   after [`FIRST_PAUSE`], and each next one after a pause twice as long, up to [`LONGEST_PAUSE`]. That is enough for two
//!   nodes that know nothing but each other's record. What one peer can cause in this way, wherever, is bounded too.
//!
//! Once anybody has answered at an address there are peers behind it, perhaps many: then [`ANSWERED_BURST`] datagrams to
//! others there are free after each answer, and two a second.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::bucket::{TokenBucket, owner_of};
use crate::time::Monotonic;

/// Datagrams that an address gets without a pause.
const AT_ONCE: u32 = 3;

/// The pause after these, doubled each time: an attempt begins with seven datagrams in four seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause. The hole that a datagram opens in a NAT lasts for half of it at least (Linux: 30 s while nothing
/// came back), so of two nodes behind NATs that both keep to this pace one meets the other's hole.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is longer than this counts as several datagrams.
const DATAGRAM_BYTES: usize = 200;

/// What an address did, or did not, this long ago says nothing any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Datagrams to an address at which somebody has just answered.
const ANSWERED_BURST: u32 = 128;
const ANSWERED_INTERVAL: Duration = Duration::from_millis(500);

/// The most addresses of either sort that are kept account of. Where there is no room, what was forgotten makes some; if
/// that is not enough, an address that is not among them gets nothing for free.
const MAX_ADDRESSES: usize = 4096;

/// Datagrams that a peer's mere name causes at most: as many at once as an attempt at seven addresses takes.
const GIFT_BURST: u32 = 48;
const GIFT_INTERVAL: Duration = Duration::from_secs(5);

/// The most that a peer can have saved up, in bytes: an attempt's worth.
const MAX_CREDIT_BYTES: usize = 4800;

/// What a peer is worth to which nobody has a path yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credit {
    bytes: usize,
    gifts: Option<TokenBucket>,
}

impl Credit {
    /// Notes that the peer has spent so many bytes on messages to this node that it did not answer yet.
    pub(crate) fn earn(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes).min(MAX_CREDIT_BYTES);
    }

    /// Spends so many bytes for the peer if it is worth them.
    fn pay(&mut self, bytes: usize) -> bool {
        let rest = self.bytes.checked_sub(bytes);
        self.bytes = rest.unwrap_or(self.bytes);
        rest.is_some()
    }

    fn gifts(&mut self, now: Monotonic) -> &mut TokenBucket {
        self.gifts.get_or_insert_with(|| TokenBucket::new(GIFT_BURST, GIFT_INTERVAL, now))
    }
}

/// What was sent to addresses and what came back: of IPv6, to networks of 64 bits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    silent: BTreeMap<IpAddr, Silent>,
    answered: BTreeMap<IpAddr, Answered>,
}

#[derive(Clone, Copy, Debug)]
struct Silent {
    datagrams: u32,
    last: Monotonic,
}

#[derive(Clone, Copy, Debug)]
struct Answered {
    at: Monotonic,
    free: TokenBucket,
}

impl Targets {
    /// Notes that a peer has answered at an address, which nobody can do for a stranger.
    pub(crate) fn note_answer(&mut self, address: IpAddr, now: Monotonic) {
        let address = owner_of(address);
        self.silent.remove(&address);
        if self.answered.len() >= MAX_ADDRESSES && !self.answered.contains_key(&address) {
            self.answered.retain(|_, answered| now.since(answered.at) < FORGOTTEN_AFTER);
        }
        if self.answered.len() < MAX_ADDRESSES || self.answered.contains_key(&address) {
            let free = TokenBucket::new(ANSWERED_BURST, ANSWERED_INTERVAL, now);
            self.answered.insert(address, Answered { at: now, free });
        }
    }

    /// Whether a datagram of so many bytes may go to an address for a peer that has not answered there.
    pub(crate) fn take(
        &mut self,
        address: IpAddr,
        bytes: usize,
        credit: &mut Credit,
        now: Monotonic,
    ) -> bool {
        let address = owner_of(address);
        let answered =
            self.answered.get_mut(&address).filter(|answered| now.since(answered.at) < FORGOTTEN_AFTER);
        let is_free = match answered {
            Some(answered) => answered.free.take(now),
            None => {
                credit.gifts(now).take(now) && {
                    let taken = self.take_silent(address, bytes, now);
                    if !taken {
                        credit.gifts(now).give_back();
                    }
                    taken
                }
            }
        };
        is_free || credit.pay(bytes)
    }

    fn take_silent(&mut self, address: IpAddr, bytes: usize, now: Monotonic) -> bool {
        let is_recent = |silent: &Silent| now.since(silent.last) < FORGOTTEN_AFTER;
        if self.silent.len() >= MAX_ADDRESSES && !self.silent.contains_key(&address) {
            self.silent.retain(|_, silent| is_recent(silent));
            if self.silent.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let before = self.silent.get(&address).copied().filter(is_recent);
        if before.is_some_and(|before| now.since(before.last) < pause_after(before.datagrams)) {
            return false;
        }
        let worth = u32::try_from(bytes.div_ceil(DATAGRAM_BYTES)).unwrap_or(u32::MAX);
        let datagrams = before.map_or(0, |before| before.datagrams).saturating_add(worth);
        self.silent.insert(address, Silent { datagrams, last: now });
        true
    }
}

/// Returns how long to wait after so many datagrams.
fn pause_after(datagrams: u32) -> Duration {
    match datagrams.checked_sub(AT_ONCE) {
        None => Duration::ZERO,
        Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(8)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: usize = 186;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_nanos(millis * 1_000_000)
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    /// Tries an address each 50 ms from one time to another, and returns when something could be sent.
    fn sent(targets: &mut Targets, credit: &mut Credit, from: u64, to: u64) -> Vec<u64> {
        let mut may = |&now: &u64| targets.take(address(1), PING, credit, at(now));
        (from..to).step_by(50).filter(&mut may).collect()
    }

    #[test]
    fn a_silent_address_gets_fewer_and_fewer_datagrams() {
        let mut targets = Targets::default();
        let mut credit = Credit::default();
        let times = sent(&mut targets, &mut credit, 0, 4000);
        assert_eq!(times, [0, 50, 100, 350, 850, 1850, 3850]);
        assert_eq!(sent(&mut targets, &mut credit, 4000, 600_000).len(), 4 + 8);
        let next_day = sent(&mut targets, &mut credit, 86_400_000, 86_400_200);
        assert_eq!(next_day.len(), 3, "what was so long ago says nothing");
    }

    #[test]
    fn it_is_all_the_same_how_many_claim_an_address() {
        let mut targets = Targets::default();
        let mut sent = 0;
        for now in 0..60_000 {
            // Another one each millisecond.
            sent += u32::from(targets.take(address(1), PING, &mut Credit::default(), at(now)));
        }
        assert_eq!(sent, 3 + 7);
    }

    #[test]
    fn a_peer_that_claims_many_addresses_has_few_of_them_tried() {
        let mut targets = Targets::default();
        let mut credit = Credit::default();
        let mut may = |number: u32, now| targets.take(address(number), PING, &mut credit, at(now));
        let sent = (0..10_000).filter(|&number| may(number, 0)).count();
        assert_eq!(sent, GIFT_BURST as usize);
        let later = (10_000..20_000).filter(|&number| may(number, 60_000)).count();
        assert_eq!(later, 12);
    }

    #[test]
    fn a_peer_gets_what_it_has_spent_and_no_more() {
        let mut targets = Targets::default();
        let mut credit = Credit::default();
        sent(&mut targets, &mut credit, 0, 4000);
        credit.earn(2 * PING + 10);
        assert_eq!(sent(&mut targets, &mut credit, 4000, 4500), [4000, 4050]);
        credit.earn(PING - 10);
        assert_eq!(sent(&mut targets, &mut credit, 4500, 5000), [4500]);
        credit.earn(usize::MAX);
        assert_eq!(
            sent(&mut targets, &mut credit, 5000, 7000).len(),
            MAX_CREDIT_BYTES / PING,
            "not saved up"
        );
    }

    #[test]
    fn a_long_datagram_counts_as_several() {
        let mut targets = Targets::default();
        let mut credit = Credit::default();
        assert!(targets.take(address(1), 600, &mut credit, at(0)));
        assert_eq!(sent(&mut targets, &mut credit, 0, 4000), [250, 750, 1750, 3750]);
    }

    #[test]
    fn an_address_at_which_somebody_answers_is_free_for_others_there() {
        let mut targets = Targets::default();
        let mut credit = Credit::default();
        sent(&mut targets, &mut credit, 0, 4000);
        targets.note_answer(address(1), at(4000));
        let at_once = (0..1000).filter(|_| targets.take(address(1), PING, &mut credit, at(4000))).count();
        assert_eq!(at_once, ANSWERED_BURST as usize);
        assert_eq!(sent(&mut targets, &mut credit, 4050, 14_050).len(), 20);
    }

    #[test]
    fn addresses_beyond_what_there_is_room_for_get_nothing() {
        let mut targets = Targets::default();
        let mut may = |number, now| targets.take(address(number), PING, &mut Credit::default(), at(now));
        assert!((0..4096).all(|number| may(number, 0)));
        assert!(!may(5000, 0));
        assert!(may(4000, 0), "and those inside keep theirs");
        assert!(may(5000, 700_000), "the others are forgotten");
        assert!(targets.silent.len() <= MAX_ADDRESSES);
        (0..5000).for_each(|number| targets.note_answer(address(number), at(700_000)));
        assert_eq!(targets.answered.len(), MAX_ADDRESSES);
    }
}
