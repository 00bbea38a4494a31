use crate::units::Nanos;
use crate::workload::{Pacer, Spec};

const MS: u64 = 1_000_000;

fn pacer(spec: &str, vcpus: u32, step: u64, now: u64) -> Pacer {
    Pacer::new(&spec.parse::<Spec>().expect("a workload"), vcpus, step, Nanos(now))
}

#[test]
fn a_vcpu_does_its_share_of_the_rate() {
    for (spec, vcpus, steps, millis) in [
        ("seq,rate=12000", 1, 12, 1),
        ("seq,rate=12000", 2, 6, 1),
        ("seq,rate=500", 4, 1, 8),
        ("seq,rate=1", 1, 1, 1000),
    ] {
        let mut pacer = pacer(spec, vcpus, 0, 7 * MS);
        for batch in 1..=100 {
            // The guest needs no time at all: it is always early.
            let due = pacer.on_batch(steps, Nanos(7 * MS + (batch - 1) * millis * MS));
            assert_eq!(due, Nanos(7 * MS + batch * millis * MS), "{spec}, batch {batch}");
        }
    }
}

#[test]
fn what_was_lost_is_caught_up_to_a_limit() {
    // Twelve steps are due every millisecond.
    let mut pacer = pacer("seq,rate=12000", 1, 0, 0);
    assert_eq!(
        pacer.on_batch(12, Nanos(21 * MS)),
        Nanos(MS),
        "20 ms late: goes on at once"
    );
    assert_eq!(pacer.on_batch(12, Nanos(21 * MS)), Nanos(2 * MS), "still late");
    assert_eq!(
        pacer.on_batch(12, Nanos(1000 * MS)),
        Nanos(950 * MS),
        "far behind: 50 ms may be caught up"
    );
    assert_eq!(pacer.on_batch(12, Nanos(1000 * MS)), Nanos(951 * MS));
}

#[test]
fn unpaced_phases_never_wait_and_leave_no_debt() {
    let mut pacer = pacer("phases:(seq)*64+(seq,rate=1000)*10", 1, 0, 0);
    assert_eq!(pacer.on_batch(64, Nanos(5 * MS)), Nanos(5 * MS));
    assert_eq!(pacer.on_batch(1, Nanos(5 * MS)), Nanos(6 * MS));
    assert_eq!(pacer.on_batch(9, Nanos(6 * MS)), Nanos(15 * MS));
    assert_eq!(
        pacer.on_batch(64, Nanos(15 * MS)),
        Nanos(15 * MS),
        "the phases start over"
    );
}

#[test]
fn it_goes_on_in_the_middle_of_a_phase() {
    let mut pacer = pacer("phases:(seq)*64+(seq,rate=1000)*10", 1, 70, 100 * MS);
    assert_eq!(pacer.on_batch(4, Nanos(100 * MS)), Nanos(104 * MS));
    assert_eq!(pacer.on_batch(64, Nanos(104 * MS)), Nanos(104 * MS));
}

#[test]
fn extreme_arguments_do_not_overflow() {
    let mut pacer = pacer("seq,rate=1", u32::MAX, u64::MAX, u64::MAX);
    assert_eq!(pacer.on_batch(u32::MAX, Nanos(u64::MAX)), Nanos(u64::MAX));
    assert_eq!(pacer.on_batch(u32::MAX, Nanos(0)), Nanos(u64::MAX));
}
