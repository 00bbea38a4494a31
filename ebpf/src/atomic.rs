//! The two atomic instructions that are needed. The compiler offers no atomic types for a machine whose older versions have no
//! compare-and-swap.

/// Adds `value` to a word.
///
/// # Safety
/// `word` points to an aligned word of a map.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, value: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as the caller promises.
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value);
    }
    #[cfg(not(target_arch = "bpf"))]
    unreachable!("{word:?} {value}");
}

/// Sets the bits of `value` in a word.
///
/// # Safety
/// `word` points to an aligned word of a map.
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, value: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as the caller promises.
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) |= {value}", word = in(reg) word, value = in(reg) value);
    }
    #[cfg(not(target_arch = "bpf"))]
    unreachable!("{word:?} {value}");
}
