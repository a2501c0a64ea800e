//! Which requirements no test names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Finds every requirement's id in a text: `C-1`, `W-D40`, `X-9`.
pub(super) fn ids(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| is_id(word)).map(str::to_owned)
}

/// Says how many rows of the table no test names, and which.
pub(super) fn report(table: &Path, named: &BTreeSet<String>) -> String {
    match fs::read_to_string(table) {
        Ok(table) => missing(&table, named),
        Err(_) => {
            "note: there is no table of requirements beside this tree, so nothing to compare tests with\n"
                .to_owned()
        }
    }
}

fn missing(table: &str, named: &BTreeSet<String>) -> String {
    // The last cell of what was dropped says so.
    let lines = table.lines().filter(|line| !line.ends_with("|none|") && !line.ends_with("|drop|"));
    let rows = lines.filter_map(|line| line.strip_prefix('|')?.split('|').next());
    let rows: Vec<_> = rows.filter(|cell| is_id(cell)).collect();
    let unnamed: Vec<_> = rows.iter().filter(|id| !named.contains(**id)).collect();
    let mut by_prefix: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for id in &unnamed {
        let (prefix, number) = id.split_at(id.len() - digits(id));
        by_prefix.entry(prefix).or_default().push(number);
    }
    let mut text = format!("note: {} of {} requirements are named by no test\n", unnamed.len(), rows.len());
    for (prefix, numbers) in by_prefix {
        writeln!(text, "  {prefix} {}", numbers.join(" ")).expect("writing into memory cannot fail");
    }
    text
}

fn is_id(word: &str) -> bool {
    let prefixes = ["W-D", "W-X", "C-", "M-", "L-", "P-", "X-"];
    let number = prefixes.iter().find_map(|prefix| word.strip_prefix(prefix));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn digits(id: &str) -> usize {
    id.bytes().rev().take_while(u8::is_ascii_digit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_among_words() {
        let text = "W-D3, X-9: proves W-X12 (and C-1), not UTF-8, X-ray or W-D";
        assert_eq!(ids(text).collect::<Vec<_>>(), ["W-D3", "X-9", "W-X12", "C-1"]);
    }

    #[test]
    fn rows_that_no_test_names_are_listed() {
        let table = "|ID|Requirement|\n|-|-|\n|C-1|see W-D2|\n|W-D2|text|\n|W-D3|text|\n|W-D4|text|none|\n|X-3|text|drop|\n";
        let report = missing(table, &["C-1".to_owned()].into());
        assert_eq!(report, "note: 2 of 3 requirements are named by no test\n  W-D 2 3\n");
    }

    #[test]
    fn a_missing_table_is_said_and_no_failure() {
        assert!(report(Path::new("no/such/table"), &BTreeSet::new()).starts_with("note: there is no table"));
    }
}
