//! How fast the bytes of a guest move over loopback: Dunlin beside one bare socket and beside stock QEMU.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use dunlin_tests::Capability;

use super::figure::Figure;
use super::qemu;
use super::sampling::{Arm, interleave, rate};

/// What is moved: a guest of 1 GiB.
pub(super) const BYTES: usize = 1 << 30;
const REPETITIONS: usize = 5;
/// Bytes of one read or write call.
const CALL_BYTES: usize = 4 << 20;

pub(super) fn run() -> anyhow::Result<Vec<Figure>> {
    let source = random_bytes(BYTES);
    let mut populated = random_bytes(BYTES);
    let [bare, bare_fresh] = interleave(
        REPETITIONS,
        [
            Arm::new("bare socket, populated", || bare_transfer(&source, &mut populated)),
            Arm::new("bare socket, fresh", || bare_transfer(&source, &mut vec![0; BYTES])),
        ],
    )?;
    let mut figures = vec![
        Figure::plain("bare socket, 1 GiB into populated memory", bare.median() / 1e6, "MB/s")
            .beside(format!("median of {}", bare.len())),
        Figure::plain(
            "bare socket, 1 GiB into fresh memory",
            bare_fresh.median() / 1e6,
            "MB/s",
        )
        .beside(format!("median of {}", bare_fresh.len())),
    ];
    match Capability::Qemu.probe() {
        Ok(()) => {
            let pair = qemu::RandomGuest::new(&source)?;
            let [qemu] = interleave(REPETITIONS, [Arm::new("QEMU", || pair.plain_precopy())])?;
            figures.push(
                Figure::plain("stock QEMU, plain pre-copy of 1 GiB", qemu.median() / 1e6, "MB/s")
                    .beside(format!("median of {}", qemu.len())),
            );
        }
        Err(why) => eprintln!("SKIP QEMU's pre-copy: {why}"),
    }
    Ok(figures)
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
