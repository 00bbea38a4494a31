//! Segments as files: what comes back, and what every kind of damage is called.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use dunlin_core::message::{Region, SessionId, VmId};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use proptest::prelude::*;

use super::*;
use crate::block::BLOCK_BYTES;
use crate::memory::GuestMemory;
use crate::memory::tests::{memory, noise, run};

mod sealed;

const MIB: u64 = 1 << 20;
const GUEST_PAGES: u64 = 1024;

fn vm(session: u128) -> Vm {
    let region = Region {
        first: Gfn(0),
        pages: Pages(GUEST_PAGES),
    };
    Vm {
        session: SessionId(session),
        id: VmId(9),
        regions: [region].into_iter().collect(),
    }
}

/// A guest whose pages have data where the function says so.
fn guest(has_data: impl Fn(u64) -> bool) -> GuestMemory {
    let memory = memory(GUEST_PAGES * PAGE_SIZE);
    for gfn in (0..GUEST_PAGES).filter(|&gfn| has_data(gfn)) {
        memory.fill(run(gfn, 1), noise).unwrap();
    }
    memory
}

fn write(directory: &SessionDirectory, guest: &GuestMemory, sequence: u32, runs: &[Run]) -> Written {
    let mut writer = SegmentWriter::create(directory, Kind::Static, sequence).unwrap();
    for &run in runs {
        let mut rest = run;
        while rest.count > Pages::ZERO {
            let taken = writer.add(guest, rest).unwrap();
            assert!(taken > Pages::ZERO && taken <= Pages(RUN_PAGES_MAX));
            rest = Run::new(Gfn(rest.first.0 + taken.0), Pages(rest.count.0 - taken.0));
        }
    }
    writer.finish(true).unwrap()
}

fn install(directory: &SessionDirectory, sequence: u32, into: &GuestMemory) -> Result<Vec<Run>, StorageError> {
    let mut reader = SegmentReader::open(directory, Kind::Static, sequence)?.expect("the segment is there");
    let mut runs = Vec::new();
    reader.each_run(|run, content| {
        runs.push(run);
        match content {
            Content::Zero => into.write_run(run, &vec![0; run.count.bytes().0 as usize])?,
            Content::Data(bytes) => into.write_run(run, bytes)?,
        }
        Ok::<(), StorageError>(())
    })?;
    Ok(runs)
}

struct TestPlace {
    _root: tempfile::TempDir,
    directory: SessionDirectory,
}

fn place() -> TestPlace {
    let root = tempfile::tempdir().unwrap();
    let directory = SessionDirectory::create(root.path(), vm(1), None).unwrap();
    TestPlace { _root: root, directory }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever pages have data, and however they are cut into runs.
    #[test]
    fn pages_come_back(pattern: [u64; 16], cuts in prop::collection::btree_set(1..GUEST_PAGES, 0..12)) {
        let place = place();
        let source = guest(|gfn| pattern[(gfn / 64) as usize] >> (gfn % 64) & 1 == 1);
        let mut from = 0;
        let mut runs = Vec::new();
        for end in cuts.into_iter().chain([GUEST_PAGES]) {
            runs.push(run(from, end - from));
            from = end;
        }
        let written = write(&place.directory, &source, 0, &runs);
        let data: u64 = pattern.iter().map(|word| u64::from(word.count_ones())).sum();
        prop_assert_eq!((written.data, written.zero), (Pages(data), Pages(GUEST_PAGES - data)));
        prop_assert_eq!(written.bytes.0, fs::metadata(&written.path).unwrap().len());
        let target = guest(|_| true);
        install(&place.directory, 0, &target).unwrap();
        prop_assert_eq!(source.hash_run(run(0, GUEST_PAGES)).unwrap(), target.hash_run(run(0, GUEST_PAGES)).unwrap());
    }
}

#[test]
fn one_page_is_found_among_runs() {
    let place = place();
    // Runs of two pages with data.
    let source = guest(|gfn| gfn % 3 != 1);
    write(&place.directory, &source, 0, &[run(0, 700), run(800, 100)]);
    let mut reader = SegmentReader::open(&place.directory, Kind::Static, 0).unwrap().unwrap();
    for gfn in [0, 1, 257, 258, 699, 700, 799, 800, 801, 899, 900] {
        let mut expected = vec![0; PAGE_SIZE as usize];
        source.copy_run(run(gfn, 1), &mut expected).unwrap();
        let found = reader.page(Gfn(gfn)).unwrap();
        match found {
            None => assert!((700..800).contains(&gfn) || gfn >= 900, "page {gfn} is missing"),
            Some(Content::Zero) => assert!(gfn % 3 == 1, "page {gfn} is not zero"),
            Some(Content::Data(bytes)) => assert_eq!(bytes, expected, "page {gfn}"),
        }
    }
}

#[test]
fn runs_are_cut_and_zeros_join() {
    let place = place();
    write(&place.directory, &guest(|gfn| gfn < 300), 0, &[run(0, GUEST_PAGES)]);
    let runs = install(&place.directory, 0, &guest(|_| false)).unwrap();
    assert_eq!(runs, [run(0, 256), run(256, 44), run(300, 724)]);

    // Not over a gap.
    let place = self::place();
    write(&place.directory, &guest(|_| false), 0, &[run(0, 10), run(20, 10)]);
    let runs = install(&place.directory, 0, &guest(|_| false)).unwrap();
    assert_eq!(runs, [run(0, 10), run(20, 10)]);
}

#[test]
fn a_segment_that_is_not_finished_is_not_there() {
    let place = place();
    let mut writer = SegmentWriter::create(&place.directory, Kind::Static, 0).unwrap();
    writer.add(&guest(|_| true), run(0, 256)).unwrap();
    assert!(
        SegmentReader::open(&place.directory, Kind::Static, 0)
            .unwrap()
            .is_none()
    );
    drop(writer);
    assert_eq!(
        fs::read_dir(place.directory.path()).unwrap().count(),
        0,
        "its file is gone"
    );
}

/// A page of zeros shifts all others against the pieces in which they are written.
#[test]
fn a_full_segment_is_no_longer_than_it_may_be() {
    let pages = SEGMENT_PAGES_MAX + RUN_PAGES_MAX;
    let root = tempfile::tempdir().unwrap();
    let mut guest = vm(1);
    guest.regions[0].pages = Pages(pages);
    let directory = SessionDirectory::create(root.path(), guest, None).unwrap();
    let source = memory(pages * PAGE_SIZE);
    source.fill(run(1, pages - 1), noise).unwrap();
    let mut writer = SegmentWriter::create(&directory, Kind::Static, 0).unwrap();
    let mut next = 0;
    while !writer.is_full() {
        next += writer.add(&source, run(next, RUN_PAGES_MAX)).unwrap().0;
    }
    let written = writer.finish(true).unwrap();
    assert!(
        written.data.0 + RUN_PAGES_MAX > SEGMENT_PAGES_MAX,
        "{} is not full",
        written.data
    );
    let opened = SegmentReader::open(&directory, Kind::Static, 0).unwrap();
    assert_eq!(opened.unwrap().pages(), (written.data, written.zero));
}

#[test]
fn a_full_segment_takes_no_more() {
    let place = place();
    let source = memory((SEGMENT_PAGES_MAX + 1) * PAGE_SIZE);
    let all = run(0, SEGMENT_PAGES_MAX + 1);
    source.fill(all, noise).unwrap();
    let mut writer = SegmentWriter::create(&place.directory, Kind::PbData, 7).unwrap();
    for first in (0..SEGMENT_PAGES_MAX).step_by(RUN_PAGES_MAX as usize) {
        assert!(!writer.is_full());
        assert_eq!(
            writer.add(&source, run(first, RUN_PAGES_MAX)).unwrap(),
            Pages(RUN_PAGES_MAX)
        );
    }
    assert!(writer.is_full());
    assert_eq!(writer.add(&source, run(SEGMENT_PAGES_MAX, 1)).unwrap(), Pages::ZERO);
    let written = writer.finish(false).unwrap();
    assert_eq!(written.data, Pages(SEGMENT_PAGES_MAX));
}

/// What opening and reading says after the file was changed.
fn error_after(change: impl Fn(&fs::File, &Written)) -> String {
    let place = place();
    let written = write(&place.directory, &guest(|gfn| gfn < 512), 0, &[run(0, GUEST_PAGES)]);
    change(
        &fs::OpenOptions::new().write(true).open(&written.path).unwrap(),
        &written,
    );
    let error = install(&place.directory, 0, &guest(|_| false)).expect_err("damage is noticed");
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    error.to_string()
}

fn flip(file: &fs::File, path: &Path, offset: u64) {
    let mut byte = [0];
    fs::File::open(path).unwrap().read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn damage_is_named() {
    let header = error_after(|file, written| flip(file, &written.path, 30));
    assert!(header.contains("damaged (its header)"), "{header}");
    let data = error_after(|file, written| flip(file, &written.path, BLOCK_BYTES as u64 + 300 * PAGE_SIZE));
    assert!(data.contains("damaged (its data)"), "{data}");
    let index = error_after(|file, written| flip(file, &written.path, written.bytes.0 - BLOCK_BYTES as u64));
    assert!(index.contains("damaged (its index)"), "{index}");
    for length in [0, 100, BLOCK_BYTES as u64, 2 * MIB] {
        error_after(|file, _| file.set_len(length).unwrap());
    }
    let longer = error_after(|file, written| file.set_len(written.bytes.0 + 1).unwrap());
    assert!(longer.contains("damaged (its length)"), "{longer}");
}

/// A sound segment under a name or in a folder where it does not belong.
#[test]
fn segments_of_others_are_not_taken() {
    let place = place();
    let written = write(&place.directory, &guest(|_| true), 0, &[run(0, 10)]);
    let foreign = |directory: &SessionDirectory, kind, sequence, of: &str| {
        fs::copy(&written.path, directory.segment(kind, sequence)).unwrap();
        let error = SegmentReader::open(directory, kind, sequence)
            .err()
            .expect("refused")
            .to_string();
        assert!(error.contains(&format!("another {of}")), "{error}");
    };
    foreign(&place.directory, Kind::PbData, 0, "kind");
    foreign(&place.directory, Kind::Static, 1, "place in the order");
    let root = tempfile::tempdir().unwrap();
    let with = |change: fn(&mut Vm)| {
        let mut vm = vm(1);
        change(&mut vm);
        let _ = fs::create_dir(root.path().join(format!("dunlin-{}", vm.session)));
        SessionDirectory::open(root.path(), vm, None)
    };
    foreign(&with(|vm| vm.session = SessionId(2)), Kind::Static, 0, "migration");
    foreign(&with(|vm| vm.id = VmId(2)), Kind::Static, 0, "VM");
    foreign(
        &with(|vm| vm.regions[0].pages = Pages(2000)),
        Kind::Static,
        0,
        "memory layout",
    );
}

#[test]
fn a_folder_is_made_once_and_found_when_left_behind() {
    let root = tempfile::tempdir().unwrap();
    let first = SessionDirectory::create(root.path(), vm(0xabc), None).unwrap();
    let written = write(&first, &guest(|_| true), 0, &[run(0, 10)]);
    assert!(matches!(
        SessionDirectory::create(root.path(), vm(0xabc), None),
        Err(StorageError::Io { .. })
    ));
    fs::create_dir(root.path().join("dunlin-not-a-session")).unwrap();
    fs::create_dir(root.path().join("somebody-elses")).unwrap();
    let found = leftovers(root.path()).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].session, found[0].bytes), (SessionId(0xabc), written.bytes));
    found[0].remove().unwrap();
    found[0].remove().unwrap();
    assert!(leftovers(root.path()).unwrap().is_empty());
    first.remove().unwrap();
}

#[test]
fn a_storage_directory_that_is_not_there_is_named() {
    let error = SessionDirectory::create(Path::new("/nowhere/at-all"), vm(1), None).expect_err("there is none");
    assert!(error.to_string().contains("/nowhere/at-all/dunlin-"), "{error}");
    assert!(leftovers(Path::new("/nowhere/at-all")).is_err());
}
