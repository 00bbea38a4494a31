//! `--tracking`, of the commands that hold a guest.

use super::CliError;
use crate::{
    guest::Tracking,
    track::ring::{ENTRIES_MAX, ENTRIES_MIN},
};

/// How written pages are tracked, as typed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct TrackingArgs {
    /// How KVM tracks the pages that the guest writes: a bitmap, or a ring for each vCPU, which knows their order
    #[arg(long, value_enum, default_value_t = Kind::Bitmap)]
    tracking: Kind,

    /// Entries of each vCPU's ring, a power of two from 2048 to 65536 [default: 65536]
    #[arg(long, value_name = "N", value_parser = ring_size)]
    ring_size: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Bitmap,
    Ring,
}

impl TrackingArgs {
    /// What they mean together.
    pub(super) fn tracking(self) -> Result<Tracking, CliError> {
        match (self.tracking, self.ring_size) {
            (Kind::Bitmap, None) => Ok(Tracking::Bitmap),
            (Kind::Bitmap, Some(_)) => Err(CliError::Usage(
                "--ring-size is the size of rings: add --tracking ring, or leave it out".into(),
            )),
            (Kind::Ring, size) => Ok(Tracking::Ring {
                entries: size.unwrap_or(Tracking::RING_ENTRIES),
            }),
        }
    }
}

fn ring_size(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|size: &u32| size.is_power_of_two() && (ENTRIES_MIN..=ENTRIES_MAX).contains(size))
        .ok_or_else(|| format!("write a power of two from {ENTRIES_MIN} to {ENTRIES_MAX}"))
}
