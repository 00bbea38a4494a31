//! What is asked of a migration between two QEMUs.

use std::time::Duration;

use dunlin_core::steer::Limits;
use dunlin_core::strategy::{Slow, SwitchRule};
use dunlin_core::switch::SwitchSetting;
use dunlin_core::units::{Bytes, BytesPerSec, Nanos, Pages};
use serde_json::{Map, Value, json};

use super::Address;

/// Longest pause that QEMU takes: MAX_MIGRATE_DOWNTIME_SECONDS of migration/migration.h.
const PAUSE_MAX_MS: u64 = 2_000_000;
/// The pause that QEMU may make while it is not to make any. A pass ends when less is left than is sent in it, so it is as short as can
/// be: with none at all, QEMU would stop the guest when nothing is left, without a look at what was written meanwhile.
const PAUSE_MIN_MS: u64 = 1;
/// What pre-copy may send per second where there is to be none: at full speed it might be over before it hears of the switch.
const SLOW_BANDWIDTH: u64 = 1 << 20;

/// A migration to be steered.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The QEMU that has the guest.
    pub source: Address,
    /// The one that is to have it, started with `-incoming defer`.
    pub target: Address,
    /// Where the target listens, as the source reaches it: `tcp:HOST:PORT` or `unix:PATH`.
    pub uri: String,
    /// Where the target listens, as it has it itself, if that is another name: `tcp:0:4444`.
    pub listen: Option<String>,
    /// Where the two may meet when the connection broke in post-copy, one after the other; the first is `uri` if there are none.
    pub recover: Vec<String>,
    /// When pre-copy ends.
    pub rule: SwitchRule,
    /// Whether, and by what, a guest that writes too fast is slowed down.
    pub slow: Slow,
    /// Most bytes per second of pre-copy; `None` for what the network has.
    pub bandwidth: Option<BytesPerSec>,
    /// The same for what nobody waits for in post-copy.
    pub postcopy_bandwidth: Option<BytesPerSec>,
    /// Longest pause.
    pub downtime: Duration,
    /// Rounds of pre-copy after which it ends, where the rule has a limit.
    pub max_rounds: u32,
    /// Longest post-copy.
    pub drain: Option<Duration>,
    /// A connection on which nothing moves for so long in post-copy is given up and made again: QEMU itself waits for the system's timeout,
    /// which may take a quarter of an hour.
    pub network_timeout: Duration,
    /// The port of the agent in the guest, where the source serves it, and where the target will; nobody is asked without.
    pub agent: Option<Address>,
    /// The same of the target.
    pub target_agent: Option<Address>,
    /// How long the guest may take to make itself small, and to do what it does afterwards.
    pub agent_timeout: Duration,
    /// Memory that the guest keeps to use at once; `None` for a sixteenth of all.
    pub reserve: Option<Bytes>,
    /// Connections for pages; `None` for one.
    pub multifd: Option<u8>,
    /// A connection of its own for pages that the guest waits for in post-copy.
    pub preempt: bool,
    /// The TLS credentials that both QEMUs have under this id (`-object tls-creds-x509,id=…`).
    pub tls_creds: Option<String>,
    /// The name in the target's certificate, if it is another than that in `uri`.
    pub tls_hostname: Option<String>,
}

impl Plan {
    /// Whether it can come to post-copy.
    pub const fn can_post_copy(&self) -> bool {
        self.rule.can_post_copy()
    }

    /// Capabilities that both sides must have on.
    pub fn capabilities(&self) -> Vec<&'static str> {
        let mut wanted = vec!["events"];
        let mut want = |name, if_so: bool| wanted.extend(if_so.then_some(name));
        want("postcopy-ram", self.can_post_copy());
        want("postcopy-preempt", self.preempt && self.can_post_copy());
        want("multifd", self.multifd.is_some());
        want("auto-converge", self.slow == Slow::AutoConverge);
        want("dirty-limit", self.slow == Slow::DirtyLimit);
        wanted
    }

    /// Parameters of the source at the beginning.
    pub fn source_parameters(&self) -> Map<String, Value> {
        let mut all = self.common_parameters();
        let rate = |rate: Option<BytesPerSec>| json!(rate.map_or(0, |rate| rate.0));
        let pre_copy = match self.rule {
            SwitchRule::Rounds(0) => json!(SLOW_BANDWIDTH),
            _ => rate(self.bandwidth),
        };
        all.insert("max-bandwidth".into(), pre_copy);
        all.insert("max-postcopy-bandwidth".into(), rate(self.postcopy_bandwidth));
        all.insert("downtime-limit".into(), json!(self.first_pause_ms()));
        if let Some(name) = &self.tls_hostname {
            all.insert("tls-hostname".into(), json!(name));
        }
        all
    }

    /// Those of the target.
    pub fn target_parameters(&self) -> Map<String, Value> {
        self.common_parameters()
    }

    fn common_parameters(&self) -> Map<String, Value> {
        let mut all = Map::new();
        if let Some(channels) = self.multifd {
            all.insert("multifd-channels".into(), json!(channels));
        }
        if let Some(id) = &self.tls_creds {
            all.insert("tls-creds".into(), json!(id));
        }
        all
    }

    /// QEMU's `downtime-limit` while nothing is decided: by the rule that is QEMU's own, it decides.
    pub fn first_pause_ms(&self) -> u64 {
        match self.rule {
            SwitchRule::Qemu => self.pause_ms(),
            _ => PAUSE_MIN_MS,
        }
    }

    /// The same when it may stop the guest if the rest fits.
    pub fn pause_ms(&self) -> u64 {
        u64::try_from(self.downtime.as_millis()).map_or(PAUSE_MAX_MS, |ms| ms.clamp(PAUSE_MIN_MS, PAUSE_MAX_MS))
    }

    /// The same when it is to stop the guest whatever the rest is.
    pub const fn any_pause_ms(&self) -> u64 {
        PAUSE_MAX_MS
    }

    /// What the rule goes by, for a guest of so many pages.
    pub fn setting(&self, total: Pages) -> SwitchSetting {
        SwitchSetting {
            downtime: nanos(self.downtime),
            max_rounds: self.max_rounds,
            ..SwitchSetting::new(total)
        }
    }

    /// What a switch has to keep to.
    pub fn limits(&self) -> Limits {
        Limits {
            can_post_copy: self.can_post_copy(),
            drain: self.drain.map(nanos),
            bandwidth: self.postcopy_bandwidth,
        }
    }

    /// Where the target listens, in its own words.
    pub fn incoming(&self) -> &str {
        self.listen.as_deref().unwrap_or(&self.uri)
    }
}

/// A time for core.
pub(super) fn nanos(time: Duration) -> Nanos {
    Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
