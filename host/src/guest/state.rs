//! The bytes of a guest's state: a version and a kind, then what that kind needs. They come from the network, so nothing
//! in them is believed.

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::{GuestError, GuestKind};

/// Changes whenever the bytes change their meaning.
pub(super) const STATE_VERSION: u16 = 1;

/// Encodes the state of a guest of this kind.
pub(super) fn encode(kind: GuestKind, body: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(&(STATE_VERSION, kind, body)).expect("plain data can always be encoded")
}

/// Decodes the state of a guest of this kind.
pub(super) fn decode<'a, T: Deserialize<'a>>(kind: GuestKind, bytes: &'a [u8]) -> Result<T, GuestError> {
    let (version, rest) =
        postcard::take_from_bytes::<u16>(bytes).map_err(|_| GuestError::State("it is cut off in its version"))?;
    if version != STATE_VERSION {
        return Err(GuestError::State("it is of another version"));
    }
    let (found, rest) =
        postcard::take_from_bytes::<GuestKind>(rest).map_err(|_| GuestError::State("it is of an unknown kind"))?;
    if found != kind {
        return Err(GuestError::State("it is of a guest of another kind"));
    }
    match postcard::take_from_bytes(rest) {
        Ok((body, [])) => Ok(body),
        Ok(_) => Err(GuestError::State("there are bytes behind its end")),
        Err(_) => Err(GuestError::State("it is cut off or garbled")),
    }
}

/// Bytes that are written and read as one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Blob<'a>(pub(super) &'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = Blob<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_bytes(Borrowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_states_of_this_version_and_kind_are_taken() {
        type Body<'a> = (u32, Blob<'a>);
        let body: Body<'_> = (7, Blob(b"registers"));
        let bytes = encode(GuestKind::Kvm, &body);
        assert_eq!(decode::<Body<'_>>(GuestKind::Kvm, &bytes).unwrap(), body);
        let why = |kind, bytes: &[u8]| decode::<Body<'_>>(kind, bytes).unwrap_err().to_string();
        assert!(why(GuestKind::Thread, &bytes).contains("another kind"));
        for cut in 0..bytes.len() {
            let why = why(GuestKind::Kvm, &bytes[..cut]);
            assert!(why.contains("cut off") || why.contains("unknown kind"), "{cut}: {why}");
        }
        assert!(why(GuestKind::Kvm, &[&bytes[..], &[0]].concat()).contains("behind its end"));
        let mut newer = bytes.clone();
        newer[0] += 1;
        assert!(why(GuestKind::Kvm, &newer).contains("another version"));
    }
}
