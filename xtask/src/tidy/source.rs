//! The rules for one Rust file. Test code (files named `tests.rs`, files below a `tests` folder of a package, items
//! under `#[cfg(test)]` or `#[test]`) is exempt from all but one: it may not silence a lint either.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anyhow::Result;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::spanned::Spanned as _;
use syn::visit::Visit;

use super::Finding;
use super::requirements;

/// A file's lines without its tests.
const MAX_FILE_LINES: usize = 500;

/// A function's lines, beyond which somebody should look at it.
pub(super) const LONG_FUNCTION: usize = 40;

/// A function's lines, beyond which a comment before it must give the reason.
const MAX_FUNCTION_LINES: usize = 80;

/// A parsed file.
pub(super) struct Source<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
    file: syn::File,
    test_lines: Vec<RangeInclusive<usize>>,
}

impl<'a> Source<'a> {
    /// Parses a file; `path` is relative to the workspace.
    pub(super) fn parse(path: &'a str, text: &'a str) -> Result<Self> {
        let file = syn::parse_file(text)?;
        let lines: Vec<_> = text.lines().collect();
        let mut tests = TestItems::default();
        tests.visit_file(&file);
        let test_lines = if is_test_file(path) { vec![1..=lines.len()] } else { tests.0 };
        Ok(Self { path, lines, file, test_lines })
    }

    /// Returns everything that breaks a rule.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let kept = (1..=self.lines.len()).filter(|line| !self.is_test(*line)).count();
        if kept > MAX_FILE_LINES {
            findings
                .push(self.violation(0, format!("{kept} lines without tests, more than {MAX_FILE_LINES}")));
        }
        let mut functions = Functions::default();
        functions.visit_file(&self.file);
        for (name, first, last) in functions.0 {
            findings.extend(self.function_finding(&name, first, last));
        }
        self.scan(self.file.to_token_stream(), &mut findings);
        findings
    }

    /// Returns the requirements that doc comments in test code name.
    pub(super) fn named_requirements(&self) -> BTreeSet<String> {
        let numbered = self.lines.iter().enumerate();
        let docs =
            numbered.filter(|(index, line)| self.is_test(index + 1) && line.trim_start().starts_with("///"));
        docs.flat_map(|(_, line)| requirements::ids(line)).collect()
    }

    fn is_test(&self, line: usize) -> bool {
        self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    fn is_product(&self) -> bool {
        self.path.starts_with("daemon/") || self.path.starts_with("ebpf/")
    }

    fn violation(&self, line: usize, text: String) -> Finding {
        Finding { path: self.path.to_owned(), line, text, is_violation: true }
    }

    fn function_finding(&self, name: &str, first: usize, last: usize) -> Option<Finding> {
        let length = last - first + 1;
        if length <= LONG_FUNCTION || self.is_test(first) {
            return None;
        }
        let is_violation = length > MAX_FUNCTION_LINES && !self.has_comment_before(first);
        let text = format!("`{name}` has {length} lines");
        Some(Finding { path: self.path.to_owned(), line: first, text, is_violation })
    }

    /// Whether a plain comment stands among the attributes and docs before a line.
    fn has_comment_before(&self, line: usize) -> bool {
        let before = self.lines[..line - 1].iter().rev().map(|line| line.trim_start());
        before
            .take_while(|line| line.starts_with("//") || line.starts_with('#'))
            .any(|line| line.starts_with("// "))
    }

    /// Looks for what must not be written, also inside macros.
    fn scan(&self, tokens: TokenStream, findings: &mut Vec<Finding>) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        for (index, token) in tokens.iter().enumerate() {
            let line = token.span().start().line;
            if let Some(text) = forbidden_everywhere(&tokens[index..]) {
                findings.push(self.violation(line, text));
            }
            if !self.is_test(line)
                && let Some(text) = forbidden_outside_tests(&tokens[index..], self.is_product())
            {
                findings.push(self.violation(line, text));
            }
            if let TokenTree::Group(group) = token {
                self.scan(group.stream(), findings);
            }
        }
    }
}

fn is_test_file(path: &str) -> bool {
    let mut parts = path.split('/');
    // The folder `tests` at the root holds packages; only what such a package tests itself with is exempt.
    let in_folder = parts.by_ref().skip(1).any(|part| part == "tests");
    in_folder || path.ends_with("/tests.rs")
}

fn forbidden_everywhere(tokens: &[TokenTree]) -> Option<String> {
    let [TokenTree::Punct(hash), rest @ ..] = tokens else { return None };
    let rest = match rest {
        [TokenTree::Punct(bang), rest @ ..] if bang.as_char() == '!' => rest,
        rest => rest,
    };
    let [TokenTree::Group(group), ..] = rest else { return None };
    let is_attribute = hash.as_char() == '#' && group.delimiter() == Delimiter::Bracket;
    let first = group.stream().into_iter().next();
    let is_allow = matches!(first, Some(TokenTree::Ident(name)) if name == "allow");
    (is_attribute && is_allow)
        .then(|| "`allow` silences a lint for good: use `expect` with its reason".to_owned())
}

fn forbidden_outside_tests(tokens: &[TokenTree], is_product: bool) -> Option<String> {
    let words: Vec<String> = tokens.iter().take(4).map(word).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [".", "unwrap", "()", ..] => Some("`unwrap` outside tests".to_owned()),
        [name @ ("todo" | "unimplemented"), "!", ..] => Some(format!("`{name}!`")),
        ["process", ":", ":", "Command"] | ["Command", ":", ":", "new"] if is_product => {
            Some("the daemon starts no process".to_owned())
        }
        _ => None,
    }
}

/// Writes one token; of a group only whether it is an empty pair of parentheses.
fn word(token: &TokenTree) -> String {
    match token {
        TokenTree::Group(group) => match (group.delimiter(), group.stream().is_empty()) {
            (Delimiter::Parenthesis, true) => "()".to_owned(),
            _ => String::new(),
        },
        TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => token.to_string(),
    }
}

/// The lines of everything that is compiled for tests only.
#[derive(Default)]
struct TestItems(Vec<RangeInclusive<usize>>);

impl Visit<'_> for TestItems {
    fn visit_item(&mut self, item: &syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return syn::visit::visit_item(self, item),
        };
        if attributes.iter().any(is_test_attribute) {
            self.0.push(item.span().start().line..=item.span().end().line);
        } else {
            syn::visit::visit_item(self, item);
        }
    }
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    let is_cfg_test = attribute.path().is_ident("cfg")
        && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"));
    is_cfg_test || attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
}

/// Every function with its first and last line, attributes and docs left out.
#[derive(Default)]
struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (first, last) = (signature.span().start().line, block.span().end().line);
        self.0.push((signature.ident.to_string(), first, last));
    }
}

impl Visit<'_> for Functions {
    fn visit_item_fn(&mut self, item: &syn::ItemFn) {
        self.add(&item.sig, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &syn::ImplItemFn) {
        self.add(&item.sig, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.add(&item.sig, block);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> Vec<String> {
        let source = Source::parse(path, text).unwrap();
        source.findings().into_iter().map(|finding| finding.to_string()).collect()
    }

    fn function(lines: usize) -> String {
        format!("fn long() {{\n{}}}\n", "    work();\n".repeat(lines - 2))
    }

    #[test]
    fn what_must_not_be_written_is_found_also_in_macros() {
        let cases = [
            ("fn f() { g().unwrap(); }", "error: daemon/src/a.rs:1: `unwrap` outside tests"),
            ("fn f() {\n vec![g().unwrap()]; }", "error: daemon/src/a.rs:2: `unwrap` outside tests"),
            ("fn f() { todo!() }", "error: daemon/src/a.rs:1: `todo!`"),
            ("use std::process::Command;", "error: daemon/src/a.rs:1: the daemon starts no process"),
            ("fn f() { Command::new(\"ip\"); }", "error: daemon/src/a.rs:1: the daemon starts no process"),
        ];
        for (text, expected) in cases {
            assert_eq!(check("daemon/src/a.rs", text), [expected]);
        }
        let silenced = check("daemon/src/a.rs", "#[allow(dead_code)]\nfn f() {}");
        assert!(silenced[0].contains("`allow` silences"), "{silenced:?}");
        assert_eq!(check("daemon/src/a.rs", "#![allow(dead_code)]").len(), 1);
    }

    #[test]
    fn what_only_looks_alike_is_left_alone() {
        let text = "/// Never `.unwrap()`.\nfn f() { g().unwrap_or(\".unwrap()\"); Command::Send; allow(); }";
        assert_eq!(check("daemon/src/a.rs", text), [""; 0]);
        assert_eq!(check("xtask/src/a.rs", "fn f() { Command::new(\"git\"); }"), [""; 0]);
    }

    #[test]
    fn tests_may_unwrap_and_may_not_silence_lints() {
        let module = "#[cfg(test)]\nmod tests { fn f() { g().unwrap(); } }";
        assert_eq!(check("daemon/src/a.rs", module), [""; 0]);
        assert_eq!(check("daemon/src/a/tests.rs", "fn f() { g().unwrap(); }"), [""; 0]);
        assert_eq!(check("tests/sim/tests/a.rs", "fn f() { g().unwrap(); }"), [""; 0]);
        assert_eq!(check("tests/sim/src/a.rs", "fn f() { g().unwrap(); }").len(), 1);
        assert_eq!(check("daemon/src/a/tests.rs", "#[allow(dead_code)] fn f() {}").len(), 1);
    }

    #[test]
    fn a_long_function_is_noted_and_a_very_long_one_needs_a_reason() {
        assert_eq!(check("daemon/src/a.rs", &function(40)), [""; 0]);
        assert_eq!(check("daemon/src/a.rs", &function(41)), ["note: daemon/src/a.rs:1: `long` has 41 lines"]);
        assert_eq!(
            check("daemon/src/a.rs", &function(81)),
            ["error: daemon/src/a.rs:1: `long` has 81 lines"]
        );
        let excused = format!("// One table.\n/// Docs.\n#[inline]\n{}", function(81));
        assert_eq!(check("daemon/src/a.rs", &excused), ["note: daemon/src/a.rs:4: `long` has 81 lines"]);
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let code = "const A: u8 = 1;\n".repeat(500);
        let tests = "#[cfg(test)]\nmod tests {\n    const B: u8 = 1;\n}\n";
        assert_eq!(check("daemon/src/a.rs", &format!("{code}{tests}")), [""; 0]);
        let found = check("daemon/src/a.rs", &format!("{code}const C: u8 = 1;\n{tests}"));
        assert_eq!(found, ["error: daemon/src/a.rs: 501 lines without tests, more than 500"]);
    }

    #[test]
    fn requirements_count_where_a_test_names_them() {
        let text = "/// W-D1.\nfn f() {}\n#[cfg(test)]\nmod tests {\n    /// W-D2, X-3: proved.\n    #[test]\n    fn g() {}\n}\n";
        let source = Source::parse("daemon/src/a.rs", text).unwrap();
        assert_eq!(source.named_requirements(), ["W-D2".to_owned(), "X-3".to_owned()].into());
    }
}
