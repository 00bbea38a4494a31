//! Sealing: pages in a directory that others can read and write, of no use to them, and not to be changed by them unnoticed.
//!
//! Both ends of a session have a [`SealKey`] that is never written anywhere. Every file gets a key of its own, derived (HKDF-SHA256,
//! RFC 5869) from that one, 32 random bytes in the file and its [`Name`]; AES-256-GCM (NIST SP 800-38D) then encrypts and
//! authenticates each part of it. A number stands for a part's place, so that no two parts of a file have the same nonce, and a file
//! that is written again has another key. What is authenticated with a part says whose file it is, which, and which pages stand
//! where: a part that is changed, or moved to another place, file, guest or session, does not open.
//!
//! What this cannot notice is an earlier state of the same file of the same session. Pages that are to be read more than once are only
//! written while the guest stands still, and are the same each time; and a state only follows one that stays true (see
//! [`State`](super::State)), so that an old one says no more than a late one.
//!
//! # First block of a sealed file, version 2, little-endian
//!
//! | bytes | content |
//! |---|---|
//! | 7 | magic of its kind of file |
//! | 1 | version, 2 |
//! | 16 | session |
//! | 16 | VM |
//! | 1 | what it holds: 0 static copy, 1 final dirty pages, 2 state of the source, 3 state of the target |
//! | 4 | place in the order |
//! | 3 | zeros |
//! | 32 | random |
//! | 16 | tag of what follows; associated data: everything before it |
//! | 4000 | encrypted: content (postcard), tag of the index (16 bytes, the last), zeros between them |

use std::sync::Arc;

use dunlin_core::pageset::Run;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::Vm;
use crate::block::BLOCK_BYTES;

/// Bytes that show that a part is as it was sealed.
pub(super) const TAG_BYTES: usize = 16;
/// The version of every file that is sealed.
pub(super) const SEALED: u8 = 2;

const KEY_BYTES: usize = 32;
const SALT_BYTES: usize = 32;
const NAME_BYTES: usize = 48;
/// What stands in the clear.
const CLEAR_BYTES: usize = NAME_BYTES + SALT_BYTES;
const CONTENT: usize = CLEAR_BYTES + TAG_BYTES;
const PURPOSE: &[u8] = b"dunlin storage 2";

/// The secret of one session for its storage directory. It is in memory only, and overwritten when the last who has it lets go.
#[derive(Clone)]
pub struct SealKey(Arc<Zeroizing<[u8; KEY_BYTES]>>);

impl SealKey {
    /// A key of 32 bytes that only both ends of the session know, and that serves nothing else.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    fn of_file(&self, clear: &[u8; CLEAR_BYTES]) -> LessSafeKey {
        let secret = Salt::new(HKDF_SHA256, &clear[NAME_BYTES..]).extract(self.0.as_slice());
        let info = [PURPOSE, clear];
        let key = secret.expand(&info, &AES_256_GCM);
        LessSafeKey::new(UnboundKey::from(key.expect("a key is shorter than 255 hashes")))
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// Whose file it is, and which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Name {
    /// Magic of its kind of file.
    pub(super) magic: [u8; 7],
    session: u128,
    vm: u128,
    holds: u8,
    sequence: u32,
}

impl Name {
    pub(super) fn new(magic: [u8; 7], vm: &Vm, holds: u8, sequence: u32) -> Self {
        Self {
            magic,
            session: vm.session.0,
            vm: vm.id.0,
            holds,
            sequence,
        }
    }

    fn clear(&self, salt: &[u8; SALT_BYTES]) -> [u8; CLEAR_BYTES] {
        let mut clear = [0; CLEAR_BYTES];
        clear[..7].copy_from_slice(&self.magic);
        clear[7] = SEALED;
        clear[8..24].copy_from_slice(&self.session.to_le_bytes());
        clear[24..40].copy_from_slice(&self.vm.to_le_bytes());
        clear[40] = self.holds;
        clear[41..45].copy_from_slice(&self.sequence.to_le_bytes());
        clear[NAME_BYTES..].copy_from_slice(salt);
        clear
    }

    /// In what a name differs that a block claims to have, if that is all that is wrong with it.
    fn differs(&self, clear: &[u8; CLEAR_BYTES]) -> Option<&'static str> {
        let expected = self.clear(&[0; SALT_BYTES]);
        let parts = [
            (8..24, "migration"),
            (24..40, "VM"),
            (40..41, "kind"),
            (41..45, "place in the order"),
        ];
        let differs = parts
            .into_iter()
            .find(|(range, _)| clear[range.clone()] != expected[range.clone()]);
        differs.map(|(_, of)| of)
    }
}

/// No random numbers for a file's key.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoRandom;

/// Why a first block is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// It says that it is another's: migration, VM, kind or place in the order.
    Foreign(&'static str),
    /// It says that it is not sealed.
    Plain,
    /// Of a version that is not known here.
    Newer(u8),
    /// It does not open.
    Altered,
}

/// Seals one file. Its nonces are counted in here, and it is used up when the first block is made.
pub(super) struct Sealer {
    clear: [u8; CLEAR_BYTES],
    key: LessSafeKey,
    /// Pages of data so far: the place of the next run.
    pages: u64,
}

impl Sealer {
    pub(super) fn new(key: &SealKey, name: Name) -> Result<Self, NoRandom> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|_| NoRandom)?;
        let clear = name.clear(&salt);
        Ok(Self {
            clear,
            key: key.of_file(&clear),
            pages: 0,
        })
    }

    /// Encrypts the pages of a run where they are. Runs are given in the order in which they stand in the file.
    pub(super) fn run(&mut self, run: Run, bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        let part = Part::Data { run, at: self.pages };
        self.pages += run.count.0;
        seal(&self.key, part, &self.clear, bytes)
    }

    /// Encrypts the index where it is; the first block, which ends the file. The size of a content that does not fit.
    pub(super) fn finish(self, content: &impl Serialize, index: &mut [u8]) -> Result<[u8; BLOCK_BYTES], usize> {
        let bytes = postcard::to_stdvec(content).expect("integers, strings and lists always have an encoding");
        let mut block = [0; BLOCK_BYTES];
        block[..CLEAR_BYTES].copy_from_slice(&self.clear);
        let (content, index_tag) = block[CONTENT..].split_at_mut(BLOCK_BYTES - CONTENT - TAG_BYTES);
        content
            .get_mut(..bytes.len())
            .ok_or(bytes.len())?
            .copy_from_slice(&bytes);
        index_tag.copy_from_slice(&seal(&self.key, Part::Index, &self.clear, index));
        let tag = seal(&self.key, Part::First, &self.clear, &mut block[CONTENT..]);
        block[CLEAR_BYTES..CONTENT].copy_from_slice(&tag);
        Ok(block)
    }
}

/// Opens one file.
pub(super) struct Opener {
    clear: [u8; CLEAR_BYTES],
    key: LessSafeKey,
    index_tag: [u8; TAG_BYTES],
}

impl Opener {
    /// A file of this name by its first block, and the content of that.
    pub(super) fn new<T: DeserializeOwned>(
        key: &SealKey,
        name: &Name,
        block: &[u8; BLOCK_BYTES],
    ) -> Result<(Self, T), Refused> {
        let (clear, rest) = block.split_first_chunk().expect("longer than that");
        let (tag, content) = rest.split_first_chunk().expect("longer than that");
        match clear[7] {
            _ if clear[..7] != name.magic => return Err(Refused::Altered),
            SEALED => {}
            version if version < SEALED => return Err(Refused::Plain),
            version => return Err(Refused::Newer(version)),
        }
        if let Some(of) = name.differs(clear) {
            return Err(Refused::Foreign(of));
        }
        let key = key.of_file(clear);
        let mut content = content.to_vec();
        if !open(&key, Part::First, clear, tag, &mut content) {
            return Err(Refused::Altered);
        }
        let (content, index_tag) = content.split_last_chunk().expect("longer than that");
        let (value, _zeros) = postcard::take_from_bytes(content).map_err(|_| Refused::Altered)?;
        let opener = Self {
            clear: *clear,
            key,
            index_tag: *index_tag,
        };
        Ok((opener, value))
    }

    /// Decrypts the index where it is; false if it is not what was sealed, and then it is of no use.
    pub(super) fn index(&self, index: &mut [u8]) -> bool {
        open(&self.key, Part::Index, &self.clear, &self.index_tag, index)
    }

    /// Decrypts the pages of a run that stand `at` so many pages into the data where they are; false as for the index.
    pub(super) fn run(&self, run: Run, at: u64, tag: &[u8; TAG_BYTES], bytes: &mut [u8]) -> bool {
        open(&self.key, Part::Data { run, at }, &self.clear, tag, bytes)
    }
}

/// A piece of a file that is sealed as one.
#[derive(Clone, Copy)]
enum Part {
    First,
    Index,
    Data { run: Run, at: u64 },
}

impl Part {
    /// Another one for every part of a file.
    fn nonce(self) -> Nonce {
        let (kind, at) = match self {
            Self::First => (0u32, 0),
            Self::Index => (1, 0),
            Self::Data { at, .. } => (2, at),
        };
        let mut nonce = [0; NONCE_LEN];
        nonce[..4].copy_from_slice(&kind.to_le_bytes());
        nonce[4..].copy_from_slice(&at.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Which file, and which pages at which place in it.
    fn associated(self, clear: &[u8; CLEAR_BYTES]) -> Aad<[u8; CLEAR_BYTES + 24]> {
        let mut bytes = [0; CLEAR_BYTES + 24];
        bytes[..CLEAR_BYTES].copy_from_slice(clear);
        if let Self::Data { run, at } = self {
            for (index, number) in [run.first.0, run.count.0, at].into_iter().enumerate() {
                bytes[CLEAR_BYTES + 8 * index..][..8].copy_from_slice(&number.to_le_bytes());
            }
        }
        Aad::from(bytes)
    }
}

fn seal(key: &LessSafeKey, part: Part, clear: &[u8; CLEAR_BYTES], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
    let tag = key
        .seal_in_place_separate_tag(part.nonce(), part.associated(clear), bytes)
        .expect("a part is shorter than 64 GiB");
    tag.as_ref().try_into().expect("tags of AES-GCM have 16 bytes")
}

fn open(key: &LessSafeKey, part: Part, clear: &[u8; CLEAR_BYTES], tag: &[u8; TAG_BYTES], bytes: &mut [u8]) -> bool {
    key.open_in_place_separate_tag(part.nonce(), part.associated(clear), Tag::from(*tag), bytes, 0..)
        .is_ok()
}
