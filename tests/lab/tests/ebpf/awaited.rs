//! For what the programs wake a daemon.

use std::fs;

use aya::maps::{Array, Map, MapData, MapInfo};
use wgmesh_lab::{Daemon, Lan, Settings, eventually};

use crate::mesh::{PATIENCE, SECRET, mesh};

/// Nothing of WireGuard's port leaves the host or comes in.
const MUTE: &str = "table inet mute {
    chain output { type filter hook output priority 0; udp sport 51820 drop; }
    chain input { type filter hook input priority 0; udp dport 51820 drop; }
}";

/// C-5: a handshake wakes the daemon exactly while somebody has had no session yet.
#[test]
fn a_daemon_is_woken_for_handshakes_while_it_waits_for_a_first_session() {
    let mut lan = Lan::new("awaited", 3);
    let newcomer = lan.hosts.pop().expect("there are three");
    let daemons = mesh(&lan, &Settings::new(SECRET));
    eventually(PATIENCE, || awaits(&daemons[0]) == Some(false));

    newcomer.feed(["nft", "-f", "-"], MUTE);
    let _third = newcomer.daemon(&Settings::new(SECRET));
    eventually(PATIENCE, || awaits(&daemons[0]) == Some(true));

    newcomer.run(["nft", "delete", "table", "inet", "mute"]);
    eventually(PATIENCE, || awaits(&daemons[0]) == Some(false));
}

/// Returns whether a daemon has its programs wake it, once they are loaded.
fn awaits(daemon: &Daemon) -> Option<bool> {
    let open = fs::read_dir(format!("/proc/{}/fdinfo", daemon.id())).ok()?;
    let map_of =
        |text: String| text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
    let maps = open.filter_map(|entry| map_of(fs::read_to_string(entry.ok()?.path()).ok()?));
    let named = |&id: &u32| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str() == Some("AWAITED"));
    let id = maps.into_iter().find(named)?;
    let map = Array::<_, u32>::try_from(Map::from_map_data(MapData::from_id(id).ok()?).ok()?).ok()?;
    Some(map.get(&0, 0).ok()? != 0)
}
