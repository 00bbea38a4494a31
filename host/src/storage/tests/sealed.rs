//! Sealed segments and states: what an attacker with all rights to the directory can do to them, and what it is called.

use std::path::PathBuf;

use proptest::test_runner::{TestCaseError, TestRunner};

use super::*;

const PAGE: usize = PAGE_SIZE as usize;

fn key(byte: u8) -> Option<SealKey> {
    Some(SealKey::new([byte; 32]))
}

/// Two segments of one migration, with data in runs of one to three pages and zeros between them.
struct Vault {
    root: tempfile::TempDir,
    directory: SessionDirectory,
    source: GuestMemory,
}

impl Vault {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = SessionDirectory::create(root.path(), vm(1), key(1)).unwrap();
        let source = guest(|gfn| gfn % 7 != 3);
        let vault = Self {
            root,
            directory,
            source,
        };
        vault.write();
        vault
    }

    fn write(&self) {
        write(&self.directory, &self.source, 0, &[run(0, 40)]);
        write(&self.directory, &self.source, 1, &[run(40, 40)]);
    }

    fn path(&self, sequence: u32) -> PathBuf {
        self.directory.segment(Kind::Static, sequence)
    }

    fn bytes(&self, sequence: u32) -> Vec<u8> {
        fs::read(self.path(sequence)).unwrap()
    }

    /// The same folder as another sees it.
    fn as_seen(&self, vm: Vm, seal: Option<SealKey>) -> SessionDirectory {
        SessionDirectory::open(self.root.path(), vm, seal)
    }

    /// What reading the first segment says if these are its bytes. Whatever was handed on before was right.
    fn read_as(&self, bytes: &[u8]) -> Result<(), StorageError> {
        fs::write(self.path(0), bytes).unwrap();
        read(&self.directory, 0, &self.source)
    }

    /// Whether these bytes in the place of the second segment are refused; it is then as it was.
    fn refuses_second(&self, bytes: &[u8], sealed: &[u8]) -> bool {
        fs::write(self.path(1), bytes).unwrap();
        let refused = read(&self.directory, 1, &self.source).is_err_and(|error| error.is_content());
        fs::write(self.path(1), sealed).unwrap();
        refused
    }

    fn refused(&self, bytes: &[u8]) -> String {
        let error = self.read_as(bytes).expect_err("it is not what was sealed");
        assert!(error.is_content(), "{error}");
        let text = error.to_string();
        assert!(text.contains("static-000000.segment"), "{text}");
        text
    }
}

fn read(directory: &SessionDirectory, sequence: u32, source: &GuestMemory) -> Result<(), StorageError> {
    let mut reader = SegmentReader::open(directory, Kind::Static, sequence)?.expect("the segment is there");
    reader.each_run(|run, content| {
        let mut expected = vec![0; run.count.bytes().0 as usize];
        source.copy_run(run, &mut expected)?;
        match content {
            Content::Zero => assert!(expected.iter().all(|byte| *byte == 0), "{run:?}"),
            Content::Data(bytes) => assert!(bytes == expected, "{run:?} is handed on with other bytes"),
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// As it is for plain segments, whatever pages have data, and however they are cut into runs.
    #[test]
    fn pages_come_back(pattern: [u64; 16], cuts in prop::collection::btree_set(1..GUEST_PAGES, 0..12)) {
        let root = tempfile::tempdir().unwrap();
        let directory = SessionDirectory::create(root.path(), vm(1), key(1)).unwrap();
        let source = guest(|gfn| pattern[(gfn / 64) as usize] >> (gfn % 64) & 1 == 1);
        let mut from = 0;
        let mut runs = Vec::new();
        for end in cuts.into_iter().chain([GUEST_PAGES]) {
            runs.push(run(from, end - from));
            from = end;
        }
        let written = write(&directory, &source, 0, &runs);
        prop_assert_eq!(written.bytes.0, fs::metadata(&written.path).unwrap().len());
        let target = guest(|_| true);
        install(&directory, 0, &target).unwrap();
        prop_assert_eq!(source.hash_run(run(0, GUEST_PAGES)).unwrap(), target.hash_run(run(0, GUEST_PAGES)).unwrap());
        let mut reader = SegmentReader::open(&directory, Kind::Static, 0).unwrap().unwrap();
        for gfn in (0..GUEST_PAGES).step_by(97) {
            let mut expected = vec![0; PAGE];
            source.copy_run(run(gfn, 1), &mut expected).unwrap();
            match reader.page(Gfn(gfn)).unwrap().expect("every page is in it") {
                Content::Zero => prop_assert!(expected == [0; PAGE]),
                Content::Data(bytes) => prop_assert!(bytes == expected),
            }
        }
    }
}

/// So many inputs of a kind, each to one vault: what is written for it is written once.
fn for_any<S: Strategy>(inputs: S, each: impl Fn(&Vault, S::Value) -> Result<(), TestCaseError>) {
    let vault = Vault::new();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(400));
    runner.run(&inputs, |input| each(&vault, input)).unwrap();
}

/// Wherever bits are flipped, whichever, be it in a padding.
#[test]
fn any_changed_byte_is_noticed() {
    let whole = Vault::new().bytes(0).len();
    for_any((0..whole, 1..=255u8), |vault, (at, mask)| {
        let sealed = vault.bytes(1);
        let mut bytes = sealed.clone();
        bytes[at] ^= mask;
        prop_assert!(vault.refuses_second(&bytes, &sealed));
        Ok(())
    });
}

/// Whatever stands where, also whole pieces of other sealed files of the same session.
#[test]
fn pieces_of_sealed_files_make_no_other() {
    for_any(
        (0..11usize, 0..11usize, 1..4usize, any::<bool>()),
        |vault, (from, to, pages, other)| {
            let (next, before) = (vault.bytes(0), vault.bytes(1));
            let piece = if other { &next } else { &before };
            let mut bytes = before.clone();
            bytes[to * PAGE..][..pages * PAGE].copy_from_slice(&piece[from * PAGE..][..pages * PAGE]);
            prop_assume!(bytes != before);
            prop_assert!(vault.refuses_second(&bytes, &before));
            Ok(())
        },
    );
}

/// Every class of bytes has its name.
#[test]
fn each_part_is_named() {
    let vault = Vault::new();
    let whole = vault.bytes(0);
    let index = whole.len() - BLOCK_BYTES;
    let data = |page: usize| BLOCK_BYTES + page * PAGE;
    for (at, expected) in [
        (0, "its header"),
        (7, "format version"),
        (8, "another migration"),
        (24, "another VM"),
        (40, "another kind"),
        (41, "another place in the order"),
        (45, "its header"),
        (48, "its header"),
        (80, "its header"),
        (96, "its header"),
        (200, "its header"),
        (BLOCK_BYTES - 1, "its header"),
        (data(0), "its pages 0 to 2"),
        (data(2) + 4095, "its pages 0 to 2"),
        (data(3), "its pages 4 to 9"),
        (index, "its index"),
        (whole.len() - 1, "its index"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let text = vault.refused(&bytes);
        assert!(text.contains(expected), "byte {at}: {text}");
    }
    for length in [0, 100, BLOCK_BYTES, data(3), index, whole.len() - 1] {
        vault.refused(&whole[..length]);
    }
    let longer = vault.refused(&[&whole[..], &[0]].concat());
    assert!(longer.contains("its length"), "{longer}");
    vault.read_as(&whole).unwrap();
}

/// What the other side has sealed says what is wrong with it, not only that it does not open.
#[test]
fn what_belongs_elsewhere_is_named() {
    let vault = Vault::new();
    let whole = vault.bytes(0);
    let foreign = |directory: &SessionDirectory, kind, sequence, of: &str| {
        fs::create_dir_all(directory.path()).unwrap();
        fs::write(directory.segment(kind, sequence), &whole).unwrap();
        let error = SegmentReader::open(directory, kind, sequence).err().expect("refused");
        assert!(error.to_string().contains(&format!("another {of}")), "{error}");
    };
    foreign(&vault.directory, Kind::PbData, 0, "kind");
    foreign(&vault.directory, Kind::Static, 7, "place in the order");
    foreign(&vault.as_seen(vm(2), key(1)), Kind::Static, 0, "migration");
    let mut other = vm(1);
    other.id = VmId(2);
    foreign(&vault.as_seen(other, key(1)), Kind::Static, 0, "VM");
    let mut larger = vm(1);
    larger.regions[0].pages = Pages(2000);
    foreign(&vault.as_seen(larger, key(1)), Kind::Static, 0, "memory layout");
}

/// The name in the clear is put right by whoever moves a file: then its seal does not hold.
#[test]
fn a_file_under_another_s_name_does_not_open() {
    let vault = Vault::new();
    let [first, second] = [0, 1].map(|sequence| vault.bytes(sequence));
    // The second segment in the place of the first.
    let mut moved = second.clone();
    moved[41..45].copy_from_slice(&first[41..45]);
    assert!(vault.refused(&moved).contains("its header"));
    // That of a session before, recorded, with the same pages and the same names but another secret.
    let before = vault.as_seen(vm(1), key(2));
    write(&before, &vault.source, 0, &[run(0, 40)]);
    assert!(vault.refused(&vault.bytes(0)).contains("its header"));
    vault.read_as(&first).unwrap();
}

#[test]
fn nothing_plain_is_taken_for_sealed_nor_the_other_way_round() {
    let vault = Vault::new();
    let sealed = vault.bytes(0);
    let plain = vault.as_seen(vm(1), None);
    let error = SegmentReader::open(&plain, Kind::Static, 0).err().expect("sealed");
    assert!(matches!(error, StorageError::NoKey(_)), "{error}");
    write(&plain, &vault.source, 0, &[run(0, 40)]);
    let error = SegmentReader::open(&vault.directory, Kind::Static, 0)
        .err()
        .expect("plain");
    assert!(matches!(error, StorageError::NotSealed(_)), "{error}");
    // With the version of the other.
    let mut bytes = vault.bytes(0);
    bytes[7] = 2;
    vault.refused(&bytes);
    let mut bytes = sealed;
    bytes[7] = 1;
    fs::write(vault.path(0), &bytes).unwrap();
    let error = SegmentReader::open(&plain, Kind::Static, 0).err().expect("sealed");
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
}

/// Equal pages at other places, and the same pages written again, look different, and nothing like what they are.
#[test]
fn sealed_bytes_tell_nothing() {
    let root = tempfile::tempdir().unwrap();
    let directory = SessionDirectory::create(root.path(), vm(1), key(1)).unwrap();
    let source = memory(GUEST_PAGES * PAGE_SIZE);
    let text = *b"the owner's secret, again and again, word for word, in each page";
    for at in (0..64 * PAGE_SIZE).step_by(text.len()) {
        source.write(at, &text).unwrap();
    }
    let mut seen = std::collections::HashSet::new();
    let mut blocks = 0;
    for _ in 0..3 {
        let runs: Vec<Run> = (0..64).map(|gfn| run(gfn, 1)).collect();
        let written = write(&directory, &source, 0, &runs);
        let bytes = fs::read(written.path).unwrap();
        assert!(
            !bytes
                .windows(8)
                .any(|window| text.windows(8).any(|part| part == window))
        );
        // A block of the cipher that came twice would show that a nonce did.
        let sealed = &bytes[BLOCK_BYTES..];
        blocks += sealed.len() / 16;
        seen.extend(sealed.chunks_exact(16).map(<[u8; 16]>::try_from).map(Result::unwrap));
    }
    assert_eq!(seen.len(), blocks);
}

#[test]
fn states_are_sealed_as_well() {
    let root = tempfile::tempdir().unwrap();
    let ours = SessionDirectory::create(root.path(), vm(1), key(1)).unwrap();
    ours.write_state(SourceState::GivenUp).unwrap();
    assert_eq!(ours.read_state().unwrap(), Some(SourceState::GivenUp));
    let path = ours.path().join(SourceState::FILE);
    let whole = fs::read(&path).unwrap();
    let says = |bytes: &[u8], directory: &SessionDirectory| {
        fs::write(&path, bytes).unwrap();
        directory
            .read_state::<SourceState>()
            .expect_err("not what was sealed")
            .to_string()
    };
    for at in [0, 7, 9, 30, 40, 43, 46, 50, 90, 100, BLOCK_BYTES - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        says(&bytes, &ours);
    }
    assert!(says(&whole[..100], &ours).contains("its length"));
    // Nobody can say in the clear, or with a secret of another session, that the VM was given up.
    let forger = SessionDirectory::open(root.path(), vm(1), None);
    forger.write_state(SourceState::GivenUp).unwrap();
    assert!(says(&fs::read(&path).unwrap(), &ours).contains("not sealed"));
    let forger = SessionDirectory::open(root.path(), vm(1), key(2));
    forger.write_state(SourceState::GivenUp).unwrap();
    assert!(says(&fs::read(&path).unwrap(), &ours).contains("its content"));
    // What one side said is not what the other says.
    fs::write(ours.path().join(TargetState::FILE), &whole).unwrap();
    assert!(ours.read_state::<TargetState>().is_err());
    assert!(says(&whole, &SessionDirectory::open(root.path(), vm(1), None)).contains("is sealed"));
}

/// What leads elsewhere, or never answers, is neither read nor written through.
#[test]
fn links_and_pipes_are_no_files() {
    let vault = Vault::new();
    let outside = vault.root.path().join("precious");
    fs::write(&outside, "precious").unwrap();
    for name in [
        vault.directory.temporary(Kind::Static, 0),
        vault.directory.path().join("source.unfinished"),
    ] {
        std::os::unix::fs::symlink(&outside, name).unwrap();
    }
    vault.write();
    vault.directory.write_state(SourceState::GivenUp).unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"precious");

    let moved = vault.root.path().join("moved");
    fs::rename(vault.path(0), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, vault.path(0)).unwrap();
    let no_file = |vault: &Vault| {
        let error = SegmentReader::open(&vault.directory, Kind::Static, 0)
            .err()
            .expect("no file");
        assert!(matches!(error, StorageError::NoFile(_)), "{error}");
    };
    no_file(&vault);
    fs::remove_file(vault.path(0)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        vault.path(0),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    no_file(&vault);
}

#[test]
fn a_key_shows_nothing_of_itself() {
    assert_eq!(format!("{:?}", SealKey::new([0x5a; 32])), "SealKey(..)");
}
