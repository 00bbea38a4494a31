//! Where each side stands, for the other to read when no network joins them.
//!
//! A session's folder has two such files, `source.state` and `target.state`: one block of 4096 bytes each (magic, version, CRC-32,
//! length, content in postcard, zeros; or sealed). A state replaces the one before by a rename, so that a reader finds either of them whole.

use std::fs;
use std::io::{Read as _, Write as _};

use dunlin_core::message::{TargetReport, TargetStanding};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::aligned::AlignedPages;
use super::error::Place;
use super::format::{damaged, plain, unseal};
use super::seal::{Name, Sealer};
use super::{SessionDirectory, StorageError, Vm, reader, writer};
use crate::block::{BLOCK_BYTES, Format};

/// What one side says. It is for the other to read, and is only ever of one kind.
pub trait State: Serialize + DeserializeOwned {
    /// The file that holds it.
    const FILE: &'static str;
    #[doc(hidden)]
    const MAGIC: [u8; 7];
    /// What a sealed file of this kind holds.
    #[doc(hidden)]
    const HOLDS: u8;
}

/// The source's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SourceState {
    /// The VM is the target's to run, and never again the source's unless the target says that it never took it.
    GivenUp,
    /// It runs at the source.
    RunsHere,
}

impl State for SourceState {
    const FILE: &'static str = "source.state";
    const MAGIC: [u8; 7] = *b"DUNLSRC";
    const HOLDS: u8 = 2;
}

/// The target's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TargetState {
    /// Where it stands.
    pub standing: TargetStanding,
    /// What it measured, once it is complete.
    pub report: TargetReport,
    /// It cannot use all that the source has stored, and needs the network.
    pub unreadable: bool,
}

impl State for TargetState {
    const FILE: &'static str = "target.state";
    const MAGIC: [u8; 7] = *b"DUNLTGT";
    const HOLDS: u8 = 3;
}

#[derive(Serialize, Deserialize)]
struct Content<S> {
    vm: Vm,
    state: S,
}

impl SessionDirectory {
    /// Puts a state in the place of the one before, durably.
    ///
    /// # Errors
    /// [`StorageError`]; the one before is then still there, or the folder is not.
    pub fn write_state<S: State>(&self, state: S) -> Result<(), StorageError> {
        let path = self.path().join(S::FILE);
        let content = Content {
            vm: self.vm().clone(),
            state,
        };
        // Eight regions of two numbers each, two names and a dozen numbers: less than 600 bytes.
        let block = match self.seal() {
            None => format::<S>().encode(&content).expect("a state fits its block"),
            Some(key) => {
                let sealer = Sealer::new(key, self.state_name::<S>());
                let sealer = sealer.map_err(|_| StorageError::Random(path.clone()))?;
                sealer.finish(&content, &mut []).expect("a state fits its block")
            }
        };
        // A name that only this side writes to.
        let temporary = path.with_extension("unfinished");
        let mut aligned = AlignedPages::zeroed(1);
        aligned.bytes_mut().copy_from_slice(&block);
        let mut file = writer::create(&temporary)?;
        let written = file
            .write_all(aligned.bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| StorageError::io("write", &path, source))?;
        self.sync()
    }

    /// What the other side said last; `None` if it has said nothing yet.
    ///
    /// # Errors
    /// [`StorageError`], whatever it is that is wrong with the file.
    pub fn read_state<S: State>(&self) -> Result<Option<S>, StorageError> {
        let path = self.path().join(S::FILE);
        let Some(mut file) = reader::open(&path)? else {
            return Ok(None);
        };
        // As much as shows that it is too long.
        let mut bytes = AlignedPages::zeroed(2);
        let length =
            read_up_to(&mut file, bytes.bytes_mut()).map_err(|source| StorageError::io("read", &path, source))?;
        let block: &[u8; BLOCK_BYTES] = bytes.bytes()[..length]
            .try_into()
            .map_err(|_| damaged(&path, "its length"))?;
        let content: Content<S> = match self.seal() {
            None => plain(&path, block, format::<S>(), "its content")?,
            Some(key) => unseal(&path, block, key, &self.state_name::<S>(), Place::Content)?.1,
        };
        for (same, of) in [
            (content.vm.session == self.vm().session, "migration"),
            (content.vm.id == self.vm().id, "VM"),
        ] {
            if !same {
                return Err(StorageError::Foreign { path, of });
            }
        }
        Ok(Some(content.state))
    }

    fn state_name<S: State>(&self) -> Name {
        Name::new(S::MAGIC, self.vm(), S::HOLDS, 0)
    }
}

fn read_up_to(file: &mut fs::File, into: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        let more = file.read(&mut into[filled..])?;
        filled += more;
        // The end: past the page cache nothing can be read from within a block.
        if more == 0 || !filled.is_multiple_of(BLOCK_BYTES) {
            break;
        }
    }
    Ok(filled)
}

const fn format<S: State>() -> Format {
    Format {
        magic: S::MAGIC,
        version: 1,
    }
}

#[cfg(test)]
mod tests {
    use dunlin_core::message::{SessionId, VmId};

    use super::*;

    fn vm(session: u128, id: u128) -> Vm {
        Vm {
            session: SessionId(session),
            id: VmId(id),
            regions: Default::default(),
        }
    }

    fn of_target(standing: TargetStanding) -> TargetState {
        TargetState {
            standing,
            report: TargetReport {
                stored: 7,
                ..TargetReport::default()
            },
            unreadable: false,
        }
    }

    #[test]
    fn the_last_word_of_each_side_is_read() {
        let root = tempfile::tempdir().unwrap();
        let ours = SessionDirectory::create(root.path(), vm(1, 2), None).unwrap();
        let theirs = SessionDirectory::open(root.path(), vm(1, 2), None);
        assert_eq!(theirs.read_state::<SourceState>().unwrap(), None);
        ours.write_state(SourceState::GivenUp).unwrap();
        ours.write_state(SourceState::RunsHere).unwrap();
        theirs.write_state(of_target(TargetStanding::PostCopy)).unwrap();
        theirs.write_state(of_target(TargetStanding::Complete)).unwrap();
        assert_eq!(theirs.read_state().unwrap(), Some(SourceState::RunsHere));
        assert_eq!(ours.read_state().unwrap(), Some(of_target(TargetStanding::Complete)));
        let names = fs::read_dir(ours.path()).unwrap().count();
        assert_eq!(names, 2, "something unfinished is left");
    }

    #[test]
    fn another_migration_or_vm_says_nothing_here() {
        let root = tempfile::tempdir().unwrap();
        let written = SessionDirectory::create(root.path(), vm(1, 2), None).unwrap();
        written.write_state(SourceState::GivenUp).unwrap();
        let error = SessionDirectory::open(root.path(), vm(1, 3), None).read_state::<SourceState>();
        assert!(error.unwrap_err().to_string().contains("another VM"));
        let copied = SessionDirectory::create(root.path(), vm(9, 2), None).unwrap();
        fs::copy(
            written.path().join(SourceState::FILE),
            copied.path().join(SourceState::FILE),
        )
        .unwrap();
        let error = copied.read_state::<SourceState>();
        assert!(error.unwrap_err().to_string().contains("another migration"));
    }

    #[test]
    fn a_state_of_the_wrong_kind_or_damaged_is_none() {
        let root = tempfile::tempdir().unwrap();
        let folder = SessionDirectory::create(root.path(), vm(1, 2), None).unwrap();
        folder.write_state(SourceState::GivenUp).unwrap();
        let (source, target) = (
            folder.path().join(SourceState::FILE),
            folder.path().join(TargetState::FILE),
        );
        fs::copy(&source, &target).unwrap();
        assert!(matches!(
            folder.read_state::<TargetState>(),
            Err(StorageError::Damaged { .. })
        ));
        let whole = fs::read(&source).unwrap();
        for (bytes, what) in [(&whole[..100], "its length"), (&[0; BLOCK_BYTES][..], "its content")] {
            fs::write(&source, bytes).unwrap();
            let error = folder.read_state::<SourceState>().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn without_a_folder_nothing_can_be_said() {
        let root = tempfile::tempdir().unwrap();
        let folder = SessionDirectory::open(root.path(), vm(1, 2), None);
        assert!(matches!(
            folder.write_state(SourceState::GivenUp),
            Err(StorageError::Io { .. })
        ));
        assert_eq!(folder.read_state::<SourceState>().unwrap(), None);
    }
}
