use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use wgmesh_core::config::{RelayMode, RelaySettings, Sharing};
use wgmesh_core::pool::Places;

use super::*;
use crate::relay::Rates;

fn parse(text: &str) -> Result<File, Problem> {
    File::parse(text, Path::new("/etc/wgmesh/office.toml"))
}

fn complaint(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// M-17, X-48, W-D37, M-37: everything but the secret has a default.
#[test]
fn an_empty_file_is_a_mesh_named_after_the_file() {
    let file = parse("").unwrap();
    assert_eq!(file.interface.as_str(), "office");
    assert_eq!(file.listen_port, 51820);
    assert_eq!(file.state_path(), Path::new("/var/lib/wgmesh/office.json"));
    assert_eq!(file.peers_path(), Path::new("/var/lib/wgmesh/office-peers.json"));
    assert_eq!(file.socket_path(), Path::new("/run/wgmesh/office.sock"));
    let known = [Method::Manual, Method::Lan, Method::Bootstrap, Method::Dns, Method::Exchange];
    let methods = known.into_iter().chain([Method::Dht, Method::Gossip]);
    assert_eq!(file.discovery.enabled_methods, methods.collect());
    assert_eq!(file.discovery, Discovery::default());
    assert_eq!(file.nat, Nat::default());
    assert!(file.nat.stun_servers.len() >= 2, "it takes two to tell the type of a NAT");
    let settings = file.settings("db1");
    assert!(settings.lan && settings.punching && settings.exchange && settings.dht);
    assert!(file.discovery.dht.bootstrap.len() >= 3);
    assert_eq!(file.dht_nodes_path(), Path::new("/var/lib/wgmesh/office-dht-nodes.json"));
    assert_eq!(settings.exchange_port, None);
    assert_eq!(file.settings("db1").max_peers, 1000);
    assert_eq!(file.settings("db1.example.org").hostname.as_str(), "db1.example.org");
}

/// Found in a review: the state of a mesh called `office-relay` was what `office` relays, and its key was overwritten.
#[test]
fn no_two_meshes_share_a_file() {
    for path in parse("").unwrap().state_files() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let other = parse(&format!("interface = \"{}\"", name.replace("office", "o")));
        assert_eq!(other.is_err(), name != "office", "{name}");
    }
    assert!(complaint("interface = \"a-pins\"").ends_with("take a name that does not end in -pins"));
    let found = File::of_interface_in(Path::new("/nowhere"), &"a-pins".parse().unwrap());
    assert!(matches!(found, Err(Error::Invalid { .. })), "{found:?}");
}

/// Found in a review: a file that root alone may read passed every check, and kept the service from starting for good.
#[test]
fn a_file_that_the_service_cannot_read_is_told_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt as _;
    let file = tempfile::NamedTempFile::new().unwrap();
    let set = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    set(0o600);
    let is_roots = std::fs::metadata(file.path()).unwrap().uid() == 0;
    let told = unreadable_to_others(file.path());
    assert_eq!(told.is_some(), is_roots);
    let command = format!("(mode 0600); run: chmod a+r {}", file.path().display());
    assert!(told.is_none_or(|told| told.ends_with(&command)));
    for mode in [0o640, 0o644] {
        set(mode);
        assert_eq!(unreadable_to_others(file.path()), None);
    }
}

/// M-21, X-27: a word says how many sessions, and numbers count over it.
#[test]
fn a_profile_is_two_numbers_that_can_be_set_one_by_one() {
    let places = |text: &str| {
        let Places { target, max } = parse(&format!("[discovery]\n{text}")).unwrap().discovery.places();
        (target, max)
    };
    assert_eq!(places(""), (4, 32));
    assert_eq!(places("profile = \"minimal\""), (4, 8));
    assert_eq!(places("profile = \"standard\""), (16, 32));
    assert_eq!(places("profile = \"bridge\""), (64, 128));
    assert_eq!(places("profile = \"bridge\"\nmax_peers = 100"), (64, 100));
    assert_eq!(places("target_peers = 9\nmax_peers = 6"), (6, 6));
    assert!(complaint("[discovery]\nprofile = \"huge\"").contains("minimal"));
    assert!(complaint("[discovery]\nmax_peers = 0").contains("from 1 to 255"));
}

#[test]
fn the_packaged_example_is_a_configuration_once_its_keys_are_taken_up() {
    let example = include_str!("../../../systemd/wgmesh0.toml.example");
    let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    assert!(example.lines().filter(is_key).count() >= 4);
    let taken_up: Vec<_> =
        example.lines().map(|line| if is_key(&line) { &line[1..] } else { line }).collect();
    parse(&taken_up.join("\n")).unwrap();
}

/// M-15, W-D37, M-36: the documented names are the ones that are read.
#[test]
fn every_key_is_read() {
    let file = parse(
        r#"
        interface = "mesh1"
        secret_file = "mesh1.secret"
        listen_port = 0
        subnet = "10.42.0.0/16"
        hostname = "db1"
        state_dir = "/srv/state"
        runtime_dir = "/srv/run"
        log_level = "debug"
        advertise_routes = ["192.168.7.0/24", "fd00:7::/64"]
        accept_routes = ["192.168.0.0/16"]
        [discovery]
        enabled_methods = []
        bootstrap_nodes = ["mesh1.example.org:51900#pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk="]
        static_peers = ["pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=@203.0.113.7:51820"]
        exchange_port = 51901
        max_peers_per_exchange = 10
        min_peer_age = 0
        exchange_interval = 30
        [discovery.dht]
        bootstrap = ["dht.example.org", "192.0.2.1:7"]
        port = 6882
        [nat]
        stun_servers = ["stun.example.org", "192.0.2.1:19302"]
        punching = false
        [relay]
        mode = "off"
        force = true
        serve = true
        max_pairs = 7
        rate = 1000
        pair_rate = 20
        [limits]
        max_peers = 50
        "#,
    )
    .unwrap();
    assert_eq!(file.interface.as_str(), "mesh1");
    assert_eq!(file.listen_port, 0);
    assert_eq!(file.subnet, Some("10.42.0.0/16".parse().unwrap()));
    assert_eq!(file.log_level, LogLevel::Debug);
    assert_eq!(file.state_path(), Path::new("/srv/state/mesh1.json"));
    assert_eq!(file.socket_path(), Path::new("/srv/run/mesh1.sock"));
    assert!(file.discovery.enabled_methods.is_empty());
    assert_eq!(file.discovery.bootstrap_nodes[0].port, Some(51900));
    assert!(file.discovery.bootstrap_nodes[0].key.is_some());
    assert_eq!(file.discovery.static_peers[0].endpoint, Some("203.0.113.7:51820".parse().unwrap()));
    let ports: Vec<u16> = file.discovery.dht.bootstrap.iter().map(|node| node.port).collect();
    assert_eq!(ports, [6881, 7]);
    assert_eq!(file.discovery.dht.port.map(NonZeroU16::get), Some(6882));
    let ports: Vec<u16> = file.nat.stun_servers.iter().map(|server| server.port).collect();
    assert_eq!(ports, [3478, 19302]);
    let settings = file.settings("ignored");
    assert_eq!(settings.hostname.as_str(), "db1");
    assert!(!settings.lan && !settings.punching && !settings.exchange);
    assert_eq!(settings.exchange_port, Some(51901));
    assert_eq!(settings.max_peers, 50);
    let sharing = Sharing { max: 10, min_age: Duration::ZERO, interval: Duration::from_secs(30) };
    assert_eq!(settings.sharing, sharing);
    let relay = RelaySettings { mode: RelayMode::Off, serve: Some(true), max_pairs: 7, force: true };
    assert_eq!(settings.relay, relay);
    assert_eq!(file.relay.rates(), Rates { flow: NonZeroU32::new(20), all: NonZeroU32::new(1000) });
    assert!(!settings.relay.routes() && !settings.relay.is_wanted());
    assert_eq!(settings.advertise_routes.len(), 2);
    assert_eq!(settings.accept_routes, BTreeSet::from(["192.168.0.0/16".parse().unwrap()]));
}

#[test]
fn an_unknown_key_is_placed_and_the_nearest_is_proposed() {
    let expected = "2:1: `listen_prot`: unknown key; did you mean `listen_port`?";
    assert_eq!(complaint("interface = \"a\"\nlisten_prot = 1\n"), expected);
    let expected = "3:3: `discovery.enabled_method`: unknown key; did you mean `discovery.enabled_methods`?";
    assert_eq!(complaint("\n[discovery]\n  enabled_method = []\n"), expected);
}

#[test]
fn a_key_like_no_other_lists_what_there_is() {
    let text = complaint("[broadcast]\nenabled = true\n");
    assert!(text.starts_with("1:2: `broadcast`: unknown key; known here: interface, secret_file,"), "{text}");
    let text = complaint("[nat]\nupnp = true\n");
    assert_eq!(text, "2:1: `nat.upnp`: unknown key; known here: nat.stun_servers, nat.punching");
}

#[test]
fn a_value_of_the_wrong_kind_says_what_the_key_takes() {
    let text = complaint("listen_port = \"many\"");
    assert!(text.starts_with("1:15: `listen_port`: invalid type: string \"many\""), "{text}");
    assert!(text.ends_with("it takes a UDP port from 0 to 65535, 0 for any that is free"), "{text}");

    for (text, place) in [
        ("listen_port = 70000", "1:15: `listen_port`"),
        ("interface = \"a b\"", "1:13: `interface`"),
        ("log_level = \"loud\"", "1:13: `log_level`"),
        ("hostname = \"\"", "1:12: `hostname`"),
        ("advertise_routes = [\"10.0.0.0/8\", \"x\"]", "1:35: `advertise_routes`"),
        ("advertise_routes = \"10.0.0.0/8\"", "1:20: `advertise_routes`"),
        ("[limits]\nmax_peers = 0", "2:13: `limits.max_peers`"),
        ("discovery = 7", "1:13: `discovery`"),
        ("[discovery]\nenabled_methods = 7", "2:19: `discovery.enabled_methods`"),
        ("[discovery]\nbootstrap_nodes = \"mesh1\"", "2:19: `discovery.bootstrap_nodes`"),
        ("[discovery]\nbootstrap_nodes = [\"mesh1\", \"a b\"]", "2:29: `discovery.bootstrap_nodes`"),
        ("[discovery]\nstatic_peers = [\"mesh1\"]", "2:17: `discovery.static_peers`"),
        ("[discovery]\nexchange_port = 0", "2:17: `discovery.exchange_port`"),
        ("[discovery]\nmax_peers_per_exchange = 65", "2:26: `discovery.max_peers_per_exchange`"),
        ("[discovery]\nexchange_interval = 0", "2:21: `discovery.exchange_interval`"),
        ("[discovery.dht]\nport = 0", "2:8: `discovery.dht.port`"),
        ("[discovery.dht]\nbootstrap = [\"a b\"]", "2:14: `discovery.dht.bootstrap`"),
        ("[nat]\nstun_servers = [\n  \"stun.example.org:x\",\n]", "3:3: `nat.stun_servers`"),
        ("[nat]\npunching = \"yes\"", "2:12: `nat.punching`"),
        ("[relay]\nmode = \"open\"", "2:8: `relay.mode`"),
        ("[relay]\nserve = 1", "2:9: `relay.serve`"),
        ("[relay]\nforce = \"yes\"", "2:9: `relay.force`"),
        ("[relay]\nmax_pairs = 0", "2:13: `relay.max_pairs`"),
        ("[relay]\nrate = \"1G\"", "2:8: `relay.rate`"),
        ("[relay]\npair_rate = 0", "2:13: `relay.pair_rate`"),
    ] {
        let complaint = complaint(text);
        assert!(complaint.starts_with(place), "{text}: {complaint}");
        assert!(complaint.contains("; it takes "), "{text}: {complaint}");
    }
}

#[test]
fn a_subnet_must_be_a_network_of_a_useful_size() {
    for (net, wrong) in [
        ("10.42.0.1/16", "has host bits set: write 10.42.0.0/16"),
        ("10.42.0.0/30", "/30 is no size for a mesh"),
        ("0.0.0.0/0", "/0 is no size for a mesh"),
        ("127.0.0.0/8", "hosts can't have addresses in 127.0.0.0/8"),
        ("224.0.0.0/8", "hosts can't have addresses in 224.0.0.0/8"),
    ] {
        let text = complaint(&format!("subnet = \"{net}\""));
        assert!(text.contains(wrong), "{text}");
    }
}

#[test]
fn a_method_of_a_later_version_says_so() {
    let text = complaint("[discovery]\nenabled_methods = [\"lan\", \"github\"]");
    assert!(
        text.contains(
            "method `github` is not in this version, which has: manual, lan, bootstrap, dns, exchange, dht"
        ),
        "{text}"
    );
    let text = complaint("[discovery]\nenabled_methods = [\"lam\"]");
    assert!(
        text.contains("unknown method `lam`, this version has: manual, lan, bootstrap, dns, exchange, dht"),
        "{text}"
    );
}

/// W-X1, W-D55, M-2, DESIGN 11: each method is either there or announced for later.
#[test]
fn every_method_is_known_now_or_later() {
    for name in
        ["manual", "lan", "mdns", "bootstrap", "dns", "dht", "exchange", "gossip", "file", "http", "github"]
    {
        let now = Method::try_from(name.to_owned());
        let is_there = ["manual", "lan", "bootstrap", "dns", "exchange", "dht", "gossip"].contains(&name);
        assert_eq!(now.is_ok(), is_there, "{name}");
        assert!(now.map_or_else(|text| text.contains("is not in this version"), |_| true), "{name}");
    }
}

#[test]
fn broken_toml_is_placed() {
    for (text, place) in
        [("interface = ", "1:"), ("a = 1\nb", "2:"), ("interface = \"a\"\ninterface = \"b\"", "2:1: ")]
    {
        let complaint = complaint(text);
        assert!(complaint.starts_with(place), "{text:?}: {complaint}");
    }
}

#[test]
fn no_text_makes_the_reader_panic() {
    let whole = "interface = \"ä\"\nsubnet = \"10.0.0.0/16\"\n[discovery]\nenabled_methods = [\"lan\"]\n";
    for end in (0..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
        let _ = parse(&whole[..end]);
    }
}

#[test]
fn a_missing_file_is_all_defaults_if_named_by_interface_and_an_error_if_named_by_path() {
    let directory = tempfile::tempdir().unwrap();
    let interface = "mesh7".parse().unwrap();
    let file = File::of_interface_in(directory.path(), &interface).unwrap();
    assert_eq!(file.interface, interface);

    let error = File::load(&directory.path().join("mesh7.toml")).unwrap_err().to_string();
    assert!(error.contains("two lines are enough"), "{error}");
}

#[test]
fn a_file_that_speaks_of_another_interface_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("mesh7.toml"), "interface = \"mesh8\"").unwrap();
    let error = File::of_interface_in(directory.path(), &"mesh7".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("`interface = \"mesh8\"` but was found by the name mesh7"), "{error}");
}

/// W-D11: that a relay may read is opted into, and never the default.
#[test]
fn relays_route_only_where_the_operator_says_so() {
    for (text, routes) in
        [("", false), ("[relay]\nmode = \"sealed\"", false), ("[relay]\nmode = \"routed\"", true)]
    {
        let relay = parse(text).unwrap().settings("ignored").relay;
        assert!(relay.is_wanted() && relay.routes() == routes, "{text}");
    }
}
