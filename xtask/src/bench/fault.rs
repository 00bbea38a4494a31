//! How long a guest waits for a missing page: Dunlin's post-copy beside a bare request and reply plus one installation.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use dunlin::memory::{FaultOrigin, GuestMemory, MemoryLayout, Userfaultfd};
use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE};
use dunlin_tests::scene::GuestOptions;
use serde_json::Value;

use super::Setting;
use super::dunlin::{Dunlin, number};
use super::figure::{Figure, Target};
use super::sampling::{Arm, Samples, interleave, pinned};

/// Pages asked for in one repetition.
const PAGES: u64 = 2000;
const REPETITIONS: usize = 7;
/// A request is a frame header, a reply such a header and a page.
const HEADER_BYTES: usize = dunlin_core::wire::HEADER_BYTES;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let bare = || Ok(pinned(bare_fault_times)??.median());
    let dunlin = || pinned(|| Ok(number(&drain(&setting.dunlin, &[], &[])?, "/postcopy/p50_ns")? / 1e9))?;
    let results = interleave(REPETITIONS, vec![Arm::new("bare", bare), Arm::new("dunlin", dunlin)])?;
    let (bare, dunlin) = (results.of("bare"), results.of("dunlin"));
    let beside = format!("all on one CPU, median of {} medians", bare.len());
    Ok(vec![
        Figure::plain(
            "bare 4 KiB request and reply, installed: p50",
            bare.median() * 1e6,
            "us",
        )
        .beside(&*beside),
        Figure::plain("post-copy fault, read to installed: p50", dunlin.median() * 1e6, "us").beside(&*beside),
        Figure::plain(
            "post-copy fault against the bare one",
            dunlin.median() / bare.median(),
            "ratio",
        )
        .target(Target::AtMost(1.5))
        .beside("a bare request and reply over TCP plus one UFFDIO_COPY"),
    ])
}

/// The report of the post-copy of a guest that touches all its memory as fast as it can. Replies do not wait for the rate
/// limit but count against it, so a low limit keeps the push away as long as there are faults.
pub(crate) fn drain(dunlin: &Dunlin, receiver: &[&str], migration: &[&str]) -> anyhow::Result<Value> {
    let guest = GuestOptions::new(dunlin.kind, "seq")
        .memory("16MiB")
        .with(["--fill", "random"]);
    let migration = [&["--bandwidth", "4MB/s"], migration].concat();
    let report = dunlin.migrate(&guest, receiver, "postcopy", &migration)?;
    let faults = number(&report, "/postcopy/faults")?;
    ensure!(
        faults >= 1000.0,
        "only {faults} pages were asked for: the push was faster ({report})"
    );
    Ok(report)
}

/// Seconds from a request for a page to its installation.
fn bare_fault_times() -> anyhow::Result<Samples> {
    let memory = Arc::new(GuestMemory::new(MemoryLayout::new(Bytes(PAGES * PAGE_SIZE))?)?);
    let faults = Userfaultfd::open(Arc::clone(&memory), FaultOrigin::UserMode)?;
    faults.register_missing()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || serve_pages(&listener));
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut reply = vec![0; HEADER_BYTES + PAGE_SIZE as usize];
    let mut times = Vec::new();
    for page in 0..PAGES {
        let started = Instant::now();
        stream.write_all(&[1; HEADER_BYTES])?;
        stream.read_exact(&mut reply)?;
        let installed = faults.copy(Gfn(page), &reply[HEADER_BYTES..])?;
        times.push(started.elapsed().as_secs_f64());
        ensure!(installed.installed.0 == 1, "page {page} was there already");
    }
    drop(stream);
    server.join().expect("the server does not panic")?;
    Ok(Samples::new(times))
}

/// Answers every request with a page until the connection ends.
fn serve_pages(listener: &TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let reply = vec![7; HEADER_BYTES + PAGE_SIZE as usize];
    let mut request = [0; HEADER_BYTES];
    while stream.read_exact(&mut request).is_ok() {
        stream.write_all(&reply)?;
    }
    Ok(())
}
