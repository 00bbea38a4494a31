//! Capabilities and parameters of a QEMU: set for a migration, and put back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Client, QmpError, Side};

/// What a QEMU had before, of what a migration changes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// By name, whether it was on.
    pub capabilities: BTreeMap<String, bool>,
    /// By name.
    pub parameters: Map<String, Value>,
}

impl Settings {
    /// What `side` has of these.
    pub fn of(side: &Side, capabilities: &[&str], parameters: &Map<String, Value>) -> Self {
        let known = |name: &&&str| side.capabilities.get(**name).map(|state| (name.to_string(), *state));
        let before = |name: &String| {
            let value = match &side.parameters[name] {
                // Texts that are not set are not told of; set to nothing they are not set again.
                Value::Null => json!(""),
                value => value.clone(),
            };
            (name.clone(), value)
        };
        Self {
            capabilities: capabilities.iter().filter_map(|name| known(&name)).collect(),
            parameters: parameters.keys().map(before).collect(),
        }
    }

    /// Puts them into effect.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn apply(&self, client: &Client) -> Result<(), QmpError> {
        set_capabilities(
            client,
            self.capabilities.iter().map(|(name, state)| (name.as_str(), *state)),
        )?;
        set_parameters(client, &self.parameters)
    }
}

/// Sets them all at once, so that those that need each other do not come one after the other.
pub(super) fn set_capabilities<'a>(
    client: &Client,
    capabilities: impl Iterator<Item = (&'a str, bool)>,
) -> Result<(), QmpError> {
    let all = capabilities.map(|(name, state)| json!({ "capability": name, "state": state }));
    let all: Vec<Value> = all.collect();
    client.execute("migrate-set-capabilities", &json!({ "capabilities": all }))?;
    Ok(())
}

pub(super) fn set_parameters(client: &Client, parameters: &Map<String, Value>) -> Result<(), QmpError> {
    if !parameters.is_empty() {
        client.execute("migrate-set-parameters", &Value::Object(parameters.clone()))?;
    }
    Ok(())
}
