//! Writing a text.

use std::io::{self, Write};

use dunlin_core::tracefile::{Head, Item, VCPU_UNKNOWN};
use serde_json::json;

use super::{SCHEMA, TextFormat};

/// Bytes that are collected before they are written.
const BUFFER_BYTES: usize = 64 * 1024;

/// Writes a trace as text, to be read back exactly by [`TextReader`](super::TextReader).
#[derive(Debug)]
pub struct TextWriter<W> {
    to: W,
    format: TextFormat,
    buffer: Vec<u8>,
}

impl<W: Write> TextWriter<W> {
    /// Begins with what the trace says of itself.
    ///
    /// # Errors
    /// None now: what is written goes out with the items.
    pub fn new(to: W, format: TextFormat, head: &Head) -> io::Result<Self> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES + 1024);
        match format {
            TextFormat::Csv => csv_head(&mut buffer, head)?,
            TextFormat::JsonLines => json_head(&mut buffer, head)?,
        }
        Ok(Self { to, format, buffer })
    }

    /// Adds an item.
    ///
    /// # Errors
    /// That of the place it is written to.
    pub fn push(&mut self, item: &Item) -> io::Result<()> {
        match self.format {
            TextFormat::Csv => csv_item(&mut self.buffer, item)?,
            TextFormat::JsonLines => json_item(&mut self.buffer, item)?,
        }
        if self.buffer.len() >= BUFFER_BYTES {
            self.to.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// That of the place it is written to.
    pub fn finish(mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer)?;
        self.to.flush()
    }
}

fn csv_head(to: &mut Vec<u8>, head: &Head) -> io::Result<()> {
    let regions: Vec<String> = head
        .regions
        .iter()
        .map(|region| format!("{}+{}", region.first, region.pages))
        .collect();
    writeln!(to, "# {SCHEMA}")?;
    writeln!(to, "# source={}", head.source)?;
    writeln!(to, "# regions={}", regions.join(" "))?;
    writeln!(to, "# used_pages={}", head.used)?;
    writeln!(to, "# vcpus={}", head.vcpus)?;
    writeln!(to, "# window_ns={}", head.window)?;
    writeln!(to, "# started_unix_ns={}", head.started_unix_ns)?;
    writeln!(to, "# guest={}", json!(head.guest.as_str()))?;
    writeln!(to, "kind,at_ns,vcpu,gfn,pages,value")
}

fn csv_item(to: &mut Vec<u8>, item: &Item) -> io::Result<()> {
    match *item {
        Item::Write { at, vcpu, gfn } => {
            write!(to, "write,{at},")?;
            csv_vcpu(to, vcpu)?;
            writeln!(to, ",{gfn},,")
        }
        Item::Dirty { run } => writeln!(to, "dirty,,,{},{},", run.first, run.count),
        Item::WindowEnd { at, vcpu } => {
            write!(to, "window-end,{at},")?;
            csv_vcpu(to, vcpu)?;
            writeln!(to, ",,,")
        }
        Item::Lost { at, events } => writeln!(to, "lost,{at},,,,{events}"),
        Item::Steps { at, vcpu, steps } => {
            write!(to, "steps,{at},")?;
            csv_vcpu(to, vcpu)?;
            writeln!(to, ",,,{steps}")
        }
        Item::End { at, overhead } => writeln!(to, "end,{at},,,,{overhead}"),
    }
}

fn csv_vcpu(to: &mut Vec<u8>, vcpu: u32) -> io::Result<()> {
    match vcpu {
        VCPU_UNKNOWN => Ok(()),
        vcpu => write!(to, "{vcpu}"),
    }
}

fn json_head(to: &mut Vec<u8>, head: &Head) -> io::Result<()> {
    let regions: Vec<[u64; 2]> = head
        .regions
        .iter()
        .map(|region| [region.first.0, region.pages.0])
        .collect();
    let object = json!({
        "schema": SCHEMA,
        "source": head.source.name(),
        "regions": regions,
        "used_pages": head.used.0,
        "vcpus": head.vcpus,
        "window_ns": head.window.0,
        "started_unix_ns": head.started_unix_ns,
        "guest": head.guest.as_str(),
    });
    writeln!(to, "{object}")
}

fn json_item(to: &mut Vec<u8>, item: &Item) -> io::Result<()> {
    match *item {
        Item::Write { at, vcpu, gfn } => {
            write!(to, r#"{{"kind":"write","at_ns":{at}"#)?;
            json_vcpu(to, vcpu)?;
            writeln!(to, r#","gfn":{gfn}}}"#)
        }
        Item::Dirty { run } => {
            let (first, count) = (run.first, run.count);
            writeln!(to, r#"{{"kind":"dirty","gfn":{first},"pages":{count}}}"#)
        }
        Item::WindowEnd { at, vcpu } => {
            write!(to, r#"{{"kind":"window-end","at_ns":{at}"#)?;
            json_vcpu(to, vcpu)?;
            to.write_all(b"}\n")
        }
        Item::Lost { at, events } => writeln!(to, r#"{{"kind":"lost","at_ns":{at},"value":{events}}}"#),
        Item::Steps { at, vcpu, steps } => {
            write!(to, r#"{{"kind":"steps","at_ns":{at}"#)?;
            json_vcpu(to, vcpu)?;
            writeln!(to, r#","value":{steps}}}"#)
        }
        Item::End { at, overhead } => writeln!(to, r#"{{"kind":"end","at_ns":{at},"value":{overhead}}}"#),
    }
}

fn json_vcpu(to: &mut Vec<u8>, vcpu: u32) -> io::Result<()> {
    match vcpu {
        VCPU_UNKNOWN => Ok(()),
        vcpu => write!(to, r#","vcpu":{vcpu}"#),
    }
}
