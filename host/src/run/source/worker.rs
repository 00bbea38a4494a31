//! One attempt at work: actions of the machine, one after the other.

use super::*;
use crate::channel::{ChannelError, classify};
use crate::memory::RunClass;
use dunlin_core::strategy::First;

/// The runner's own state while it works.
pub(super) struct Worker<'s, 'e, 'a, 'w> {
    pub(super) run: SourceRun<'a>,
    pub(super) shared: &'e SharedSource<'w>,
    pub(super) memory: &'e Arc<GuestMemory>,
    pub(super) link: &'e LinkConfig,
    pub(super) scope: &'s Scope<'s, 'e>,
    pub(super) migration: Option<FrameSender>,
    pub(super) listener: Option<ScopedJoinHandle<'s, ()>>,
    /// Without a storage directory there is none.
    pub(super) folder: Option<&'e Folder>,
    pub(super) static_writer: StaticWriter<'s>,
    pub(super) pb_writer: PbWriter<'s>,
    /// What the target lacks at the switch.
    pub(super) final_set: Vec<Run>,
    pub(super) fault_stream: Option<Arc<Stream>>,
    pub(super) last_sent: Instant,
    pub(super) verifying: Option<Instant>,
    pub(super) verify_time: Duration,
    pub(super) rounds: Vec<(RoundReport, u64)>,
    pub(super) bytes_at_round: u64,
    pub(super) bytes_at_running: Option<u64>,
    pub(super) state: Vec<u8>,
    pub(super) harvest: Vec<u64>,
    pub(super) sampling: SamplingMeter,
    pub(super) asking: Asking,
    pub(super) ahead: (Option<Run>, Vec<(Run, RunClass)>),
    pub(super) gap_before_pause: Duration,
    pub(super) last_progress: Instant,
    pub(super) rate: RateMeter,
}

impl Worker<'_, '_, '_, '_> {
    pub(super) fn work(&mut self) -> SourceOutcome {
        loop {
            let mut source = self.shared.lock();
            let now = self.shared.clock.now();
            if self.run.handle.cancel_wanted.swap(false, Ordering::AcqRel) {
                source.on(now, SourceEvent::Cancel);
            }
            if let Some(resolution) = self
                .run
                .handle
                .resolution
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
            {
                // A decision that came too late decides nothing.
                let _ = source.resolve(resolution);
            }
            if source.phase() == Phase::PostCopy {
                let backlog = self.link.bucket.backlog().unwrap_or_default();
                source.on(now, SourceEvent::RoomAt(now.saturating_add(nanos(backlog))));
            }
            let action = source.poll(now);
            self.run
                .handle
                .cancellable
                .store(source.can_cancel(), Ordering::Release);
            self.run.handle.cancel.lower();
            if let Some(round) = source.take_round() {
                let bytes = self.link.migration.pages.load(Ordering::Relaxed);
                self.rounds.push((round, bytes - self.bytes_at_round));
                self.bytes_at_round = bytes;
            }
            if source.downtime().is_some() && self.bytes_at_running.is_none() {
                self.bytes_at_running = Some(self.link.migration.pages.load(Ordering::Relaxed));
            }
            if source.target_report().is_some()
                && let Some(began) = self.verifying.take()
            {
                self.verify_time = began.elapsed();
            }
            self.show(&source);
            if !source.linked() {
                self.hang_up();
            }
            match action {
                SourceAction::Finish(outcome) => return outcome,
                SourceAction::Wait { until } if self.all_sent() => {
                    let patience = until.map_or(LOOK, |until| self.shared.clock.until(until).min(LOOK));
                    self.shared.wait(source, patience);
                }
                action => {
                    drop(source);
                    // Nothing waits for a sample: pages that are collected may be read before or after it.
                    if !matches!(
                        action,
                        SourceAction::SendPages { .. } | SourceAction::PushPages(_) | SourceAction::Sample
                    ) {
                        self.flush();
                    }
                    if !matches!(action, SourceAction::Sample | SourceAction::Wait { .. }) {
                        self.sampling.observed(self.run.guest);
                    }
                    self.perform(action);
                }
            }
            self.heartbeat();
        }
    }

    fn show(&mut self, source: &Source<'_>) {
        let due = self.last_progress.elapsed() >= PROGRESS_EVERY;
        let phase = source.phase();
        let known = self.run.handle.snapshot();
        if !due && known.is_some_and(|snapshot| snapshot.phase == phase && snapshot.round == source.round()) {
            return;
        }
        self.last_progress = Instant::now();
        let bytes = self.link.migration.pages.load(Ordering::Relaxed) + self.link.fault.pages.load(Ordering::Relaxed);
        let rate = self.rate.update(bytes + self.static_writer.bytes());
        let paused = matches!(phase, Phase::HandOverUnknown | Phase::PostCopyPaused);
        let remaining = source.pending().len().saturating_add(source.static_remaining());
        let until = source.observes_until();
        let snapshot = Snapshot {
            session: source.config().session,
            phase,
            round: source.round(),
            remaining,
            bytes,
            rate,
            cut: source.cut(),
            eta: (rate.0 > 0 && remaining.0 > 0 && !paused)
                .then(|| Duration::from_millis(remaining.bytes().0.saturating_mul(1000) / rate.0)),
            observing: until.map(|until| self.shared.clock.until(until)),
        };
        *self.run.handle.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
        (self.run.progress)(&snapshot);
    }

    fn perform(&mut self, action: SourceAction) {
        let outcome = match action {
            SourceAction::Send(message) => self.send(message),
            SourceAction::OpenFaultChannel => self.open_fault(),
            SourceAction::Reconnect => return self.reconnect(),
            SourceAction::SendPages { run, round } => return self.send_pages(run, round),
            SourceAction::PushPages(run) => return self.push_pages(run),
            SourceAction::Harvest => return self.harvest(),
            SourceAction::Sample => return self.sample(),
            SourceAction::SendHandOver(mode) => self.send_hand_over(mode),
            SourceAction::SendHashes => self.send_hashes(),
            SourceAction::StartTracking => {
                self.guest_action(|guest| guest.start_tracking());
                return self.sampling.tracking_began(self.run.guest);
            }
            SourceAction::StopTracking => return self.guest_action(|guest| guest.stop_tracking()),
            SourceAction::ResumeGuest => return self.guest_action(|guest| guest.resume()),
            SourceAction::OpenEpoch => return self.open_epoch(),
            SourceAction::SendZeros(run) => self.send_zeros(run),
            SourceAction::StartStatic => return self.start_static(),
            SourceAction::StartPbData => return self.start_pb_data(),
            SourceAction::StopStatic => {
                let (phase, too_slow) = {
                    let source = self.shared.lock();
                    (source.phase(), source.static_too_slow())
                };
                if phase == Phase::PreCopy {
                    self.static_writer.give_up(too_slow, self.shared);
                } else {
                    self.static_writer.stop();
                }
                Ok(())
            }
            SourceAction::Pause => return self.pause(),
            SourceAction::Record(record) => return self.record(record),
            SourceAction::Wait { .. } | SourceAction::Finish(_) => return,
        };
        match outcome {
            Ok(()) => self.shared.feed(SourceEvent::Done),
            Err(error @ (FrameError::Wire { .. } | FrameError::Unexpected { .. })) => {
                // The target's answer on the fault channel; the migration channel can still carry the reason.
                self.shared.note(&error);
                self.shared.feed(event_of(&error));
            }
            Err(error) => self.link_failed(&error),
        }
    }

    fn link_failed(&mut self, error: &FrameError) {
        if !error.is_cancelled() {
            self.shared.note(error);
        } else if self.run.handle.cancel_wanted.swap(false, Ordering::AcqRel) {
            // A send was given up for it: the cancellation came first, the broken frame is its consequence.
            self.shared.feed(SourceEvent::Cancel);
        }
        if let Some(sender) = self.migration.take() {
            sender.stream().shutdown();
        }
        self.shared.feed(SourceEvent::LinkLost);
    }

    fn send(&mut self, message: SourceMessage) -> Result<(), FrameError> {
        match message {
            SourceMessage::RoundStart { .. } => self.ahead.0 = None,
            SourceMessage::Commit => self.send_signature()?,
            _ => {}
        }
        let plain = message.message(self.shared.lock().config());
        match plain {
            Some(plain) => self.message(&plain),
            None => self.hello(),
        }
    }

    pub(super) fn message(&mut self, message: &Message<'_>) -> Result<(), FrameError> {
        let wait = Wait::within(self.link.patience, &self.run.handle.cancel);
        let Some(sender) = &mut self.migration else {
            return Err(crate::channel::ChannelError::Cancelled.into());
        };
        self.last_sent = Instant::now();
        sender.message(message, wait)
    }

    fn hello(&mut self) -> Result<(), FrameError> {
        self.connect()?;
        let machine = self.run.guest.machine();
        let cpuid = crate::run::vm::encode_cpuid(&machine.cpuid);
        let (config, vcpus) = (self.run.guest.config().encode(), self.run.guest.config().vcpus);
        let mut capabilities = Capabilities::RECONNECT;
        let options = self.run.options;
        capabilities.set(Capabilities::POST_COPY, options.strategy.can_post_copy());
        capabilities.set(Capabilities::STORAGE, options.strategy.first == First::Parallel);
        capabilities.set(Capabilities::PB_DATA, options.strategy.has_pb_data());
        capabilities.set(Capabilities::SPLIT, options.strategy.splits());
        capabilities.set(Capabilities::CHECKSUM, options.checksum);
        capabilities.set(Capabilities::VERIFY, options.verify);
        let regions = self.shared.lock().config().regions.clone();
        self.message(&Message::Hello(Hello {
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            capabilities,
            session: self.link.session,
            vm: self.run.vm,
            page_size: PAGE_SIZE as u32,
            regions,
            vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX),
            tsc_khz: machine.tsc_khz,
            state_version: machine.state_version,
            network_timeout: nanos(options.network_timeout),
            cpuid: &cpuid,
            config: &config,
        }))
    }

    /// Ends connections that count as lost, so that the target learns it, too.
    fn hang_up(&mut self) {
        if let Some(old) = self.migration.take() {
            old.stream().shutdown();
        }
        if let Some(old) = self.fault_stream.take() {
            old.shutdown();
        }
    }

    /// Opens the migration channel and listens on it.
    fn connect(&mut self) -> Result<(), FrameError> {
        // First of all: the end of the old connections is no news.
        let generation = self.shared.next_generation();
        self.hang_up();
        let (stream, sender) = open_migration(self.link, &self.run.handle.cancel)?;
        self.migration = Some(sender);
        if let Some(folder) = self.folder {
            let session = self.link.visit.as_ref().and_then(|visit| visit.session());
            folder.connected(session.as_deref().map(crate::run::seal_key));
        }
        let (shared, patience) = (self.shared, self.link.patience);
        self.listener = Some(self.scope.spawn(move || listen(shared, stream, patience, generation)));
        Ok(())
    }

    /// Ends the connections so that the target still hears the last message: a socket closed with unread bytes (a heartbeat,
    /// say) would reset the connection and take that message along. So this side ends its direction and lets the target close.
    pub(super) fn close(&mut self) {
        if let Some(sender) = self.migration.take() {
            sender.stream().finish();
            let began = Instant::now();
            let listens = |listener: &ScopedJoinHandle<'_, ()>| !listener.is_finished() && began.elapsed() < CLOSING;
            while self.listener.as_ref().is_some_and(listens) {
                std::thread::sleep(Duration::from_micros(200));
            }
            sender.stream().shutdown();
        }
        if let Some(stream) = self.fault_stream.take() {
            stream.shutdown();
        }
        self.shared.next_generation();
    }

    fn reconnect(&mut self) {
        match self.connect() {
            Ok(()) => self.shared.feed(SourceEvent::Done),
            Err(error) => {
                if let FrameError::Channel(ChannelError::Trust { .. }) = error {
                    // It is tried again and again; once is enough to say why it does not succeed.
                    self.shared.warn_once(crate::run::chain(&error));
                }
                self.shared.feed(SourceEvent::Failed);
            }
        }
    }

    fn open_fault(&mut self) -> Result<(), FrameError> {
        let ends = open_fault(self.link, &self.run.handle.cancel)?;
        self.fault_stream = Some(Arc::clone(ends.0.stream()));
        let (shared, memory, link) = (self.shared, self.memory, self.link);
        let generation = shared.generation();
        self.scope
            .spawn(move || serve_faults(shared, memory, link, ends, generation));
        Ok(())
    }

    fn checksum(&self) -> Checksum {
        match (self.link.checksum, self.shared.lock().phase()) {
            (false, _) => Checksum::None,
            (true, Phase::PreCopy) if !self.run.guest.progress().all_halted() => Checksum::Copy,
            (true, Phase::PreCopy) => Checksum::InPlace,
            (true, _) => Checksum::InPlace,
        }
    }

    /// Collected page frames leave before anything else is done.
    fn flush(&mut self) {
        let wait = Wait::within(self.link.patience, &self.run.handle.cancel);
        if let Some(sender) = &mut self.migration
            && let Err(error) = sender.flush(wait)
        {
            self.link_failed(&error);
        }
    }

    fn all_sent(&self) -> bool {
        self.migration.as_ref().is_none_or(FrameSender::is_empty)
    }

    fn send_pages(&mut self, run: Run, round: u32) {
        let checksum = self.checksum();
        let wait = Wait::within(self.send_patience(run), &self.run.handle.cancel);
        let next = if round == 1 {
            self.shared.lock().next_pages()
        } else {
            None
        };
        let Some(sender) = &mut self.migration else {
            return self.shared.feed(SourceEvent::LinkLost);
        };
        self.last_sent = Instant::now();
        let known = std::mem::take(&mut self.ahead);
        let mut pieces = known.1;
        let mut sent = if known.0 == Some(run) {
            Ok(())
        } else {
            classify(self.memory, run, &mut pieces)
        };
        if let Some(next) = next {
            sent = sent.and_then(|()| announce(sender, self.memory, next, &mut self.ahead, wait));
        }
        match sent.and_then(|()| sender.classified(self.memory, &pieces, round, checksum, wait)) {
            Ok((data, zero)) => self.shared.feed(SourceEvent::PagesSent { data, zero }),
            Err(error) => self.link_failed(&error),
        }
    }

    fn push_pages(&mut self, run: Run) {
        let checksum = if self.link.checksum {
            Checksum::InPlace
        } else {
            Checksum::None
        };
        let wait = Wait::within(self.send_patience(run), &self.run.handle.cancel);
        let Some(sender) = &mut self.migration else {
            return self.shared.feed(SourceEvent::LinkLost);
        };
        self.last_sent = Instant::now();
        let pieces = &mut self.ahead.1;
        let classified = classify(self.memory, run, pieces);
        match classified.and_then(|()| sender.classified_at_once(self.memory, pieces, checksum, wait)) {
            Ok((data, zero)) => self.shared.feed(SourceEvent::PagesSent { data, zero }),
            Err(error) => self.link_failed(&error),
        }
    }

    fn open_epoch(&mut self) {
        let patience = self.shared.lock().config().hint_patience;
        match (self.run.guest.agent(), patience) {
            (Some(line), Some(patience)) => {
                self.shared.feed(SourceEvent::Done);
                self.asking.start(self.scope, Arc::clone(line), patience, self.shared);
            }
            _ => self.shared.feed(SourceEvent::Failed),
        }
    }

    fn send_zeros(&mut self, run: Run) -> Result<(), FrameError> {
        let wait = Wait::within(self.link.patience, &self.run.handle.cancel);
        let Some(sender) = &mut self.migration else {
            return Err(crate::channel::ChannelError::Cancelled.into());
        };
        self.last_sent = Instant::now();
        sender.bare(FrameKind::Zero, run, 0, wait)
    }

    /// A shaped run takes as long as its rate says; only silence beyond that is trouble.
    fn send_patience(&self, run: Run) -> Duration {
        let shaped = self.link.bucket.rate().map_or(Duration::ZERO, |rate| {
            Duration::from_millis(run.count.bytes().0.saturating_mul(2000) / rate.0.max(1))
        });
        self.link.patience + shaped
    }

    fn harvest(&mut self) {
        let event = match self.take_dirty_bits() {
            Ok(()) => SourceEvent::Harvested(&self.harvest),
            Err(_) => SourceEvent::Failed,
        };
        self.shared.feed(event);
    }

    fn sample(&mut self) {
        let began = Instant::now();
        let event = match self.take_dirty_bits() {
            Ok(()) => SourceEvent::Sampled(&self.harvest),
            Err(_) => SourceEvent::Failed,
        };
        self.shared.feed(event);
        self.sampling.sampled(began);
    }

    fn take_dirty_bits(&mut self) -> Result<(), GuestError> {
        self.harvest.fill(0);
        self.run
            .guest
            .harvest(&mut self.harvest)
            .inspect_err(|error| self.shared.note(error))
    }

    fn guest_action(&mut self, action: impl FnOnce(&dyn Guest) -> Result<(), GuestError>) {
        let done = action(self.run.guest);
        self.report(done);
    }

    fn report<E: std::error::Error>(&self, done: Result<(), E>) {
        match done {
            Ok(()) => self.shared.feed(SourceEvent::Done),
            Err(error) => {
                self.shared.note(&error);
                self.shared.feed(SourceEvent::Failed);
            }
        }
    }

    fn pause(&mut self) {
        if let Err(error) = self.run.recorder.begin_hand_over(self.link.session) {
            self.shared.note(error.as_ref());
            return self.shared.feed(SourceEvent::Failed);
        }
        let requested = Instant::now();
        let guest = self.run.guest;
        self.gap_before_pause = guest
            .progress()
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.halted.is_none())
            .filter_map(|vcpu| vcpu.last)
            .min()
            .map_or(Duration::ZERO, |last| requested.saturating_duration_since(last));
        let saved = guest.pause().and_then(|()| guest.save_state());
        if let (Ok(_), Some(sender)) = (&saved, &self.migration)
            && self.run.options.strategy.can_post_copy()
        {
            // Best effort: without the option the kernel keeps more unsent, and faults wait a little longer.
            let _ = sender.stream().set_small_backlog(SMALL_BACKLOG);
        }
        let done = saved.map(|state| self.state = state);
        self.report(done);
    }

    fn start_static(&mut self) {
        let Some(folder) = self.folder else {
            // Refused before it began: the machine goes on without.
            return self.shared.feed(SourceEvent::Failed);
        };
        match folder.directory() {
            Ok(directory) => {
                let bucket = TokenBucket::new(self.run.options.storage_bandwidth);
                self.static_writer
                    .start(self.scope, directory, self.memory, bucket, self.shared);
                self.shared.feed(SourceEvent::Done);
            }
            Err(error) => {
                self.static_writer.cannot_start();
                self.shared.warn(format!(
                    "there is no static copy, all pages go over the network: {}",
                    crate::run::chain(&error)
                ));
                self.shared.feed(SourceEvent::Failed);
            }
        }
    }

    fn start_pb_data(&mut self) {
        let Some(folder) = self.folder else {
            return self.shared.feed(SourceEvent::Failed);
        };
        let bucket = TokenBucket::new(self.run.options.storage_bandwidth);
        let pages = (self.memory, std::mem::take(&mut self.final_set));
        self.pb_writer.start(self.scope, folder, pages, bucket, self.shared);
        self.shared.feed(SourceEvent::Done);
    }

    /// Whoever decided that the VM runs here knows that the target does not run it: a directory that does not answer keeps it
    /// from running no longer than this.
    pub(super) fn take_back_word(&self) {
        let Some(folder) = self.folder else { return };
        let (done, taken_back) = std::sync::mpsc::channel();
        self.scope.spawn(move || {
            // Nobody waits any more if it took too long.
            let _ = done.send(folder.take_back());
        });
        if let Ok(Err(error)) = taken_back.recv_timeout(TAKE_BACK) {
            self.shared.note(&error);
        }
    }

    fn send_hand_over(&mut self, mode: Mode) -> Result<(), FrameError> {
        let (words, final_dirty) = {
            let source = self.shared.lock();
            let wanted = mode == Mode::PostCopy;
            let words: Vec<u8> = if wanted {
                source
                    .pending()
                    .words()
                    .iter()
                    .flat_map(|word| word.to_le_bytes())
                    .collect()
            } else {
                Vec::new()
            };
            if wanted && self.folder.is_some() {
                self.final_set = source.pending().runs().collect();
            }
            (words, if wanted { source.pending().len() } else { Pages::ZERO })
        };
        for (index, chunk) in words.chunks(CHUNK_BYTES_MAX).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                self.message(&Message::FinalSet {
                    first_word: (index * CHUNK_BYTES_MAX / 8) as u64,
                    words: chunk,
                })?;
            }
        }
        let state = std::mem::take(&mut self.state);
        let signing = self.migration.as_ref().and_then(|sender| sender.stream().trusted());
        let signing = signing.map(|trusted| &trusted.signing);
        self.run.recorder.keep(self.link.session, mode, &state, signing);
        let mut sent = Ok(());
        for (index, bytes) in state.chunks(CHUNK_BYTES_MAX).enumerate() {
            sent = sent.and_then(|()| {
                self.message(&Message::State {
                    offset: (index * CHUNK_BYTES_MAX) as u32,
                    bytes,
                })
            });
        }
        let state_bytes = state.len() as u32;
        self.state = state;
        sent?;
        self.message(&Message::HandOver {
            mode,
            state_bytes,
            final_dirty,
        })
    }

    fn heartbeat(&mut self) {
        if self.last_sent.elapsed() < HEARTBEAT {
            return;
        }
        self.last_sent = Instant::now();
        let wait = Wait::within(self.link.patience, &self.run.handle.cancel);
        if let Some(sender) = &mut self.migration
            && let Err(error) = sender.heartbeat(wait)
        {
            self.link_failed(&error);
        }
    }

    pub(super) fn result(
        self,
        outcome: SourceOutcome,
        started: Instant,
        steps_before: u64,
        session: SessionId,
    ) -> SourceResult {
        let source = self.shared.lock();
        let migration = self.link.migration.pages.load(Ordering::Relaxed);
        let control = [&self.link.migration, &self.link.fault].map(|counts| counts.control.load(Ordering::Relaxed));
        let source_gap = self.run.guest.progress().longest_gap;
        SourceResult {
            session,
            outcome,
            rounds: self.rounds,
            mode: source.mode(),
            total_time: started.elapsed().saturating_sub(self.verify_time),
            verify_time: self.verify_time,
            halted: self.run.guest.progress().all_halted(),
            downtime: source.downtime().map(|time| Duration::from_nanos(time.0)),
            gap_before_pause: self.gap_before_pause,
            source_gap,
            strategy: source.config().strategy,
            auto: source.advisor().and_then(AutoResult::of),
            sampling: self.sampling.cost(),
            hints: source.config().hint_patience.map(|_| HintResult {
                pages: source.hinted(),
                requests: source.hinted_requests(),
                ..self.asking.result()
            }),
            target: source.target_report().copied(),
            migration_bytes: migration,
            total: dunlin_core::message::total_pages(&source.config().regions),
            static_done_after: source.static_done_after(),
            storage_bytes: self.static_writer.bytes() + self.pb_writer.bytes(),
            fault_bytes: self.link.fault.pages.load(Ordering::Relaxed),
            control_bytes: control.iter().sum(),
            postcopy_bytes: self.bytes_at_running.map_or(0, |at| migration - at),
            steps_before,
            trouble: self.shared.trouble(),
            warnings: self.shared.warnings(),
        }
    }
}

/// Exponentially smoothed rate of a growing count.
pub(super) struct RateMeter {
    last: Instant,
    bytes: u64,
    rate: u64,
}

impl RateMeter {
    pub(super) fn new() -> Self {
        Self {
            last: Instant::now(),
            bytes: 0,
            rate: 0,
        }
    }

    fn update(&mut self, bytes: u64) -> BytesPerSec {
        let elapsed = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        if elapsed >= 50_000 {
            let now = (bytes - self.bytes).saturating_mul(1_000_000) / elapsed;
            self.rate = if self.rate == 0 { now } else { (self.rate * 3 + now) / 4 };
            (self.last, self.bytes) = (Instant::now(), bytes);
        }
        BytesPerSec(self.rate)
    }
}

/// Looks at the pages that come next and says so, for the target to make memory ready while others are on their way.
/// What was found is kept: a page that changes later is dirty then, and sent again.
fn announce(
    sender: &mut FrameSender,
    memory: &GuestMemory,
    next: Run,
    ahead: &mut (Option<Run>, Vec<(Run, RunClass)>),
    wait: Wait<'_>,
) -> Result<(), FrameError> {
    classify(memory, next, &mut ahead.1)?;
    ahead.0 = Some(next);
    let worth_it = |piece: &&(Run, RunClass)| piece.1 == RunClass::Data && piece.0.count >= ANNOUNCED_PAGES;
    for (piece, _) in ahead.1.iter().filter(worth_it) {
        sender.bare(FrameKind::Announce, *piece, 1, wait)?;
    }
    Ok(())
}
