//! Malicious sources against `dunlin receive`.

mod frames;
mod hellos;
mod sessions;

use anyhow::{Context as _, ensure};

use crate::chain::{Chain, stays_small, wait_for_words};
use crate::peer::Peer;

/// One attack.
struct Case {
    name: &'static str,
    /// What the target says last, or `closed`.
    answer: &'static str,
    /// What the target's stderr names.
    log: &'static str,
    attack: fn(&mut Peer) -> anyhow::Result<()>,
}

const fn case(
    name: &'static str,
    answer: &'static str,
    log: &'static str,
    attack: fn(&mut Peer) -> anyhow::Result<()>,
) -> Case {
    Case {
        name,
        answer,
        log,
        attack,
    }
}

/// Each case against a receiver of its own, which then takes the guest from the receiver of the case before.
fn run(cases: &[Case]) {
    let mut chain = Chain::start().expect("a guest runs");
    for case in cases {
        attack(&mut chain, case)
            .with_context(|| format!("case `{}`", case.name))
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

fn attack(chain: &mut Chain, case: &Case) -> anyhow::Result<()> {
    let mut receiver = chain.receiver()?;
    let mut peer = Peer::connect(receiver.listening()?)?;
    (case.attack)(&mut peer)?;
    let words = peer.last_words()?;
    ensure!(words.contains(case.answer), "the target answered `{words}`");
    wait_for_words(&mut receiver, 0, case.log)?;
    stays_small(&mut receiver)?;
    chain.move_to(receiver)
}
