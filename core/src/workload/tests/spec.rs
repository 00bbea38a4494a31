use std::string::{String, ToString};

use proptest::prelude::*;

use super::specs;
use crate::units::Pages;
use crate::workload::SpecErrorKind::{
    BadArgument, BadPhase, BadRate, BadSize, BadSteps, NestedPhases, NoArgument, RepeatedOption, TooManyPhases,
    Trailing, UnknownName, UnknownOption,
};
use crate::workload::{Milli, Pattern, Spec, SpecErrorKind};

fn parse(text: &str) -> Spec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn texts_are_understood_and_printed_in_one_form() {
    for (text, printed) in [
        ("idle", "idle"),
        ("idle,rate=64000", "idle"),
        ("idle,rate=0", "idle,rate=0"),
        ("seq", "seq"),
        ("uniform,rate=12000,ws=64MiB", "uniform,rate=12000,ws=64MiB"),
        ("uniform,ws=64MiB,rate=12k", "uniform,rate=12000,ws=64MiB"),
        ("uniform,rate=0", "uniform"),
        ("zipf:0.99", "zipf:0.99"),
        ("zipf:1", "zipf:1"),
        ("zipf:1.50", "zipf:1.5"),
        ("zipf:0.007", "zipf:0.007"),
        ("hotset:0.125,ws=2GiB", "hotset:0.125,ws=2GiB"),
        ("lmbench,ws=8192B", "lmbench,ws=8KiB"),
        ("memcached,ws=1MB", "memcached,ws=976KiB"),
        ("kernel,ws=1024MiB", "kernel,ws=1GiB"),
        ("shared:1", "shared:1"),
        ("seq,rate=1M", "seq,rate=1000000"),
        ("seq,life=3,ws=1MiB", "seq,ws=1MiB,life=3"),
        ("uniform,life=9,agent=honest", "uniform,life=9"),
        ("uniform,life=9,agent=wild", "uniform,life=9,agent=wild"),
        ("phases:(seq)*5+(uniform)*5,life=7", "phases:(seq)*5+(uniform)*5,life=7"),
        (
            "phases:(seq,rate=1000)*50000+(uniform)*50000",
            "phases:(seq,rate=1000)*50000+(uniform)*50000",
        ),
        ("phases:(seq)*50k", "phases:(seq)*50000"),
        ("phases:(seq,ws=1MiB)*5,ws=2MiB", "phases:(seq,ws=1MiB)*5,ws=2MiB"),
        (
            "phases:(seq,rate=5)*7+(idle)*8+(idle,rate=9)*9,rate=700",
            "phases:(seq,rate=5)*7+(idle,rate=700)*8+(idle,rate=9)*9",
        ),
    ] {
        assert_eq!(parse(text).to_string(), printed, "{text}");
    }
}

#[test]
fn values_arrive_where_they_belong() {
    let spec = parse("phases:(zipf:1.25,rate=1000,ws=1MiB)*50000+(hotset:0.1)*70,ws=2MiB,rate=3");
    assert_eq!(spec.ws(), Some(Pages(512)));
    let [first, second] = spec.phases() else {
        panic!("two phases")
    };
    assert_eq!((first.pattern, first.rate), (Pattern::Zipf(Milli(1250)), 1000));
    assert_eq!((first.ws, first.steps), (Some(Pages(256)), 50_000));
    assert_eq!((second.pattern, second.rate), (Pattern::Hotset(Milli(100)), 3));
    assert_eq!((second.ws, second.steps), (None, 70));
    assert_eq!(parse("idle").rate_at(5), 64_000);
    assert_eq!(parse("seq").rate_at(5), 0);
    assert!(!spec.shares_pages() && parse("phases:(seq)*1+(shared:0.5)*1").shares_pages());
}

#[test]
fn errors_say_where_and_what_is_allowed() {
    let argument = |error: SpecErrorKind| matches!(error, BadArgument { .. });
    for text in [
        "zipf",
        "zipf:",
        "zipf:x",
        "zipf:3.001",
        "zipf:0.1234",
        "zipf:1.",
        "zipf:99999999999999999999",
    ] {
        let error = text.parse::<Spec>().expect_err(text);
        assert!(
            argument(error.kind) && error.to_string().contains("zipf:0.99"),
            "{text}: {error}"
        );
        assert_eq!(error.position, text.len().min(5), "{text}");
    }
    for text in [
        "hotset:0",
        "hotset:1",
        "hotset:2",
        "shared:0",
        "shared:1.001",
        "shared:-1",
        "shared",
    ] {
        assert!(argument(text.parse::<Spec>().expect_err(text).kind), "{text}");
    }
    for (text, position, kind) in [
        ("", 0, UnknownName),
        ("unifrom", 0, UnknownName),
        ("Uniform", 0, UnknownName),
        ("phases", 0, UnknownName),
        ("seq:3", 3, NoArgument),
        ("seq ", 3, Trailing),
        ("seq,", 4, UnknownOption),
        ("seq,speed=3", 4, UnknownOption),
        ("seq,rate=", 9, BadRate),
        ("seq,rate=-1", 9, BadRate),
        ("seq,rate=4294967296", 9, BadRate),
        ("seq,rate=4295M", 9, BadRate),
        ("seq,rate=1G", 9, BadRate),
        ("seq,rate=99999999999999999999", 9, BadRate),
        ("seq,rate=1,rate=2", 11, RepeatedOption),
        ("seq,ws=64", 7, BadSize),
        ("seq,ws=64M", 7, BadSize),
        ("seq,ws=4095B", 7, BadSize),
        ("seq,ws=65GiB", 7, BadSize),
        ("seq,ws=99999999999GiB", 7, BadSize),
        ("seq,ws=1MiB,ws=1MiB", 12, RepeatedOption),
        ("seq,ws=1MiB;", 11, Trailing),
        ("phases:", 7, BadPhase),
        ("phases:seq*5", 7, BadPhase),
        ("phases:(seq)", 12, BadPhase),
        ("phases:(seq*5", 11, BadPhase),
        ("phases:(seq)*0", 13, BadSteps),
        ("phases:(seq)*", 13, BadSteps),
        ("phases:(seq)*281474976710657", 13, BadSteps),
        ("phases:(seq)*5+", 15, BadPhase),
        ("phases:(seq)*5(seq)*5", 14, Trailing),
        ("phases:(phases:(seq)*5)*5", 8, NestedPhases),
    ] {
        let error = text.parse::<Spec>().expect_err(text);
        assert_eq!((error.position, error.kind), (position, kind), "{text}");
    }
    let many = std::format!("phases:{}", ["(seq)*1"; 17].join("+"));
    let error = many.parse::<Spec>().expect_err("17 phases");
    assert_eq!((error.position, error.kind), (7 + 16 * 8 + 1, TooManyPhases));
    assert!(
        parse(&std::format!("phases:{}", ["(seq)*1"; 16].join("+")))
            .phases()
            .len()
            == 16
    );
}

#[test]
fn arguments_out_of_range_are_brought_inside() {
    for pattern in [
        Pattern::Zipf(Milli(60_000)),
        Pattern::Hotset(Milli(0)),
        Pattern::Shared(Milli(5000)),
    ] {
        let spec = Spec::new(pattern);
        assert_eq!(parse(&spec.to_string()), spec);
    }
}

#[test]
fn phases_start_over_when_the_list_ends() {
    let spec = parse("phases:(seq,rate=1)*3+(uniform,rate=2)*1+(seq,rate=3)*2");
    let rates = [1, 1, 1, 2, 3, 3, 1, 1, 1, 2, 3, 3, 1];
    for (step, rate) in (0..).zip(rates) {
        assert_eq!(spec.rate_at(step), rate, "step {step}");
    }
    let at = spec.phase_at(6 * 1_000_000_007 + 4);
    assert_eq!((at.index, at.done, at.left), (2, 0, 2));
    let at = parse("seq").phase_at(7);
    assert_eq!((at.index, at.done, at.left), (0, 7, u64::MAX));
}

proptest! {
    #[test]
    fn printing_and_reading_gives_the_same(spec in specs(1)) {
        prop_assert_eq!(spec.to_string().parse::<Spec>(), Ok(spec));
    }

    #[test]
    fn phase_at_counts_through_the_phases(spec in specs(1), step in 0u64..100_000) {
        let mut walk = spec.phases().iter().enumerate().cycle();
        let (mut index, mut phase) = walk.next().expect("at least one");
        let mut done = step;
        while phase.steps > 0 && done >= phase.steps {
            done -= phase.steps;
            (index, phase) = walk.next().expect("a cycle");
        }
        let at = spec.phase_at(step);
        prop_assert_eq!((at.index, at.done), (index, done));
        prop_assert_eq!(at.left, if phase.steps == 0 { u64::MAX } else { phase.steps - done });
    }

    #[test]
    fn no_text_makes_it_panic(
        text in "\\PC*",
        spec in specs(1),
        cut in any::<prop::sample::Index>(),
        other in any::<char>(),
    ) {
        let check = |text: &str| if let Err(error) = text.parse::<Spec>() {
            assert!(text.is_char_boundary(error.position), "{text}: {}", error.position);
            assert!(!error.to_string().is_empty());
        };
        check(&text);
        let valid = spec.to_string();
        let at = cut.index(valid.len());
        check(&valid[..at]);
        let mut changed: String = valid[..at].to_string();
        changed.push(other);
        changed.push_str(&valid[at + 1..]);
        check(&changed);
    }
}

#[test]
fn lives_and_agents_have_their_place() {
    for (text, position, kind) in [
        ("seq,life=0", 9, SpecErrorKind::BadLife),
        ("seq,life=30001", 9, SpecErrorKind::BadLife),
        ("seq,life=2,life=3", 11, SpecErrorKind::RepeatedOption),
        ("shared:0.5,life=2", 11, SpecErrorKind::SharedLife),
        ("seq,agent=wild,life=2", 10, SpecErrorKind::BadAgent),
        ("seq,life=2,agent=kind", 17, SpecErrorKind::BadAgent),
        ("phases:(seq,life=2)*5", 12, SpecErrorKind::UnknownOption),
    ] {
        let error = text.parse::<Spec>().expect_err(text);
        assert_eq!((error.position, error.kind), (position, kind), "{text}: {error}");
    }
}
