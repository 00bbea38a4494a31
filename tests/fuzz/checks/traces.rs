//! A trace as anybody may have written it, as a file or as text: reading never panics, what is read keeps what a head promises, and
//! what was read is the same when it is written again.

use crate::text::{Survey, TextFormat, TextReader, TextWriter};
use dunlin_core::tracefile::{
    EncodeError, Encoder, FrameHeader, HEADER_BYTES, Head, Item, Items, START_BYTES, check_start, find_frame,
};

/// The check.
pub(crate) fn check(input: &[u8]) {
    read_file(input);
    for format in [TextFormat::Csv, TextFormat::JsonLines] {
        read_text(input, format);
    }
    // Few would find the header.
    read_text(&[b"kind,at_us,vcpu,gfn,pages,value\n", input].concat(), TextFormat::Csv);
}

fn read_file(input: &[u8]) {
    let mut rest = input;
    if let Some((start, after)) = input.split_first_chunk::<START_BYTES>()
        && check_start(start).is_ok()
    {
        rest = after;
    }
    let mut head = None;
    while let Some((bytes, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Some((header, payload)) = frame(bytes, after) else {
            rest = &rest[1..];
            continue;
        };
        rest = &after[payload.len()..];
        match &head {
            None => head = Head::decode(&header, payload).ok(),
            Some(head) => read_items(head, &header, payload),
        }
    }
    if let Some(place) = find_frame(input) {
        let header = input[place..].first_chunk().expect("a header is there");
        FrameHeader::decode(header).expect("the header of a frame that was found");
    }
}

/// A fuzzer does not guess checksums, so they are put right for it.
fn frame<'a>(bytes: &[u8; HEADER_BYTES], after: &'a [u8]) -> Option<(FrameHeader, &'a [u8])> {
    let mut header = *bytes;
    header[..4].copy_from_slice(b"DTFR");
    header[5..8].fill(0);
    // As many bytes as there are at most, and as many items at most.
    let length = (usize::from(header[12]) | usize::from(header[13]) << 8).clamp(1, after.len().max(1));
    let payload = after.get(..length)?;
    header[12..16].copy_from_slice(&(length as u32).to_le_bytes());
    header[17..20].fill(0);
    header[20..24].copy_from_slice(&crc(payload));
    let crc = crc(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&crc);
    let header = FrameHeader::decode(&header).ok()?;
    assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
    Some((header, payload))
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(bytes).to_le_bytes()
}

fn read_items(head: &Head, header: &FrameHeader, payload: &[u8]) {
    let Ok(items) = Items::new(head, header, payload) else {
        return;
    };
    let items: Vec<Item> = items.map_while(Result::ok).collect();
    for item in &items {
        head.check_item(item).expect("what is decoded was checked");
    }
    encode(head, &items);
}

fn encode(head: &Head, items: &[Item]) {
    let mut encoder = Encoder::new([0; 1024], head).expect("a head that was decoded");
    encoder.frame();
    for item in items {
        if encoder.push(item) == Err(EncodeError::Full) {
            encoder.frame();
            encoder.push(item).expect("room in a new frame");
        }
    }
}

fn read_text(input: &[u8], format: TextFormat) {
    let Ok(mut reader) = TextReader::open(input, format) else {
        return;
    };
    let mut survey = Survey::default();
    let items: Vec<Item> = reader
        .by_ref()
        .map_while(Result::ok)
        .inspect(|item| survey.add(item))
        .collect();
    let Ok(head) = reader.said().head(&survey) else { return };
    for format in [TextFormat::Csv, TextFormat::JsonLines] {
        let mut written = Vec::new();
        let mut writer = TextWriter::new(&mut written, format, &head).expect("room");
        items.iter().for_each(|item| writer.push(item).expect("room"));
        writer.finish().expect("room");
        let again = TextReader::open(&written[..], format).expect("what was written");
        assert_eq!(again.said().head(&Survey::default()).as_ref(), Ok(&head));
        let again: Result<Vec<Item>, _> = again.collect();
        assert_eq!(again.expect("what was written"), items);
    }
}
