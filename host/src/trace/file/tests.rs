use super::*;
use dunlin_core::message::Region;
use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{
    EncodeError, FrameHeader, HEADER_BYTES, Head, Item, ItemError, START_BYTES, Source, TracefileError, VCPU_UNKNOWN,
};
use dunlin_core::units::{Gfn, Nanos, Pages};
use proptest::prelude::*;
use std::io::{self, Read, Write};
use std::path::Path;

fn head() -> Head {
    let memory = Region {
        first: Gfn(0),
        pages: Pages(1000),
    };
    Head {
        source: Source::RingPush,
        regions: [memory].into_iter().collect(),
        used: Pages(1000),
        vcpus: 4,
        window: Nanos::ZERO,
        started_unix_ns: 17,
        guest: heapless::String::new(),
    }
}

/// Windows of half a second, each of five writes and a run: a frame each if [`encoded`].
fn trace(windows: u64) -> Vec<Item> {
    let window = |number: u64| {
        let at = move |millis: u64| Nanos::from_millis(number * 500 + millis);
        let writes = (0..5).map(move |write| Item::Write {
            at: at(write),
            vcpu: (write % 4) as u32,
            gfn: Gfn((number * 31 + write) % 1000),
        });
        let run = Item::Dirty {
            run: Run::new(Gfn(number % 900), Pages(7)),
        };
        let end = Item::WindowEnd {
            at: at(450),
            vcpu: VCPU_UNKNOWN,
        };
        writes.chain([run, end])
    };
    (0..windows).flat_map(window).collect()
}

const END: Item = Item::End {
    at: Nanos(100_000_000_000),
    overhead: Nanos(5),
};

fn encoded(items: &[Item]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = TraceWriter::new(&mut file, "memory", &head()).unwrap();
    for item in items {
        writer.push(item).unwrap();
        if let Item::WindowEnd { .. } = item {
            writer.flush().unwrap();
        }
    }
    let written = writer.finish().unwrap();
    assert_eq!((written.items, written.bytes), (items.len() as u64, file.len() as u64));
    file
}

/// Bytes of the start with the head, and of every frame.
fn frames(file: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut begin = 0;
    let mut at = START_BYTES;
    while at < file.len() {
        let header = FrameHeader::decode(file[at..].first_chunk().unwrap()).unwrap();
        at += HEADER_BYTES + header.bytes as usize;
        found.push(&file[begin..at]);
        begin = at;
    }
    found
}

/// Good items, errors, and the reader at its end.
fn read(file: &[u8]) -> (Vec<Item>, Vec<TraceError>, TraceReader<&[u8]>) {
    let mut reader = TraceReader::new(file, "memory").unwrap();
    let (mut items, mut errors) = (Vec::new(), Vec::new());
    for item in reader.by_ref() {
        match item {
            Ok(item) => items.push(item),
            Err(error) => errors.push(error),
        }
    }
    assert!(reader.next().is_none(), "what has ended stays so");
    (items, errors, reader)
}

fn fault(errors: &[TraceError]) -> TracefileError {
    match errors {
        [TraceError::Damaged { fault, .. }] => *fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_lead_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.dtrace");
    let items = [trace(4), vec![END]].concat();
    let mut writer = TraceWriter::create(&path, &head()).unwrap();
    for item in &items {
        writer.push(item).unwrap();
    }
    let written = writer.finish().unwrap();
    assert!(written.is_complete);
    assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
    let mut reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.head(), &head());
    assert_eq!(reader.ending(), None);
    let found: Vec<Item> = reader.by_ref().collect::<Result<_, _>>().unwrap();
    assert_eq!(found, items);
    let ending = reader.ending().unwrap();
    assert_eq!(ending.to_string(), "complete, 100.000 s");
    assert_eq!(reader.damage(), Damage::default());
}

#[test]
fn what_is_a_second_old_can_be_read_while_recording_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.dtrace");
    let mut writer = TraceWriter::create(&path, &head()).unwrap();
    let count = |path: &Path| TraceReader::open(path).unwrap().filter(Result::is_ok).count();
    assert_eq!(count(&path), 0);
    let mut push = |millis| {
        let item = Item::Write {
            at: Nanos::from_millis(millis),
            vcpu: 0,
            gfn: Gfn(1),
        };
        writer.push(&item).unwrap();
        count(&path)
    };
    assert_eq!([0, 400, 800, 1200, 1600, 2000].map(&mut push), [0, 0, 0, 3, 3, 5]);
    writer.flush().unwrap();
    assert_eq!(count(&path), 6);
    writer.push(&END).unwrap();
    drop(writer);
    assert_eq!(count(&path), 7, "what is dropped is written");
}

#[test]
fn a_file_that_is_cut_anywhere_is_read_up_to_its_last_whole_frame() {
    let items = [trace(3), vec![END]].concat();
    let file = encoded(&items);
    let ends: Vec<usize> = frames(&file)
        .iter()
        .scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        })
        .collect();
    assert_eq!(ends.len(), 5);
    for length in 0..file.len() {
        let cut = &file[..length];
        if length < ends[0] {
            let error = TraceReader::new(cut, "memory").unwrap_err();
            assert!(matches!(error, TraceError::NoHead { .. }), "{length}: {error}");
            continue;
        }
        let (found, errors, reader) = read(cut);
        let whole = ends.iter().filter(|end| **end <= length).count();
        assert_eq!(found, items[..7 * (whole - 1)]);
        assert!(errors.is_empty(), "{length}: {errors:?}");
        let after = found.last().map_or(Nanos::ZERO, |item| item.at().unwrap());
        let bytes = (length - ends[whole - 1]) as u64;
        assert_eq!(reader.ending(), Some(Ending::CutOff { after, bytes }));
    }
    let (.., reader) = read(&file[..file.len() - 1]);
    assert_eq!(reader.ending().unwrap().to_string(), "cut off after 1.450 s");
}

#[test]
fn any_damaged_byte_costs_one_frame_and_is_told() {
    let items = [trace(4), vec![END]].concat();
    let file = encoded(&items);
    let head_ends = frames(&file)[0].len();
    for byte in 0..file.len() {
        let mut damaged = file.clone();
        damaged[byte] ^= 0x10;
        if byte < head_ends {
            let error = TraceReader::new(&damaged[..], "memory").unwrap_err();
            let named = matches!(error, TraceError::Unreadable { .. } | TraceError::NoHead { .. });
            assert!(named, "{byte}: {error}");
            continue;
        }
        let (found, errors, reader) = read(&damaged);
        fault(&errors);
        let lost = if byte >= file.len() - frames(&file)[5].len() {
            1
        } else {
            7
        };
        assert_eq!(found.len(), items.len() - lost, "{byte}: {errors:?}");
        assert!(found.iter().all(|item| items.contains(item)));
        assert_eq!(reader.damage().parts, 1);
        assert_eq!(
            matches!(reader.ending(), Some(Ending::Complete { .. })),
            lost == 7,
            "{byte}"
        );
    }
}

#[test]
fn frames_that_are_missing_repeated_or_swapped_are_told() {
    let items = trace(4);
    let file = encoded(&items);
    let all = frames(&file);
    let missing = [all[0], all[1], all[3], all[4]].concat();
    let (found, errors, _) = read(&missing);
    assert_eq!(fault(&errors), TracefileError::Sequence { expected: 2, found: 3 });
    assert_eq!(found, [&items[..7], &items[14..]].concat());

    let repeated = [all[0], all[1], all[1], all[2]].concat();
    let (found, errors, _) = read(&repeated);
    assert!(matches!(fault(&errors), TracefileError::TimeFalls { .. }));
    assert_eq!(found, items[..14]);

    let swapped = [all[0], all[2], all[1], all[3]].concat();
    let (found, errors, _) = read(&swapped);
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert_eq!(found, items[7..21]);

    let two_heads = [all[0], all[1], &all[0][START_BYTES..], all[2]].concat();
    let (found, errors, _) = read(&two_heads);
    assert_eq!(fault(&errors), TracefileError::HeadPlace);
    assert_eq!(found, items[..14]);

    let with_end = encoded(
        &[
            items[..7].to_vec(),
            vec![Item::End {
                at: Nanos::from_millis(500),
                overhead: Nanos(0),
            }],
        ]
        .concat(),
    );
    let joined = [&with_end[..], all[3]].concat();
    let (found, errors, reader) = read(&joined);
    assert_eq!(found.len(), 8);
    assert_eq!(fault(&errors), TracefileError::Item(ItemError::AfterEnd));
    assert!(matches!(reader.ending(), Some(Ending::Complete { .. })));
}

#[test]
fn garbage_and_zeros_between_frames_cost_nothing_else() {
    let items = trace(3);
    let file = encoded(&items);
    let all = frames(&file);
    for (name, between) in [
        ("zeros", vec![0; 5000]),
        ("text", b"DTFRtext".repeat(100_000)),
        ("a byte", vec![b'D']),
    ] {
        let damaged = [all[0], all[1], &between, all[2], all[3]].concat();
        let (found, errors, reader) = read(&damaged);
        assert_eq!(found, items, "{name}");
        assert_eq!(errors.len(), 1, "{name}");
        assert_eq!(reader.damage().bytes, between.len() as u64, "{name}");
    }
    // A crash may leave zeros where data was to come; anything else at the end is damage.
    for zeros in [10, 44, 100_000] {
        let crashed = [&file[..], &vec![0; zeros]].concat();
        let (found, errors, reader) = read(&crashed);
        assert_eq!((found, errors.len()), (items.clone(), 0));
        let ending = Ending::CutOff {
            after: Nanos::from_millis(1450),
            bytes: zeros as u64,
        };
        assert_eq!(reader.ending(), Some(ending));
    }
    for tail in [&b"tail"[..], &[7; 1000]] {
        let (found, errors, _) = read(&[&file[..], tail].concat());
        assert_eq!((found, errors.len()), (items.clone(), 1));
    }
}

#[test]
fn a_frame_that_was_half_written_does_not_take_the_next_with_it() {
    let items = trace(3);
    let file = encoded(&items);
    let all = frames(&file);
    let half = [all[0], all[1], &all[2][..all[2].len() - 3], all[3]].concat();
    let (found, errors, _) = read(&half);
    assert_eq!(fault(&errors), TracefileError::PayloadChecksum);
    assert_eq!(found, [&items[..7], &items[14..]].concat());
}

#[test]
fn what_is_no_trace_is_named() {
    for (bytes, words) in [
        (&b""[..], "ends within its head"),
        (b"at_ns,gfn\n1,2\n", "no .dtrace file"),
        (&[0; 100], "no .dtrace file"),
    ] {
        let error = TraceReader::new(bytes, "some/file").unwrap_err().to_string();
        assert!(error.starts_with("some/file") && error.contains(words), "{error}");
    }
    let error = TraceReader::open(Path::new("/nonexistent/trace")).unwrap_err();
    assert_eq!(error.to_string(), "cannot open /nonexistent/trace");
    let error = TraceWriter::create(Path::new("/nonexistent/trace"), &head()).unwrap_err();
    assert_eq!(error.to_string(), "cannot make /nonexistent/trace");
}

#[test]
fn items_that_cannot_be_are_refused_with_the_name_of_the_file() {
    let mut writer = TraceWriter::new(io::sink(), "some/file", &head()).unwrap();
    let item = |at, gfn| Item::Write {
        at: Nanos(at),
        vcpu: 0,
        gfn: Gfn(gfn),
    };
    writer.push(&item(5, 1)).unwrap();
    let error = writer.push(&item(4, 1)).unwrap_err();
    assert!(error.to_string().starts_with("some/file: "), "{error}");
    let refused = |error| {
        matches!(
            error,
            TraceError::Refused {
                fault: EncodeError::Item(_),
                ..
            }
        )
    };
    assert!(refused(error));
    assert!(refused(writer.push(&item(5, 1000)).unwrap_err()));
    assert_eq!(writer.written().items, 1);
    let nobody = Head { vcpus: 0, ..head() };
    assert!(TraceWriter::new(io::sink(), "x", &nobody).is_err());
}

/// Gives a few bytes at a time and then fails.
struct Failing<'a>(&'a [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.split_at_checked(self.0.len().min(3)) {
            Some((some, rest)) if !some.is_empty() => {
                self.0 = rest;
                buffer[..some.len()].copy_from_slice(some);
                Ok(some.len())
            }
            _ => Err(io::Error::from_raw_os_error(5)),
        }
    }
}

#[test]
fn a_disk_that_fails_ends_the_trace_with_its_reason() {
    let file = encoded(&trace(2));
    let mut reader = TraceReader::new(Failing(&file), "memory").unwrap();
    let good = reader.by_ref().take_while(Result::is_ok).count();
    assert_eq!(good, 14);
    assert!(reader.next().is_none());
    assert_eq!(reader.ending(), None);
}

/// A place with room for some bytes.
struct Small(usize);

impl Write for Small {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = bytes.len().min(self.0);
        self.0 -= some;
        match some {
            0 => Err(io::ErrorKind::StorageFull.into()),
            some => Ok(some),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told() {
    let mut writer = TraceWriter::new(Small(500), "memory", &head()).unwrap();
    let failed = trace(100).iter().find_map(|item| writer.push(item).err());
    assert!(matches!(failed, Some(TraceError::Io { what: "write", .. })));
}

proptest! {
    #[test]
    fn damage_is_never_a_panic_and_never_makes_items_up(
        windows in 1..6_u64, cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let items = trace(windows);
        let mut file = encoded(&items);
        for (place, byte, what) in cuts {
            let place = place.index(file.len());
            match what {
                0 => file[place] = byte,
                1 => file.insert(place, byte),
                2 => drop(file.drain(place..(place + usize::from(byte)).min(file.len() - 1))),
                _ => file.truncate(place + 1),
            }
        }
        if let Ok(reader) = TraceReader::new(&file[..], "memory") {
            prop_assert_eq!(reader.head(), &head());
            let mut rest = items.iter();
            for item in reader.flatten() {
                prop_assert!(rest.any(|original| *original == item), "{:?} was not there, or not there", item);
            }
        }
    }
}
