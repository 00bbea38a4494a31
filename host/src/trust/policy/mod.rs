//! Who may move which VM where: a file on each host, read again for every migration.
//!
//! ```toml
//! # The first rule that fits decides; what no rule fits is refused.
//! [[rule]]
//! verdict = "allow"
//! peer = "spiffe://example.org/host/*"
//! guest = "web-*"
//! direction = "in"
//! memory = "8GiB"
//! migrations = 2
//! bandwidth = "200MB/s"
//!
//! [[rule]]
//! verdict = "allow"
//! peer = "local"
//! ```
//!
//! - `peer`: what the other side proved to be, by its certificate; `"local"` for processes of this host, over unix sockets and
//!   loopback; `"anyone"` for everybody, also over plain connections, of which nobody knows who is at their other end.
//! - `guest`: the VM's name; left out, every VM.
//! - `direction`: `"in"` for VMs that come to this host, `"out"` for those that leave it, left out or `"both"` for both.
//! - In `peer` and `guest` one `*`, at the beginning or at the end, stands for one or more characters of any kind; `"*"` alone is
//!   any identity, or any name. All else stands for itself; upper and lower case differ.
//! - `memory`, `migrations`, `bandwidth`: limits of an allowing rule. What is above the first two is refused; with the third a
//!   migration goes no faster (pages that a guest waits for in post-copy never wait). `migrations` counts those that go on at once by this
//!   rule, over all processes on this host whose locks are in the same folder: `count-in`, a key before the rules; left out, `dunlin` in
//!   `$XDG_RUNTIME_DIR`, or in `/run`.
//!
//! Without a file only peers of this host may. A file that is broken refuses everything.
#![forbid(unsafe_code)]

mod add;
mod count;
mod decide;
mod file;

pub use add::Allowance;
pub use count::{CountError, Turn};
pub use decide::{Limits, Pattern, PatternError, PeerPattern, Request, Rule, Verdict};

use dunlin_core::units::BytesPerSec;
use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// Where the policy is if nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/dunlin/policy.toml";

/// Longest policy, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// The least `bandwidth`: below it a link seems dead to the other side.
pub const BANDWIDTH_MIN: BytesPerSec = BytesPerSec(1 << 20);

/// Which way a VM goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To this host.
    In,
    /// From this host.
    Out,
}

/// Why there is no policy to go by: everything is refused then.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Something in the file is not as it must be.
    #[error("{}:{line}:{column}: {what}", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The character in it, from 1.
        column: usize,
        /// What is wrong, and how it should be.
        what: String,
    },

    /// Not a text, or none of a policy's size.
    #[error("{} is no policy: {what}", .path.display())]
    NotAText {
        /// The file.
        path: PathBuf,
        /// Why.
        what: &'static str,
    },

    /// Others could change it.
    #[error("the policy {} can be written by every user, so it says nothing: take that right away (chmod o-w)", .0.display())]
    Writable(PathBuf),

    /// It was named, but is not there.
    #[error("there is no policy {}: write one, or correct --policy", .0.display())]
    Missing(PathBuf),

    /// It cannot be changed.
    #[error("cannot write the policy {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// Whatever the system refuses.
    #[error("cannot read the policy {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The rules of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// In the order in which they are asked; `None` without a file.
    rules: Option<Vec<Rule>>,
    /// Where migrations are counted, if it says.
    count_in: Option<PathBuf>,
}

impl Policy {
    /// Reads the policy at `path`; without one, that of [`DEFAULT_FILE`] if it is there.
    ///
    /// # Errors
    /// [`PolicyError`]: everything is to be refused.
    pub fn load(path: Option<&Path>) -> Result<Self, PolicyError> {
        let chosen = path.unwrap_or(Path::new(DEFAULT_FILE));
        match file::read(chosen) {
            Err(PolicyError::Missing(_)) if path.is_none() => Ok(Self::default()),
            Err(error) => Err(error),
            Ok(text) => Self::parse(chosen, &text),
        }
    }

    /// Reads a policy from its text; `path` is where it came from, for messages.
    ///
    /// # Errors
    /// [`PolicyError::Broken`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let (rules, count_in) = file::parse(path, text)?;
        Ok(Self {
            rules: Some(rules),
            count_in,
        })
    }

    /// The rules; `None` if there is no file.
    pub fn rules(&self) -> Option<&[Rule]> {
        self.rules.as_deref()
    }

    /// The rules before the last one that may fit what that one fits.
    pub fn before_last(&self) -> impl Iterator<Item = &Rule> {
        let (last, before) = match self.rules() {
            Some([before @ .., last]) => (Some(last), before),
            _ => (None, &[][..]),
        };
        before
            .iter()
            .filter(move |rule| last.is_some_and(|last| rule.overlaps(last)))
    }

    /// Decides about a request.
    pub fn decide(&self, request: &Request<'_>) -> Verdict<'_> {
        decide::decide(self.rules(), request)
    }

    /// Takes one of the turns that a rule has, until it is dropped; `None` if all are taken.
    ///
    /// # Errors
    /// [`CountError`]: nobody can count, so that nothing is allowed.
    pub fn take_turn(&self, rule: &Rule, most: u32) -> Result<Option<Turn>, CountError> {
        count::take(self.count_in.as_deref(), &rule.key(), most)
    }
}

/// Where migrations are counted, made if it is not there, by the policy at `path`, as it stands there now.
pub fn count_folder(path: &Path) -> Option<PathBuf> {
    let policy = Policy::load(Some(path)).ok()?;
    let folder = policy.count_in.unwrap_or_else(count::usual_folder);
    // Where it cannot be made, counting says so.
    let _ = count::make(&folder);
    Some(folder)
}

impl PolicyError {
    fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing(path.into()),
            _ => Self::Io {
                path: path.into(),
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests;
