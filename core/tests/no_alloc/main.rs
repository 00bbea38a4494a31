//! Proof that deciding allocates nothing: a global allocator that ends the process once it is armed, and every room
//! of the crate driven while it is.
//!
//! To add a room: a file beside this one with a `drive` function, and a line in [`ROOMS`]. What a room needs it takes from
//! its stack or its scratch words; assertions may allocate when they fail, which fails the proof as well.

mod choose;
mod control;
mod cost;
mod migrate;
mod order;
mod order_push;
mod pageset;
mod pattern;
mod predict;
mod strategy;
mod switch;
#[cfg(feature = "tracefile")]
mod tracefile;
#[cfg(feature = "wire")]
mod wire;
#[cfg(feature = "workload")]
mod workload;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::fmt;
use std::hint::black_box;
use std::process::{Command, abort};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a room is driven by; it gets [`SCRATCH_WORDS`] words of any content.
type Drive = fn(&mut [u64]);

const ROOMS: &[(&str, Drive)] = &[
    ("pageset", pageset::drive),
    ("strategy", strategy::drive),
    ("pattern", pattern::drive),
    ("predict", predict::drive),
    ("order::filter", order::drive),
    ("order::push", order_push::drive),
    ("switch", switch::drive),
    ("cost", cost::drive),
    ("control", control::drive),
    ("choose", choose::drive),
    ("migrate", migrate::drive),
    #[cfg(feature = "tracefile")]
    ("tracefile", tracefile::drive),
    #[cfg(feature = "wire")]
    ("wire", wire::drive),
    #[cfg(feature = "workload")]
    ("workload", workload::drive),
];

/// 4 MiB, allocated before the allocator is armed.
const SCRATCH_WORDS: usize = 4 << 17;

/// With this argument the process allocates while armed, to show that it does not survive it.
const ALLOCATE: &str = "--allocate-while-armed";
const FOUND: &str = "the heap was used while the allocator was armed";

static ARMED: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static GUARD: Guard = Guard;

/// The system's allocator, until armed.
struct Guard;

impl Guard {
    fn refuse_if_armed(&self, what: &str, layout: Layout) {
        // Disarmed first: printing and the backtrace allocate. Unwinding out of an allocator is not allowed.
        if ARMED.swap(false, Ordering::SeqCst) {
            eprintln!(
                "{FOUND}: {what} of {} bytes\n{}",
                layout.size(),
                Backtrace::force_capture()
            );
            abort();
        }
    }
}

// SAFETY: every call is passed on unchanged to `System`, or the process ends.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.refuse_if_armed("allocation", layout);
        // SAFETY: the caller's promises are those `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        self.refuse_if_armed("release", layout);
        // SAFETY: `ptr` came from `System.alloc` with this layout, as the caller promises of this allocator.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn armed(work: impl FnOnce()) {
    ARMED.store(true, Ordering::SeqCst);
    work();
    ARMED.store(false, Ordering::SeqCst);
}

fn main() {
    if std::env::args().any(|argument| argument == ALLOCATE) {
        armed(|| drop(black_box(Box::new(1u8))));
        return;
    }
    the_allocator_refuses_when_armed();
    let mut scratch = vec![0; SCRATCH_WORDS];
    for (name, drive) in ROOMS {
        println!("no_alloc: {name}");
        armed(|| drive(&mut scratch));
    }
    println!("no_alloc: {} rooms driven, nothing allocated", ROOMS.len());
}

/// A guard that lets everything pass would prove nothing.
fn the_allocator_refuses_when_armed() {
    let program = std::env::current_exe().expect("this program's path");
    let output = Command::new(program)
        .arg(ALLOCATE)
        .output()
        .expect("this program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains(FOUND),
        "an allocation passed the armed allocator: {errors}"
    );
}

/// Counts what is written to it, to drive `Display` without a buffer.
#[derive(Default)]
struct Counter(usize);

impl fmt::Write for Counter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// Formats a value and asserts that it has something to say.
fn format(value: impl fmt::Display) {
    let mut counter = Counter::default();
    fmt::Write::write_fmt(&mut counter, format_args!("{value}")).expect("a counter takes everything");
    assert!(black_box(counter.0) > 0);
}

/// A deterministic stream of numbers (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
