//! Frames between two memories over a real socket.

use super::*;
use crate::memory::MemoryLayout;
use dunlin_core::units::{Bytes, BytesPerSec};

const PATIENCE: Duration = Duration::from_secs(5);

fn memory(pages: u64) -> GuestMemory {
    GuestMemory::new(MemoryLayout::new(Bytes(pages * PAGE_SIZE)).unwrap()).unwrap()
}

fn ends(rate: Option<BytesPerSec>) -> (FrameSender, FrameReceiver) {
    let (left, right) = Stream::pair().unwrap();
    let sender = FrameSender::new(Arc::new(left), TokenBucket::new(rate), Arc::new(ByteCounts::default()));
    (sender, FrameReceiver::new(Arc::new(right), PATIENCE, Cancel::new()))
}

/// Sends everything in `source` and returns what arrived, with the kinds of frames.
fn transfer(source: &GuestMemory, run: Run, checksum: Checksum) -> (GuestMemory, Vec<(FrameKind, u64)>) {
    let target = memory(source.layout().pages().0);
    let (mut sender, mut receiver) = ends(None);
    let mut kinds = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cancel = Cancel::new();
            let wait = Wait::within(PATIENCE, &cancel);
            sender.pages(source, run, 1, checksum, wait).unwrap();
            sender.message(&Message::Ready, wait).unwrap();
        });
        loop {
            let header = receiver.header(PATIENCE).unwrap().expect("a frame");
            match header.kind {
                FrameKind::Pages => drop(receiver.pages_into(&target, &header).unwrap()),
                FrameKind::Control => {
                    assert_eq!(receiver.message(&header).unwrap(), Message::Ready);
                    break;
                }
                _ => {}
            }
            kinds.push((header.kind, u64::from(header.count)));
        }
    });
    (target, kinds)
}

#[test]
fn pages_arrive_as_they_were_and_zeros_as_zero_runs() {
    let source = memory(700);
    let noise = Run::new(Gfn(3), Pages(600));
    source
        .fill(noise, |index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        .unwrap();
    for checksum in [Checksum::None, Checksum::Copy, Checksum::InPlace] {
        let (target, kinds) = transfer(&source, Run::new(Gfn(0), Pages(700)), checksum);
        assert_eq!(target.blake3().unwrap(), source.blake3().unwrap(), "{checksum:?}");
        let pages = |wanted| {
            kinds
                .iter()
                .filter(|(kind, _)| *kind == wanted)
                .map(|(_, count)| count)
                .sum::<u64>()
        };
        assert_eq!(
            (pages(FrameKind::Pages), pages(FrameKind::Zero)),
            (600, 100),
            "{checksum:?}"
        );
    }
}

#[test]
fn a_damaged_page_is_named() {
    let source = memory(4);
    source.write_u64(0, 1);
    let (left, right) = Stream::pair().unwrap();
    let mut sender = FrameSender::new(Arc::new(left), TokenBucket::new(None), Arc::new(ByteCounts::default()));
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    sender.urgent_page(&source, Gfn(0), Checksum::InPlace, wait).unwrap();
    let mut bytes = vec![0; HEADER_BYTES + PAGE_SIZE as usize];
    right.read_exact(&mut bytes, wait).unwrap();
    bytes[HEADER_BYTES + 1000] ^= 1;
    let (left, right) = Stream::pair().unwrap();
    left.write_all(&bytes, wait).unwrap();
    let mut receiver = FrameReceiver::new(Arc::new(right), PATIENCE, Cancel::new());
    let header = receiver.header(PATIENCE).unwrap().unwrap();
    let error = receiver.pages_into(&memory(4), &header).unwrap_err();
    assert!(
        matches!(
            error,
            FrameError::PageChecksum {
                first: Gfn(0),
                count: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn nonsense_is_named_and_nothing_is_allocated_for_it() {
    let (left, right) = Stream::pair().unwrap();
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    left.write_all(b"GET / HTTP/1.1\r\nHost: somebody-else.example\r\n\r\n", wait)
        .unwrap();
    let mut receiver = FrameReceiver::new(Arc::new(right), PATIENCE, Cancel::new());
    let error = first_message(&mut receiver, PATIENCE).unwrap_err();
    assert!(
        matches!(
            error,
            FrameError::Wire {
                source: WireError::Magic,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(receiver.payload.capacity(), 0);
}

#[test]
fn a_frame_outside_the_vm_touches_nothing() {
    let (mut sender, mut receiver) = ends(None);
    let cancel = Cancel::new();
    let source = memory(8);
    source.write_u64(7 * PAGE_SIZE, 1);
    sender
        .urgent_page(&source, Gfn(7), Checksum::None, Wait::within(PATIENCE, &cancel))
        .unwrap();
    let header = receiver.header(PATIENCE).unwrap().unwrap();
    assert!(matches!(
        receiver.pages_into(&memory(7), &header),
        Err(FrameError::Memory(_))
    ));
}

#[test]
fn a_demanded_page_of_zeros_is_a_header_only() {
    let (mut sender, mut receiver) = ends(None);
    let cancel = Cancel::new();
    sender
        .urgent_page(&memory(8), Gfn(3), Checksum::InPlace, Wait::within(PATIENCE, &cancel))
        .unwrap();
    let header = receiver.header(PATIENCE).unwrap().unwrap();
    assert_eq!((header.kind, header.first, header.count), (FrameKind::Zero, Gfn(3), 1));
    assert_eq!(receiver.received(), HEADER_BYTES as u64);
    assert!(!receiver.has_buffered() && sender.is_empty());
}

#[test]
fn silence_is_no_error_and_loses_nothing() {
    let (mut sender, mut receiver) = ends(None);
    assert_eq!(receiver.header(Duration::from_millis(1)).unwrap(), None);
    assert_eq!(receiver.header_by(Stream::read_now).unwrap(), None);
    let cancel = Cancel::new();
    sender.heartbeat(Wait::within(PATIENCE, &cancel)).unwrap();
    assert_eq!(receiver.header(PATIENCE).unwrap().unwrap().kind, FrameKind::Heartbeat);
}

#[test]
fn a_shaped_sender_cuts_runs_into_short_pieces() {
    // 40 MB/s: 5 ms are 48 pages.
    let (sender, _receiver) = ends(Some(BytesPerSec(40_000_000)));
    assert_eq!(sender.frame_pages(Checksum::None), 48);
    let (slow, _receiver) = ends(Some(BytesPerSec(1000)));
    assert_eq!(slow.frame_pages(Checksum::None), 1);
}
