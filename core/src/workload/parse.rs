//! Reading a [`Spec`] from text.

use core::fmt;
use core::str::FromStr;

use super::layout::MAX_MEMORY;
use super::spec::{Conduct, MAX_LIFE, MAX_PHASES, Milli, Pattern, Phase, Spec};
use crate::units::{PAGE_SIZE, Pages};

/// The longest phase, in steps: the lengths of all phases together stay far below 2^64.
const MAX_STEPS: u64 = 1 << 48;

/// Why a text is no workload, and where in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpecError {
    /// The byte of the text at which it stops making sense, from 0; its length if something is missing at the end.
    pub position: usize,
    /// What is wrong there.
    pub kind: SpecErrorKind,
}

/// What is wrong with a text that should be a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpecErrorKind {
    /// No pattern has this name.
    UnknownName,
    /// The pattern's argument is missing, not a number or out of range.
    BadArgument {
        /// What the pattern needs.
        wanted: &'static str,
    },
    /// The pattern takes no argument.
    NoArgument,
    /// No option has this name.
    UnknownOption,
    /// The option was given before.
    RepeatedOption,
    /// Not a rate.
    BadRate,
    /// Not a size, or not one that a working set can have.
    BadSize,
    /// Not the life of a page.
    BadLife,
    /// Pages that vCPUs share are not freed.
    SharedLife,
    /// No agent is like that, or pages have no life before it.
    BadAgent,
    /// Not written as a list of phases is.
    BadPhase,
    /// Not the length of a phase.
    BadSteps,
    /// More phases than a spec holds.
    TooManyPhases,
    /// Phases within a phase.
    NestedPhases,
    /// Something follows where the text should go on with an option or end.
    Trailing,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "workload, character {}: ", self.position + 1)?;
        match self.kind {
            SpecErrorKind::UnknownName => f.write_str(
                "unknown pattern: use idle, seq, uniform, zipf:S, hotset:F, lmbench, memcached, kernel, shared:F or \
                 phases:(PATTERN)*STEPS+(PATTERN)*STEPS",
            ),
            SpecErrorKind::BadArgument { wanted } => f.write_str(wanted),
            SpecErrorKind::NoArgument => {
                f.write_str("this pattern takes no argument: go on with ,rate=, ,ws= or ,life= or end here")
            }
            SpecErrorKind::UnknownOption => {
                f.write_str("unknown option: use rate=STEPS_PER_SECOND, ws=SIZE or, at the end of all, life=WRITES")
            }
            SpecErrorKind::RepeatedOption => f.write_str("this option was given before: give it once"),
            SpecErrorKind::BadRate => write!(
                f,
                "a rate is a whole number of steps/s up to {}, which may end in k or M, such as rate=12000 or rate=12k",
                u32::MAX
            ),
            SpecErrorKind::BadSize => write!(
                f,
                "a working set is a whole number with a unit B, kB, MB, GB, KiB, MiB or GiB, from one page of \
                 {PAGE_SIZE} B to {} GiB, such as ws=64MiB",
                MAX_MEMORY >> 30
            ),
            SpecErrorKind::BadLife => write!(
                f,
                "the life of a page is a whole number of writes from 1 to {MAX_LIFE}, such as life=20"
            ),
            SpecErrorKind::SharedLife => {
                f.write_str("vCPUs that share pages cannot free them: leave life= out, or take another pattern")
            }
            SpecErrorKind::BadAgent => f.write_str(
                "behind life=N an agent can be honest, none, wild, traitor, flood, stall or restart, such as agent=none",
            ),
            SpecErrorKind::BadPhase => f.write_str(
                "phases are written (PATTERN[,rate=N][,ws=SIZE])*STEPS and joined by +, such as \
                 phases:(seq,rate=1000)*50000+(uniform)*50000",
            ),
            SpecErrorKind::BadSteps => {
                write!(
                    f,
                    "the length of a phase is a whole number of steps from 1 to {MAX_STEPS}, which may end in k or M"
                )
            }
            SpecErrorKind::TooManyPhases => write!(f, "more than {MAX_PHASES} phases: leave some out"),
            SpecErrorKind::NestedPhases => f.write_str("phases cannot contain phases: write one list"),
            SpecErrorKind::Trailing => f.write_str("expected the end, or a comma and an option (rate=, ws=, life=)"),
        }
    }
}

impl core::error::Error for SpecError {}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut reader = Reader { text, position: 0 };
        let spec = if reader.take("phases:") {
            phases(&mut reader)?
        } else {
            single(&mut reader)?
        };
        match reader.rest() {
            "" => Ok(spec),
            _ => Err(reader.error(SpecErrorKind::Trailing)),
        }
    }
}

fn single(reader: &mut Reader<'_>) -> Result<Spec, SpecError> {
    let pattern = pattern(reader)?;
    let options = options(reader, Level::Spec)?;
    let spec = Spec::new(pattern).with_ws(options.ws);
    let spec = match options.rate {
        Some(rate) => spec.with_rate(rate),
        None => spec,
    };
    mortal(spec, &options)
}

/// With the life that was given.
fn mortal(spec: Spec, options: &Options) -> Result<Spec, SpecError> {
    match options.life {
        Some((_, position)) if spec.shares_pages() => Err(SpecError {
            position,
            kind: SpecErrorKind::SharedLife,
        }),
        Some((life, _)) => Ok(Spec {
            agent: options.agent.unwrap_or_default(),
            ..spec.with_life(life)
        }),
        None => Ok(spec),
    }
}

fn phases(reader: &mut Reader<'_>) -> Result<Spec, SpecError> {
    let mut phases = heapless::Vec::<(Pattern, Options, u64), MAX_PHASES>::new();
    loop {
        reader.expect("(", SpecErrorKind::BadPhase)?;
        if reader.rest().starts_with("phases:") {
            return Err(reader.error(SpecErrorKind::NestedPhases));
        }
        let start = reader.position;
        let pattern = pattern(reader)?;
        let options = options(reader, Level::Phase)?;
        reader.expect(")", SpecErrorKind::BadPhase)?;
        reader.expect("*", SpecErrorKind::BadPhase)?;
        let at = reader.position;
        let steps = reader
            .number_with_si_suffix()
            .filter(|steps| (1..=MAX_STEPS).contains(steps));
        let steps = steps.ok_or(SpecError {
            position: at,
            kind: SpecErrorKind::BadSteps,
        })?;
        phases.push((pattern, options, steps)).map_err(|_| SpecError {
            position: start,
            kind: SpecErrorKind::TooManyPhases,
        })?;
        if !reader.take("+") {
            break;
        }
    }
    let all = options(reader, Level::Spec)?;
    let phases = phases.iter().map(|(pattern, own, steps)| Phase {
        pattern: *pattern,
        rate: own.rate.or(all.rate).unwrap_or(pattern.default_rate()),
        ws: own.ws,
        steps: *steps,
    });
    let spec = Spec {
        phases: phases.collect(),
        listed: true,
        ws: all.ws,
        life: 0,
        agent: Conduct::Honest,
    };
    mortal(spec, &all)
}

fn pattern(reader: &mut Reader<'_>) -> Result<Pattern, SpecError> {
    let start = reader.position;
    let name = reader.word();
    let pattern = match name {
        "idle" => Pattern::Idle,
        "seq" => Pattern::Seq,
        "uniform" => Pattern::Uniform,
        "lmbench" => Pattern::Lmbench,
        "memcached" => Pattern::Memcached,
        "kernel" => Pattern::Kernel,
        "zipf" => Pattern::Zipf(argument(
            reader,
            0..=3000,
            "zipf needs an exponent from 0 to 3 with at most three decimals, such as zipf:0.99",
        )?),
        "hotset" => Pattern::Hotset(argument(
            reader,
            1..=999,
            "hotset needs the fraction of the pages that is hot, from 0.001 to 0.999, such as hotset:0.1",
        )?),
        "shared" => Pattern::Shared(argument(
            reader,
            1..=1000,
            "shared needs the fraction of the pages that all vCPUs write, from 0.001 to 1, such as shared:0.25",
        )?),
        _ => {
            return Err(SpecError {
                position: start,
                kind: SpecErrorKind::UnknownName,
            });
        }
    };
    match reader.rest().starts_with(':') {
        true => Err(reader.error(SpecErrorKind::NoArgument)),
        false => Ok(pattern),
    }
}

fn argument(
    reader: &mut Reader<'_>,
    allowed: core::ops::RangeInclusive<u16>,
    wanted: &'static str,
) -> Result<Milli, SpecError> {
    let kind = SpecErrorKind::BadArgument { wanted };
    reader.expect(":", kind)?;
    let position = reader.position;
    reader
        .milli()
        .filter(|Milli(value)| allowed.contains(value))
        .ok_or(SpecError { position, kind })
}

#[derive(Clone, Copy, Default)]
struct Options {
    rate: Option<u32>,
    ws: Option<Pages>,
    /// With where it stands.
    life: Option<(u16, usize)>,
    agent: Option<Conduct>,
}

/// Whose options.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Spec,
    Phase,
}

fn options(reader: &mut Reader<'_>, level: Level) -> Result<Options, SpecError> {
    let mut options = Options::default();
    while reader.take(",") {
        let name = reader.position;
        if reader.take("rate=") {
            let position = reader.position;
            let rate = reader.number_with_si_suffix().and_then(|rate| u32::try_from(rate).ok());
            let rate = rate.ok_or(SpecError {
                position,
                kind: SpecErrorKind::BadRate,
            })?;
            if options.rate.replace(rate).is_some() {
                return Err(SpecError {
                    position: name,
                    kind: SpecErrorKind::RepeatedOption,
                });
            }
        } else if reader.take("ws=") {
            let position = reader.position;
            let bytes = reader.size().filter(|bytes| (PAGE_SIZE..=MAX_MEMORY).contains(bytes));
            let bytes = bytes.ok_or(SpecError {
                position,
                kind: SpecErrorKind::BadSize,
            })?;
            if options.ws.replace(Pages(bytes / PAGE_SIZE)).is_some() {
                return Err(SpecError {
                    position: name,
                    kind: SpecErrorKind::RepeatedOption,
                });
            }
        } else if level == Level::Spec && reader.take("life=") {
            let position = reader.position;
            let life = reader.number().and_then(|life| u16::try_from(life).ok());
            let life = life.filter(|life| (1..=MAX_LIFE).contains(life)).ok_or(SpecError {
                position,
                kind: SpecErrorKind::BadLife,
            })?;
            if options.life.replace((life, name)).is_some() {
                return Err(SpecError {
                    position: name,
                    kind: SpecErrorKind::RepeatedOption,
                });
            }
        } else if level == Level::Spec && reader.take("agent=") {
            let position = reader.position;
            let word = reader.word();
            let known = Conduct::ALL.into_iter().find(|conduct| conduct.name() == word);
            let agent = known.filter(|_| options.life.is_some()).ok_or(SpecError {
                position,
                kind: SpecErrorKind::BadAgent,
            })?;
            if options.agent.replace(agent).is_some() {
                return Err(SpecError {
                    position: name,
                    kind: SpecErrorKind::RepeatedOption,
                });
            }
        } else {
            return Err(reader.error(SpecErrorKind::UnknownOption));
        }
    }
    Ok(options)
}

/// A text and how far it has been read; always at a character boundary.
struct Reader<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    const fn error(&self, kind: SpecErrorKind) -> SpecError {
        SpecError {
            position: self.position,
            kind,
        }
    }

    /// Steps over `wanted` if the text goes on with it.
    fn take(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.position += wanted.len();
        }
        found
    }

    fn expect(&mut self, wanted: &str, kind: SpecErrorKind) -> Result<(), SpecError> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(self.error(kind))
        }
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !wanted(c)).unwrap_or(rest.len())];
        self.position += taken.len();
        taken
    }

    fn word(&mut self) -> &'a str {
        self.take_while(|c| c.is_ascii_alphanumeric())
    }

    /// A whole number in decimal digits.
    fn number(&mut self) -> Option<u64> {
        self.take_while(|c| c.is_ascii_digit()).parse().ok()
    }

    /// A whole number, which may end in k or M.
    fn number_with_si_suffix(&mut self) -> Option<u64> {
        let number = self.number()?;
        match self.take_while(|c| c.is_ascii_alphabetic()) {
            "" => Some(number),
            "k" => number.checked_mul(1_000),
            "M" => number.checked_mul(1_000_000),
            _ => None,
        }
    }

    /// A whole number of bytes with its unit.
    fn size(&mut self) -> Option<u64> {
        let number = self.number()?;
        let unit = match self.take_while(|c| c.is_ascii_alphabetic()) {
            "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.checked_mul(unit)
    }

    /// A number with at most three decimals, up to 65.
    fn milli(&mut self) -> Option<Milli> {
        let whole = self.number()?;
        let mut thousandths = whole.checked_mul(1000)?;
        if self.take(".") {
            let digits = self.take_while(|c| c.is_ascii_digit());
            let places = [0, 100, 10, 1].get(digits.len()).filter(|_| !digits.is_empty())?;
            thousandths = thousandths.checked_add(digits.parse::<u64>().ok()? * places)?;
        }
        u16::try_from(thousandths).ok().map(Milli)
    }
}
