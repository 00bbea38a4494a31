//! Missing pages from segments of a small guest.

use std::path::PathBuf;

use dunlin_core::units::PAGE_SIZE;

use super::super::exchange::tests::Scene;
use super::*;
use crate::memory::tests::{memory, noise, run};
use crate::memory::{FaultOrigin, GuestMemory};
use crate::storage::SegmentWriter;

/// The pages that are missing: two runs in what will be two segments.
const MISSING: u64 = 0b1111_0000_0111;

/// A guest that runs without these pages, and a source that has them.
struct Story {
    scene: Scene,
    source: GuestMemory,
    uffd: Arc<Userfaultfd>,
    asked: Asked,
    latencies: Latencies,
}

impl Story {
    fn new() -> Self {
        let scene = Scene::running(MISSING);
        let source = memory(1 << 20);
        source.fill(run(0, 256), noise).unwrap();
        source.discard(run(9, 1)).unwrap();
        let uffd = Arc::new(Userfaultfd::open(Arc::clone(&scene.memory), FaultOrigin::UserMode).unwrap());
        uffd.register_missing().unwrap();
        scene.shared.feed(TargetEvent::LinkLost);
        Self {
            scene,
            source,
            uffd,
            asked: Asked::default(),
            latencies: Latencies::new(),
        }
    }

    fn write(&self, sequence: u32, pages: &[Run], last: bool) {
        let mut writer = SegmentWriter::create(&self.scene.directory, Kind::PbData, sequence).unwrap();
        for pages in pages {
            if *pages == run(9, 1) {
                writer.add_zeros(*pages);
            } else {
                assert_eq!(writer.add(&self.source, *pages).unwrap(), pages.count);
            }
        }
        writer.finish(last).unwrap();
    }

    fn work(&self) -> Work<'_, 'static> {
        Work {
            reading: Reading {
                directory: self.scene.directory.clone(),
                shared: &self.scene.shared,
                uffd: Arc::clone(&self.uffd),
                asked: &self.asked,
                latencies: &self.latencies,
            },
            stop: Arc::default(),
            segments: Vec::new(),
            last: false,
            said: false,
        }
    }

    /// The file of a segment with one bit changed; what it was before.
    fn spoil(&self, sequence: u32, at: usize) -> Vec<u8> {
        let path = self.path(sequence);
        let whole = std::fs::read(&path).unwrap();
        let mut spoilt = whole.clone();
        spoilt[at] ^= 1;
        std::fs::write(&path, spoilt).unwrap();
        whole
    }

    fn path(&self, sequence: u32) -> PathBuf {
        self.scene
            .directory
            .path()
            .join(format!("pbdata-{sequence:06}.segment"))
    }

    fn missing(&self) -> Vec<u64> {
        let target = self.scene.shared.lock();
        target
            .missing()
            .runs()
            .flat_map(|run| run.first.0..run.end().0)
            .collect()
    }

    fn expect_same(&self, pages: Run) {
        let memory = &self.scene.memory;
        assert_eq!(memory.hash_run(pages).unwrap(), self.source.hash_run(pages).unwrap());
    }
}

#[test]
fn what_is_missing_is_installed_and_no_more() {
    let story = Story::new();
    // Page 1 has come by the network meanwhile; whatever the directory has of it is not looked at.
    let page = [7; PAGE_SIZE as usize];
    story.uffd.copy(Gfn(1), &page).unwrap();
    let run_of_one = run(1, 1);
    story.scene.shared.feed(TargetEvent::Installed {
        run: run_of_one,
        demanded: true,
    });
    story.write(0, &[run(0, 3)], false);
    story.write(1, &[run(8, 1), run(9, 1), run(10, 2)], true);
    let mut work = story.work();
    work.discover().unwrap();
    assert!(work.segments.len() == 2 && work.last);
    work.read(0).unwrap();
    assert_eq!(story.missing(), [8, 9, 10, 11]);
    work.read(1).unwrap();
    assert_eq!(story.missing(), [0; 0]);
    // It is over.
    work.run();
    for pages in [run(0, 1), run(2, 1), run(8, 4)] {
        story.expect_same(pages);
    }
    assert_eq!(story.scene.memory.read_u64(PAGE_SIZE), u64::from_ne_bytes([7; 8]));
    let totals = story.scene.shared.lock().totals();
    assert_eq!((totals.demanded, totals.stored), (1, 6));
}

#[test]
fn what_a_vcpu_waits_for_comes_first() {
    let story = Story::new();
    story.write(0, &[run(0, 3), run(8, 2)], false);
    story.write(1, &[run(10, 2)], true);
    let mut work = story.work();
    work.discover().unwrap();
    // One that no segment has, and one that is there already, wait for something else.
    story
        .asked
        .lock()
        .unwrap()
        .extend([10, 5, 40].map(|gfn| (Gfn(gfn), Instant::now())));
    work.serve_asked().unwrap();
    assert_eq!(story.missing(), [0, 1, 2, 8, 9, 11]);
    story.expect_same(run(10, 1));
    assert!(story.latencies.percentiles().0 > 0, "nobody waited for it");
    let mut left: Vec<u64> = story.asked.lock().unwrap().keys().map(|gfn| gfn.0).collect();
    left.sort_unstable();
    assert_eq!(left, [5, 40], "it is asked for again");
}

/// It is there a moment later, as on a network file system, or was mended by hand.
#[test]
fn a_segment_that_cannot_be_read_is_tried_again() {
    let story = Story::new();
    story.write(0, &[run(0, 3)], false);
    let whole = story.spoil(0, 5000);
    let mut work = story.work();
    work.discover().unwrap();
    assert!(matches!(
        work.read(0),
        Err(ReadError::Storage(StorageError::Damaged { .. }))
    ));
    assert_eq!(story.missing().len(), 7, "something of it was used");
    std::fs::write(story.path(0), whole).unwrap();
    wait_for(|| work.segments[0].state.is_due());
    work.read(0).unwrap();
    assert_eq!(story.missing(), [8, 9, 10, 11]);
    story.write(1, &[run(8, 4)], true);
    work.run();
    assert_eq!(story.missing(), [0; 0]);
}

/// Whatever is wrong with one, be it only known by its place: the others are read, and the source hears that it is asked.
#[test]
fn a_segment_that_is_of_no_use_does_not_stand_in_the_way() {
    for at in [5000, 100] {
        let story = Story::new();
        story.write(0, &[run(0, 3)], false);
        story.write(1, &[run(8, 4)], true);
        let whole = story.spoil(0, at);
        let shared = &story.scene.shared;
        assert!(!shared.unreadable.load(Ordering::Acquire));
        std::thread::scope(|scope| {
            let mut work = story.work();
            let _ended = Ended(Arc::clone(&work.stop));
            scope.spawn(move || work.run());
            wait_for(|| story.missing() == [0, 1, 2]);
            wait_for(|| shared.unreadable.load(Ordering::Acquire));
            std::fs::write(story.path(0), &whole).unwrap();
            wait_for(|| story.missing().is_empty());
        });
        story.expect_same(run(0, 3));
    }
}

/// Ends the thread also if a test fails beside it.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn wait_for(seen: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !seen() {
        assert!(Instant::now() < until, "it never happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}
