//! What mutual TLS costs: migrations by it beside the same in plain, and beside what OpenSSL's own tools carry with the same cipher.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use dunlin::trust::pki;
use dunlin_tests::scene::GuestOptions;

use super::Setting;
use super::dunlin::number;
use super::fault::drain;
use super::figure::{Figure, Target};
use super::sampling::{Arm, Results, Samples, interleave, pinned, rate};

/// What is moved, and what OpenSSL sends: 1 GiB.
const BYTES: u64 = 1 << 30;
const REPETITIONS: usize = 5;
/// A run has thousands of faults and takes a moment, but where they are scheduled differs from run to run.
const FAULT_REPETITIONS: usize = 15;
const SOURCE: &str = "host-a.test";
const TARGET: &str = "host-b.test";
/// The cipher that Dunlin chooses where the processor has instructions for AES.
const CIPHER: &str = "TLS_AES_128_GCM_SHA256";
/// Where OpenSSL reads from: no disk limits it.
const IN_MEMORY: &str = "/dev/shm";
/// Of a guest whose memory takes about two seconds at that.
const LIMITED: [(&str, &str); 2] = [("125MB/s", "256MiB"), ("12.5MB/s", "24MiB")];

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("authority");
    pki::init(&authority)?;
    for host in [SOURCE, TARGET] {
        pki::issue(&authority, &host.parse()?, 1)?;
    }
    let credentials = Credentials {
        source: authority.join(SOURCE).display().to_string(),
        target: authority.join(TARGET).display().to_string(),
    };
    let mut figures = throughput(setting, &credentials)?;
    for (bandwidth, memory) in LIMITED {
        figures.push(limited(setting, &credentials, bandwidth, memory)?);
    }
    figures.extend(faults(setting, &credentials)?);
    Ok(figures)
}

/// Directories with the credentials of both hosts.
struct Credentials {
    source: String,
    target: String,
}

impl Credentials {
    fn receiver(&self) -> [&str; 2] {
        ["--tls-dir", &self.target]
    }

    fn migration(&self) -> [&str; 4] {
        ["--tls-dir", &self.source, "--peer", TARGET]
    }
}

fn throughput(setting: &Setting, credentials: &Credentials) -> anyhow::Result<Vec<Figure>> {
    let first_copy = |receiver: &[&str], migration: &[&str]| {
        let guest = GuestOptions::new(setting.dunlin.kind, "idle")
            .memory("1GiB")
            .with(["--fill", "random"]);
        let receiver = [&["--populate"], receiver].concat();
        let report = setting.dunlin.migrate(&guest, &receiver, "precopy", migration)?;
        Ok(number(&report, "/rounds/0/bytes")? / (number(&report, "/rounds/0/duration_us")? / 1e6))
    };
    let openssl = OpenSsl::start(Path::new(&credentials.target))?;
    let mut arms = vec![
        Arm::new("plain", || first_copy(&[], &[])),
        Arm::new("plain unsummed", || first_copy(&[], &["--no-checksum"])),
        Arm::new("tls", || first_copy(&credentials.receiver(), &credentials.migration())),
    ];
    if let Some(openssl) = &openssl {
        arms.push(Arm::new("openssl", || openssl.fetch()));
    }
    let results = interleave(REPETITIONS, arms)?;
    let speed = |what: &str, arm: &str| {
        let samples: &Samples = results.find(arm)?;
        Some(
            Figure::plain(format!("{what}, 1 GiB"), samples.median() / 1e6, "MB/s")
                .beside(format!("median of {}, unlimited, loopback", samples.len())),
        )
    };
    let figures = [
        speed("migration in plain, with checksums", "plain"),
        speed("migration in plain, without", "plain unsummed"),
        speed("migration by TLS", "tls"),
        speed("openssl s_server to s_client", "openssl"),
    ];
    let mut figures: Vec<Figure> = figures.into_iter().flatten().collect();
    figures.push(share(&results, "plain", "in plain", 0.5));
    if openssl.is_some() {
        figures.push(share(
            &results,
            "openssl",
            &format!("of OpenSSL's tools, {CIPHER}"),
            0.9,
        ));
    }
    Ok(figures)
}

fn share(results: &Results, arm: &str, of: &str, target: f64) -> Figure {
    let (tls, other) = (results.of("tls").median(), results.of(arm).median());
    Figure::plain(format!("migration by TLS, share of that {of}"), tls / other, "ratio").target(Target::AtLeast(target))
}

fn limited(setting: &Setting, credentials: &Credentials, bandwidth: &str, memory: &str) -> anyhow::Result<Figure> {
    let time = |receiver: &[&str], migration: &[&str]| {
        let guest = GuestOptions::new(setting.dunlin.kind, "idle")
            .memory(memory)
            .with(["--fill", "random"]);
        let migration = [&["--bandwidth", bandwidth], migration].concat();
        let report = setting.dunlin.migrate(&guest, receiver, "precopy", &migration)?;
        Ok(number(&report, "/total_time_us")? / 1e6)
    };
    let arms = vec![
        Arm::new("plain", || time(&[], &[])),
        Arm::new("tls", || time(&credentials.receiver(), &credentials.migration())),
    ];
    let results = interleave(REPETITIONS, arms)?;
    let (plain, tls) = (results.of("plain"), results.of("tls"));
    Ok(Figure::plain(
        format!("time of a migration by TLS at {bandwidth}, against plain"),
        tls.median() / plain.median(),
        "ratio",
    )
    .target(Target::AtMost(1.05))
    .beside(format!(
        "{memory}: {:.2} s by {:.2} s, median of {}",
        tls.median(),
        plain.median(),
        plain.len()
    )))
}

/// Where a fault takes its way: over all CPUs, as in use; or over a single one, where nothing wakes up beside and the whole cost shows.
fn faults(setting: &Setting, credentials: &Credentials) -> anyhow::Result<Vec<Figure>> {
    let p50 = |receiver: &[&str], migration: &[&str]| {
        Ok(number(&drain(&setting.dunlin, receiver, migration)?, "/postcopy/p50_ns")? / 1e9)
    };
    let plain = || p50(&[], &[]);
    let tls = || p50(&credentials.receiver(), &credentials.migration());
    let results = interleave(
        FAULT_REPETITIONS,
        vec![
            Arm::new("plain", plain),
            Arm::new("tls", tls),
            Arm::new("plain on one", || pinned(plain)?),
            Arm::new("tls on one", || pinned(tls)?),
        ],
    )?;
    let figures = |place: &str, [plain, tls]: [&str; 2]| {
        let [plain, tls] = [plain, tls].map(|arm| results.of(arm));
        let beside = format!("{place}, median of {} medians", tls.len());
        let [plain, tls] = [plain, tls].map(Samples::median);
        [
            Figure::plain("post-copy fault in plain, read to installed: p50", plain * 1e6, "us").beside(&*beside),
            Figure::plain("post-copy fault by TLS, read to installed: p50", tls * 1e6, "us").beside(&*beside),
            Figure::plain("post-copy fault by TLS against plain", tls / plain, "ratio")
                .target(Target::AtMost(1.25))
                .beside(place),
        ]
    };
    let everywhere = figures("on all CPUs", ["plain", "tls"]);
    let on_one = figures("on one CPU", ["plain on one", "tls on one"]);
    Ok(everywhere.into_iter().chain(on_one).collect())
}

/// `openssl s_server` with a file to fetch; ends when dropped.
struct OpenSsl {
    server: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl OpenSsl {
    /// `None`, said, where there is no OpenSSL.
    fn start(credentials: &Path) -> anyhow::Result<Option<Self>> {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("SKIP OpenSSL's tools: there is no `openssl` here; the package of that name has it");
            return Ok(None);
        }
        let folder = tempfile::Builder::new().prefix("dunlin-").tempdir_in(IN_MEMORY)?;
        let mut bulk = File::create(folder.path().join("bulk"))?;
        let block: Vec<u8> = (0..1_u32 << 20)
            .map(|index| (index.wrapping_mul(0x9e37_79b9) >> 24) as u8)
            .collect();
        for _ in 0..BYTES >> 20 {
            bulk.write_all(&block)?;
        }
        let mut server = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-WWW",
                "-tls1_3",
                "-ciphersuites",
                CIPHER,
                "-cert",
            ])
            .arg(credentials.join("cert.pem"))
            .arg("-key")
            .arg(credentials.join("key.pem"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start openssl s_server")?;
        let lines = BufReader::new(server.stdout.take().context("its output is piped")?).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned))
            .context("openssl s_server does not say where it listens")?;
        let openssl = Self {
            server,
            address,
            _folder: folder,
        };
        openssl.expect_all()?;
        Ok(Some(openssl))
    }

    fn client(&self, output: Stdio) -> anyhow::Result<Child> {
        let mut client = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &self.address,
                "-tls1_3",
                "-ciphersuites",
                CIPHER,
                "-quiet",
            ])
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start openssl s_client")?;
        let stdin = client.stdin.as_mut().context("its input is piped")?;
        stdin.write_all(b"GET /bulk HTTP/1.0\r\n\r\n")?;
        Ok(client)
    }

    /// That a fetch brings all there is.
    fn expect_all(&self) -> anyhow::Result<()> {
        let mut client = self.client(Stdio::piped())?;
        let mut output = client.stdout.take().context("its output is piped")?;
        let read = std::io::copy(&mut output, &mut std::io::sink())?;
        client.wait()?;
        ensure!(read >= BYTES, "openssl brings {read} bytes only");
        Ok(())
    }

    /// Bytes per second of one connection, with its handshake, thrown away as they come.
    fn fetch(&self) -> anyhow::Result<f64> {
        let began = Instant::now();
        let status = self.client(Stdio::null())?.wait()?;
        ensure!(status.success(), "openssl s_client failed: {status}");
        Ok(rate(BYTES, began.elapsed()))
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
