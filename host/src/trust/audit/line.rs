//! One line: JSON, and at its end the hash of what stands before it.

use serde::{Serialize, de::DeserializeOwned};

/// Before the hash.
const BEFORE: &[u8] = b",\"hash\":\"";
/// Behind it.
const BEHIND: &[u8] = b"\"}";
/// A hash as text.
const HASH_BYTES: usize = 64;

/// The longest line, in bytes: far more than any record with two certificates has.
pub(super) const LINE_MAX_BYTES: usize = 256 << 10;

/// The line with its end, and its hash. `value` must be a struct that is not empty.
pub(super) fn encode(value: &impl Serialize) -> (Vec<u8>, String) {
    let mut line = serde_json::to_vec(value).expect("structs of strings and numbers always have a JSON form");
    line.pop();
    let hash = blake3::hash(&line).to_hex().to_string();
    line.extend_from_slice(BEFORE);
    line.extend_from_slice(hash.as_bytes());
    line.extend_from_slice(BEHIND);
    line.push(b'\n');
    (line, hash)
}

/// What a line, without its end, says, and its hash; `None` if it is not as it was written.
pub(super) fn decode<T: DeserializeOwned>(line: &[u8]) -> Option<(T, String)> {
    let content = line.len().checked_sub(BEFORE.len() + HASH_BYTES + BEHIND.len())?;
    let (content, seal) = line.split_at(content);
    let hash = seal.strip_prefix(BEFORE)?.strip_suffix(BEHIND)?;
    let hash = std::str::from_utf8(hash).ok()?;
    if blake3::hash(content).to_hex().as_str() != hash {
        return None;
    }
    let value = serde_json::from_slice(&[content, b"}"].concat()).ok()?;
    Some((value, hash.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_come_back_and_any_flipped_bit_shows(text in ".{0,80}", number: u64, at: prop::sample::Index, bit in 0..8u8) {
            let value = std::collections::BTreeMap::from([("number", number.to_string()), ("text", text)]);
            let (mut line, hash) = encode(&value);
            prop_assert_eq!(line.pop(), Some(b'\n'));
            let (found, found_hash): (std::collections::BTreeMap<String, String>, _) = decode(&line).unwrap();
            prop_assert_eq!(&found["number"], &value["number"]);
            prop_assert_eq!(&found["text"], &value["text"]);
            prop_assert_eq!(found_hash, hash);
            let at = at.index(line.len());
            line[at] ^= 1 << bit;
            prop_assert!(decode::<serde_json::Value>(&line).is_none());
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<serde_json::Value>(&bytes).is_none());
        }
    }
}
