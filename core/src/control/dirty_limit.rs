//! Holding each vCPU to a rate of writing.

use core::fmt;

use super::Throttle;
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};

/// How close to its quota a vCPU has to be to be left alone: QEMU's `DIRTYLIMIT_TOLERANCE_RANGE`, 25 MB/s in units of 2^20.
const TOLERANCE: u64 = 25 << 20;
/// A fixed step is this part of the time in which the ring fills.
const FIXED_STEP: u128 = 10;
/// The longest sleep, in times that the ring takes to fill: QEMU's `DIRTYLIMIT_THROTTLE_PCT_MAX`, which makes 99 %.
const SLEEP_MAX: u128 = 99;

/// How long a vCPU sleeps whenever it has filled its ring. One word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuLimit {
    sleep: u64,
}

/// A vCPU that there is no [`VcpuLimit`] for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NoSuchVcpu {
    /// The vCPU, counted from 0.
    pub vcpu: u32,
    /// How many there are.
    pub vcpus: u32,
}

impl fmt::Display for NoSuchVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vCPU {} of a guest of {}: give one limit per vCPU, and count from 0",
            self.vcpu, self.vcpus
        )
    }
}

impl core::error::Error for NoSuchVcpu {}

/// QEMU's `dirty-limit` (system/dirtylimit.c): each vCPU sleeps after every so many pages it has dirtied (a ring of KVM's
/// filled), for a time that is corrected once per period until its dirty rate is within 25 MB/s of a quota. Readers, who fill no
/// ring, are never slowed down.
///
/// Let f be the time in which the ring fills at the highest rate seen of any vCPU. If rate and quota are
/// more than 25 MB/s apart:
///
/// * by more than half of the larger one: the sleep grows by f · (rate − quota) / quota, or shrinks by f · (quota − rate) / rate;
/// * otherwise it grows or shrinks by f / 10;
///
/// and stays between 0 and 99·f. QEMU has rates in whole MB/s and rounds the part to be slept to whole percent before it
/// divides; this has bytes per second and divides once. A vCPU more than 25 MB/s above its quota that rests in a period has
/// its sleep taken back, as in QEMU. QEMU starts limiting when [`Congestion`](super::Congestion) tells, with a quota of
/// 1 MB/s; a period is one second by default, and half a second does as well.
///
/// Memory: the caller's word per vCPU.
#[derive(Debug)]
pub struct DirtyLimit<'a> {
    limits: &'a mut [VcpuLimit],
    quota: BytesPerSec,
    ring: Bytes,
    fastest: u64,
}

impl<'a> DirtyLimit<'a> {
    /// Nobody sleeps yet. One limit per vCPU, overwritten; `quota` is each one's, `ring` the pages after which a vCPU sleeps.
    pub fn new(limits: &'a mut [VcpuLimit], quota: BytesPerSec, ring: Pages) -> Self {
        limits.fill(VcpuLimit::default());
        Self {
            limits,
            quota,
            ring: ring.bytes(),
            fastest: 0,
        }
    }

    /// The rate at which this vCPU dirtied memory in the last period: what holds for the next. O(1).
    ///
    /// # Errors
    /// [`NoSuchVcpu`].
    pub fn on_period(&mut self, vcpu: u32, rate: BytesPerSec) -> Result<Throttle, NoSuchVcpu> {
        let mut sleep = u128::from(self.sleep(vcpu)?.0);
        self.fastest = self.fastest.max(rate.0);
        if rate.0.abs_diff(self.quota.0) > TOLERANCE {
            let fills_in = self.fills_in();
            sleep = if rate.0 == 0 {
                0
            } else if rate > self.quota {
                sleep + correction(fills_in, rate.0, self.quota.0)
            } else {
                sleep.saturating_sub(correction(fills_in, self.quota.0, rate.0))
            };
            sleep = sleep.min(SLEEP_MAX * fills_in).min(u128::from(u64::MAX));
            self.limits[vcpu as usize].sleep = sleep as u64;
        }
        self.throttle(vcpu)
    }

    /// How long this vCPU sleeps after each ring of pages.
    ///
    /// # Errors
    /// [`NoSuchVcpu`].
    pub fn sleep(&self, vcpu: u32) -> Result<Nanos, NoSuchVcpu> {
        let limit = self.limits.get(vcpu as usize).ok_or(NoSuchVcpu {
            vcpu,
            vcpus: u32::try_from(self.limits.len()).unwrap_or(u32::MAX),
        })?;
        Ok(Nanos(limit.sleep))
    }

    /// The share of time that this vCPU sleeps if it writes as fast as the fastest seen, rounded down.
    ///
    /// # Errors
    /// [`NoSuchVcpu`].
    pub fn throttle(&self, vcpu: u32) -> Result<Throttle, NoSuchVcpu> {
        let sleep = u128::from(self.sleep(vcpu)?.0);
        let percent = (sleep * 100).checked_div(sleep + self.fills_in()).unwrap_or(0);
        Ok(Throttle::new(percent as u8))
    }

    /// f in nanoseconds, rounded down; 0 before anyone has written.
    fn fills_in(&self) -> u128 {
        let nanos = u128::from(self.ring.0) * 1_000_000_000;
        nanos.checked_div(u128::from(self.fastest)).unwrap_or(0)
    }
}

/// By how much to correct a sleep where the rates are `larger` and `smaller`.
fn correction(fills_in: u128, larger: u64, smaller: u64) -> u128 {
    let apart = u128::from(larger - smaller);
    if apart * 2 <= u128::from(larger) {
        return fills_in / FIXED_STEP;
    }
    // At most 2^94 · 2^64 would not fit: more than the longest sleep is as good as that.
    let times = apart / u128::from(smaller.max(1));
    if smaller == 0 || times > SLEEP_MAX {
        return SLEEP_MAX * fills_in;
    }
    fills_in * times + wide_part(fills_in, apart % u128::from(smaller), u128::from(smaller))
}

/// value · numerator / denominator, rounded down, for numerator < denominator < 2^64, where the product may not fit.
const fn wide_part(value: u128, numerator: u128, denominator: u128) -> u128 {
    value / denominator * numerator + value % denominator * numerator / denominator
}
