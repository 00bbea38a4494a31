//! Segments as no writer would write them: for those who test readers.

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use super::format::{ENTRY_BYTES, PLAIN_ENTRY_BYTES, plain_proof};
use super::seal::Sealer;
use super::{Header, RUN_PAGES_MAX, SessionDirectory};
use crate::block::BLOCK_BYTES;

/// The bytes of a segment with this header, pages of zeros as its data and these bytes as its index, whatever they say; only its seal, or
/// its checksums, are as they should be, as far as the index can be understood.
///
/// # Panics
/// If the system gives no random numbers.
#[doc(hidden)]
pub fn forged(directory: &SessionDirectory, header: &Header, index: &[u8]) -> Vec<u8> {
    let mut sealer = directory.seal().map(|key| {
        let name = header.kind.seal_name(&header.vm, header.sequence);
        Sealer::new(key, name).expect("random numbers")
    });
    let entry_bytes = if sealer.is_some() {
        ENTRY_BYTES
    } else {
        PLAIN_ENTRY_BYTES
    };
    let mut index = index.to_vec();
    index.resize(header.runs as usize * entry_bytes, 0);
    let mut data = Vec::new();
    for entry in index.chunks_exact_mut(entry_bytes) {
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let (first, count, zero) = (number(&entry[..8]), number(&entry[8..12]), number(&entry[12..16]));
        if zero != 0 || count > RUN_PAGES_MAX {
            continue;
        }
        let mut pages = vec![0; (count * PAGE_SIZE) as usize];
        let proof = match &mut sealer {
            Some(sealer) => sealer.run(Run::new(Gfn(first), Pages(count)), &mut pages),
            None => plain_proof(&pages),
        };
        let room = entry_bytes - 16;
        entry[16..].copy_from_slice(&proof[..room]);
        data.extend(pages);
    }
    data.resize(header.data_pages as usize * PAGE_SIZE as usize, 0);
    let plain = index.clone();
    index.resize(index.len().next_multiple_of(BLOCK_BYTES), 0);
    let block = match sealer {
        Some(sealer) => sealer.finish(header, &mut index).expect("a header fits its block"),
        None => header.encode_plain(&plain),
    };
    [&block[..], &data, &index].concat()
}
