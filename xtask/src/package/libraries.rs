//! Which packages of Debian bring the libraries that a binary is linked to.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// What the name of the C library's versioned symbols begins with.
const SYMBOL_VERSION: &str = "GLIBC_";

/// The shared libraries of a binary; none where it is linked statically.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Libraries {
    packages: Vec<String>,
}

impl Libraries {
    /// Reads them off a binary.
    ///
    /// # Errors
    /// Names a library whose package is not known.
    pub(super) fn of(binary: &Path) -> Result<Self> {
        let mut command = Command::new("readelf");
        command.env("LC_ALL", "C").args(["--dynamic", "--version-info", "--wide"]).arg(binary);
        Self::parse(&workspace::output(&mut command)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
        let names = needed.filter_map(|line| line.split(['[', ']']).nth(1));
        let mut packages = Vec::new();
        for name in names {
            let package = match name {
                "libc.so.6" | "libm.so.6" | "ld-linux-x86-64.so.2" => {
                    let [major, minor] = c_library(text).context("no version of the C library is named")?;
                    format!("libc6 (>= {major}.{minor})")
                }
                "libgcc_s.so.1" => "libgcc-s1".to_owned(),
                other => bail!("the binary needs {other}, and which package brings it is not known"),
            };
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
        packages.sort_by_key(|package| !package.starts_with("libc6"));
        Ok(Self { packages })
    }

    /// Returns the packages, as a `Depends:` has them.
    pub(super) fn packages(&self) -> impl Iterator<Item = String> {
        self.packages.iter().cloned()
    }
}

/// Finds the newest version of the C library that a symbol asks for.
fn c_library(text: &str) -> Option<[u32; 2]> {
    let versions = text.match_indices(SYMBOL_VERSION).filter_map(|(at, _)| {
        let rest = &text[at + SYMBOL_VERSION.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let mut numbers = rest[..end].split('.').map(str::parse);
        Some([numbers.next()?.ok()?, numbers.next()?.ok()?])
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
 0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libm.so.6]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
  0x0010:   Name: GLIBC_2.9  Flags: none  Version: 5
  0x0020:   Name: GLIBC_2.34  Flags: none  Version: 4
  0x0030:   Name: GLIBC_2.2.5  Flags: none  Version: 2
";

    #[test]
    fn the_newest_symbol_decides_the_c_librarys_version() {
        let libraries = Libraries::parse(TEXT).unwrap();
        assert_eq!(libraries.packages().collect::<Vec<_>>(), ["libc6 (>= 2.34)", "libgcc-s1"]);
    }

    #[test]
    fn a_static_binary_needs_no_package() {
        assert_eq!(
            Libraries::parse("There is no dynamic section in this file.\n").unwrap().packages,
            [""; 0]
        );
    }

    #[test]
    fn a_library_of_an_unknown_package_is_an_error() {
        let error = Libraries::parse(" 0x1 (NEEDED) Shared library: [libssl.so.3]\n").unwrap_err();
        assert!(error.to_string().contains("libssl.so.3"), "{error}");
    }
}
