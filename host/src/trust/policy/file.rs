//! The file, and where in it something is wrong.

use super::{
    BANDWIDTH_MIN, Direction, FILE_MAX_BYTES, PolicyError,
    decide::{Limits, Pattern, PeerPattern, Rule},
};
use crate::cli::values;
use rustix::fs::OFlags;
use serde::Deserialize;
use std::{
    fs::OpenOptions,
    io::Read as _,
    ops::Range,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    count_in: Option<Spanned<String>>,
    #[serde(default, rename = "rule")]
    rules: Vec<Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawRule {
    verdict: RawVerdict,
    peer: Spanned<String>,
    guest: Option<Spanned<String>>,
    direction: Option<RawDirection>,
    memory: Option<Spanned<String>>,
    migrations: Option<Spanned<u32>>,
    bandwidth: Option<Spanned<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawVerdict {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawDirection {
    In,
    Out,
    Both,
}

/// The text of the policy at `path`.
pub(super) fn read(path: &Path) -> Result<String, PolicyError> {
    // Not to wait for a writer, if it is a pipe.
    let nonblock = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path);
    let file = file.map_err(|source| PolicyError::io(path, source))?;
    let metadata = file.metadata().map_err(|source| PolicyError::io(path, source))?;
    let none = |what| PolicyError::NotAText {
        path: path.into(),
        what,
    };
    if !metadata.is_file() {
        return Err(none("it is no plain file"));
    }
    if metadata.mode() & 0o002 != 0 {
        return Err(PolicyError::Writable(path.into()));
    }
    let mut bytes = Vec::new();
    let read = file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| PolicyError::io(path, source))?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(none("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| none("it is not UTF-8"))
}

/// What stands in it.
pub(super) fn parse(path: &Path, text: &str) -> Result<(Vec<Rule>, Option<PathBuf>), PolicyError> {
    let place = Place { path, text };
    let file: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        place.broken(&span, error.message().to_owned())
    })?;
    let rules = file.rules.iter().enumerate();
    let rules = rules
        .map(|(index, raw)| place.rule(index + 1, raw))
        .collect::<Result<_, _>>()?;
    let count_in = file.count_in.map(|folder| {
        let path = PathBuf::from(folder.get_ref());
        match path.is_absolute() {
            true => Ok(path),
            false => Err(place.broken(&folder.span(), "count-in must be an absolute path".into())),
        }
    });
    Ok((rules, count_in.transpose()?))
}

struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn rule(&self, number: usize, raw: &Spanned<RawRule>) -> Result<Rule, PolicyError> {
        let (span, raw) = (raw.span(), raw.get_ref());
        let peer = self.value(&raw.peer, PeerPattern::parse)?;
        let guest = match &raw.guest {
            Some(guest) => self.value(guest, Pattern::parse)?,
            None => Pattern::Any,
        };
        let memory = raw.memory.as_ref().map(|text| self.value(text, values::size));
        let bandwidth = raw.bandwidth.as_ref().map(|text| {
            let rate = self.value(text, values::rate)?;
            if rate < BANDWIDTH_MIN {
                let least = crate::report::bytes(BANDWIDTH_MIN.0);
                let what = format!("a link of less than {least}/s would seem dead: write more");
                return Err(self.broken(&text.span(), what));
            }
            Ok(rate)
        });
        let limits = Limits {
            memory: memory.transpose()?,
            migrations: raw.migrations.as_ref().map(|number| *number.get_ref()),
            bandwidth: bandwidth.transpose()?,
        };
        if let Some(none) = raw.migrations.as_ref().filter(|number| *number.get_ref() == 0) {
            return Err(self.broken(
                &none.span(),
                "a rule that allows no migration at all refuses: write verdict = \"deny\"".into(),
            ));
        }
        if raw.verdict == RawVerdict::Deny && limits != Limits::default() {
            return Err(self.broken(
                &span,
                "a rule that refuses has no limits: take memory, migrations and bandwidth away, or write verdict = \"allow\""
                    .into(),
            ));
        }
        Ok(Rule {
            number,
            line: self.position(span.start).0,
            peer,
            guest,
            direction: match raw.direction {
                Some(RawDirection::In) => Some(Direction::In),
                Some(RawDirection::Out) => Some(Direction::Out),
                Some(RawDirection::Both) | None => None,
            },
            allows: (raw.verdict == RawVerdict::Allow).then_some(limits),
        })
    }

    fn value<T, E: std::error::Error>(
        &self,
        text: &Spanned<String>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, PolicyError> {
        parse(text.get_ref()).map_err(|error| self.broken(&text.span(), error.to_string()))
    }

    fn broken(&self, span: &Range<usize>, what: String) -> PolicyError {
        let (line, column) = self.position(span.start);
        PolicyError::Broken {
            path: self.path.into(),
            line,
            column,
            what: what.trim_end().replace('\n', "; "),
        }
    }

    /// Line and character of a byte.
    fn position(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte.min(self.text.len())).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    }
}
