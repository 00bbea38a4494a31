//! Log frames by defmt, byte by byte through a port.
//!
//! All vCPUs share one encoder behind a lock, so a frame is never torn by another vCPU's. There are no time stamps: no
//! clock enters the guest, and whoever decodes the frames knows the time.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use dunlin_core::workload::layout::PORT_LOG;

use crate::machine::out_bytes;

/// The one encoder, and whether a vCPU is using it.
struct Log {
    taken: AtomicBool,
    encoder: UnsafeCell<defmt::Encoder>,
}

// SAFETY: the encoder is only touched between `lock` and `unlock`.
unsafe impl Sync for Log {}

static LOG: Log = Log {
    taken: AtomicBool::new(false),
    encoder: UnsafeCell::new(defmt::Encoder::new()),
};

impl Log {
    fn lock(&self) {
        while self.taken.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
    }

    /// # Safety
    /// The caller holds the lock and no longer uses the encoder.
    unsafe fn unlock(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// # Safety
    /// The caller holds the lock.
    unsafe fn encode(&self, step: impl FnOnce(&mut defmt::Encoder)) {
        // SAFETY: the lock is held, so this is the only reference.
        step(unsafe { &mut *self.encoder.get() });
    }
}

/// Brings the log to its first state, as if nothing had been logged. To be called after a vCPU's last message: the last
/// vCPU to do so leaves no trace of the order in which they came.
pub(crate) fn clear() {
    LOG.lock();
    // SAFETY: the lock is held, and released after the last use.
    unsafe {
        LOG.encode(|encoder| *encoder = defmt::Encoder::new());
        LOG.unlock();
    }
}

fn write(bytes: &[u8]) {
    out_bytes(PORT_LOG, bytes);
}

#[cfg_attr(target_os = "none", defmt::global_logger)]
struct Logger;

// SAFETY: defmt calls acquire first, release last and the others only in between; acquire takes the lock and release
// returns it. A message is never logged while another is being formatted on the same vCPU.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        LOG.lock();
        // SAFETY: the lock is held.
        unsafe { LOG.encode(|encoder| encoder.start_frame(write)) }
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: the lock is held since `acquire`, and released after the last use.
        unsafe {
            LOG.encode(|encoder| encoder.end_frame(write));
            LOG.unlock();
        }
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: the lock is held since `acquire`.
        unsafe { LOG.encode(|encoder| encoder.write(bytes, write)) }
    }
}
