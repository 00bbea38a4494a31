//! One attempt at work: actions of the machine, frames of the source.

use super::pb_reader::Reading;
use super::populator::Populator;
use super::*;
use crate::run::guard::peer_of;

/// Longest pause for the sake of a limit: the source must not seem dead to this side, nor this side to it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Worker<'s, 'e, 'a, 'w> {
    pub(super) hello: &'e OwnedHello,
    /// Who began the attempt, and what his further connections are known by; `None` in plain.
    pub(super) source: Option<Arc<Session>>,
    pub(super) incoming: &'a Receiver<Incoming>,
    pub(super) populate: bool,
    pub(super) tracking: Tracking,
    pub(super) peer: Peer,
    pub(super) bucket: TokenBucket,
    /// The session's folder in the storage directory, if something comes from there.
    pub(super) directory: Option<&'e SessionDirectory>,
    /// If pages come by two channels before the guest runs here.
    pub(super) merge: Option<Arc<Merge>>,
    pub(super) static_reader: StaticReader<'s>,
    pub(super) pb_reader: PbReader<'s>,
    pub(super) asked: &'e Asked,
    pub(super) populator: Populator<'s>,
    pub(super) recorder: &'a mut dyn TargetRecorder,
    pub(super) handle: &'a TargetHandle,
    pub(super) announce_running: &'a dyn Fn(&Arc<AnyGuest>),
    pub(super) shared: &'e SharedTarget<'w>,
    pub(super) mouth: &'e Mouth,
    pub(super) receiver: Option<FrameReceiver>,
    pub(super) guest: Option<Arc<AnyGuest>>,
    pub(super) uffd: &'e Mutex<Option<Arc<Userfaultfd>>>,
    pub(super) state: Vec<u8>,
    pub(super) wanted_hashes: Vec<u64>,
    /// What the source has signed last.
    pub(super) signature: Option<Vec<u8>>,
    /// That the source has given the VM up on a connection by TLS: its signature, and what it is checked by.
    pub(super) commit: Option<(Option<Vec<u8>>, Signing)>,
    pub(super) fault_links: SyncSender<Link>,
    pub(super) fault_channels: Option<Receiver<Link>>,
    pub(super) latencies: &'e Latencies,
    pub(super) stop_faults: &'e AtomicBool,
    pub(super) fault_server: Option<std::thread::ScopedJoinHandle<'s, ()>>,
    pub(super) scope: &'s Scope<'s, 'e>,
    pub(super) started_running: Option<Instant>,
    pub(super) post_copy_done: Option<Instant>,
    pub(super) leftover: Option<Incoming>,
}

impl<'s, 'e, 'w> Worker<'s, 'e, '_, 'w> {
    pub(super) fn work(&mut self) -> TargetOutcome {
        loop {
            self.connections();
            if self.handle.stop.load(Ordering::Acquire) && self.in_copy() {
                self.lose_link();
            }
            let action = {
                let mut target = self.shared.lock();
                if let Some(resolution) = self
                    .handle
                    .resolution
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take()
                {
                    let resolved = target.resolve(resolution);
                    self.handle.refused.store(resolved.is_err(), Ordering::Release);
                }
                let action = target.poll(self.shared.now());
                self.show(&target);
                action
            };
            match action {
                TargetAction::Finish(outcome) => return outcome,
                TargetAction::Wait { until } => self.listen(until),
                action => self.perform(action),
            }
        }
    }

    fn show(&self, target: &Target<'_>) {
        let snapshot = TargetSnapshot {
            session: target.config().session,
            phase: target.phase(),
            round: target.round().0,
            pb_data: target.config().pb_data,
            missing: if target.running() || target.phase() == Phase::HandOverUnknown {
                target.missing().len()
            } else {
                Pages::ZERO
            },
        };
        *self.handle.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
    }

    /// New connections: the session's own, or others that must be turned away.
    fn connections(&mut self) {
        while let Ok(incoming) = self.incoming.try_recv() {
            match incoming {
                Incoming::Attach(mut link, session) if session == self.hello.session() && link.joined(session) => {
                    if link.say(&Message::Attached).is_ok() {
                        // The fault server may not run yet; it finds the channel when it does.
                        let _ = self.fault_links.try_send(link);
                    }
                }
                Incoming::Resume {
                    link,
                    session,
                    vm,
                    given_up,
                } if session == self.hello.session()
                    && vm == self.hello.vm()
                    && link.joined(session)
                    && self.is_source(&link) =>
                {
                    self.lose_link();
                    self.mouth.replace(Some(link.sender));
                    self.receiver = Some(link.receiver);
                    self.wanted_hashes.clear();
                    self.shared.feed(TargetEvent::Reconnected { given_up });
                }
                Incoming::Hello(link, hello)
                    if hello.vm() == self.hello.vm()
                        && self.is_from_source(&link)
                        && self.is_source(&link)
                        && self.unknown() =>
                {
                    // Only who runs the VM says hello for it: the hand-over that this side waits for is off.
                    self.leftover = Some(Incoming::Hello(link, hello));
                    self.shared.feed(TargetEvent::Reconnected { given_up: false });
                }
                // This attempt is over but for tidying up.
                Incoming::Hello(link, hello) if self.is_aborted() && self.leftover.is_none() => {
                    self.leftover = Some(Incoming::Hello(link, hello));
                }
                Incoming::Hello(mut link, _) => {
                    let _ = link.say(&Message::Refused(dunlin_core::message::Refusal::Busy));
                }
                // Another session's channel: closing it says enough.
                Incoming::Attach(..) | Incoming::Resume { .. } => {}
            }
        }
    }

    /// Whether it is, by what the policy knows of it, the source that this VM comes from.
    fn is_source(&self, link: &Link) -> bool {
        peer_of(link.receiver.stream()) == self.peer
    }

    /// Whether the connection comes from whoever began this attempt; in plain nobody can tell.
    fn is_from_source(&self, link: &Link) -> bool {
        self.source
            .as_ref()
            .is_none_or(|source| link.trusted().is_some_and(|trusted| trusted.peer == *source.peer()))
    }

    fn in_copy(&self) -> bool {
        matches!(self.shared.lock().phase(), Phase::Connecting | Phase::PreCopy)
    }

    fn is_aborted(&self) -> bool {
        self.shared.lock().phase() == Phase::Aborted
    }

    fn unknown(&self) -> bool {
        self.shared.lock().phase() == Phase::HandOverUnknown
    }

    fn lose_link(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver.stream().shutdown();
            self.mouth.replace(None);
            self.shared.feed(TargetEvent::LinkLost);
        }
    }

    /// Takes one frame from the migration channel, or waits for whatever else may happen.
    fn listen(&mut self, until: Option<Nanos>) {
        let (post_copy, linked) = {
            let target = self.shared.lock();
            (target.running(), target.linked())
        };
        if !linked && let Some(receiver) = self.receiver.take() {
            // The fault server lost its channel: both are opened anew, together.
            receiver.stream().shutdown();
            self.mouth.replace(None);
        }
        let look = if post_copy { LOOK_POST_COPY } else { LOOK };
        let patience = until.map_or(look, |until| self.shared.clock.until(until).min(look));
        let Some(mut receiver) = self.receiver.take() else {
            return std::thread::sleep(patience);
        };
        let heard = receiver.header(patience).and_then(|header| match header {
            Some(header) => self.frame(&mut receiver, &header),
            None => Ok(()),
        });
        match heard {
            Ok(()) => self.receiver = Some(receiver),
            Err(error) => {
                self.shared.note(&error);
                self.failed(&error);
            }
        }
    }

    fn failed(&mut self, error: &FrameError) {
        let event = match error {
            FrameError::Channel(_) => TargetEvent::LinkLost,
            FrameError::Wire { .. } => TargetEvent::Violation(Violation::Frame),
            FrameError::Unexpected { .. } => TargetEvent::Violation(Violation::UnexpectedMessage),
            FrameError::PageChecksum { .. } => TargetEvent::Violation(Violation::PageChecksum),
            FrameError::Memory(MemoryError::Populate { .. } | MemoryError::Kernel { .. }) => TargetEvent::HostFailed,
            FrameError::Memory(_) => TargetEvent::Violation(Violation::PageOutside),
        };
        let link_is_gone = event == TargetEvent::LinkLost;
        self.shared.say_if_distrusted(error);
        self.shared.feed(event);
        // What is wrong with the content can still be said; the connection itself is of no more use.
        if !link_is_gone && self.shared.lock().phase() == Phase::Aborted {
            return;
        }
        self.mouth.replace(None);
        self.shared.feed(TargetEvent::LinkLost);
    }

    fn frame(&mut self, receiver: &mut FrameReceiver, header: &FrameHeader) -> Result<(), FrameError> {
        let run = Run::new(header.first, Pages(u64::from(header.count)));
        match header.kind {
            FrameKind::Heartbeat => self.shared.feed(TargetEvent::Heard),
            FrameKind::Control => {
                let stream = Arc::clone(receiver.stream());
                let message = receiver.message(header)?;
                self.keep(&message, &stream);
                self.shared.feed(TargetEvent::Message(&message));
            }
            FrameKind::PageRequest => return Err(FrameError::unexpected(receiver.stream().peer())),
            FrameKind::Pages | FrameKind::Zero | FrameKind::Announce => {
                let Some(guest) = &self.guest else {
                    return Err(FrameError::unexpected(receiver.stream().peer()));
                };
                let memory = Arc::clone(guest.memory());
                memory.check(run)?;
                if self.shared.lock().running() {
                    self.install(receiver, header, run)?;
                } else if self.shared.lock().accepts_pages() {
                    self.receive(receiver, &memory, header, run)?;
                } else {
                    return Err(FrameError::unexpected(receiver.stream().peer()));
                }
            }
        }
        Ok(())
    }

    /// Before the guest runs here: straight into memory.
    fn receive(
        &mut self,
        receiver: &mut FrameReceiver,
        memory: &GuestMemory,
        header: &FrameHeader,
        run: Run,
    ) -> Result<(), FrameError> {
        let known = self.shared.lock().received().count_run(run);
        let two_channels = self.merge.is_some();
        if let Some(merge) = &self.merge
            && header.kind != FrameKind::Announce
        {
            merge.claim(run);
        }
        match header.kind {
            FrameKind::Pages => {
                if known < run.count && !self.populate && !self.populator.is_told_of(run) {
                    memory.populate(run)?;
                }
                receiver.pages_into(memory, header)?;
                // What cannot be taken yet waits in the source.
                self.bucket.charge(run.count.bytes().0);
                if let Some(backlog) = self.bucket.backlog() {
                    std::thread::sleep(backlog.min(LONGEST_PAUSE));
                }
            }
            // Fresh memory is zero already.
            FrameKind::Zero if known > Pages::ZERO || two_channels => memory.discard(run)?,
            FrameKind::Zero => {}
            _ => {
                if known == Pages::ZERO && !self.populate {
                    self.populator.tell(run);
                }
                return Ok(());
            }
        }
        if header.kind == FrameKind::Zero {
            self.shared.keep_zero_hashes(run);
        } else if !self.shared.hashes.is_empty() {
            for gfn in run.first.0..run.end().0 {
                self.shared.hashes[gfn as usize].store(memory.hash_page(Gfn(gfn))?, Ordering::Relaxed);
            }
        }
        self.shared.feed(TargetEvent::Received(run));
        Ok(())
    }

    /// While the guest runs here: installed if absent.
    fn install(&mut self, receiver: &mut FrameReceiver, header: &FrameHeader, run: Run) -> Result<(), FrameError> {
        let Some(uffd) = self.uffd.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            if self.post_copy_done.is_none() {
                return Err(FrameError::unexpected(receiver.stream().peer()));
            }
            // Still on its way when the storage channel brought the last of it.
            if header.kind == FrameKind::Pages {
                receiver.pages(header)?;
            }
            return Ok(());
        };
        let installed = match header.kind {
            FrameKind::Pages => {
                let pages = receiver.pages(header)?;
                for (index, page) in pages.chunks_exact(PAGE_SIZE as usize).enumerate() {
                    self.shared.keep_hash(Gfn(run.first.0 + index as u64), page);
                }
                uffd.copy(run.first, pages)
            }
            FrameKind::Zero => {
                self.shared.keep_zero_hashes(run);
                uffd.zero(run)
            }
            _ => return Ok(()),
        };
        if let Err(error) = installed {
            // The guest waits for these pages and nothing else can bring them.
            fatal(&error);
        }
        self.shared.feed(TargetEvent::Installed { run, demanded: false });
        Ok(())
    }

    /// Keeps the bytes of state and hashes; the machine says whether they fit.
    fn keep(&mut self, message: &Message<'_>, stream: &Stream) {
        match message {
            Message::Signed { signature } if signature.len() <= SIGNATURE_BYTES_MAX => {
                self.signature = Some(signature.to_vec());
            }
            Message::Commit => {
                let signing = stream.trusted().map(|trusted| trusted.signing.clone());
                self.commit = signing.map(|signing| (self.signature.take(), signing));
            }
            Message::State { offset, bytes } => {
                let fits = self.state.len() + bytes.len() <= STATE_BYTES_MAX as usize;
                if *offset as usize == self.state.len() && fits {
                    self.state.extend_from_slice(bytes);
                }
            }
            Message::Hashes { first, bytes } => {
                self.wanted_hashes.resize(self.shared.hashes.len(), 0);
                for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                    if let Some(hash) = self.wanted_hashes.get_mut((first.0 as usize).saturating_add(index)) {
                        *hash = u64::from_le_bytes(*word);
                    }
                }
            }
            _ => {}
        }
    }

    fn perform(&mut self, action: TargetAction) {
        let event = match action {
            TargetAction::Send(message) => self.send(message),
            TargetAction::SendMissing => self.send_missing(),
            TargetAction::CreateGuest => self.create(),
            TargetAction::ReadPbData => self.read_pb_data(),
            TargetAction::Record(record) => {
                if record == TargetRecord::Complete {
                    self.measure();
                }
                let signed = match record {
                    TargetRecord::Taken => self.countersign(),
                    _ => Ok(()),
                };
                let recorded =
                    signed.and_then(|()| self.recorder.record(record, self.hello.session(), self.hello.vm()));
                self.event(recorded.map_err(|error| crate::run::chain(error.as_ref())))
            }
            TargetAction::PrepareMissing => {
                self.static_reader.finish();
                let prepared = self.prepare_missing();
                self.outcome(prepared)
            }
            TargetAction::RestoreState => {
                self.static_reader.finish();
                match self.begin_hand_over() {
                    Ok(()) => {
                        let guest = self.guest.as_ref();
                        let restored = guest.map_or(Ok(()), |guest| guest.restore_state(&self.state));
                        self.outcome(restored)
                    }
                    failed => self.event(failed),
                }
            }
            TargetAction::RunGuest => self.run_guest(),
            TargetAction::FinishPostCopy => self.finish_post_copy(),
            TargetAction::CompareHashes => self.compare(),
            TargetAction::Discard => {
                self.static_reader.finish();
                self.populator.finish();
                *self.uffd.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.guest = None;
                TargetEvent::Done
            }
            TargetAction::Wait { .. } | TargetAction::Finish(_) => return,
        };
        self.shared.feed(event);
    }

    fn outcome<E: std::error::Error>(&self, done: Result<(), E>) -> TargetEvent<'static> {
        self.event(done.map_err(|error| crate::run::chain(&error)))
    }

    fn event(&self, done: Result<(), String>) -> TargetEvent<'static> {
        match done {
            Ok(()) => TargetEvent::Done,
            Err(trouble) => {
                self.shared
                    .trouble
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(trouble);
                TargetEvent::Failed
            }
        }
    }

    fn send(&mut self, message: TargetMessage) -> TargetEvent<'static> {
        let signed = match message {
            TargetMessage::Ready => self.send_signature(),
            _ => Ok(()),
        };
        let message = message.message(&self.report());
        self.said(signed.and_then(|()| self.mouth.say(&message)))
    }

    fn said(&self, said: Result<(), FrameError>) -> TargetEvent<'static> {
        match said {
            Ok(()) => TargetEvent::Done,
            Err(error) => {
                self.shared.note(&error);
                self.mouth.replace(None);
                TargetEvent::LinkLost
            }
        }
    }

    fn send_missing(&self) -> TargetEvent<'static> {
        let (words, pages) = {
            let target = self.shared.lock();
            let words: Vec<u8> = target
                .missing()
                .words()
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            (words, target.missing().len())
        };
        let chunks = words
            .chunks(CHUNK_BYTES_MAX)
            .enumerate()
            .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0));
        let mut said = Ok(());
        for (index, words) in chunks {
            let first_word = (index * CHUNK_BYTES_MAX / 8) as u64;
            said = said.and_then(|()| self.mouth.say(&Message::Missing { first_word, words }));
        }
        self.said(said.and_then(|()| self.mouth.say(&Message::MissingEnd { pages })))
    }

    fn create(&mut self) -> TargetEvent<'static> {
        let created = self.try_create();
        self.outcome(created)
    }

    fn try_create(&mut self) -> Result<(), TargetError> {
        let hello = self.hello.get();
        let config = GuestConfig::decode(hello.config)?;
        let kind = config.kind;
        let guest = Arc::new(AnyGuest::create_incoming_tracked(
            config,
            crate::run::vm::machine(&hello),
            self.tracking,
        )?);
        let memory = guest.memory();
        if crate::run::vm::regions(memory.layout()) != hello.regions {
            return Err(TargetError::Description);
        }
        if hello.capabilities.contains(Capabilities::POST_COPY) {
            // Opened now, so that whatever forbids it shows before anything is at stake.
            let origin = if kind == GuestKind::Kvm {
                FaultOrigin::All
            } else {
                FaultOrigin::UserMode
            };
            let uffd = Userfaultfd::open(Arc::clone(memory), origin)?;
            *self.uffd.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(uffd));
        }
        if self.populate {
            for run in memory.layout().regions() {
                memory.populate(*run)?;
            }
        }
        let huge = !hello.capabilities.contains(Capabilities::POST_COPY);
        self.populator.start(self.scope, Arc::clone(memory), huge);
        if let Some(directory) = self.directory
            && hello.capabilities.contains(Capabilities::STORAGE)
        {
            let merge = Arc::new(Merge::new(memory.end_gfn()));
            let directory = directory.clone();
            self.merge = Some(Arc::clone(&merge));
            self.static_reader = StaticReader::start(self.scope, directory, Arc::clone(memory), merge, self.shared);
        }
        self.guest = Some(guest);
        Ok(())
    }

    fn begin_hand_over(&mut self) -> Result<(), String> {
        let mode = self.shared.lock().mode().unwrap_or(Mode::StopCopy);
        let signing = self.mouth.signing();
        let begun = self
            .recorder
            .begin_hand_over(self.hello.session(), mode, &self.state, signing.as_ref());
        begun.map_err(|error| crate::run::chain(error.as_ref()))
    }

    fn prepare_missing(&mut self) -> Result<(), TargetError> {
        let uffd = self.uffd.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(guest), Some(uffd), Some(channels)) = (&self.guest, uffd, self.fault_channels.take()) else {
            return Err(TargetError::NoPostCopy);
        };
        // A page that comes into being from now on would never fault.
        self.populator.finish();
        let missing: Vec<Run> = self.shared.lock().missing().runs().collect();
        guest.memory().discard_runs(&missing)?;
        uffd.register_missing()?;
        if let Some(page) = guest.memory().first_present(&missing)? {
            return Err(TargetError::StillPresent(page));
        }
        let (shared, latencies, stop, asked) = (self.shared, self.latencies, self.stop_faults, self.asked);
        let server = self.scope.spawn(move || {
            let _abort = AbortOnPanic;
            let server = FaultServer {
                shared,
                uffd: &uffd,
                channels,
                stop,
                latencies,
                asked,
            };
            match server.serve() {
                Ok(link) => *shared.fault_link.lock().unwrap_or_else(PoisonError::into_inner) = link,
                Err(error) => fatal(&error),
            }
        });
        self.fault_server = Some(server);
        Ok(())
    }

    fn read_pb_data(&mut self) -> TargetEvent<'static> {
        let uffd = self.uffd.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(directory), Some(uffd)) = (self.directory, uffd) else {
            return TargetEvent::Failed;
        };
        eprintln!(
            "dunlin: the network is gone; what is missing is taken from {} as it comes",
            directory.path().display()
        );
        let reading = Reading {
            directory: directory.clone(),
            shared: self.shared,
            uffd,
            asked: self.asked,
            latencies: self.latencies,
        };
        self.pb_reader = PbReader::start(self.scope, reading);
        TargetEvent::Done
    }

    fn run_guest(&mut self) -> TargetEvent<'static> {
        let Some(guest) = self.guest.clone() else {
            return TargetEvent::Failed;
        };
        guest.mark();
        self.started_running = Some(Instant::now());
        let resumed = guest.resume();
        if resumed.is_ok() {
            (self.announce_running)(&guest);
        }
        self.outcome(resumed)
    }

    fn finish_post_copy(&mut self) -> TargetEvent<'static> {
        self.post_copy_done = Some(Instant::now());
        // It may wait for a disk that does not answer, and the guest for zero pages meanwhile.
        self.pb_reader.finish();
        self.stop_faults.store(true, Ordering::Release);
        // It may be about to install an answer to a page that was also pushed: only once it has ended may the watch end.
        // Who faults meanwhile waits for the end of the watch, and then reads the zeros that are all that is absent.
        if let Some(server) = self.fault_server.take() {
            let _ = server.join();
        }
        let uffd = self.uffd.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(uffd) = uffd
            && let Err(error) = uffd.unregister()
        {
            // Without it absent zero pages would wait for ever once the fault server is gone.
            fatal(&error);
        }
        TargetEvent::Done
    }

    fn compare(&self) -> TargetEvent<'static> {
        let regions = self.hello.regions();
        let (mut pages, mut mismatches) = (0, 0);
        for region in regions {
            for gfn in region.first.0..region.first.0 + region.pages.0 {
                let found = self
                    .shared
                    .hashes
                    .get(gfn as usize)
                    .map(|hash| hash.load(Ordering::Relaxed));
                pages += 1;
                mismatches += u64::from(found != self.wanted_hashes.get(gfn as usize).copied());
            }
        }
        TargetEvent::Compared { pages, mismatches }
    }

    fn report(&self) -> TargetReport {
        let report = *self.shared.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.unwrap_or_default()
    }

    fn measure(&self) {
        let (Some(guest), Some(started)) = (&self.guest, self.started_running) else {
            return;
        };
        let first = |guest: &AnyGuest| {
            let vcpus = guest.progress().vcpus;
            let running = vcpus.iter().filter(|vcpu| vcpu.halted.is_none());
            running.map(|vcpu| vcpu.first_since_resume).collect::<Option<Vec<_>>>()
        };
        while started.elapsed() < FIRST_PROGRESS && first(guest).is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let first_gap = first(guest).map_or(started.elapsed(), |first| {
            first
                .into_iter()
                .max()
                .map_or(Duration::ZERO, |last| last.saturating_duration_since(started))
        });
        let (p50, p99) = self.latencies.percentiles();
        let progress = guest.progress();
        let target = self.shared.lock();
        let mut report = TargetReport {
            first_progress_gap: nanos(first_gap),
            guest_gap: nanos(progress.longest_gap),
            steps: progress.steps(),
            postcopy_duration: self.post_copy_done.map_or(Nanos::ZERO, |done: Instant| {
                nanos(done.saturating_duration_since(started))
            }),
            fault_p50: Nanos(p50),
            fault_p99: Nanos(p99),
            verified: target.verified(),
            ..TargetReport::default()
        };
        target.totals().fill(&mut report);
        *self.shared.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    pub(super) fn result(&mut self, outcome: TargetOutcome) -> TargetResult {
        TargetResult {
            outcome,
            guest: self.guest.take(),
            report: self.report(),
            trouble: self
                .shared
                .trouble
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            leftover: self.leftover.take(),
        }
    }
}
