//! The Debian package, by `dpkg` itself.

use super::*;

/// Where `cargo xtask lab` puts the package.
const PACKAGE: &str = "/lab/wgmesh.deb";

/// Where the package puts the binary.
const PACKAGED: &str = "/usr/bin/wgmesh";

/// DESIGN 8, W-D6, W-D47: a package brings the service, an upgrade loses no packet, and a removal takes the mesh out of
/// the kernel; what the operator wrote stays, and the node's key until a purge.
#[test]
fn a_package_is_installed_upgraded_under_traffic_and_removed() {
    let machine = the_machine();
    // Left over from the building of the image: it forbids packages to restart services.
    drop(fs::remove_file("/usr/sbin/policy-rc.d"));
    ok(&run("dpkg", &["--install", PACKAGE]));
    let service = Service::start("sdl", "", PACKAGED, machine);
    assert!(!Path::new("/etc/systemd/system/wgmesh@.service").exists(), "the package's unit is used");
    let peer = Peer::start("package", &service);
    eventually(PATIENCE, || succeeds("ping", &["-c", "1", "-W", "1", &peer.address.to_string()]));
    eventually(PATIENCE, || service.status()["ebpf"]["active"] == true);
    let index = link_index("sdl");

    let lost = least_of_three(|| {
        peer.lost_during(|| {
            let before = service.process();
            // dpkg takes a version for its own successor.
            ok(&run("dpkg", &["--install", PACKAGE]));
            assert_ne!(service.process(), before, "the new binary runs");
            eventually(PATIENCE, || service.is_reachable());
        })
    });
    assert_eq!(lost, 0, "dpkg --install of the next version");
    assert_eq!(link_index("sdl"), index, "the link was never made anew");

    // A daemon that cannot come back leaves its tunnels, and a removal finds those too.
    fs::write("/etc/wgmesh/sdl.toml", "listen_prot = 0\n").unwrap();
    run("systemctl", &["restart", &service.unit]);
    wait_for(PATIENCE, || Some(service.property("ActiveState")).filter(|state| state == "failed"));
    assert!(link_exists("sdl"));
    ok(&run("dpkg", &["--remove", "wgmesh"]));
    assert!(!link_exists("sdl") && !Path::new("/sys/fs/bpf/wgmesh/sdl").exists());
    assert!(!Path::new(PACKAGED).exists());
    assert!(!Path::new("/etc/systemd/system/multi-user.target.wants/wgmesh@sdl.service").exists());
    assert!(Path::new("/etc/wgmesh/sdl.secret").exists() && Path::new("/var/lib/wgmesh/sdl.json").exists());

    ok(&run("dpkg", &["--purge", "wgmesh"]));
    assert!(Path::new("/etc/wgmesh/sdl.secret").exists(), "the secret is its operator's");
    assert!(!Path::new("/var/lib/wgmesh").exists());
}
