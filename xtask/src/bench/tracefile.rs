//! What a trace file costs: to write, to keep, to read.

use std::hint::black_box;

use anyhow::Context as _;
use dunlin::trace::{TraceReader, TraceWriter};
use dunlin_core::message::Region;
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::{Gfn, Nanos, Pages};

use super::Setting;
use super::figure::{Figure, Target};
use super::sampling::{Arm, interleave, seconds};

/// 64 GiB of 4 KiB pages.
const PAGES: u64 = 1 << 24;
const VCPUS: u32 = 4;
const WRITES: u64 = 4_000_000;
/// Nanoseconds between two writes at 50,000 a second, in the mean.
const INTERVAL: u64 = 20_000;
const REPETITIONS: usize = 5;

pub(super) fn run(_: &Setting) -> anyhow::Result<Vec<Figure>> {
    let items = items();
    let file = encode(&items)?;
    let baseline: Vec<u8> = items.iter().flat_map(record).collect();
    let write_all = || {
        let mut length = 0;
        let took = seconds(|| length = encode(black_box(&items)).map_or(0, |file| file.len()));
        anyhow::ensure!(length == file.len(), "the same items are the same file");
        Ok(took * 1e9 / WRITES as f64)
    };
    let read_all = || {
        let mut sum = 0;
        let took = seconds(|| sum = decode(black_box(&file)));
        anyhow::ensure!(sum == digest(&items), "what was written is read");
        Ok(took * 1e9 / WRITES as f64)
    };
    let plain = || {
        let mut sum = 0;
        let took = seconds(|| sum = digest_records(black_box(&baseline)));
        anyhow::ensure!(sum == digest(&items), "records lead back");
        Ok(took * 1e9 / WRITES as f64)
    };
    let arms = vec![
        Arm::new("encode", write_all),
        Arm::new("decode", read_all),
        Arm::new("plain", plain),
    ];
    let times = interleave(REPETITIONS, arms)?;
    let bytes = file.len() as f64 / WRITES as f64;
    let beside = "4 vCPUs, 64 GiB, no page near the last";
    Ok(vec![
        Figure::plain("trace file, bytes a write", bytes, "B")
            .target(Target::AtMost(11.0))
            .beside(beside),
        Figure::plain(
            "trace file, an hour at 50,000 writes a second",
            bytes * 50_000.0 * 3600.0 / 1e9,
            "GB",
        )
        .target(Target::AtMost(2.0))
        .beside(beside),
        Figure::plain("trace file, writing an item", times.of("encode").median(), "ns")
            .target(Target::AtMost(100.0))
            .beside("what a tracer may spend on an event"),
        Figure::plain("trace file, reading an item", times.of("decode").median(), "ns")
            .target(Target::AtMost(20.0))
            .beside(format!(
                "plain records of 20 bytes without checksum, {:.1} ns",
                times.of("plain").median()
            )),
    ])
}

fn items() -> Vec<Item> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 8
    };
    let mut now = 0;
    let write = |_| {
        now += random() % (2 * INTERVAL);
        Item::Write {
            at: Nanos(now),
            vcpu: (random() % u64::from(VCPUS)) as u32,
            gfn: Gfn(random() % PAGES),
        }
    };
    (0..WRITES).map(write).collect()
}

fn encode(items: &[Item]) -> anyhow::Result<Vec<u8>> {
    let memory = Region {
        first: Gfn(0),
        pages: Pages(PAGES),
    };
    let head = Head {
        source: Source::Generator,
        regions: [memory].into_iter().collect(),
        used: Pages(PAGES),
        vcpus: VCPUS,
        window: Nanos(0),
        started_unix_ns: 0,
        guest: Default::default(),
    };
    let mut file = Vec::with_capacity(8 * items.len());
    let mut writer = TraceWriter::new(&mut file, "memory", &head).context("a good head")?;
    for item in items {
        writer.push(item)?;
    }
    writer.finish()?;
    Ok(file)
}

fn decode(file: &[u8]) -> u64 {
    let reader = TraceReader::new(file, "memory").expect("what was written");
    reader.flatten().fold(0, |sum, item| mix(sum, &item))
}

fn digest(items: &[Item]) -> u64 {
    items.iter().fold(0, mix)
}

fn mix(sum: u64, item: &Item) -> u64 {
    match *item {
        Item::Write { at, vcpu, gfn } => sum
            .wrapping_add(at.0 ^ gfn.0.wrapping_mul(u64::from(vcpu) + 1))
            .rotate_left(1),
        _ => sum,
    }
}

/// An item as most tools store it.
fn record(item: &Item) -> [u8; 20] {
    let mut bytes = [0; 20];
    if let Item::Write { at, vcpu, gfn } = *item {
        bytes[..8].copy_from_slice(&at.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&gfn.0.to_le_bytes());
        bytes[16..].copy_from_slice(&vcpu.to_le_bytes());
    }
    bytes
}

fn digest_records(bytes: &[u8]) -> u64 {
    let (records, _) = bytes.as_chunks::<20>();
    records.iter().fold(0, |sum, record| {
        let word = |at: usize| {
            record[at..at + 8]
                .first_chunk()
                .map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let vcpu = record[16..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let item = Item::Write {
            at: Nanos(word(0)),
            vcpu,
            gfn: Gfn(word(8)),
        };
        mix(sum, &item)
    })
}
