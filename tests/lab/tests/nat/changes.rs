//! What changes under a tunnel that is in use.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use wgmesh_lab::NatKind::{self, None, PortRestricted, PortRewriting};
use wgmesh_lab::{Internet, Pings, Settings, StunServers, View, eventually, secret, show};

use super::hostile::frames;
use super::{PATIENCE, PING_BYTES, PING_INTERVAL, World};

/// W-X32: as providers do at night; of the one who pings, and of the one who is pinged.
#[test]
fn a_change_of_the_public_address_is_healed() {
    let mut world = World::meet("renumbered", [PortRestricted, PortRestricted]);
    for (index, side) in ["pinging", "pinged"].into_iter().enumerate() {
        world.heals(&format!("new public address of the {side} side"), |world| {
            let nat = world.pair.sites[index].nat.as_mut().unwrap();
            nat.change_public_address(Ipv4Addr::new(203, 0, 113, 10 + u8::try_from(index).unwrap()));
        });
        world.wait_direct();
    }
}

/// W-X32: a router that starts again; its next mappings have other ports.
#[test]
fn a_change_of_the_mapping_is_healed() {
    let mut world = World::meet("flushed", [PortRewriting, PortRewriting]);
    for (index, side) in ["pinging", "pinged"].into_iter().enumerate() {
        world.heals(&format!("new mapping of the {side} side"), |world| {
            world.pair.sites[index].nat.as_mut().unwrap().flush_mappings();
        });
        world.wait_direct();
    }
}

#[test]
fn a_host_may_roam() {
    for kinds in [[None, PortRestricted], [PortRestricted, None], [PortRestricted, PortRestricted]] {
        let [left, right] = kinds;
        let mut world = World::meet("roaming", kinds);
        world.heals(&format!("roaming, {left} to {right}"), |world| {
            world.pair.sites[0].roam();
        });
        world.wait_direct();
    }
}

/// Found in a review: whoever renews a lease or what a router advertises, and changes nothing, had everything sought anew.
#[test]
fn an_address_that_is_renewed_has_nothing_asked_again() {
    let internet = Internet::new("renewed");
    let _stun = StunServers::start(&internet);
    let site = internet.site("node", PortRestricted);
    let node = site.host.daemon(&Settings::new(&secret(1)).over_internet(&[]));
    eventually(PATIENCE, || node.status_json()["node"]["nat_type"] == "port-restricted");
    let asked = site.host.capture("eth0", "udp dst port 3478");
    let address = format!("{}/24", site.address);
    for _ in 0..10 {
        let renewal = ["valid_lft", "3600", "preferred_lft", "3600"];
        site.host.run([&["ip", "address", "change", &address, "dev", "eth0"], &renewal[..]].concat());
        std::thread::sleep(Duration::from_secs(1));
    }
    let asked = asked.finish();
    // Each time anew would be two at least.
    assert!(frames(&asked).len() < 10, "{} questions", frames(&asked).len());
}

/// A second connection becomes the better one, and later the only one.
#[test]
fn a_new_default_route_is_healed() {
    let mut world = World::meet("default-route", [PortRestricted, PortRestricted]);
    let mut other = world.internet.site("other", PortRestricted);
    let (link, address) = other.nat.as_mut().unwrap().join(&world.pair.sites[0].host);
    let [first, second, third, _] = address.octets();
    world.heals("a new default route", |world| {
        let gateway = format!("{first}.{second}.{third}.1");
        let words =
            ["ip", "route", "add", "default", "via", &gateway, "dev", link.interface(), "metric", "0"];
        world.pair.sites[0].host.run(words);
    });
    world.heals("the old connection cut", |world| world.pair.sites[0].link.cut());
    eventually(PATIENCE, || {
        let [left, right] = world.pair.views();
        let sees_other = right.endpoint.is_some_and(|endpoint| endpoint.ip() == other.public());
        left.state == "direct" && right.state == "direct" && sees_other
    });
}

/// IPv6 is preferred at equal quality, and its end does not end the tunnel.
#[test]
fn ipv6_comes_and_goes() {
    let mut world = World::meet("dual", [PortRestricted, PortRestricted]);
    world.heals("IPv6 came", |world| world.pair.sites.iter().for_each(wgmesh_lab::Site::ipv6_up));
    // Where a busy machine has it seem slower at first, it is looked at again after 5, 20 and 65 s.
    let took = eventually(3 * PATIENCE, || world.pair.views().iter().all(uses_ipv6));
    show(&format!("IPv6 is taken {:.1} s after that", took.as_secs_f64()));
    world.heals("IPv6 went", |world| world.pair.sites[0].ipv6_down());
    world.wait_direct();
    assert!(!world.pair.views().iter().any(uses_ipv6));
}

/// What two symmetric NATs make impossible, IPv6 makes possible.
#[test]
fn ipv6_connects_what_ipv4_cannot() {
    let internet = wgmesh_lab::Internet::new("only-ipv6");
    let stun = wgmesh_lab::StunServers::start(&internet);
    let pair = wgmesh_lab::Pair::start(&internet, 1, [NatKind::Symmetric, NatKind::Symmetric]);
    pair.sites.iter().for_each(wgmesh_lab::Site::ipv6_up);
    let world = World { pair, stun, internet };
    world.wait_direct();
    assert!(world.pair.views().iter().all(uses_ipv6));
}

#[test]
fn a_direct_tunnel_survives_thirty_percent_loss() {
    let world = World::meet("lossy", [PortRestricted, PortRewriting]);
    let endpoints = || world.pair.views().map(|view| view.endpoint);
    let before = endpoints();
    world.pair.sites[0].link.impair("loss 30%");
    let target = world.pair.mesh_ipv4(1);
    let began = SystemTime::now();
    let pings = Pings::start(&world.pair.sites[0].host, target, PING_INTERVAL, PING_BYTES);
    std::thread::sleep(Duration::from_secs(30));
    let answers = pings.finish();
    let silence = answers.longest_silence(began);
    // A busy machine sends fewer than it should.
    let (answered, sent) = (answers.replies.len(), answers.sent());
    show(&format!(
        "30 % loss each way: {answered} of {sent} pings answered, {:.1} s of silence",
        silence.as_secs_f64()
    ));
    assert!(answered > sent / 3, "half of them come through");
    assert!(silence < Duration::from_secs(8), "all along");
    assert_eq!(endpoints(), before, "the path was given up for another one");
    assert!(world.is_direct());
    world.pair.sites[0].link.repair();
    eventually(PATIENCE, || world.pair.sites[0].host.pings(world.pair.mesh_ipv4(1)));
}

/// Two who lose every third packet find each other all the same.
#[test]
fn two_hosts_meet_in_spite_of_thirty_percent_loss() {
    let internet = wgmesh_lab::Internet::new("lossy-start");
    let stun = wgmesh_lab::StunServers::start(&internet);
    let pair = wgmesh_lab::Pair::start(&internet, 1, [PortRestricted, PortRestricted]);
    pair.sites[0].link.impair("loss 30%");
    let world = World { pair, stun, internet };
    world.wait_direct();
}

fn uses_ipv6(view: &View) -> bool {
    view.is_direct && view.state == "direct" && view.endpoint.is_some_and(|endpoint| endpoint.is_ipv6())
}
