//! What is said of a recording over the control socket.
//!
//! The client asks `{"command":"record",…}` and is answered with a [`RecordingAnswer`]: the VM as a tracer needs to know it. Nothing is
//! tracked yet. With `{"command":"go"}` tracking begins, and from then on the process sends [`Message`]s in binary frames: the length of
//! the rest in 4 bytes, little-endian, then the message as postcard. Any further line of the client, `{"command":"stop"}` by custom, and
//! the end of its connection whatever the reason, end the recording; what was switched on for it is switched off before the last
//! message, [`Message::End`]. Then lines are requests again.

use super::ControlError;
use crate::channel::{ChannelError, Stream, Wait};
use crate::guest::GuestKind;
use crate::memory::Run;
use crate::report::RecordingSchema;
use dunlin_core::tracefile::Source;
use dunlin_core::units::{Gfn, Pages};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest message, in bytes.
const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// The most runs or pages in one message: at most 20 bytes each.
const PIECE: usize = 1 << 16;
/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// A recording as asked for. Every field may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordRequest {
    /// The trackers to serve, each once; none for the VM's own one, with its pages.
    #[serde(default)]
    pub serve: Vec<Service>,
    /// The time between two looks, in microseconds.
    #[serde(default = "RecordRequest::default_window_us")]
    pub window_us: u64,
    /// Whether all vCPUs stand still at each look, so that all trackers and the guest's own count speak of the same moment. Costs the guest
    /// a pause of about 0.1 ms each time.
    #[serde(default)]
    pub exact: bool,
}

impl RecordRequest {
    /// The shortest window, in microseconds.
    pub const WINDOW_MIN_US: u64 = 1_000;
    /// The longest window, in microseconds.
    pub const WINDOW_MAX_US: u64 = 60_000_000;

    const fn default_window_us() -> u64 {
        50_000
    }
}

impl Default for RecordRequest {
    fn default() -> Self {
        Self {
            serve: Vec::new(),
            window_us: Self::default_window_us(),
            exact: false,
        }
    }
}

/// A tracker that is served while a recording goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// [`Source::Ring`] or [`Source::Bitmap`], whichever the VM was built with, or [`Source::PagemapScan`].
    #[serde(with = "source_name")]
    pub source: Source,
    /// Whether what it harvests is told. It is harvested anyway: rings are reset, pages are protected again.
    #[serde(default = "Service::default_pages")]
    pub pages: bool,
}

impl Service {
    /// A tracker that tells what it harvests.
    pub const fn with_pages(source: Source) -> Self {
        Self { source, pages: true }
    }

    /// A tracker that only serves those who look at the kernel.
    pub const fn only_armed(source: Source) -> Self {
        Self { source, pages: false }
    }

    const fn default_pages() -> bool {
        true
    }
}

/// A VM that is about to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingAnswer {
    /// Which document this is.
    pub schema: RecordingSchema,
    /// The VM's name.
    pub name: String,
    /// The process that holds it.
    pub pid: u32,
    /// What runs it.
    pub kind: GuestKind,
    /// The threads of its vCPUs, vCPU 0 first, as the kernel numbers threads.
    pub vcpu_threads: Vec<u32>,
    /// Its RAM, ascending.
    pub regions: Vec<RecordedRegion>,
    /// What it is tracked by on its own.
    #[serde(with = "source_name")]
    pub tracking: Source,
    /// Entries of each vCPU's dirty ring; 0 without rings.
    pub ring_entries: u32,
    /// Pages of RAM that were not all zero a moment ago.
    pub used_pages: u64,
    /// The trackers that will be served; messages name them by their place here.
    pub serve: Vec<Service>,
    /// The time between two looks, in microseconds.
    pub window_us: u64,
}

/// A piece of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedRegion {
    /// The first guest frame.
    pub first_gfn: u64,
    /// How many.
    pub pages: u64,
    /// The number of its KVM slot; of no meaning for guests of threads.
    pub slot: u32,
    /// Where it starts in the process, as a virtual address.
    pub host_address: u64,
}

/// News of a recording. Times are nanoseconds of CLOCK_MONOTONIC, the clock of eBPF's `bpf_ktime_get_ns`, and do not fall from one message
/// to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Everything is tracked from here on. The first message.
    Started {
        /// When.
        at_ns: u64,
        /// The wall clock then, in nanoseconds since 1970.
        unix_ns: u64,
    },
    /// Pages written in the window that ends next, from a tracker without an order. All runs of a window ascend, also over several
    /// messages.
    Dirty {
        /// The tracker, by its place in the answer.
        service: u8,
        /// The pages.
        pages: DirtyRuns,
    },
    /// What a vCPU's dirty ring held, in its order; a page that it held before in the same window is left out.
    Writes {
        /// The tracker, by its place in the answer.
        service: u8,
        /// When it was harvested: the pages were written before.
        at_ns: u64,
        /// Whose ring.
        vcpu: u32,
        /// The pages.
        pages: OrderedPages,
    },
    /// A window has ended.
    Window {
        /// When the harvest began: all that was written before is in this window.
        from_ns: u64,
        /// When it was over: all that is written from now on is in a later one.
        at_ns: u64,
        /// Entries harvested of each vCPU's ring since the VM was built; empty without rings.
        entries: Vec<u64>,
        /// Harvests since the VM was built that may have missed something, so that all pages count as written. Rings only.
        overruns: u64,
        /// Steps of each vCPU so far, as of its last report.
        steps: Vec<u64>,
    },
    /// It is over; nothing is tracked any more.
    End {
        /// When.
        at_ns: u64,
        /// CPU time that the process has spent on it.
        cpu_ns: u64,
        /// Why.
        reason: EndReason,
    },
}

/// Why a recording is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// The client wants no more.
    Stopped,
    /// A migration began, which needs the tracker for itself.
    Migration,
    /// The guest has halted or failed.
    GuestEnded,
    /// The process ends.
    ProcessEnds,
    /// Tracking failed; why.
    Failed(String),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped by its client"),
            Self::Migration => f.write_str("a migration of the VM began; record it where it runs next"),
            Self::GuestEnded => f.write_str("the guest has ended"),
            Self::ProcessEnds => f.write_str("the process that holds the VM ends"),
            Self::Failed(why) => write!(f, "tracking failed: {why}"),
        }
    }
}

/// Runs of pages, ascending: the gap before each, and its pages less one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyRuns(Vec<(u64, u64)>);

impl DirtyRuns {
    /// Of ascending runs that have pages and do not touch each other.
    pub fn new(runs: impl IntoIterator<Item = Run>) -> Self {
        let mut end = 0;
        let gap = |run: Run| {
            let gap = run.first.0 - end;
            end = run.end().0;
            (gap, run.count.0 - 1)
        };
        Self(runs.into_iter().map(gap).collect())
    }

    /// The runs; `None` for one that no guest can have.
    pub fn runs(&self) -> impl Iterator<Item = Option<Run>> + '_ {
        let mut end = Some(0u64);
        self.0.iter().map(move |(gap, more)| {
            // Behind a run that cannot be nothing is known of the others.
            let first = end.take().and_then(|end| end.checked_add(*gap))?;
            let count = more.checked_add(1)?;
            end = first.checked_add(count);
            end.map(|_| Run::new(Gfn(first), Pages(count)))
        })
    }
}

/// Pages in the order in which they were written: the distance of each from the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedPages(Vec<i64>);

impl OrderedPages {
    /// Of these pages.
    pub fn new(pages: &[Gfn]) -> Self {
        let mut last = 0u64;
        let distance = |gfn: &Gfn| {
            let distance = gfn.0.wrapping_sub(last).cast_signed();
            last = gfn.0;
            distance
        };
        Self(pages.iter().map(distance).collect())
    }

    /// The pages.
    pub fn pages(&self) -> impl Iterator<Item = Gfn> + '_ {
        let mut last = 0u64;
        self.0.iter().map(move |distance| {
            last = last.wrapping_add_signed(*distance);
            Gfn(last)
        })
    }
}

/// Appends messages to `bytes`.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Appends a message.
    pub fn put(&mut self, message: &Message) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(message, bytes).expect("plain data can always be encoded");
        let length = u32::try_from(self.bytes.len() - start - 4).expect("pieces are short");
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Appends what a tracker without an order has found, in as many messages as it takes.
    pub fn put_dirty(&mut self, service: u8, runs: impl Iterator<Item = Run>) {
        let mut runs = runs.peekable();
        while runs.peek().is_some() {
            let pages = DirtyRuns::new(runs.by_ref().take(PIECE));
            self.put(&Message::Dirty { service, pages });
        }
    }

    /// Appends what a ring held, in as many messages as it takes.
    pub fn put_writes(&mut self, service: u8, at_ns: u64, vcpu: u32, pages: &[Gfn]) {
        for pages in pages.chunks(PIECE) {
            let pages = OrderedPages::new(pages);
            self.put(&Message::Writes {
                service,
                at_ns,
                vcpu,
                pages,
            });
        }
    }

    /// What has been appended.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// Takes messages out of a stream. What was read of a message stays when a wait ends; the next call goes on from there.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// How much of the buffer has been taken.
    taken: usize,
    piece: Vec<u8>,
}

impl Decoder {
    /// Of a stream of which this was read already.
    pub fn new(buffer: Vec<u8>) -> Self {
        Self {
            buffer,
            taken: 0,
            piece: vec![0; READ_BYTES],
        }
    }

    /// The next message; `None` when the stream has ended without one.
    ///
    /// # Errors
    /// [`ControlError::Message`] when it is none; [`ControlError::Channel`].
    pub fn next(&mut self, stream: &Stream, wait: Wait<'_>) -> Result<Option<Message>, ControlError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            match stream.read_some(&mut self.piece, wait) {
                Ok(0) | Err(ChannelError::Closed { .. }) => return Ok(None),
                Ok(read) => {
                    self.buffer.drain(..self.taken);
                    self.taken = 0;
                    self.buffer.extend_from_slice(&self.piece[..read]);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What was read and is no whole message.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    fn take(&mut self) -> Result<Option<Message>, ControlError> {
        let rest = &self.buffer[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MESSAGE_MAX_BYTES {
            return Err(ControlError::Message("it is too long"));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = match postcard::take_from_bytes(body) {
            Ok((message, [])) => message,
            Ok(_) => return Err(ControlError::Message("there are bytes behind its end")),
            Err(_) => return Err(ControlError::Message("it is cut off or garbled")),
        };
        self.taken += 4 + length;
        Ok(Some(message))
    }
}

mod source_name {
    use dunlin_core::tracefile::Source;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(source: &Source, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(source.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Source, D::Error> {
        let name = String::deserialize(deserializer)?;
        Source::from_name(&name).ok_or_else(|| D::Error::custom(format_args!("there is no source {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Cancel;
    use proptest::prelude::*;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn the_request_is_the_contract() {
        let request = RecordRequest {
            serve: vec![
                Service::with_pages(Source::Bitmap),
                Service::only_armed(Source::PagemapScan),
            ],
            ..RecordRequest::default()
        };
        let text = json!({
            "serve": [{"source": "kvm-dirty-bitmap", "pages": true}, {"source": "pagemap-scan", "pages": false}],
            "window_us": 50_000, "exact": false,
        });
        assert_eq!(to_value(&request).unwrap(), text);
        assert_eq!(from_value::<RecordRequest>(text).unwrap(), request);
        assert_eq!(
            from_value::<RecordRequest>(json!({})).unwrap(),
            RecordRequest::default()
        );
        let short = json!({"serve": [{"source": "kvm-dirty-ring"}]});
        assert_eq!(
            from_value::<RecordRequest>(short).unwrap().serve,
            [Service::with_pages(Source::Ring)]
        );
        let wrong = from_value::<RecordRequest>(json!({"serve": [{"source": "gossip"}]})).unwrap_err();
        assert!(wrong.to_string().contains("no source \"gossip\""), "{wrong}");
    }

    /// The bytes through a stream, cut wherever.
    fn through(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Message>, ControlError> {
        let cancel = Cancel::new();
        let wait = Wait::within(std::time::Duration::ZERO, &cancel);
        let (near, far) = Stream::pair().unwrap();
        let (mut decoder, mut found) = (Decoder::new(Vec::new()), Vec::new());
        let mut rest = bytes;
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            near.write_all(now, wait).unwrap();
            loop {
                match decoder.next(&far, wait) {
                    Ok(Some(message)) => found.push(message),
                    Ok(None) => unreachable!("the stream goes on"),
                    Err(ControlError::Channel(ChannelError::TimedOut { .. })) => break,
                    Err(error) => return Err(error),
                }
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    fn message() -> impl Strategy<Value = Message> {
        let runs = prop::collection::vec((0..u64::MAX / 2, 1..1000u64), 0..20);
        let any_runs = runs.prop_map(|runs| {
            let mut end = 0u64;
            DirtyRuns::new(runs.into_iter().map_while(|(gap, count)| {
                let first = end.checked_add(gap % 100_000)?;
                end = first + count;
                Some(Run::new(Gfn(first), Pages(count)))
            }))
        });
        let any_pages = prop::collection::vec(any::<u64>().prop_map(Gfn), 0..20);
        prop_oneof![
            (0..2u8, any_runs).prop_map(|(service, pages)| Message::Dirty { service, pages }),
            (any::<u64>(), any::<u32>(), any_pages).prop_map(|(at_ns, vcpu, pages)| {
                let pages = OrderedPages::new(&pages);
                Message::Writes {
                    service: 1,
                    at_ns,
                    vcpu,
                    pages,
                }
            }),
            (any::<u64>(), prop::collection::vec(any::<u64>(), 0..4)).prop_map(|(at_ns, entries)| Message::Window {
                from_ns: 0,
                at_ns,
                steps: entries.clone(),
                entries,
                overruns: 1,
            }),
            any::<String>().prop_map(|why| Message::End {
                at_ns: 1,
                cpu_ns: 2,
                reason: EndReason::Failed(why)
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_arrive_as_they_were_sent(
            messages in prop::collection::vec(message(), 0..10),
            cuts in prop::collection::vec(1usize..60, 1..20),
        ) {
            let mut encoder = Encoder::default();
            messages.iter().for_each(|message| encoder.put(message));
            prop_assert_eq!(through(encoder.bytes(), &cuts).unwrap(), messages);
        }

        #[test]
        fn bytes_of_anybody_are_no_danger(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = through(&bytes, &[50]);
            if let Ok(runs) = postcard::from_bytes::<DirtyRuns>(&bytes) {
                runs.runs().for_each(drop);
            }
            if let Ok(pages) = postcard::from_bytes::<OrderedPages>(&bytes) {
                pages.pages().for_each(drop);
            }
        }

        #[test]
        fn pages_and_runs_come_back(pages in prop::collection::vec(any::<u64>().prop_map(Gfn), 0..100)) {
            prop_assert_eq!(OrderedPages::new(&pages).pages().collect::<Vec<_>>(), pages);
        }
    }

    #[test]
    fn many_runs_take_several_messages() {
        let all: Vec<Run> = (0..PIECE as u64 * 2 + 5)
            .map(|index| Run::new(Gfn(index * 3), Pages(2)))
            .collect();
        let mut encoder = Encoder::default();
        encoder.put_dirty(0, all.iter().copied());
        let messages = through(encoder.bytes(), &[1 << 14]).unwrap();
        assert_eq!(messages.len(), 3);
        let found: Vec<Run> = messages
            .iter()
            .flat_map(|message| match message {
                Message::Dirty { pages, .. } => pages.runs().map(Option::unwrap).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, all);
        assert!(
            encoder.bytes().len() < all.len() * 3,
            "two bytes for a run, and a little"
        );
    }

    #[test]
    fn a_run_that_no_guest_has_is_none() {
        let runs = DirtyRuns(vec![(5, 0), (u64::MAX, 0), (0, 0)]);
        let found: Vec<_> = runs.runs().collect();
        assert_eq!(found, [Some(Run::new(Gfn(5), Pages(1))), None, None]);
        assert_eq!(DirtyRuns(vec![(0, u64::MAX)]).runs().next(), Some(None));
    }
}
