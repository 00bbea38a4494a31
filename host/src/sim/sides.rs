//! What either host does, and how long it takes.

use dunlin_core::message::{CHUNK_BYTES_MAX, Capabilities, Hello, Message, Mode, TargetReport, VmId};
use dunlin_core::migrate::{
    FaultAnswer, SourceAction, SourceEvent, SourceMessage, Target, TargetAction, TargetEvent, TargetMessage,
};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Nanos, PAGE_SIZE, Pages};
use dunlin_core::wire::HEADER_BYTES;

use super::slow::Slowing;
use super::storage::PB_SEGMENT_PAGES;
use super::world::{Happening, Owner, World};

/// vCPU and device state, for each vCPU.
const STATE_BYTES: u32 = 8192;
/// How long it takes to notice that nobody answers a connection.
const CONNECTS_WITHIN: Nanos = Nanos::from_secs(1);

impl World<'_, '_> {
    /// Asks the source once; false if it waits.
    pub(super) fn source_acts(&mut self) -> bool {
        let now = self.now;
        if self.source.phase() == dunlin_core::migrate::Phase::PostCopy {
            let never = Nanos(u64::MAX);
            let room = if self.setup.pull { never } else { self.forth.free_at() };
            self.source.on(now, SourceEvent::RoomAt(room));
        }
        let action = self.source.poll(now);
        if let Some((took, sent, dirty)) = self.measured.source_went_on(&mut self.source)
            && let Some(percent) = self.slowing.after(took, sent, dirty)
        {
            self.guest.run_to(now);
            self.guest
                .set_step_cost(Slowing::step_cost(self.setup.step_cost, percent));
        }
        match action {
            SourceAction::Wait { until } => {
                self.poll_at(0, until);
                return false;
            }
            SourceAction::Finish(outcome) => {
                self.source_outcome = Some(outcome);
                self.measured.ended = now;
            }
            SourceAction::Send(message) => {
                self.send_as_source(message);
                self.source.on(now, SourceEvent::Done);
            }
            SourceAction::OpenFaultChannel => {
                let round_trip = self.forth.latency().saturating_add(self.back.latency());
                self.at(now.saturating_add(round_trip), Happening::SourceDone);
            }
            SourceAction::StartTracking => {
                self.guest.run_to(now);
                self.guest.start_tracking();
                self.books.begin(self.guest.steps());
                self.source.on(now, SourceEvent::Done);
            }
            SourceAction::StopTracking => {
                self.guest.stop_tracking();
                self.source.on(now, SourceEvent::Done);
            }
            SourceAction::StartStatic => {
                self.source.on(now, SourceEvent::Done);
                self.start_static();
            }
            SourceAction::StopStatic => {
                self.storage.stop();
                self.source.on(now, SourceEvent::Done);
            }
            SourceAction::Harvest | SourceAction::Sample => {
                self.guest.run_to(now);
                self.guest.harvest(&mut self.harvest);
                self.books.add_to(&mut self.harvest, self.guest.steps());
                let words = std::mem::take(&mut self.harvest);
                self.source.on(
                    now,
                    match action {
                        SourceAction::Harvest => SourceEvent::Harvested(&words),
                        _ => SourceEvent::Sampled(&words),
                    },
                );
                self.harvest = words;
            }
            // A simulated guest has no agent.
            SourceAction::OpenEpoch => self.source.on(now, SourceEvent::Failed),
            SourceAction::SendZeros(_) => self.source.on(now, SourceEvent::Done),
            SourceAction::SendPages { run, .. } => self.send_pages(run),
            SourceAction::PushPages(run) => self.push_pages(run),
            SourceAction::Pause => {
                self.guest.run_to(now);
                self.owner = Owner::Nobody;
                self.at(
                    now.saturating_add(Nanos(self.setup.handover.0 / 2)),
                    Happening::SourceDone,
                );
            }
            SourceAction::SendHandOver(mode) => {
                self.send_hand_over(mode);
                self.source.on(now, SourceEvent::Done);
            }
            SourceAction::StartPbData => {
                self.source.on(now, SourceEvent::Done);
                self.start_pb_data();
            }
            SourceAction::ResumeGuest => {
                if self.owner == Owner::Source {
                    self.guest.run_to(now);
                }
                self.owner = Owner::Source;
                self.guest.resume(now);
                self.source.on(now, SourceEvent::Done);
            }
            SourceAction::Reconnect if self.is_cut => {
                self.at(now.saturating_add(CONNECTS_WITHIN), Happening::ReconnectFailed);
            }
            SourceAction::Reconnect => {
                self.generation += 1;
                let round_trip = self.forth.latency().saturating_add(self.back.latency());
                self.at(now.saturating_add(round_trip), Happening::SourceDone);
            }
            SourceAction::Record(_) | SourceAction::SendHashes => self.source.on(now, SourceEvent::Done),
        }
        true
    }

    fn send_as_source(&mut self, message: SourceMessage) {
        let plain = message.message(self.source.config());
        match plain {
            Some(plain) => self.say_to_target(&plain),
            None => {
                let config = self.source.config();
                let (session, regions) = (config.session, config.regions.clone());
                let hello = Message::Hello(Hello {
                    protocol_min: 1,
                    protocol_max: 1,
                    capabilities: Capabilities::empty(),
                    session,
                    vm: VmId(1),
                    page_size: PAGE_SIZE as u32,
                    regions,
                    vcpus: self.setup.vcpus as u8,
                    tsc_khz: 0,
                    state_version: 1,
                    network_timeout: self.setup.network_timeout,
                    cpuid: &[],
                    config: &[],
                });
                self.say_to_target(&hello);
            }
        }
    }

    /// Pages of `run` with data and as zeros, and the bytes that they are on the wire.
    fn size_of(&self, run: Run) -> (Pages, Pages, u64) {
        let zero = self.guest.zero_pages(run.first, run.count.0);
        let data = run.count.0 - zero;
        let frames = data.div_ceil(self.frame_pages.max(1)) + zero.min(1);
        (
            Pages(data),
            Pages(zero),
            frames * HEADER_BYTES as u64 + data * PAGE_SIZE,
        )
    }

    pub(super) fn contents(&self, run: Run) -> Vec<u32> {
        if self.copies.is_empty() {
            return Vec::new();
        }
        self.guest.versions[run.first.0 as usize..run.end().0 as usize].to_vec()
    }

    /// At the rate: the source goes on when the last byte has left.
    fn send_pages(&mut self, run: Run) {
        if self.owner == Owner::Source {
            self.guest.run_if_read(self.now);
        }
        let (data, zero, bytes) = self.size_of(run);
        self.measured.migration_bytes += bytes;
        let left = self.forth.occupy(bytes, self.now);
        let arrives = self.forth.arrival(left);
        let copies = self.contents(run);
        self.at(arrives, Happening::Pages(self.generation, run, copies));
        self.at(left, Happening::Sent { data, zero });
    }

    /// There is room now, and what comes next waits for it.
    fn push_pages(&mut self, run: Run) {
        let (data, zero, bytes) = self.size_of(run);
        if self.is_cut {
            // It fills a buffer that nobody empties, until the link counts as lost.
            return;
        }
        self.measured.migration_bytes += bytes;
        self.forth.occupy(bytes, self.now);
        let arrives = self.forth.arrival(self.now);
        self.at(arrives, Happening::Pages(self.generation, run, Vec::new()));
        self.source.on(self.now, SourceEvent::PagesSent { data, zero });
    }

    fn send_hand_over(&mut self, mode: Mode) {
        let pending = self.source.pending();
        let final_dirty = if mode == Mode::PostCopy {
            pending.len()
        } else {
            Pages::ZERO
        };
        if mode == Mode::PostCopy {
            self.storage.final_set = pending.runs().flat_map(pieces).collect();
            let words: Vec<u8> = pending.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            for (index, chunk) in words.chunks(CHUNK_BYTES_MAX).enumerate() {
                if chunk.iter().any(|byte| *byte != 0) {
                    self.say_to_target(&Message::FinalSet {
                        first_word: (index * CHUNK_BYTES_MAX / 8) as u64,
                        words: chunk,
                    });
                }
            }
        }
        let state_bytes = STATE_BYTES * self.setup.vcpus;
        let state = vec![0; state_bytes as usize];
        for (index, bytes) in state.chunks(CHUNK_BYTES_MAX).enumerate() {
            self.say_to_target(&Message::State {
                offset: (index * CHUNK_BYTES_MAX) as u32,
                bytes,
            });
        }
        self.say_to_target(&Message::HandOver {
            mode,
            state_bytes,
            final_dirty,
        });
    }

    pub(super) fn serve(&mut self, gfn: Gfn) {
        if self.source.on_fault_request(gfn) == FaultAnswer::Refuse {
            return;
        }
        let bytes = HEADER_BYTES as u64 + PAGE_SIZE;
        self.measured.fault_bytes += bytes;
        let served = self.now.saturating_add(self.setup.fault_service);
        let arrives = if self.setup.pull {
            // No push shares the link, and a page takes its time on it.
            let left = self.forth.occupy(bytes, served);
            self.forth.arrival(left)
        } else {
            self.forth.occupy(bytes, self.now);
            self.forth.urgent_arrival(served)
        };
        self.at(arrives, Happening::Reply(self.generation, gfn));
    }

    /// Asks the target once; false if it waits.
    pub(super) fn target_acts(&mut self) -> bool {
        let now = self.now;
        let Some(target) = &mut self.target else { return false };
        match target.poll(now) {
            TargetAction::Wait { until } => {
                self.poll_at(1, until);
                return false;
            }
            TargetAction::Finish(outcome) => self.target_outcome = Some(outcome),
            TargetAction::RestoreState => {
                self.at(
                    now.saturating_add(Nanos(self.setup.handover.0 / 2)),
                    Happening::TargetDone,
                );
            }
            TargetAction::Send(message) => {
                if let TargetMessage::Complete { .. } = message {
                    self.report = self.target_report();
                }
                let message = message.message(&self.report);
                self.say_to_source(&message);
                self.tell_target(TargetEvent::Done);
            }
            TargetAction::RunGuest => {
                self.compare();
                self.owner = Owner::Target;
                self.guest.set_step_cost(self.setup.step_cost);
                self.guest.resume(now);
                self.measured.runs_since = Some(now);
                self.tell_target(TargetEvent::Done);
                self.arm_cut();
                if self.setup.pull {
                    self.pull_next(now);
                }
            }
            TargetAction::SendMissing => {
                self.send_missing();
                self.tell_target(TargetEvent::Done);
            }
            TargetAction::ReadPbData => {
                self.tell_target(TargetEvent::Done);
                self.read_pb_data();
            }
            TargetAction::CompareHashes => self.tell_target(TargetEvent::Compared {
                pages: 0,
                mismatches: 0,
            }),
            TargetAction::PrepareMissing => {
                let stale = target.missing().words().iter().zip(target.received().words());
                let stale: u64 = stale
                    .map(|(missing, received)| u64::from((missing & received).count_ones()))
                    .sum();
                let takes = Nanos(self.setup.discard.0.saturating_mul(stale));
                self.at(now.saturating_add(takes), Happening::TargetDone);
            }
            TargetAction::CreateGuest
            | TargetAction::Record(_)
            | TargetAction::FinishPostCopy
            | TargetAction::Discard => self.tell_target(TargetEvent::Done),
        }
        true
    }

    fn send_missing(&mut self) {
        let Some(target) = &self.target else { return };
        let missing = target.missing();
        let pages = missing.len();
        let words: Vec<u8> = missing.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        for (index, chunk) in words.chunks(CHUNK_BYTES_MAX).enumerate() {
            self.say_to_source(&Message::Missing {
                first_word: (index * CHUNK_BYTES_MAX / 8) as u64,
                words: chunk,
            });
        }
        self.say_to_source(&Message::MissingEnd { pages });
    }

    pub(super) fn target_report(&self) -> TargetReport {
        let mut report = self.measured.target_report(&self.guest);
        if let Some(target) = &self.target {
            target.totals().fill(&mut report);
        }
        report
    }

    /// Pages on the migration channel.
    pub(super) fn pages_arrive(&mut self, run: Run, copies: &[u32]) {
        let Some(target) = &mut self.target else { return };
        if target.running() {
            return self.install(run, false);
        }
        target.on(self.now, TargetEvent::Received(run));
        for (page, copy) in (run.first.0..).zip(copies) {
            self.copies[page as usize] = *copy;
        }
    }

    pub(super) fn reply_arrives(&mut self, gfn: Gfn) {
        let since = self.asked.remove(&gfn);
        if let Some(since) = since {
            self.measured.latencies.push(self.now.saturating_sub(since).0);
        }
        // What is pulled for nobody is no fault.
        self.install(Run::new(gfn, Pages(1)), since.is_some() || !self.setup.pull);
        if self.setup.pull {
            self.pull_next(self.now);
        }
    }

    fn install(&mut self, run: Run, demanded: bool) {
        self.tell_target(TargetEvent::Installed { run, demanded });
        self.guest.wake(run.first, run.count.0, self.now);
        self.measured
            .post_copy_went_on(self.target.as_ref().map(Target::missing), self.now);
    }

    /// Every page that is not missing must be what it was when the guest was paused.
    fn compare(&mut self) {
        let Some(target) = &self.target else { return };
        if self.copies.is_empty() {
            return;
        }
        let missing = target.missing();
        let differs =
            |(page, copy): (usize, &u32)| *copy != self.guest.versions[page] && !missing.contains(Gfn(page as u64));
        let differences = self.copies.iter().enumerate().filter(|pair| differs(*pair)).count();
        self.measured.compared = Some((self.copies.len() as u64, differences as u64));
    }
}

/// In pieces that fit a segment.
fn pieces(run: Run) -> impl Iterator<Item = Run> {
    let most = PB_SEGMENT_PAGES;
    (run.first.0..run.end().0)
        .step_by(most as usize)
        .map(move |first| Run::new(Gfn(first), Pages((run.end().0 - first).min(most))))
}
