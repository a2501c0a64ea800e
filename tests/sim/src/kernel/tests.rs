use std::time::Duration;

use wgmesh_core::kernel::OwnerMark;
use wgmesh_core::time::WallClock;

use super::wireguard::REKEY_TIMEOUT;
use super::*;

/// Two kernels with a wire of no length between them.
struct Pair {
    kernels: [Kernel; 2],
    secrets: [SecretKey; 2],
    now: Now,
}

impl Pair {
    fn new() -> Self {
        let secrets = [1, 2].map(|byte| SecretKey::from_random([byte; 32]));
        let kernels = [0, 1].map(|number| Kernel::new(Random::new(number)));
        let now = Now { wall: WallClock::from_millis(1_000_000), ..Now::default() };
        let mut pair = Self { kernels, secrets, now };
        for side in 0..2 {
            let private_key = Some(pair.secrets[side].clone());
            pair.apply(side, &Write::CreateLink { owner: OwnerMark::new([0; 4]), mtu: 1420 });
            pair.apply(side, &Write::SetDevice { private_key, listen_port: Some(51820), fwmark: None });
            pair.apply(side, &Write::SetUp);
        }
        pair
    }

    fn address(side: usize) -> SocketAddr {
        SocketAddr::from(([172, 16, 0, u8::try_from(side).unwrap()], 51820))
    }

    fn key(&self, side: usize) -> PublicKey {
        self.secrets[side].public()
    }

    fn apply(&mut self, side: usize, write: &Write) {
        self.kernels[side].apply(write, self.now).unwrap();
    }

    fn set_peer(&mut self, side: usize, begins: bool) {
        let endpoint = begins.then(|| Self::address(1 - side));
        let keepalive = begins.then_some(25);
        let key = self.key(1 - side);
        let write =
            PeerWrite { key, create: true, preshared_key: None, endpoint, keepalive, allowed_ips: None };
        self.apply(side, &Write::SetPeers(vec![write]));
    }

    fn pass(&mut self, span: Duration) {
        self.now.monotonic = self.now.monotonic + span;
        let millis = u64::try_from(span.as_millis()).unwrap();
        self.now.wall = WallClock::from_millis(self.now.wall.as_millis() + millis);
        self.kernels.iter_mut().for_each(|kernel| kernel.handle_timeout(self.now));
    }

    /// Carries messages until none is left; those of one round cross each other.
    fn carry(&mut self) {
        loop {
            let sent = [0, 1]
                .map(|side| std::iter::from_fn(|| self.kernels[side].poll_transmit()).collect::<Vec<_>>());
            if sent.iter().all(Vec::is_empty) {
                return;
            }
            for (side, transmits) in sent.into_iter().enumerate() {
                for transmit in transmits {
                    self.kernels[1 - side].receive(Self::address(side), &transmit.message, self.now);
                }
            }
        }
    }

    fn has_session(&self) -> bool {
        let send = |side: usize| {
            let peer = self.kernels[side].peer(self.key(1 - side))?;
            peer.sending_session(self.now.monotonic)
        };
        send(0).is_some() && send(0) == send(1)
    }
}

#[test]
fn a_peer_that_is_installed_first_is_reached_at_once() {
    let mut pair = Pair::new();
    pair.set_peer(1, false);
    pair.set_peer(0, true);
    pair.carry();
    assert!(pair.has_session());
}

#[test]
fn an_initiation_that_comes_too_early_costs_five_seconds() {
    let mut pair = Pair::new();
    pair.set_peer(0, true);
    pair.carry();
    pair.set_peer(1, false);
    pair.pass(REKEY_TIMEOUT - Duration::from_millis(1));
    pair.carry();
    assert!(!pair.has_session());
    pair.pass(Duration::from_millis(400));
    pair.carry();
    assert!(pair.has_session());
}

#[test]
fn initiations_that_cross_destroy_each_other() {
    let mut pair = Pair::new();
    pair.set_peer(0, true);
    pair.set_peer(1, true);
    pair.carry();
    assert!(!pair.has_session());
    // The jitter of the retries tells the two apart.
    for _ in 0..40 {
        pair.pass(Duration::from_millis(200));
        pair.carry();
    }
    assert!(pair.has_session());
}

#[test]
fn a_session_is_renewed_for_as_long_as_both_live_and_dies_with_its_peer() {
    let mut pair = Pair::new();
    pair.set_peer(1, false);
    pair.set_peer(0, true);
    for _ in 0..600 {
        pair.carry();
        pair.pass(Duration::from_secs(1));
    }
    assert!(pair.has_session());
    pair.kernels[1].sabotage(&Sabotage::DeleteLink);
    for _ in 0..181 {
        pair.carry();
        pair.pass(Duration::from_secs(1));
    }
    assert!(pair.kernels[0].peer(pair.key(1)).unwrap().sending_session(pair.now.monotonic).is_none());
}

#[test]
fn a_prefix_that_one_peer_gets_is_taken_from_the_other() {
    let mut pair = Pair::new();
    let prefix: IpNet = "10.1.1.1/32".parse().unwrap();
    let keys = [7, 8].map(|byte| SecretKey::from_random([byte; 32]).public());
    for key in keys {
        let write = PeerWrite {
            key,
            create: true,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            allowed_ips: Some([prefix].into()),
        };
        pair.apply(0, &Write::SetPeers(vec![write]));
    }
    let holds = keys.map(|key| pair.kernels[0].peer(key).unwrap().allowed_ips.contains(&prefix));
    assert_eq!(holds, [false, true]);
}

#[test]
fn an_update_of_a_peer_that_is_gone_does_not_bring_it_back() {
    let mut pair = Pair::new();
    let key = SecretKey::from_random([7; 32]).public();
    let write = PeerWrite {
        key,
        create: false,
        preshared_key: None,
        endpoint: None,
        keepalive: Some(25),
        allowed_ips: None,
    };
    pair.apply(0, &Write::SetPeers(vec![write]));
    assert!(pair.kernels[0].peer(key).is_none());
}
