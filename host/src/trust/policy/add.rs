//! Rules that are added from the command line.

use super::{Direction, Policy, PolicyError, file};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Begins a policy that is made for its first rule: without one, processes of this host may, and that is to stay so.
const LOCAL: &str = "# The first rule that fits decides; what no rule fits is refused. See `dunlin policy check --help`.\n[[rule]]\nverdict = \"allow\"\npeer = \"local\"\n";

/// A rule that allows, as typed.
#[derive(Clone, Copy, Debug)]
pub struct Allowance<'a> {
    /// Whom.
    pub peer: &'a str,
    /// Which guests; all if absent.
    pub guest: Option<&'a str>,
    /// Which way; both if absent.
    pub direction: Option<Direction>,
    /// Most memory of one guest.
    pub memory: Option<&'a str>,
    /// Most migrations at once.
    pub migrations: Option<u32>,
    /// Longest bytes per second.
    pub bandwidth: Option<&'a str>,
}

impl Allowance<'_> {
    /// The rule as it stands in a policy.
    pub fn text(&self) -> String {
        let mut text = String::from("[[rule]]\nverdict = \"allow\"\n");
        let mut line = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                text += &format!("{key} = {}\n", quoted(value));
            }
        };
        line("peer", Some(self.peer));
        line("guest", self.guest);
        line(
            "direction",
            self.direction.map(|direction| match direction {
                Direction::In => "in",
                Direction::Out => "out",
            }),
        );
        line("memory", self.memory);
        line("bandwidth", self.bandwidth);
        if let Some(migrations) = self.migrations {
            text += &format!("migrations = {migrations}\n");
        }
        text
    }

    /// Adds it as the last rule to the policy at `path`, which is made if it is not there. All that was there stays as it is.
    ///
    /// # Errors
    /// [`PolicyError`], also if the rule would make it a broken one: nothing was changed then.
    pub fn add_to(&self, path: &Path) -> Result<Policy, PolicyError> {
        let (before, permissions) = match file::read(path) {
            Ok(text) => {
                Policy::parse(path, &text)?;
                (text, fs::metadata(path).map(|about| about.permissions()).ok())
            }
            Err(PolicyError::Missing(_)) => (LOCAL.to_owned(), None),
            Err(error) => return Err(error),
        };
        let text = format!("{}\n\n{}", before.trim_end(), self.text());
        let policy = Policy::parse(path, &text)?;
        let write = || -> io::Result<()> {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::create_dir_all(folder)?;
            }
            // Whoever reads it meanwhile finds the old one or the new one.
            let new = PathBuf::from(format!("{}.new", path.display()));
            fs::write(&new, text)?;
            if let Some(permissions) = permissions {
                fs::set_permissions(&new, permissions)?;
            }
            fs::rename(new, path)
        };
        write().map_err(|source| PolicyError::Write {
            path: path.into(),
            source,
        })?;
        Ok(policy)
    }
}

/// As TOML has it, whose basic strings know every escape that JSON uses.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Peer;
    use crate::trust::policy::Request;
    use dunlin_core::units::Bytes;
    use proptest::prelude::*;

    const NOTHING: Allowance<'_> = Allowance {
        peer: "a.example",
        guest: None,
        direction: None,
        memory: None,
        migrations: None,
        bandwidth: None,
    };

    fn allows(policy: &Policy, peer: &Peer, guest: &str, direction: Direction) -> bool {
        let request = Request {
            direction,
            peer,
            guest,
            memory: Bytes(1 << 30),
        };
        policy.decide(&request).is_allowed()
    }

    #[test]
    fn rules_are_added_behind_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/policy.toml");
        let (a, b) = (Peer::new(false, Some("a.example")), Peer::new(false, Some("b.example")));
        NOTHING.add_to(&path).unwrap();
        let only_web = Allowance {
            peer: "b.example",
            guest: Some("web-*"),
            direction: Some(Direction::In),
            memory: Some("2GiB"),
            migrations: Some(1),
            bandwidth: Some("100MB/s"),
        };
        let policy = only_web.add_to(&path).unwrap();
        assert_eq!(policy, Policy::load(Some(&path)).unwrap());
        assert_eq!(policy.rules().unwrap().len(), 3);
        assert!(
            allows(&policy, &Peer::new(true, None), "db", Direction::Out),
            "this host's own"
        );
        assert!(allows(&policy, &a, "db", Direction::In));
        assert!(allows(&policy, &b, "web-1", Direction::In));
        assert!(!allows(&policy, &b, "web-1", Direction::Out));
        assert!(!allows(&policy, &b, "db", Direction::In));
    }

    #[test]
    fn what_would_break_a_policy_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        let strange = Allowance {
            memory: Some("much"),
            ..NOTHING
        };
        assert!(matches!(strange.add_to(&path), Err(PolicyError::Broken { .. })));
        assert!(!path.exists());
        fs::write(&path, "[[rule]]\npeer = 3\n").unwrap();
        assert!(matches!(
            NOTHING.add_to(&path),
            Err(PolicyError::Broken { line: 2, .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "[[rule]]\npeer = 3\n");
    }

    proptest! {
        /// Whatever a name has in it, it is one value of one rule.
        #[test]
        fn a_name_is_never_more_than_a_name(name in "\\PC{1,12}|[\"\\\\\n\r\t#=\\[\\]a\u{0}\u{7f}]{1,8}") {
            let text = Allowance { peer: "x", guest: Some(&name), ..NOTHING }.text();
            if let Ok(policy) = Policy::parse(Path::new("p"), &text) {
                prop_assert_eq!(policy.rules().unwrap().len(), 1);
                if !name.contains('*') {
                    prop_assert!(allows(&policy, &Peer::new(false, Some("x")), &name, Direction::In));
                }
            }
        }
    }
}
