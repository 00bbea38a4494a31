//! Whole first copies over two channels of known speeds, played in virtual time: what goes over the network beside a static copy,
//! and how long all of it takes.

use dunlin_core::message::{Message, PROTOCOL_VERSION, SessionId, VmId};
use dunlin_core::migrate::{Source, SourceAction, SourceConfig, SourceEvent, SourceMessage};
use dunlin_core::pageset::Run;
use dunlin_core::strategy::{First, Strategy};
use dunlin_core::units::{Nanos, Pages};

use crate::regions;

/// Two regions with a hole, together 64 MiB.
const SHAPE: [(u64, u64); 2] = [(0, 12_384), (16_384, 4_000)];
const END: u64 = 20_384;
const ALL: u64 = 16_384;
const TICK: Nanos = Nanos::from_millis(1);
/// Longer than any of these migrations.
const END_OF_TIME: Nanos = Nanos::from_secs(200);

/// What the guest writes.
#[derive(Clone, Copy, Debug)]
enum Writer {
    /// Nine of ten writes go to the first tenth of memory.
    Hotset,
    /// The k-th most popular page is written with a probability proportional to 1 / k.
    Zipf,
    Uniform,
}

/// Pages per second: of the storage channel, of the migration channel, and of the guest.
#[derive(Clone, Copy, Debug)]
struct Rates {
    storage: u64,
    migration: u64,
    guest: u64,
}

#[derive(Debug)]
struct Outcome {
    /// Pages on the migration channel before the pause.
    sent: u64,
    /// The final dirty set.
    left: u64,
    /// Until the copy is merged; none if it was given up.
    merged: Option<Nanos>,
    /// Until the last page is sent.
    total: Nanos,
    /// Pages of the storage channel.
    stored: u64,
    /// Times that a page went by either channel.
    went: u64,
    /// Rounds in which pages were held back.
    held: u32,
    rounds: u32,
}

struct Play {
    source: Source<'static>,
    rates: Rates,
    writer: Writer,
    now: Nanos,
    random: u64,
    /// Writes that are due, in thousandths of them.
    due: u64,
    dirty: Vec<u64>,
    times_sent: Vec<u32>,
    /// What the storage channel still carries, in thousandths of pages; none before it begins and after it has ended.
    writing: Option<u64>,
    stored: Vec<bool>,
    merged: Option<Nanos>,
    /// The storage channel has carried its part.
    ended: bool,
    /// There is no copy, or none any more.
    given_up: bool,
    running: bool,
}

impl Play {
    fn new(strategy: &str, rates: Rates, writer: Writer) -> Self {
        let strategy: Strategy = strategy.parse().expect("a strategy");
        let config = SourceConfig {
            downtime: Nanos::from_millis(60),
            ..SourceConfig::new(SessionId(1), VmId(1), regions(&SHAPE), strategy)
        };
        let words = vec![0; Source::words_needed(&config)].leak();
        Self {
            source: Source::new(config, words, Nanos::ZERO).expect("storage fits"),
            rates,
            writer,
            now: Nanos::from_secs(1),
            random: 0x2545_f491_4f6c_dd1d,
            due: 0,
            dirty: vec![0; END.div_ceil(64) as usize],
            times_sent: vec![0; END as usize],
            writing: None,
            stored: vec![false; END as usize],
            merged: None,
            ended: false,
            given_up: strategy.first == First::Serial,
            running: true,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    fn write(&mut self) {
        let is_hot = self.below(10) > 0;
        let index = match self.writer {
            Writer::Hotset if is_hot => self.below(ALL / 10),
            Writer::Hotset | Writer::Uniform => self.below(ALL),
            Writer::Zipf => self.zipf() * 6151 % ALL,
        };
        let page = if index < SHAPE[0].1 {
            index
        } else {
            index - SHAPE[0].1 + SHAPE[1].0
        };
        self.dirty[page as usize / 64] |= 1 << (page % 64);
    }

    /// A power of two and where between it and the next: each power is as likely as the others.
    fn zipf(&mut self) -> u64 {
        let power = 1 << self.below(15);
        (power + self.below(power)).min(ALL) - 1
    }

    fn tell(&mut self, event: SourceEvent<'_>) {
        self.source.on(self.now, event);
    }

    fn hear(&mut self, message: &Message<'_>) {
        self.tell(SourceEvent::Message(message));
    }

    /// The guest writes and the storage channel carries meanwhile.
    fn pass(&mut self, time: Nanos) {
        let until = self.now.saturating_add(time);
        while self.now < until {
            let step = until.saturating_sub(self.now).min(TICK);
            self.now = self.now.saturating_add(step);
            if self.running {
                self.due += self.rates.guest * step.0 / 1_000_000;
                for _ in 0..self.due / 1000 {
                    self.write();
                }
                self.due %= 1000;
            }
            self.carry(self.rates.storage * step.0 / 1_000_000);
        }
        assert!(self.now < END_OF_TIME, "it never ends");
    }

    fn carry(&mut self, mut milli: u64) {
        while let Some(left) = self.writing {
            if left > milli {
                self.writing = Some(left - milli);
                return;
            }
            milli -= left;
            self.writing = self.source.next_static(self.now, Pages(512)).map(|run| self.store(run));
            if self.writing.is_none() {
                self.ended = true;
                self.tell(SourceEvent::StaticWritten);
                self.merge();
            }
        }
    }

    /// The target has merged the copy once every page came by one channel or the other.
    fn merge(&mut self) {
        let came = |page: u64| self.stored[page as usize] || self.times_sent[page as usize] > 0;
        if self.ended && self.merged.is_none() && ram().all(came) {
            self.merged = Some(self.now);
            self.hear(&Message::StaticMerged);
        }
    }

    fn store(&mut self, run: Run) -> u64 {
        for page in run.first.0..run.end().0 {
            let before = std::mem::replace(&mut self.stored[page as usize], true);
            assert!(!before, "page {page} is stored twice");
        }
        run.count.0 * 1000
    }

    fn run(mut self) -> Outcome {
        let (mut held, mut left, mut sent_live) = (0, 0, 0);
        let mut last_held = 0;
        loop {
            if self.source.held_back() > Pages::ZERO && self.source.round() != last_held {
                (held, last_held) = (held + 1, self.source.round());
            }
            match self.source.poll(self.now) {
                SourceAction::Wait { .. } => {
                    self.pass(TICK);
                    self.tell(SourceEvent::Heard);
                    continue;
                }
                SourceAction::Send(SourceMessage::Hello) => {
                    self.tell(SourceEvent::Done);
                    self.hear(&Message::Welcome {
                        protocol: PROTOCOL_VERSION,
                    });
                    continue;
                }
                SourceAction::StartStatic => self.writing = Some(0),
                SourceAction::StopStatic => (self.writing, self.given_up) = (None, true),
                SourceAction::SendPages { run, round } => {
                    self.pass(Nanos(run.count.0 * 1_000_000_000 / self.rates.migration));
                    for page in run.first.0..run.end().0 {
                        self.times_sent[page as usize] += 1;
                    }
                    self.merge();
                    *(if round > 0 { &mut sent_live } else { &mut left }) += run.count.0;
                    let (data, zero) = (run.count, Pages::ZERO);
                    self.tell(SourceEvent::PagesSent { data, zero });
                    continue;
                }
                SourceAction::Send(SourceMessage::RoundEnd { round }) => {
                    self.tell(SourceEvent::Done);
                    self.pass(TICK);
                    self.hear(&Message::RoundReached { round });
                    continue;
                }
                SourceAction::Harvest => {
                    let words = std::mem::replace(&mut self.dirty, vec![0; END.div_ceil(64) as usize]);
                    self.tell(SourceEvent::Harvested(&words));
                    continue;
                }
                SourceAction::Pause => {
                    self.running = false;
                    assert!(
                        self.merged.is_some() || self.given_up,
                        "paused before the copy is merged"
                    );
                }
                SourceAction::SendHandOver(_) => break,
                SourceAction::StartTracking => self.dirty.fill(0),
                _ => {}
            }
            self.tell(SourceEvent::Done);
        }
        let since = |time: Nanos| time.saturating_sub(Nanos::from_secs(1));
        let stored = self.stored.iter().filter(|&&stored| stored).count() as u64;
        let times_sent: u64 = self.times_sent.iter().map(|&times| u64::from(times)).sum();
        Outcome {
            sent: sent_live,
            left,
            merged: self.merged.map(since),
            total: since(self.now),
            stored,
            went: stored + times_sent,
            held,
            rounds: self.source.round(),
        }
    }
}

fn ram() -> impl Iterator<Item = u64> {
    SHAPE.iter().flat_map(|&(first, count)| first..first + count)
}

fn play(strategy: &str, rates: Rates, writer: Writer) -> Outcome {
    Play::new(strategy, rates, writer).run()
}

const RATES: Rates = Rates {
    storage: 2000,
    migration: 8000,
    guest: 4000,
};

#[test]
fn hot_pages_do_not_go_in_every_round() {
    for writer in [Writer::Hotset, Writer::Zipf] {
        for guest in [2000, 4000, 8000] {
            let rates = Rates { guest, ..RATES };
            let plain = play("par-migrate", rates, writer);
            let held = play("par-migrate,hold=hot", rates, writer);
            assert_eq!(plain.held, 0, "{writer:?}, {rates:?}: {plain:?}");
            assert!(held.held > 40, "{writer:?}, {rates:?}: {held:?}");
            assert!(
                held.sent * 2 <= plain.sent,
                "{writer:?}, {rates:?}: {held:?}, {plain:?}"
            );
            assert!(
                held.left * 20 <= plain.left * 21,
                "{writer:?}, {rates:?}: {held:?}, {plain:?}"
            );
            assert!(
                held.total.0 * 100 <= plain.total.0 * 102,
                "{writer:?}, {rates:?}: {held:?}, {plain:?}"
            );
        }
    }
}

/// Where nothing is hotter than anything else, time is what must not be lost.
#[test]
fn a_guest_without_hot_pages_is_moved_as_fast() {
    for guest in [0, 1000, 4000] {
        let rates = Rates { guest, ..RATES };
        let plain = play("par-migrate", rates, Writer::Uniform);
        let held = play("par-migrate,hold=hot", rates, Writer::Uniform);
        assert!(held.sent <= plain.sent, "{rates:?}: {held:?}, {plain:?}");
        assert!(
            held.total.0 * 100 <= plain.total.0 * 103,
            "{rates:?}: {held:?}, {plain:?}"
        );
    }
}

/// Rounds in which everything stays behind last as long as any.
#[test]
fn rounds_that_send_nothing_do_not_spin() {
    let held = play("par-migrate,hold=hot", RATES, Writer::Hotset);
    let shortest = u64::from(held.rounds - 1) * 100;
    assert!(held.total.as_micros() / 1000 >= shortest, "{held:?}");
}

fn millis(time: Option<Nanos>) -> u64 {
    time.expect("it is merged").as_micros() / 1000
}

#[test]
fn two_channels_of_one_speed_take_half_the_time() {
    for (storage, migration) in [(2000, 2000), (8000, 8000), (2000, 8000), (8000, 2000)] {
        let rates = Rates {
            storage,
            migration,
            guest: 0,
        };
        let whole = ALL * 1000 / (storage + migration);
        let plain = play("par-migrate", rates, Writer::Uniform);
        assert_eq!((plain.stored, plain.went), (ALL, ALL), "{plain:?}");
        let split = play("par-migrate,split=speed", rates, Writer::Uniform);
        assert_eq!(split.went, ALL, "a page goes one way only: {rates:?}: {split:?}");
        let took = millis(split.merged);
        assert!(
            (whole..whole * 108 / 100 + 100).contains(&took),
            "{rates:?}: {whole} ms, {split:?}"
        );
        let part = ALL * storage / (storage + migration);
        assert!(split.stored.abs_diff(part) < ALL / 20, "{rates:?}: {split:?}");
    }
}

/// What the guest writes goes again, and nothing else does.
#[test]
fn both_channels_carry_the_copy_of_a_guest_that_writes() {
    for writer in [Writer::Hotset, Writer::Zipf, Writer::Uniform] {
        let rates = Rates {
            storage: 4000,
            migration: 4000,
            guest: 1000,
        };
        let plain = play("par-migrate", rates, writer);
        for strategy in ["par-migrate,split=speed", "par-migrate,split=speed,hold=hot"] {
            let split = play(strategy, rates, writer);
            assert!(
                millis(split.merged) * 100 <= millis(plain.merged) * 75,
                "{writer:?}, {strategy}: {split:?}, {plain:?}"
            );
            assert!(
                split.total < plain.total,
                "{writer:?}, {strategy}: {split:?}, {plain:?}"
            );
            assert!(split.went <= plain.went, "{writer:?}, {strategy}: {split:?}, {plain:?}");
            assert!(
                split.left * 10 <= plain.left * 11 + 100,
                "{writer:?}, {strategy}: {split:?}, {plain:?}"
            );
        }
    }
}

#[test]
fn a_storage_channel_that_is_too_slow_is_given_up() {
    for (storage, given_up) in [(0, true), (400, true), (600, false)] {
        let rates = Rates {
            storage,
            migration: 8000,
            guest: 1000,
        };
        let split = play("par-migrate,split=speed", rates, Writer::Hotset);
        assert_eq!(split.merged.is_none(), given_up, "{split:?}");
        let alone = play("precopy", rates, Writer::Hotset);
        assert!(split.total.0 * 100 <= alone.total.0 * 115, "{split:?}, {alone:?}");
        assert!(split.went <= alone.went + ALL / 4, "{split:?}, {alone:?}");
    }
}

/// A slow channel takes no more towards the end than it can carry by then.
#[test]
fn neither_channel_waits_for_the_other() {
    let rates = Rates {
        storage: 20_000,
        migration: 100,
        guest: 0,
    };
    let split = play("par-migrate,split=speed", rates, Writer::Uniform);
    assert!(millis(split.merged) < 1000, "{split:?}");
}
