//! Numbers as people read them.

/// Writes a number of bytes with a binary prefix: `999 B`, `1.5 KiB`, `12 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const PREFIXES: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut rest = count;
    let mut value = (count, "");
    for prefix in PREFIXES {
        if rest < 1024 {
            break;
        }
        value = (rest, prefix);
        rest /= 1024;
    }
    match value {
        (count, "") => format!("{count} B"),
        (count, prefix) if count < 10 * 1024 => {
            format!("{}.{} {prefix}B", count / 1024, count % 1024 * 10 / 1024)
        }
        (count, prefix) => format!("{} {prefix}B", count / 1024),
    }
}

/// Writes a number of seconds by its two largest units: `7 s`, `3 min 5 s`, `2 h 10 min`, `4 d 1 h`.
pub(super) fn span(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let first = UNITS.iter().position(|(length, _)| seconds >= *length).unwrap_or(UNITS.len() - 1);
    let (length, name) = UNITS[first];
    let whole = format!("{} {name}", seconds / length);
    match UNITS.get(first + 1) {
        Some((smaller, name)) if seconds % length / smaller > 0 => {
            format!("{whole} {} {name}", seconds % length / smaller)
        }
        _ => whole,
    }
}

/// Writes how long ago something was.
pub(in crate::cli) fn ago(seconds: u64) -> String {
    format!("{} ago", span(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_two_digits_that_matter() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024, "10 KiB"),
            (1024 * 1024 - 1, "1023 KiB"),
            (1024 * 1024, "1.0 MiB"),
            (5_368_709_120, "5.0 GiB"),
            (u64::MAX, "15 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (185, "3 min 5 s"),
            (7_800, "2 h 10 min"),
            (3_605, "1 h"),
            (349_200, "4 d 1 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
