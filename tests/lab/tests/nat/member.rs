//! A member with bad intentions: it has the mesh's secret and a key of its own, so everything that it says is sealed,
//! signed and proved as well as any honest node's. What it can reach with that is bounded, counted, and moves nobody else.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde_json::Value;
use wgmesh::exchange::Exchange as Streams;
use wgmesh_core::config::Sharing;
use wgmesh_core::derive::MeshKeys;
use wgmesh_core::exchange::{CloseReason, Context, Exchange, Output, SessionEvent, SessionId, Target};
use wgmesh_core::identity::Sequence;
use wgmesh_core::key::{PublicKey, SecretKey};
use wgmesh_core::message::{Disco, DiscoBody, Offer, PING_PADDING_BYTES, Paired as _, Stamp, Token};
use wgmesh_core::nat::Nat;
use wgmesh_core::pool::Places;
use wgmesh_core::record::{Record, SignedRecord};
use wgmesh_core::seal::{Kind, seal};
use wgmesh_core::secret::MeshSecret;
use wgmesh_core::standing::Book;
use wgmesh_core::store::{MIN_AGE, PeerStore};
use wgmesh_core::sync::{Entry, Message, RecordView, Told};
use wgmesh_core::time::{Monotonic, Now, WallClock};
use wgmesh_lab::{Daemon, Host, Memory, NatKind, Settings, eventually, show};

use super::{PATIENCE, World};
use crate::mesh::peers;

/// Where the member is.
const MEMBER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// A host that has nothing to do with any mesh.
const VICTIM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 210);

/// The introducer's exchange.
const EXCHANGE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 51900);

/// WireGuard's port on every host.
const PORT: u16 = 51820;

/// How many nodes the member invents.
const INVENTED: usize = 10_000;

/// The most peers that an honest node holds where nodes are invented: the kernel of a slow machine must hold them too.
const MAX_PEERS: usize = 150;

/// Issue "reach any peer", 5: what a member forges, replays and makes up is refused and counted, and a ping in a victim's
/// name costs the member as much as the victim.
#[test]
fn a_member_that_forges_and_replays_is_refused_counted_and_never_amplified() {
    let stage = Stage::new("member-forges", Settings::new(SECRET));
    let [left, right] = stage.keys();
    let endpoints = stage.world.pair.views().map(|view| view.endpoint);
    let member = stage.join(vec![(MEMBER, PORT).into()]);
    let before = stage.counters();

    let to = stage.world.pair.sites[0].address;
    stage.host.namespace().run(move || forge(member, left, right, to));

    std::thread::sleep(Duration::from_secs(4));
    let drops = &stage.world.pair.daemons[0].status_json()["drops"];
    for (reason, least) in [("replayed", 40), ("forged", 40), ("malformed", 40), ("carry limit", 40)] {
        assert!(drops[reason].as_u64().unwrap_or(0) >= least, "{reason}: {drops}");
    }
    let [sent, received] = stage.counters_since(before);
    show(&format!("forgeries: the member sent {sent} bytes, the victim got {received}"));
    assert!((20_000..=sent).contains(&received), "{received} bytes for {sent}");
    assert_eq!(stage.world.pair.views().map(|view| view.endpoint), endpoints);
    stage.check_pair();
}

/// The same: hundreds of addresses, addresses at which no host can be, and a victim's, in a record that every node has and
/// in offers. The victim gets less than they cost the member.
#[test]
fn a_victim_gets_less_than_the_record_and_the_offers_that_name_it_cost_the_member() {
    let stage = Stage::new("member-lures", Settings::new(SECRET));
    let victims: Vec<SocketAddr> = (0..8).map(|port| (VICTIM, 40_000 + port).into()).collect();
    let lo = stage.world.pair.sites[0].host.capture("lo", "udp and port 51820");
    let before = stage.counters();
    let member = stage.join(victims);
    let [left, _] = stage.keys();

    let to = stage.world.pair.sites[0].address;
    stage.host.namespace().run(move || lure(member, left, to));

    std::thread::sleep(Duration::from_secs(20));
    let [sent, received] = stage.counters_since(before);
    let packets = stage.victim_packets() - before.2;
    show(&format!(
        "a victim's address in a record and 60 offers: {sent} bytes sent, {packets} pings, {received} bytes"
    ));
    assert!(packets > 0, "one attempt is fair");
    let drops = &stage.world.pair.daemons[0].status_json()["drops"];
    assert!(drops["bad address"].as_u64() >= Some(100), "no host can be there: {drops}");
    assert!(received < sent, "{received} bytes for {sent}");
    assert_eq!(frames(&lo.finish()), 0, "nothing to this host itself");
    stage.check_pair();
}

/// M-28, X-29, P-13: records that are not what they seem shut their sender out for a day, also after a restart, and whoever
/// poses as another node is told from it.
#[test]
fn a_member_with_forged_records_or_a_stolen_name_is_shut_out() {
    let mut stage = Stage::new("member-records", Settings::new(SECRET));
    let [left, _] = stage.keys();
    let member = stage.member(Vec::new());
    let key = member.secret.public();
    let outcome = stage.host.namespace().run(move || spoil(member, left));
    assert!(outcome.contains("closed") || outcome.contains("shut out"), "{outcome}");
    let introducer = &stage.world.pair.introducer;
    let status = introducer.status_json();
    let drops = &status["drops"];
    assert_eq!(drops["misbehaved"], 1, "{drops}");
    assert!(drops["session bad proof"].as_u64().unwrap_or(0) >= 1, "{drops}");
    assert!(drops["session shut out"].as_u64().unwrap_or(0) >= 1, "{drops}");
    assert!(drops["refused streams"].as_u64().unwrap_or(0) >= 1, "another secret: {drops}");
    assert!(is_shut_out(&status, key), "{}", status["shut_out"]);
    // A ban is for a day, not for a run.
    introducer.signal(nix::sys::signal::Signal::SIGTERM);
    stage.world.pair.introducer.wait_exit();
    let settings = Settings::new(SECRET).over_internet(&[]);
    stage.world.pair.introducer = stage.world.pair.introducer_host.daemon(&settings);
    stage.world.pair.introducer.wait_ready();
    assert!(is_shut_out(&stage.world.pair.introducer.status_json(), key));
    stage.check_pair();
}

/// Issue "find anyone", 4: 10,000 invented nodes, floods of records, streams that say nothing and floods of streams from one
/// range. The honest pair keeps its tunnel, memory stays bounded, and a newcomer still gets in.
#[test]
fn a_member_that_invents_thousands_and_floods_sessions_keeps_nobody_out() {
    let limits = format!("[limits]\nmax_peers = {MAX_PEERS}");
    let mut stage = Stage::with_tables("member-floods", Settings::new(SECRET), &limits);
    let memory = stage.memory();
    let member = stage.member(Vec::new());
    let started = Instant::now();
    let told = stage.host.namespace().run(move || invent(member));
    let silent = connect(&stage.host, 200);
    show(&format!(
        "the member offered {INVENTED} nodes and gave {told} records in {:.1} s, and opened {} streams",
        started.elapsed().as_secs_f64(),
        silent.len()
    ));
    std::thread::sleep(Duration::from_secs(3));
    for daemon in stage.daemons() {
        let known = peers(daemon).len();
        assert!(known <= MAX_PEERS, "{known} peers");
    }
    stage.check_pair();
    let drops = &stage.world.pair.introducer.status_json()["drops"];
    // A store that is full asks for nobody; of those that it has asked for, none answers pings.
    for reason in ["ping limit", "refused streams"] {
        assert!(drops[reason].as_u64() > Some(10), "{reason}: {drops}");
    }
    let grown: Vec<u64> =
        memory.iter().zip(stage.memory()).map(|(before, after)| after.saturating_sub(*before)).collect();
    show(&format!("memory grew by {grown:?} KiB for {MAX_PEERS} peers"));
    assert!(grown.iter().all(|kib| *kib < 8 * 1024), "{grown:?}");
    drop(silent);

    let left = &stage.world.pair.sites[0];
    stage.world.pair.daemons[0].signal(nix::sys::signal::Signal::SIGTERM);
    stage.world.pair.daemons[0].wait_exit();
    std::fs::remove_dir_all(left.host.folder().join("state")).unwrap();
    let settings = Settings::new(SECRET).over_internet(&[EXCHANGE.0]).with(&limits);
    stage.world.pair.daemons[0] = left.host.daemon(&settings);
    let started = Instant::now();
    // What was invented has a minute to prove to be there before it makes room.
    eventually(Duration::from_secs(180), || stage.world.is_direct());
    show(&format!(
        "a newcomer and the other host were direct after {:.1} s",
        started.elapsed().as_secs_f64()
    ));
}

/// The same: a flood of another's record as everybody has it, and then TLS streams from one address in which nobody says who
/// is there. The one is shut out, the other let wait, both are counted, and the honest sessions stay.
#[test]
fn a_member_that_floods_records_and_greets_nobody_is_shut_out_and_counted() {
    let stage = Stage::new("member-storms", Settings::new(SECRET));
    let [left, _] = stage.keys();
    let endpoints = stage.world.pair.views().map(|view| view.endpoint);
    let memory = stage.memory();
    let member = stage.member(Vec::new());
    let silent = member.clone();

    let outcome = stage.host.namespace().run(move || repeat(member, left));
    assert!(outcome.contains("closed"), "{outcome}");
    let opened = stage.host.namespace().run(move || greet_nobody(silent));

    let status = stage.world.pair.introducer.status_json();
    let drops = &status["drops"];
    let count = |reason: &str| drops[reason].as_u64().unwrap_or(0);
    show(&format!("a flood of records and {opened} silent streams: {outcome}; {drops}"));
    assert_eq!(count("misbehaved"), 1, "{drops}");
    assert!(count("session greeting timeout") > 0, "{drops}");
    assert!(count("session no room") + count("refused streams") > 0, "{drops}");
    assert_eq!(status["sessions"].as_array().map(Vec::len), Some(2), "{}", status["sessions"]);
    let grown: Vec<u64> =
        memory.iter().zip(stage.memory()).map(|(before, after)| after.saturating_sub(*before)).collect();
    assert!(grown.iter().all(|kib| *kib < 4 * 1024), "{grown:?} KiB");
    assert_eq!(stage.world.pair.views().map(|view| view.endpoint), endpoints);
    stage.check_pair();
}

const SECRET: &str = "wgmesh://v1/AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// Two honest nodes and their introducer, a member and its victim.
struct Stage {
    host: Host,
    victim: Host,
    world: World,
}

impl Stage {
    fn new(name: &str, settings: Settings) -> Self {
        Self::with_tables(name, settings, "")
    }

    /// Waits until the pair is direct. The lines are tables of its configuration.
    fn with_tables(name: &str, settings: Settings, tables: &str) -> Self {
        let internet = wgmesh_lab::Internet::new(name);
        let stun = wgmesh_lab::StunServers::start(&internet);
        let host = internet.server("member", &[MEMBER]);
        let victim = internet.server("victim", &[VICTIM]);
        let address = EXCHANGE.0;
        let introducer_host = internet.server("introducer", &[address]);
        let kinds = [NatKind::None, NatKind::PortRestricted];
        let sites = ["left", "right"];
        let sites = [0, 1].map(|index| internet.site(sites[index], kinds[index]));
        let introducer = introducer_host.daemon(&settings.clone().over_internet(&[]).with(tables));
        introducer.wait_ready();
        let settings = settings.over_internet(&[address]).with(tables);
        let daemons = [0, 1].map(|index| sites[index].host.daemon(&settings));
        let pair = wgmesh_lab::Pair { kinds, daemons, introducer, sites, introducer_host };
        let world = World { pair, stun, internet };
        world.wait_direct();
        Self { host, victim, world }
    }

    fn keys(&self) -> [PublicKey; 2] {
        let text = |daemon: &Daemon| daemon.status_json()["node"]["public_key"].as_str().unwrap().parse();
        self.world.pair.daemons.each_ref().map(|daemon| text(daemon).unwrap())
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.world.pair.daemons.iter().chain([&self.world.pair.introducer])
    }

    fn memory(&self) -> Vec<u64> {
        self.daemons().map(|daemon| Memory::of(daemon.id()).anonymous).collect()
    }

    fn member(&self, candidates: Vec<SocketAddr>) -> Member {
        Member::new(candidates)
    }

    /// Has a member tell the introducer of itself, and waits until the pair knows.
    fn join(&self, candidates: Vec<SocketAddr>) -> Member {
        let member = self.member(candidates);
        let (key, clone) = (member.secret.public().to_string(), member.clone());
        self.host.namespace().run(move || {
            in_sessions(clone, async |talk| {
                talk.greet().await.unwrap();
                talk.listen(Duration::from_secs(1), |_| Vec::new()).await;
            });
        });
        let knows = |daemon: &Daemon| peers(daemon).iter().any(|peer| peer["public_key"] == *key);
        eventually(PATIENCE, || self.daemons().all(knows));
        member
    }

    /// Returns what the member has sent, and what the victim has received, in bytes and in packets.
    fn counters(&self) -> (u64, u64, u64) {
        (counter(&self.host, "tx_bytes"), counter(&self.victim, "rx_bytes"), self.victim_packets())
    }

    fn victim_packets(&self) -> u64 {
        counter(&self.victim, "rx_packets")
    }

    fn counters_since(&self, before: (u64, u64, u64)) -> [u64; 2] {
        let now = self.counters();
        [now.0 - before.0, now.1 - before.1]
    }

    fn check_pair(&self) {
        assert!(self.world.is_direct(), "{:?}", self.world.pair.views());
        assert!(self.world.pair.sites[0].host.pings(self.world.pair.mesh_ipv4(1)));
    }
}

fn counter(host: &Host, name: &str) -> u64 {
    host.run(["cat", &format!("/sys/class/net/eth0/statistics/{name}")]).trim().parse().unwrap()
}

fn is_shut_out(status: &Value, key: PublicKey) -> bool {
    let listed = status["shut_out"].as_array().into_iter().flatten();
    listed
        .into_iter()
        .any(|one| one["public_key"] == key.to_string() && one["left_s"].as_u64() > Some(80_000))
}

/// Counts the frames of a capture.
fn frames(pcap: &[u8]) -> usize {
    let mut rest = &pcap[24..];
    let mut count = 0;
    while rest.len() > 16 {
        rest = &rest[16 + u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize..];
        count += 1;
    }
    count
}

/// Whoever it is that has the secret.
#[derive(Clone)]
struct Member {
    keys: MeshKeys,
    secret: SecretKey,
    record: SignedRecord,
    counter: u64,
    rng: ChaCha8Rng,
}

impl Member {
    fn new(candidates: Vec<SocketAddr>) -> Self {
        let keys = MeshKeys::derive(&MeshSecret::parse(SECRET).unwrap().mesh_key());
        let secret = SecretKey::from_random([0x5a; 32]);
        let mut rng = ChaCha8Rng::from_seed([9; 32]);
        let record = record_of(&keys, &secret, candidates, &mut rng);
        Self { keys, secret, record, counter: 0, rng }
    }

    /// Makes a message to WireGuard's port in the name of `claimed`, proved as well as it can.
    fn disco(&mut self, claimed: PublicKey, to: PublicKey, body: DiscoBody) -> Vec<u8> {
        let pair = self.keys.pair(&self.secret, self.secret.public(), to);
        let disco = Disco { key: claimed, stamp: self.stamp(), token: Token(1), body };
        seal(&self.keys, Kind::Disco, &disco.encode_proved(to, &pair), now(), &mut self.rng)
    }

    fn ping(&mut self, to: PublicKey) -> Vec<u8> {
        let id = self.rng.next_u64();
        self.disco(
            self.secret.public(),
            to,
            DiscoBody::Ping { id, padding: vec![0; PING_PADDING_BYTES].into() },
        )
    }

    /// Makes an offer in the name of `claimed`, as if this node had carried it.
    fn carried(&mut self, claimed: PublicKey, to: PublicKey, candidates: &[SocketAddr]) -> Vec<u8> {
        let pair = self.keys.pair(&self.secret, self.secret.public(), to);
        let (stamp, candidates) = (self.stamp(), candidates.to_vec());
        let offer = Offer {
            key: claimed,
            stamp,
            token: Token(1),
            candidates,
            answer: true,
            relays: Vec::new(),
            wants_relay: false,
            routed: false,
        };
        let offer = offer.encode_proved(to, &pair).into();
        self.disco(self.secret.public(), to, DiscoBody::Carried { from: claimed, offer })
    }

    fn stamp(&mut self) -> Stamp {
        self.counter += 1;
        Stamp { sequence: self.record.record().sequence, counter: self.counter }
    }
}

fn record_of(
    keys: &MeshKeys,
    secret: &SecretKey,
    candidates: Vec<SocketAddr>,
    rng: &mut ChaCha8Rng,
) -> SignedRecord {
    let wall = now().wall;
    let record = Record {
        key: secret.public(),
        sequence: Sequence(wall.as_millis()),
        hostname: "member".parse().unwrap(),
        nonce: wgmesh_core::address::AddressNonce::default(),
        subnet: keys.default_subnet(),
        listen_port: PORT,
        routes: Vec::new(),
        issued: wall,
        lifetime_s: 3600,
        candidates,
        nat: Nat::Unknown,
        exchange_port: None,
        introducer: false,
        relay: false,
    };
    SignedRecord::sign(record, secret, keys.network_id(), rng)
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let wall = WallClock::from_millis(u64::try_from(since.as_millis()).unwrap());
    Now { monotonic: Monotonic::default() + since, wall }
}

/// Fifty of everything that can be forged with a key of one's own, to the first of the pair.
fn forge(mut member: Member, left: PublicKey, right: PublicKey, to: Ipv4Addr) {
    let socket = UdpSocket::bind((MEMBER, PORT)).unwrap();
    let own = member.secret.public();
    let send = |bytes: &[u8]| drop(socket.send_to(bytes, (to, PORT)));
    let ping = member.ping(left);
    let victim: SocketAddr = (VICTIM, 40_000).into();
    let crowd: Vec<SocketAddr> = (0..100).map(|port| (VICTIM, 40_000 + port).into()).collect();
    for _ in 0..50 {
        send(&ping);
        let padding = vec![0; PING_PADDING_BYTES].into();
        send(&member.disco(right, left, DiscoBody::Ping { id: 1, padding }));
        send(&member.carried(right, left, &[victim]));
        send(&member.carried(own, left, &crowd));
        send(&member.disco(own, left, DiscoBody::Carry { to: right, offer: vec![1; 200].into() }));
        send(&member.disco(own, left, DiscoBody::Carry { to: right, offer: vec![2; 200].into() }));
        std::thread::sleep(Duration::from_millis(5));
    }
    // In the victim's name: its address is this host's too, as far as this host knows.
    let added = std::process::Command::new("ip")
        .args(["address", "add", &format!("{VICTIM}/32"), "dev", "lo"])
        .status()
        .unwrap();
    assert!(added.success());
    let spoofed = UdpSocket::bind((VICTIM, 40_000)).unwrap();
    for _ in 0..400 {
        spoofed.send_to(&member.ping(left), (to, PORT)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sixty offers of a victim's addresses and of addresses at which no host can be.
fn lure(mut member: Member, left: PublicKey, to: Ipv4Addr) {
    let socket = UdpSocket::bind((MEMBER, PORT)).unwrap();
    let own = member.secret.public();
    for round in 0..60 {
        let mut candidates: Vec<SocketAddr> =
            (0..4).map(|port| (VICTIM, 41_000 + round * 4 + port).into()).collect();
        candidates.extend([
            "127.0.0.1:51820".parse::<SocketAddr>().unwrap(),
            "255.255.255.255:51820".parse().unwrap(),
            (to, PORT).into(),
        ]);
        drop(socket.send_to(&member.carried(own, left, &candidates), (to, PORT)));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Poses as another node, brings another secret, then sends records that others have not signed. Returns how it ended.
fn spoil(member: Member, left: PublicKey) -> String {
    let outsider =
        Member { keys: MeshKeys::derive(&MeshSecret::from_random([3; 32]).mesh_key()), ..member.clone() };
    in_sessions(outsider, async |talk| assert!(talk.greet().await.is_err()));
    let stolen = fetch(member.clone(), left);
    let thief = Member { record: stolen.clone(), ..member.clone() };
    in_sessions(thief, async |talk| assert!(talk.greet().await.is_err()));

    // Another's record, changed in one bit: the signature is its author's, and no longer holds. And with an address of the
    // member's own, by the member's signature.
    let mut changed = stolen.as_bytes().to_vec();
    *changed.last_mut().unwrap() ^= 1;
    let mut moved = stolen.record().clone();
    moved.sequence.0 += 1;
    moved.candidates = vec![SocketAddr::from(([192, 0, 2, 200], 51820))];
    let rng = &mut ChaCha8Rng::from_seed([5; 32]);
    let moved = SignedRecord::sign(moved, &member.secret, member.keys.network_id(), rng).as_bytes().to_vec();
    let outcome = in_sessions(member.clone(), async |talk| {
        let id = talk.greet().await.unwrap();
        for record in [changed, moved].iter().cycle().take(8) {
            talk.say(id, &Message::Records(vec![Told { record: record.clone().into(), silence_s: 0 }]));
        }
        talk.listen(PATIENCE, |_| Vec::new()).await
    });
    let refused = in_sessions(member, async |talk| match talk.greet().await {
        Ok(_) => talk.listen(Duration::from_secs(5), |_| Vec::new()).await,
        Err(error) => error,
    });
    format!("{outcome}; then {refused}")
}

/// Returns the record of a node, as any member gets it.
fn fetch(member: Member, key: PublicKey) -> SignedRecord {
    in_sessions(member, async |talk| {
        let id = talk.greet().await.unwrap();
        talk.say(id, &Message::Ask(vec![key]));
        let mut found = None;
        let network_id = *talk.member.keys.network_id();
        talk.listen(Duration::from_secs(3), |message| {
            if let Message::Records(records) = message {
                let verified =
                    records.iter().filter_map(|told| SignedRecord::verify(&told.record, &network_id).ok());
                found = verified.into_iter().find(|record| record.record().key == key).or(found.take());
            }
            Vec::new()
        })
        .await;
        found.expect("the introducer gives the record of its peer")
    })
}

/// Offers nodes that do not exist, and gives a signed record of each that is asked for. Returns how many that were.
fn invent(member: Member) -> usize {
    let mut rng = ChaCha8Rng::from_seed([4; 32]);
    let mut secrets = BTreeMap::new();
    while secrets.len() < INVENTED {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        let secret = SecretKey::from_random(bytes);
        secrets.insert(secret.public(), secret);
    }
    let keys: Vec<PublicKey> = secrets.keys().copied().collect();
    let (mesh, mut told) = (member.keys.clone(), 0);
    in_sessions(member, async |talk| {
        let id = talk.greet().await.unwrap();
        for part in keys.chunks(1000) {
            let entries = part.iter().map(|&key| Entry { key, sequence: Sequence(now().wall.as_millis()) });
            talk.say(id, &Message::Offer(entries.collect()));
        }
        let answer = |message: Message| {
            let Message::Ask(asked) = message else { return Vec::new() };
            let records: Vec<_> = asked
                .iter()
                .filter_map(|key| secrets.get(key))
                .map(|secret| record_of(&mesh, secret, vec![(VICTIM, 9).into()], &mut rng))
                .map(|record| Told { record: record.as_bytes().to_vec().into(), silence_s: 0 })
                .collect();
            told += records.len();
            if records.is_empty() { Vec::new() } else { vec![Message::Records(records)] }
        };
        talk.listen(Duration::from_secs(15), answer).await;
    });
    told
}

/// Gives the record of a node again and again, and asks for nothing in between, ten times as fast as anybody may for long.
/// Returns how that ended.
fn repeat(member: Member, left: PublicKey) -> String {
    let record = fetch(member.clone(), left).as_bytes().to_vec();
    in_sessions(member, async |talk| {
        let id = talk.greet().await.unwrap();
        for _ in 0..100 {
            // Each record costs the other side a look at its signature, and a slow machine must keep up.
            let told = Told { record: record.clone().into(), silence_s: 0 };
            talk.say(id, &Message::Records(vec![told]));
            for _ in 0..99 {
                talk.say(id, &Message::Ask(Vec::new()));
            }
            let outcome = talk.listen(Duration::from_millis(100), |_| Vec::new()).await;
            if outcome.contains("closed") {
                return outcome;
            }
        }
        talk.listen(PATIENCE, |_| Vec::new()).await
    })
}

/// Opens streams as quickly as it can and never says who is there. Returns how many had room.
fn greet_nobody(member: Member) -> usize {
    in_sessions(member, async |talk| {
        let end = tokio::time::Instant::now() + Duration::from_secs(15);
        let mut opened = 0;
        for _ in 0..64 {
            talk.streams.dial(Target { address: EXCHANGE.into(), expected: None });
        }
        while let Ok(event) = tokio::time::timeout_at(end, talk.streams.next()).await {
            opened += usize::from(matches!(event, SessionEvent::Opened { .. }));
        }
        opened
    })
}

/// Opens streams and says nothing.
fn connect(host: &Host, count: usize) -> Vec<TcpStream> {
    host.namespace().run(move || {
        let one = || TcpStream::connect_timeout(&EXCHANGE.into(), Duration::from_secs(1)).ok();
        (0..count).map_while(|_| one()).collect()
    })
}

/// A member's sessions with the introducer.
struct Talk {
    member: Member,
    streams: Streams,
    exchange: Exchange,
    peers: PeerStore,
    book: Book,
}

fn in_sessions<T>(member: Member, act: impl AsyncFnOnce(&mut Talk) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut talk = Talk {
            streams: Streams::start(&member.keys, 50_000),
            exchange: Exchange::new(Places { target: 1, max: 4 }, Sharing::default(), [7; 32]),
            peers: PeerStore::new(10, MIN_AGE),
            book: Book::default(),
            member,
        };
        let outcome = act(&mut talk).await;
        talk.streams.finish(Duration::from_secs(1)).await;
        outcome
    })
}

impl Talk {
    /// Opens a session and proves its own key.
    async fn greet(&mut self) -> Result<SessionId, String> {
        self.streams.dial(Target { address: EXCHANGE.into(), expected: None });
        let mut opened = None;
        loop {
            let event = tokio::time::timeout(PATIENCE, self.streams.next()).await.map_err(|_| "silence")?;
            match &event {
                SessionEvent::Opened { id, .. } => opened = Some(*id),
                SessionEvent::DialFailed { error, .. } => return Err(error.clone()),
                SessionEvent::Closed { reason, .. } => return Err(reason.clone()),
                SessionEvent::Frame { .. } => {}
            }
            if let Some(up) = self.follow(event) {
                up?;
                return Ok(opened.expect("it was opened before it was up"));
            }
        }
    }

    /// Has the real state machine answer what the other side says.
    fn follow(&mut self, event: SessionEvent) -> Option<Result<(), String>> {
        let Self { member, exchange, peers, book, .. } = self;
        let Now { monotonic, wall } = now();
        let records = RecordView { own: &member.record, peers, now: monotonic };
        let context = Context {
            keys: &member.keys,
            secret: &member.secret,
            own: &member.record,
            records: &records,
            book,
            now: monotonic,
            wall,
        };
        exchange.handle(event, &context);
        let mut up = None;
        while let Some(output) = self.exchange.poll_output() {
            match output {
                Output::Send { id, bytes } => self.streams.send(id, bytes),
                Output::Close { id, reason } => {
                    self.streams.close(id);
                    if reason != CloseReason::Duplicate {
                        up = Some(Err(reason.to_string()));
                    }
                }
                Output::Up { .. } => up = Some(Ok(())),
                _ => {}
            }
        }
        up
    }

    fn say(&mut self, id: SessionId, message: &Message) {
        self.streams.send(id, sync_frame(message));
    }

    /// Goes on for so long, or until the other side ends it, and answers with what `answer` makes of each message.
    async fn listen(&mut self, span: Duration, mut answer: impl FnMut(Message) -> Vec<Message>) -> String {
        let end = tokio::time::Instant::now() + span;
        while let Ok(event) = tokio::time::timeout_at(end, self.streams.next()).await {
            if let SessionEvent::Closed { reason, .. } = &event {
                return format!("closed: {reason}");
            }
            if let SessionEvent::Frame { id, bytes } = &event
                && let Some(message) = sync_message(bytes)
            {
                let id = *id;
                answer(message).iter().for_each(|message| self.say(id, message));
                continue;
            }
            drop(self.follow(event));
        }
        "time is over".to_owned()
    }
}

/// The frame of a session that holds a message of the synchronisation, by its CBOR: the sixth of the kinds.
const SYNC_FRAME: [u8; 3] = [0x82, 5, 0x81];

fn sync_frame(message: &Message) -> Vec<u8> {
    [&SYNC_FRAME[..], &minicbor::to_vec(message).unwrap()].concat()
}

fn sync_message(frame: &[u8]) -> Option<Message> {
    minicbor::decode(frame.strip_prefix(&SYNC_FRAME)?).ok()
}
