//! A server with a handler that only remembers, and clients of all kinds.

use super::*;
use crate::{
    control::{EndReason, Event, Message, RecordingAnswer, Service, recording::Encoder},
    guest::GuestKind,
    journal::Role,
    memory::Run,
    report::{Outcome, RecordingSchema, State},
};
use dunlin_core::{
    tracefile::Source,
    units::{Gfn, Pages},
};
use proptest::prelude::*;
use std::sync::{
    atomic::{AtomicU64, Ordering},
    mpsc::{Receiver, SyncSender, sync_channel},
};
use std::time::Instant;

const FOREVER_FOR_A_TEST: Duration = Duration::from_secs(20);

/// Its migration sends news until it is cancelled or told to complete.
struct Pretender {
    cancelled: Cancel,
    complete: Mutex<Receiver<()>>,
    news: AtomicU64,
    ended: SyncSender<Outcome>,
}

impl Handler for Pretender {
    fn status(&self) -> Status {
        Status {
            name: Some("web".into()),
            ..Status::new(Role::Source, State::Running)
        }
    }

    fn migrate(
        &self,
        _: Caller,
        request: MigrateRequest,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<MigrationReport, ControlError> {
        if request.strategy == "impossible" {
            return Err(ControlError::refused("not with this one"));
        }
        let news = some_progress();
        let outcome = loop {
            progress(&news);
            self.news.fetch_add(1, Ordering::AcqRel);
            if self.cancelled.is_raised() {
                break Outcome::Cancelled;
            }
            if self.complete.lock().unwrap().try_recv().is_ok() {
                break Outcome::Completed;
            }
            thread::yield_now();
        };
        self.ended.send(outcome).unwrap();
        Ok(MigrationReport::new(request.strategy, outcome))
    }

    fn cancel(&self, _: Caller) -> Result<Status, ControlError> {
        self.cancelled.raise();
        Ok(self.status())
    }

    fn resolve(&self, _: Caller, _: Resolution) -> Result<Status, ControlError> {
        Err(ControlError::refused("nothing to resolve: the VM runs"))
    }

    /// Says where it is, and ends with a reason of its own.
    fn record(&self, request: RecordRequest, subscriber: &mut Subscriber<'_>) -> Result<(), ControlError> {
        if request.exact {
            return Err(ControlError::refused("not with this one"));
        }
        let never = Cancel::new();
        let mut recorded = || -> Result<(), Gone> {
            subscriber.answer(&some_answer(), &never)?;
            let mut encoder = Encoder::default();
            assert_eq!(
                subscriber.listen(Instant::now() + FOREVER_FOR_A_TEST, &never)?,
                Heard::Go
            );
            encoder.put(&Message::Started { at_ns: 1, unix_ns: 2 });
            let reason = loop {
                subscriber.say(encoder.bytes(), &never)?;
                encoder.clear();
                encoder.put_dirty(0, [Run::new(Gfn(3), Pages(4))].into_iter());
                match subscriber.listen(Instant::now() + Duration::from_millis(1), &never)? {
                    Heard::Nothing | Heard::Go => {}
                    Heard::Closing => break EndReason::ProcessEnds,
                    _ => break EndReason::Stopped,
                }
            };
            encoder.put(&Message::End {
                at_ns: 3,
                cpu_ns: 4,
                reason,
            });
            subscriber.say(encoder.bytes(), &never)
        };
        if recorded().is_err() {
            self.ended.send(Outcome::Cancelled).unwrap();
        }
        Ok(())
    }
}

struct Scene {
    dir: tempfile::TempDir,
    server: Option<Server>,
    pretender: Arc<Pretender>,
    complete: SyncSender<()>,
    ended: Receiver<Outcome>,
    cancel: Cancel,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (complete, completion) = sync_channel(1);
        let (ended, end) = sync_channel(1);
        let pretender = Arc::new(Pretender {
            cancelled: Cancel::new(),
            complete: Mutex::new(completion),
            news: AtomicU64::new(0),
            ended,
        });
        let server = Server::start(&dir.path().join("control"), pretender.clone()).unwrap();
        Self {
            dir,
            server: Some(server),
            pretender,
            complete,
            ended: end,
            cancel: Cancel::new(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    fn wait(&self) -> Wait<'_> {
        Wait::within(FOREVER_FOR_A_TEST, &self.cancel)
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), self.wait()).unwrap()
    }

    fn migrating_client(&self) -> Client {
        let mut client = self.client();
        client.start_migration(&request("precopy"), self.wait()).unwrap();
        assert!(matches!(client.next_event(self.wait()).unwrap(), Event::Progress(_)));
        client
    }

    /// The raw answer to raw bytes.
    fn talk(&self, bytes: &[u8]) -> String {
        let stream = crate::channel::connect(&Address::unix(self.path()).unwrap(), self.wait()).unwrap();
        stream.write_all(bytes, self.wait()).unwrap();
        stream.finish();
        let (mut all, mut piece) = (Vec::new(), [0; 1000]);
        while let Ok(read @ 1..) = stream.read_some(&mut piece, self.wait()) {
            all.extend_from_slice(&piece[..read]);
        }
        String::from_utf8(all).unwrap()
    }
}

fn some_answer() -> RecordingAnswer {
    RecordingAnswer {
        schema: RecordingSchema,
        name: "web".into(),
        pid: 1,
        kind: GuestKind::Thread,
        vcpu_threads: vec![2],
        regions: vec![],
        tracking: Source::PagemapScan,
        ring_entries: 0,
        used_pages: 7,
        serve: vec![Service::with_pages(Source::PagemapScan)],
        window_us: 1000,
    }
}

fn some_progress() -> Progress {
    Progress {
        phase: State::PreCopy,
        round: 1,
        total_pages: 10,
        remaining_pages: 5,
        remaining_bytes: 5 * 4096,
        rate: 1,
        eta_us: None,
        observing_us: None,
    }
}

fn request(strategy: &str) -> MigrateRequest {
    MigrateRequest::new("host:7".parse().unwrap(), strategy)
}

fn outcome(client: &mut Client, wait: Wait<'_>) -> Outcome {
    loop {
        if let Event::Done(report) = client.next_event(wait).unwrap() {
            return report.outcome;
        }
    }
}

#[test]
fn requests_are_answered_one_after_the_other() {
    let scene = Scene::new();
    let mut client = scene.client();
    assert_eq!(client.status(scene.wait()).unwrap().name.as_deref(), Some("web"));
    assert_eq!(client.server_pid(), i32::try_from(std::process::id()).ok());
    let refused = client.resolve(Resolution::GiveUp, scene.wait()).unwrap_err();
    assert_eq!(
        (refused.to_string().as_str(), refused.exit_code()),
        ("nothing to resolve: the VM runs", 2)
    );
    client.start_migration(&request("impossible"), scene.wait()).unwrap();
    assert_eq!(
        client.next_event(scene.wait()).unwrap_err().to_string(),
        "not with this one"
    );
    client.start_migration(&request("precopy"), scene.wait()).unwrap();
    scene.complete.send(()).unwrap();
    assert_eq!(outcome(&mut client, scene.wait()), Outcome::Completed);
    assert_eq!(client.status(scene.wait()).unwrap().state, State::Running);
}

#[test]
fn a_recording_goes_on_until_its_client_stops_it() {
    let scene = Scene::new();
    let refused = RecordRequest {
        exact: true,
        ..RecordRequest::default()
    };
    let error = scene.client().start_recording(&refused, scene.wait()).unwrap_err();
    assert_eq!(error.to_string(), "not with this one");
    let mut session = scene
        .client()
        .start_recording(&RecordRequest::default(), scene.wait())
        .unwrap();
    assert_eq!(session.answer().used_pages, 7);
    session.go(scene.wait()).unwrap();
    assert_eq!(
        session.next(scene.wait()).unwrap(),
        Message::Started { at_ns: 1, unix_ns: 2 }
    );
    for _ in 0..3 {
        let Message::Dirty { pages, .. } = session.next(scene.wait()).unwrap() else {
            panic!("it is told of pages");
        };
        assert_eq!(pages.runs().collect::<Vec<_>>(), [Some(Run::new(Gfn(3), Pages(4)))]);
    }
    session.stop(scene.wait()).unwrap();
    let reason = loop {
        if let Message::End { reason, .. } = session.next(scene.wait()).unwrap() {
            break reason;
        }
    };
    assert_eq!(reason, EndReason::Stopped);
    // The connection is as it was before.
    let mut client = session.into_client();
    assert_eq!(client.status(scene.wait()).unwrap().name.as_deref(), Some("web"));
    assert!(
        scene
            .talk(b"{\"command\":\"stop\"}\n")
            .contains("nothing is being recorded")
    );
}

#[test]
fn a_recording_ends_with_its_client_and_with_the_process() {
    let mut scene = Scene::new();
    let record = |scene: &Scene| {
        let mut session = scene
            .client()
            .start_recording(&RecordRequest::default(), scene.wait())
            .unwrap();
        session.go(scene.wait()).unwrap();
        session.next(scene.wait()).unwrap();
        session
    };
    drop(record(&scene));
    assert_eq!(scene.ended.recv_timeout(FOREVER_FOR_A_TEST), Ok(Outcome::Cancelled));
    let mut session = record(&scene);
    let server = scene.server.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| server.close(FOREVER_FOR_A_TEST));
        let reason = loop {
            if let Message::End { reason, .. } = session.next(scene.wait()).unwrap() {
                break reason;
            }
        };
        assert_eq!(reason, EndReason::ProcessEnds);
    });
}

#[test]
fn another_client_cancels() {
    let scene = Scene::new();
    let mut client = scene.migrating_client();
    // A wait that ends loses nothing of the answer.
    let raised = Cancel::new();
    raised.raise();
    let interrupted = client.next_event(Wait::forever(&raised));
    assert!(!matches!(
        interrupted,
        Ok(Event::Done(_)) | Err(ControlError::Lost { .. })
    ));
    scene.client().cancel(scene.wait()).unwrap();
    assert_eq!(outcome(&mut client, scene.wait()), Outcome::Cancelled);
}

#[test]
fn a_migration_outlives_its_client() {
    let scene = Scene::new();
    let client = scene.migrating_client();
    drop(client);
    let sent = scene.pretender.news.load(Ordering::Acquire);
    while scene.pretender.news.load(Ordering::Acquire) < sent + 1_000 {
        thread::yield_now();
    }
    scene.complete.send(()).unwrap();
    assert_eq!(scene.ended.recv_timeout(FOREVER_FOR_A_TEST), Ok(Outcome::Completed));
}

#[test]
fn a_client_that_reads_nothing_delays_nothing_and_gets_whole_lines_later() {
    let scene = Scene::new();
    let mut client = scene.migrating_client();
    // More news than any socket holds.
    while scene.pretender.news.load(Ordering::Acquire) < 100_000 {
        thread::yield_now();
    }
    scene.complete.send(()).unwrap();
    assert_eq!(scene.ended.recv_timeout(FOREVER_FOR_A_TEST), Ok(Outcome::Completed));
    assert_eq!(outcome(&mut client, scene.wait()), Outcome::Completed);
}

#[test]
fn news_that_do_not_fit_are_dropped_in_whole_lines() {
    let cancel = Cancel::new();
    let wait = Wait::within(FOREVER_FOR_A_TEST, &cancel);
    // Unlike a unix socket, TCP takes parts of lines.
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let near = crate::channel::connect(listener.address(), wait).unwrap();
    let far = listener.accept(wait).unwrap();
    let mut news = News {
        stream: &near,
        cancel: &cancel,
        pending: Vec::new(),
        gone: false,
    };
    let mut progress = some_progress();
    let mut torn = 0;
    for round in 0..200_000 {
        progress.round = round;
        news.offer(&progress);
        torn += usize::from(!news.pending.is_empty());
    }
    assert!(torn > 0, "more news than the sockets hold");
    let pending = std::mem::take(&mut news.pending);
    thread::scope(|scope| {
        scope.spawn(|| {
            near.write_all(&pending, wait).unwrap();
            near.finish();
        });
        let mut lines = LineReader::new(1000);
        let mut last = None;
        while let Some(line) = lines.next(&far, wait).unwrap() {
            match serde_json::from_slice(&line).unwrap() {
                Response::Progress(progress) => assert!(last.replace(progress.round) < Some(progress.round)),
                other => panic!("{other:?}"),
            }
        }
        assert!(last.is_some());
    });
    drop(far);
    news.pending.clear();
    while !news.gone {
        news.offer(&progress);
    }
}

#[test]
fn closing_lets_a_migration_answer() {
    let mut scene = Scene::new();
    let mut migrating = scene.migrating_client();
    let mut idle = scene.client();
    idle.status(scene.wait()).unwrap();
    let server = scene.server.take().unwrap();
    thread::scope(|scope| {
        let closing = scope.spawn(|| server.close(FOREVER_FOR_A_TEST));
        while scene.path().exists() {
            thread::yield_now();
        }
        scene.complete.send(()).unwrap();
        assert_eq!(outcome(&mut migrating, scene.wait()), Outcome::Completed);
        closing.join().unwrap();
    });
    let lost = idle.status(scene.wait()).unwrap_err();
    assert!(matches!(lost, ControlError::Lost { .. }), "{lost}");
    let absent = Client::connect(&scene.path(), scene.wait()).unwrap_err();
    assert!(matches!(absent, ControlError::NotServed { .. }), "{absent}");
}

#[test]
fn a_served_socket_names_its_owner_and_a_stale_one_is_replaced() {
    let mut scene = Scene::new();
    let error = Server::start(&scene.path(), scene.pretender.clone()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("process {}, which holds the VM \"web\"", std::process::id())),
        "{text}"
    );
    assert_eq!(error.exit_code(), 2);
    drop(scene.server.take());
    drop(std::os::unix::net::UnixListener::bind(scene.path()).unwrap());
    scene.server = Some(Server::start(&scene.path(), scene.pretender.clone()).unwrap());
    scene.client().status(scene.wait()).unwrap();
}

#[test]
fn a_crowd_is_turned_away_politely() {
    let scene = Scene::new();
    let mut crowd: Vec<_> = (0..CLIENTS_MAX).map(|_| scene.client()).collect();
    for client in &mut crowd {
        client.status(scene.wait()).unwrap();
    }
    let error = scene.client().status(scene.wait()).unwrap_err();
    assert!(
        matches!(&error, ControlError::Failed(_) | ControlError::Lost { .. }),
        "{error}"
    );
    assert_eq!(crowd[0].status(scene.wait()).unwrap().state, State::Running);
    drop(crowd);
    // Their threads notice it in their own time.
    while scene.client().status(scene.wait()).is_err() {
        thread::yield_now();
    }
}

#[test]
fn a_line_that_never_ends_is_refused() {
    let scene = Scene::new();
    let answer = scene.talk(&[b' '; REQUEST_MAX_BYTES + 4096]);
    assert!(
        answer.contains("65536 bytes") && answer.contains("\"exit_code\":2"),
        "{answer}"
    );
}

#[test]
fn an_unfinished_line_is_no_request() {
    let scene = Scene::new();
    assert_eq!(scene.talk(b"{\"command\":\"status\"}"), "");
    assert!(scene.talk(b"{\"command\":\"status\"}\n{\"comm").ends_with("}\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn nonsense_gets_an_error_and_the_next_request_its_answer(line in "[^\n]{0,80}") {
        let scene = Scene::new();
        let answer = scene.talk(format!("{line}\n{{\"command\":\"status\"}}\n").as_bytes());
        let lines: Vec<Response> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        prop_assert!(matches!(lines.as_slice(), [Response::Error(Failure { exit_code: 2, .. }), Response::Result(_)]), "{answer}");
    }
}
