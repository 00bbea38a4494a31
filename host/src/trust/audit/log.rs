//! The log as those see it who write it.

use super::{
    AuditError, LOCK_SECONDS, Problem,
    line::{LINE_MAX_BYTES, encode},
    record::{AuditSchema, Entry, Event, Header, Place, Places, Record},
    verify::Walk,
};
use crate::journal::{HandOver, Role};
use dunlin_core::message::VmId;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, fdatasync, flock};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

/// Room for the lines of one migration: a directory that fills up later cannot stop a hand-over.
const RESERVED_BYTES: u64 = 64 << 10;
/// How often the lock is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// An audit log that this process adds to, as may others.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Up to where the file has been read, always the end of a line.
    end: u64,
    walk: Walk,
    places: Places,
}

impl AuditLog {
    /// Opens the log at `path`, or begins one that only this user can read; checks all of it, and ends a line that a process did not.
    ///
    /// # Errors
    /// [`AuditError`]; the file is as it was, but for a torn line that has been ended.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let file = match open_existing(path)? {
            Some(file) => file,
            None => {
                create(path)?;
                open_existing(path)?.ok_or_else(|| AuditError::Missing(path.into()))?
            }
        };
        let metadata = file
            .metadata()
            .map_err(|source| AuditError::io("look at", path, source))?;
        if !metadata.is_file() {
            return Err(AuditError::NotAFile(path.into()));
        }
        let log = Self {
            path: path.into(),
            inner: Mutex::new(Inner {
                file,
                end: 0,
                walk: Walk::default(),
                places: Places::default(),
            }),
        };
        {
            let mut inner = log.lock();
            let _turn = Turn::take(&inner.file, path)?;
            inner.catch_up(path)?;
        }
        Ok(log)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends what happened, and waits until the disk has it.
    ///
    /// # Errors
    /// [`AuditError`]: after it, the entry may or may not be in the log.
    pub fn append(&self, entry: Entry) -> Result<(), AuditError> {
        let mut inner = self.lock();
        let _turn = Turn::take(&inner.file, &self.path)?;
        inner.catch_up(&self.path)?;
        inner.write("", entry, &self.path)
    }

    /// Takes room for the lines of one migration. Without it, as on file systems that cannot, a full directory may stop one.
    pub fn reserve(&self) {
        let inner = self.lock();
        let _ = fallocate(&inner.file, FallocateFlags::KEEP_SIZE, inner.end, RESERVED_BYTES);
    }

    /// Where the VM is by this log, as a process in this role has said last, if one has.
    pub fn place(&self, vm: VmId, role: Role) -> Option<Place> {
        self.lock().places.get(vm, role)
    }

    /// Adds what the last hand-over record says, if the log does not say it yet: its process has died in between. Call it when no
    /// process holds that record.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    pub fn catch_up_with(&self, guest: &str, record: &HandOver) -> Result<(), AuditError> {
        let place = Place::of(record.role, record.phase);
        match self.place(record.vm_id, record.role) {
            Some(known) if known != place => {}
            _ => return Ok(()),
        }
        let (role, phase) = (record.role, record.phase);
        self.append(Entry {
            guest: Some(guest.to_owned()),
            address: record.peer.clone(),
            reason: Some(format!(
                "the process before has died; its hand-over record says {phase}"
            )),
            ..Entry::new(Event::Found, role, record.vm_id, record.session).at(place)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic may have left half done is read again from the file.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Reads what others have written since, and ends a line that somebody did not.
    fn catch_up(&mut self, path: &Path) -> Result<(), AuditError> {
        let io = |source| AuditError::io("read", path, source);
        let size = self.file.metadata().map_err(io)?.len();
        if size < self.end {
            return Err(AuditError::Shortened(path.into()));
        }
        let mut lines = Lines::new(&self.file, self.end);
        let mut tail = Vec::new();
        while let Some((line, whole)) = lines.next().map_err(io)? {
            if !whole {
                tail = line;
                break;
            }
            let bytes = line.len() as u64 + 1;
            let taken = self.walk.take(&line).map_err(|flaw| broken(path, flaw))?;
            self.end += bytes;
            if let Some(record) = taken {
                self.places.note(&record.entry);
            }
        }
        if self.walk.is_waiting() {
            // Only a torn line needs the next to explain it, and that is written together with its end.
            return Err(broken(path, self.walk.flaw_of_waiting()));
        }
        if tail.is_empty() {
            return match self.walk.has_header() {
                true => Ok(()),
                false => Err(broken(path, self.walk.no_header())),
            };
        }
        let taken = self.walk.take(&tail).map_err(|flaw| broken(path, flaw))?;
        self.end += tail.len() as u64;
        if let Some(record) = taken {
            // Whole but for its end it counts: when it was written, it could be said.
            self.put(b"\n", path)?;
            self.end += 1;
            self.places.note(&record.entry);
            return Ok(());
        }
        eprintln!(
            "dunlin: the last line of the audit log {} was not written to its end: ended now, and recorded",
            path.display()
        );
        let entry = Entry {
            event: Event::Torn,
            uid: Some(rustix::process::getuid().as_raw()),
            torn: self.walk.waiting().cloned(),
            ..Entry::default()
        };
        self.write("\n", entry, path)
    }

    /// Writes a record behind what ends the line before, in one go.
    fn write(&mut self, before: &str, entry: Entry, path: &Path) -> Result<(), AuditError> {
        let record = Record {
            number: self.walk.records() + 1,
            previous: self.walk.head().to_owned(),
            time: now(),
            pid: std::process::id(),
            entry,
        };
        let (line, _) = encode(&record);
        self.put(&[before.as_bytes(), &line].concat(), path)?;
        self.walk
            .take(&line[..line.len() - 1])
            .map_err(|flaw| broken(path, flaw))?;
        self.end += (before.len() + line.len()) as u64;
        self.places.note(&record.entry);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8], path: &Path) -> Result<(), AuditError> {
        let written = (&self.file).write_all(bytes);
        written
            .and_then(|()| Ok(fdatasync(&self.file)?))
            .map_err(|source| AuditError::io("write", path, source))
    }
}

fn broken(path: &Path, problem: Problem) -> AuditError {
    AuditError::Broken {
        path: path.into(),
        problem,
    }
}

fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

fn open_existing(path: &Path) -> Result<Option<File>, AuditError> {
    let opened = OpenOptions::new()
        .read(true)
        .append(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuditError::io("open", path, source)),
    }
}

/// Begins a log. It appears under its name complete or not at all, and never replaces another.
fn create(path: &Path) -> Result<(), AuditError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| AuditError::Random)?;
    let id = format!("{:032x}", u128::from_le_bytes(id));
    let io = |source| AuditError::io("begin", path, source);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temporary = folder.join(format!(".audit.{id}"));
    let header = Header {
        schema: AuditSchema::V1,
        id,
        time: now(),
    };
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(&encode(&header).0)?;
            file.sync_all()
        })
        .and_then(|()| match fs::hard_link(&temporary, path) {
            // Somebody else was faster: then that is the log.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    // A leftover is harmless; what matters is `written`.
    let _ = fs::remove_file(&temporary);
    written.map_err(io)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// The lock on the file, while this lives. Unlocked by hand: the log's own descriptor stays open.
struct Turn(File);

impl Turn {
    fn take(file: &File, path: &Path) -> Result<Self, AuditError> {
        let io = |source| AuditError::io("lock", path, source);
        // The same open file: a lock of one is a lock of the other.
        let file = file.try_clone().map_err(io)?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < Duration::from_secs(LOCK_SECONDS) => {
                    thread::sleep(LOCK_PAUSE);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(AuditError::Locked(path.into())),
                Err(errno) => return Err(io(errno.into())),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Only a descriptor that is none could fail.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Lines of a file, from some place on.
pub(super) struct Lines<'a> {
    file: &'a File,
    at: u64,
    buffer: Vec<u8>,
    searched: usize,
}

impl<'a> Lines<'a> {
    pub(super) const fn new(file: &'a File, at: u64) -> Self {
        Self {
            file,
            at,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    /// The next line, and whether it has its end. A line longer than any record comes in pieces without.
    pub(super) fn next(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        loop {
            if let Some(found) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + found + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.searched = 0;
                return Ok(Some((line, true)));
            }
            self.searched = self.buffer.len();
            let mut piece = vec![0; 64 << 10];
            let read = if self.searched > LINE_MAX_BYTES {
                0
            } else {
                self.file.read_at(&mut piece, self.at)?
            };
            if read == 0 {
                self.searched = 0;
                let rest = std::mem::take(&mut self.buffer);
                return Ok((!rest.is_empty()).then_some((rest, false)));
            }
            self.at += read as u64;
            self.buffer.extend_from_slice(&piece[..read]);
        }
    }
}
