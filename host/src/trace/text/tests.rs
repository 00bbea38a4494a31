use super::*;
use dunlin_core::message::Region;
use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{Head, Item, Source, VCPU_UNKNOWN};
use dunlin_core::units::{Gfn, Nanos, Pages};
use proptest::prelude::*;

const FORMATS: [TextFormat; 2] = [TextFormat::Csv, TextFormat::JsonLines];

fn heads() -> impl Strategy<Value = Head> {
    let regions = prop::collection::vec((1..1_000_u64, 1..1_000_000_u64), 1..8);
    let counts = (any::<u64>(), 1..1025_u32, any::<u64>(), any::<u64>());
    (prop::sample::select(&Source::ALL), regions, counts, ".{0,20}").prop_map(|(source, gaps, counts, name)| {
        let (used, vcpus, window, started_unix_ns) = counts;
        let mut end = 0;
        let region = |(gap, pages)| {
            let region = Region {
                first: Gfn(end + gap),
                pages: Pages(pages),
            };
            end = region.first.0 + pages;
            region
        };
        let mut head = Head {
            source,
            regions: gaps.into_iter().map(region).collect(),
            used: Pages(0),
            vcpus,
            window: Nanos(window),
            started_unix_ns,
            guest: heapless::String::new(),
        };
        head.used = Pages(used % (head.total().0 + 1));
        for character in name.chars() {
            let _ = head.guest.push(character);
        }
        head
    })
}

fn items(head: &Head) -> impl Strategy<Value = Vec<Item>> + use<> {
    let (span, vcpus) = (head.span().0, head.vcpus);
    let at = || prop_oneof![0..100_u64, 0..1_u64 << 40].prop_map(Nanos);
    let vcpu = move || prop_oneof![3 => 0..vcpus, 1 => Just(VCPU_UNKNOWN)];
    let item = prop_oneof![
        4 => (at(), vcpu(), 0..span).prop_map(|(at, vcpu, gfn)| Item::Write { at, vcpu, gfn: Gfn(gfn) }),
        2 => (0..span, 1..span).prop_map(move |(first, count)| Item::Dirty {
            run: Run::new(Gfn(first), Pages(count.min(span - first)))
        }),
        1 => (at(), vcpu()).prop_map(|(at, vcpu)| Item::WindowEnd { at, vcpu }),
        1 => (at(), any::<u64>()).prop_map(|(at, events)| Item::Lost { at, events }),
        1 => (at(), vcpu(), any::<u64>()).prop_map(|(at, vcpu, steps)| Item::Steps { at, vcpu, steps }),
    ];
    (prop::collection::vec(item, 0..40), any::<bool>(), any::<u64>()).prop_map(|(mut items, is_complete, overhead)| {
        let mut now = 0;
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
            let (at, overhead) = (Nanos(now), Nanos(overhead));
            items.push(Item::End { at, overhead });
        }
        items
    })
}

fn written(head: &Head, items: &[Item], format: TextFormat) -> Vec<u8> {
    let mut text = Vec::new();
    let mut writer = TextWriter::new(&mut text, format, head).unwrap();
    items.iter().for_each(|item| writer.push(item).unwrap());
    writer.finish().unwrap();
    text
}

/// Items of a text, and its head as far as it can be had.
fn read(text: &[u8], format: TextFormat) -> Result<(Vec<Item>, Head), TextError> {
    let mut reader = TextReader::open(text, format)?;
    let items = reader.by_ref().collect::<Result<Vec<_>, _>>()?;
    let mut survey = Survey::default();
    items.iter().for_each(|item| survey.add(item));
    let head = reader.said().head(&survey).map_err(|fault| reader.wrong(fault))?;
    Ok((items, head))
}

fn csv(text: &str) -> Result<Vec<Item>, String> {
    let read = read(text.as_bytes(), TextFormat::Csv);
    read.map(|(items, _)| items).map_err(|error| error.to_string())
}

fn json(text: &str) -> Result<Vec<Item>, String> {
    let read = read(text.as_bytes(), TextFormat::JsonLines);
    read.map(|(items, _)| items).map_err(|error| error.to_string())
}

fn write(at: u64, vcpu: u32, gfn: u64) -> Item {
    Item::Write {
        at: Nanos(at),
        vcpu,
        gfn: Gfn(gfn),
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read((head, items) in heads().prop_flat_map(|head| {
        let items = items(&head);
        (Just(head), items)
    })) {
        for format in FORMATS {
            let text = written(&head, &items, format);
            let mut reader = TextReader::open(&text[..], format).unwrap();
            prop_assert!(!reader.said().needs_survey());
            let said = reader.said().head(&Survey::default());
            prop_assert_eq!(said.as_ref(), Ok(&head));
            reader.check_against(head.clone());
            let found = reader.collect::<Result<Vec<_>, _>>().unwrap();
            prop_assert_eq!(&found, &items);
        }
    }

    #[test]
    fn no_text_is_a_panic(text in "(kind|at_ns|gfn|vcpu|,|\n|#|=|\"|0x|[0-9]|\\{|\\}|:|.){0,60}", header: bool) {
        let text = if header { format!("at_us,gfn,vcpu,kind,value,pages\n{text}") } else { text };
        for format in FORMATS {
            let _ = read(text.as_bytes(), format);
        }
    }
}

#[test]
fn texts_of_others_are_read() {
    let expected = [write(0, VCPU_UNKNOWN, 0x12), write(7_250, VCPU_UNKNOWN, 0x13)];
    for text in [
        "at_us,address\n1200.5,0x12f40\n1207.75,0x13000\n",
        "address,at_ns\r\n77632,5\r\n\r\n0x13fff,7255",
        "\u{feff}at_ms , gfn\n\"1\",\"18\"\n# nothing\n 1.00725 , 0X13 \n",
        "at_s,gfn\n1700000000.123456789,18\n1700000000.1234640391,19\n",
    ] {
        assert_eq!(csv(text).as_deref(), Ok(&expected[..]), "{text}");
    }
    for text in [
        "{\"at_us\":1200.5,\"address\":\"0x12f40\"}\n{\"address\":\"0x13000\",\"at_us\":1207.75}",
        "{\"at_ns\":10,\"gfn\":18,\"vcpu\":null}\r\n\n{\"at_ns\":\"7260\",\"gfn\":19}\n",
    ] {
        assert_eq!(json(text).as_deref(), Ok(&expected[..]), "{text}");
    }
    let (_, head) = read(b"at_ns,gfn,vcpu\n5,7,2\n6,3,0\n", TextFormat::Csv).unwrap();
    assert_eq!((head.source, head.vcpus, head.span()), (Source::Imported, 3, Pages(8)));
    assert_eq!((head.used, head.window, head.guest.as_str()), (Pages(8), Nanos(0), ""));
}

#[test]
fn windows_and_comments_are_read() {
    let text = "# source=hypervisor\n# made by hand\n# vcpus = 2\n# regions=0+10 20+5\n# guest=web 1\n\
                kind,at_ms,gfn,pages\ndirty,,3,2\ndirty,,20,\nwindow-end,1000,,\nwindow-end,2000,,\n";
    let (items, head) = read(text.as_bytes(), TextFormat::Csv).unwrap();
    let run = |first, count| Item::Dirty {
        run: Run::new(Gfn(first), Pages(count)),
    };
    let end = |at| Item::WindowEnd {
        at: Nanos(at),
        vcpu: VCPU_UNKNOWN,
    };
    // Its clock is any, so that it begins with its first time.
    assert_eq!(items, [run(3, 2), run(20, 1), end(0), end(1_000_000_000)]);
    assert_eq!(
        (head.source, head.vcpus, head.total()),
        (Source::Hypervisor, 2, Pages(15))
    );
    assert_eq!(head.guest.as_str(), "web 1");
    let (items, _) = read(format!("# dunlin.trace.v1\n{text}").as_bytes(), TextFormat::Csv).unwrap();
    assert_eq!(items[2..], [end(1_000_000_000), end(2_000_000_000)]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let cases = [
        ("", "line 1, column 1: there is no header"),
        ("# only\n", "line 2, column 1: there is no header"),
        (
            "1,2\n",
            "line 1, column 1: \"1\" has no meaning here: there are kind, a time",
        ),
        ("at_ns,gfn,pid\n", "line 1, column 11: \"pid\" has no meaning"),
        (
            "at_ns,at_us,gfn\n",
            "line 1, column 7 (at_us): at_us stands here beside at_ns",
        ),
        ("at_ns,gfn,gfn\n", "line 1, column 11 (gfn): gfn stands here twice"),
        (
            "at_ns,vcpu\n",
            "line 1, column 11: no column says which page it was: add gfn or address",
        ),
        ("gfn\n", "line 1, column 4: no column says when"),
        (
            "at_ns,gfn\n1\n",
            "line 2, column 2 (gfn): the line ends here, but the header names 2",
        ),
        ("at_ns,gfn\n1,2,3\n", "line 2, column 5: a value too many"),
        ("at_ns,gfn\n1,\n", "line 2, column 1: nothing says which page"),
        ("at_ns,gfn\n,1\n", "line 2, column 1: nothing says when"),
        (
            "at_ns,gfn\n1.5,2\n",
            "line 2, column 1 (at_ns): \"1.5\" is not a whole number",
        ),
        (
            "at_us,gfn\n1e3,2\n",
            "line 2, column 1 (at_us): \"1e3\" is not a whole number",
        ),
        ("at_ns,gfn\n1, -2\n", "line 2, column 4 (gfn): \"-2\" is negative"),
        ("at_ns,gfn\n1,0xyz\n", "line 2, column 3 (gfn): \"0xyz\" is no number"),
        (
            "at_ns,gfn\n5,1\n4,1\n",
            "line 3, column 1 (at_ns): this is before the item before, which is at 0 ns",
        ),
        (
            "kind,at_ns,gfn\nread,1,2\n",
            "line 2, column 1 (kind): \"read\" is no kind of item: write write, dirty",
        ),
        (
            "kind,at_ns,gfn\ndirty,1,2\n",
            "line 2, column 7 (at_ns): dirty has no such value",
        ),
        (
            "kind,at_ns,gfn,value\nlost,1,,\n",
            "line 2, column 1 (kind): nothing says how many were lost",
        ),
        (
            "at_ns,gfn,pages\n1,2,3\n",
            "line 2, column 5 (pages): a write is of one page, not of 3",
        ),
        (
            "at_ns,gfn,vcpu\n1,2,4294967295\n",
            "line 2, column 5 (vcpu): \"4294967295\" is more than",
        ),
        (
            "kind,at_ns,gfn\nend,1,\nend,1,\n",
            "line 3, column 5 (at_ns): nothing follows the end",
        ),
        (
            "at_ns,gfn\n\"1,2\n",
            "line 2, column 1: a quotation mark that does not end",
        ),
        (
            "at_ns,gfn\n1,2\r3,4\n",
            "line 2, column 4: a carriage return within a line",
        ),
        (
            "# vcpus=0\nat_ns,gfn\n",
            "line 1, column 1: what is said of vcpus has no meaning: write a number from 1 to 1024",
        ),
        (
            "# regions=all\nat_ns,gfn\n",
            "line 1, column 1: what is said of regions",
        ),
        (
            "# source=gossip\nat_ns,gfn\n",
            "line 1, column 1: \"gossip\" is no source: there are ebpf:kvm_dirty_ring_push, ",
        ),
        ("# regions=5+5 7+7\nat_ns,gfn\n1,8\n", "regions of memory overlap"),
        ("at_ns,gfn\n", "no line names a page"),
    ];
    for (text, expected) in cases {
        let error = csv(text).unwrap_err();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    let not_utf8 = read(b"at_ns,gfn\n1,\xc3\xa42\xff\n", TextFormat::Csv).unwrap_err();
    assert!(not_utf8.to_string().starts_with("line 2, column 5: "), "{not_utf8}");
    let long = format!("at_ns,gfn\n{}", "1".repeat(5000));
    assert!(csv(&long).unwrap_err().contains("longer than 4096 bytes"));
}

#[test]
fn wrong_json_is_named_with_its_place() {
    let cases = [
        ("7\n", "line 1, column 1: this is no JSON object"),
        ("{\"at_ns\":1,\n\"gfn\":2}\n", "line 1, column"),
        (
            "{\"at_ns\":1,\"gfn\":2,\"pid\":3}\n",
            "line 1, column 20: \"pid\" has no meaning",
        ),
        (
            "{\"at_ns\":1,\"at_us\":2,\"gfn\":2}\n",
            "at_us stands here beside at_ns",
        ),
        (
            "{\"at_ns\":1,\"gfn\":[2]}\n",
            "line 1, column 12 (gfn): \"[2]\" is no number",
        ),
        ("{\"at_ns\":1}\n", "nothing says which page"),
        (
            "{\"at_ns\":-1,\"gfn\":1}\n",
            "line 1, column 2 (at_ns): \"-1\" is negative",
        ),
        (
            "{\"at_ns\":5,\"gfn\":1}\n{\"at_ns\":4,\"gfn\":1}\n",
            "line 2, column 2 (at_ns): this is before",
        ),
        (
            "{\"schema\":\"dunlin.trace.v9\"}\n",
            "what is said of schema has no meaning",
        ),
        (
            "{\"schema\":\"dunlin.trace.v1\",\"regions\":[[1]]}\n",
            "what is said of regions",
        ),
        (
            "{\"schema\":\"dunlin.trace.v1\",\"vcpus\":\"two\"}\n",
            "what is said of vcpus",
        ),
        ("", "no line names a page"),
    ];
    for (text, expected) in cases {
        let error = json(text).unwrap_err();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn items_that_the_guest_cannot_have_are_named_with_their_line() {
    let text = "# regions=0+10\n# vcpus=2\nkind,at_ns,gfn,vcpu,pages\n";
    let check = |line: &str| {
        let text = format!("{text}{line}\n");
        let mut reader = TextReader::open(text.as_bytes(), TextFormat::Csv).unwrap();
        let head = reader.said().head(&Survey::default()).unwrap();
        reader.check_against(head);
        let error = reader.find_map(Result::err).expect("a wrong line");
        error.to_string()
    };
    assert!(check(",5,10,,").starts_with("line 4, column 4 (gfn): page 10 is outside"));
    assert!(check("dirty,,8,,3").starts_with("line 4, column 8 (gfn): 3 pages from 8 on"));
    assert!(check("dirty,,8,,0").starts_with("line 4, column 8 (gfn): a run of pages has at least one"));
    assert!(check(",5,1,2,").starts_with("line 4, column 6 (vcpu): there is no vCPU 2"));
}

#[test]
fn texts_are_as_documented() {
    let head = Head {
        source: Source::RingPush,
        regions: [(0, 262_144), (1_048_576, 786_432)]
            .map(|(first, pages)| Region {
                first: Gfn(first),
                pages: Pages(pages),
            })
            .into_iter()
            .collect(),
        used: Pages(1_000_000),
        vcpus: 4,
        window: Nanos(0),
        started_unix_ns: 1_790_000_000_000_000_000,
        guest: "web-1".try_into().unwrap(),
    };
    let end = Item::End {
        at: Nanos(1_000_000_000),
        overhead: Nanos(0),
    };
    let items = [write(20_000, 0, 17), end];
    let text = String::from_utf8(written(&head, &items, TextFormat::Csv)).unwrap();
    assert_eq!(
        text,
        "# dunlin.trace.v1\n# source=ebpf:kvm_dirty_ring_push\n# regions=0+262144 1048576+786432\n# used_pages=1000000\n# vcpus=4\n\
         # window_ns=0\n# started_unix_ns=1790000000000000000\n# guest=\"web-1\"\nkind,at_ns,vcpu,gfn,pages,value\n\
         write,20000,0,17,,\nend,1000000000,,,,0\n"
    );
    let text = String::from_utf8(written(&head, &items, TextFormat::JsonLines)).unwrap();
    let mut lines = text.lines();
    assert!(
        lines
            .next()
            .is_some_and(|line| line.contains("\"schema\":\"dunlin.trace.v1\""))
    );
    assert_eq!(
        lines.next(),
        Some(r#"{"kind":"write","at_ns":20000,"vcpu":0,"gfn":17}"#)
    );
    assert_eq!(lines.next(), Some(r#"{"kind":"end","at_ns":1000000000,"value":0}"#));
}
