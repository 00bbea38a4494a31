//! Proof that the crate's source has no floating point: neither its types, nor functions named after them, nor literals.
//! (`clippy::float_arithmetic` and `clippy::disallowed_types` see arithmetic and types, but no literal and no call that
//! returns a float.)

use std::fs;
use std::path::{Path, PathBuf};

/// The floating-point words and literals of a source file, beside its comments, texts and test modules.
fn float_tokens(source: &str) -> Vec<String> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let mut tests = TestItem::None;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let skipped = comment(rest).or_else(|| text(rest)).or_else(|| character(rest));
        let (length, token) = if let Some(length) = skipped {
            (length, None)
        } else if bytes[at].is_ascii_digit() {
            // `tuple.0.1` is two field accesses.
            let is_field = source[..at].ends_with('.') && !source[..at].ends_with("..");
            let length = if is_field { digits(rest) } else { number(rest) };
            (length, Some(&rest[..length]).filter(|literal| is_float(literal)))
        } else if is_word(bytes[at]) {
            let length = rest.bytes().take_while(|&byte| is_word(byte)).count();
            let is_float = rest[..length].split('_').any(|part| part == "f32" || part == "f64");
            (length, Some(&rest[..length]).filter(|_| is_float))
        } else {
            tests = tests.after(rest);
            (1, None)
        };
        found.extend(token.filter(|_| matches!(tests, TestItem::None)).map(str::to_string));
        at += length;
    }
    found
}

/// Where the lexer is in an item that exists only in tests; they may compare with floating point.
#[derive(Clone, Copy)]
enum TestItem {
    None,
    /// After its attribute, before its body.
    Announced,
    /// This many braces deep in its body.
    Body(usize),
}

impl TestItem {
    fn after(self, rest: &str) -> Self {
        match (self, rest.as_bytes()[0]) {
            (Self::None, b'#') if rest.starts_with("#[cfg(test)]") => Self::Announced,
            (Self::Announced, b';') => Self::None,
            (Self::Announced, b'{') => Self::Body(1),
            (Self::Body(depth), b'{') => Self::Body(depth + 1),
            (Self::Body(1), b'}') => Self::None,
            (Self::Body(depth), b'}') => Self::Body(depth - 1),
            (unchanged, _) => unchanged,
        }
    }
}

/// Letters, digits, the underscore, and all of UTF-8 beyond ASCII.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return Some(at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    Some(rest.len())
}

fn text(rest: &str) -> Option<usize> {
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'));
    if let Some(raw) = raw {
        let hashes = raw.bytes().take_while(|&byte| byte == b'#').count();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = rest.len() - raw.len() + hashes + 1;
            return Some(
                rest[start..]
                    .find(&end)
                    .map_or(rest.len(), |found| start + found + end.len()),
            );
        }
    }
    let start = rest
        .find('"')
        .filter(|&start| matches!(&rest[..start], "" | "b" | "c"))?;
    let mut bytes = rest.bytes().enumerate().skip(start + 1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// A character literal; a lifetime is left to be read as a word.
fn character(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if let Some(escaped) = inner.strip_prefix('\\') {
        let first = escaped.chars().next()?.len_utf8();
        return escaped[first..].find('\'').map(|end| 2 + first + end + 1);
    }
    let first = inner.chars().next()?.len_utf8();
    inner[first..].starts_with('\'').then_some(first + 2)
}

fn digits(rest: &str) -> usize {
    rest.bytes().take_while(|byte| byte.is_ascii_digit()).count()
}

/// The length of a number literal with its fraction, exponent and suffix.
fn number(rest: &str) -> usize {
    let word = |from: usize| from + rest[from..].bytes().take_while(|&byte| is_word(byte)).count();
    let mut end = word(0);
    let plain = rest[..end].bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let after = &rest.as_bytes()[end..];
    // `1..2` is a range and `1.max(2)` a call.
    if plain
        && after.first() == Some(&b'.')
        && after
            .get(1)
            .is_none_or(|&next| next != b'.' && (next.is_ascii_digit() || !is_word(next)))
    {
        end = word(end + 1);
    }
    let has_exponent = !rest.starts_with("0x") && rest[..end].ends_with(['e', 'E']);
    if has_exponent && matches!(rest.as_bytes().get(end), Some(b'+' | b'-')) {
        end = word(end + 1);
    }
    end
}

fn is_float(literal: &str) -> bool {
    let digits = !literal.starts_with("0x") && !literal.starts_with("0b") && !literal.starts_with("0o");
    let exponent = literal
        .find(['e', 'E'])
        .is_some_and(|at| literal[..at].bytes().all(|byte| byte.is_ascii_digit() || byte == b'_'));
    literal.contains('.') || (digits && (exponent || literal.ends_with("f32") || literal.ends_with("f64")))
}

/// All source files but those of tests, which are named so.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the source folder is readable");
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.expect("a folder entry").path()) {
        if path.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_source_has_no_floating_point() {
    let files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(files.len() > 10, "only {} source files found", files.len());
    let mut found = Vec::new();
    for file in &files {
        let source = fs::read_to_string(file).expect("a source file is readable");
        found.extend(
            float_tokens(&source)
                .into_iter()
                .map(|token| format!("{}: {token}", file.display())),
        );
    }
    assert!(
        found.is_empty(),
        "floating point in the deciding half; use units::Ratio or thousandths:\n{}",
        found.join("\n")
    );
}

#[test]
fn floats_are_found_in_every_spelling() {
    for (source, token) in [
        ("let x = 1.5;", "1.5"),
        ("let x = 1.;", "1."),
        ("x > 1e9", "1e9"),
        ("x > 1_0E-9_f64", "1_0E-9_f64"),
        ("2.5e+3", "2.5e+3"),
        ("3f32", "3f32"),
        ("x as f64", "f64"),
        ("t.as_secs_f64() > limit", "as_secs_f64"),
        ("f('a', 'b', \"\\\"\", 2.0)", "2.0"),
        ("/* /* */ */ 0.1", "0.1"),
        ("r#\"\"\"# ; 0.2", "0.2"),
        ("fn f<'a>(x: &'a str) { 0.3 }", "0.3"),
        ("[0..1, 2 as _, 0.4]", "0.4"),
        ("#[cfg(test)] mod tests; const X: f64", "f64"),
        ("#[cfg(test)] mod tests { { 0.1 } 0.2 } 0.5", "0.5"),
    ] {
        assert_eq!(float_tokens(source), [token], "{source}");
    }
}

#[test]
fn what_only_looks_like_a_float_is_left_alone() {
    for source in [
        "// 1.5",
        "/* f64 */",
        "\"1.5 \\\" 2.5\"",
        "r\"f64\"",
        "b\"1.0\"",
        "'\\'' ; '.'",
        "self.0.1",
        "x.0.0.max(y)",
        "0..5",
        "1..=2",
        "1.max(2)",
        "0xe1",
        "0x1e5",
        "1_000u64",
        "0b1",
        "buf64",
        "[u8; 64]",
        "self.0..self.1",
        "é.0",
    ] {
        assert_eq!(float_tokens(source), [""; 0], "{source}");
    }
}
