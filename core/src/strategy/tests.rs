use super::{
    Alpha, Clear, Cut, Excerpt, Filter, First, Hold, Key, Pivots, Push, Slow, Split, StallWeight, Strategy,
    StrategyError, SwitchRule,
};
use crate::units::Nanos;
use proptest::prelude::{Just, Strategy as Values, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::select;
use std::string::{String, ToString};
use std::vec::Vec;

fn any_rule() -> impl Values<Value = SwitchRule> {
    let alpha = (0..=1000u16).prop_map(|milli| Alpha::from_milli(milli).expect("at most 1"));
    prop_oneof![
        any::<u32>().prop_map(SwitchRule::Rounds),
        alpha.prop_map(SwitchRule::Sdf),
        any::<u64>().prop_map(|window| SwitchRule::KubevirtStall(Nanos(window))),
        (1..=1000u32).prop_map(|weight| SwitchRule::Optimal(StallWeight::new(weight).expect("in range"))),
        (0..1000u64).prop_map(|window| SwitchRule::KubevirtStall(Nanos::from_millis(window * 100))),
        select(&[
            SwitchRule::Never,
            SwitchRule::Lambda,
            SwitchRule::SdfAuto,
            SwitchRule::Dyn,
            SwitchRule::Heuristic,
            SwitchRule::OPTIMAL,
            SwitchRule::Xen,
            SwitchRule::Qemu,
            SwitchRule::Nova10,
            SwitchRule::Ovirt,
        ]),
    ]
}

fn any_filter() -> impl Values<Value = Filter> {
    use Filter as F;
    select(&[F::None, F::MarkovHalf, F::Markov, F::Hazard, F::Ppm, F::Frequency])
}

fn any_push() -> impl Values<Value = Push> {
    let bubble = select(&[Pivots::One, Pivots::Three, Pivots::Seven]).prop_map(Push::Bubble);
    prop_oneof![
        Just(Push::Sequential),
        bubble,
        Just(Push::Forecast),
        Just(Push::Recorded)
    ]
}

fn any_strategy() -> impl Values<Value = Strategy> {
    let first = select(&[First::Serial, First::Parallel]);
    let cut = select(&[Cut::Fail, Cut::Pbdata, Cut::Reconnect, Cut::Both]);
    let slow = select(&[Slow::None, Slow::AutoConverge, Slow::DirtyLimit]);
    let clear = select(&[Clear::Round, Clear::Late]);
    let hold = select(&[Hold::None, Hold::Hot]);
    let split = select(&[Split::None, Split::Speed]);
    (
        first,
        any_filter(),
        any_rule(),
        any_push(),
        cut,
        slow,
        clear,
        hold,
        split,
    )
        .prop_map(
            |(first, filter, switch, push, cut, slow, clear, hold, split)| Strategy {
                first,
                filter,
                switch,
                push,
                cut,
                slow,
                clear,
                hold,
                split,
            },
        )
}

/// Texts that look like strategies: right and wrong words, joined in right and wrong ways.
fn almost_a_strategy() -> impl Values<Value = String> {
    const WORDS: &[&str] = &[
        "precopy",
        "postcopy",
        "hybrid:",
        "as-hybrid",
        "first",
        "switch",
        "cut",
        "=",
        "=",
        "=",
        ",",
        ",",
        "serial",
        "lambda",
        "rounds:",
        "3",
        "99999999999",
        "-1",
        "libvirt",
        "sdf:",
        "0.5",
        "markov:half",
        "markov-sdf:",
        "kubevirt-stall",
        ":40s",
        "optimal",
        ":10",
        "ms",
        "bubble",
        ":7",
        "fail",
        "none",
        " ",
        "é",
    ];
    proptest::collection::vec(proptest::sample::select(WORDS), 0..12).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn parsing_gives_back_what_display_writes(strategy in any_strategy()) {
        prop_assert_eq!(Strategy::parse(&strategy.to_string()), Ok(strategy));
        prop_assert_eq!(SwitchRule::parse(&strategy.switch.to_string()), Ok(strategy.switch));
    }

    #[test]
    fn the_order_of_keys_does_not_matter(strategy in any_strategy(), rotation in 0..9usize) {
        let text = strategy.to_string();
        let mut items: Vec<&str> = text.split(',').collect();
        items.rotate_left(rotation);
        prop_assert_eq!(Strategy::parse(&items.join(",")), Ok(strategy));
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_message(text in prop_oneof![any::<String>(), almost_a_strategy()]) {
        match Strategy::parse(&text) {
            Ok(strategy) => prop_assert_eq!(Strategy::parse(&strategy.to_string()), Ok(strategy)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

fn parsed(text: &str) -> Strategy {
    Strategy::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    Strategy::parse(text).expect_err(text).to_string()
}

#[test]
fn presets_are_compositions() {
    for (preset, composition) in [
        (
            "precopy",
            "first=serial,filter=none,switch=never,push=sequential,cut=fail,slow=none,clear=round,hold=none,split=none",
        ),
        (
            "as-hybrid",
            "first=serial,filter=none,switch=lambda,push=sequential,cut=reconnect,slow=none,clear=round,hold=none,split=none",
        ),
        (
            "dyn-hybrid",
            "first=serial,filter=none,switch=dyn,push=sequential,cut=reconnect,slow=none,clear=round,hold=none,split=none",
        ),
        (
            "heuristic-hybrid",
            "first=serial,filter=none,switch=heuristic,push=sequential,cut=reconnect,slow=none,clear=round,hold=none,split=none",
        ),
        (
            "par-migrate",
            "first=parallel,filter=none,switch=never,push=sequential,cut=fail,slow=none,clear=round,hold=none,split=none",
        ),
        (
            "pa-hybrid",
            "first=parallel,filter=none,switch=lambda,push=sequential,cut=both,slow=none,clear=round,hold=none,split=none",
        ),
        (
            "markov-sdf:0.50",
            "first=serial,filter=markov:half,switch=sdf:0.5,push=forecast,cut=reconnect,slow=none,clear=round,hold=none,split=none",
        ),
    ] {
        assert_eq!(parsed(preset).to_string(), composition, "{preset}");
    }
    assert_eq!(parsed("postcopy"), parsed("switch=rounds:0"));
    assert_eq!(parsed("hybrid:1"), parsed("switch=libvirt"));
    assert_eq!(parsed("hybrid:4294967295").switch, SwitchRule::Rounds(u32::MAX));
    assert_eq!(parsed("push=bubble").push, Push::Bubble(Pivots::One));
}

#[test]
fn numbers_are_read_and_written_short() {
    for (written, short) in [
        ("sdf:0", "sdf:0"),
        ("sdf:1.000", "sdf:1"),
        ("sdf:0.700", "sdf:0.7"),
        ("sdf:0.05", "sdf:0.05"),
        ("sdf:00.123", "sdf:0.123"),
        ("kubevirt-stall", "kubevirt-stall:40s"),
        ("kubevirt-stall:40000ms", "kubevirt-stall:40s"),
        ("kubevirt-stall:1500ms", "kubevirt-stall:1500ms"),
        ("kubevirt-stall:7us", "kubevirt-stall:7us"),
        ("kubevirt-stall:0s", "kubevirt-stall:0s"),
        ("optimal", "optimal"),
        ("optimal:128", "optimal"),
        ("optimal:0010", "optimal:10"),
        ("optimal:1", "optimal:1"),
        ("optimal:1000", "optimal:1000"),
    ] {
        let rule = SwitchRule::parse(written).unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!(rule.to_string(), short, "{written}");
    }
    let half = Alpha::from_milli(500);
    assert_eq!(half.map(SwitchRule::Sdf), SwitchRule::parse("sdf:0.5").ok());
    assert_eq!(Alpha::from_milli(1001), None);
}

#[test]
fn what_follows_a_preset_replaces_its_values() {
    assert_eq!(parsed("as-hybrid,cut=fail").cut, Cut::Fail);
    let strategy = parsed("hybrid:3,switch=never");
    assert_eq!(
        strategy,
        parsed("precopy"),
        "the default of cut follows the rule in force"
    );
}

#[test]
fn the_default_of_cut_follows_the_rule_and_the_storage() {
    assert_eq!(parsed("pa-hybrid,first=serial").cut, Cut::Reconnect);
    assert_eq!(parsed("par-migrate,switch=lambda"), parsed("pa-hybrid"));
    assert_eq!(parsed("markov-sdf:0.7,switch=xen").cut, Cut::Fail);
}

#[test]
fn only_pre_copy_cannot_enter_post_copy() {
    for name in ["precopy", "par-migrate", "switch=xen", "switch=qemu"] {
        assert!(!parsed(name).can_post_copy() && !parsed(name).reconnects(), "{name}");
    }
    for name in [
        "postcopy",
        "hybrid:2",
        "as-hybrid",
        "dyn-hybrid",
        "heuristic-hybrid",
        "pa-hybrid",
        "markov-sdf:0",
        "switch=libvirt",
        "switch=sdf:auto",
        "switch=optimal",
        "switch=optimal:10",
        "switch=kubevirt-stall",
        "switch=nova10",
        "switch=ovirt",
    ] {
        assert!(parsed(name).can_post_copy() && parsed(name).reconnects(), "{name}");
    }
}

#[test]
fn values_that_are_none_are_refused_with_those_there_are() {
    for (text, listed) in [
        ("first=diagonal", "serial, parallel"),
        (
            "filter=markov:third",
            "none, markov:half, markov, hazard, ppm, frequency",
        ),
        ("switch=sdf", "never, rounds:N, lambda, sdf:A"),
        ("push=bubble:2", "sequential, bubble[:1|3|7], forecast, recorded"),
        ("cut=hope", "fail, pbdata, reconnect, both"),
        ("slow=down", "none, auto-converge, dirty-limit"),
        ("clear=never", "round, late"),
        ("hold=all", "none, hot"),
        ("split=half", "none, speed"),
    ] {
        let (_, value) = text.split_once('=').expect("a key and a value");
        let message = refusal(text);
        assert!(message.contains(value) && message.contains(listed), "{message}");
    }
    let rule_alone = refusal("optimal");
    assert!(rule_alone.contains("write switch=optimal"), "{rule_alone}");
    for name in ["auto", "hybrid", "markov-sdf"] {
        let message = refusal(name);
        assert!(
            message.contains(name) && message.contains("precopy, postcopy, hybrid:N, dyn-hybrid"),
            "{message}"
        );
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    for text in [
        "",
        "1.001",
        "-0.5",
        "0.1234",
        "0.",
        ".5",
        "1e-1",
        "0.5 ",
        "a",
        "99999999999",
        "0.0.1",
    ] {
        let item = std::format!("sdf:{text}");
        let expected = StrategyError::BadAlpha {
            item: Excerpt::of(&item),
        };
        assert_eq!(SwitchRule::parse(&item), Err(expected), "{item}");
    }
    assert!(refusal("markov-sdf:2").contains("from 0 to 1"));
    for text in [
        "",
        "0",
        "1001",
        "65537",
        "99999999999",
        "-1",
        "+1",
        "1.5",
        "x",
        "10 ",
        "auto",
    ] {
        let item = std::format!("optimal:{text}");
        let expected = StrategyError::BadWeight {
            item: Excerpt::of(&item),
        };
        assert_eq!(SwitchRule::parse(&item), Err(expected), "{item}");
    }
    for text in ["optimal:0", "optimal:x"] {
        let message = refusal(&std::format!("switch={text}"));
        let named = message.contains(text) && message.contains("a whole number from 1 to 1000");
        assert!(named, "{message}");
    }
    for text in ["", "s", "40", "-1s", "1.5s", "40 s", "1h", "99999999999999s", "+1s"] {
        let item = std::format!("kubevirt-stall:{text}");
        let expected = StrategyError::BadWindow {
            item: Excerpt::of(&item),
        };
        assert_eq!(SwitchRule::parse(&item), Err(expected), "{item}");
    }
}

#[test]
fn wrong_texts_are_named() {
    use StrategyError as E;
    let excerpt = Excerpt::of;
    for (text, error) in [
        ("", E::Empty),
        ("precopy,", E::NotKeyValue { item: excerpt("") }),
        (
            "cut=fail,precopy",
            E::NotKeyValue {
                item: excerpt("precopy"),
            },
        ),
        (
            "precopy,postcopy",
            E::NotKeyValue {
                item: excerpt("postcopy"),
            },
        ),
        ("pull=sequential", E::UnknownKey { key: excerpt("pull") }),
        ("switch=never,switch=never", E::Repeated { key: Key::Switch }),
        (
            "switch=",
            E::UnknownValue {
                key: Key::Switch,
                value: excerpt(""),
            },
        ),
        (
            "switch=rounds",
            E::UnknownValue {
                key: Key::Switch,
                value: excerpt("rounds"),
            },
        ),
        (
            "switch=rounds:",
            E::BadCount {
                item: excerpt("rounds:"),
            },
        ),
        (
            "switch=rounds:+1",
            E::BadCount {
                item: excerpt("rounds:+1"),
            },
        ),
        (
            "hybrid:4294967296",
            E::BadCount {
                item: excerpt("hybrid:4294967296"),
            },
        ),
        (
            "Precopy",
            E::UnknownPreset {
                name: excerpt("Precopy"),
            },
        ),
    ] {
        assert_eq!(Strategy::parse(text), Err(error), "{text}");
    }
}

#[test]
fn messages_repeat_only_the_beginning_of_a_long_text() {
    let message = refusal(&"é".repeat(1000));
    assert!(
        message.starts_with(&std::format!("\"{}\"…", "é".repeat(20))),
        "{message}"
    );
}
