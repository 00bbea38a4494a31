//! Recording what a guest writes, for a client of the control socket: trackers on, a look every window, trackers off again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dunlin_core::tracefile::Source;

use super::chain;
use crate::channel::Cancel;
use crate::control::{
    ControlError, Encoder, EndReason, Gone, Heard, Message, RecordRequest, RecordedRegion, RecordingAnswer, Service,
    Subscriber,
};
use crate::guest::{AnyGuest, Guest, GuestError, RunState};
use crate::memory::RunClass;
use crate::report::{RecordingSchema, RecordingStatus};
use crate::track::pagemap::PagemapTracker;
use crate::track::rings::RingWindow;
use crate::track::runs::runs;
use crate::track::{monotonic_ns, thread_cpu};

/// How long a migration waits for the recording that it ends.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The recording that a process does at the moment, if any.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    current: Mutex<Option<Arc<Handle>>>,
    ended: Condvar,
}

/// How others reach a recording.
#[derive(Debug)]
struct Handle {
    interrupt: Cancel,
    status: Mutex<RecordingStatus>,
}

/// A place for a recording; free again when dropped.
pub(super) struct Place<'a> {
    recordings: &'a Recordings,
    handle: Arc<Handle>,
}

impl Recordings {
    fn current(&self) -> MutexGuard<'_, Option<Arc<Handle>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place, if it is free.
    pub(super) fn begin(&self, client_pid: Option<u32>) -> Result<Place<'_>, ControlError> {
        let mut current = self.current();
        if let Some(other) = &*current {
            let by = other.status().client_pid;
            let by = by.map_or_else(String::new, |pid| format!(" by process {pid}"));
            return Err(ControlError::refused(format!(
                "the VM is being recorded already{by}: wait for the end of that, or end it"
            )));
        }
        let handle = Arc::new(Handle {
            interrupt: Cancel::new(),
            status: Mutex::new(RecordingStatus {
                client_pid,
                ..RecordingStatus::default()
            }),
        });
        *current = Some(Arc::clone(&handle));
        Ok(Place {
            recordings: self,
            handle,
        })
    }

    /// Ends the recording that goes on, and waits until its trackers are off. False if they do not get there.
    pub(super) fn end(&self) -> bool {
        let current = self.current();
        if let Some(handle) = &*current {
            handle.interrupt.raise();
        }
        let waited = self
            .ended
            .wait_timeout_while(current, END_PATIENCE, |current| current.is_some())
            .unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    /// What the recording that goes on does.
    pub(super) fn status(&self) -> Option<RecordingStatus> {
        self.current().as_ref().map(|handle| handle.status().clone())
    }
}

impl Handle {
    fn status(&self) -> MutexGuard<'_, RecordingStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.recordings.current() = None;
        self.recordings.ended.notify_all();
    }
}

/// Records for as long as the client wants it and is there, and nothing else needs the guest's tracker.
///
/// # Errors
/// [`ControlError::Failed`] before anything was said to the client.
pub(super) fn record(
    guest: &AnyGuest,
    name: &str,
    request: &RecordRequest,
    place: &Place<'_>,
    subscriber: &mut Subscriber<'_>,
) -> Result<(), ControlError> {
    let serve = check(guest, request)?;
    let answer = describe(guest, name, request, &serve)?;
    let interrupt = &place.handle.interrupt;
    // Whatever becomes of the client, it is the same here: all is over.
    let _ = subscriber.answer(&answer, interrupt).and_then(|()| {
        let heard = subscriber.listen(Instant::now() + Duration::from_secs(3600), interrupt)?;
        let mut encoder = Encoder::default();
        let started = Instant::now();
        let cpu = thread_cpu();
        let reason = match before_the_end(heard) {
            Some(reason) => reason,
            None => {
                let began = Trackers::begin(guest, &serve, request.exact);
                let mut recording = Recording {
                    guest,
                    place,
                    exact: request.exact,
                    window: Duration::from_micros(request.window_us),
                    started,
                    words: vec![0; guest.memory().layout().words()],
                    ring: RingWindow::default(),
                };
                match began {
                    Ok((mut trackers, began)) => {
                        encoder.put(&began);
                        recording.run(&mut trackers, subscriber, &mut encoder)?
                    }
                    Err(error) => EndReason::Failed(chain(&error)),
                }
            }
        };
        let cpu_ns = thread_cpu().0 - cpu.0 + guest.tracker_cpu().0;
        let at_ns = monotonic_ns();
        encoder.put(&Message::End { at_ns, cpu_ns, reason });
        subscriber.say(encoder.bytes(), interrupt)
    });
    Ok(())
}

/// Why it is over before it began, if it is.
fn before_the_end(heard: Heard) -> Option<EndReason> {
    match heard {
        Heard::Go => None,
        heard => Some(ended(heard).unwrap_or(EndReason::Stopped)),
    }
}

/// Why it is over, if it is.
fn ended(heard: Heard) -> Option<EndReason> {
    match heard {
        Heard::Nothing | Heard::Go => None,
        Heard::Stop => Some(EndReason::Stopped),
        Heard::Interrupt => Some(EndReason::Migration),
        Heard::Closing => Some(EndReason::ProcessEnds),
    }
}

/// What to serve, if this VM has it.
fn check(guest: &AnyGuest, request: &RecordRequest) -> Result<Vec<Service>, ControlError> {
    let windows = RecordRequest::WINDOW_MIN_US..=RecordRequest::WINDOW_MAX_US;
    if !windows.contains(&request.window_us) {
        return Err(ControlError::refused(
            "windows are from 1 ms to 60 s: write another --window",
        ));
    }
    let own = guest.tracking_state().source;
    let serve = match request.serve.as_slice() {
        [] => vec![Service::with_pages(own)],
        some => some.to_vec(),
    };
    for (index, service) in serve.iter().enumerate() {
        if service.source != own && service.source != Source::PagemapScan {
            let how = match service.source {
                Source::Ring => "; rings are chosen when a VM is built: `dunlin guest --tracking ring`",
                Source::Bitmap if own == Source::Ring => "; a VM with dirty rings has none",
                _ => "",
            };
            return Err(ControlError::refused(format!(
                "this VM has no {}: it is tracked by {own}, and pagemap-scan is possible{how}",
                service.source
            )));
        }
        if serve[..index].iter().any(|other| other.source == service.source) {
            return Err(ControlError::refused(format!(
                "{} is asked for twice: name it once",
                service.source
            )));
        }
    }
    Ok(serve)
}

fn describe(
    guest: &AnyGuest,
    name: &str,
    request: &RecordRequest,
    serve: &[Service],
) -> Result<RecordingAnswer, ControlError> {
    let memory = guest.memory();
    let mut used_pages = 0;
    for region in memory.layout().regions() {
        memory
            .classify_runs(*region, |run, class| {
                used_pages += if class == RunClass::Data { run.count.0 } else { 0 };
            })
            .map_err(|error| ControlError::failed(chain(&error)))?;
    }
    let regions = memory.layout().regions().iter().zip(0..);
    let state = guest.tracking_state();
    Ok(RecordingAnswer {
        schema: RecordingSchema,
        name: name.to_owned(),
        pid: std::process::id(),
        kind: guest.config().kind,
        vcpu_threads: guest.vcpu_threads(),
        regions: regions
            .map(|(region, slot)| RecordedRegion {
                first_gfn: region.first.0,
                pages: region.count.0,
                slot,
                host_address: memory.host_address(region.first),
            })
            .collect(),
        tracking: state.source,
        ring_entries: state.ring_entries,
        used_pages,
        serve: serve.to_vec(),
        window_us: request.window_us,
    })
}

/// What is on for a recording; off again when dropped.
struct Trackers<'a> {
    guest: &'a AnyGuest,
    serve: &'a [Service],
    /// Whether the guest's own tracker is on.
    own: bool,
    pagemap: Option<PagemapTracker>,
}

impl<'a> Trackers<'a> {
    /// Switches them on, at one moment for all vCPUs if that is wanted, and says so.
    fn begin(guest: &'a AnyGuest, serve: &'a [Service], exact: bool) -> Result<(Self, Message), GuestError> {
        if exact {
            guest.pause()?;
        }
        let started = Self::start(guest, serve);
        let began = Message::Started {
            at_ns: monotonic_ns(),
            unix_ns: unix_ns(),
        };
        if exact {
            guest.resume()?;
        }
        Ok((started?, began))
    }

    fn start(guest: &'a AnyGuest, serve: &'a [Service]) -> Result<Self, GuestError> {
        let own = guest.tracking_state().source;
        let mut trackers = Self {
            guest,
            serve,
            own: false,
            pagemap: None,
        };
        for service in serve {
            if service.source == own {
                trackers.own = true;
                guest.keep_order(service.pages);
                guest.start_tracking()?;
            } else {
                trackers.pagemap = Some(PagemapTracker::start(guest.memory().clone())?);
            }
        }
        Ok(trackers)
    }

    /// Switches off what was switched on.
    fn stop(&mut self) -> Result<(), GuestError> {
        self.pagemap = None;
        if std::mem::take(&mut self.own) {
            self.guest.keep_order(false);
            self.guest.stop_tracking()?;
        }
        Ok(())
    }
}

impl Drop for Trackers<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("dunlin: after a recording: {}", chain(&error));
        }
    }
}

struct Recording<'a> {
    guest: &'a AnyGuest,
    place: &'a Place<'a>,
    exact: bool,
    window: Duration,
    started: Instant,
    words: Vec<u64>,
    ring: RingWindow,
}

impl Recording<'_> {
    /// Window after window; why it ended. All trackers are off then.
    fn run(
        &mut self,
        trackers: &mut Trackers<'_>,
        subscriber: &mut Subscriber<'_>,
        encoder: &mut Encoder,
    ) -> Result<EndReason, Gone> {
        let interrupt = &self.place.handle.interrupt;
        self.place.handle.status().serve = trackers
            .serve
            .iter()
            .map(|service| service.source.name().to_owned())
            .collect();
        self.started = Instant::now();
        subscriber.say(encoder.bytes(), interrupt)?;
        loop {
            encoder.clear();
            let heard = subscriber.listen(self.next_window(), interrupt)?;
            let halted = matches!(self.guest.progress().state, RunState::Halted | RunState::Failed);
            let over = match heard {
                // The process ends because its guest has.
                Heard::Closing | Heard::Nothing if halted => Some(EndReason::GuestEnded),
                heard => ended(heard),
            };
            if let Err(error) = self.look(trackers, encoder) {
                encoder.clear();
                return Ok(EndReason::Failed(chain(&error)));
            }
            self.place.handle.status().windows += 1;
            if let Some(reason) = over {
                return Ok(match trackers.stop() {
                    Ok(()) => reason,
                    Err(error) => EndReason::Failed(chain(&error)),
                });
            }
            subscriber.say(encoder.bytes(), interrupt)?;
        }
    }

    /// The next multiple of the window: what was missed because the host is busy makes one window longer, not the next ones shorter.
    fn next_window(&self) -> Instant {
        let passed = self.started.elapsed().as_nanos() / self.window.as_nanos();
        let next = u32::try_from(passed + 1).unwrap_or(u32::MAX);
        self.started + self.window * next
    }

    /// Harvests all trackers once.
    fn look(&mut self, trackers: &Trackers<'_>, encoder: &mut Encoder) -> Result<(), GuestError> {
        if self.exact {
            self.guest.pause()?;
        }
        let looked = self.harvest(trackers, encoder);
        if self.exact {
            self.guest.resume()?;
        }
        looked
    }

    fn harvest(&mut self, trackers: &Trackers<'_>, encoder: &mut Encoder) -> Result<(), GuestError> {
        let from_ns = monotonic_ns();
        let mut ring = std::mem::take(&mut self.ring);
        for (service, index) in trackers.serve.iter().zip(0..) {
            self.words.fill(0);
            match &trackers.pagemap {
                Some(pagemap) if service.source == Source::PagemapScan => pagemap.harvest(&mut self.words)?,
                _ => self.guest.harvest_window(&mut self.words, &mut ring)?,
            }
            if !service.pages {
                continue;
            }
            if service.source == Source::Ring {
                for pass in &ring.passes {
                    encoder.put_writes(index, pass.at_ns, pass.vcpu, &pass.pages);
                }
            } else {
                encoder.put_dirty(index, runs(&self.words));
            }
        }
        encoder.put(&Message::Window {
            from_ns,
            at_ns: monotonic_ns(),
            entries: ring.entries.clone(),
            overruns: ring.overruns,
            steps: self.guest.progress().vcpus.iter().map(|vcpu| vcpu.steps).collect(),
        });
        self.ring = ring;
        Ok(())
    }
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
