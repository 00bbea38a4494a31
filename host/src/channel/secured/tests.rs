//! Streams by TLS behave as plain ones do, and show nothing on the wire.

use crate::{
    channel::{
        Address, Cancel, ChannelError, Checksum, Direction, Fault, FaultKind, FaultProxy, FrameReceiver, FrameSender,
        Listener, Stream, TokenBucket, Wait, connect,
    },
    memory::{GuestMemory, MemoryLayout},
    trust::{Admission, Files, Name, TrustError, Visit, pki},
};
use dunlin_core::{
    message::SessionId,
    pageset::Run,
    units::{Bytes, Gfn, Pages},
    wire::FrameKind,
};
use std::{sync::Arc, thread, time::Duration};

const PATIENCE: Duration = Duration::from_secs(20);

/// Two hosts that trust each other, and whatever is between them.
struct Hosts {
    folder: tempfile::TempDir,
}

impl Hosts {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki::init(folder.path()).unwrap();
        for host in ["a", "b"] {
            pki::issue(folder.path(), &host.parse().unwrap(), 1).unwrap();
        }
        Self { folder }
    }

    /// Both ends of a connection by TLS over `near` and `far`.
    fn secure(&self, near: Stream, far: Stream) -> (Stream, Stream) {
        let cancel = Cancel::new();
        let wait = Wait::within(PATIENCE, &cancel);
        let files = |host: &str| Files::new(self.folder.path().join(host));
        let expected: Name = "b".parse().unwrap();
        thread::scope(|scope| {
            let admitted = scope.spawn(move || Admission::new(files("b")).admit(far, wait));
            let entered = Visit::new(files("a"), expected, SessionId(1)).enter(near, wait);
            (entered.unwrap(), admitted.join().unwrap().unwrap())
        })
    }

    fn pair(&self) -> (Stream, Stream) {
        let (near, far) = Stream::pair().unwrap();
        self.secure(near, far)
    }

    /// The same over TCP, through a proxy with these faults.
    fn through(&self, faults: Vec<Fault>) -> (FaultProxy, Stream, Stream) {
        let cancel = Cancel::new();
        let wait = Wait::within(PATIENCE, &cancel);
        let any: Address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(&any).unwrap();
        let proxy = FaultProxy::start(&any, listener.address(), faults).unwrap();
        let near = connect(proxy.address(), wait).unwrap();
        let (near, far) = self.secure(near, listener.accept(wait).unwrap());
        (proxy, near, far)
    }
}

fn sample(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn more_than_the_buffers_hold_arrives_whole_in_both_directions_at_once() {
    let (near, far) = Hosts::new().pair();
    let sent = sample(10_000_000);
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    let send = |stream: &Stream| {
        stream.write_all(&sent, wait).unwrap();
        stream.finish();
    };
    let receive = |stream: &Stream| {
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received, wait).unwrap();
        assert!(received == sent);
        assert_eq!(stream.read_some(&mut [0], wait).unwrap(), 0, "the end is announced");
    };
    thread::scope(|scope| {
        for stream in [&near, &far] {
            scope.spawn(|| send(stream));
            scope.spawn(|| receive(stream));
        }
    });
}

#[test]
fn pieces_of_every_size_arrive_as_they_were_read() {
    let (near, far) = Hosts::new().pair();
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    let sent = sample(300_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = &sent[..];
            for size in [1, 2, 16_383, 16_384, 16_385, 65_537, 40, 4136].into_iter().cycle() {
                let (piece, more) = rest.split_at(rest.len().min(size));
                near.write_all(piece, wait).unwrap();
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            near.finish();
        });
        let mut received: Vec<u8> = Vec::new();
        for size in [40, 1, 20_000, 3, 131_072, 16_384].into_iter().cycle() {
            let mut piece = vec![0; size];
            far.wait_readable(wait).unwrap();
            match far.read_now(&mut piece).unwrap() {
                Some(0) => break,
                Some(read) => received.extend(&piece[..read]),
                None => {}
            }
        }
        assert!(received == sent);
    });
}

#[test]
fn what_is_buffered_is_not_waited_for() {
    let (near, far) = Hosts::new().pair();
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    near.write_all(b"abcdef", wait).unwrap();
    let mut two = [0; 2];
    far.read_exact(&mut two, wait).unwrap();
    assert!(far.has_buffered());
    far.wait_readable(Wait::within(Duration::ZERO, &cancel)).unwrap();
    assert_eq!(far.read_now(&mut two).unwrap(), Some(2));
    far.set_read_patience(Duration::from_millis(1)).unwrap();
    assert_eq!(far.read_patiently(&mut two).unwrap(), Some(2));
    assert!(!far.has_buffered());
    assert_eq!(far.read_patiently(&mut two).unwrap(), None);
    assert_eq!(far.read_now(&mut two).unwrap(), None);
}

#[test]
fn a_blocked_write_ends_with_its_wait_and_the_stream_with_it() {
    let (near, _far) = Hosts::new().pair();
    let cancel = Cancel::new();
    let endless = vec![0; 64 << 20];
    let error = near
        .write_all(&endless, Wait::within(Duration::from_millis(30), &cancel))
        .unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    let error = near.write_all(b"more", Wait::forever(&cancel)).unwrap_err();
    assert!(matches!(error, ChannelError::Closed { .. }), "{error}");

    let (near, _far) = Hosts::new().pair();
    thread::scope(|scope| {
        let writer = scope.spawn(|| near.write_all(&endless, Wait::forever(&cancel)));
        cancel.raise();
        assert!(matches!(writer.join().unwrap(), Err(ChannelError::Cancelled)));
    });
}

#[test]
fn shutdown_ends_blocked_readers_and_writers() {
    let (near, _far) = Hosts::new().pair();
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    let clone = near.try_clone().unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| clone.read_some(&mut [0], wait));
        let writer = scope.spawn(|| near.write_all(&vec![0; 64 << 20], wait));
        near.shutdown();
        assert!(matches!(reader.join().unwrap(), Err(ChannelError::Cut { .. })));
        assert!(matches!(writer.join().unwrap(), Err(ChannelError::Closed { .. })));
    });
}

#[test]
fn an_end_that_nobody_announced_is_a_cut() {
    let hosts = Hosts::new();
    let (proxy, near, far) = hosts.through(vec![]);
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    near.write_all(b"ab", wait).unwrap();
    let mut two = [0; 2];
    far.read_exact(&mut two, wait).unwrap();
    proxy.cut();
    let error = far.read_some(&mut two, wait).unwrap_err();
    assert!(matches!(error, ChannelError::Cut { .. }), "{error}");

    let (_proxy, near, far) = hosts.through(vec![]);
    near.write_all(b"ab", wait).unwrap();
    near.finish();
    far.read_exact(&mut two, wait).unwrap();
    assert_eq!(far.read_some(&mut two, wait).unwrap(), 0);
    // The other direction is still open.
    far.write_all(b"cd", wait).unwrap();
    near.read_exact(&mut two, wait).unwrap();
    assert_eq!(&two, b"cd");
}

/// Bytes of the handshake and the first words from the side that connects, none of which may be touched here.
fn passed_by_handshake(hosts: &Hosts) -> u64 {
    let (proxy, _near, _far) = hosts.through(vec![]);
    proxy.passed(Direction::Forward)
}

#[test]
fn any_altered_byte_ends_the_stream_and_nothing_altered_comes_out() {
    let hosts = Hosts::new();
    let begin = passed_by_handshake(&hosts);
    let sent = sample(40_000);
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    // Certificates differ in length by a byte or two from one run to the next, so these places lie within the first record. Of its
    // header each byte is hit: type, version, length.
    let faults = (0..8)
        .map(|at| (begin + at, FaultKind::Corrupt(0x40)))
        .chain([
            (begin + 5_000, FaultKind::Corrupt(1)),
            (begin + 30_000, FaultKind::Corrupt(0x80)),
        ])
        .chain([
            (begin + 9_000, FaultKind::Swallow(1)),
            (begin + 16_406, FaultKind::Swallow(16_406)),
        ]);
    for (after_bytes, kind) in faults {
        let fault = Fault {
            connection: 0,
            direction: Direction::Forward,
            after_bytes: after_bytes + 16,
            kind,
        };
        let (_proxy, near, far) = hosts.through(vec![fault]);
        thread::scope(|scope| {
            scope.spawn(|| {
                // It may be told in the middle.
                let _ = near.write_all(&sent, wait);
                near.finish();
            });
            let (mut received, mut piece) = (Vec::new(), vec![0; 10_000]);
            let error = loop {
                match far.read_some(&mut piece, wait) {
                    Ok(0) => panic!("{kind:?} at {after_bytes} was not noticed"),
                    Ok(read) => received.extend(&piece[..read]),
                    Err(error) => break error,
                }
            };
            assert!(sent.starts_with(&received), "{kind:?} at {after_bytes}");
            let is_right = match &error {
                ChannelError::Trust { source, .. } => matches!(
                    **source,
                    TrustError::Altered | TrustError::Tls(_) | TrustError::PlainPeer
                ),
                ChannelError::Cut { .. } | ChannelError::Closed { .. } => true,
                _ => false,
            };
            assert!(is_right, "{kind:?} at {after_bytes}: {error:?}");
            far.shutdown();
        });
    }
}

fn memory(pages: u64) -> GuestMemory {
    GuestMemory::new(MemoryLayout::new(Bytes(pages * 4096)).unwrap()).unwrap()
}

#[test]
fn frames_and_pages_pass_and_the_wire_shows_none_of_them() {
    let hosts = Hosts::new();
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    let (left, right) = Stream::pair().unwrap();
    let (middle_left, middle_right) = Stream::pair().unwrap();
    // A tap between the two ends.
    let tap = thread::spawn(move || {
        let never = Cancel::new();
        let wait = Wait::within(PATIENCE, &never);
        let forward = |from: &Stream, to: &Stream| {
            let (mut seen, mut piece) = (Vec::<u8>::new(), vec![0; 65_536]);
            while let Ok(read @ 1..) = from.read_some(&mut piece, wait) {
                seen.extend(&piece[..read]);
                if to.write_all(&piece[..read], wait).is_err() {
                    break;
                }
            }
            to.finish();
            seen
        };
        thread::scope(|scope| {
            let there = scope.spawn(|| forward(&right, &middle_left));
            let back = forward(&middle_left, &right);
            [there.join().unwrap(), back].concat()
        })
    });
    let (near, far) = hosts.secure(left, middle_right);
    let (near, far) = (Arc::new(near), Arc::new(far));
    let (source, target) = (memory(600), memory(600));
    let stamp = *b"the guest's own secret";
    for page in 0..600 {
        source.write(page * 4096 + page, &stamp).unwrap();
    }
    let mut sender = FrameSender::new(Arc::clone(&near), TokenBucket::new(None), Arc::default());
    let mut receiver = FrameReceiver::new(Arc::clone(&far), PATIENCE, Cancel::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            let all = Run::new(Gfn(0), Pages(599));
            sender.pages(&source, all, 1, Checksum::None, wait).unwrap();
            sender.urgent_page(&source, Gfn(599), Checksum::None, wait).unwrap();
            sender.heartbeat(wait).unwrap();
            near.finish();
        });
        let mut pages = 0;
        while let Some(header) = receiver.header(PATIENCE).unwrap() {
            match header.kind {
                FrameKind::Pages => pages += receiver.pages_into(&target, &header).unwrap().count.0,
                FrameKind::Heartbeat => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(pages, 600);
        assert!(!receiver.has_buffered() || far.read_some(&mut [0], wait).unwrap() == 0);
    });
    for page in 0..600 {
        let mut found = [0; 22];
        target.read(page * 4096 + page, &mut found).unwrap();
        assert_eq!(found, stamp, "page {page}");
    }
    far.shutdown();
    near.shutdown();
    drop((near, far, sender, receiver));
    let seen = tap.join().unwrap();
    assert!(seen.len() > 600 * 4096);
    assert!(seen.windows(stamp.len()).all(|window| window != stamp));
    assert!(seen.windows(4).all(|window| window != b"DNLN"), "not even frames show");
}
