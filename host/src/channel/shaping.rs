//! Rate limiting.
//!
//! The limit is a clock that counts bytes: at rate R it shows R·t bytes after t seconds. Who wants to send n bytes
//! reserves the next n of that clock and waits until it has shown them, as a link of that rate would have carried them.
//! So the average over any time is the rate, however late a busy host wakes the sender: the next reservation starts
//! where the last one ended, not where the sender woke. Only what an idle sender did not use is lost, except for a
//! millisecond.

use super::{ChannelError, Wait};
use dunlin_core::units::{BytesPerSec, Nanos};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a busy sender may be occupied otherwise between two pieces and still catch up in full.
pub(crate) const BURST: Duration = Duration::from_millis(5);

/// A sender that asks for nothing that much longer was idle, between two rounds for example.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// How much of the rate an idle sender has saved up: a hundredth of the shortest round.
pub(crate) const FRESH: Duration = Duration::from_millis(1);

/// How late a sender may wake and still catch up in full. Longer is not the scheduler's lateness but a stalled host.
const CATCH_UP: Duration = Duration::from_millis(100);

/// How long a sender sleeps before it looks again whether rate or flag have changed.
const SLICE: Duration = Duration::from_millis(20);

/// A rate limit shared by threads; clones are handles of the same limit.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    origin: Instant,
    schedule: Mutex<Schedule>,
}

impl TokenBucket {
    /// A limit of `rate`, or none.
    pub fn new(rate: Option<BytesPerSec>) -> Self {
        let schedule = Mutex::new(Schedule::new(rate, Nanos::ZERO));
        Self {
            shared: Arc::new(Shared {
                origin: Instant::now(),
                schedule,
            }),
        }
    }

    /// Changes the rate from now on, also for those who wait already.
    pub fn set_rate(&self, rate: Option<BytesPerSec>) {
        let now = self.now();
        self.lock().set_rate(rate, now);
    }

    /// The present rate.
    pub fn rate(&self) -> Option<BytesPerSec> {
        self.lock().rate
    }

    /// Waits until `bytes` more may be sent. Waiting threads are served in the order they came.
    ///
    /// # Errors
    /// [`ChannelError::Cancelled`], [`ChannelError::TimedOut`]: nothing may be sent then, and nothing is charged.
    pub fn wait_for(&self, bytes: u64, wait: Wait<'_>) -> Result<(), ChannelError> {
        let now = self.now();
        let reserved = self.lock().reserve(bytes, now);
        loop {
            let now = self.now();
            let left = {
                let mut schedule = self.lock();
                match schedule.time_until(reserved, now) {
                    None => {
                        schedule.woke(reserved, now);
                        return Ok(());
                    }
                    Some(left) => left,
                }
            };
            if !wait.sleep(left.min(SLICE)) {
                self.lock().give_back(bytes);
                return Err(if wait.cancel().is_raised() {
                    ChannelError::Cancelled
                } else {
                    ChannelError::TimedOut {
                        peer: "the rate limit".into(),
                        after: wait.patience(),
                    }
                });
            }
        }
    }

    /// How long somebody who asks for room now waits for what others have reserved or charged; `None` if not at all.
    pub fn backlog(&self) -> Option<Duration> {
        let now = self.now();
        self.lock().backlog(now)
    }

    /// Charges `bytes` that were sent without waiting: everybody who waits for the limit afterwards waits for these
    /// too.
    pub fn charge(&self, bytes: u64) {
        let now = self.now();
        self.lock().reserve(bytes, now);
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.shared.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        // No method of `Schedule` leaves it half changed.
        self.shared.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The arithmetic of a rate limit, without a clock of its own. All positions are bytes since the beginning.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: Option<BytesPerSec>,
    /// The byte clock: it showed `anchor_bytes` at `anchor_time` and has run at `rate` since.
    anchor_time: Nanos,
    anchor_bytes: u64,
    /// The end of the last reservation.
    reserved: u64,
    /// How far the clock had passed a reservation when its owner woke; the next reservation may start that much
    /// earlier.
    lateness: u64,
}

/// The end of a reservation, as a position of the byte clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

impl Schedule {
    /// A clock that starts at `now`, with nothing saved up.
    pub const fn new(rate: Option<BytesPerSec>, now: Nanos) -> Self {
        Self {
            rate,
            anchor_time: now,
            anchor_bytes: 0,
            reserved: 0,
            lateness: 0,
        }
    }

    /// Reserves the next `bytes`.
    pub fn reserve(&mut self, bytes: u64, now: Nanos) -> Position {
        if let Some(rate) = self.rate {
            let shown = self.shown(rate, now);
            let busy = carried(rate, BURST).saturating_add(self.lateness);
            let was_idle = shown.saturating_sub(self.reserved) > busy.saturating_add(carried(rate, PAUSE));
            let saved = if was_idle { carried(rate, FRESH) } else { busy };
            self.reserved = self.reserved.max(shown.saturating_sub(saved));
        }
        self.lateness = 0;
        self.reserved = self.reserved.saturating_add(bytes);
        Position(self.reserved)
    }

    /// How long until the clock shows `position`; `None` when it does already.
    pub fn time_until(&self, position: Position, now: Nanos) -> Option<Duration> {
        let rate = self.rate?;
        let missing = position
            .0
            .checked_sub(self.shown(rate, now))
            .filter(|&bytes| bytes > 0)?;
        // Rounded up, so that the clock does show it then.
        let nanos = (u128::from(missing) * 1_000_000_000).div_ceil(u128::from(rate.0.max(1)));
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How long until the clock shows everything reserved so far; `None` when it does already.
    pub fn backlog(&self, now: Nanos) -> Option<Duration> {
        self.time_until(Position(self.reserved), now)
    }

    /// The owner of `position` has noticed at `now` that it has come.
    pub fn woke(&mut self, position: Position, now: Nanos) {
        if let Some(rate) = self.rate {
            self.lateness = self
                .shown(rate, now)
                .saturating_sub(position.0)
                .min(carried(rate, CATCH_UP));
        }
    }

    /// Takes back a reservation of `bytes` that will not be used.
    pub fn give_back(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Lets the clock run at another rate from `now` on. Without a limit it shows everything reserved so far.
    pub fn set_rate(&mut self, rate: Option<BytesPerSec>, now: Nanos) {
        self.anchor_bytes = match self.rate {
            Some(old) => self.shown(old, now),
            None => self.reserved,
        };
        self.anchor_time = now;
        self.rate = rate;
        self.lateness = 0;
    }

    fn shown(&self, rate: BytesPerSec, now: Nanos) -> u64 {
        let running = Duration::from_nanos(now.saturating_sub(self.anchor_time).0);
        self.anchor_bytes.saturating_add(carried(rate, running))
    }
}

/// What a link of `rate` carries in `time`, rounded down.
fn carried(rate: BytesPerSec, time: Duration) -> u64 {
    u64::try_from(u128::from(rate.0) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Cancel;
    use proptest::prelude::*;

    const RATE: BytesPerSec = BytesPerSec(1_000_000);

    fn ms(ms: u64) -> Nanos {
        Nanos::from_millis(ms)
    }

    #[test]
    fn bytes_take_their_time() {
        let mut schedule = Schedule::new(Some(RATE), Nanos::ZERO);
        let first = schedule.reserve(10_000, Nanos::ZERO);
        assert_eq!(schedule.time_until(first, Nanos::ZERO), Some(Duration::from_millis(10)));
        assert_eq!(schedule.time_until(first, ms(9)), Some(Duration::from_millis(1)));
        assert_eq!(schedule.time_until(first, ms(10)), None);
        let second = schedule.reserve(5_000, ms(10));
        assert_eq!(schedule.time_until(second, ms(10)), Some(Duration::from_millis(5)));
    }

    #[test]
    fn idle_time_is_lost_but_for_a_small_burst() {
        let mut schedule = Schedule::new(Some(RATE), Nanos::ZERO);
        let reserved = schedule.reserve(15_000, ms(60_000));
        assert_eq!(
            schedule.time_until(reserved, ms(60_000)),
            Some(Duration::from_millis(14))
        );
        // Nor does it help to have woken late before.
        schedule.woke(reserved, ms(60_090));
        let reserved = schedule.reserve(15_000, ms(60_300));
        assert_eq!(
            schedule.time_until(reserved, ms(60_300)),
            Some(Duration::from_millis(14))
        );
    }

    #[test]
    fn a_charge_delays_the_next_but_never_waits_itself() {
        let mut schedule = Schedule::new(Some(RATE), Nanos::ZERO);
        schedule.reserve(4_000, Nanos::ZERO);
        let next = schedule.reserve(1_000, Nanos::ZERO);
        assert_eq!(schedule.time_until(next, Nanos::ZERO), Some(Duration::from_millis(5)));
        assert_eq!(schedule.backlog(Nanos::ZERO), Some(Duration::from_millis(5)));
        assert_eq!(schedule.backlog(ms(5)), None);
    }

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let mut schedule = Schedule::new(Some(RATE), Nanos::ZERO);
        schedule.reserve(4_000, Nanos::ZERO);
        schedule.give_back(4_000);
        let next = schedule.reserve(1_000, Nanos::ZERO);
        assert_eq!(schedule.time_until(next, Nanos::ZERO), Some(Duration::from_millis(1)));
    }

    #[test]
    fn a_new_rate_counts_for_those_who_wait() {
        let mut schedule = Schedule::new(Some(RATE), Nanos::ZERO);
        let reserved = schedule.reserve(1_000_000, Nanos::ZERO);
        schedule.set_rate(Some(BytesPerSec(5_000_000)), ms(500));
        assert_eq!(schedule.time_until(reserved, ms(500)), Some(Duration::from_millis(100)));
        schedule.set_rate(None, ms(550));
        assert_eq!(schedule.time_until(reserved, ms(550)), None);
        schedule.reserve(1 << 40, ms(550));
        schedule.set_rate(Some(RATE), ms(600));
        let next = schedule.reserve(1_000, ms(600));
        assert_eq!(
            schedule.time_until(next, ms(600)),
            Some(Duration::from_millis(1)),
            "the unlimited time costs nothing"
        );
    }

    #[test]
    fn extreme_numbers_neither_overflow_nor_divide_by_zero() {
        for rate in [0, 1, u64::MAX] {
            let mut schedule = Schedule::new(Some(BytesPerSec(rate)), Nanos::ZERO);
            for bytes in [0, 1, u64::MAX, u64::MAX] {
                let reserved = schedule.reserve(bytes, Nanos(u64::MAX));
                schedule.time_until(reserved, Nanos::ZERO);
                schedule.woke(reserved, Nanos(u64::MAX));
            }
        }
    }

    proptest! {
        /// A sender that always has more to send, and that the host wakes up to 30 ms late, gets its rate to 2 % in any
        /// 0.5 s or more, in whatever pieces it sends.
        #[test]
        fn the_average_is_the_rate(
            rate in 1_000_000u64..10_000_000_000,
            pieces in prop::collection::vec((1u64..=65_536, 0u64..30_000_000, 0u64..2_000_000), 50..200),
        ) {
            let limit = BytesPerSec(rate);
            let mut schedule = Schedule::new(Some(limit), Nanos::ZERO);
            let (mut now, mut sent) = (Nanos::ZERO, 0u128);
            let mut pieces = pieces.into_iter().cycle();
            while now < ms(1_500) {
                let (share, late, busy) = pieces.next().unwrap();
                // A piece takes at most 8 ms on the link, but late wakers need pieces of that order to keep up at all.
                let bytes = (share * rate / 65_536 / 125).max(1);
                let reserved = schedule.reserve(bytes, now);
                if let Some(left) = schedule.time_until(reserved, now) {
                    now = Nanos(now.0 + u64::try_from(left.as_nanos()).unwrap() + late);
                }
                schedule.woke(reserved, now);
                sent += u128::from(bytes);
                let fair = u128::from(rate) * u128::from(now.0) / 1_000_000_000;
                prop_assert!(sent <= fair, "never ahead of the link");
                if now >= ms(500) {
                    let behind = fair - sent;
                    prop_assert!(behind <= u128::from(carried(limit, CATCH_UP)), "{behind} of {fair} behind");
                }
                // Sending itself takes time, too, but less than the burst.
                now = Nanos(now.0 + busy);
            }
            // Awake and with the link idle, it has caught up within a piece.
            let fair = u128::from(rate) * u128::from(now.0) / 1_000_000_000;
            let mut behind = fair - sent;
            while behind > 0 {
                let bytes = u64::try_from(behind).unwrap().min(rate / 125).max(1);
                let reserved = schedule.reserve(bytes, now);
                if schedule.time_until(reserved, now).is_some() {
                    break;
                }
                schedule.woke(reserved, now);
                sent += u128::from(bytes);
                behind = fair - sent;
            }
            prop_assert!((fair - sent) * 1_000 <= fair * 15, "{sent} of {fair}");
        }
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let bucket = TokenBucket::new(None);
        let cancel = Cancel::new();
        bucket.charge(u64::MAX);
        bucket.wait_for(u64::MAX, Wait::forever(&cancel)).unwrap();
    }

    #[test]
    fn waiting_ends_with_the_flag_or_with_a_faster_rate() {
        let bucket = TokenBucket::new(Some(BytesPerSec(1)));
        let cancel = Cancel::new();
        let raised = Cancel::new();
        raised.raise();
        assert!(matches!(
            bucket.wait_for(1 << 20, Wait::forever(&raised)),
            Err(ChannelError::Cancelled)
        ));
        let timed_out = bucket.wait_for(1 << 20, Wait::within(Duration::from_millis(1), &cancel));
        assert!(matches!(timed_out, Err(ChannelError::TimedOut { .. })));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| bucket.wait_for(1 << 40, Wait::forever(&cancel)));
            bucket.set_rate(None);
            waiter.join().unwrap().unwrap();
        });
    }
}
