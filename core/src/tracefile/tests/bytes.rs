//! The format as it is documented, byte by byte: these bytes do not change without a new version.

use super::*;

fn small_head() -> Head {
    Head {
        source: Source::Ring,
        regions: [Region {
            first: Gfn(0),
            pages: Pages(1024),
        }]
        .into_iter()
        .collect(),
        used: Pages(300),
        vcpus: 2,
        window: Nanos(1_000_000),
        started_unix_ns: 0,
        guest: heapless::String::try_from("vm").expect("a short name"),
    }
}

fn payload(trace: &[Item]) -> Vec<u8> {
    let head = Head {
        vcpus: 1000,
        ..small_head()
    };
    let (file, _) = encoded(&head, trace, 4096);
    let (_, frames) = split(&file);
    frames[0].1.to_vec()
}

#[test]
fn the_start_is_as_documented() {
    let (file, _) = encoded(&small_head(), &[], 1024);
    assert_eq!(file[..8], [0x89, b'D', b'T', b'R', b'C', 0x0d, 0x0a, 0x1a]);
    assert_eq!(file[8..16], [4, 3, 2, 1, 1, 0, 0, 0]);
    assert_eq!(file[16..20], frame::checksum(&file[..16]).to_le_bytes());
}

#[test]
fn the_head_is_as_documented() {
    let (file, _) = encoded(&small_head(), &[], 1024);
    let (header, payload) = file[START_BYTES..].split_at(HEADER_BYTES);
    let expected = [
        b"\x0ekvm-dirty-ring".as_slice(),
        &[1, 0, 0x80, 8, 0xac, 2, 2, 0xc0, 0x84, 0x3d, 0, 2],
        b"vm",
    ]
    .concat();
    assert_eq!(payload, expected);
    assert_eq!(header[..4], *b"DTFR");
    assert_eq!(
        header[4..20],
        [1, 0, 0, 0, 0, 0, 0, 0, payload.len() as u8, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(header[20..24], frame::checksum(payload).to_le_bytes());
    assert_eq!(header[24..40], [0; 16]);
    assert_eq!(header[40..], frame::checksum(&header[..40]).to_le_bytes());
}

#[test]
fn items_are_as_documented() {
    let write = |at, vcpu, gfn| Item::Write {
        at: Nanos(at),
        vcpu,
        gfn: Gfn(gfn),
    };
    let cases: [(&[Item], &[u8]); 9] = [
        (&[write(0, 0, 0)], &[0]),
        (&[write(5, 0, 3)], &[0b0000_1001, 5, 6]),
        (&[write(0x1234, 7, 0)], &[0b0100_0010, 7, 0x34, 0x12]),
        (
            &[write(0, 255, 0), write(0, 256, 0)],
            &[0b0100_0000, 0xff, 0xff, 0, 0b0100_0000, 0xff, 0, 1],
        ),
        (
            &[write(0, VCPU_UNKNOWN, 200)],
            &[0b0101_0000, 0xff, 0xff, 0xff, 0x90, 1],
        ),
        // Page 9 of vCPU 0, page 1 of vCPU 1, and 8 before what vCPU 0, then what vCPU 65 with vCPU 1 had.
        (
            &[write(0, 0, 9), write(0, 1, 1), write(0, 0, 1), write(0, 65, 2)],
            &[0b1000, 18, 0b0100_1000, 1, 2, 0b0100_1000, 0, 15, 0b0100_1000, 65, 2],
        ),
        (
            &[
                Item::Dirty {
                    run: Run::new(Gfn(3), Pages(2)),
                },
                Item::Dirty {
                    run: Run::new(Gfn(6), Pages(300)),
                },
                Item::WindowEnd {
                    at: Nanos(9),
                    vcpu: VCPU_UNKNOWN,
                },
                Item::Dirty {
                    run: Run::new(Gfn(0), Pages(1)),
                },
            ],
            &[
                0b1000_1001,
                3,
                1,
                0b1001_0001,
                1,
                0x2b,
                1,
                0b1100_0001,
                9,
                0xff,
                0xff,
                0b1000_0000,
            ],
        ),
        (
            &[
                Item::Lost {
                    at: Nanos(1),
                    events: 2,
                },
                Item::Steps {
                    at: Nanos(1),
                    vcpu: 3,
                    steps: 4,
                },
            ],
            &[
                0b1100_1001,
                1,
                2,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0b1101_0000,
                3,
                0,
                4,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ],
        ),
        (
            &[Item::End {
                at: Nanos(1 << 48),
                overhead: Nanos(1),
            }],
            &[0b1101_1111, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ),
    ];
    for (trace, bytes) in cases {
        assert_eq!(payload(trace), bytes, "{trace:?}");
    }
}

fn with_start(change: impl FnOnce(&mut [u8; START_BYTES])) -> Result<(), TracefileError> {
    let mut start = frame::start();
    change(&mut start);
    check_start(&start)
}

fn reseal(start: &mut [u8; START_BYTES]) {
    let crc = frame::checksum(&start[..16]);
    start[16..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn files_of_others_are_named() {
    assert_eq!(with_start(|_| ()), Ok(()));
    assert_eq!(
        with_start(|start| *start = *b"round,duration_us,se"),
        Err(TracefileError::Magic)
    );
    // As a program on a big-endian machine that knows no better.
    let foreign = with_start(|start| {
        start[8..12].reverse();
        start[12..14].reverse();
        let crc = frame::checksum(&start[..16]);
        start[16..].copy_from_slice(&crc.to_be_bytes());
    });
    assert_eq!(foreign, Err(TracefileError::ForeignEndian));
    let future = with_start(|start| {
        start[12] = 2;
        reseal(start);
    });
    assert_eq!(future, Err(TracefileError::Version { found: 2 }));
    assert!(future.unwrap_err().to_string().contains("version 2"));
    let unix_ends = with_start(|start| {
        start.copy_within(6.., 5);
        start[19] = 0;
    });
    assert_eq!(unix_ends, Err(TracefileError::CopiedAsText));
    assert_eq!(with_start(|start| start[0] &= 0x7f), Err(TracefileError::CopiedAsText));
    assert_eq!(with_start(|start| start[14] = 1), Err(TracefileError::StartChecksum));
}

#[test]
fn headers_that_cannot_be_are_named() {
    let good = FrameHeader {
        kind: FrameKind::Items,
        sequence: 1,
        bytes: 10,
        items: 3,
        checksum: 0,
        from: Nanos(5),
        to: Nanos(6),
    };
    assert_eq!(FrameHeader::decode(&good.encode()), Ok(good));
    let field = |header: FrameHeader| match FrameHeader::decode(&header.encode()) {
        Err(TracefileError::Header { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(FrameHeader { bytes: 0, ..good }), "number of bytes");
    assert_eq!(
        field(FrameHeader {
            bytes: FRAME_BYTES_MAX as u32,
            ..good
        }),
        "number of bytes"
    );
    assert_eq!(field(FrameHeader { items: 0, ..good }), "number of items");
    assert_eq!(field(FrameHeader { items: 11, ..good }), "number of items");
    assert_eq!(field(FrameHeader { to: Nanos(4), ..good }), "time");
    let mut bytes = good.encode();
    bytes[4] = 9;
    let crc = frame::checksum(&bytes[..40]);
    bytes[40..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(
        FrameHeader::decode(&bytes),
        Err(TracefileError::Header {
            field: "kind",
            found: 9
        })
    );
}

#[test]
fn payloads_that_cannot_be_are_named() {
    let head = small_head();
    let decode = |payload: &[u8], items, to| {
        let header = FrameHeader {
            kind: FrameKind::Items,
            sequence: 1,
            bytes: payload.len() as u32,
            items,
            checksum: frame::checksum(payload),
            from: Nanos(u64::MAX - 10),
            to: Nanos(to),
        };
        let found: Result<Vec<_>, _> = Items::new(&head, &header, payload).unwrap().collect();
        found.map(|items| items.len())
    };
    let to = u64::MAX - 10;
    assert_eq!(decode(&[0, 0], 2, to), Ok(2));
    assert_eq!(decode(&[0, 0], 1, to), Err(ItemError::Count), "bytes left over");
    assert_eq!(decode(&[0], 2, to), Err(ItemError::Short));
    assert_eq!(decode(&[0], 1, to + 1), Err(ItemError::Count), "not up to its time");
    assert_eq!(decode(&[1], 1, to), Err(ItemError::Short));
    assert_eq!(decode(&[1, 11], 1, to), Err(ItemError::Time { last: Nanos(to) }));
    assert_eq!(decode(&[0xc7, 0], 1, to), Err(ItemError::Short));
    assert_eq!(decode(&[0xe0], 1, to), Err(ItemError::Tag(0xe0)));
    assert_eq!(decode(&[0x40, 2], 1, to), Err(ItemError::Vcpu { vcpu: 2, vcpus: 2 }));
    let outside = ItemError::Page {
        gfn: Gfn(1024),
        count: Pages(1),
        span: Pages(1024),
    };
    assert_eq!(decode(&[0b1_0000, 0, 8], 1, to), Err(outside));
    let end = [0xd8, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(decode(&end, 2, to), Err(ItemError::AfterEnd));
    let text = format!("{outside}; {}", ItemError::Count);
    assert!(text.contains("page 1024"), "{text}");
}
