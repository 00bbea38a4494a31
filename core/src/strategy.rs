//! What a strategy is composed of, and how it is written.
//!
//! A strategy is a value for each of seven keys, written `key=value,…`; a preset is a name for a common composition. A
//! preset may be followed by values that replace its own, and a key that is not mentioned has its default:
//!
//! | key | values | default |
//! |---|---|---|
//! | `first` | `serial` | `serial` |
//! | `filter` | `none` | `none` |
//! | `switch` | `never`, `rounds:N`, `lambda`, `libvirt` (= `rounds:1`) | `never` |
//! | `push` | `sequential` | `sequential` |
//! | `cut` | `fail`, `reconnect` | `reconnect` if the strategy can enter post-copy, otherwise `fail` |
//! | `slow` | `none` | `none` |
//! | `clear` | `round` | `round` |
//!
//! | preset | composition |
//! |---|---|
//! | `precopy` | `switch=never` |
//! | `postcopy` | `switch=rounds:0` |
//! | `hybrid:N` | `switch=rounds:N` |
//! | `as-hybrid` | `switch=lambda` (Li & Cao 2023, "As-hybrid": the λ rule without parallel first copy) |
//!
//! ```
//! use dunlin_core::strategy::{Strategy, SwitchRule};
//!
//! let strategy: Strategy = "hybrid:2,cut=fail".parse()?;
//! assert_eq!(strategy.switch, SwitchRule::Rounds(2));
//! assert_eq!(
//!     strategy.to_string(),
//!     "first=serial,filter=none,switch=rounds:2,push=sequential,cut=fail,slow=none,clear=round"
//! );
//! # Ok::<(), dunlin_core::strategy::StrategyError>(())
//! ```

mod error;
#[cfg(test)]
mod tests;
mod values;

pub use error::{Excerpt, Key, StrategyError};
pub use values::{Clear, Cut, Filter, First, Push, Slow, SwitchRule};

use core::fmt;
use core::str::FromStr;

/// Names that stand for a whole composition.
const PRESETS: &[&str] = &["precopy", "postcopy", "hybrid:N", "as-hybrid"];

/// How one migration is done; see the [module](self) for the notation.
///
/// `Display` writes the canonical form: every key, in the order of the fields. Parsing that gives the strategy back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Strategy {
    /// How the first copy travels.
    pub first: First,
    /// Which dirty pages a round holds back.
    pub filter: Filter,
    /// When pre-copy ends.
    pub switch: SwitchRule,
    /// In which order post-copy sends what is missing and was not asked for.
    pub push: Push,
    /// What happens when the network is cut during post-copy.
    pub cut: Cut,
    /// How a guest that writes too fast is slowed down.
    pub slow: Slow,
    /// When dirty bits are cleared.
    pub clear: Clear,
}

impl Strategy {
    /// The strategy with this switch rule and the default for every other key.
    pub const fn with_switch(switch: SwitchRule) -> Self {
        Self {
            first: First::Serial,
            filter: Filter::None,
            switch,
            push: Push::Sequential,
            cut: if switch.can_post_copy() {
                Cut::Reconnect
            } else {
                Cut::Fail
            },
            slow: Slow::None,
            clear: Clear::Round,
        }
    }

    /// Reads a preset, a composition, or a preset with replacements.
    ///
    /// # Errors
    /// [`StrategyError`] says what was not understood and what there is instead. A value that is not available is
    /// refused, never replaced by another.
    pub fn parse(text: &str) -> Result<Self, StrategyError> {
        if text.is_empty() {
            return Err(StrategyError::Empty);
        }
        let mut given = Given::default();
        for (index, item) in text.split(',').enumerate() {
            match item.split_once('=') {
                Some((key, value)) => given.set(key, value)?,
                None if index == 0 => given.preset = Some(preset(item)?),
                None => {
                    return Err(StrategyError::NotKeyValue {
                        item: Excerpt::of(item),
                    });
                }
            }
        }
        Ok(given.complete())
    }

    /// True if a migration by this strategy may enter post-copy.
    pub const fn can_post_copy(&self) -> bool {
        self.switch.can_post_copy()
    }

    /// True if post-copy goes on after the network was cut and came back.
    pub const fn reconnects(&self) -> bool {
        matches!(self.cut, Cut::Reconnect)
    }
}

impl FromStr for Strategy {
    type Err = StrategyError;

    fn from_str(text: &str) -> Result<Self, StrategyError> {
        Self::parse(text)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            first,
            filter,
            switch,
            push,
            cut,
            slow,
            clear,
        } = self;
        write!(
            f,
            "first={first},filter={filter},switch={switch},push={push},cut={cut},slow={slow},clear={clear}"
        )
    }
}

/// The switch rule a preset stands for; presets differ in nothing else.
fn preset(name: &str) -> Result<SwitchRule, StrategyError> {
    match name {
        "precopy" => return Ok(SwitchRule::Never),
        "postcopy" => return Ok(SwitchRule::Rounds(0)),
        "as-hybrid" => return Ok(SwitchRule::Lambda),
        _ => {}
    }
    match name.strip_prefix("hybrid:") {
        Some(count) => values::count(count)
            .map(SwitchRule::Rounds)
            .ok_or(StrategyError::BadCount {
                item: Excerpt::of(name),
            }),
        None => Err(StrategyError::UnknownPreset {
            name: Excerpt::of(name),
        }),
    }
}

/// What a text mentions.
#[derive(Default)]
struct Given {
    preset: Option<SwitchRule>,
    first: Option<First>,
    filter: Option<Filter>,
    switch: Option<SwitchRule>,
    push: Option<Push>,
    cut: Option<Cut>,
    slow: Option<Slow>,
    clear: Option<Clear>,
}

impl Given {
    fn set(&mut self, key: &str, value: &str) -> Result<(), StrategyError> {
        match Key::parse(key)? {
            Key::First => set_once(&mut self.first, Key::First, First::parse(value)?),
            Key::Filter => set_once(&mut self.filter, Key::Filter, Filter::parse(value)?),
            Key::Switch => set_once(&mut self.switch, Key::Switch, SwitchRule::parse(value)?),
            Key::Push => set_once(&mut self.push, Key::Push, Push::parse(value)?),
            Key::Cut => set_once(&mut self.cut, Key::Cut, Cut::parse(value)?),
            Key::Slow => set_once(&mut self.slow, Key::Slow, Slow::parse(value)?),
            Key::Clear => set_once(&mut self.clear, Key::Clear, Clear::parse(value)?),
        }
    }

    fn complete(self) -> Strategy {
        let defaults = Strategy::with_switch(self.switch.or(self.preset).unwrap_or(SwitchRule::Never));
        Strategy {
            first: self.first.unwrap_or(defaults.first),
            filter: self.filter.unwrap_or(defaults.filter),
            switch: defaults.switch,
            push: self.push.unwrap_or(defaults.push),
            cut: self.cut.unwrap_or(defaults.cut),
            slow: self.slow.unwrap_or(defaults.slow),
            clear: self.clear.unwrap_or(defaults.clear),
        }
    }
}

fn set_once<T>(slot: &mut Option<T>, key: Key, value: T) -> Result<(), StrategyError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(StrategyError::Repeated { key }),
    }
}
