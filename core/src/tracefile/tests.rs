extern crate std;

use super::*;
use crate::message::{Region, Regions};
use crate::pageset::Run;
use crate::units::{Gfn, Nanos, Pages};
use proptest::prelude::*;
use std::vec::Vec;
use std::{format, string::ToString, vec};

mod bytes;

/// Two regions with a hole between them, 300 vCPUs.
fn head() -> Head {
    let regions = [(0, 0x000a_0000), (0x0010_0000, 0x0100_0000)];
    let regions = regions.map(|(first, pages)| Region {
        first: Gfn(first),
        pages: Pages(pages),
    });
    Head {
        source: Source::RingPush,
        regions: regions.into_iter().collect(),
        used: Pages(5),
        vcpus: 300,
        window: Nanos(7),
        started_unix_ns: u64::MAX,
        guest: heapless::String::try_from("dunlin (Calidris alpina) — №1").expect("a short name"),
    }
}

fn times() -> impl Strategy<Value = u64> {
    prop_oneof![0..100_u64, 0..100_000_u64, 0..1_u64 << 50]
}

fn vcpus() -> impl Strategy<Value = u32> {
    prop_oneof![0..4_u32, 250..300_u32, Just(VCPU_UNKNOWN)]
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![0..300_u64, 0..0x0110_0000_u64, Just(0x010f_ffff)]
}

/// Items whose times are differences, to be added up.
fn differences() -> impl Strategy<Value = Item> {
    let at = || times().prop_map(Nanos);
    prop_oneof![
        8 => (at(), vcpus(), pages()).prop_map(|(at, vcpu, gfn)| Item::Write { at, vcpu, gfn: Gfn(gfn) }),
        4 => (pages(), pages()).prop_map(|(first, count)| Item::Dirty {
            run: Run::new(Gfn(first), Pages(count.min(0x0110_0000 - first).max(1)))
        }),
        1 => (at(), vcpus()).prop_map(|(at, vcpu)| Item::WindowEnd { at, vcpu }),
        1 => (at(), any::<u64>()).prop_map(|(at, events)| Item::Lost { at, events }),
        1 => (at(), vcpus(), any::<u64>()).prop_map(|(at, vcpu, steps)| Item::Steps { at, vcpu, steps }),
    ]
}

/// Items of a trace, with or without its end.
pub(super) fn traces() -> impl Strategy<Value = Vec<Item>> {
    (prop::collection::vec(differences(), 0..400), any::<bool>()).prop_map(|(mut items, is_complete)| {
        let mut now = 0_u64;
        for item in &mut items {
            if let Item::Write { at, .. }
            | Item::WindowEnd { at, .. }
            | Item::Lost { at, .. }
            | Item::Steps { at, .. } = item
            {
                now += at.0;
                *at = Nanos(now);
            }
        }
        if is_complete {
            items.push(Item::End {
                at: Nanos(now),
                overhead: Nanos(3),
            });
        }
        items
    })
}

/// The whole file, and how many bytes each frame has, the start counted to the head.
fn encoded(head: &Head, items: &[Item], buffer: usize) -> (Vec<u8>, Vec<usize>) {
    let mut encoder = Encoder::new(vec![0; buffer], head).expect("a good head");
    let (mut file, mut frames) = (Vec::new(), Vec::new());
    let mut take = |encoder: &mut Encoder<Vec<u8>>| {
        let frame = encoder.frame();
        file.extend_from_slice(frame);
        frames.push(frame.len());
    };
    take(&mut encoder);
    for item in items {
        if encoder.push(item) == Err(EncodeError::Full) {
            take(&mut encoder);
            encoder.push(item).expect("room in a new frame");
        }
    }
    take(&mut encoder);
    (file, frames)
}

/// Head and frames of a file without damage.
fn split(file: &[u8]) -> (Head, Vec<(FrameHeader, &[u8])>) {
    let (start, mut rest) = file.split_first_chunk().expect("a start");
    check_start(start).expect("a start");
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk() {
        let header = FrameHeader::decode(header).expect("a header");
        let (payload, after) = after.split_at(header.bytes as usize);
        frames.push((header, payload));
        rest = after;
    }
    assert_eq!(rest.len(), 0, "frames are whole");
    let (header, payload) = frames.remove(0);
    (Head::decode(&header, payload).expect("a head"), frames)
}

fn items(head: &Head, frame: &(FrameHeader, &[u8])) -> Result<Vec<Item>, TracefileError> {
    let items = Items::new(head, &frame.0, frame.1)?;
    Ok(items.collect::<Result<_, _>>()?)
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(trace in traces(), buffer in prop::sample::select(vec![1024, 1500, 1 << 20])) {
        let (file, _) = encoded(&head(), &trace, buffer);
        let (found, frames) = split(&file);
        prop_assert_eq!(&found, &head());
        let mut decoded = Vec::new();
        let mut last: Option<FrameHeader> = None;
        for frame in &frames {
            prop_assert!(HEADER_BYTES + frame.1.len() <= FRAME_BYTES_MAX);
            if let Some(last) = &last {
                prop_assert_eq!(frame.0.follows(last), Ok(()));
            }
            last = Some(frame.0);
            // A decoder of its own: no frame needs another.
            decoded.extend(items(&found, frame).unwrap());
        }
        prop_assert_eq!(decoded, trace);
    }

    #[test]
    fn one_damaged_bit_of_a_frame_is_found(trace in traces(), byte: prop::sample::Index, bit in 0..8_u32) {
        let (mut file, frames) = encoded(&head(), &trace, 1024);
        let byte = byte.index(file.len());
        file[byte] ^= 1 << bit;
        let mut begin = 0;
        for frame in frames {
            let bytes = &file[begin..begin + frame];
            let is_hit = (begin..begin + frame).contains(&byte);
            let bytes = match begin {
                0 if byte < START_BYTES => {
                    prop_assert!(check_start(bytes.first_chunk().unwrap()).is_err());
                    continue;
                }
                0 => &bytes[START_BYTES..],
                _ => bytes,
            };
            if !bytes.is_empty() {
                let (header, payload) = bytes.split_first_chunk().unwrap();
                let whole = FrameHeader::decode(header).and_then(|header| header.check_payload(payload));
                prop_assert_eq!(whole.is_err(), is_hit);
            }
            begin += frame;
        }
    }

    #[test]
    fn garbage_behind_a_good_checksum_is_never_a_panic(
        payload in prop::collection::vec(any::<u8>(), 1..300), items in 1..300_u32, from: u64, length in times(),
    ) {
        let header = FrameHeader {
            kind: FrameKind::Items,
            sequence: 1,
            bytes: payload.len() as u32,
            items,
            checksum: frame::checksum(&payload),
            from: Nanos(from),
            to: Nanos(from.saturating_add(length)),
        };
        let head = head();
        let mut last = Nanos(from);
        for item in Items::new(&head, &header, &payload).unwrap() {
            let Ok(item) = item else { break };
            prop_assert_eq!(head.check_item(&item), Ok(()));
            prop_assert!(item.at().is_none_or(|at| at >= last));
            last = item.at().unwrap_or(last);
        }
        let head_header = FrameHeader { kind: FrameKind::Head, sequence: 0, ..header };
        if let Ok(head) = Head::decode(&head_header, &payload) {
            prop_assert_eq!(head.check(), Ok(()));
        }
    }

    #[test]
    fn a_lost_place_is_found_again(before in prop::collection::vec(any::<u8>(), 0..200), trace in traces()) {
        let (file, frames) = encoded(&head(), &trace, 1024);
        let frame = &file[frames[0]..];
        let bytes = [&before[..], frame].concat();
        prop_assert_eq!(find_frame(&bytes), (!frame.is_empty()).then_some(before.len()));
    }

    #[test]
    fn zigzag_numbers_lead_back(difference: u64) {
        prop_assert_eq!(layout::unzigzag(layout::zigzag(difference)), difference);
    }
}

#[test]
fn small_differences_are_small_numbers() {
    for (difference, number) in [(0, 0), (-1, 1), (1, 2), (-64, 127), (127, 254)] {
        assert_eq!(layout::zigzag(difference as u64), number);
    }
    for (number, code) in [
        (0, 0),
        (1, 1),
        (255, 1),
        (256, 2),
        (1 << 40, 6),
        (1 << 48, 7),
        (u64::MAX, 7),
    ] {
        assert_eq!(layout::length_code(number), code, "{number}");
    }
}

/// Bytes a write, of an hour's pace at 50 000 a second.
fn bytes_per_write(vcpus: u32, span: u64, next: impl Fn(u64, u32) -> u64) -> u64 {
    const WRITES: u64 = 100_000;
    let head = Head {
        regions: [Region {
            first: Gfn(0),
            pages: Pages(span),
        }]
        .into_iter()
        .collect(),
        vcpus,
        ..head()
    };
    let (mut now, mut random) = (0, 1_u64);
    let mut step = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let writes = (0..WRITES).map(|_| {
        now += step() % 40_000;
        let vcpu = (step() % u64::from(vcpus)) as u32;
        Item::Write {
            at: Nanos(now),
            vcpu,
            gfn: Gfn(next(step(), vcpu) % span),
        }
    });
    let (file, _) = encoded(&head, &writes.collect::<Vec<_>>(), 1 << 16);
    (file.len() as u64 * 100).div_ceil(WRITES)
}

#[test]
fn an_hour_at_50_000_writes_a_second_is_small() {
    // In hundredths of a byte. The worst there is: no page has to do with the last, of 1 GiB and of 1 TiB.
    let small = bytes_per_write(1, 1 << 18, |random, _| random);
    let many = bytes_per_write(4, 1 << 18, |random, _| random);
    let large = bytes_per_write(64, 1 << 28, |random, _| random);
    assert!((500..=605).contains(&small), "{small}");
    assert!(many <= 680, "{many}");
    assert!(large <= 810, "{large}");
    // Those 1.5 GB are below 2 GB all the same.
    assert!(large * 50_000 * 3600 / 100 < 2_000_000_000);
}

#[test]
fn neighbours_of_each_vcpu_are_smaller() {
    let counters = [const { core::cell::Cell::new(0) }; 4];
    let next = |_, vcpu: u32| {
        let counter = &counters[vcpu as usize];
        counter.set(counter.get() + 1);
        u64::from(vcpu) * 10_000 + counter.get()
    };
    let bytes = bytes_per_write(4, 1 << 18, next);
    assert!(bytes <= 480, "{bytes}");
}

#[test]
fn windows_take_two_bytes_a_run() {
    let runs = (0..40_000).map(|run| Item::Dirty {
        run: Run::new(Gfn(run * 9), Pages(1 + run % 3)),
    });
    let (file, _) = encoded(&head(), &runs.collect::<Vec<_>>(), 1 << 16);
    assert!(file.len() < 40_000 * 3, "{}", file.len());
}

#[test]
fn what_cannot_be_is_refused_and_leaves_the_trace_as_it_was() {
    let head = head();
    let write = |at, vcpu, gfn| Item::Write {
        at: Nanos(at),
        vcpu,
        gfn: Gfn(gfn),
    };
    let mut encoder = Encoder::new([0; 4096], &head).unwrap();
    encoder.push(&write(10, 0, 1)).unwrap();
    let span = head.span();
    let page = |gfn, count| ItemError::Page {
        gfn: Gfn(gfn),
        count: Pages(count),
        span,
    };
    let wrong = [
        (write(9, 0, 1), ItemError::Time { last: Nanos(10) }),
        (write(10, 300, 1), ItemError::Vcpu { vcpu: 300, vcpus: 300 }),
        (write(10, 0, span.0), page(span.0, 1)),
        (write(10, 0, u64::MAX), page(u64::MAX, 1)),
        (
            Item::Dirty {
                run: Run::new(Gfn(5), Pages(0)),
            },
            ItemError::EmptyRun,
        ),
        (
            Item::Dirty {
                run: Run::new(Gfn(5), span),
            },
            page(5, span.0),
        ),
        (
            Item::Dirty {
                run: Run::new(Gfn(5), Pages(u64::MAX)),
            },
            page(5, u64::MAX),
        ),
        (
            Item::Steps {
                at: Nanos(10),
                vcpu: 1000,
                steps: 1,
            },
            ItemError::Vcpu { vcpu: 1000, vcpus: 300 },
        ),
    ];
    for (item, fault) in wrong {
        assert_eq!(encoder.push(&item), Err(EncodeError::Item(fault)), "{item:?}");
        assert!(!fault.to_string().is_empty());
    }
    let end = Item::End {
        at: Nanos(10),
        overhead: Nanos(1),
    };
    encoder.push(&end).unwrap();
    assert_eq!(encoder.push(&end), Err(EncodeError::Item(ItemError::AfterEnd)));
    let (_, frames) = split(encoder.frame());
    assert_eq!(items(&head, &frames[0]), Ok(vec![write(10, 0, 1), end]));
    assert!(encoder.frame().is_empty());
}

#[test]
fn heads_that_cannot_be_are_named() {
    let region = |first, pages| Region {
        first: Gfn(first),
        pages: Pages(pages),
    };
    let with = |regions: &[Region]| Head {
        regions: regions.iter().copied().collect(),
        ..head()
    };
    let used = Head {
        used: Pages(11),
        ..with(&[region(0, 10)])
    };
    let wrong = [
        (with(&[]), HeadError::NoRegions),
        (with(&[region(0, 0)]), HeadError::Region),
        (with(&[region(2, u64::MAX)]), HeadError::Region),
        (with(&[region(0, 10), region(9, 1)]), HeadError::Order),
        (with(&[region(5, 10), region(1, 1)]), HeadError::Order),
        (Head { vcpus: 0, ..head() }, HeadError::Vcpus(0)),
        (
            Head {
                vcpus: VCPUS_MAX + 1,
                ..head()
            },
            HeadError::Vcpus(1025),
        ),
        (
            used,
            HeadError::Used {
                used: Pages(11),
                total: Pages(10),
            },
        ),
    ];
    for (head, fault) in wrong {
        assert_eq!(Encoder::new([0; 4096], &head).err(), Some(EncodeError::Head(fault)));
        assert!(!fault.to_string().is_empty());
    }
    let most: Regions = (0..8)
        .map(|number| region(u64::MAX / 9 * number, u64::MAX / 9))
        .collect();
    let large = Head {
        regions: most,
        vcpus: VCPUS_MAX,
        guest: "g".repeat(64).as_str().try_into().unwrap(),
        ..head()
    };
    let (file, _) = encoded(&large, &[], 1024);
    assert_eq!(split(&file).0, large);
    assert!(matches!(
        Encoder::new([0; 1023], &large),
        Err(EncodeError::Buffer { .. })
    ));
}

#[test]
fn frames_out_of_place_are_named() {
    let header = |sequence, from, to| FrameHeader {
        kind: FrameKind::Items,
        sequence,
        bytes: 1,
        items: 1,
        checksum: 0,
        from: Nanos(from),
        to: Nanos(to),
    };
    let last = header(4, 10, 20);
    assert_eq!(header(5, 20, 20).follows(&last), Ok(()));
    let gap = TracefileError::Sequence { expected: 5, found: 7 };
    assert_eq!(header(7, 20, 20).follows(&last), Err(gap));
    let falls = TracefileError::TimeFalls {
        last: Nanos(20),
        found: Nanos(19),
    };
    assert_eq!(header(5, 19, 20).follows(&last), Err(falls));
    let head = FrameHeader {
        kind: FrameKind::Head,
        ..header(5, 20, 20)
    };
    assert_eq!(head.follows(&last), Err(TracefileError::HeadPlace));
    assert_eq!(
        Items::new(&super::tests::head(), &head, &[0]).err(),
        Some(TracefileError::HeadPlace)
    );
}
