//! What the confined service does to the host, and how it ends for good.

use super::{BINARY, PATIENCE, Service, eventually, fs, link_exists, ok, run, text, wait_for};

/// W-D46, W-D50: CAP_NET_ADMIN and netlink are enough, where `/proc/sys` is out of sight; and all of it is taken back.
#[test]
fn the_confined_service_passes_packets_on_and_stops_when_it_stops() {
    ok(&run("ip", &["link", "add", "behind", "type", "veth", "peer", "name", "inside"]));
    ok(&run("ip", &["address", "add", "10.77.0.1/24", "dev", "behind"]));
    ok(&run("ip", &["link", "set", "inside", "up"]));
    ok(&run("ip", &["link", "set", "behind", "up"]));
    let switch = |link: &str| {
        let file = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
        fs::read_to_string(file).unwrap_or_default().trim().to_owned()
    };
    assert_eq!(switch("behind"), "0");
    let service = Service::install("sdl", "listen_port = 0\nadvertise_routes = [\"10.77.0.0/24\"]\n");
    let table = || text(&run("nft", &["list", "table", "inet", "wgmesh-sdl"]));
    eventually(PATIENCE, || switch("behind") == "1" && switch("sdl") == "1");
    println!("{}", table());
    assert!(table().contains("ip daddr 10.77.0.0/24"), "{}", table());
    assert_eq!(service.status()["kernel"]["converged"], true);

    // An older iptables forbids it, which a service that sees nothing of /proc but processes finds out too.
    ok(&run("iptables-legacy", &["-P", "FORWARD", "DROP"]));
    eventually(PATIENCE, || {
        service.status()["problems"].to_string().contains("iptables-legacy chain filter FORWARD")
    });
    ok(&run("iptables-legacy", &["-P", "FORWARD", "ACCEPT"]));
    eventually(PATIENCE, || service.status()["problems"].as_array().is_none_or(Vec::is_empty));

    // A restart leaves it all as it is, for the next process to know again.
    ok(&run("systemctl", &["restart", &service.unit]));
    assert_eq!(switch("behind"), "1");
    eventually(PATIENCE, || service.status()["kernel"]["forwarding"] == serde_json::json!(["behind", "sdl"]));

    ok(&run("systemctl", &["stop", &service.unit]));
    assert_eq!((switch("behind"), table()), ("0".to_owned(), String::new()));
    ok(&run("ip", &["link", "delete", "behind"]));
}

/// Issue 4: who has left stays away, without the unit counting as failed, and comes back as itself when started.
#[test]
fn a_node_that_has_left_is_not_started_again() {
    let service = Service::install("sdm", "listen_port = 0\n");
    let key = service.status()["node"]["public_key"].clone();
    let left = run(BINARY, &["leave", "--interface", "sdm"]);
    ok(&left);
    assert!(text(&left).contains("systemctl start wgmesh@sdm"), "{}", text(&left));
    wait_for(PATIENCE, || Some(service.property("ActiveState")).filter(|state| state == "inactive"));
    assert_eq!(service.property("ExecMainStatus"), "79");
    assert!(!link_exists("sdm"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(
        (service.property("ActiveState").as_str(), service.property("NRestarts").as_str()),
        ("inactive", "0")
    );
    ok(&run("systemctl", &["start", &service.unit]));
    assert_eq!(service.status()["node"]["public_key"], key);
}
