//! What happens to the whole machine, and with it to every host of the lab: hence a boot of its own, one test at a time.

use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use wgmesh_lab::NatKind::PortRestricted;
use wgmesh_lab::{Internet, Lan, Pair, Settings, StunServers, eventually, show};

use crate::mesh::{PATIENCE, SECRET, mesh, mesh_ipv4, peers};

/// Longer than the daemons' sessions last unheard. The kernel forgets its own keys whenever it sleeps.
const SLEEP: Duration = Duration::from_secs(45);

/// So long may hosts that wake be parted. Here both ends wake at once, so that their first handshakes may undo each other; by
/// itself WireGuard repeats them after 5 s (`REKEY_TIMEOUT`), perhaps to the same end.
const GOAL: Duration = Duration::from_secs(3);

/// Held by the test that changes the machine.
static MACHINE: Mutex<()> = Mutex::new(());

/// By then they must be joined again, on whatever machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Issue "stay up", lifecycle: on a common link, and behind NATs.
#[test]
fn hosts_that_sleep_are_back_within_seconds() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let lan = Lan::new("sleep", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let internet = Internet::new("sleep-far");
    let _stun = StunServers::start(&internet);
    let pair = Pair::start(&internet, 1, [PortRestricted; 2]);
    assert!(pair.meet(PATIENCE).from_start.is_some());
    let near = mesh_ipv4(&daemons[1]);
    let far = pair.mesh_ipv4(1);

    let asleep = sleep();

    assert!(asleep > SLEEP / 2, "it was awake again after {asleep:?}");
    let pairs = [("a common link", &lan.hosts[0], near), ("NATs", &pair.sites[0].host, far)];
    std::thread::scope(|scope| {
        for (name, host, address) in pairs {
            scope.spawn(move || {
                let span = eventually(LIMIT, || host.pings(address));
                let verdict = if span < GOAL { "" } else { ", goal of 3 s MISSED" };
                let (asleep, span) = (asleep.as_secs(), span.as_secs_f64());
                show(&format!("{asleep} s asleep, over {name}: the first ping {span:.2} s after{verdict}"));
            });
        }
    });
    assert_eq!(peers(&daemons[0]).len(), 1, "nobody is forgotten");
    let hosts = lan.hosts.iter().chain(pair.sites.iter().map(|site| &site.host));
    for host in hosts {
        assert!(host.daemon_log().contains("this host was asleep"));
    }
    assert!(pair.views().iter().all(|view| view.path == "direct"), "{:?}", pair.views());
}

/// An upgrade of the module takes every link along, and its generic netlink family comes back with another number.
#[test]
fn a_module_that_is_loaded_anew_takes_no_mesh_down() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let lan = Lan::new("module", 2);
    let daemons = mesh(&lan, &Settings::new(SECRET));
    let index = || lan.hosts[0].run(["cat", "/sys/class/net/wgmesh0/ifindex"]);
    let before = index();

    assert!(Command::new("modprobe").args(["-r", "wireguard"]).status().unwrap().success());

    eventually(LIMIT, || lan.hosts[0].pings(mesh_ipv4(&daemons[1])));
    assert_ne!(index(), before);
}

/// Has the machine sleep until its clock wakes it, and returns for how long it did.
fn sleep() -> Duration {
    let before = slept();
    fs::write("/sys/class/rtc/rtc0/wakealarm", format!("+{}", SLEEP.as_secs())).unwrap();
    fs::write("/sys/power/state", "mem").unwrap();
    slept() - before
}

/// Returns for how long the machine has slept since it was booted, to the time that two system calls take.
fn slept() -> Duration {
    let [running, all] =
        [ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME].map(|clock| clock_gettime(clock).unwrap());
    (all - running).into()
}
