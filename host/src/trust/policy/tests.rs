//! Policies beside a naive model, and broken ones.

use super::*;
use crate::trust::Peer;
use dunlin_core::units::{Bytes, BytesPerSec};
use proptest::prelude::*;

const PATH: &str = "policy.toml";

fn parse(text: &str) -> Result<Policy, PolicyError> {
    Policy::parse(Path::new(PATH), text)
}

#[test]
fn a_rule_says_what_the_documentation_says() {
    let policy = parse(
        r#"
count-in = "/run/dunlin-tests"

[[rule]]
verdict = "allow"
peer = "spiffe://example.org/host/*"
guest = "web-*"
direction = "in"
memory = "8GiB"
migrations = 2
bandwidth = "200MB/s"

[[rule]]
verdict = "deny"
peer = "anyone"
"#,
    )
    .unwrap();
    let rules = policy.rules().unwrap();
    assert_eq!(policy.count_in.as_deref(), Some(Path::new("/run/dunlin-tests")));
    let limits = Limits {
        memory: Some(Bytes(8 << 30)),
        migrations: Some(2),
        bandwidth: Some(BytesPerSec(200_000_000)),
    };
    assert_eq!(
        rules[0],
        Rule {
            number: 1,
            line: 4,
            peer: PeerPattern::Identity(Pattern::Prefix("spiffe://example.org/host/".into())),
            guest: Pattern::Prefix("web-".into()),
            direction: Some(Direction::In),
            allows: Some(limits),
        }
    );
    assert_eq!((rules[1].line, rules[1].allows), (13, None));
    assert_eq!(rules[1].to_string(), "rule 2 (line 13)");
}

#[test]
fn what_is_broken_is_said_with_its_place() {
    let rule = "[[rule]]\nverdict = \"allow\"\npeer = \"local\"\n";
    let with = |line: &str| format!("{rule}{line}\n");
    let broken = [
        ("rule = 3".to_owned(), (1, 8), "invalid type"),
        ("[[rule]]\npeer = \"a\"".to_owned(), (1, 1), "missing field `verdict`"),
        (
            "[[rule]]\nverdict = \"allow\"".to_owned(),
            (1, 1),
            "missing field `peer`",
        ),
        (
            "[[rule]]\nverdict = \"perhaps\"\npeer = \"a\"".to_owned(),
            (2, 11),
            "unknown variant",
        ),
        ("limit = 3".to_owned(), (1, 1), "unknown field `limit`"),
        (with("gest = \"a\""), (4, 1), "unknown field `gest`"),
        (with("guest = \"a*b\""), (4, 9), "a * may stand once"),
        (with("guest = \"**\""), (4, 9), "a * may stand once"),
        (with("guest = \"\""), (4, 9), "an empty pattern"),
        (with("memory = \"8Gb\""), (4, 10), "a small b means bits"),
        (with("memory = 8"), (4, 10), "invalid type"),
        (with("bandwidth = \"fast\""), (4, 13), "not a rate"),
        (with("bandwidth = \"10kB/s\""), (4, 13), "would seem dead"),
        (with("migrations = 0"), (4, 14), "allows no migration"),
        (with("migrations = -1"), (4, 14), "invalid value"),
        (with("direction = \"up\""), (4, 13), "unknown variant"),
        (with("peer = \"a\""), (4, 1), "duplicate key"),
        (with("guest = \"ä"), (4, 11), "invalid basic string"),
        (
            "[[rule]]\nverdict = \"deny\"\npeer = \"a\"\nmemory = \"1GiB\"".to_owned(),
            (1, 1),
            "has no limits",
        ),
        ("count-in = \"run\"".to_owned(), (1, 12), "absolute path"),
    ];
    for (text, (line, column), part) in broken {
        let error = parse(&text).expect_err(&text).to_string();
        assert!(
            error.starts_with(&format!("{PATH}:{line}:{column}: ")) && error.contains(part),
            "{text:?}: {error}"
        );
        assert!(!error.contains('\n'), "one line: {error:?}");
    }
}

#[test]
fn a_file_is_read_only_if_it_can_be_trusted() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(PATH);
    assert!(matches!(Policy::load(Some(&path)), Err(PolicyError::Missing(_))));
    std::fs::write(&path, "").unwrap();
    assert_eq!(Policy::load(Some(&path)).unwrap().rules(), Some(&[][..]));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(Policy::load(Some(&path)), Err(PolicyError::Writable(_))));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, [0xff]).unwrap();
    assert!(matches!(Policy::load(Some(&path)), Err(PolicyError::NotAText { .. })));
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(matches!(Policy::load(Some(&path)), Err(PolicyError::NotAText { .. })));
    assert!(matches!(
        Policy::load(Some(dir.path())),
        Err(PolicyError::NotAText { .. })
    ));
}

#[test]
fn without_a_file_only_this_host_may() {
    let policy = Policy::default();
    let allowed = |peer: &Peer| {
        let request = Request {
            direction: Direction::In,
            peer,
            guest: "web",
            memory: Bytes(1),
        };
        policy.decide(&request).is_allowed()
    };
    assert!(allowed(&Peer::new(true, None)));
    assert!(allowed(&Peer::new(true, Some("a"))));
    assert!(!allowed(&Peer::new(false, None)));
    assert!(!allowed(&Peer::new(false, Some("a"))));
}

/// Words over a small alphabet, so that patterns often fit.
fn word() -> impl Strategy<Value = String> {
    "[ab]{1,3}"
}

fn pattern() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        word(),
        word().prop_map(|word| format!("{word}*")),
        word().prop_map(|word| format!("*{word}")),
    ]
}

/// A rule as it is written.
#[derive(Clone, Debug)]
struct Written {
    allow: bool,
    peer: String,
    guest: Option<String>,
    direction: Option<&'static str>,
    memory: Option<u64>,
}

fn written() -> impl Strategy<Value = Written> {
    let peer = prop_oneof![Just("local".to_owned()), Just("anyone".to_owned()), pattern()];
    let direction = proptest::option::of(prop_oneof![Just("in"), Just("out"), Just("both")]);
    let memory = proptest::option::of(0..4u64);
    (any::<bool>(), peer, proptest::option::of(pattern()), direction, memory).prop_map(
        |(allow, peer, guest, direction, memory)| Written {
            allow,
            peer,
            guest,
            direction,
            memory: memory.filter(|_| allow),
        },
    )
}

impl Written {
    fn text(&self) -> String {
        let mut text = format!(
            "[[rule]]\nverdict = \"{}\"\npeer = \"{}\"\n",
            if self.allow { "allow" } else { "deny" },
            self.peer
        );
        let mut add = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                text += &format!("{key} = \"{value}\"\n");
            }
        };
        add("guest", self.guest.clone());
        add("direction", self.direction.map(str::to_owned));
        add("memory", self.memory.map(|bytes| format!("{bytes}B")));
        text
    }
}

/// Every split of the text, instead of comparing ends.
fn naive_fits(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, behind)) => (1..=text.len()).any(|stands_for| {
            (0..=text.len() - stands_for).any(|at| &text[..at] == before && &text[at + stands_for..] == behind)
        }),
    }
}

fn naive_allows(rules: &[Written], direction: &str, peer: &Peer, guest: &str, memory: u64) -> (bool, Option<usize>) {
    for (index, rule) in rules.iter().enumerate() {
        let way = rule.direction.unwrap_or("both");
        let of_peer = match rule.peer.as_str() {
            "anyone" => true,
            "local" => peer.is_local(),
            pattern => peer.identities().iter().any(|identity| naive_fits(pattern, identity)),
        };
        let of_guest = naive_fits(rule.guest.as_deref().unwrap_or("*"), guest);
        if (way == "both" || way == direction) && of_peer && of_guest {
            return (
                rule.allow && rule.memory.is_none_or(|most| memory <= most),
                Some(index + 1),
            );
        }
    }
    (false, None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn decisions_are_those_of_the_model(
        rules in prop::collection::vec(written(), 0..6),
        incoming: bool,
        local: bool,
        identity in proptest::option::of(word()),
        guest in word(),
        memory in 0..5u64,
    ) {
        let text: String = rules.iter().map(Written::text).collect();
        let policy = parse(&text).unwrap();
        let peer = Peer::new(local, identity.as_deref());
        let (direction, word) = if incoming { (Direction::In, "in") } else { (Direction::Out, "out") };
        let verdict = policy.decide(&Request { direction, peer: &peer, guest: &guest, memory: Bytes(memory) });
        let (allowed, rule) = naive_allows(&rules, word, &peer, &guest, memory);
        prop_assert_eq!(verdict.is_allowed(), allowed);
        prop_assert_eq!(verdict.rule().map(|rule| rule.number), rule);
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC{0,200}", cut in 0usize..400) {
        let _ = parse(&text);
        let whole = "count-in = \"/run\"\n[[rule]]\nverdict = \"allow\"\npeer = \"*.example.org\"\nmemory = \"1GiB\"\nmigrations = 3\n";
        if let Some(part) = whole.get(..cut.min(whole.len()))
            && let Err(PolicyError::Broken { line, column, .. }) = parse(part)
        {
            let lines: Vec<_> = part.split('\n').collect();
            prop_assert!(line <= lines.len() && column <= lines[line - 1].chars().count() + 1, "{line}:{column} of {part:?}");
        }
    }
}
