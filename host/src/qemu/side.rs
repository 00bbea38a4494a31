//! One of the two QEMUs, asked about itself.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Client, GuestStatus, Info, Plan, QmpError, Version};

/// What a QEMU is and can do, as far as a migration depends on it.
#[derive(Clone, PartialEq, Debug)]
pub struct Side {
    /// Its version.
    pub version: Version,
    /// The machine's type, `pc-i440fx-7.2-machine` for example; empty if it does not tell.
    pub machine: String,
    /// The processors' model, `Nehalem-x86_64-cpu` for example; empty if it does not tell.
    pub processor: String,
    /// How many there are.
    pub processors: usize,
    /// Bytes of RAM that it was started with.
    pub memory: u64,
    /// Whether the guest runs under KVM.
    pub kvm: bool,
    /// What it can do in a migration, and whether that is on.
    pub capabilities: BTreeMap<String, bool>,
    /// How it does it.
    pub parameters: Value,
    /// Whether libvirt started it.
    pub is_libvirts: bool,
    /// Whether its balloon can be told by the guest which pages are free while pre-copy goes on (`free-page-hint=on`).
    pub has_free_page_hints: bool,
    /// The types of its devices, as `-device` has them, sorted.
    pub devices: Vec<String>,
    /// The ids of its TLS credentials.
    pub credentials: Vec<String>,
    /// Its guest.
    pub guest: GuestStatus,
    /// Its migration, if there was one.
    pub migration: Info,
}

/// What only some versions, or some machines, tell is null where it is not told.
fn told(answer: Result<Value, QmpError>) -> Result<Value, QmpError> {
    match answer {
        Err(QmpError::Refused { .. }) => Ok(Value::Null),
        answer => answer,
    }
}

fn property(client: &Client, path: &str, property: &str) -> Result<Value, QmpError> {
    told(client.execute("qom-get", &json!({ "path": path, "property": property })))
}

impl Side {
    /// Asks.
    ///
    /// # Errors
    /// [`QmpError`]. What only some versions tell is left out where it is not told.
    pub fn ask(client: &Client) -> Result<Self, QmpError> {
        let property = |path: &str, name: &str| property(client, path, name);
        let processors = client.execute("query-cpus-fast", &json!({}))?;
        let processors = processors.as_array().map_or(&[][..], Vec::as_slice);
        let first = processors.first().and_then(|first| first["qom-path"].as_str());
        let processor = first.map_or(Ok(Value::Null), |path| property(path, "type"))?;
        let memory = told(client.execute("query-memory-size-summary", &json!({})))?;
        let kvm = told(client.execute("query-kvm", &json!({})))?;
        let objects = told(client.execute("qom-list", &json!({ "path": "/objects" })))?;
        let devices = told(client.execute("query-chardev", &json!({})))?;
        let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            version: client.version(),
            machine: text(property("/machine", "type")?),
            processor: text(processor),
            processors: processors.len(),
            memory: memory["base-memory"].as_u64().unwrap_or(0),
            kvm: kvm["enabled"].as_bool().unwrap_or(false),
            capabilities: capabilities(client)?,
            parameters: client.execute("query-migrate-parameters", &json!({}))?,
            is_libvirts: is_libvirts(&devices),
            has_free_page_hints: has_free_page_hints(client)?,
            devices: all_devices(client)?,
            credentials: credentials(&objects),
            guest: GuestStatus::ask(client)?,
            migration: Info::ask(client)?,
        })
    }

    /// Whether QEMU asks the guest's balloon for free pages in a migration by this plan: it does not where post-copy is allowed
    /// (qemu_guest_free_page_hint of migration/ram.c).
    pub fn hints_free_pages(&self, plan: &Plan) -> bool {
        self.has_free_page_hints && !plan.can_post_copy() && !self.has_on("postcopy-ram")
    }

    /// Whether it knows a capability.
    pub fn knows(&self, capability: &str) -> bool {
        self.capabilities.contains_key(capability)
    }

    /// Whether a capability is on.
    pub fn has_on(&self, capability: &str) -> bool {
        self.capabilities.get(capability) == Some(&true)
    }
}

/// libvirt calls its monitor so, in every version (qemuBuildMonitorCommandLine of src/qemu/qemu_command.c).
fn is_libvirts(devices: &Value) -> bool {
    let mut devices = devices.as_array().into_iter().flatten();
    devices.any(|device| device["label"] == "charmonitor")
}

/// Where devices with an id stand and those without, as `child<virtio-balloon-pci>` and the like.
const PLACES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

fn all_devices(client: &Client) -> Result<Vec<String>, QmpError> {
    let mut all = vec![];
    for place in PLACES {
        all.extend(types(&told(client.execute("qom-list", &json!({ "path": place })))?));
    }
    all.sort_unstable();
    Ok(all)
}

fn types(devices: &Value) -> Vec<String> {
    let devices = devices.as_array().into_iter().flatten();
    let types = devices.filter_map(|device| device["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>'));
    types.map(str::to_owned).collect()
}

fn has_free_page_hints(client: &Client) -> Result<bool, QmpError> {
    for place in PLACES {
        let devices = told(client.execute("qom-list", &json!({ "path": place })))?;
        for name in balloons(&devices) {
            if property(client, &format!("{place}/{name}"), "free-page-hint")? == Value::Bool(true) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn balloons(devices: &Value) -> impl Iterator<Item = &str> {
    let devices = devices.as_array().into_iter().flatten();
    let is_balloon = |device: &&Value| {
        device["type"]
            .as_str()
            .is_some_and(|it| it.starts_with("child<virtio-balloon"))
    };
    devices.filter(is_balloon).filter_map(|device| device["name"].as_str())
}

/// Of what `-object` made, that which is for TLS: its types are called `child<tls-creds-x509>` and the like.
fn credentials(objects: &Value) -> Vec<String> {
    let objects = objects.as_array().into_iter().flatten();
    let is_for_tls = |object: &&Value| {
        object["type"]
            .as_str()
            .is_some_and(|it| it.starts_with("child<tls-creds"))
    };
    let names = objects.filter(is_for_tls).filter_map(|object| object["name"].as_str());
    names.map(str::to_owned).collect()
}

fn capabilities(client: &Client) -> Result<BTreeMap<String, bool>, QmpError> {
    let answer = client.execute("query-migrate-capabilities", &json!({}))?;
    let all = answer.as_array().into_iter().flatten();
    let named = all.filter_map(|one| Some((one["capability"].as_str()?.to_owned(), one["state"].as_bool()?)));
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_known_by_its_type() {
        let devices = json!([
            { "name": "type", "type": "string" },
            { "name": "device[0]", "type": "child<virtio-serial-pci>" },
            { "name": "device[1]", "type": "child<virtio-balloon-pci>" },
            { "name": "mine", "type": "child<virtio-balloon-ccw>" },
        ]);
        assert_eq!(balloons(&devices).collect::<Vec<_>>(), ["device[1]", "mine"]);
        assert_eq!(balloons(&Value::Null).next(), None);
        let all = ["virtio-serial-pci", "virtio-balloon-pci", "virtio-balloon-ccw"];
        assert_eq!(types(&devices), all);
    }
}
