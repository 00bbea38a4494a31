//! What a driver leaves behind for the next one, should it be killed: a file for each source.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Address, Plan, Settings};

const SCHEMA: &str = "dunlin.qemu-memo.v1";

/// What both QEMUs had before, and by which rule they are steered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Memo {
    schema: String,
    /// How it is steered.
    pub steering: Steered,
    /// The settings of the source.
    pub source: Settings,
    /// Those of the target.
    pub target: Settings,
    /// Whether the guest ran.
    pub was_running: bool,
    /// What memory the guest had before its balloon grew, in bytes, if it did.
    #[serde(default)]
    pub memory: Option<u64>,
}

/// What of a [`Plan`] the next driver goes by, unless it is told otherwise.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Steered {
    /// Where the source reaches the target.
    pub uri: String,
    /// Where the target listens, if that is another name.
    pub listen: Option<String>,
    /// Where they may meet again.
    pub recover: Vec<String>,
    /// The switch rule, in its own notation.
    pub rule: String,
    /// Longest pause.
    pub downtime_us: u64,
    /// Rounds after which pre-copy ends.
    pub max_rounds: u32,
    /// Longest post-copy.
    pub drain_us: Option<u64>,
}

impl Steered {
    fn of(plan: &Plan) -> Self {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            uri: plan.uri.clone(),
            listen: plan.listen.clone(),
            recover: plan.recover.clone(),
            rule: plan.rule.to_string(),
            downtime_us: us(plan.downtime),
            max_rounds: plan.max_rounds,
            drain_us: plan.drain.map(us),
        }
    }
}

impl Memo {
    /// To be written before anything is changed.
    pub fn new(plan: &Plan, source: Settings, target: Settings, was_running: bool) -> Self {
        Self {
            schema: SCHEMA.into(),
            steering: Steered::of(plan),
            source,
            target,
            was_running,
            memory: None,
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, folder: &Path, source: &Address) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let path = path(folder, source);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, path)
    }

    /// The one of this source, if there is one that can be read.
    pub fn read(folder: &Path, source: &Address) -> Option<Self> {
        let text = fs::read(path(folder, source)).ok()?;
        let memo: Self = serde_json::from_slice(&text).ok()?;
        (memo.schema == SCHEMA).then_some(memo)
    }

    /// The migration is over.
    pub fn remove(folder: &Path, source: &Address) {
        // Whatever stays is written over by the next one.
        let _ = fs::remove_file(path(folder, source));
    }
}

/// Where they lie unless somebody says otherwise.
pub fn usual_folder() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join("dunlin-qemu")
}

fn path(folder: &Path, source: &Address) -> PathBuf {
    let text = match source {
        // The same socket by whatever path.
        Address::Unix(path) => fs::canonicalize(path)
            .unwrap_or_else(|_| path.clone())
            .display()
            .to_string(),
        Address::Tcp(address) => address.clone(),
    };
    let name = text.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.', "_");
    folder.join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_is_found_by_its_source() {
        let folder = tempfile::tempdir().unwrap();
        let source = Address::Unix(folder.path().join("a/../qmp"));
        let mut settings = Settings::default();
        settings.capabilities.insert("events".into(), true);
        settings.parameters.insert("downtime-limit".into(), 300.into());
        let steering = Steered {
            uri: "tcp:a:1".into(),
            listen: None,
            recover: vec!["tcp:c:1".into()],
            rule: "lambda".into(),
            downtime_us: 5,
            max_rounds: 3,
            drain_us: None,
        };
        let memo = Memo {
            schema: SCHEMA.into(),
            steering,
            source: settings,
            target: Settings::default(),
            was_running: true,
            memory: Some(1 << 30),
        };
        assert_eq!(Memo::read(folder.path(), &source), None);
        memo.write(folder.path(), &source).unwrap();
        assert_eq!(Memo::read(folder.path(), &source), Some(memo));
        assert_eq!(Memo::read(folder.path(), &Address::Tcp("other:1".into())), None);
        Memo::remove(folder.path(), &source);
        assert_eq!(Memo::read(folder.path(), &source), None);
    }
}
