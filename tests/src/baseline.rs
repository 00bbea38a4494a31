//! Results of undisturbed runs, kept between test runs: a guest's final memory depends only on its configuration and
//! on the program, so both together name a file in the target directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

/// A folder of results, each named by the hash of what produced it.
pub struct Baselines {
    folder: PathBuf,
    program: blake3::Hash,
}

impl Baselines {
    /// Results of the executable `program`, kept under `target`. A rebuilt program starts afresh.
    pub fn open(target: &Path, program: &Path) -> anyhow::Result<Self> {
        let folder = target.join("dunlin-baselines");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        Ok(Self {
            folder,
            program: blake3::hash(&bytes),
        })
    }

    /// The result for `configuration`, from the cache or from `run`.
    pub fn get(&self, configuration: &[String], run: impl FnOnce() -> anyhow::Result<Value>) -> anyhow::Result<Value> {
        let path = self.path(configuration);
        if let Ok(text) = fs::read_to_string(&path) {
            // A file cut short by a crash is no result.
            if let Ok(value) = serde_json::from_str(&text) {
                return Ok(value);
            }
        }
        let value = run()?;
        let partial = tempfile::NamedTempFile::new_in(&self.folder)?;
        serde_json::to_writer(&partial, &value)?;
        partial
            .persist(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(value)
    }

    fn path(&self, configuration: &[String]) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.program.as_bytes());
        for word in configuration {
            // The length keeps ["ab"] and ["a", "b"] apart.
            hasher.update(&(word.len() as u64).to_le_bytes());
            hasher.update(word.as_bytes());
        }
        self.folder.join(format!("{}.json", hasher.finalize().to_hex()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_result_is_computed_once_per_configuration_and_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        fs::write(&program, "one").expect("written");
        let baselines = Baselines::open(folder.path(), &program).expect("opens");
        let first = baselines.get(&words(&["ab"]), || Ok(json!(1))).expect("computed");
        let again = baselines.get(&words(&["ab"]), || Ok(json!(2))).expect("kept");
        let other = baselines.get(&words(&["a", "b"]), || Ok(json!(3))).expect("computed");
        assert_eq!((first, again, other), (json!(1), json!(1), json!(3)));

        fs::write(&program, "two").expect("written");
        let rebuilt = Baselines::open(folder.path(), &program).expect("opens");
        assert_eq!(
            rebuilt.get(&words(&["ab"]), || Ok(json!(4))).expect("computed"),
            json!(4)
        );
    }

    #[test]
    fn a_damaged_file_is_computed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        fs::write(&program, "one").expect("written");
        let baselines = Baselines::open(folder.path(), &program).expect("opens");
        fs::write(baselines.path(&words(&["x"])), "{\"cut").expect("written");
        assert_eq!(
            baselines.get(&words(&["x"]), || Ok(json!(5))).expect("computed"),
            json!(5)
        );
    }

    #[test]
    fn a_failed_run_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("program");
        fs::write(&program, "one").expect("written");
        let baselines = Baselines::open(folder.path(), &program).expect("opens");
        assert!(baselines.get(&words(&["x"]), || anyhow::bail!("no")).is_err());
        assert_eq!(
            baselines.get(&words(&["x"]), || Ok(json!(6))).expect("computed"),
            json!(6)
        );
    }
}
