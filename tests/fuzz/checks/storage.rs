//! Files in a storage directory as anybody may have written them, and as a peer may have sealed them: reading never panics, and what is handed
//! on is what a reader may rely on.

use std::fs;
use std::path::PathBuf;

use dunlin_core::message::{Region, SessionId, VmId};
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use crate::storage::{
    Content, Header, Kind, RUN_PAGES_MAX, SealKey, SegmentReader, SessionDirectory, SourceState, StorageError,
    TargetState, Vm, forged,
};

/// Pages of the VM, with a hole behind the first half.
const HALF: u64 = 1 << 12;
const HOLE: u64 = 1 << 10;
/// Most pages of data in a file that is made up: it is written for every input.
const DATA_PAGES_MAX: u16 = 600;

/// The check. The first byte says what the rest is: bit 0, the migration seals; bit 1, the bytes of the file as they are; otherwise what a
/// header and an index say, whose checksums or seals are put right, since a fuzzer does not guess them.
pub(crate) fn check(input: &[u8]) {
    let Some((&how, rest)) = input.split_first() else {
        return;
    };
    let folder = tempfile::Builder::new()
        .prefix("dunlin-fuzz-")
        .tempdir_in(place())
        .expect("a folder");
    let seal = (how & 1 == 1).then(|| SealKey::new([7; 32]));
    let directory = SessionDirectory::create(folder.path(), vm(), seal).expect("a folder");
    let bytes = if how & 2 == 2 {
        rest.to_vec()
    } else {
        made_up(&directory, rest)
    };
    fs::write(directory.path().join("static-000003.segment"), &bytes).expect("room");
    read(&directory);
    for name in ["source.state", "target.state"] {
        fs::write(directory.path().join(name), &bytes).expect("room");
    }
    // A segment is no state.
    assert!(!matches!(directory.read_state::<SourceState>(), Ok(Some(_))) || how & 2 == 2);
    assert!(!matches!(directory.read_state::<TargetState>(), Ok(Some(_))) || how & 2 == 2);
}

fn place() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

fn vm() -> Vm {
    let region = |first, pages| Region {
        first: Gfn(first),
        pages: Pages(pages),
    };
    Vm {
        session: SessionId(1),
        id: VmId(2),
        regions: [region(0, HALF), region(HALF + HOLE, HALF)].into_iter().collect(),
    }
}

/// A file of this header and index.
fn made_up(directory: &SessionDirectory, input: &[u8]) -> Vec<u8> {
    let mut number = Numbers(input);
    let header = Header {
        vm: vm(),
        kind: if number.next(1) & 1 == 0 {
            Kind::Static
        } else {
            Kind::PbData
        },
        sequence: number.next(1) as u32 & 3,
        last: number.next(1) & 1 == 1,
        runs: number.next(2) as u32,
        data_pages: (number.next(2) as u32) % u32::from(DATA_PAGES_MAX),
        zero_pages: number.next(4),
    };
    forged(directory, &header, number.0)
}

/// Numbers out of bytes, zeros when they are used up.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self, bytes: usize) -> u64 {
        let (now, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        now.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

fn read(directory: &SessionDirectory) {
    let mut segment = match SegmentReader::open(directory, Kind::Static, 3) {
        Ok(segment) => segment.expect("it is there"),
        Err(error) => return assert!(error.is_content(), "{error}"),
    };
    let (mut data, mut zeros, mut next) = (0, 0, 0);
    let span = segment.span();
    let read = segment.each_run(|run, content| {
        assert!(run.first.0 >= next && run.count.0 > 0, "{run} goes back");
        let within = |first: u64| run.first.0 >= first && run.end().0 <= first + HALF;
        assert!(within(0) || within(HALF + HOLE), "{run} is no RAM");
        assert!(span.contains(&run.first) && run.end() <= span.end);
        match content {
            Content::Zero => zeros += run.count.0,
            Content::Data(bytes) => {
                assert!(run.count.0 <= RUN_PAGES_MAX && bytes.len() as u64 == run.count.0 * PAGE_SIZE);
                data += run.count.0;
            }
        }
        next = run.end().0;
        Ok::<(), StorageError>(())
    });
    match read {
        Ok(()) => assert_eq!((Pages(data), Pages(zeros)), segment.pages()),
        Err(error) => assert!(error.is_content(), "{error}"),
    }
    for gfn in [0, 1, HALF - 1, HALF, HALF + HOLE, u64::MAX] {
        let found = segment.page(Gfn(gfn));
        assert!(!matches!(found, Ok(Some(Content::Data(bytes))) if bytes.len() as u64 != PAGE_SIZE));
    }
}
