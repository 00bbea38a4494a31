//! In the place of the network: who may be at the other end, as if it had been proved.

#[path = "../../../host/src/trust/policy/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "migrations are not counted, and no file is changed"
)]
pub mod policy;

/// The other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    local: bool,
    identities: Vec<String>,
}

impl Peer {
    pub(crate) fn new(local: bool, identity: Option<&str>) -> Self {
        Self {
            local,
            identities: identity.map(str::to_owned).into_iter().collect(),
        }
    }

    pub(crate) const fn is_local(&self) -> bool {
        self.local
    }

    pub(crate) fn identities(&self) -> &[String] {
        &self.identities
    }
}
