//! `<state_dir>/<interface>.reload`: two keys of the configuration that scripts may set without touching the file of an
//! operator. What it sets counts over what the file says.
//!
//! One `KEY=VALUE` a line; `#` begins a comment. A line that makes no sense is skipped, and said to be; the others count.
//!
//! ```text
//! advertise-routes=192.168.7.0/24, fd00:7::/64    # nothing behind the `=` withdraws all
//! log-level=debug
//! ```

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as Unknown;

use super::{LogLevel, document};

/// Far more than the two keys take. What is beyond is not read, so that no mistake can hold up the mesh.
const MAX_BYTES: u64 = 16 * 1024;

/// What is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    pub(super) advertise_routes: Option<BTreeSet<IpNet>>,
    pub(super) log_level: Option<LogLevel>,
}

impl Overrides {
    /// Reads the file; one that is missing sets nothing. Returns also what was skipped, each with its place.
    pub(super) fn load(path: &Path) -> (Self, Vec<String>) {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        match read {
            Ok(_) => {
                let (overrides, skipped) = Self::parse(&String::from_utf8_lossy(&bytes));
                (overrides, skipped.into_iter().map(|line| format!("{}:{line}", path.display())).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Self::default(), Vec::new()),
            Err(error) => (Self::default(), vec![format!("{}: {error}", path.display())]),
        }
    }

    fn parse(text: &str) -> (Self, Vec<String>) {
        let mut overrides = Self::default();
        let mut skipped = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let (line, _comment) = line.split_once('#').unwrap_or((line, ""));
            if let (false, Err(wrong)) = (line.trim().is_empty(), overrides.set(line)) {
                skipped.push(format!("{number}: {wrong}"));
            }
        }
        (overrides, skipped)
    }

    fn set(&mut self, line: &str) -> Result<(), String> {
        let (key, value) = line.split_once('=').ok_or("this is not KEY=VALUE")?;
        match (key.trim(), value.trim()) {
            ("advertise-routes", value) => self.advertise_routes = Some(parse_networks(value)?),
            ("log-level", value) => self.log_level = Some(parse_level(value)?),
            (key, _) => return Err(format!("unknown key `{key}`, known: advertise-routes, log-level")),
        }
        Ok(())
    }
}

fn parse_networks(text: &str) -> Result<BTreeSet<IpNet>, String> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let parse = |word: &str| word.parse().map_err(|_| format!("{word:?} is no network"));
    let nets = words.map(parse).collect::<Result<_, _>>()?;
    document::check_offers(&nets)?;
    Ok(nets)
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    LogLevel::deserialize(text.into_deserializer()).map_err(|error: Unknown| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Option<BTreeSet<IpNet>> {
        Some(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    /// W-D39: keys, values, comments and blanks as people write them; the last word counts.
    #[test]
    fn both_keys_are_read() {
        let text = "# routes\n\n advertise-routes = 192.168.7.0/24 ,fd00:7::/64 # two\r\nlog-level=info\nlog-level=debug";
        let (overrides, skipped) = Overrides::parse(text);
        assert_eq!(overrides.advertise_routes, nets(&["192.168.7.0/24", "fd00:7::/64"]));
        assert_eq!(overrides.log_level, Some(LogLevel::Debug));
        assert!(skipped.is_empty(), "{skipped:?}");

        let (overrides, _) = Overrides::parse("advertise-routes=");
        assert_eq!(overrides, Overrides { advertise_routes: nets(&[]), log_level: None });
    }

    /// W-D39: a line that makes no sense costs nothing but itself, and is named.
    #[test]
    fn malformed_lines_are_skipped_and_named() {
        let many: String = (0..25).map(|n| format!("10.{n}.0.0/16,")).collect();
        let text = format!(
            "nonsense\nadvertise-routes=10.0.0.1/8\nadvertise-routes=x\nlog-level=loud\nlisten-port=1\n\
             advertise-routes={many}\nlog-level=warn\n"
        );
        let (overrides, skipped) = Overrides::parse(&text);
        assert_eq!(overrides, Overrides { advertise_routes: None, log_level: Some(LogLevel::Warn) });
        let expected = [
            "1: this is not KEY=VALUE",
            "2: 10.0.0.1/8 has host bits set: write 10.0.0.0/8",
            "3: \"x\" is no network",
            "4: unknown variant `loud`",
            "5: unknown key `listen-port`, known: advertise-routes, log-level",
            "6: 25 networks are more than the 24",
        ];
        assert_eq!(skipped.len(), expected.len(), "{skipped:?}");
        for (line, expected) in skipped.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line}");
        }
    }

    /// W-D7: most hosts have no such file.
    #[test]
    fn a_missing_file_sets_nothing_and_one_that_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Overrides::load(&directory.path().join("wgmesh0.reload"));
        assert_eq!(missing, (Overrides::default(), Vec::new()));
        let (overrides, skipped) = Overrides::load(directory.path());
        assert_eq!((overrides, skipped.len()), (Overrides::default(), 1));
    }

    proptest! {
        /// W-D39: nothing in the file makes the reader panic, and each line is taken, skipped or blank.
        #[test]
        fn any_text_is_read(text in "(advertise-routes|log-level|[a-z#= ]{0,4}|\\PC{0,9}|=|\n|,|10\\.0\\.0\\.0/8|warn){0,40}") {
            let (_, skipped) = Overrides::parse(&text);
            prop_assert!(skipped.len() <= text.lines().count());
        }
    }
}
