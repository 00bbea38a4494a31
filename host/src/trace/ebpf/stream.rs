//! Records of the ring buffer as items of a trace.
//!
//! There is one buffer for all processors, so that records lie in it in the order in which the programs reserved them. Their
//! times were taken after that; where two processors differ by some hundred nanoseconds, the order counts and the later
//! time is taken for both.

use std::collections::VecDeque;

use aya::maps::{MapData, RingBuf};
use dunlin_core::record::{Kind, NO_VCPU, Record};
use dunlin_core::tracefile::{Item, VCPU_UNKNOWN};
use dunlin_core::units::{Gfn, Nanos};

/// Which thread is which vCPU.
#[derive(Debug)]
pub(super) struct Vcpus {
    /// Sorted by threads.
    threads: Vec<(u32, u32)>,
    last: (u32, u32),
}

impl Vcpus {
    pub(super) fn new(mut threads: Vec<(u32, u32)>) -> Self {
        threads.sort_unstable();
        Self {
            threads,
            // No thread has number 0.
            last: (0, VCPU_UNKNOWN),
        }
    }

    fn of(&mut self, thread: u32) -> u32 {
        if self.last.0 != thread {
            let found = self.threads.binary_search_by_key(&thread, |(thread, _)| *thread);
            let vcpu = found.map_or(VCPU_UNKNOWN, |index| self.threads[index].1);
            self.last = (thread, vcpu);
        }
        self.last.1
    }
}

/// Makes items of records, with times that never fall.
#[derive(Debug)]
pub(super) struct Translator {
    vcpus: Vcpus,
    started_ns: u64,
    last: Nanos,
    /// When the host protected pages anew, as far as no later record has been seen.
    protected: VecDeque<Nanos>,
    lost: u64,
}

impl Translator {
    pub(super) fn new(vcpus: Vcpus, started_ns: u64) -> Self {
        Self {
            vcpus,
            started_ns,
            last: Nanos::ZERO,
            protected: VecDeque::new(),
            lost: 0,
        }
    }

    /// The host protected pages anew at this time.
    pub(super) fn protected(&mut self, at: Nanos) {
        self.protected.push_back(at);
    }

    /// Gives what a record says, after what came before it. Records of kinds that say nothing of writes are left out.
    pub(super) fn record(&mut self, record: Record, sink: &mut impl FnMut(Item)) {
        let at = Nanos(record.at_ns.saturating_sub(self.started_ns));
        self.window_ends(at, sink);
        match Kind::from_number(record.kind) {
            Some(kind) if kind.is_write() => {
                let (vcpu, gfn) = (self.vcpus.of(record.tid), Gfn(record.value));
                let at = self.advance(at);
                sink(Item::Write { at, vcpu, gfn });
            }
            Some(Kind::RingReset) => {
                let at = self.advance(at);
                let vcpu = match record.slot {
                    NO_VCPU => VCPU_UNKNOWN,
                    index => index.into(),
                };
                sink(Item::WindowEnd { at, vcpu });
            }
            _ => {}
        }
    }

    /// Gives the ends of windows up to a time; records before it have all been seen.
    pub(super) fn window_ends(&mut self, until: Nanos, sink: &mut impl FnMut(Item)) {
        while let Some(at) = self.protected.pop_front_if(|at| *at <= until) {
            let at = self.advance(at);
            sink(Item::WindowEnd { at, vcpu: VCPU_UNKNOWN });
        }
    }

    /// So many events were lost in all.
    pub(super) fn lost(&mut self, lost: u64, sink: &mut impl FnMut(Item)) {
        let events = lost.saturating_sub(self.lost);
        if events > 0 {
            self.lost = lost;
            sink(Item::Lost { at: self.last, events });
        }
    }

    fn advance(&mut self, at: Nanos) -> Nanos {
        self.last = self.last.max(at);
        self.last
    }
}

/// Reads records out of the buffer until it is empty or `most` have come, and returns how many there were, and whether it was
/// found empty.
pub(super) fn read(buffer: &mut RingBuf<MapData>, most: u64, mut sink: impl FnMut(Record)) -> (u64, bool) {
    for count in 0..most {
        let Some(item) = buffer.next() else {
            return (count, true);
        };
        if let Some(record) = Record::from_bytes(&item) {
            sink(record);
        }
    }
    (most, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at_ns: u64, kind: Kind, tid: u32, slot: u16, value: u64) -> Record {
        Record {
            at_ns,
            value,
            tid,
            slot,
            kind: kind as u16,
        }
    }

    fn translator() -> Translator {
        Translator::new(Vcpus::new(vec![(12, 1), (11, 0)]), 1000)
    }

    fn write(at: u64, vcpu: u32, gfn: u64) -> Item {
        Item::Write {
            at: Nanos(at),
            vcpu,
            gfn: Gfn(gfn),
        }
    }

    fn window_end(at: u64, vcpu: u32) -> Item {
        Item::WindowEnd { at: Nanos(at), vcpu }
    }

    #[test]
    fn threads_become_vcpus_and_times_count_from_the_start() {
        let (mut translator, mut items) = (translator(), vec![]);
        let mut sink = |item| items.push(item);
        for record in [
            record(1010, Kind::RingPush, 11, 0, 5),
            record(1030, Kind::KernelFault, 12, 0, 6),
            record(1020, Kind::RingPush, 13, 0, 7),
            record(1040, Kind::Exit, 11, 0, 0),
            record(1050, Kind::RingReset, 13, 1, 0),
            record(1060, Kind::RingReset, 13, NO_VCPU, 0),
            record(900, Kind::SetSpte, 12, 0, 8),
        ] {
            translator.record(record, &mut sink);
        }
        let expected = [
            write(10, 0, 5),
            write(30, 1, 6),
            write(30, VCPU_UNKNOWN, 7),
            window_end(50, 1),
            window_end(60, VCPU_UNKNOWN),
            write(60, 1, 8),
        ];
        assert_eq!(items, expected);
    }

    #[test]
    fn windows_end_between_the_writes_before_and_after() {
        let (mut translator, mut items) = (translator(), vec![]);
        let mut sink = |item| items.push(item);
        translator.protected(Nanos(15));
        translator.protected(Nanos(90));
        translator.record(record(1010, Kind::KernelFault, 11, 0, 1), &mut sink);
        translator.record(record(1020, Kind::KernelFault, 11, 0, 2), &mut sink);
        translator.window_ends(Nanos(80), &mut sink);
        translator.window_ends(Nanos(95), &mut sink);
        let expected = [
            write(10, 0, 1),
            window_end(15, VCPU_UNKNOWN),
            write(20, 0, 2),
            window_end(90, VCPU_UNKNOWN),
        ];
        assert_eq!(items, expected);
    }

    #[test]
    fn losses_are_told_once() {
        let (mut translator, mut items) = (translator(), vec![]);
        let mut sink = |item| items.push(item);
        for lost in [0, 3, 3, 10] {
            translator.lost(lost, &mut sink);
        }
        let lost = |events| Item::Lost {
            at: Nanos::ZERO,
            events,
        };
        assert_eq!(items, [lost(3), lost(7)]);
    }
}
