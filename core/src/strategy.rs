//! What a strategy is composed of, and how it is written.
//!
//! A strategy is a value for each of nine keys, written `key=value,…`; a preset is a name for a common composition. A
//! preset may be followed by values that replace its own, and a key that is not mentioned has its default:
//!
//! | key | values | default |
//! |---|---|---|
//! | `first` | `serial`, `parallel` | `serial` |
//! | `filter` | `none`, `markov:half`, `markov`, `hazard`, `ppm`, `frequency` | `none` |
//! | `switch` | `never`, `rounds:N`, `lambda`, `sdf:A`, `sdf:auto`, `dyn`, `heuristic`, `optimal[:128]`, `xen`, `qemu`, `kubevirt-stall[:40s]`, `nova10`, `ovirt`, `libvirt` (= `rounds:1`) | `never` |
//! | `push` | `sequential`, `bubble[:1\|3\|7]`, `forecast`, `recorded` | `sequential` |
//! | `cut` | `fail`, `pbdata`, `reconnect`, `both` | `fail` if the strategy cannot enter post-copy; otherwise `both` with shared storage, which `first=parallel` has and others may have, else `reconnect` |
//! | `slow` | `none`, `auto-converge`, `dirty-limit` | `none` |
//! | `clear` | `round`, `late` | `round` |
//! | `hold` | `none`, `hot` | `none` |
//! | `split` | `none`, `speed` | `none` |
//!
//! | preset | composition |
//! |---|---|
//! | `precopy` | `switch=never` |
//! | `postcopy` | `switch=rounds:0` |
//! | `hybrid:N` | `switch=rounds:N` |
//! | `dyn-hybrid` | `switch=dyn` |
//! | `heuristic-hybrid` | `switch=heuristic` |
//! | `as-hybrid` | `switch=lambda` (Li & Cao 2023, "As-hybrid": the λ rule without parallel first copy) |
//! | `par-migrate` | `first=parallel,switch=never` (Li & Cao 2023) |
//! | `pa-hybrid` | `first=parallel,switch=lambda` (Li & Cao 2023) |
//! | `markov-sdf:A` | `filter=markov:half,switch=sdf:A,push=forecast` (the hybrid-copy paper of 2017) |
//!
//! What is written here can be said, simulated and replayed; which of it the state machines of a live migration carry out is
//! told by [`migrate::check_strategy`](crate::migrate::check_strategy).
//!
//! ```
//! use dunlin_core::strategy::{Strategy, SwitchRule};
//!
//! let strategy: Strategy = "hybrid:2,cut=fail".parse()?;
//! assert_eq!(strategy.switch, SwitchRule::Rounds(2));
//! assert_eq!(
//!     strategy.to_string(),
//!     "first=serial,filter=none,switch=rounds:2,push=sequential,cut=fail,slow=none,clear=round,hold=none,split=none"
//! );
//! # Ok::<(), dunlin_core::strategy::StrategyError>(())
//! ```

mod error;
mod preset;
mod rule;
#[cfg(test)]
mod tests;
mod values;

pub use error::{Excerpt, Key, StrategyError};
pub use rule::{Alpha, StallWeight, SwitchRule};
pub use values::{Clear, Cut, Filter, First, Hold, Pivots, Push, Slow, Split};

use core::fmt;
use core::str::FromStr;

use preset::Preset;

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
    /// Which dirty pages stay behind while a static copy is on its way.
    pub hold: Hold,
    /// Which channel carries a static copy.
    pub split: Split,
}

impl Strategy {
    /// The strategy with this switch rule and the default for every other key.
    pub const fn with_switch(switch: SwitchRule) -> Self {
        Self::of_preset(Preset::with_switch(switch), false)
    }

    const fn of_preset(preset: Preset, storage: bool) -> Self {
        let Preset {
            first,
            filter,
            switch,
            push,
        } = preset;
        let cut = match (switch.can_post_copy(), first) {
            (false, _) => Cut::Fail,
            (true, First::Serial) if !storage => Cut::Reconnect,
            (true, First::Serial | First::Parallel) => Cut::Both,
        };
        Self {
            first,
            filter,
            switch,
            push,
            cut,
            slow: Slow::None,
            clear: Clear::Round,
            hold: Hold::None,
            split: Split::None,
        }
    }

    /// Reads a preset, a composition, or a preset with replacements, for hosts without a storage directory.
    ///
    /// # Errors
    /// [`StrategyError`] says what was not understood and what there is instead. A value that is not available is
    /// refused, never replaced by another.
    pub fn parse(text: &str) -> Result<Self, StrategyError> {
        Self::parse_for(text, false)
    }

    /// The same, where both hosts mount a storage directory if `storage` says so: a cut is then survived by it as well, unless
    /// the text says otherwise.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_for(text: &str, storage: bool) -> Result<Self, StrategyError> {
        if text.is_empty() {
            return Err(StrategyError::Empty);
        }
        let mut given = Given::default();
        for (index, item) in text.split(',').enumerate() {
            match item.split_once('=') {
                Some((key, value)) => given.set(key, value)?,
                None if index == 0 => given.preset = Some(Preset::parse(item)?),
                None => {
                    return Err(StrategyError::NotKeyValue {
                        item: Excerpt::of(item),
                    });
                }
            }
        }
        Ok(given.complete(storage))
    }

    /// Writes the value that it has for a key.
    pub(crate) fn write_value(&self, key: Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match key {
            Key::First => fmt::Display::fmt(&self.first, f),
            Key::Filter => fmt::Display::fmt(&self.filter, f),
            Key::Switch => fmt::Display::fmt(&self.switch, f),
            Key::Push => fmt::Display::fmt(&self.push, f),
            Key::Cut => fmt::Display::fmt(&self.cut, f),
            Key::Slow => fmt::Display::fmt(&self.slow, f),
            Key::Clear => fmt::Display::fmt(&self.clear, f),
            Key::Hold => fmt::Display::fmt(&self.hold, f),
            Key::Split => fmt::Display::fmt(&self.split, f),
        }
    }

    /// True if a migration by this strategy may enter post-copy.
    pub const fn can_post_copy(&self) -> bool {
        self.switch.can_post_copy()
    }

    /// True if rounds beside a static copy leave pages for later.
    pub const fn holds_back(&self) -> bool {
        matches!((self.first, self.hold), (First::Parallel, Hold::Hot))
    }

    /// True if both channels carry a static copy.
    pub const fn splits(&self) -> bool {
        matches!((self.first, self.split), (First::Parallel, Split::Speed))
    }

    /// True if post-copy goes on after the network was cut and came back.
    pub const fn reconnects(&self) -> bool {
        matches!(self.cut, Cut::Reconnect | Cut::Both)
    }

    /// True if what is missing in post-copy also comes by the storage channel (Li & Cao 2023: PbData).
    pub const fn has_pb_data(&self) -> bool {
        self.can_post_copy() && matches!(self.cut, Cut::Pbdata | Cut::Both)
    }

    /// True if the hosts need a directory that both mount.
    pub const fn needs_storage(&self) -> bool {
        matches!(self.first, First::Parallel) || self.has_pb_data()
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
        for (index, key) in Key::ALL.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{}=", key.name())?;
            self.write_value(key, f)?;
        }
        Ok(())
    }
}

/// What a text mentions.
#[derive(Default)]
struct Given {
    preset: Option<Preset>,
    first: Option<First>,
    filter: Option<Filter>,
    switch: Option<SwitchRule>,
    push: Option<Push>,
    cut: Option<Cut>,
    slow: Option<Slow>,
    clear: Option<Clear>,
    hold: Option<Hold>,
    split: Option<Split>,
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
            Key::Hold => set_once(&mut self.hold, Key::Hold, Hold::parse(value)?),
            Key::Split => set_once(&mut self.split, Key::Split, Split::parse(value)?),
        }
    }

    fn complete(self, storage: bool) -> Strategy {
        let preset = self.preset.unwrap_or(Preset::with_switch(SwitchRule::Never));
        let preset = Preset {
            first: self.first.unwrap_or(preset.first),
            filter: self.filter.unwrap_or(preset.filter),
            switch: self.switch.unwrap_or(preset.switch),
            push: self.push.unwrap_or(preset.push),
        };
        let defaults = Strategy::of_preset(preset, storage);
        Strategy {
            cut: self.cut.unwrap_or(defaults.cut),
            slow: self.slow.unwrap_or(defaults.slow),
            clear: self.clear.unwrap_or(defaults.clear),
            hold: self.hold.unwrap_or(defaults.hold),
            split: self.split.unwrap_or(defaults.split),
            ..defaults
        }
    }
}

fn set_once<T>(slot: &mut Option<T>, key: Key, value: T) -> Result<(), StrategyError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(StrategyError::Repeated { key }),
    }
}
