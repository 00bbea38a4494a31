//! One page from two channels: the steps of both as a small model, the real code page by page, and two threads at once.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dunlin_core::message::{PROTOCOL_VERSION, SessionId, VmId};
use dunlin_core::migrate::{Target, TargetConfig};
use dunlin_core::pageset::words_needed;
use dunlin_core::units::Nanos;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::memory::tests::{memory, run};
use crate::run::Clock;

const PAGE: usize = PAGE_SIZE as usize;

/// A target that was just accepted, with room for the hash of every page.
pub(in super::super) fn shared(memory: &GuestMemory) -> SharedTarget<'static> {
    shared_with(memory, true)
}

/// The same, with pages that are to be compared in the end or not.
pub(in super::super) fn shared_with(memory: &GuestMemory, verify: bool) -> SharedTarget<'static> {
    let words = words_needed(Pages(memory.end_gfn().0));
    let set = || Box::leak(vec![0; words].into_boxed_slice());
    let config = TargetConfig {
        session: SessionId(1),
        vm: VmId(9),
        regions: crate::run::vm::regions(memory.layout()),
        protocol: PROTOCOL_VERSION,
        verify,
        static_copy: true,
        pb_data: true,
        split: false,
        network_timeout: Nanos::from_secs(3600),
    };
    SharedTarget {
        target: Mutex::new(Target::new(config, set(), set(), Nanos::ZERO).unwrap()),
        clock: Clock::start(),
        hashes: (0..memory.end_gfn().0).map(|_| AtomicU64::new(0)).collect(),
        zero_hash: XxHash3_64::oneshot(&[0; PAGE]),
        trouble: Mutex::new(None),
        report: Mutex::new(None),
        fault_link: Mutex::new(None),
        unreadable: AtomicBool::new(false),
    }
}

/// What one channel does to one page, which is two halves here so that a mixture shows.
#[derive(Clone, Copy, Debug)]
enum Act {
    Lock,
    Unlock,
    /// Looks at the bit; what is there keeps the static copy from its next steps.
    Check,
    SetBit,
    Copy(usize),
    Write(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Half {
    Fresh,
    Old,
    New,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    /// Acts that each side has behind it: the static copy, the migration channel.
    done: [usize; 2],
    holder: Option<usize>,
    bit: bool,
    found_absent: bool,
    page: [Half; 2],
}

impl Moment {
    /// The moment after one more act of a side; none if it has to wait for the lock.
    fn after(&self, side: usize, act: Act) -> Option<Self> {
        let mut next = self.clone();
        next.done[side] += 1;
        match act {
            Act::Lock if self.holder.is_some() => return None,
            Act::Lock => next.holder = Some(side),
            Act::Unlock => {
                assert_eq!(self.holder, Some(side));
                next.holder = None;
            }
            Act::Check => next.found_absent = !self.bit,
            Act::SetBit => next.bit = true,
            Act::Copy(half) if self.found_absent => next.page[half] = Half::Old,
            Act::Copy(_) => {}
            Act::Write(half) => next.page[half] = Half::New,
        }
        Some(next)
    }
}

/// How the page can look once both sides are done, over all orders of their acts.
fn outcomes(static_copy: &[Act], migration: &[Act]) -> BTreeSet<[Half; 2]> {
    let sides = [static_copy, migration];
    let mut seen = BTreeSet::new();
    let mut open = vec![Moment {
        done: [0; 2],
        holder: None,
        bit: false,
        found_absent: false,
        page: [Half::Fresh; 2],
    }];
    let mut outcomes = BTreeSet::new();
    while let Some(moment) = open.pop() {
        if !seen.insert(moment.clone()) {
            continue;
        }
        let acts = [0, 1].map(|side| sides[side].get(moment.done[side]));
        if acts.iter().all(Option::is_none) {
            outcomes.insert(moment.page);
        }
        for (side, act) in acts.into_iter().enumerate() {
            open.extend(act.and_then(|&act| moment.after(side, act)));
        }
    }
    outcomes
}

#[test]
fn the_order_of_steps_is_what_keeps_the_newer_page() {
    use Act::{Check, Copy, Lock, SetBit, Unlock, Write};
    let put = [Lock, Check, Copy(0), Copy(1), SetBit, Unlock];
    let claim_then_write = [Lock, SetBit, Unlock, Write(0), Write(1)];
    let newer = BTreeSet::from([[Half::New; 2]]);
    assert_eq!(outcomes(&put, &claim_then_write), newer);
    // Its own bit is there for later puts alone.
    let bit_later = [Lock, Check, Copy(0), Copy(1), Unlock, SetBit];
    assert_eq!(outcomes(&bit_later, &claim_then_write), newer);

    let lost = |put: &[Act], receive: &[Act]| outcomes(put, receive).iter().any(|page| page.contains(&Half::Old));
    let write_then_claim = [Write(0), Write(1), Lock, SetBit, Unlock];
    assert!(lost(&put, &write_then_claim), "the copy comes between write and claim");
    let claim_between = [Write(0), Lock, SetBit, Unlock, Write(1)];
    assert!(lost(&put, &claim_between), "it mixes with half a page");
    let claim_without_lock = [SetBit, Write(0), Write(1)];
    assert!(
        lost(&put, &claim_without_lock),
        "a check before the claim, a copy after the write"
    );
    let put_without_lock = [Check, Copy(0), Copy(1), SetBit];
    assert!(lost(&put_without_lock, &claim_then_write), "the same");
    let check_before_lock = [Check, Lock, Copy(0), Copy(1), SetBit, Unlock];
    assert!(lost(&check_before_lock, &claim_then_write), "the same");
    assert!(lost(&put, &[Write(0), Write(1)]), "no claim at all");
}

fn filled(run: Run, byte: impl Fn(u64) -> u8) -> Vec<u8> {
    let pages = run.first.0..run.end().0;
    pages.flat_map(|gfn| [byte(gfn); PAGE]).collect()
}

fn page(memory: &GuestMemory, gfn: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    memory.copy_run(run(gfn, 1), &mut bytes).unwrap();
    bytes
}

fn hash_of(shared: &SharedTarget<'_>, gfn: u64) -> u64 {
    shared.hashes[gfn as usize].load(Ordering::Relaxed)
}

#[test]
fn a_claim_waits_for_a_put_and_a_put_for_a_claim() {
    let memory = memory(1 << 20);
    let (merge, shared) = (Merge::new(memory.end_gfn()), shared(&memory));
    let both = run(63, 2);
    std::thread::scope(|scope| {
        let putting = merge.lock(1);
        let claim = scope.spawn(|| merge.claim(both));
        // No time is too short for a claim that waits; this is long enough for one that does not.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(
            merge.received[1].load(Ordering::Relaxed),
            0,
            "claimed while a page is put"
        );
        drop(putting);
        claim.join().unwrap();
    });
    assert_eq!(merge.received[0].load(Ordering::Relaxed), 1 << 63);
    assert_eq!(merge.received[1].load(Ordering::Relaxed), 1);

    let later = run(127, 2);
    let (old, new) = (filled(later, |_| 1), filled(later, |_| 2));
    std::thread::scope(|scope| {
        let claiming = [merge.lock(1), merge.lock(2)];
        let put = scope.spawn(|| merge.put_absent(&memory, &shared, later, Content::Data(&old)));
        std::thread::sleep(Duration::from_millis(50));
        merge.received[1].fetch_or(1 << 63, Ordering::Relaxed);
        merge.received[2].fetch_or(1, Ordering::Relaxed);
        drop(claiming);
        memory.write_run(later, &new).unwrap();
        put.join().unwrap().unwrap();
    });
    assert_eq!([page(&memory, 127), page(&memory, 128)].concat(), new);
}

/// Many rounds of a run that is put while some of its pages are claimed and overwritten: whoever is first, the newer page stands.
#[test]
fn newer_pages_stand_whatever_two_threads_do() {
    const ROUNDS: usize = 1500;
    let memory = memory(1 << 20);
    let shared = shared(&memory);
    let whole = run(30, 80);
    let newer_of = |round: usize| run(whole.first.0 + (round as u64 * 7) % 79, 1 + round as u64 % 2);
    let (mut put_first, mut claimed_first) = (0, 0);
    let start = Barrier::new(2);
    for round in 0..ROUNDS {
        let merge = Merge::new(memory.end_gfn());
        let newer = newer_of(round);
        let (old, new) = (
            filled(whole, |gfn| gfn as u8 | 128),
            filled(newer, |_| 1 + (round % 100) as u8),
        );
        memory.discard(whole).unwrap();
        let found = std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                merge.put_absent(&memory, &shared, whole, Content::Data(&old)).unwrap();
            });
            start.wait();
            for _ in 0..round % 40 * 20 {
                std::hint::spin_loop();
            }
            merge.claim(newer);
            let found = page(&memory, newer.first.0)[0];
            memory.write_run(newer, &new).unwrap();
            shared.keep_hashes(newer.first, &new);
            found
        });
        *(if found == 0 { &mut claimed_first } else { &mut put_first }) += 1;
        for gfn in whole.first.0..whole.end().0 {
            let is_new = (newer.first..newer.end()).contains(&Gfn(gfn));
            let expected = [if is_new { new[0] } else { gfn as u8 | 128 }; PAGE];
            assert!(page(&memory, gfn) == expected, "round {round}: page {gfn}");
            assert_eq!(
                hash_of(&shared, gfn),
                XxHash3_64::oneshot(&expected),
                "round {round}: hash of page {gfn}"
            );
        }
    }
    assert!(put_first + claimed_first == ROUNDS, "{put_first} and {claimed_first}");
}

fn runs() -> impl Strategy<Value = Run> {
    (0..250u64, 1..140u64).prop_map(|(first, count)| run(first, count.min(256 - first)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Claims and puts one after the other, beside an array of bytes.
    #[test]
    fn only_absent_pages_are_put(acts in vec((runs(), 0..3u8, 1..=u8::MAX), 1..24)) {
        let memory = memory(1 << 20);
        let (merge, shared) = (Merge::new(memory.end_gfn()), shared(&memory));
        let (mut bytes, mut came) = ([0; 256], [false; 256]);
        let mut hashes = [0; 256];
        for (run, kind, byte) in acts {
            let data = filled(run, |gfn| byte ^ gfn as u8);
            match kind {
                0 => {
                    merge.claim(run);
                    memory.write_run(run, &data).unwrap();
                }
                1 => merge.put_absent(&memory, &shared, run, Content::Data(&data)).unwrap(),
                _ => merge.put_absent(&memory, &shared, run, Content::Zero).unwrap(),
            }
            for gfn in run.first.0..run.end().0 {
                let at = gfn as usize;
                if kind == 0 || (kind == 1 && !came[at]) {
                    bytes[at] = byte ^ gfn as u8;
                }
                if kind == 1 && !came[at] {
                    hashes[at] = XxHash3_64::oneshot(&[bytes[at]; PAGE]);
                }
                came[at] = true;
            }
            for gfn in 0..256 {
                let at = gfn as usize;
                prop_assert!(page(&memory, gfn) == [bytes[at]; PAGE], "page {}", gfn);
                prop_assert_eq!(hash_of(&shared, gfn), hashes[at], "hash of page {}", gfn);
                prop_assert_eq!(merge.received[at / 64].load(Ordering::Relaxed) >> (at % 64) & 1 == 1, came[at]);
            }
        }
    }

    #[test]
    fn stripes_are_the_pages_of_the_run(first in 0..300u64, count in 1..300u64) {
        let pages: Vec<u64> = stripes(run(first, count))
            .flat_map(|(stripe, mask)| (0..64).filter(move |bit| mask >> bit & 1 == 1).map(move |bit| stripe as u64 * 64 + bit))
            .collect();
        prop_assert_eq!(pages, (first..first + count).collect::<Vec<_>>());
    }

    #[test]
    fn runs_are_the_bits(bits: u64) {
        let pages: Vec<u64> = runs_of(3, bits).flat_map(|run| run.first.0..run.end().0).collect();
        prop_assert_eq!(pages, (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| 192 + bit).collect::<Vec<_>>());
    }
}

#[test]
fn a_run_beyond_ram_is_refused() {
    let memory = memory(1 << 20);
    let (merge, shared) = (Merge::new(memory.end_gfn()), shared(&memory));
    let beyond = run(255, 2);
    let data = filled(beyond, |_| 1);
    assert!(
        merge
            .put_absent(&memory, &shared, beyond, Content::Data(&data))
            .is_err()
    );
    assert_eq!(page(&memory, 255), [0; PAGE], "nothing of it was put");
}
