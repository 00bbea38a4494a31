use proptest::prelude::*;

use super::{boot, specs};
use crate::units::Bytes;
use crate::workload::layout::MAX_MEMORY;
use crate::workload::{BootBlock, BootError, Fill};

/// Puts bytes at an offset and makes the checksum right again, as a confused host would.
fn forge(boot: &BootBlock, offset: usize, bytes: &[u8]) -> Result<BootBlock, BootError> {
    let mut block = boot.encode();
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
    crate::workload::boot::seal(&mut block);
    BootBlock::decode(&block)
}

#[test]
fn what_is_no_boot_block_is_named() {
    let boot = boot("phases:(zipf:1)*5+(seq)*6,ws=1MiB", 2);
    let block = boot.encode();
    assert_eq!(BootBlock::decode(&block[..BootBlock::BYTES - 1]), Err(BootError::Short));
    assert_eq!(BootBlock::decode(&[]), Err(BootError::Short));
    assert_eq!(BootBlock::decode(&[0; 4096]), Err(BootError::NotABootBlock));
    assert_eq!(forge(&boot, 8, &[9, 0, 0, 0]), Err(BootError::Version { found: 9 }));
    for (offset, bytes) in [
        (12, &[0, 0, 0, 0][..]),
        (12, &[5, 0, 0, 0]),
        (32, &[0xff; 8]),
        (40, &[0xff; 8]),
        (48, &[2]),
        (49, &[2]),
        (50, &[0]),
        (50, &[17]),
        (64, &[0]),
        (64, &[10]),
        (64 + 16, &[0; 8]),
        (64 + 16, &[0xff; 8]),
        (64 + 8, &[0xff; 8]),
    ] {
        assert_eq!(
            forge(&boot, offset, bytes),
            Err(BootError::Field { offset }),
            "{bytes:?} at {offset}"
        );
    }
    // An argument that its pattern does not have: S above 3, and one for seq.
    assert_eq!(
        forge(&boot, 64 + 2, &3001u16.to_le_bytes()),
        Err(BootError::Field { offset: 64 })
    );
    assert_eq!(forge(&boot, 96 + 2, &[1]), Err(BootError::Field { offset: 96 }));
}

proptest! {
    #[test]
    fn decoding_gives_what_was_encoded(
        spec in specs(1),
        seed in any::<u64>(),
        steps in any::<u64>(),
        vcpus in 1u32..=4,
        memory in 0..=MAX_MEMORY,
        random in any::<bool>(),
    ) {
        let fill = if random { Fill::Random } else { Fill::Zero };
        let boot = BootBlock { spec, seed, steps, vcpus, memory: Bytes(memory), fill };
        prop_assert_eq!(BootBlock::decode(&boot.encode()), Ok(boot));
    }

    #[test]
    fn every_damaged_bit_is_found(spec in specs(1), bit in 0..8 * BootBlock::BYTES) {
        let mut block = BootBlock { spec, ..boot("seq", 1) }.encode();
        block[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(BootBlock::decode(&block).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), BootBlock::BYTES)) {
        let start = &boot("seq", 1).encode()[..12];
        bytes[..12].copy_from_slice(start);
        let mut block = bytes.try_into().expect("of that length");
        crate::workload::boot::seal(&mut block);
        // Whatever is accepted means something: it can be encoded again, and planning it does not panic either.
        if let Ok(boot) = BootBlock::decode(&block) {
            prop_assert_eq!(BootBlock::decode(&boot.encode()), Ok(boot.clone()));
            let _ = boot.plan();
        }
    }
}
