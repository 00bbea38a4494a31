//! What the host tells a guest before it starts.

use core::fmt;

use super::layout::{Fill, MAX_MEMORY, MAX_VCPUS};
use super::plan::{Plan, PlanError};
use super::random;
use super::spec::{Conduct, MAX_LIFE, MAX_PHASES, Milli, Pattern, Phase, Spec};
use crate::units::{Bytes, PAGE_SIZE, Pages};

const MAGIC: u64 = u64::from_le_bytes(*b"dunlinbb");
const VERSION: u32 = 2;
/// Bytes before the phases.
const HEADER: usize = 64;
/// Bytes of one phase.
const PHASE: usize = 32;

/// Everything that decides what a guest does: after its steps every byte of RAM follows from this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootBlock {
    /// What to do.
    pub spec: Spec,
    /// Where the random numbers start.
    pub seed: u64,
    /// Steps that each vCPU does before it halts; 0: it goes on for ever.
    pub steps: u64,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// RAM, the hole not counted.
    pub memory: Bytes,
    /// What is in the working set before its first write.
    pub fill: Fill,
}

/// Why bytes are no boot block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum BootError {
    /// Shorter than [`BootBlock::BYTES`].
    Short,
    /// It does not start as a boot block does.
    NotABootBlock,
    /// It is of another version.
    Version {
        /// The version found.
        found: u32,
    },
    /// Its checksum is wrong.
    Checksum,
    /// A field has a value that does not exist.
    Field {
        /// Where the field starts, in bytes.
        offset: usize,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => write!(f, "shorter than a boot block of {} bytes", BootBlock::BYTES)?,
            Self::NotABootBlock => f.write_str("no boot block: it does not start with its magic number")?,
            Self::Version { found } => write!(f, "boot block of version {found}, not {VERSION}")?,
            Self::Checksum => f.write_str("the boot block's checksum is wrong")?,
            Self::Field { offset } => write!(f, "the boot block's field at byte {offset} has no meaning")?,
        }
        f.write_str("; payload and host must be of the same build")
    }
}

impl core::error::Error for BootError {}

impl BootBlock {
    /// Bytes of an encoded boot block: it fits its page.
    pub const BYTES: usize = HEADER + MAX_PHASES * PHASE + 8;

    /// Where this workload's data lies in this guest.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self) -> Result<Plan, PlanError> {
        Plan::new(&self.spec, self.memory, self.vcpus)
    }

    /// The bytes that go to [`BOOT_BLOCK`](super::layout::BOOT_BLOCK): little-endian numbers at fixed places, unused
    /// ones zero, a checksum in the last eight.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_le_bytes());
        put(8, &VERSION.to_le_bytes());
        put(12, &self.vcpus.to_le_bytes());
        put(16, &self.seed.to_le_bytes());
        put(24, &self.steps.to_le_bytes());
        put(32, &self.memory.0.to_le_bytes());
        put(40, &self.spec.ws.map_or(0, |ws| ws.0).to_le_bytes());
        put(
            48,
            &[
                fill_code(self.fill),
                u8::from(self.spec.listed),
                self.spec.phases.len() as u8,
            ],
        );
        put(52, &self.spec.life.to_le_bytes());
        let agent = Conduct::ALL.iter().position(|conduct| *conduct == self.spec.agent);
        put(54, &[agent.unwrap_or_default() as u8]);
        for (phase, at) in self.spec.phases.iter().zip((HEADER..).step_by(PHASE)) {
            let (code, argument) = pattern_code(phase.pattern);
            put(at, &[code, 0]);
            put(at + 2, &argument.to_le_bytes());
            put(at + 4, &phase.rate.to_le_bytes());
            put(at + 8, &phase.ws.map_or(0, |ws| ws.0).to_le_bytes());
            put(at + 16, &phase.steps.to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote; bytes behind it are ignored.
    ///
    /// # Errors
    /// A [`BootError`]; it never panics, whatever the bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Self, BootError> {
        let bytes: &[u8; Self::BYTES] = bytes.first_chunk().ok_or(BootError::Short)?;
        if word(bytes, 0) != MAGIC {
            return Err(BootError::NotABootBlock);
        }
        match half(bytes, 8) {
            VERSION => {}
            found => return Err(BootError::Version { found }),
        }
        if word(bytes, Self::BYTES - 8) != checksum(&bytes[..Self::BYTES - 8]) {
            return Err(BootError::Checksum);
        }
        let field = |offset, valid| {
            if valid {
                Ok(())
            } else {
                Err(BootError::Field { offset })
            }
        };
        let vcpus = half(bytes, 12);
        field(12, (1..=MAX_VCPUS).contains(&vcpus))?;
        let memory = word(bytes, 32);
        field(32, memory <= MAX_MEMORY)?;
        let fill = match bytes[48] {
            0 => Fill::Zero,
            1 => Fill::Random,
            _ => return Err(BootError::Field { offset: 48 }),
        };
        field(49, bytes[49] <= 1)?;
        let listed = bytes[49] == 1;
        let count = usize::from(bytes[50]);
        field(50, (1..=MAX_PHASES).contains(&count) && (listed || count == 1))?;
        let mut phases = heapless::Vec::new();
        for at in (HEADER..).step_by(PHASE).take(count) {
            let argument = u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]);
            let pattern = pattern_of(bytes[at], argument).ok_or(BootError::Field { offset: at })?;
            let steps = word(bytes, at + 16);
            field(
                at + 16,
                if listed {
                    (1..1 << 56).contains(&steps)
                } else {
                    steps == 0
                },
            )?;
            let phase = Phase {
                pattern,
                rate: half(bytes, at + 4),
                ws: pages(bytes, at + 8)?,
                steps,
            };
            phases.push(phase).map_err(|_| BootError::Field { offset: 50 })?;
        }
        let life = u16::from_le_bytes([bytes[52], bytes[53]]);
        let spec = Spec {
            phases,
            listed,
            ws: pages(bytes, 40)?,
            life,
            agent: *Conduct::ALL
                .get(usize::from(bytes[54]))
                .ok_or(BootError::Field { offset: 54 })?,
        };
        field(52, life == 0 || (life <= MAX_LIFE && !spec.shares_pages()))?;
        Ok(Self {
            spec,
            seed: word(bytes, 16),
            steps: word(bytes, 24),
            vcpus,
            memory: Bytes(memory),
            fill,
        })
    }
}

const fn fill_code(fill: Fill) -> u8 {
    match fill {
        Fill::Zero => 0,
        Fill::Random => 1,
    }
}

const fn pattern_code(pattern: Pattern) -> (u8, u16) {
    match pattern {
        Pattern::Idle => (1, 0),
        Pattern::Seq => (2, 0),
        Pattern::Uniform => (3, 0),
        Pattern::Zipf(Milli(s)) => (4, s),
        Pattern::Hotset(Milli(fraction)) => (5, fraction),
        Pattern::Lmbench => (6, 0),
        Pattern::Memcached => (7, 0),
        Pattern::Kernel => (8, 0),
        Pattern::Shared(Milli(fraction)) => (9, fraction),
    }
}

const fn pattern_of(code: u8, argument: u16) -> Option<Pattern> {
    Some(match (code, argument) {
        (1, 0) => Pattern::Idle,
        (2, 0) => Pattern::Seq,
        (3, 0) => Pattern::Uniform,
        (4, 0..=3000) => Pattern::Zipf(Milli(argument)),
        (5, 1..=999) => Pattern::Hotset(Milli(argument)),
        (6, 0) => Pattern::Lmbench,
        (7, 0) => Pattern::Memcached,
        (8, 0) => Pattern::Kernel,
        (9, 1..=1000) => Pattern::Shared(Milli(argument)),
        _ => return None,
    })
}

/// A number of pages, 0 for none given.
fn pages(bytes: &[u8], offset: usize) -> Result<Option<Pages>, BootError> {
    match word(bytes, offset) {
        0 => Ok(None),
        pages if pages <= MAX_MEMORY / PAGE_SIZE => Ok(Some(Pages(pages))),
        _ => Err(BootError::Field { offset }),
    }
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..]
        .first_chunk()
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

fn half(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..]
        .first_chunk()
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// Makes the checksum right.
pub(super) fn seal(bytes: &mut [u8; BootBlock::BYTES]) {
    let (content, sum) = bytes.split_at_mut(BootBlock::BYTES - 8);
    sum.copy_from_slice(&checksum(content).to_le_bytes());
}

/// Finds a boot block that was cut off or overwritten; no protection against intent.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        random::mix(sum ^ u64::from_le_bytes(word)).wrapping_add(random::GOLDEN)
    })
}
