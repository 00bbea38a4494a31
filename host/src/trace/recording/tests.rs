//! Recordings of a process that is played by the test.

use std::sync::Arc;
use std::thread;

use dunlin_core::pageset::Run;

use super::*;
use crate::channel::Stream;
use crate::control::{
    Caller, Client, Encoder, Handler, Heard, MigrateRequest, RecordRequest, RecordedRegion, Resolution, Server,
    Subscriber,
};
use crate::guest::GuestKind;
use crate::journal::Role;
use crate::report::{MigrationReport, Progress, RecordingSchema, State, Status};
use crate::track::monotonic_ns;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Kept {
    head: Option<Head>,
    items: Vec<Item>,
}

impl Sink for Kept {
    fn begin(&mut self, head: &Head) -> Result<(), TraceError> {
        self.head = Some(head.clone());
        Ok(())
    }

    fn push(&mut self, item: &Item) -> Result<(), TraceError> {
        self.items.push(*item);
        Ok(())
    }
}

/// Says what the test wants it to say, then ends when it is told to.
struct Player {
    serve: Service,
    said: Vec<Message>,
    reason: Option<EndReason>,
}

impl Handler for Player {
    fn status(&self) -> Status {
        Status::new(Role::Source, State::Running)
    }

    fn migrate(
        &self,
        _: Caller,
        _: MigrateRequest,
        _: &mut dyn FnMut(&Progress),
    ) -> Result<MigrationReport, ControlError> {
        Err(ControlError::refused("no"))
    }

    fn cancel(&self, _: Caller) -> Result<Status, ControlError> {
        Err(ControlError::refused("no"))
    }

    fn resolve(&self, _: Caller, _: Resolution) -> Result<Status, ControlError> {
        Err(ControlError::refused("no"))
    }

    fn record(&self, request: RecordRequest, subscriber: &mut Subscriber<'_>) -> Result<(), ControlError> {
        let never = Cancel::new();
        let answer = RecordingAnswer {
            schema: RecordingSchema,
            name: "é".repeat(64),
            pid: 1,
            kind: GuestKind::Kvm,
            vcpu_threads: vec![2, 3],
            regions: vec![RecordedRegion {
                first_gfn: 0,
                pages: 100,
                slot: 0,
                host_address: 4096,
            }],
            tracking: self.serve.source,
            ring_entries: 0,
            used_pages: 7,
            serve: vec![self.serve],
            window_us: request.window_us,
        };
        let far = Instant::now() + PATIENCE;
        subscriber.answer(&answer, &never).unwrap();
        assert_eq!(subscriber.listen(far, &never), Ok(Heard::Go));
        let mut encoder = Encoder::default();
        self.said.iter().for_each(|message| encoder.put(message));
        subscriber.say(encoder.bytes(), &never).unwrap();
        let reason = self.reason.clone().unwrap_or_else(|| {
            assert_eq!(subscriber.listen(far, &never), Ok(Heard::Stop));
            EndReason::Stopped
        });
        encoder.clear();
        encoder.put(&Message::End {
            at_ns: 9_000,
            cpu_ns: 50,
            reason,
        });
        subscriber.say(encoder.bytes(), &never).unwrap();
        Ok(())
    }
}

const STARTED: Message = Message::Started {
    at_ns: 1_000,
    unix_ns: 77,
};

fn window(at_ns: u64, overruns: u64, steps: &[u64]) -> Message {
    Message::Window {
        from_ns: at_ns - 1,
        at_ns,
        entries: vec![],
        overruns,
        steps: steps.to_vec(),
    }
}

fn gfns(pages: &[u64]) -> crate::control::OrderedPages {
    crate::control::OrderedPages::new(&pages.iter().copied().map(Gfn).collect::<Vec<_>>())
}

fn play(player: Player, limits: Limits<'_>) -> (Kept, Result<Recorded, RecordingError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let server = Server::start(&path, Arc::new(player)).unwrap();
    let never = Cancel::new();
    let wait = Wait::within(PATIENCE, &never);
    let client = Client::connect(&path, wait).unwrap();
    let mut session = client.start_recording(&RecordRequest::default(), wait).unwrap();
    let mut source = Served::new(session.answer()).unwrap();
    let mut kept = Kept::default();
    let recorded = record(&mut session, &mut source, &mut kept, limits, &mut |_| {});
    drop(session);
    drop(server);
    (kept, recorded)
}

fn at(ns: u64) -> Nanos {
    Nanos(ns - 1_000)
}

#[test]
fn windows_of_a_bitmap_become_runs() {
    let dirty = |runs: &[(u64, u64)]| Message::Dirty {
        service: 0,
        pages: crate::control::DirtyRuns::new(runs.iter().map(|(first, count)| Run::new(Gfn(*first), Pages(*count)))),
    };
    let player = Player {
        serve: Service::with_pages(Source::Bitmap),
        said: vec![
            STARTED,
            dirty(&[(3, 2), (90, 10)]),
            window(2_000, 0, &[5, 6]),
            window(3_000, 0, &[7, 8]),
        ],
        reason: None,
    };
    let never = Cancel::new();
    let limits = Limits {
        duration: Some(Duration::from_millis(200)),
        interrupt: &never,
    };
    let (kept, recorded) = play(player, limits);
    let recorded = recorded.unwrap();
    assert_eq!(
        (recorded.source, recorded.reason.clone()),
        (Source::Bitmap, EndReason::Stopped)
    );
    assert_eq!(
        (recorded.tally.windows, recorded.tally.dirty_pages, recorded.tally.lost),
        (2, 12, 0)
    );
    let head = kept.head.unwrap();
    assert_eq!((head.vcpus, head.used, head.started_unix_ns), (2, Pages(7), 77));
    assert_eq!((head.window, head.total()), (Nanos::from_millis(50), Pages(100)));
    assert_eq!(head.guest.as_str(), "é".repeat(32), "cut at a letter");
    let steps = |ns, vcpu, steps| Item::Steps {
        at: at(ns),
        vcpu,
        steps,
    };
    let end = |ns| Item::WindowEnd {
        at: at(ns),
        vcpu: dunlin_core::tracefile::VCPU_UNKNOWN,
    };
    let (last, rest) = kept.items.split_last().unwrap();
    assert_eq!(
        rest,
        [
            Item::Dirty {
                run: Run::new(Gfn(3), Pages(2))
            },
            Item::Dirty {
                run: Run::new(Gfn(90), Pages(10))
            },
            end(2_000),
            steps(2_000, 0, 5),
            steps(2_000, 1, 6),
            end(3_000),
            steps(3_000, 0, 7),
            steps(3_000, 1, 8),
        ]
    );
    assert_eq!(
        *last,
        Item::End {
            at: at(9_000),
            overhead: recorded.cpu
        }
    );
    assert!(recorded.cpu >= Nanos(50));
}

#[test]
fn a_ring_brings_order_and_says_when_it_overran() {
    let writes = |at_ns, vcpu, pages: &[u64]| Message::Writes {
        service: 0,
        at_ns,
        vcpu,
        pages: gfns(pages),
    };
    let player = Player {
        serve: Service::with_pages(Source::Ring),
        said: vec![
            STARTED,
            writes(1_500, 1, &[9, 3]),
            // Overruns from before do not count.
            window(2_000, 4, &[]),
            writes(1_900, 0, &[5]),
            window(3_000, 5, &[]),
        ],
        reason: Some(EndReason::Migration),
    };
    let never = Cancel::new();
    let limits = Limits {
        duration: None,
        interrupt: &never,
    };
    let (kept, recorded) = play(player, limits);
    let recorded = recorded.unwrap();
    assert_eq!(recorded.reason, EndReason::Migration);
    assert_eq!((recorded.tally.writes, recorded.tally.overruns), (3, 1));
    assert_eq!(recorded.tally.lost, u64::MAX, "nobody knows how many");
    let write = |ns, vcpu, gfn| Item::Write {
        at: at(ns),
        vcpu,
        gfn: Gfn(gfn),
    };
    assert_eq!(kept.items[..2], [write(1_500, 1, 9), write(1_500, 1, 3)]);
    // A time before the last is as late as that.
    assert_eq!(kept.items[3], write(2_000, 0, 5));
    assert!(matches!(kept.items[4], Item::Lost { events: u64::MAX, .. }));
}

#[test]
fn an_interrupt_ends_it_in_order_and_a_second_one_at_once() {
    let player = |said| Player {
        serve: Service::with_pages(Source::Bitmap),
        said,
        reason: None,
    };
    let interrupt = Cancel::new();
    let limits = Limits {
        duration: None,
        interrupt: &interrupt,
    };
    let (kept, recorded) = thread::scope(|scope| {
        let playing = scope.spawn(|| play(player(vec![STARTED, window(2_000, 0, &[])]), limits));
        thread::sleep(Duration::from_millis(300));
        interrupt.raise();
        playing.join().unwrap()
    });
    assert_eq!(recorded.unwrap().reason, EndReason::Stopped);
    assert!(matches!(kept.items.last(), Some(Item::End { .. })));
}

#[test]
fn a_process_that_says_nonsense_is_named() {
    for said in [vec![window(2_000, 0, &[])], vec![STARTED, STARTED]] {
        let never = Cancel::new();
        let limits = Limits {
            duration: None,
            interrupt: &never,
        };
        let player = Player {
            serve: Service::with_pages(Source::Bitmap),
            said,
            reason: Some(EndReason::Stopped),
        };
        let error = play(player, limits).1.unwrap_err();
        assert!(matches!(error, RecordingError::Contradiction(_)), "{error}");
    }
}

/// What a hundred thousand pages a window cost on their way: for people who run this with `--nocapture`; nothing depends on it.
#[test]
fn many_pages_pass() {
    let (near, far) = Stream::pair().unwrap();
    let never = Cancel::new();
    let wait = Wait::within(PATIENCE, &never);
    let windows = 20;
    let pages: Vec<u64> = (0..100_000u64).map(|index| index * 3).collect();
    let runs = || pages.iter().map(|page| Run::new(Gfn(*page), Pages(1)));
    let (before, begun) = (process_cpu(), monotonic_ns());
    let found = thread::scope(|scope| {
        scope.spawn(|| {
            let mut encoder = Encoder::default();
            for _ in 0..windows {
                encoder.clear();
                encoder.put_dirty(0, runs());
                near.write_all(encoder.bytes(), wait).unwrap();
            }
            near.finish();
        });
        let mut decoder = crate::control::Decoder::new(Vec::new());
        let mut found = 0u64;
        while let Some(message) = decoder.next(&far, wait).unwrap() {
            let Message::Dirty { pages, .. } = message else {
                panic!("{message:?}");
            };
            found += pages.runs().map(|run| run.unwrap().count.0).sum::<u64>();
        }
        found
    });
    assert_eq!(found, windows * pages.len() as u64);
    let cpu = process_cpu().0 - before.0;
    println!(
        "{} pages: {} us of CPU a window, both sides together; {} us passed",
        found,
        cpu / windows / 1000,
        (monotonic_ns() - begun) / windows / 1000
    );
}
