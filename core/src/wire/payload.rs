//! Messages inside control frames.

use super::WireError;
use crate::message::{CONTROL_PAYLOAD_MAX, Message};

/// Writes a message into `buffer` and returns how many bytes it took.
///
/// # Errors
/// [`WireError::TooLong`] if it fits neither the buffer nor [`CONTROL_PAYLOAD_MAX`].
pub fn encode_message(message: &Message<'_>, buffer: &mut [u8]) -> Result<usize, WireError> {
    let room = buffer.len().min(CONTROL_PAYLOAD_MAX);
    postcard::to_slice(message, &mut buffer[..room])
        .map(|used| used.len())
        .map_err(|_| WireError::TooLong)
}

/// Reads a message; borrows its byte fields from `bytes`.
///
/// # Errors
/// [`WireError::Message`] if it cannot be decoded or bytes are left over.
pub fn decode_message(bytes: &[u8]) -> Result<Message<'_>, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Message),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::message::{AbortReason, Hello, Mode, Refusal, Region, TargetReport, TargetStanding, Violation};
    use crate::message::{Capabilities, Regions, SessionId, VmId};
    use crate::units::{Bytes, Gfn, Nanos, Pages};
    use proptest::prelude::*;
    use std::vec;

    fn hello(bytes: &[u8]) -> Hello<'_> {
        let mut regions = Regions::new();
        for first in 0..8 {
            regions
                .push(Region {
                    first: Gfn(first * 100),
                    pages: Pages(50),
                })
                .expect("eight fit");
        }
        Hello {
            protocol_min: 1,
            protocol_max: 9,
            capabilities: Capabilities::from_bits_retain(0x8000_0001),
            session: SessionId(u128::MAX),
            vm: VmId(3),
            page_size: 4096,
            regions,
            vcpus: 4,
            tsc_khz: 2_000_000,
            state_version: 1,
            network_timeout: Nanos(3),
            cpuid: bytes,
            config: bytes,
        }
    }

    #[test]
    fn every_message_survives_the_way() {
        let bytes = [7u8; 300];
        let session = SessionId(1 << 127);
        let messages = [
            Message::Hello(hello(&bytes)),
            Message::Welcome { protocol: 1 },
            Message::Refused(Refusal::Memory {
                asked: Bytes(u64::MAX),
                max: Bytes(0),
            }),
            Message::Refused(Refusal::Cpuid {
                function: 7,
                index: 0,
                register: 1,
                missing: 1 << 5,
            }),
            Message::Attach { session },
            Message::Attached,
            Message::RoundStart {
                round: 3,
                pages: Pages(9),
            },
            Message::RoundEnd { round: 3 },
            Message::RoundReached { round: u32::MAX },
            Message::FinalSet {
                first_word: 1 << 40,
                words: &bytes,
            },
            Message::State {
                offset: 5,
                bytes: &bytes,
            },
            Message::HandOver {
                mode: Mode::PostCopy,
                state_bytes: 1,
                final_dirty: Pages(2),
            },
            Message::Ready,
            Message::Commit,
            Message::Running,
            Message::Abort(AbortReason::Protocol(Violation::PageChecksum)),
            Message::Resume {
                session,
                vm: VmId(2),
                given_up: true,
            },
            Message::Resumed(TargetStanding::NeverTaken),
            Message::Missing {
                first_word: 0,
                words: &[],
            },
            Message::MissingEnd { pages: Pages(0) },
            Message::Hashes {
                first: Gfn(1),
                bytes: &bytes,
            },
            Message::HashesEnd,
            Message::Complete(TargetReport {
                guest_gap: Nanos(4),
                verified: Some((1, 0)),
                ..TargetReport::default()
            }),
            Message::Bye,
            Message::Signed { signature: &bytes },
        ];
        for message in messages {
            let mut buffer = vec![0; CONTROL_PAYLOAD_MAX];
            let length = encode_message(&message, &mut buffer).expect("fits");
            assert_eq!(decode_message(&buffer[..length]), Ok(message.clone()));
            assert_eq!(
                decode_message(&buffer[..length + 1]),
                Err(WireError::Message),
                "left-over byte after {message:?}"
            );
            assert_eq!(
                decode_message(&buffer[..length - 1]),
                Err(WireError::Message),
                "truncated {message:?}"
            );
        }
    }

    #[test]
    fn a_message_that_does_not_fit_is_named() {
        let large = vec![0; CONTROL_PAYLOAD_MAX];
        let mut buffer = vec![0; 2 * CONTROL_PAYLOAD_MAX];
        assert_eq!(
            encode_message(
                &Message::State {
                    offset: 0,
                    bytes: &large
                },
                &mut buffer
            ),
            Err(WireError::TooLong)
        );
        assert_eq!(encode_message(&Message::Ready, &mut []), Err(WireError::TooLong));
    }

    proptest! {
        #[test]
        fn garbage_is_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(message) = decode_message(&bytes) {
                let mut buffer = vec![0; CONTROL_PAYLOAD_MAX];
                prop_assert!(encode_message(&message, &mut buffer).is_ok());
            }
        }
    }
}
