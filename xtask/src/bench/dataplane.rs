//! How fast the bytes of a guest move over loopback: Dunlin beside one bare socket and beside stock QEMU.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use dunlin_tests::Capability;
use dunlin_tests::scene::GuestOptions;

use super::Setting;
use super::dunlin::number;
use super::figure::{Figure, Target};
use super::qemu;
use super::sampling::{Arm, Results, interleave, pinned, rate};

/// What is moved: a guest of 1 GiB.
pub(super) const BYTES: usize = 1 << 30;
const REPETITIONS: usize = 5;
/// Bytes of one read or write call.
const CALL_BYTES: usize = 4 << 20;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let source = random_bytes(BYTES);
    let mut populated = random_bytes(BYTES);
    let mut pinned_into = random_bytes(BYTES);
    let qemu = match Capability::Qemu.probe() {
        Ok(()) => Some(qemu::RandomGuest::new(&source)?),
        Err(why) => {
            eprintln!("SKIP QEMU's pre-copy: {why}");
            None
        }
    };
    let mut arms = vec![
        Arm::new("bare", || bare_transfer(&source, &mut populated)),
        Arm::new("bare fresh", || bare_transfer(&source, &mut vec![0; BYTES])),
        Arm::new("bare pinned", || pinned(|| bare_transfer(&source, &mut pinned_into))?),
        Arm::new("populated", || first_copy(setting, &["--populate"], &[])),
        Arm::new("populated unsummed", || {
            first_copy(setting, &["--populate"], &["--no-checksum"])
        }),
        Arm::new("fresh", || first_copy(setting, &[], &[])),
    ];
    if let Some(qemu) = &qemu {
        arms.push(Arm::new("qemu", || qemu.plain_precopy()));
    }
    Ok(figures(&interleave(REPETITIONS, arms)?))
}

fn figures(results: &Results) -> Vec<Figure> {
    let bare = results.of("bare");
    let beside = format!("median of {}", bare.len());
    let speed = |what: &str, arm: &str| {
        let samples = results.find(arm)?;
        Some(Figure::plain(format!("{what}, 1 GiB of random pages"), samples.median() / 1e6, "MB/s").beside(&*beside))
    };
    let ratio = |what: &str, arm: &str, target: f64| {
        let ratio = results.of(arm).median() / bare.median();
        Figure::plain(what, ratio, "ratio")
            .target(Target::AtLeast(target))
            .beside("one bare socket into populated memory")
    };
    let speeds = [
        speed("bare socket into populated memory", "bare"),
        speed("bare socket into populated memory, both ends on one CPU", "bare pinned"),
        speed("bare socket into fresh memory", "bare fresh"),
        speed("Dunlin into populated memory", "populated"),
        speed("Dunlin into populated memory, no checksums", "populated unsummed"),
        speed("Dunlin into fresh memory", "fresh"),
        speed("stock QEMU's plain pre-copy", "qemu"),
    ];
    let mut figures: Vec<Figure> = speeds.into_iter().flatten().collect();
    figures.push(ratio("Dunlin into populated memory, share of bare", "populated", 0.7));
    figures.push(ratio("the same without checksums", "populated unsummed", 0.8));
    figures.push(ratio("Dunlin into fresh memory, share of bare", "fresh", 0.4));
    if let Some(qemu) = results.find("qemu") {
        for (what, arm) in [("populated", "populated"), ("fresh", "fresh")] {
            let ratio = results.of(arm).median() / qemu.median();
            figures.push(
                Figure::plain(format!("Dunlin into {what} memory, times QEMU"), ratio, "ratio")
                    .target(Target::AtLeast(4.0))
                    .beside("stock QEMU's plain pre-copy of the same amount, into memory it had touched before"),
            );
        }
    }
    figures
}

/// Bytes per second of the first round of a pre-copy by Dunlin, without a limit.
fn first_copy(setting: &Setting, receiver: &[&str], migration: &[&str]) -> anyhow::Result<f64> {
    let guest = GuestOptions::new(setting.dunlin.kind, "idle")
        .memory("1GiB")
        .with(["--fill", "random"]);
    let report = setting.dunlin.migrate(&guest, receiver, "precopy", migration)?;
    Ok(number(&report, "/rounds/0/bytes")? / (number(&report, "/rounds/0/duration_us")? / 1e6))
}

/// Bytes that no one can compress or skip.
fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = vec![0; count];
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Bytes per second from one thread to another over a TCP connection, with large calls and nothing else.
fn bare_transfer(from: &[u8], into: &mut [u8]) -> anyhow::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            // The receiver says when it is ready, so that no byte travels before the clock runs.
            stream.read_exact(&mut [0])?;
            for piece in from.chunks(CALL_BYTES) {
                stream.write_all(piece)?;
            }
            Ok(())
        });
        let mut stream = TcpStream::connect(address)?;
        let started = Instant::now();
        stream.write_all(&[1])?;
        let mut filled = 0;
        while filled < into.len() {
            let end = into.len().min(filled + CALL_BYTES);
            let read = stream.read(&mut into[filled..end])?;
            anyhow::ensure!(read > 0, "the connection ended after {filled} bytes");
            filled += read;
        }
        let took = started.elapsed();
        sender.join().expect("the sender does not panic")?;
        Ok(rate(into.len() as u64, took))
    })
}
