//! What a guest wrote once, to be written again by a simulated one.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dunlin_core::message::Regions;
use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{Head, Item, VCPU_UNKNOWN};
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::workload::{Spec, SpecError};

use super::{PAGES_MAX, SimError, VCPUS_MAX};
use crate::report::{chain, count, duration};
use crate::trace::{AnyReader, Assumed, TraceError};

/// What goes before the file in a workload.
const PREFIX: &str = "trace:";
/// Most writes that are kept, of 12 bytes each. What a trace has beyond is left out.
pub const RECORDED_WRITES_MAX: u64 = 1 << 26;

/// What a simulated guest does.
#[derive(Clone, Debug)]
pub enum Work {
    /// What a workload generates.
    Generated(Box<Spec>),
    /// What was recorded, over and over.
    Recorded(Arc<Recording>),
}

/// Why there is nothing for a guest to do.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// No workload.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No recording.
    #[error("{}", chain(.0))]
    Recording(RecordingError),
}

impl From<RecordingError> for WorkError {
    fn from(error: RecordingError) -> Self {
        Self::Recording(error)
    }
}

impl Work {
    /// Takes `trace:FILE`, and reads the file, or a workload.
    ///
    /// # Errors
    /// [`WorkError`].
    pub fn parse(text: &str) -> Result<Self, WorkError> {
        match text.strip_prefix(PREFIX) {
            Some(path) => Ok(Self::Recorded(Arc::new(Recording::load(Path::new(path))?))),
            None => Ok(text.parse::<Spec>()?.into()),
        }
    }

    /// The workload, if it is one.
    pub fn spec(&self) -> Option<&Spec> {
        match self {
            Self::Generated(spec) => Some(spec),
            Self::Recorded(_) => None,
        }
    }

    /// vCPUs and memory of the guest that was recorded.
    pub fn recorded_guest(&self) -> Option<(u32, Pages)> {
        match self {
            Self::Generated(_) => None,
            Self::Recorded(recording) => Some((recording.vcpus(), recording.pages())),
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generated(spec) => spec.fmt(f),
            Self::Recorded(recording) => recording.fmt(f),
        }
    }
}

impl From<Spec> for Work {
    fn from(spec: Spec) -> Self {
        Self::Generated(Box::new(spec))
    }
}

/// Why a trace cannot drive a guest.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The recorded guest is too large.
    #[error("the trace is of a guest with {} pages; up to {} can be simulated", .0.0, PAGES_MAX.0)]
    Memory(Pages),
    /// A page that is no RAM.
    #[error("page {} was written, which lies between the regions of memory that the trace says the guest has", .0.0)]
    NoMemory(Gfn),
    /// Writes that are all at the trace's start.
    #[error("all writes of the trace are at the same time, so that nothing says how fast the guest writes")]
    NoTime,
}

/// The writes of a recorded guest, by vCPU, in memory: 12 bytes each.
///
/// Pages are numbered in the order of the guest's RAM, without the holes between its regions. A window's pages are spread evenly
/// over the window, in ascending order; they count only if the trace has no single writes. What no vCPU is known to have written is
/// taken by all in turn. vCPU n is vCPU n modulo 64 where there are more.
pub struct Recording {
    head: Head,
    tracks: Vec<Track>,
    /// A bit for each page that is written.
    written: Vec<u64>,
    length: Nanos,
    writes: u64,
    is_whole: bool,
}

/// The writes of a vCPU.
#[derive(Default)]
pub(super) struct Track {
    times: Vec<u64>,
    pages: Vec<u32>,
}

impl Track {
    /// When the write of this number was, and of which page.
    #[inline]
    pub(super) fn get(&self, number: usize) -> Option<(Nanos, u64)> {
        let (at, page) = (self.times.get(number)?, self.pages.get(number)?);
        Some((Nanos(*at), u64::from(*page)))
    }

    pub(super) const fn len(&self) -> usize {
        self.times.len()
    }
}

impl Recording {
    /// Reads a trace of any form.
    ///
    /// # Errors
    /// [`RecordingError`]; a damaged trace is one.
    pub fn load(path: &Path) -> Result<Self, RecordingError> {
        let mut reader = AnyReader::open(path, Assumed::default())?;
        let head = reader.head().clone();
        Self::collect(&head, &mut reader)
    }

    /// Takes the items of a trace with this head.
    ///
    /// # Errors
    /// The first of the items', or [`RecordingError`].
    pub fn collect(
        head: &Head,
        items: impl IntoIterator<Item = Result<Item, TraceError>>,
    ) -> Result<Self, RecordingError> {
        let total = head.total();
        if total > PAGES_MAX {
            return Err(RecordingError::Memory(total));
        }
        let mut collector = Collector::new(head);
        for item in items {
            if !collector.take(&item?)? {
                break;
            }
        }
        collector.finish(head)
    }

    /// What the trace says of itself.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// vCPUs of the guest, 64 at most.
    pub fn vcpus(&self) -> u32 {
        self.tracks.len() as u32
    }

    /// Pages of its memory.
    pub fn pages(&self) -> Pages {
        self.head.total()
    }

    /// How long it was recorded, or as far as its writes were kept.
    pub const fn length(&self) -> Nanos {
        self.length
    }

    /// Its writes, or pages of windows.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// The pages written, ascending.
    pub(super) fn written(&self) -> impl Iterator<Item = u64> + '_ {
        let words = (0..).zip(&self.written).filter(|(_, word)| **word != 0);
        words.flat_map(|(index, word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| index * 64 + bit)
        })
    }

    /// Whether all writes were kept, not only the first [`RECORDED_WRITES_MAX`].
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) fn track(&self, vcpu: u32) -> &Track {
        const NONE: &Track = &Track {
            times: Vec::new(),
            pages: Vec::new(),
        };
        self.tracks.get(vcpu as usize).unwrap_or(NONE)
    }

    /// Whether a guest with so many pages and vCPUs can do this.
    pub(super) fn check_fits(&self, pages: Pages, vcpus: u32) -> Result<(), SimError> {
        if pages < self.pages() {
            let needed = self.pages().bytes();
            return Err(SimError::Setup(format!(
                "the trace is of a guest with {} KiB of memory: give as much, or leave --memory out",
                needed.0 >> 10
            )));
        }
        if vcpus < self.vcpus() {
            let needed = self.vcpus();
            return Err(SimError::Setup(format!(
                "the trace is of a guest with {needed} vCPUs: give as many, or leave --vcpus out"
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = duration(Duration::from_nanos(self.length.0));
        write!(
            f,
            "trace of {length}, {} writes, source {}",
            count(self.writes),
            self.head.source
        )
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("head", &self.head)
            .field("length", &self.length)
            .field("writes", &self.writes)
            .finish_non_exhaustive()
    }
}

/// Sorts items into the tracks of vCPUs.
struct Collector {
    places: Places,
    tracks: Vec<Track>,
    writes: u64,
    now: Nanos,
    /// Takes what no vCPU is known to have written.
    turn: usize,
    sees_writes: bool,
    /// Pages of the window that goes on, and when the last of each vCPU, and of all, ended.
    window: Vec<u32>,
    ends: Vec<Nanos>,
    is_whole: bool,
}

impl Collector {
    fn new(head: &Head) -> Self {
        let vcpus = head.vcpus.min(VCPUS_MAX) as usize;
        Self {
            places: Places::new(&head.regions),
            tracks: (0..vcpus).map(|_| Track::default()).collect(),
            writes: 0,
            now: Nanos::ZERO,
            turn: 0,
            sees_writes: false,
            window: Vec::new(),
            ends: vec![Nanos::ZERO; vcpus],
            is_whole: true,
        }
    }

    /// False if no more can be kept.
    fn take(&mut self, item: &Item) -> Result<bool, RecordingError> {
        match *item {
            Item::Write { at, vcpu, gfn } => {
                if !self.sees_writes {
                    self.forget_windows();
                }
                if self.writes == RECORDED_WRITES_MAX {
                    self.is_whole = false;
                    return Ok(false);
                }
                let page = self.places.page(gfn).ok_or(RecordingError::NoMemory(gfn))?;
                self.add(vcpu, at, page);
            }
            Item::Dirty { run } if !self.sees_writes => {
                let room = RECORDED_WRITES_MAX - self.writes - self.window.len() as u64;
                if run.count.0 > room {
                    self.is_whole = false;
                    return Ok(false);
                }
                self.places.pages(run, &mut self.window)?;
            }
            Item::WindowEnd { at, vcpu } if !self.sees_writes => self.end_window(at, vcpu),
            _ => {}
        }
        self.now = item.at().unwrap_or(self.now);
        Ok(true)
    }

    fn add(&mut self, vcpu: u32, at: Nanos, page: u32) {
        let count = self.tracks.len();
        let track = if vcpu == VCPU_UNKNOWN {
            self.turn = (self.turn + 1) % count;
            self.turn
        } else {
            vcpu as usize % count
        };
        let track = &mut self.tracks[track];
        // Windows of several vCPUs overlap.
        let last = track.times.last().copied().unwrap_or(0);
        track.times.push(at.0.max(last));
        track.pages.push(page);
        self.writes += 1;
    }

    /// The source sees single writes, so that windows say nothing new.
    fn forget_windows(&mut self) {
        self.sees_writes = true;
        self.window = Vec::new();
        self.writes = 0;
        for track in &mut self.tracks {
            *track = Track::default();
        }
    }

    fn end_window(&mut self, at: Nanos, vcpu: u32) {
        let count = self.ends.len();
        let began = match vcpu {
            VCPU_UNKNOWN => self.ends.iter().copied().max().unwrap_or_default(),
            vcpu => self.ends[vcpu as usize % count],
        };
        let pages = std::mem::take(&mut self.window);
        let (span, number) = (u128::from(at.saturating_sub(began).0), pages.len() as u128);
        for (index, page) in pages.iter().enumerate() {
            let since = span * index as u128 / number;
            self.add(vcpu, began.saturating_add(Nanos(since as u64)), *page);
        }
        match vcpu {
            VCPU_UNKNOWN => self.ends.fill(at),
            vcpu => self.ends[vcpu as usize % count] = at,
        }
        self.window = pages;
        self.window.clear();
    }

    fn finish(self, head: &Head) -> Result<Recording, RecordingError> {
        if self.now == Nanos::ZERO && self.writes > 0 {
            return Err(RecordingError::NoTime);
        }
        let mut written = vec![0; head.total().0.div_ceil(64) as usize];
        for page in self.tracks.iter().flat_map(|track| &track.pages) {
            written[(page / 64) as usize] |= 1 << (page % 64);
        }
        Ok(Recording {
            head: head.clone(),
            tracks: self.tracks,
            written,
            length: self.now,
            writes: self.writes,
            is_whole: self.is_whole,
        })
    }
}

/// Where a frame's page is among all pages of RAM.
struct Places(Vec<(Run, u64)>);

impl Places {
    fn new(regions: &Regions) -> Self {
        let mut before = 0;
        let place = |region: &dunlin_core::message::Region| {
            let place = (Run::new(region.first, region.pages), before);
            before += region.pages.0;
            place
        };
        Self(regions.iter().map(place).collect())
    }

    /// Its number: all are below [`PAGES_MAX`].
    fn page(&self, gfn: Gfn) -> Option<u32> {
        let (run, before) = self.0.iter().find(|(run, _)| run.contains(gfn))?;
        Some((gfn.0 - run.first.0 + before) as u32)
    }

    fn pages(&self, run: Run, to: &mut Vec<u32>) -> Result<(), RecordingError> {
        for gfn in run.first.0..run.end().0 {
            let page = self.page(Gfn(gfn)).ok_or(RecordingError::NoMemory(Gfn(gfn)))?;
            to.push(page);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_core::message::Region;
    use dunlin_core::tracefile::Source;

    fn head(vcpus: u32) -> Head {
        let region = |first, pages| Region {
            first: Gfn(first),
            pages: Pages(pages),
        };
        Head {
            source: Source::Bitmap,
            regions: [region(0, 10), region(100, 10)].into_iter().collect(),
            used: Pages(20),
            vcpus,
            window: Nanos::ZERO,
            started_unix_ns: 0,
            guest: heapless::String::new(),
        }
    }

    fn collect(vcpus: u32, items: &[Item]) -> Result<Recording, RecordingError> {
        Recording::collect(&head(vcpus), items.iter().copied().map(Ok))
    }

    fn tracks(recording: &Recording) -> Vec<Vec<(u64, u64)>> {
        let all = |track: &Track| {
            (0..track.len())
                .filter_map(|number| track.get(number))
                .map(|(at, page)| (at.0, page))
                .collect()
        };
        recording.tracks.iter().map(all).collect()
    }

    const fn write(at: u64, vcpu: u32, gfn: u64) -> Item {
        Item::Write {
            at: Nanos(at),
            vcpu,
            gfn: Gfn(gfn),
        }
    }

    const fn dirty(first: u64, count: u64) -> Item {
        Item::Dirty {
            run: Run::new(Gfn(first), Pages(count)),
        }
    }

    const fn window_end(at: u64, vcpu: u32) -> Item {
        Item::WindowEnd { at: Nanos(at), vcpu }
    }

    #[test]
    fn writes_go_to_their_vcpu_and_holes_are_no_pages() {
        let end = Item::End {
            at: Nanos(50),
            overhead: Nanos(0),
        };
        let items = [
            write(1, 0, 3),
            write(2, 1, 100),
            write(2, 0, 109),
            write(7, VCPU_UNKNOWN, 9),
            end,
        ];
        let recording = collect(2, &items).unwrap();
        assert_eq!(tracks(&recording), [vec![(1, 3), (2, 19)], vec![(2, 10), (7, 9)]]);
        assert_eq!(
            (recording.length(), recording.writes(), recording.pages()),
            (Nanos(50), 4, Pages(20))
        );
        assert!(recording.is_whole());
        assert_eq!(recording.written().collect::<Vec<_>>(), [3, 9, 10, 19]);
        assert!(recording.check_fits(Pages(20), 2).is_ok());
        assert!(recording.check_fits(Pages(19), 2).is_err());
        assert!(recording.check_fits(Pages(20), 1).is_err());
        assert_eq!(recording.track(5).len(), 0, "a vCPU that was not recorded is idle");
        let wrong = collect(2, &[write(1, 0, 50)]).unwrap_err();
        assert!(matches!(wrong, RecordingError::NoMemory(Gfn(50))));
        assert!(matches!(collect(1, &[write(0, 0, 1)]), Err(RecordingError::NoTime)));
    }

    #[test]
    fn pages_of_windows_are_spread_evenly() {
        let items = [
            dirty(1, 2),
            dirty(5, 1),
            dirty(100, 1),
            window_end(1000, VCPU_UNKNOWN),
            window_end(2000, VCPU_UNKNOWN),
            dirty(9, 1),
            window_end(3000, VCPU_UNKNOWN),
            dirty(1, 1),
        ];
        let recording = collect(1, &items).unwrap();
        let all = [(0, 1), (250, 2), (500, 5), (750, 10), (2000, 9)];
        assert_eq!(tracks(&recording), [all.to_vec()]);
        assert_eq!(recording.length(), Nanos(3000), "the last window did not end");
        let shared = collect(2, &items).unwrap();
        assert_eq!(
            tracks(&shared),
            [vec![(250, 2), (750, 10)], vec![(0, 1), (500, 5), (2000, 9)]]
        );
    }

    #[test]
    fn windows_of_a_vcpu_are_its_own() {
        let items = [
            dirty(1, 2),
            window_end(100, 1),
            dirty(5, 2),
            window_end(110, 0),
            dirty(7, 1),
            window_end(200, 1),
        ];
        let recording = collect(2, &items).unwrap();
        assert_eq!(
            tracks(&recording),
            [vec![(0, 5), (55, 6)], vec![(0, 1), (50, 2), (100, 7)]]
        );
    }

    #[test]
    fn single_writes_make_windows_superfluous() {
        let items = [
            dirty(1, 2),
            window_end(10, VCPU_UNKNOWN),
            write(11, 0, 1),
            dirty(3, 3),
            window_end(20, VCPU_UNKNOWN),
        ];
        let recording = collect(1, &items).unwrap();
        assert_eq!(tracks(&recording), [vec![(11, 1)]]);
        assert_eq!((recording.writes(), recording.length()), (1, Nanos(20)));
    }
}
