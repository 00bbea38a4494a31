//! Blocks of 4096 bytes that show whether they were written in full: hand-over records, headers of segments, states in a
//! storage directory.
//!
//! Layout, little-endian: magic (7 bytes), format version (1), CRC-32 of everything else in the block (4), payload
//! length (4), payload (postcard), zeros.

use serde::{Serialize, de::DeserializeOwned};

/// One block: a page, and on every disk in use a whole number of sectors.
pub(crate) const BLOCK_BYTES: usize = 4096;

const HEADER_BYTES: usize = 16;

/// What a block is for, and the number of its format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) magic: [u8; 7],
    pub(crate) version: u8,
}

/// What stands in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block<T> {
    /// Complete.
    Valid(T),
    /// Complete, but of another version of the format.
    Newer(u8),
    /// Torn, damaged or never such a block.
    Invalid,
}

impl Format {
    /// The block's bytes, or the size that the value would need.
    pub(crate) fn encode<T: Serialize>(self, value: &T) -> Result<[u8; BLOCK_BYTES], usize> {
        let mut block = [0; BLOCK_BYTES];
        let payload = postcard::to_stdvec(value).expect("integers, strings and lists always have an encoding");
        let end = HEADER_BYTES + payload.len();
        block.get_mut(HEADER_BYTES..end).ok_or(end)?.copy_from_slice(&payload);
        block[..7].copy_from_slice(&self.magic);
        block[7] = self.version;
        let length = u32::try_from(payload.len()).expect("shorter than a block");
        block[12..16].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(&block);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
        Ok(block)
    }

    /// What the bytes of a block say. Never fails on any bytes.
    pub(crate) fn decode<T: DeserializeOwned>(self, block: &[u8; BLOCK_BYTES]) -> Block<T> {
        if block[..7] != self.magic || block[8..12] != checksum(block).to_le_bytes() {
            return Block::Invalid;
        }
        if block[7] != self.version {
            return Block::Newer(block[7]);
        }
        let length = u32::from_le_bytes([block[12], block[13], block[14], block[15]]) as usize;
        let payload = block[HEADER_BYTES..].get(..length);
        match payload.and_then(|payload| postcard::from_bytes(payload).ok()) {
            Some(value) => Block::Valid(value),
            None => Block::Invalid,
        }
    }
}

fn checksum(block: &[u8; BLOCK_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..8]);
    hasher.update(&block[12..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: Format = Format {
        magic: *b"DUNTEST",
        version: 1,
    };

    proptest! {
        #[test]
        fn values_come_back(text in ".{0,400}", number: u128) {
            let block = FORMAT.encode(&(&text, number)).unwrap();
            prop_assert_eq!(FORMAT.decode(&block), Block::Valid((text, number)));
        }

        #[test]
        fn any_flipped_bit_is_noticed(text in "[ -~]{0,400}", bit in 0..BLOCK_BYTES * 8) {
            let mut block = FORMAT.encode(&text).unwrap();
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(FORMAT.decode::<String>(&block), Block::Invalid);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), BLOCK_BYTES)) {
            let mut block: [u8; BLOCK_BYTES] = bytes.try_into().unwrap();
            prop_assert_eq!(FORMAT.decode::<String>(&block), Block::Invalid);
            // Also with a checksum that holds.
            block[..8].copy_from_slice(b"DUNTEST\x01");
            let sum = checksum(&block);
            block[8..12].copy_from_slice(&sum.to_le_bytes());
            FORMAT.decode::<String>(&block);
        }
    }

    #[test]
    fn any_flipped_bit_of_the_header_is_noticed() {
        for bit in 0..HEADER_BYTES * 8 {
            let mut block = FORMAT.encode(&7u8).unwrap();
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FORMAT.decode::<u8>(&block), Block::Invalid, "bit {bit}");
        }
    }

    #[test]
    fn another_version_or_kind_is_told_apart() {
        let newer = Format { version: 2, ..FORMAT };
        let other = Format {
            magic: *b"DUNELSE",
            ..FORMAT
        };
        let block = newer.encode(&7u8).unwrap();
        assert_eq!(newer.decode(&block), Block::Valid(7u8));
        assert_eq!(FORMAT.decode::<u8>(&block), Block::Newer(2));
        assert_eq!(other.decode::<u8>(&block), Block::Invalid);
        assert_eq!(FORMAT.decode::<u8>(&[0; BLOCK_BYTES]), Block::Invalid);
    }

    #[test]
    fn what_is_too_long_is_told_its_size() {
        assert_eq!(FORMAT.encode(&[1u8; 32].repeat(128)), Err(16 + 2 + 4096));
    }
}
