//! Mainline DHT: hosts with nothing but the secret in common find each other, and start without its bootstrap hosts.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use wgmesh_lab::{
    Daemon, DhtNodes, Internet, Lab, NatKind, Settings, Strangers, StunServers, TorrentNode, bind_udp,
    eventually, secret,
};

/// Longer than a meeting takes on a machine that is busy with other tests: the pause between rounds grows to 30 s.
const PATIENCE: Duration = Duration::from_secs(240);

/// W-X25, W-X26, W-X30, X-10: by the DHT alone, with public addresses and behind NATs that let in only whom the host has
/// sent to, without anybody to introduce them.
#[test]
fn hosts_with_nothing_but_the_secret_in_common_meet() {
    let internet = Internet::new("dht-meet");
    let _stun = StunServers::start(&internet);
    let _dht = DhtNodes::start(&internet);
    let kinds = [
        [NatKind::None, NatKind::None],
        [NatKind::PortRestricted, NatKind::PortRestricted],
        [NatKind::PortRewriting, NatKind::AddressRestricted],
    ];
    for (number, kinds) in (1..).zip(kinds) {
        let mut strangers = Strangers::new(&internet, number, &kinds);
        let ready = strangers.start_all();
        let met = strangers.meet(PATIENCE);
        let [left, right] = kinds;
        println!("{left} × {right}: {:.2} s from READY", met.saturating_duration_since(ready).as_secs_f64());
        for (daemon, site) in strangers.daemons.iter().zip(&strangers.sites) {
            let status = daemon.status_json();
            assert_eq!(status["peers"].as_array().unwrap().len(), 1, "{status}");
            assert_eq!(status["peers"][0]["state"], "direct", "{status}");
            assert!(site.host.daemon_log().contains("found a peer"));
        }
        eventually(PATIENCE, || {
            strangers.daemons.iter().any(|daemon| {
                let sources = daemon.status_json()["peers"][0]["sources"].clone();
                sources.as_array().unwrap().iter().any(|source| source == "dht")
            })
        });
        for daemon in &strangers.daemons {
            // On a busy machine a round may go unanswered, and the next one not.
            eventually(PATIENCE, || source(daemon)["state"] == "running");
            eventually(PATIENCE, || source(daemon)["dht"]["last_stored_s"].is_u64());
            eventually(PATIENCE, || source(daemon)["dht"]["nodes"].as_u64() > Some(10));
        }
    }
}

/// BEP 5: hosts that begin with nothing but a node of another make find the whole network, and each other in it.
#[test]
fn a_node_that_is_not_ours_lets_hosts_into_the_dht() {
    if !std::fs::read_to_string("/etc/os-release").unwrap().contains("VERSION_CODENAME=trixie") {
        println!("not run: the images of older releases have no Transmission");
        return;
    }
    let internet = Internet::new("dht-torrent");
    let _stun = StunServers::start(&internet);
    let _dht = DhtNodes::start(&internet);
    let torrent = TorrentNode::start(&internet);
    println!("Transmission names {} nodes", torrent.told_nodes());
    let kinds = [NatKind::None, NatKind::PortRestricted];
    let mut strangers = Strangers::beginning_with([TorrentNode::ENDPOINT], &internet, 1, &kinds);
    let ready = strangers.start_all();
    let met = strangers.meet(PATIENCE);
    println!("through Transmission: {:.2} s from READY", met.saturating_duration_since(ready).as_secs_f64());
}

/// W-X31: the DHT is IPv4, and what it holds names addresses of both families.
#[test]
fn two_whom_their_nats_part_find_each_others_ipv6_in_the_dht() {
    let internet = Internet::new("dht-ipv6");
    let _stun = StunServers::start(&internet);
    let _dht = DhtNodes::start(&internet);
    let mut strangers = Strangers::new(&internet, 1, &[NatKind::Symmetric, NatKind::PortRestricted]);
    strangers.sites.iter().for_each(wgmesh_lab::Site::ipv6_up);
    let ready = strangers.start_all();
    let met = strangers.meet(PATIENCE);
    println!("by IPv6: {:.2} s from READY", met.saturating_duration_since(ready).as_secs_f64());
    for daemon in &strangers.daemons {
        let peer = &daemon.status_json()["peers"][0];
        let endpoint = peer["path"]["endpoint"].as_str().unwrap();
        assert!(endpoint.starts_with("[2001:db8:"), "{endpoint}");
    }
}

/// W-X33, X-12, X-13: nodes that answered before stand in for bootstrap hosts that are gone.
#[test]
fn without_bootstrap_hosts_a_warm_start_works() {
    let internet = Internet::new("dht-warm");
    let _stun = StunServers::start(&internet);
    let mut dht = DhtNodes::start(&internet);
    let mut strangers = Strangers::new(&internet, 1, &[NatKind::None, NatKind::PortRestricted]);
    strangers.start(0);
    strangers.start(1);
    strangers.meet(PATIENCE);
    let folder = strangers.sites[1].host.folder().join("state");
    eventually(PATIENCE, || folder.join("wgmesh0-dht-nodes.json").exists());
    strangers.daemons.remove(1).stop();
    dht.stop_bootstrap();
    // Only the DHT is to be remembered.
    std::fs::remove_file(folder.join("wgmesh0-peers.json")).unwrap();

    strangers.start(1);
    let started = Instant::now();
    let met = strangers.meet(PATIENCE);
    println!("warm start: {:.2} s", met.saturating_duration_since(started).as_secs_f64());
    eventually(PATIENCE, || source(&strangers.daemons[1])["state"] == "running");
}

/// W-X21: as configured by nobody: more hosts than the board has places, all but one behind NATs. That one says in the DHT that
/// it introduces others, and does.
#[test]
fn whoever_is_found_in_the_dht_introduces_the_others() {
    let internet = Internet::new("dht-introducer");
    let _stun = StunServers::start(&internet);
    let _dht = DhtNodes::start(&internet);
    let mut kinds = [NatKind::PortRestricted; 6];
    kinds[0] = NatKind::None;
    let mut strangers = Strangers::with_usual_methods(&internet, 1, &kinds);
    let ready = strangers.start_all();
    let met = strangers.meet(PATIENCE);
    println!("six hosts: {:.2} s from READY", met.saturating_duration_since(ready).as_secs_f64());
    for daemon in &strangers.daemons {
        eventually(PATIENCE, || direct_peers(daemon) == 5);
    }
}

/// W-D31, X-49: hosts that have others publish them say so once it is done, and a newcomer finds them all.
#[test]
fn hosts_that_only_others_publish_are_found() {
    let internet = Internet::new("dht-private");
    let _stun = StunServers::start(&internet);
    let _dht = DhtNodes::start(&internet);
    let mut kinds = [NatKind::PortRestricted; 5];
    kinds[0] = NatKind::None;
    let mut strangers = Strangers::published_by_others(&internet, 1, &kinds);
    (0..4).for_each(|index| strangers.start(index));
    strangers.meet(PATIENCE);
    let met = Instant::now();
    let privacy = |daemon: &Daemon| daemon.status_json()["privacy"].clone();
    eventually(PATIENCE, || {
        strangers.daemons.iter().all(|daemon| privacy(daemon)["published_by_another"] == true)
    });
    println!("published by others {:.2} s after they met", met.elapsed().as_secs_f64());
    let publishes = |daemon: &Daemon| privacy(daemon)["publishes"].as_u64().unwrap();
    assert!(strangers.daemons.iter().map(publishes).sum::<u64>() >= 4);

    strangers.start(4);
    let started = Instant::now();
    let met = strangers.meet(PATIENCE);
    println!("a newcomer: {:.2} s", met.saturating_duration_since(started).as_secs_f64());
    // On a busy machine a relay may be quicker.
    eventually(PATIENCE, || direct_peers(&strangers.daemons[4]) == 4);
    println!("  directly: {:.2} s", started.elapsed().as_secs_f64());
}

/// who never had any nodes but the bootstrap hosts says that those are gone, and finds the others once they are
/// back.
#[test]
fn a_cold_start_without_bootstrap_hosts_says_so_and_recovers() {
    let internet = Internet::new("dht-cold");
    let _stun = StunServers::start(&internet);
    let mut dht = DhtNodes::start(&internet);
    let kinds = [NatKind::None, NatKind::PortRestricted, NatKind::None];
    let mut strangers = Strangers::with_usual_methods(&internet, 1, &kinds);
    strangers.start(0);
    strangers.start(1);
    strangers.meet(PATIENCE);
    dht.stop_bootstrap();

    strangers.start(2);
    let late = &strangers.daemons[2];
    eventually(PATIENCE, || source(late)["error"] == "no node of the DHT answers");
    assert_eq!(source(late)["state"], "failing");
    assert!(late.status_json()["peers"].as_array().unwrap().is_empty());

    dht.start_bootstrap();
    let back = Instant::now();
    eventually(PATIENCE, || direct_peers(late) == 2);
    println!("cold start: {:.2} s after the bootstrap hosts were back", back.elapsed().as_secs_f64());
    eventually(PATIENCE, || source(late)["state"] == "running");
}

/// DESIGN 4: what the network does to the DHT's packets is shown and holds up nothing else.
#[test]
fn a_host_whose_packets_never_reach_the_dht_meets_others_elsewhere() {
    let internet = Internet::new("dht-blocked");
    let _stun = StunServers::start(&internet);
    let dht = DhtNodes::start(&internet);
    let network = DhtNodes::network();
    dht.host.feed(
        ["nft", "-f", "-"],
        &format!("table inet block {{ chain in {{ type filter hook input priority 0; ip daddr {network} drop; }}; }}"),
    );
    let address = "192.0.2.1".parse().unwrap();
    let server = internet.server("introducer", &[address]);
    let settings = Settings::new("wgmesh://v1/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
    let _introducer = server.daemon(&settings.clone().over_internet(&[]));
    let site = internet.site("blocked", NatKind::PortRestricted);
    let over_both = settings.over_internet(&[address]);
    let over_both = Settings {
        more: over_both.more.replace("[\"bootstrap\", ", "[\"dht\", \"bootstrap\", ")
            + "[discovery.dht]\nbootstrap = [\"198.18.0.1:6881\"]\n",
        ..over_both
    };
    let daemon = site.host.daemon(&over_both);
    daemon.wait_ready();
    eventually(PATIENCE, || daemon.status_json()["peers"][0]["state"] == "direct");
    eventually(PATIENCE, || source(&daemon)["state"] == "failing");
}

/// Issue "find anyone", 2: where a firewall lets out no UDP whatever, the exchange over TCP tells who is there, the daemon says
/// what is missing, and its tunnels come up as soon as the firewall lets them.
#[test]
fn a_host_that_may_send_no_udp_learns_of_others_and_says_what_is_wrong() {
    let internet = Internet::new("udp-blocked");
    let _stun = StunServers::start(&internet);
    let _dht = DhtNodes::start(&internet);
    let address = "192.0.2.1".parse().unwrap();
    let server = internet.server("introducer", &[address]);
    let settings = Settings::new("wgmesh://v1/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
    let _introducer = server.daemon(&settings.clone().over_internet(&[]));
    let site = internet.site("blocked", NatKind::PortRestricted);
    site.host.feed(
        ["nft", "-f", "-"],
        "table inet block { chain out { type filter hook output priority 0; oifname != lo meta l4proto udp drop; }; }",
    );
    let over_both = settings.over_internet(&[address]);
    let more = over_both.more.replace("[\"bootstrap\", ", "[\"dht\", \"bootstrap\", ");
    let more = more + "[discovery.dht]\nbootstrap = [\"198.18.0.1:6881\"]\n";
    let daemon = site.host.daemon(&Settings { more, ..over_both });
    daemon.wait_ready();
    eventually(PATIENCE, || daemon.status_json()["peers"][0]["state"] == "connecting");
    eventually(PATIENCE, || source(&daemon)["state"] == "failing");
    eventually(PATIENCE, || daemon.status_json()["sessions"][0].is_object());
    let status = daemon.status_json();
    assert!(status["peers"][0]["why"].is_string() && status["node"]["mapped"].is_null(), "{status}");

    site.host.run(["nft", "delete", "table", "inet", "block"]);
    let opened = Instant::now();
    eventually(PATIENCE, || direct_peers(&daemon) == 1);
    println!("direct {:.2} s after UDP may pass", opened.elapsed().as_secs_f64());
    eventually(PATIENCE, || daemon.status_json()["node"]["mapped"].is_string());
    eventually(PATIENCE, || source(&daemon)["state"] == "running");
}

/// Returns how many peers a daemon has a direct path to.
fn direct_peers(daemon: &Daemon) -> usize {
    let status = daemon.status_json();
    status["peers"].as_array().unwrap().iter().filter(|peer| peer["state"] == "direct").count()
}

/// Found in a review: one refusal with a code that is only for items ended the daemon of whoever asked. What is nested as deep as
/// a datagram is long does not, nor did it.
#[test]
fn a_daemon_outlives_whatever_a_node_of_the_dht_answers() {
    let lab = Lab::new("dht-hostile");
    let host = lab.host("node");
    // On the host itself, where a node of the DHT may have any number (BEP 42).
    let place = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 6881);
    let socket = host.namespace().run(move || bind_udp(place));
    let refused = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&refused);
    thread::spawn(move || while answer_with_malice(&socket, &counted).is_ok() {});
    let methods = "[discovery]\nenabled_methods = [\"exchange\", \"dht\"]";
    let begin = format!("[discovery.dht]\nbootstrap = [\"{place}\"]\n[nat]\nstun_servers = []");
    let daemon = host.daemon(&Settings::new(&secret(1)).with(&format!("{methods}\n{begin}")));
    eventually(PATIENCE, || refused.load(Ordering::Relaxed) > 0);
    thread::sleep(Duration::from_secs(3));
    assert!(host.daemon_log().contains("panicked"), "the library did");
    assert_eq!(source(&daemon)["name"], "dht", "and the daemon answers");
}

/// Answers a lookup, after lists and dictionaries that are nested as deep as a datagram is long, and refuses to store anything.
fn answer_with_malice(socket: &UdpSocket, refused: &AtomicU32) -> std::io::Result<()> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let query = &buffer[..length];
    let holds = |part: &[u8]| query.windows(part.len()).any(|window| window == part);
    for nested in [b"l".repeat(2030), b"d1:a".repeat(507)] {
        socket.send_to(&[b"d1:a", nested.as_slice()].concat(), from)?;
    }
    let key = b"1:t4:";
    let Some(at) = query.windows(key.len()).position(|window| window == key) else { return Ok(()) };
    let is_announcement = holds(b"announce_peer");
    refused.fetch_add(u32::from(is_announcement), Ordering::Relaxed);
    let [answer, kind]: [&[u8]; 2] = match is_announcement {
        true => [b"d1:eli301e6:refusee1:t4:", b"1:y1:ee"],
        false => [b"d1:rd2:id20:aaaaaaaaaaaaaaaaaaaa5:nodes0:5:token4:abcde1:t4:", b"1:y1:re"],
    };
    let transaction = &query[at + key.len()..][..4];
    socket.send_to(&[answer, transaction, kind].concat(), from).map(drop)
}

/// Returns what a daemon tells of the DHT.
fn source(daemon: &Daemon) -> Value {
    let status = daemon.status_json();
    let sources = status["sources"].as_array().unwrap();
    sources.iter().find(|source| source["name"] == "dht").cloned().unwrap_or_default()
}
