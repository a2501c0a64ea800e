//! The service as systemd runs it, on the machine itself. Each test installs its own instance; because they share
//! the machine and its units, one runs at a time.

mod lifecycle;
mod package;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use wgmesh_lab::{Daemon, Host, Lab, Settings, eventually, least_of_three, wait_for};

/// Where an operator would put the binary.
const BINARY: &str = "/usr/local/bin/wgmesh";

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);

/// `WatchdogSec=` of the unit, and a start after it.
const WATCHDOG_PATIENCE: Duration = Duration::from_secs(60);

/// NET_ADMIN, NET_RAW, PERFMON and BPF, by their numbers in `linux/capability.h`.
const UNIT_CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

#[test]
fn the_machine_has_finished_its_boot_and_nothing_failed() {
    let _machine = the_machine();
    let state = run("systemctl", &["is-system-running", "--wait"]);
    assert_eq!(text(&state).trim(), "running", "{}", text(&run("systemctl", &["--failed", "--no-pager"])));
}

/// W-D47, W-D48, W-D49, C-7, C-8, X-46, X-47: two commands make a service that is what the design says it is.
#[test]
fn the_installed_service_is_confined_and_leaves_nothing_when_stopped() {
    let service = Service::install("sda", "listen_port = 0\n");
    assert_eq!(text(&run("systemctl", &["is-active", &service.unit])).trim(), "active");
    assert_eq!(text(&run("systemctl", &["is-enabled", &service.unit])).trim(), "enabled");

    let process = service.process();
    let field = |name: &str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let mask = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
    assert_eq!(mask("CapBnd"), UNIT_CAPABILITIES);
    assert_eq!(mask("CapEff") & !UNIT_CAPABILITIES, 0);
    assert_eq!(mask("CapAmb") | mask("CapInh"), 0);
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
    let user = text(&run("id", &["-u", "wgmesh"])).trim().to_owned();
    assert_eq!(field("Uid"), user);
    for file in ["cmdline", "environ"] {
        let content = fs::read(format!("/proc/{process}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains(&service.secret), "{file}");
    }

    // The daemon loads its programs when the mesh has calmed down.
    eventually(PATIENCE, || service.status()["ebpf"]["active"] == true);
    assert_eq!(mask("CapEff") & (1 << 38), 0, "PERFMON is only for loading");
    let status = service.status();
    assert_eq!(status["kernel"]["converged"], true, "{status}");
    assert!(Path::new("/sys/fs/bpf/wgmesh/sda").exists());
    let mode = fs::metadata("/var/lib/wgmesh/sda.json").unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    ok(&run("systemctl", &["stop", &service.unit]));
    assert!(!link_exists("sda"));
    assert!(!Path::new("/sys/fs/bpf/wgmesh/sda").exists());
    assert!(!Path::new("/run/wgmesh/sda.sock").exists());
    assert_eq!(text(&run("ip", &["route", "show", "table", "all", "proto", "0x57"])).trim(), "");
}

/// W-D47: after removal, only what the operator made and the node's identity are left.
#[test]
fn an_uninstalled_service_leaves_secret_and_state_and_no_unit() {
    let service = Service::install("sdb", "listen_port = 0\n");
    ok(&run(BINARY, &["uninstall-service", "--interface", "sdb"]));
    assert!(!link_exists("sdb"));
    assert!(!Path::new("/etc/systemd/system/wgmesh@.service").exists());
    assert!(!succeeds("systemctl", &["is-enabled", &service.unit]));
    assert!(Path::new("/etc/wgmesh/sdb.secret").exists());
    assert!(Path::new("/var/lib/wgmesh/sdb.json").exists());
    // The remaining clean-up is to find nothing amiss.
    drop(service);
}

/// DESIGN 8, C-7, W-D6: restart, kill and hang of the daemon cost no packet of an established tunnel.
#[test]
fn no_packet_is_lost_while_the_service_restarts_crashes_or_hangs() {
    let service = Service::install("sdc", "");
    let peer = Peer::start("restarts", &service);
    eventually(PATIENCE, || succeeds("ping", &["-c", "1", "-W", "1", &peer.address.to_string()]));
    let index = link_index("sdc");

    let lost = least_of_three(|| peer.lost_during(|| ok(&run("systemctl", &["restart", &service.unit]))));
    assert_eq!(lost, 0, "systemctl restart");

    let lost = least_of_three(|| {
        peer.lost_during(|| {
            let killed = service.process();
            ok(&run("kill", &["-KILL", &killed]));
            wait_for(PATIENCE, || Some(service.process()).filter(|now| *now != killed && *now != "0"));
            eventually(PATIENCE, || service.is_reachable());
        })
    });
    assert_eq!(lost, 0, "kill -KILL");

    let lost = least_of_three(|| {
        peer.lost_during(|| {
            let hung = service.process();
            ok(&run("kill", &["-STOP", &hung]));
            wait_for(WATCHDOG_PATIENCE, || Some(service.process()).filter(|now| *now != hung && *now != "0"));
            eventually(PATIENCE, || service.is_reachable());
        })
    });
    assert_eq!(lost, 0, "kill -STOP until the watchdog bites");

    assert_eq!(link_index("sdc"), index, "the link was never made anew");
}

/// C-7: a wrong configuration ends the service with a clear line in the journal, and is not tried again.
#[test]
fn a_wrong_configuration_stops_the_service_and_says_where() {
    let service = Service::install("sdd", "listen_port = 0\n");
    fs::write("/etc/wgmesh/sdd.toml", "listen_prot = 0\n").unwrap();

    run("systemctl", &["restart", &service.unit]);

    let shown = |property: &str| service.property(property);
    wait_for(PATIENCE, || Some(shown("ActiveState")).filter(|state| state == "failed"));
    assert_eq!(shown("ExecMainStatus"), "78");
    assert_eq!(shown("NRestarts"), "0");
    let journal = text(&run("journalctl", &["-u", &service.unit, "--no-pager", "-o", "cat"]));
    assert!(journal.contains("/etc/wgmesh/sdd.toml:1:1: `listen_prot`: unknown key"), "{journal}");
    assert!(journal.contains("did you mean `listen_port`?"), "{journal}");
}

/// W-D7, C-7: `systemctl reload` has the running process take up its file, and fails where the file is wrong.
#[test]
fn the_service_takes_up_a_changed_file_and_refuses_a_wrong_one() {
    let service = Service::install("sdh", "listen_port = 0\n");
    let (process, index) = (service.process(), link_index("sdh"));

    fs::write("/etc/wgmesh/sdh.toml", "listen_port = 0\nlog_level = \"debug\"\n").unwrap();
    ok(&run("systemctl", &["reload", &service.unit]));
    let fields = ["WGMESH_INTERFACE=sdh", "WGMESH_CHANGED=log_level", "-o", "cat", "--no-pager"];
    eventually(PATIENCE, || text(&run("journalctl", &fields)).contains("read the configuration anew"));

    fs::write("/etc/wgmesh/sdh.toml", "listen_prot = 0\n").unwrap();
    assert!(!succeeds("systemctl", &["reload", &service.unit]));
    let journal = || text(&run("journalctl", &["-u", &service.unit, "--no-pager", "-o", "cat"]));
    eventually(PATIENCE, || journal().contains("/etc/wgmesh/sdh.toml:1:1: `listen_prot`: unknown key"));

    assert_eq!(service.property("ActiveState"), "active");
    assert_eq!((service.process(), link_index("sdh")), (process, index));
}

/// C-9, DESIGN 12: entries of the journal carry their fields.
#[test]
fn the_journal_knows_which_mesh_an_entry_belongs_to() {
    let service = Service::install("sde", "listen_port = 0\n");
    let fields = ["WGMESH_INTERFACE=sde", "-o", "json", "--no-pager"];
    let entries = text(&run("journalctl", &fields));
    let first: Value = serde_json::from_str(entries.lines().next().expect("an entry")).unwrap();
    assert_eq!(first["_SYSTEMD_UNIT"], service.unit.as_str());
    assert_eq!(first["SYSLOG_IDENTIFIER"], "wgmesh");
    assert_eq!(first["PRIORITY"], "6");
}

/// W-D47, W-D6: a restart that fails leaves the tunnels to a successor; if none is to come, they go with the service.
#[test]
fn an_uninstall_takes_along_what_a_failed_restart_has_left() {
    ok(&run("ip", &["link", "add", "sdk-lan", "type", "dummy"]));
    ok(&run("ip", &["address", "add", "10.88.0.1/24", "dev", "sdk-lan"]));
    ok(&run("ip", &["link", "set", "sdk-lan", "up"]));
    let forwards = || fs::read_to_string("/proc/sys/net/ipv4/conf/sdk-lan/forwarding").unwrap().trim() == "1";
    let has_table = || text(&run("nft", &["list", "tables"])).contains("wgmesh-sdk");
    let service = Service::install("sdk", "listen_port = 0\nadvertise_routes = [\"10.88.0.0/24\"]\n");
    eventually(PATIENCE, || service.status()["ebpf"]["active"] == true);
    eventually(PATIENCE, || forwards() && has_table());
    fs::write("/etc/wgmesh/sdk.toml", "listen_prot = 0\n").unwrap();
    run("systemctl", &["restart", &service.unit]);
    wait_for(PATIENCE, || Some(service.property("ActiveState")).filter(|state| state == "failed"));
    let pins = Path::new("/sys/fs/bpf/wgmesh/sdk");
    assert!(link_exists("sdk") && pins.exists(), "a failed restart leaves the tunnels working");

    let output = run(BINARY, &["uninstall-service", "--interface", "sdk"]);

    ok(&output);
    assert!(text(&output).contains("removed sdk"), "{}", text(&output));
    assert!(!link_exists("sdk") && !pins.exists());
    assert!(!forwards() && !has_table(), "the host passes on nothing for a mesh that is gone");
    ok(&run("ip", &["link", "delete", "sdk-lan"]));
}

/// C-3: somebody else's link of that name is not taken for a left-over.
#[test]
fn an_uninstall_leaves_a_foreign_link_alone() {
    let service = Service::install("sdi", "listen_port = 0\n");
    ok(&run("systemctl", &["stop", &service.unit]));
    ok(&run("ip", &["link", "add", "sdi", "type", "wireguard"]));

    ok(&run(BINARY, &["uninstall-service", "--interface", "sdi"]));

    assert!(link_exists("sdi"));
    ok(&run("ip", &["link", "delete", "sdi"]));
}

#[test]
fn a_daemon_started_by_hand_says_whose_the_services_files_are() {
    let service = Service::install("sdj", "listen_port = 0\n");
    ok(&run("systemctl", &["stop", &service.unit]));

    let output = run(BINARY, &["run", "--interface", "sdj"]);

    assert_eq!(output.status.code(), Some(77));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/run/wgmesh/sdj.lock: Permission denied"), "{error}");
    assert!(error.contains("systemctl start wgmesh@sdj"), "{error}");
}

/// W-D48, X-46: a secret in `secret.env` reaches the service too.
#[test]
fn a_secret_in_the_environment_file_is_handed_over() {
    let service = Service::install("sdf", "listen_port = 0\n");
    let secret = fs::read_to_string("/etc/wgmesh/sdf.secret").unwrap();
    let key = service.status()["node"]["mesh_ipv4"].clone();
    fs::remove_file("/etc/wgmesh/sdf.secret").unwrap();
    write_private("/etc/wgmesh/secret.env", &format!("WGMESH_SECRET={secret}"));

    ok(&run(BINARY, &["install-service", "--interface", "sdf"]));

    assert_eq!(service.status()["node"]["mesh_ipv4"], key, "the same secret gives the same address");
    fs::remove_file("/etc/wgmesh/secret.env").unwrap();
}

/// SECURITY.md: a secret that systemd keeps encrypted for this host is handed over too, and by an installation without more ado.
#[test]
fn an_encrypted_secret_is_handed_over() {
    if fs::read_to_string("/etc/os-release").unwrap().contains("VERSION_CODENAME=bullseye") {
        println!("not run: systemd 247 keeps no secrets");
        return;
    }
    let service = Service::install("sdn", "listen_port = 0\n");
    let key = service.status()["node"]["mesh_ipv4"].clone();
    let [plain, encrypted] = ["/etc/wgmesh/sdn.secret", "/etc/wgmesh/sdn.secret.cred"];
    ok(&run("systemd-creds", &["encrypt", "--name=secret", plain, encrypted]));
    fs::remove_file(plain).unwrap();

    ok(&run(BINARY, &["install-service", "--interface", "sdn"]));

    assert_eq!(service.status()["node"]["mesh_ipv4"], key, "the same secret gives the same address");
    ok(&run(BINARY, &["config", "check", "/etc/wgmesh/sdn.toml"]));
    fs::remove_file(encrypted).unwrap();
}

/// Found in a review: a set-up step that had failed once stood in the way of every later one. A configuration that the service
/// cannot read is refused before it would keep the service down.
#[test]
fn an_installation_that_failed_can_be_tried_again() {
    let service = Service::install("sdo", "listen_port = 0\n");
    ok(&run(BINARY, &["uninstall-service", "--interface", "sdo"]));
    fs::set_permissions("/etc/wgmesh/sdo.toml", fs::Permissions::from_mode(0o600)).unwrap();
    let install = || run(BINARY, &["install-service", "--interface", "sdo"]);
    let refused = String::from_utf8_lossy(&install().stderr).into_owned();
    assert!(refused.contains("chmod a+r /etc/wgmesh/sdo.toml"), "{refused}");
    fs::set_permissions("/etc/wgmesh/sdo.toml", fs::Permissions::from_mode(0o644)).unwrap();

    // systemd-sysusers(8) locks the list of users first.
    let lock = "/etc/.pwd.lock";
    fs::remove_file(lock).unwrap();
    fs::create_dir(lock).unwrap();
    let failed = String::from_utf8_lossy(&install().stderr).into_owned();
    fs::remove_dir(lock).unwrap();
    assert!(failed.contains("wgmesh-setup-sysusers"), "{failed}");
    ok(&install());
    assert!(service.is_reachable());
}

/// W-D50: systemd's own verdict on the sandbox.
#[test]
fn the_unit_is_valid_and_hardly_exposed() {
    let service = Service::install("sdg", "listen_port = 0\n");
    let verdict = run("systemd-analyze", &["verify", "--man=no", &service.unit]);
    assert_eq!(String::from_utf8_lossy(&verdict.stderr).trim(), "");
    let report = text(&run("systemd-analyze", &["security", "--no-pager", &service.unit]));
    let overall = report.lines().find(|line| line.contains("Overall exposure level")).expect("a verdict");
    println!("{report}");
    wgmesh_lab::show(overall);
    let score: f64 = overall.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(score <= 1.7, "{overall}");
}

/// Lets one test at a time change the machine.
fn the_machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An installed instance; dropped, it is stopped and everything of it removed.
struct Service {
    interface: &'static str,
    unit: String,
    secret: String,
    binary: &'static str,
    _machine: MutexGuard<'static, ()>,
}

impl Service {
    #[track_caller]
    fn install(interface: &'static str, config: &str) -> Self {
        let machine = the_machine();
        // Written by another process: a file that this one has open for writing may be passed on to what other tests
        // start at that moment, and cannot be run as long.
        ok(&run("install", &["-m", "755", &std::env::var("WGMESH_BIN").unwrap(), BINARY]));
        Self::start(interface, config, BINARY, machine)
    }

    /// Makes an instance of a binary that stands where it should.
    #[track_caller]
    fn start(
        interface: &'static str,
        config: &str,
        binary: &'static str,
        machine: MutexGuard<'static, ()>,
    ) -> Self {
        let secret_file = format!("/etc/wgmesh/{interface}.secret");
        ok(&run(binary, &["init", "--output", &secret_file]));
        fs::write(format!("/etc/wgmesh/{interface}.toml"), config).unwrap();
        let secret = fs::read_to_string(secret_file).unwrap().trim().to_owned();
        let unit = format!("wgmesh@{interface}.service");
        let service = Self { interface, unit, secret, binary, _machine: machine };
        ok(&run(binary, &["install-service", "--interface", interface]));
        service
    }

    fn property(&self, name: &str) -> String {
        text(&run("systemctl", &["show", "--value", "-p", name, &self.unit])).trim().to_owned()
    }

    fn process(&self) -> String {
        self.property("MainPID")
    }

    fn is_reachable(&self) -> bool {
        succeeds(self.binary, &["status", "--interface", self.interface])
    }

    #[track_caller]
    fn status(&self) -> Value {
        let output = run(self.binary, &["status", "--json", "--interface", self.interface]);
        ok(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}",
                text(&run("journalctl", &["-u", &self.unit, "--no-pager", "-o", "short-monotonic"]))
            );
        }
        if Path::new(self.binary).exists() {
            run(self.binary, &["uninstall-service", "--interface", self.interface]);
        }
        run("systemctl", &["reset-failed", &self.unit]);
        let leftovers = ["/etc/wgmesh", "/var/lib/wgmesh"];
        leftovers.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
    }
}

/// Another host of the service's mesh, on a cable to the machine.
struct Peer {
    address: Ipv4Addr,
    _daemon: Daemon,
    _host: Host,
    _lab: Lab,
}

impl Peer {
    #[track_caller]
    fn start(name: &str, service: &Service) -> Self {
        let lab = Lab::new(name);
        let host = lab.host("peer");
        let thread = host.namespace().thread_id().to_string();
        ok(&run("ip", &["link", "add", "cable", "type", "veth", "peer", "name", "eth0", "netns", &thread]));
        ok(&run("ip", &["address", "add", "192.0.2.1/24", "dev", "cable"]));
        ok(&run("ip", &["link", "set", "cable", "up"]));
        host.run(["ip", "address", "add", "192.0.2.2/24", "dev", "eth0"]);
        host.run(["ip", "link", "set", "eth0", "up"]);
        let daemon = host.daemon(&Settings::new(&service.secret));
        daemon.wait_ready();
        let address = daemon.status_json()["node"]["mesh_ipv4"].as_str().unwrap().parse().unwrap();
        Self { address, _daemon: daemon, _host: host, _lab: lab }
    }

    /// Counts the pings, ten a second, that stay unanswered while something is done and a little longer.
    fn lost_during(&self, action: impl FnOnce()) -> u32 {
        let mut command = Command::new("ping");
        command.args(["-n", "-q", "-i", "0.1", &self.address.to_string()]).stdout(Stdio::piped());
        let ping = command.spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        action();
        std::thread::sleep(Duration::from_secs(2));
        // Between two pings, so that none is under way when the count is taken.
        ok(&run("kill", &["-INT", &ping.id().to_string()]));
        let report = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
        println!("{report}");
        let mut counts = report.lines().find(|line| line.contains("transmitted")).unwrap().split(", ");
        let mut next = || counts.next().unwrap().split(' ').next().unwrap().parse::<u32>().unwrap();
        let (sent, answered) = (next(), next());
        assert!(sent > 20, "{report}");
        sent - answered
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        run("ip", &["link", "delete", "cable"]);
    }
}

fn write_private(path: &str, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn link_index(name: &str) -> String {
    fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    run(program, arguments).status.success()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn ok(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}
