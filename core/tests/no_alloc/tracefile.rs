use crate::{Numbers, format};
use dunlin_core::message::Region;
use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{
    EncodeError, Encoder, FrameHeader, HEADER_BYTES, Head, HeadError, Item, ItemError, Items, START_BYTES, Source,
    TracefileError, VCPU_UNKNOWN, check_start, find_frame,
};
use dunlin_core::units::{Gfn, Nanos, Pages};
use std::hint::black_box;

pub(crate) fn drive(_scratch: &mut [u64]) {
    let memory = Region {
        first: Gfn(0),
        pages: Pages(1 << 20),
    };
    let head = Head {
        source: Source::RingPush,
        regions: [memory].into_iter().collect(),
        used: Pages(1),
        vcpus: 4,
        window: Nanos(0),
        started_unix_ns: 0,
        guest: heapless::String::new(),
    };
    format(head.source);
    let mut encoder = Encoder::new([0; 4096], &head).expect("a good head");
    let length = check(&head, encoder.frame(), true);
    assert_eq!(length, 0);
    let (mut numbers, mut decoded) = (Numbers(1), 0);
    for number in 0..10_000 {
        let item = item(number, &mut numbers);
        if encoder.push(&item) == Err(EncodeError::Full) {
            decoded += check(&head, encoder.frame(), false);
            encoder.push(&item).expect("room in a new frame");
        }
    }
    format(encoder.push(&item(0, &mut numbers)).expect_err("it is too late"));
    decoded += check(&head, encoder.frame(), false);
    assert_eq!(decoded, 10_000);
    garbage_is_refused();
    format(TracefileError::ForeignEndian);
    format(HeadError::NoRegions);
    format(ItemError::Count);
}

fn item(number: u64, numbers: &mut Numbers) -> Item {
    let (at, vcpu) = (Nanos(number * 1000), (number % 4) as u32);
    match number % 20 {
        17 => Item::Dirty {
            run: Run::new(Gfn(numbers.next() % 1000), Pages(3)),
        },
        18 => Item::WindowEnd { at, vcpu: VCPU_UNKNOWN },
        19 => Item::Steps {
            at,
            vcpu,
            steps: number,
        },
        _ => Item::Write {
            at,
            vcpu,
            gfn: Gfn(numbers.next() % (1 << 20)),
        },
    }
}

/// Decodes what the encoder handed out, and returns how many items are in it.
fn check(head: &Head, bytes: &[u8], is_start: bool) -> usize {
    let mut rest = bytes;
    if is_start {
        let (start, after) = bytes.split_first_chunk::<START_BYTES>().expect("a start");
        check_start(start).expect("a start");
        rest = after;
    }
    let (header, payload) = rest.split_first_chunk::<HEADER_BYTES>().expect("a header");
    let header = FrameHeader::decode(header).expect("a header");
    if is_start {
        assert_eq!(Head::decode(&header, payload).as_ref(), Ok(head));
        return 0;
    }
    let items = Items::new(head, &header, payload).expect("whole");
    items.inspect(|item| assert!(item.is_ok(), "an item")).count()
}

fn garbage_is_refused() {
    let mut numbers = Numbers(1);
    for _ in 0..1000 {
        let mut bytes = [0; 64];
        bytes.fill_with(|| numbers.next() as u8);
        let start = bytes.first_chunk::<START_BYTES>().expect("enough bytes");
        format(black_box(check_start(start)).expect_err("no start"));
        let header = bytes.first_chunk::<HEADER_BYTES>().expect("enough bytes");
        format(black_box(FrameHeader::decode(header)).expect_err("no header"));
        assert_eq!(find_frame(&bytes), None);
    }
}
