//! What fuzzers begin with: a little of everything that has a meaning.

use dunlin::trace::TraceWriter;
use dunlin_agent::frame::{ENCODED_MAX, encode};
use dunlin_agent::message::{ToGuest, ToHost};
use dunlin_core::message::{
    AbortReason, Capabilities, Hello, Message, Mode, PROTOCOL_VERSION, Refusal, Region, SessionId, TargetReport,
    TargetStanding, VmId,
};
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::{Gfn, Nanos, PAGE_SIZE, Pages};
use dunlin_core::wire::{FrameHeader, FrameKind, checksum_message, encode_message};

/// Names and bytes.
pub(crate) type Seeds = Vec<(String, Vec<u8>)>;

fn named<const N: usize>(texts: [(&str, &str); N]) -> Seeds {
    texts.map(|(name, text)| (name.into(), text.into())).into()
}

pub(crate) fn agent() -> Seeds {
    // Every message that can be made up of its encoding: postcard numbers the variants.
    let mut to_guest = Vec::new();
    let mut to_host = Vec::new();
    for variant in 0..16u8 {
        for filler in [0u8, 1, 5] {
            let bytes = [&[variant][..], &[filler; 24]].concat();
            if let Ok((message, _)) = postcard::take_from_bytes::<ToGuest>(&bytes) {
                append(&mut to_guest, &message);
            }
            if let Ok((message, _)) = postcard::take_from_bytes::<ToHost>(&bytes) {
                append(&mut to_host, &message);
            }
        }
    }
    let garbage = [&[0xff, 0, 1, 2, 0xff][..], &[0x80; 40]].concat();
    vec![
        ("garbage".into(), garbage),
        ("empty-frames".into(), vec![0; 9]),
        ("to-guest".into(), to_guest),
        ("to-host".into(), to_host),
    ]
}

fn append<M: serde::Serialize>(line: &mut Vec<u8>, message: &M) {
    let mut buffer = [0; ENCODED_MAX];
    if let Ok(bytes) = encode(message, &mut buffer) {
        line.extend(bytes);
    }
}

pub(crate) fn policy() -> Seeds {
    named([
        (
            "all-there-is",
            "count-in = \"/run/dunlin\"\n\n[[rule]]\nverdict = \"allow\"\npeer = \"spiffe://example.org/host/*\"\nguest = \"web-*\"\ndirection = \"in\"\n\
             memory = \"8GiB\"\nmigrations = 2\nbandwidth = \"200MB/s\"\n\n[[rule]]\nverdict = \"deny\"\npeer = \"anyone\"\n",
        ),
        ("local", "[[rule]]\nverdict = \"allow\"\npeer = \"local\"\n"),
        ("nothing", "# no rule\n"),
        (
            "wrong-value",
            "[[rule]]\nverdict = \"allow\"\npeer = \"a*b*\"\nmemory = \"much\"\n",
        ),
        ("wrong-key", "[[rule]]\nverdict = \"allow\"\npear = 3\n"),
        ("torn", "[[rule]]\nverdict = \"al"),
    ])
}

pub(crate) fn frames() -> Seeds {
    let session = SessionId(7);
    let region = Region {
        first: Gfn(0),
        pages: Pages(1024),
    };
    let hello = Message::Hello(Hello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        capabilities: Capabilities::all(),
        session,
        vm: VmId(9),
        page_size: PAGE_SIZE as u32,
        regions: [region].into_iter().collect(),
        vcpus: 1,
        tsc_khz: 0,
        state_version: 1,
        network_timeout: Nanos::from_secs(3),
        cpuid: &[0; 28],
        config: b"config",
    });
    let hand_over = [
        Message::FinalSet {
            first_word: 0,
            words: &[0xff; 8],
        },
        Message::State {
            offset: 0,
            bytes: &[1; 9],
        },
        Message::HandOver {
            mode: Mode::PostCopy,
            state_bytes: 9,
            final_dirty: Pages(64),
        },
        Message::Commit,
    ];
    let answers = [
        Message::Welcome { protocol: 1 },
        Message::Refused(Refusal::Busy),
        Message::RoundReached { round: 1 },
        Message::Ready,
        Message::Running,
        Message::Resumed(TargetStanding::PostCopy),
        Message::Missing {
            first_word: 1,
            words: &[1; 8],
        },
        Message::MissingEnd { pages: Pages(8) },
        Message::Complete(TargetReport::default()),
        Message::Abort(AbortReason::Cancelled),
    ];
    let given_up = true;
    let back = [
        Message::Resume {
            session,
            vm: VmId(9),
            given_up,
        },
        Message::Hashes {
            first: Gfn(0),
            bytes: &[3; 16],
        },
        Message::HashesEnd,
        Message::Bye,
    ];
    let runs: Vec<u8> = [
        (FrameKind::Announce, 0, 64, None),
        (FrameKind::Zero, 64, 1 << 20, None),
        (FrameKind::PageRequest, 3, 1, None),
        (FrameKind::Heartbeat, 0, 0, None),
        (FrameKind::Pages, 8, 1, Some(5)),
    ]
    .into_iter()
    .enumerate()
    .flat_map(|(sequence, (kind, first, count, checksum))| {
        let header = FrameHeader {
            kind,
            stream: 0,
            sequence: sequence as u32,
            count,
            first: Gfn(first),
            checksum,
            round: 1,
        };
        header.encode()
    })
    .collect();
    vec![
        ("hello".into(), controls(&[hello])),
        ("hand-over".into(), controls(&hand_over)),
        ("answers".into(), controls(&answers)),
        ("back".into(), controls(&back)),
        ("runs".into(), runs),
    ]
}

fn controls(messages: &[Message<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sequence, message) in messages.iter().enumerate() {
        let mut buffer = [0; 1024];
        let length = encode_message(message, &mut buffer).expect("seeds are short");
        let header = FrameHeader {
            kind: FrameKind::Control,
            stream: 0,
            sequence: sequence as u32,
            count: length as u32,
            first: Gfn(0),
            checksum: Some(checksum_message(&buffer[..length])),
            round: 0,
        };
        bytes.extend(header.encode());
        bytes.extend(&buffer[..length]);
    }
    bytes
}

pub(crate) fn qmp() -> Seeds {
    named([
        (
            "greeting",
            "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n",
        ),
        (
            "events",
            "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"MIGRATION_PASS\", \"data\": {\"pass\": 2}}\n\
             {\"event\": \"STOP\"}\n{\"event\": 7}\nnothing of the kind\n[]\n",
        ),
        (
            "answers",
            "{\"return\": {\"status\": \"active\", \"total-time\": 1, \"ram\": {\"total\": 4194304, \"remaining\": 4096, \"normal\": 3, \
             \"duplicate\": 1, \"dirty-sync-count\": 1, \"page-size\": 4096}}, \"id\": \"dunlin-1\"}\n\
             {\"return\": {\"status\": \"active\", \"ram\": {\"remaining\": 8192, \"normal\": 9, \"dirty-sync-count\": 3}}, \"id\": \"dunlin-2\"}\n\
             {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": \"dunlin-3\"}\n",
        ),
        ("rounds", "1,1000,0,2,500,1000,3,800,1500,4,800,2300,5,0,3100"),
        (
            "rounds-back",
            "4,100,900,2,18446744073709551615,3,1,0,0,9,18446744073709551615,18446744073709551615",
        ),
    ])
}

pub(crate) fn rounds() -> Seeds {
    named([
        (
            "short",
            "1,4000000,32000,16000\n2,2000000,16000,12000\n3,1500000,12000,13200\n",
        ),
        (
            "with-header",
            "# static_done_after=2\nround,duration_us,sent_pages,dirty_pages\n1,4000000,32000,16000\n2,1,0,0\n",
        ),
        (
            "lines",
            "{\"round\":1,\"duration_us\":4000000,\"sent_pages\":32000,\"dirty_pages\":16000}\n{\"round\":2,\"duration_us\":1}\n",
        ),
        ("wrong", "1,18446744073709551615,99999999999999999999,-1\n2,,,\n"),
    ])
}

pub(crate) fn texts() -> Seeds {
    named([
        ("preset", "markov-sdf:0.7,push=bubble:3,cut=both"),
        (
            "composition",
            "first=parallel,filter=none,switch=optimal:128,push=sequential,cut=pbdata,hold=hot,split=speed",
        ),
        ("workload", "hotset:0.1,rate=120k,ws=8MiB"),
        ("phases", "phases:(seq,rate=1000)*50000+(uniform)*50000"),
        (
            "wrong",
            "switch=rounds:99999999999999999999,sdf:-1,zipf:,rate=,ws=1e999",
        ),
    ])
}

pub(crate) fn traces() -> Seeds {
    let region = Region {
        first: Gfn(0),
        pages: Pages(1 << 16),
    };
    let head = Head {
        source: Source::Generator,
        regions: [region].into_iter().collect(),
        used: region.pages,
        vcpus: 2,
        window: Nanos(0),
        started_unix_ns: 0,
        guest: Default::default(),
    };
    let write = |at, vcpu, gfn| Item::Write {
        at: Nanos(at),
        vcpu,
        gfn: Gfn(gfn),
    };
    let items = [
        write(5, 0, 3),
        write(9, 1, 3),
        write(1_000_000, 0, 65_535),
        write(1_000_000, 1, 0),
    ];
    let mut file = Vec::new();
    let mut writer = TraceWriter::new(&mut file, "memory", &head).expect("a good head");
    for item in &items {
        writer.push(item).expect("room");
    }
    writer.finish().expect("room");
    let mut seeds = named([
        ("csv", "write,5,0,3,,\nwrite,9,1,3,,\nwrite,4,1,99999999,,\n"),
        (
            "lines",
            "{\"kind\":\"write\",\"at_us\":5,\"vcpu\":0,\"gfn\":3}\n{\"kind\":\"write\",\"at_us\":1,\"vcpu\":9,\"gfn\":3}\n",
        ),
    ]);
    seeds.push(("file".into(), file));
    seeds
}

pub(crate) fn storage() -> Seeds {
    let entry = |first: u64, count: u32, zero: u32, proof: usize| {
        let mut bytes = first.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(zero.to_le_bytes());
        bytes.resize(bytes.len() + proof, 0);
        bytes
    };
    // As the check reads them: kind, sequence, last, runs, pages of data, pages of zeros.
    let header = |runs: u16, data: u16, zeros: u32| {
        let mut bytes = vec![0, 3, 1];
        bytes.extend(runs.to_le_bytes());
        bytes.extend(data.to_le_bytes());
        bytes.extend(zeros.to_le_bytes());
        bytes
    };
    let mut seeds = Seeds::new();
    for (name, how, proof) in [("plain", 0u8, 8), ("sealed", 1, 16)] {
        let entries = |list: &[(u64, u32, u32)]| -> Vec<u8> {
            list.iter()
                .flat_map(|(first, count, zero)| entry(*first, *count, *zero, proof))
                .collect()
        };
        let right = [(0, 3, 0), (3, 100, 1), (200, 5, 0), (5120, 4096, 1)];
        let wrong = [(10, 3, 0), (3, u32::MAX, 1), (u64::MAX, 5, 0)];
        for (what, header, list) in [
            ("right", header(4, 8, 4196), &right[..]),
            ("wrong-runs", header(3, 8, 0), &wrong[..]),
            ("wrong-counts", header(9, 599, u32::MAX), &right[..1]),
        ] {
            let bytes = [&[how][..], &header, &entries(list)].concat();
            seeds.push((format!("{name}-{what}"), bytes));
        }
        let raw = [&[how | 2][..], b"DUNLSEG", &[1 + how], &[0x55; 200]].concat();
        seeds.push((format!("{name}-raw"), raw));
    }
    seeds
}
