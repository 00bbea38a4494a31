//! An agent's line as anybody may have filled it: neither side panics, no message makes the host believe in pages that the guest does not
//! have, and what was understood is the same when it is said again.

use dunlin_agent::frame::{Decoder, ENCODED_MAX, encode};
use dunlin_agent::host::{Conversation, Heard, Patience};
use dunlin_agent::message::{ToGuest, ToHost};
use dunlin_core::message::{Region, Regions};
use dunlin_core::units::{Gfn, Nanos, Pages};
use serde::Serialize;
use serde::de::DeserializeOwned;

const PAGES: u64 = 1000;

/// The check.
pub(crate) fn check(input: &[u8]) {
    understood::<ToGuest>(input);
    understood::<ToHost>(input);
    let region = Region {
        first: Gfn(0),
        pages: Pages(PAGES),
    };
    let regions = Regions::from_slice(&[region]).expect("one fits");
    let mut host = Conversation::new(regions, Patience::default(), 0);
    host.open_epoch(Nanos(0));
    // A fuzzer does not guess checksums, so messages come without frames as well.
    for piece in input.split(|byte| *byte == 0xff) {
        if let Ok(message) = postcard::from_bytes::<ToHost>(piece)
            && let Heard::Soft(runs) = host.on_message(&message)
        {
            assert!(runs.iter().all(|(run, _)| !run.is_empty() && run.end().0 <= PAGES));
        }
    }
}

/// What is understood of a line in pieces is what is understood of it as a whole, and comes back.
fn understood<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) {
    let whole = messages::<M>(input, input.len());
    assert_eq!(messages::<M>(input, 7), whole);
    for message in whole {
        let mut buffer = [0; ENCODED_MAX];
        let bytes = encode(&message, &mut buffer).expect("it came in a frame");
        assert_eq!(messages::<M>(bytes, bytes.len()), [message]);
    }
}

fn messages<M: DeserializeOwned>(input: &[u8], piece: usize) -> Vec<M> {
    let mut decoder = Decoder::new();
    let mut found = vec![];
    for mut piece in input.chunks(piece.max(1)) {
        while !piece.is_empty() {
            let (message, taken) = decoder.take(piece);
            found.extend(message);
            piece = &piece[taken..];
        }
    }
    found
}
