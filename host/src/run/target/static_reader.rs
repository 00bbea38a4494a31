//! The static copy, read from the shared directory while the migration channel works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use dunlin_core::migrate::TargetEvent;

use super::SharedTarget;
use super::merge::Merge;
use crate::memory::GuestMemory;
use crate::storage::{Kind, SegmentReader, SessionDirectory, StorageError};

/// How often a segment that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// How long the source's folder may take to appear here.
pub(super) const APPEARS_WITHIN: Duration = if cfg!(test) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(5)
};
/// Threads that read: while one waits for the disk the other writes into memory.
const READERS: u32 = 2;
/// The last segment is not known yet.
const UNKNOWN: u32 = u32::MAX;

/// Threads that put segments into memory, one segment each at a time.
pub(super) struct StaticReader<'s> {
    threads: Vec<ScopedJoinHandle<'s, ()>>,
    stop: Arc<AtomicBool>,
}

/// What the threads share.
struct Work<'e, 'w> {
    directory: SessionDirectory,
    memory: Arc<GuestMemory>,
    merge: Arc<Merge>,
    shared: &'e SharedTarget<'w>,
    stop: Arc<AtomicBool>,
    next: AtomicU32,
    last: AtomicU32,
    done: AtomicU32,
}

impl<'s> StaticReader<'s> {
    pub(super) fn none() -> Self {
        Self {
            threads: Vec::new(),
            stop: Arc::default(),
        }
    }

    pub(super) fn start<'e>(
        scope: &'s Scope<'s, 'e>,
        directory: SessionDirectory,
        memory: Arc<GuestMemory>,
        merge: Arc<Merge>,
        shared: &'e SharedTarget<'_>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let work = Arc::new(Work {
            directory,
            memory,
            merge,
            shared,
            stop: Arc::clone(&stop),
            next: AtomicU32::new(0),
            last: AtomicU32::new(UNKNOWN),
            done: AtomicU32::new(0),
        });
        let threads = (0..READERS)
            .map(|_| {
                let work = Arc::clone(&work);
                scope.spawn(move || work.run())
            })
            .collect();
        Self { threads, stop }
    }

    /// Ends the threads: nothing of the static copy is put into memory afterwards.
    pub(super) fn finish(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic in there has been printed; the copy then never ends, and the source waits until it is cancelled.
            let _ = thread.join();
        }
    }
}

impl Work<'_, '_> {
    fn run(&self) {
        if let Err(error) = self.segments()
            && !self.stop.swap(true, Ordering::AcqRel)
        {
            eprintln!(
                "dunlin: the static copy is given up, its pages come over the network: {}",
                crate::run::chain(&error)
            );
            self.shared.feed(TargetEvent::StaticFailed);
        }
    }

    fn segments(&self) -> Result<(), StorageError> {
        loop {
            let sequence = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(mut segment) = self.wait_for(sequence)? else {
                return Ok(());
            };
            if segment.header().last {
                self.last.store(sequence, Ordering::Release);
            }
            segment.each_run(|run, content| {
                if self.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                self.merge.put_absent(&self.memory, self.shared, run, content)?;
                self.shared.feed(TargetEvent::StaticReceived(run));
                Ok::<(), StorageError>(())
            })?;
            let done = self.done.fetch_add(1, Ordering::AcqRel) + 1;
            if self.last.load(Ordering::Acquire).checked_add(1) == Some(done) && !self.stop.load(Ordering::Acquire) {
                self.shared.feed(TargetEvent::StaticEnded);
            }
        }
    }

    /// The segment, once it is there; none if it never will be, or nobody wants it any more.
    fn wait_for(&self, sequence: u32) -> Result<Option<SegmentReader>, StorageError> {
        let (mut since, mut appeared) = (None::<Instant>, sequence > 0);
        loop {
            let wanted = !self.stop.load(Ordering::Acquire) && sequence <= self.last.load(Ordering::Acquire);
            if !wanted {
                return Ok(None);
            }
            if let Some(segment) = SegmentReader::open(&self.directory, Kind::Static, sequence)? {
                return Ok(Some(segment));
            }
            // A source that has begun its rounds has begun the copy.
            if !appeared && self.shared.lock().round().0 > 0 {
                let since = *since.get_or_insert_with(Instant::now);
                if since.elapsed() >= APPEARS_WITHIN {
                    appeared = self.directory.appears();
                    if !appeared {
                        return Err(StorageError::Elsewhere(self.directory.path().into()));
                    }
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_core::message::{Message, SessionId, VmId};
    use dunlin_core::migrate::{TargetAction, TargetMessage};
    use dunlin_core::pageset::Run;
    use dunlin_core::units::{Gfn, Pages};

    use super::super::merge::tests::shared;
    use super::*;
    use crate::memory::tests::{memory, noise, run};
    use crate::storage::{SegmentWriter, Vm};

    const MIB: u64 = 1 << 20;
    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Ends the threads also if a test fails beside them.
    struct Ended<'s>(StaticReader<'s>);

    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.finish();
        }
    }

    /// A target that waits for pages, and a directory for its static copy.
    struct Scene {
        root: tempfile::TempDir,
        directory: SessionDirectory,
        source: GuestMemory,
        memory: Arc<GuestMemory>,
        shared: SharedTarget<'static>,
    }

    fn scene() -> Scene {
        let root = tempfile::tempdir().unwrap();
        let (source, memory) = (memory(MIB), Arc::new(memory(MIB)));
        source.fill(run(0, 256), noise).unwrap();
        source.discard(run(100, 20)).unwrap();
        let shared = shared(&memory);
        let vm = Vm {
            session: SessionId(1),
            id: VmId(9),
            regions: crate::run::vm::regions(memory.layout()),
        };
        let directory = SessionDirectory::create(root.path(), vm, None).unwrap();
        for _ in 0..3 {
            assert!(!matches!(poll(&shared), TargetAction::Wait { .. }));
            shared.feed(TargetEvent::Done);
        }
        assert!(matches!(poll(&shared), TargetAction::Wait { .. }));
        Scene {
            root,
            directory,
            source,
            memory,
            shared,
        }
    }

    fn poll(shared: &SharedTarget<'_>) -> TargetAction {
        let now = shared.now();
        shared.lock().poll(now)
    }

    fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < until, "it never happens");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    impl Scene {
        fn write(&self, sequence: u32, pages: Run, last: bool) {
            let mut writer = SegmentWriter::create(&self.directory, Kind::Static, sequence).unwrap();
            assert_eq!(writer.add(&self.source, pages).unwrap(), pages.count);
            writer.finish(last).unwrap();
        }

        fn read(&self, meanwhile: impl FnOnce()) {
            std::thread::scope(|scope| {
                let merge = Arc::new(Merge::new(self.memory.end_gfn()));
                let directory = SessionDirectory::open(self.root.path(), self.directory.vm().clone(), None);
                let reader = StaticReader::start(scope, directory, Arc::clone(&self.memory), merge, &self.shared);
                let _ended = Ended(reader);
                meanwhile();
            });
        }

        fn received(&self) -> Pages {
            self.shared.lock().received().len()
        }

        /// What the source is told of the copy.
        fn told(&self) -> TargetMessage {
            wait_for(|| match poll(&self.shared) {
                TargetAction::Send(message) => Some(message),
                _ => None,
            })
        }
    }

    /// The last segment is there before the first: it is not the end.
    #[test]
    fn the_copy_ends_when_every_segment_is_merged() {
        let scene = scene();
        scene.write(2, run(200, 56), true);
        scene.write(1, run(90, 110), false);
        scene.read(|| {
            // One thread waits for the first segment, the other takes the two that are there.
            wait_for(|| (scene.received() == Pages(166)).then_some(()));
            std::thread::sleep(Duration::from_millis(20));
            assert!(
                matches!(poll(&scene.shared), TargetAction::Wait { .. }),
                "a part of it is the whole"
            );
            scene.write(0, run(0, 90), false);
            assert_eq!(scene.told(), TargetMessage::StaticMerged);
        });
        let all = run(0, 256);
        assert_eq!(scene.received(), all.count);
        assert_eq!(scene.memory.hash_run(all).unwrap(), scene.source.hash_run(all).unwrap());
    }

    /// However many segments, whoever takes the last.
    #[test]
    fn segments_that_come_one_by_one_are_merged() {
        for segments in [1, 2, 3, 8] {
            let scene = scene();
            scene.read(|| {
                let each = 256 / segments;
                for sequence in 0..segments {
                    let first = sequence * each;
                    let last = sequence + 1 == segments;
                    let count = if last { 256 - first } else { each };
                    scene.write(sequence as u32, run(first, count), last);
                }
                assert_eq!(scene.told(), TargetMessage::StaticMerged, "{segments}");
            });
        }
    }

    /// Until the source has begun there need be no folder.
    #[test]
    fn a_folder_that_never_appears_fails_the_copy() {
        let scene = scene();
        std::fs::remove_dir(scene.directory.path()).unwrap();
        scene.read(|| {
            std::thread::sleep(APPEARS_WITHIN * 2);
            assert!(matches!(poll(&scene.shared), TargetAction::Wait { .. }), "too early");
            scene.shared.feed(TargetEvent::Message(&Message::RoundStart {
                round: 1,
                pages: Pages(1),
            }));
            assert_eq!(scene.told(), TargetMessage::StaticFailed);
        });
    }

    #[test]
    fn a_damaged_segment_fails_the_copy() {
        let scene = scene();
        scene.write(0, run(0, 90), false);
        let mut files = std::fs::read_dir(scene.directory.path()).unwrap();
        let path = files.next().expect("the segment").unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        scene.read(|| assert_eq!(scene.told(), TargetMessage::StaticFailed));
        assert!(!scene.shared.lock().received().contains(Gfn(0)));
    }

    /// Pages that are missing for good: the copy ends, and is none.
    #[test]
    fn a_copy_with_a_gap_is_none() {
        let scene = scene();
        scene.write(0, run(0, 90), false);
        scene.write(1, run(91, 165), true);
        scene.read(|| assert_eq!(scene.told(), TargetMessage::StaticFailed));
    }

    #[test]
    fn a_reader_that_waits_can_be_ended() {
        let scene = scene();
        scene.read(|| {});
        scene.write(0, run(0, 256), true);
        scene.read(|| assert_eq!(scene.told(), TargetMessage::StaticMerged));
    }
}
