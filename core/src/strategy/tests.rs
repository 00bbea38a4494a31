use super::{Cut, Excerpt, Key, Strategy, StrategyError, SwitchRule};
use proptest::prelude::{Just, Strategy as Values, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::string::{String, ToString};
use std::vec::Vec;

fn any_rule() -> impl Values<Value = SwitchRule> {
    prop_oneof![
        Just(SwitchRule::Never),
        any::<u32>().prop_map(SwitchRule::Rounds),
        Just(SwitchRule::Lambda)
    ]
}

fn any_strategy() -> impl Values<Value = Strategy> {
    (any_rule(), any::<bool>()).prop_map(|(switch, fail)| Strategy {
        cut: if fail { Cut::Fail } else { Cut::Reconnect },
        ..Strategy::with_switch(switch)
    })
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
    fn the_order_of_keys_does_not_matter(strategy in any_strategy(), rotation in 0..7usize) {
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
    assert_eq!(
        parsed("precopy").to_string(),
        "first=serial,filter=none,switch=never,push=sequential,cut=fail,slow=none,clear=round"
    );
    assert_eq!(
        parsed("as-hybrid").to_string(),
        "first=serial,filter=none,switch=lambda,push=sequential,cut=reconnect,slow=none,clear=round"
    );
    assert_eq!(parsed("postcopy"), parsed("switch=rounds:0"));
    assert_eq!(parsed("hybrid:1"), parsed("switch=libvirt"));
    assert_eq!(parsed("hybrid:4294967295").switch, SwitchRule::Rounds(u32::MAX));
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
fn only_pre_copy_cannot_enter_post_copy() {
    assert!(!parsed("precopy").can_post_copy());
    for name in ["postcopy", "hybrid:2", "as-hybrid", "switch=libvirt"] {
        assert!(parsed(name).can_post_copy() && parsed(name).reconnects(), "{name}");
    }
}

#[test]
fn what_is_not_there_yet_is_refused_with_what_is() {
    for (text, listed) in [
        ("first=parallel", "serial"),
        ("filter=markov:half", "none"),
        ("switch=sdf:0.5", "never, rounds:N, lambda, libvirt"),
        ("switch=kubevirt-stall:40s", "never, rounds:N, lambda, libvirt"),
        ("push=bubble:3", "sequential"),
        ("cut=pbdata", "fail, reconnect"),
        ("cut=both", "fail, reconnect"),
        ("slow=auto-converge", "none"),
        ("clear=late", "round"),
    ] {
        let (_, value) = text.split_once('=').expect("a key and a value");
        let message = refusal(text);
        assert!(message.contains(value) && message.contains(listed), "{message}");
    }
    for name in [
        "dyn-hybrid",
        "heuristic-hybrid",
        "par-migrate",
        "pa-hybrid",
        "markov-sdf:0.5",
        "auto",
        "hybrid",
    ] {
        let message = refusal(name);
        assert!(
            message.contains(name) && message.contains("precopy, postcopy, hybrid:N, as-hybrid"),
            "{message}"
        );
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
