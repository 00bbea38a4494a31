//! A policy as somebody may have written it: reading never panics, what is wrong is shown at a place that there is, and what is read decides
//! the same each time.

use std::path::Path;

use dunlin_core::units::Bytes;

use crate::trust::Peer;
use crate::trust::policy::{Allowance, Direction, Policy, PolicyError, Request};

const GUESTS: [&str; 3] = ["web-1", "db", ""];

/// The check.
pub(crate) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let path = Path::new("policy.toml");
    match Policy::parse(path, text) {
        Ok(policy) => {
            assert_eq!(
                Ok(&policy),
                Policy::parse(path, text).as_ref().map_err(ToString::to_string)
            );
            ask(&policy);
        }
        Err(PolicyError::Broken { line, column, .. }) => {
            assert!((1..=text.split('\n').count().max(1)).contains(&line) && column >= 1);
        }
        Err(other) => panic!("a text is right or broken: {other}"),
    }
    add(path, text);
}

fn ask(policy: &Policy) {
    let peers = [
        Peer::new(true, None),
        Peer::new(false, None),
        Peer::new(false, Some("host-a.example")),
        Peer::new(false, Some("spiffe://example.org/host/a")),
    ];
    for peer in &peers {
        for guest in GUESTS {
            for direction in [Direction::In, Direction::Out] {
                let ask = |memory| {
                    policy.decide(&Request {
                        direction,
                        peer,
                        guest,
                        memory: Bytes(memory),
                    })
                };
                let (small, large) = (ask(0), ask(u64::MAX));
                drop(small.to_string());
                assert!(
                    small.is_allowed() || !large.is_allowed(),
                    "more memory, and more is allowed"
                );
                if let Some(rule) = small.rule() {
                    assert!(
                        policy
                            .rules()
                            .is_some_and(|rules| (1..=rules.len()).contains(&rule.number))
                    );
                }
            }
        }
    }
}

/// Whatever is typed as a value stays in its place.
fn add(path: &Path, typed: &str) {
    let text = Allowance {
        peer: "host-a.example",
        guest: Some(typed),
        direction: Some(Direction::In),
        memory: None,
        migrations: None,
        bandwidth: None,
    }
    .text();
    if let Ok(policy) = Policy::parse(path, &text) {
        assert_eq!(policy.rules().map(<[_]>::len), Some(1), "{text}");
    }
}
