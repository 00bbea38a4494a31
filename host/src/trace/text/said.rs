//! What a text says of its trace, and what can be seen of it.

use dunlin_core::message::{Region, Regions};
use dunlin_core::tracefile::{GUEST_NAME_MAX, Head, Item, Source, VCPU_UNKNOWN, VCPUS_MAX};
use dunlin_core::units::{Gfn, Nanos, Pages};

use super::SCHEMA;
use super::error::Fault;
use super::row::decimal;

/// What a text says of its trace; what it does not say is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// Times count from the trace's start, not from the first of them.
    pub from_start: bool,
    /// What saw the writes; otherwise [`Source::Imported`].
    pub source: Option<Source>,
    /// Guest RAM; otherwise all pages up to the highest one.
    pub regions: Option<Regions>,
    /// Pages that were not all zero; otherwise all.
    pub used: Option<Pages>,
    /// vCPUs of the guest; otherwise as many as the highest one has below it.
    pub vcpus: Option<u32>,
    /// Time between two looks; otherwise zero.
    pub window: Option<Nanos>,
    /// Wall clock at the start; otherwise zero.
    pub started_unix_ns: Option<u64>,
    /// The guest's name; otherwise none.
    pub guest: Option<heapless::String<GUEST_NAME_MAX>>,
}

/// What can be seen of a trace by reading all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// One more than the highest page.
    pub end: Gfn,
    /// One more than the highest vCPU.
    pub vcpus: u32,
}

impl Survey {
    /// Takes an item into account.
    pub fn add(&mut self, item: &Item) {
        let (end, vcpu) = match *item {
            Item::Write { vcpu, gfn, .. } => (gfn.0.saturating_add(1), vcpu),
            Item::Dirty { run } => (run.end().0, VCPU_UNKNOWN),
            Item::WindowEnd { vcpu, .. } | Item::Steps { vcpu, .. } => (0, vcpu),
            Item::Lost { .. } | Item::End { .. } => (0, VCPU_UNKNOWN),
        };
        self.end = self.end.max(Gfn(end));
        if vcpu != VCPU_UNKNOWN {
            self.vcpus = self.vcpus.max(vcpu.saturating_add(1));
        }
    }
}

impl Said {
    /// Whether all of the text has to be read before there is a head.
    pub const fn needs_survey(&self) -> bool {
        self.regions.is_none() || self.vcpus.is_none()
    }

    /// The head of the trace.
    ///
    /// # Errors
    /// [`Fault::Empty`] if nothing says how much memory there is, [`Fault::Head`] if it cannot be.
    pub fn head(&self, survey: &Survey) -> Result<Head, Fault> {
        let seen = || match survey.end {
            Gfn::ZERO => Err(Fault::Empty),
            end => Ok(one_region(Pages(end.0))),
        };
        let regions = self.regions.clone().map_or_else(seen, Ok)?;
        let mut head = Head {
            source: self.source.unwrap_or(Source::Imported),
            regions,
            used: Pages::ZERO,
            vcpus: self.vcpus.unwrap_or(survey.vcpus.max(1)),
            window: self.window.unwrap_or_default(),
            started_unix_ns: self.started_unix_ns.unwrap_or(0),
            guest: self.guest.clone().unwrap_or_default(),
        };
        head.used = self.used.unwrap_or(head.total());
        head.check().map_err(Fault::Head)?;
        Ok(head)
    }

    /// Takes a comment, without its `#`. One that says nothing of the trace means nothing.
    ///
    /// # Errors
    /// [`Fault::Said`], [`Fault::Source`].
    pub(super) fn hear_comment(&mut self, comment: &str) -> Result<(), Fault> {
        let comment = comment.trim();
        if comment == SCHEMA {
            self.from_start = true;
        }
        let Some((key, value)) = comment.split_once('=') else {
            return Ok(());
        };
        let (key, value) = (key.trim(), value.trim());
        match key {
            "regions" => {
                let regions = value.split_whitespace().map(|text| {
                    let (first, pages) = text.split_once('+')?;
                    Some(region(decimal(first).ok()?, decimal(pages).ok()?))
                });
                let write =
                    "the first page and the number of pages of each, 0+1048576 4194304+262144 for example, at most 8";
                self.regions = Some(collect(regions).ok_or(Fault::Said { key: "regions", write })?);
            }
            "guest" => {
                // A name in quotation marks is one of JSON, so that any character has its place.
                let name = match value.starts_with('"') {
                    true => serde_json::from_str(value).ok(),
                    false => Some(value.to_owned()),
                };
                self.guest = Some(name.and_then(|name| guest(&name)).ok_or(GUEST)?);
            }
            "source" => self.source = Some(source(value)?),
            _ => self.hear_number(key, decimal(value).ok())?,
        }
        Ok(())
    }

    /// Takes the first object of JSON lines; false if it is none about the trace.
    ///
    /// # Errors
    /// As [`hear_comment`](Self::hear_comment).
    pub(super) fn hear_object(&mut self, object: &serde_json::Map<String, serde_json::Value>) -> Result<bool, Fault> {
        let Some(schema) = object.get("schema") else {
            return Ok(false);
        };
        if schema != SCHEMA {
            return Err(Fault::Said {
                key: "schema",
                write: "dunlin.trace.v1",
            });
        }
        self.from_start = true;
        for (key, value) in object {
            match key.as_str() {
                "schema" => {}
                "regions" => {
                    let pairs = value.as_array().map(Vec::as_slice).unwrap_or_default();
                    let regions = pairs.iter().map(|pair| match pair.as_array()?.as_slice() {
                        [first, pages] => Some(region(first.as_u64()?, pages.as_u64()?)),
                        _ => None,
                    });
                    let write = "the first page and the number of pages of each, [[0,1048576]] for example, at most 8";
                    self.regions = Some(collect(regions).ok_or(Fault::Said { key: "regions", write })?);
                }
                "guest" => self.guest = Some(value.as_str().and_then(guest).ok_or(GUEST)?),
                "source" => self.source = Some(source(value.as_str().unwrap_or_default())?),
                key => self.hear_number(key, value.as_u64())?,
            }
        }
        Ok(true)
    }

    /// `None` where there is no number.
    fn hear_number(&mut self, key: &str, number: Option<u64>) -> Result<(), Fault> {
        let wrong = |key, write| Fault::Said { key, write };
        match key {
            "used_pages" => self.used = Some(Pages(number.ok_or(wrong("used_pages", "a number of pages"))?)),
            "vcpus" => {
                let vcpus = number.and_then(|vcpus| u32::try_from(vcpus).ok());
                let vcpus = vcpus.filter(|vcpus| (1..=VCPUS_MAX).contains(vcpus));
                self.vcpus = Some(vcpus.ok_or(wrong("vcpus", "a number from 1 to 1024"))?);
            }
            "window_ns" => self.window = Some(Nanos(number.ok_or(wrong("window_ns", "a number of nanoseconds"))?)),
            "started_unix_ns" => {
                let write = "nanoseconds since 1970, or 0";
                self.started_unix_ns = Some(number.ok_or(wrong("started_unix_ns", write))?);
            }
            _ => {}
        }
        Ok(())
    }
}

const GUEST: Fault = Fault::Said {
    key: "guest",
    write: "a name of at most 64 bytes",
};

/// Memory that begins at page 0.
pub fn one_region(pages: Pages) -> Regions {
    let region = Region {
        first: Gfn::ZERO,
        pages,
    };
    [region].into_iter().collect()
}

/// Regions, unless one of them is none or they are too many.
fn collect(regions: impl Iterator<Item = Option<Region>>) -> Option<Regions> {
    let mut found = Regions::new();
    for region in regions {
        found.push(region?).ok()?;
    }
    Some(found)
}

const fn region(first: u64, pages: u64) -> Region {
    Region {
        first: Gfn(first),
        pages: Pages(pages),
    }
}

fn guest(name: &str) -> Option<heapless::String<GUEST_NAME_MAX>> {
    heapless::String::try_from(name).ok()
}

fn source(name: &str) -> Result<Source, Fault> {
    Source::from_name(name).ok_or_else(|| Fault::Source(name.into()))
}
