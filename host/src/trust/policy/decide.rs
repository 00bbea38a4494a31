//! Rules, and what they say of a request.

use super::Direction;
use crate::trust::Peer;
use dunlin_core::units::{Bytes, BytesPerSec};
use std::fmt;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Which way.
    pub direction: Direction,
    /// The other side.
    pub peer: &'a Peer,
    /// The VM's name.
    pub guest: &'a str,
    /// The VM's memory.
    pub memory: Bytes,
}

/// A text, or the beginning or the end of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `*`
    Any,
    /// This text.
    Exact(String),
    /// This, and something behind it.
    Prefix(String),
    /// Something, and this behind it.
    Suffix(String),
}

/// Why a text is no [`Pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing.
    #[error("an empty pattern fits nothing: write a name, a name with one * at its beginning or end, or \"*\" for all")]
    Empty,
    /// More than one, or in the middle.
    #[error("a * may stand once, at the beginning or at the end: write a rule for each name otherwise")]
    Star,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let inner = text.trim_matches('*');
        match (text.matches('*').count(), inner) {
            (0, "") => Err(PatternError::Empty),
            (0, _) => Ok(Self::Exact(text.into())),
            (1, "") => Ok(Self::Any),
            (1, _) if text.ends_with('*') => Ok(Self::Prefix(inner.into())),
            (1, _) if text.starts_with('*') => Ok(Self::Suffix(inner.into())),
            _ => Err(PatternError::Star),
        }
    }

    /// Whether a text may fit both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(text), pattern) | (pattern, Self::Exact(text)) => pattern.fits(text),
            (Self::Prefix(one), Self::Prefix(another)) => one.starts_with(another) || another.starts_with(one),
            (Self::Suffix(one), Self::Suffix(another)) => one.ends_with(another) || another.ends_with(one),
            _ => true,
        }
    }

    /// Whether it fits.
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == text,
            Self::Prefix(prefix) => text.len() > prefix.len() && text.starts_with(prefix),
            Self::Suffix(suffix) => text.len() > suffix.len() && text.ends_with(suffix),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}

/// Which peers a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerPattern {
    /// Processes of this host.
    Local,
    /// Everybody, whoever it is.
    Anyone,
    /// Who proved to be one of these.
    Identity(Pattern),
}

impl PeerPattern {
    /// Reads a pattern; `local` and `anyone` are words of their own.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        Ok(match text {
            "local" => Self::Local,
            "anyone" => Self::Anyone,
            _ => Self::Identity(Pattern::parse(text)?),
        })
    }

    /// Whether it fits.
    pub fn fits(&self, peer: &Peer) -> bool {
        match self {
            Self::Local => peer.is_local(),
            Self::Anyone => true,
            Self::Identity(pattern) => peer.identities().iter().any(|identity| pattern.fits(identity)),
        }
    }
}

impl fmt::Display for PeerPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Anyone => f.write_str("anyone"),
            Self::Identity(pattern) => pattern.fmt(f),
        }
    }
}

/// What an allowing rule limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most memory of one VM.
    pub memory: Option<Bytes>,
    /// Most migrations at once.
    pub migrations: Option<u32>,
    /// Fastest a migration may go.
    pub bandwidth: Option<BytesPerSec>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place among the rules, from 1.
    pub number: usize,
    /// The line it begins in.
    pub line: usize,
    /// Whom it is for.
    pub peer: PeerPattern,
    /// Which VMs it is for.
    pub guest: Pattern,
    /// Which way; both if absent.
    pub direction: Option<Direction>,
    /// What it allows; `None` if it refuses.
    pub allows: Option<Limits>,
}

impl Rule {
    /// Whether it is for this request.
    pub fn fits(&self, request: &Request<'_>) -> bool {
        self.direction.is_none_or(|direction| direction == request.direction)
            && self.guest.fits(request.guest)
            && self.peer.fits(request.peer)
    }

    /// Whether a request may fit both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let peers = match (&self.peer, &other.peer) {
            (PeerPattern::Anyone, _) | (_, PeerPattern::Anyone) => true,
            (PeerPattern::Identity(one), PeerPattern::Identity(another)) => one.overlaps(another),
            // Who is of this host may have proved a name as well, which is of no interest here.
            (PeerPattern::Local, PeerPattern::Local) => true,
            (PeerPattern::Local, PeerPattern::Identity(_)) | (PeerPattern::Identity(_), PeerPattern::Local) => false,
        };
        let directions = match (self.direction, other.direction) {
            (Some(one), Some(another)) => one == another,
            _ => true,
        };
        peers && directions && self.guest.overlaps(&other.guest)
    }

    /// By what its migrations are counted: the same for the same rule in every process, wherever it stands in the file.
    pub(super) fn key(&self) -> String {
        let direction = match self.direction {
            None => "both",
            Some(Direction::In) => "in",
            Some(Direction::Out) => "out",
        };
        format!("{direction}\0{}\0{}", self.peer, self.guest)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} (line {})", self.number, self.line)
    }
}

/// What the rules say of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// This rule allows it, within these limits.
    Allowed(&'a Rule, Limits),
    /// There are no rules, and the peer is of this host.
    AllowedLocal,
    /// This rule refuses it.
    Refused(&'a Rule),
    /// This rule allows less memory.
    TooMuchMemory(&'a Rule, Bytes),
    /// No rule fits.
    NoRule,
    /// There are no rules, and the peer is of another host.
    NoPolicy,
}

impl Verdict<'_> {
    /// Whether it may go on.
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(..) | Self::AllowedLocal)
    }

    /// The rule that decided, if one did.
    pub const fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Allowed(rule, _) | Self::Refused(rule) | Self::TooMuchMemory(rule, _) => Some(rule),
            Self::AllowedLocal | Self::NoRule | Self::NoPolicy => None,
        }
    }

    /// What kept it within what is allowed, besides a count that only [`Policy::take_turn`](super::Policy::take_turn) can know.
    pub const fn limits(&self) -> Limits {
        match self {
            Self::Allowed(_, limits) => *limits,
            _ => Limits {
                memory: None,
                migrations: None,
                bandwidth: None,
            },
        }
    }

    /// Why, in words.
    pub fn reason(&self) -> String {
        match self {
            Self::Allowed(rule, _) => format!("allowed by {rule}"),
            Self::AllowedLocal => "there is no policy, and the peer is of this host".to_owned(),
            Self::Refused(rule) => format!("refused by {rule}"),
            Self::TooMuchMemory(rule, most) => {
                format!("{rule} allows VMs of at most {}", crate::report::bytes(most.0))
            }
            Self::NoRule => {
                "no rule of the policy fits (`dunlin policy allow PEER` adds one; anyone is the peer of plain connections)".to_owned()
            }
            Self::NoPolicy => format!(
                "there is no policy, so only peers of this host may (`dunlin policy allow PEER` writes {}; --policy names another)",
                super::DEFAULT_FILE
            ),
        }
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self {
            Self::Allowed(..) | Self::Refused(_) => "",
            Self::AllowedLocal => "allowed: ",
            Self::TooMuchMemory(..) | Self::NoRule | Self::NoPolicy => "refused: ",
        };
        write!(f, "{verdict}{}", self.reason())
    }
}

/// The first rule that fits decides.
pub(super) fn decide<'a>(rules: Option<&'a [Rule]>, request: &Request<'_>) -> Verdict<'a> {
    let Some(rules) = rules else {
        return if request.peer.is_local() {
            Verdict::AllowedLocal
        } else {
            Verdict::NoPolicy
        };
    };
    let Some(rule) = rules.iter().find(|rule| rule.fits(request)) else {
        return Verdict::NoRule;
    };
    match rule.allows {
        None => Verdict::Refused(rule),
        Some(Limits { memory: Some(most), .. }) if request.memory > most => Verdict::TooMuchMemory(rule, most),
        Some(limits) => Verdict::Allowed(rule, limits),
    }
}
