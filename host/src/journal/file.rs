//! The file of one VM's records.

use super::{
    JournalError, check_name,
    record::{HandOver, Record},
    slot::{SLOT_BYTES, Slot, decode, encode},
};
use rustix::fs::{FlockOperation, fdatasync, flock, fstat};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

const SUFFIX: &str = ".record";

/// How long to try for the lock: somebody may just be reading the record, which takes the lock for a moment.
const LOCK_ATTEMPTS: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The journal of one VM, held by this process as long as this value lives.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    vm_name: String,
    last: Option<Record>,
    sequence: u64,
    /// The slot that may be overwritten: not the last valid one.
    free: usize,
}

impl Journal {
    /// Takes hold of the records of VM `vm_name` in `directory`, which must exist. A VM without records gets its file.
    ///
    /// # Errors
    /// [`JournalError`]; the records are as they were.
    pub fn open(directory: &Path, vm_name: &str) -> Result<Self, JournalError> {
        check_name(vm_name)?;
        let path = directory.join(format!("{vm_name}{SUFFIX}"));
        let file = match open_existing(&path)? {
            Some(file) => file,
            None => {
                create(directory, &path, vm_name)?;
                open_existing(&path)?.ok_or_else(|| JournalError::NoRecord(directory.into()))?
            }
        };
        lock(&file, &path, || thread::sleep(LOCK_PAUSE))?;
        let slots = read_slots(&file, &path)?;
        let (free, last) = latest(slots, &path)?;
        let sequence = last.as_ref().map_or(0, |record| record.sequence);
        Ok(Self {
            file,
            path,
            vm_name: vm_name.into(),
            last,
            sequence,
            free,
        })
    }

    /// The last record that was written in full; `None` if there was none.
    pub const fn last(&self) -> Option<&Record> {
        self.last.as_ref()
    }

    /// The record's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a record and waits until the disk has it.
    ///
    /// # Errors
    /// [`JournalError`]: after a crash, this record or the one before may be read. The next write tries the same slot
    /// again.
    pub fn write(&mut self, hand_over: HandOver) -> Result<&Record, JournalError> {
        let io = |source| JournalError::io("write", &self.path, source);
        self.sequence += 1;
        let record = Record {
            sequence: self.sequence,
            vm_name: self.vm_name.clone(),
            pid: std::process::id(),
            unix_time_s: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            hand_over,
        };
        let slot = encode(Some(&record)).map_err(|bytes| JournalError::TooLarge {
            path: self.path.clone(),
            bytes,
        })?;
        self.file
            .write_all_at(&slot, (self.free * SLOT_BYTES) as u64)
            .map_err(io)?;
        fdatasync(&self.file).map_err(|errno| io(errno.into()))?;
        self.free = 1 - self.free;
        Ok(self.last.insert(record))
    }
}

/// A record as somebody else sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The VM's name.
    pub vm_name: String,
    /// The last record written in full; `None` if its process has written none yet.
    pub record: Option<Record>,
    /// Whether a process holds the VM now.
    pub held: bool,
    /// That process, as far as it can be seen from here.
    pub holder: Option<u32>,
}

/// Reads the record of VM `vm_name` in `directory` without taking hold of it.
///
/// # Errors
/// [`JournalError`].
pub fn read(directory: &Path, vm_name: &str) -> Result<Reading, JournalError> {
    check_name(vm_name)?;
    let path = directory.join(format!("{vm_name}{SUFFIX}"));
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            check_directory(directory)?;
            return Err(JournalError::NoRecord(directory.into()));
        }
        opened => opened.map_err(|source| JournalError::io("open", &path, source))?,
    };
    // First the lock: who locks the file after this look has not changed what is read next.
    let held = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    let holder = if held { holder(&file) } else { None };
    let (_, record) = latest(read_slots(&file, &path)?, &path)?;
    let holder = holder.or_else(|| record.as_ref().filter(|_| held).map(|record| record.pid));
    Ok(Reading {
        vm_name: vm_name.into(),
        record,
        held,
        holder,
    })
}

/// One of the records in a directory.
#[derive(Debug)]
pub struct Listed {
    /// The VM's name, as the file's name says.
    pub vm_name: String,
    /// What [`read`] says.
    pub reading: Result<Reading, JournalError>,
}

/// The records of all VMs in `directory`, by name. One that cannot be read does not hide the others.
///
/// # Errors
/// [`JournalError`] when the directory itself cannot be read.
pub fn list(directory: &Path) -> Result<Vec<Listed>, JournalError> {
    check_directory(directory)?;
    let io = |source| JournalError::io("list", directory, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let file_name = entry.map_err(io)?.file_name();
        let name = file_name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        names.extend(name.filter(|name| check_name(name).is_ok()).map(str::to_owned));
    }
    names.sort();
    let listed = |vm_name: String| Listed {
        reading: read(directory, &vm_name),
        vm_name,
    };
    Ok(names.into_iter().map(listed).collect())
}

fn check_directory(directory: &Path) -> Result<(), JournalError> {
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(JournalError::NotADirectory(directory.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(JournalError::Missing(directory.into())),
        Err(source) => Err(JournalError::io("look at", directory, source)),
    }
}

fn open_existing(path: &Path) -> Result<Option<File>, JournalError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JournalError::io("open", path, source)),
    }
}

/// Makes the file of a VM that has none. It appears under its name complete or not at all, and never replaces
/// another's.
fn create(directory: &Path, path: &Path, vm_name: &str) -> Result<(), JournalError> {
    check_directory(directory)?;
    let io = |source| JournalError::io("create", path, source);
    let temporary = directory.join(format!(".{vm_name}{SUFFIX}.{}", std::process::id()));
    let empty = encode(None).map_err(|bytes| JournalError::TooLarge {
        path: path.into(),
        bytes,
    })?;
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|file| {
            file.write_all_at(&empty, 0)?;
            file.write_all_at(&empty, SLOT_BYTES as u64)?;
            file.sync_all()
        })
        .and_then(|()| match fs::hard_link(&temporary, path) {
            // Somebody else was faster: then that file is the one to lock.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    // A leftover is harmless; what matters is `written`.
    let _ = fs::remove_file(&temporary);
    written.map_err(io)?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io)
}

fn lock(file: &File, path: &Path, mut pause: impl FnMut()) -> Result<(), JournalError> {
    for _ in 0..LOCK_ATTEMPTS {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => pause(),
            Err(errno) => return Err(JournalError::io("lock", path, errno.into())),
        }
    }
    let recorded = || Some(latest(read_slots(file, path).ok()?, path).ok()?.1?.pid);
    Err(JournalError::Locked {
        path: path.into(),
        pid: holder(file).or_else(recorded),
    })
}

/// The process that holds an exclusive flock on `file`, from proc(5) `/proc/locks`.
fn holder(file: &File) -> Option<u32> {
    let inode = fstat(file).ok()?.st_ino;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    holder_in(&locks, inode)
}

/// Devices are not compared: the numbers there are not those of stat(2) on every file system. Ambiguous means unknown.
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    let mut pids = locks.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (kind, _, mode, pid, place) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let same_inode = place.rsplit(':').next()?.parse() == Ok(inode);
        (kind == "FLOCK" && mode == "WRITE" && same_inode).then(|| pid.parse().ok())?
    });
    let pid = pids.next().filter(|&pid| pid != 0)?;
    pids.next().is_none().then_some(pid)
}

fn read_slots(file: &File, path: &Path) -> Result<[Slot; 2], JournalError> {
    let mut bytes = [[0; SLOT_BYTES]; 2];
    for (index, slot) in bytes.iter_mut().enumerate() {
        match file.read_exact_at(slot, (index * SLOT_BYTES) as u64) {
            // A file too short has no valid slot there.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => *slot = [0; SLOT_BYTES],
            read => read.map_err(|source| JournalError::io("read", path, source))?,
        }
    }
    Ok(bytes.map(|slot| decode(&slot)))
}

/// The slot to overwrite next, and the last record.
fn latest(slots: [Slot; 2], path: &Path) -> Result<(usize, Option<Record>), JournalError> {
    let newer = slots.iter().find_map(|slot| match slot {
        Slot::Newer(found) => Some(*found),
        _ => None,
    });
    if let Some(found) = newer {
        return Err(JournalError::Version {
            path: path.into(),
            found,
        });
    }
    let later = usize::from(slots[1].sequence() > slots[0].sequence());
    let [first, second] = slots;
    match if later == 1 { second } else { first } {
        Slot::Valid(record) => Ok((1 - later, record)),
        Slot::Newer(_) | Slot::Invalid => Err(JournalError::Garbage(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        record::{Phase, Role},
        slot::tests::hand_over as any_hand_over,
    };
    use super::*;
    use dunlin_core::message::{SessionId, VmId};
    use proptest::prelude::*;

    fn hand_over(phase: Phase) -> HandOver {
        HandOver {
            vm_id: VmId(1),
            session: SessionId(2),
            role: Role::Source,
            phase,
            peer: Some("host:7".into()),
            control: None,
        }
    }

    fn phase(reading: &Reading) -> Option<Phase> {
        reading.record.as_ref().map(|record| record.hand_over.phase)
    }

    #[test]
    fn records_outlive_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), "vm").unwrap();
        assert_eq!(journal.last(), None);
        for phase in [Phase::Running, Phase::GivenUp, Phase::MovedAway] {
            journal.write(hand_over(phase)).unwrap();
            drop(journal);
            journal = Journal::open(dir.path(), "vm").unwrap();
            assert_eq!(journal.last().unwrap().hand_over, hand_over(phase));
        }
        assert_eq!(journal.last().unwrap().sequence, 3);
        assert_eq!(fs::metadata(journal.path()).unwrap().len(), 2 * SLOT_BYTES as u64);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_held_journal_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), "vm").unwrap();
        let reading = read(dir.path(), "vm").unwrap();
        assert_eq!(
            (reading.held, reading.holder, reading.record),
            (true, Some(std::process::id()), None)
        );
        journal.write(hand_over(Phase::Running)).unwrap();
        match Journal::open(dir.path(), "vm") {
            Err(JournalError::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        Journal::open(dir.path(), "other").unwrap();
        drop(journal);
        let reading = read(dir.path(), "vm").unwrap();
        assert_eq!(
            (reading.held, reading.holder, phase(&reading)),
            (false, None, Some(Phase::Running))
        );
    }

    #[test]
    fn readers_do_not_keep_a_process_from_its_vm() {
        let dir = tempfile::tempdir().unwrap();
        let path = Journal::open(dir.path(), "vm").unwrap().path().to_owned();
        let reader = File::open(&path).unwrap();
        flock(&reader, FlockOperation::NonBlockingLockShared).unwrap();
        let mut reading = Some(reader);
        let file = open_existing(&path).unwrap().unwrap();
        lock(&file, &path, || drop(reading.take())).unwrap();
        assert!(reading.is_none(), "the first attempt has met the reader");
    }

    #[test]
    fn a_bad_directory_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert!(matches!(Journal::open(&absent, "vm"), Err(JournalError::Missing(path)) if path == absent));
        assert!(matches!(list(&absent), Err(JournalError::Missing(_))));
        assert!(matches!(read(&absent, "vm"), Err(JournalError::Missing(_))));
        assert!(matches!(read(dir.path(), "vm"), Err(JournalError::NoRecord(_))));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(
            Journal::open(&file, "vm"),
            Err(JournalError::NotADirectory(_))
        ));
        assert!(matches!(list(&file), Err(JournalError::NotADirectory(_))));
        assert!(matches!(Journal::open(dir.path(), "../vm"), Err(JournalError::Name(_))));
    }

    #[test]
    fn one_bad_file_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path(), "good")
            .unwrap()
            .write(hand_over(Phase::Taken))
            .unwrap();
        fs::write(dir.path().join("bad.record"), "garbage").unwrap();
        fs::write(dir.path().join("empty.record"), "").unwrap();
        fs::write(dir.path().join("unrelated"), "").unwrap();
        let found = list(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|listed| listed.vm_name.as_str()).collect();
        assert_eq!(names, ["bad", "empty", "good"]);
        assert!(matches!(found[0].reading, Err(JournalError::Garbage(_))));
        assert!(matches!(found[1].reading, Err(JournalError::Garbage(_))));
        assert_eq!(phase(found[2].reading.as_ref().unwrap()), Some(Phase::Taken));
        assert!(matches!(
            Journal::open(dir.path(), "bad"),
            Err(JournalError::Garbage(_))
        ));
        assert_eq!(
            fs::read(dir.path().join("bad.record")).unwrap(),
            b"garbage",
            "left as it was"
        );
    }

    #[test]
    fn a_record_that_does_not_fit_is_refused_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), "vm").unwrap();
        journal.write(hand_over(Phase::Running)).unwrap();
        let large = HandOver {
            peer: Some("x".repeat(SLOT_BYTES)),
            ..hand_over(Phase::GivenUp)
        };
        assert!(matches!(journal.write(large), Err(JournalError::TooLarge { .. })));
        assert_eq!(journal.last().unwrap().hand_over.phase, Phase::Running);
        journal.write(hand_over(Phase::GivenUp)).unwrap();
        drop(journal);
        assert_eq!(phase(&read(dir.path(), "vm").unwrap()), Some(Phase::GivenUp));
    }

    #[test]
    fn the_holder_is_found_among_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 00:19:77 0 EOF\n2: FLOCK  ADVISORY  READ 11 00:19:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 00:19:77 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 13 00:19:77 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 14 00:19:78 0 EOF\n";
        assert_eq!(holder_in(locks, 77), Some(12));
        assert_eq!(holder_in(locks, 79), None);
        assert_eq!(
            holder_in(
                "1: FLOCK ADVISORY WRITE 1 0:1:5 0 EOF\n2: FLOCK ADVISORY WRITE 2 0:2:5 0 EOF\n",
                5
            ),
            None
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever a crash leaves of the last write (any part of the new bytes over the old ones, or noise in that
        /// slot), the record before it is read, or the new one in full; and writing goes on from there.
        #[test]
        fn a_torn_write_leaves_the_record_before(
            records in prop::collection::vec(any_hand_over(), 1..6),
            torn in any_hand_over(),
            kept in 0..=SLOT_BYTES,
            noise in proptest::option::of(any::<u8>()),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = Journal::open(dir.path(), "vm").unwrap();
            for record in &records {
                journal.write(record.clone()).unwrap();
            }
            let before = fs::read(journal.path()).unwrap();
            let slot = journal.free * SLOT_BYTES;
            journal.write(torn.clone()).unwrap();
            let path = journal.path().to_owned();
            drop(journal);

            let mut after = fs::read(&path).unwrap();
            let lost = slot + kept..slot + SLOT_BYTES;
            match noise {
                None => after[lost.clone()].copy_from_slice(&before[lost]),
                Some(noise) => after[lost].fill(noise),
            }
            let complete = after == fs::read(&path).unwrap();
            fs::write(&path, &after).unwrap();

            let expected = if complete { &torn } else { records.last().unwrap() };
            prop_assert_eq!(&read(dir.path(), "vm").unwrap().record.unwrap().hand_over, expected);
            let mut journal = Journal::open(dir.path(), "vm").unwrap();
            prop_assert_eq!(&journal.last().unwrap().hand_over, expected);
            journal.write(torn.clone()).unwrap();
            drop(journal);
            prop_assert_eq!(read(dir.path(), "vm").unwrap().record.unwrap().hand_over, torn);
        }
    }
}
