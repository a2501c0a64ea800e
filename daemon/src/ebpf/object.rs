//! From the embedded object to maps and programs in the kernel.
//!
//! Maps that carry something worth keeping are pinned: what an earlier run left is adopted if it has the very shape
//! that this object wants, and made anew if it has not (an upgrade changed the layout; counters then start at zero).
//! The ring buffer is not pinned, nor what the daemon waits for, nor what is remembered of silences, nor the meter of all that
//! is relayed: they are worth nothing to a later run.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::{Map, MapData, MapError};
use aya::programs::SchedClassifier;
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use super::{EbpfError, syscall};

/// What `xtask build-ebpf` made. aya wants it aligned.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WGMESH_EBPF_OBJECT_PATH"));

/// The maps that are pinned, under these names.
pub(super) const PINNED: [&str; 6] =
    ["LISTEN_PORT", "NETWORKS_V4", "NETWORKS_V6", "OWNERS", "RELAYED", "TRAFFIC"];

/// The maps that are not: what they hold is worth nothing to a later run.
pub(super) const RING: &str = "HANDSHAKES";
pub(super) const RELAY_METER: &str = "RELAY_METER";
pub(super) const AWAITED: &str = "AWAITED";
#[cfg(test)]
const SILENCES: &str = "SILENCES";

/// Room for the verifier's explanation of a refusal.
const LOG_BYTES: usize = 64 * 1024;

/// The object's parts, in the kernel.
pub(super) struct Loaded {
    maps: HashMap<String, MapData>,
    programs: HashMap<String, SchedClassifier>,
}

impl Loaded {
    /// Loads everything, with pins in a folder that exists.
    pub(super) fn load(pins: &Path) -> Result<Self, EbpfError> {
        let mut object = Object::parse(OBJECT).map_err(|error| EbpfError::Object(error.into()))?;
        let definitions = std::mem::take(&mut object.maps);
        let mut maps = HashMap::new();
        for (name, definition) in &definitions {
            let pin = PINNED.contains(&name.as_str()).then(|| pins.join(name));
            let data = open_map(name, definition, pin.as_deref());
            maps.insert(name.clone(), data.map_err(|source| EbpfError::Map { name: name.clone(), source })?);
        }
        relocate(&mut object, &definitions, &maps)?;
        let mut programs = HashMap::new();
        for (name, program) in &object.programs {
            let instructions = &object.functions[&program.function_key()].instructions;
            let loaded = load_program(name, &program.license, instructions, pins);
            let loaded = loaded.map_err(|refusal| refusal.into_error(name))?;
            programs.insert(name.clone(), loaded);
        }
        Ok(Self { maps, programs })
    }

    /// Hands out a map, typed.
    pub(super) fn take_map<T>(&mut self, name: &str) -> Result<T, EbpfError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let data = self.maps.remove(name).ok_or_else(|| EbpfError::missing(name))?;
        let map = Map::from_map_data(data).and_then(T::try_from);
        map.map_err(|source| EbpfError::Map { name: name.to_owned(), source })
    }

    /// Hands out a program.
    pub(super) fn take_program(&mut self, name: &str) -> Result<SchedClassifier, EbpfError> {
        self.programs.remove(name).ok_or_else(|| EbpfError::missing(name))
    }
}

/// Opens the map that is pinned there if it fits, else makes one.
fn open_map(name: &str, definition: &aya_obj::Map, pin: Option<&Path>) -> Result<MapData, MapError> {
    let Some(pin) = pin else {
        return MapData::create(definition.clone(), name, None);
    };
    if let Ok(found) = MapData::from_pin(pin) {
        if fits(&found, definition)? {
            return Ok(found);
        }
        tracing::info!(map = name, "the pinned eBPF map has another layout: its counters start anew");
        std::fs::remove_file(pin).map_err(MapError::IoError)?;
    }
    let made = MapData::create(definition.clone(), name, None)?;
    made.pin(pin).map_err(|error| MapError::PinError { name: Some(name.to_owned()), error })?;
    Ok(made)
}

/// Tells whether a map has the type and sizes that the programs were compiled for.
fn fits(found: &MapData, wanted: &aya_obj::Map) -> Result<bool, MapError> {
    let info = found.info()?;
    Ok(info.map_type()? as u32 == wanted.map_type()
        && info.key_size() == wanted.key_size()
        && info.value_size() == wanted.value_size()
        && info.max_entries() == wanted.max_entries()
        && info.map_flags() == wanted.map_flags())
}

/// Puts the maps' descriptors into the instructions, and the functions they call behind them.
fn relocate(
    object: &mut Object,
    definitions: &HashMap<String, aya_obj::Map>,
    maps: &HashMap<String, MapData>,
) -> Result<(), EbpfError> {
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    let descriptors = definitions
        .iter()
        .map(|(name, definition)| (name.as_str(), maps[name].fd().as_fd().as_raw_fd(), definition));
    object
        .relocate_maps(descriptors, &sections)
        .and_then(|()| object.relocate_calls(&sections))
        .map_err(|error| EbpfError::Object(error.into()))
}

/// Why a program did not load.
enum Refusal {
    Verifier { log: String, source: io::Error },
    Pin(io::Error),
    Open(aya::programs::ProgramError),
}

impl Refusal {
    fn into_error(self, program: &str) -> EbpfError {
        let program = program.to_owned();
        match self {
            Self::Verifier { log, source } => EbpfError::Refused { program, log, source },
            Self::Pin(source) => EbpfError::Pin { what: program, source },
            Self::Open(source) => EbpfError::Program { program, source },
        }
    }
}

/// Loads a program. aya takes one that it did not load itself only from a pin, so one is made and removed again.
fn load_program(
    name: &str,
    license: &CStr,
    instructions: &[bpf_insn],
    pins: &Path,
) -> Result<SchedClassifier, Refusal> {
    let path = pins.join(name);
    let c_name = CString::new(name).map_err(|error| Refusal::Pin(error.into()))?;
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|error| Refusal::Pin(error.into()))?;
    let fd = syscall::load_classifier(&c_name, license, instructions, &mut []).map_err(|source| {
        let mut log = vec![0; LOG_BYTES];
        // Once more, only to be told why.
        let _ = syscall::load_classifier(&c_name, license, instructions, &mut log);
        Refusal::Verifier { log: last_words(&log), source }
    })?;
    // Left by a start that was killed right here.
    let _ = std::fs::remove_file(&path);
    syscall::pin(fd.as_fd(), &c_path).map_err(Refusal::Pin)?;
    let program = SchedClassifier::from_pin(&path).map_err(Refusal::Open);
    std::fs::remove_file(&path).map_err(Refusal::Pin)?;
    program
}

/// Returns the end of the verifier's log, which is where it says what it did not like.
fn last_words(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).map(CStr::to_string_lossy).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_object_has_the_maps_and_programs_that_the_daemon_asks_for() {
        let object = Object::parse(OBJECT).unwrap();
        let mut maps: Vec<_> = object.maps.keys().map(String::as_str).collect();
        let mut programs: Vec<_> = object.programs.keys().map(String::as_str).collect();
        maps.sort_unstable();
        programs.sort_unstable();
        let mut expected = [&[AWAITED, RELAY_METER, RING, SILENCES], &PINNED[..]].concat();
        expected.sort_unstable();
        assert_eq!(maps, expected);
        assert_eq!(programs, ["wgmesh_hs_rx", "wgmesh_hs_tx", "wgmesh_relay", "wgmesh_rx", "wgmesh_tx"]);
    }

    #[test]
    fn of_a_long_verifier_log_only_the_end_is_told() {
        let log = b"func#0\n0: r1\n1: r2\n\n2: r3\ninvalid access\nprocessed 3 insns\n\0\0\0";
        assert_eq!(last_words(log), "1: r2 | 2: r3 | invalid access | processed 3 insns");
        assert_eq!(last_words(&[0; 8]), "");
    }
}
