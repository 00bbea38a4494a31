//! Whole migrations within this process whose storage is sealed and whose hand-over is signed, also such that somebody meddles with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dunlin_core::message::{Mode, SessionId, VmId};
use dunlin_core::migrate::{SourceOutcome, SourceRecord, TargetOutcome, TargetRecord, agree_on_version};
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{Bytes, BytesPerSec};

use super::guard::peer_of;
use super::notary::Notary;
use super::source::{SourceHandle, SourceOptions, SourceRecorder, SourceResult, SourceRun};
use super::target::link::{Incoming, WISHES_MAX, accept};
use super::target::{TargetHandle, TargetRecorder, TargetResult, TargetRun};
use crate::channel::{Address, Cancel, FaultProxy, Listener};
use crate::guest::{AnyGuest, Fill, Guest as _, GuestConfig, GuestKind, Tracking};
use crate::storage::SealKey;
use crate::trust::commit::{Side, Signing};
use crate::trust::{Admission, Files, Trusted, pki};

const MEMORY: Bytes = Bytes(4 << 20);
const PAGES: u64 = 1024;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Keeps nothing, and signs with these bytes, whatever is signed.
struct Records(&'static [u8]);

/// What is taken for a good signature.
const GOOD: &[u8] = &[1];

impl Notary for Records {
    fn sign(&mut self, _: Side, _: &Signing) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        Ok(self.0.to_vec())
    }

    fn countersign(&mut self, _: Side, _: &Signing, signed: Option<&[u8]>) -> Result<(), Box<dyn std::error::Error>> {
        if signed == Some(GOOD) {
            Ok(())
        } else {
            Err("no good signature".into())
        }
    }
}

impl SourceRecorder for Records {
    fn record(&mut self, _: SourceRecord, _: SessionId) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }

    fn begin_hand_over(&mut self, _: SessionId) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }

    fn keep(&mut self, _: SessionId, _: Mode, _: &[u8], _: Option<&Signing>) {}
}

impl TargetRecorder for Records {
    fn record(&mut self, _: TargetRecord, _: SessionId, _: VmId) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }

    fn begin_hand_over(
        &mut self,
        _: SessionId,
        _: Mode,
        _: &[u8],
        _: Option<&Signing>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }
}

/// Ends the waiting for connections, also if a test fails beside it.
struct Raise<'a>(&'a Cancel);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// One migration, and who has which key.
struct Case {
    strategy: &'static str,
    bandwidth: Option<u64>,
    /// The source connects by TLS, and seals.
    secured: bool,
    target: Key,
    /// Hashes are compared in the end, for which a target that has lost the network waits long.
    verify: bool,
    /// By what the source and the target sign.
    signed: [&'static [u8]; 2],
}

impl Case {
    /// With everything right, by TLS.
    const fn right(strategy: &'static str) -> Self {
        Self {
            strategy,
            bandwidth: None,
            secured: true,
            target: Key::OfTheSession,
            verify: true,
            signed: [GOOD, GOOD],
        }
    }
}

/// What the target opens with.
#[derive(Clone, Copy)]
enum Key {
    OfTheSession,
    Another,
    Nothing,
}

/// Credentials of two hosts of one authority.
fn hosts() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pki::init(folder.path()).unwrap();
    for host in ["a", "b"] {
        pki::issue(folder.path(), &host.parse().unwrap(), 1).unwrap();
    }
    folder
}

fn config() -> GuestConfig {
    GuestConfig {
        name: "sealed".into(),
        kind: GuestKind::Thread,
        memory: MEMORY,
        vcpus: 1,
        workload: "uniform,rate=2000".into(),
        seed: 7,
        steps: Some(4000),
        fill: Fill::Random,
        irqchip: false,
    }
}

/// What the guest's memory is when nobody has moved it.
fn undisturbed() -> String {
    let guest = AnyGuest::create(config()).unwrap();
    guest.resume().unwrap();
    ended(&guest)
}

/// Its memory once it has halted.
fn ended(guest: &AnyGuest) -> String {
    let until = Instant::now() + PATIENCE;
    while !guest.progress().all_halted() {
        assert!(Instant::now() < until, "it never halts");
        std::thread::sleep(Duration::from_millis(5));
    }
    guest.memory().blake3().unwrap().to_hex().to_string()
}

/// How it ended on both sides, and the guest of the source.
struct End {
    source: SourceResult,
    target: TargetResult,
    guest: AnyGuest,
}

/// Carries it out, over a network that `meddle` has in its hand, beside the storage directory.
fn attempt(case: Case, meddle: impl FnOnce(&Path, &FaultProxy) + Send) -> End {
    let root = tempfile::tempdir().unwrap();
    let any: Address = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&any).unwrap();
    let proxy = FaultProxy::start(&any, listener.address(), Vec::new()).unwrap();
    let guest = AnyGuest::create(config()).unwrap();
    guest.resume().unwrap();
    let hosts = hosts();
    let files = |host: &str| Files::new(hosts.path().join(host));
    let admission = case.secured.then(|| Admission::new(files("b")));
    let options = SourceOptions {
        to: proxy.address().clone(),
        tls: case.secured.then(|| (files("a"), "b".parse().unwrap())),
        strategy: Strategy::parse(case.strategy).unwrap(),
        goal: None,
        bandwidth: case.bandwidth.map(BytesPerSec),
        storage: Some(root.path().into()),
        storage_bandwidth: None,
        push_order: Vec::new(),
        record_order: None,
        downtime: Duration::from_millis(300),
        max_rounds: 5,
        min_round: Duration::from_millis(50),
        learning: None,
        network_timeout: Duration::from_secs(20),
        hint_timeout: Duration::ZERO,
        verify: case.verify,
        checksum: true,
    };
    let (cancel, (to, incoming)) = (Cancel::new(), mpsc::sync_channel(WISHES_MAX));
    let (source, target) = std::thread::scope(|scope| {
        let _ended = Raise(&cancel);
        scope.spawn(|| {
            accept(&listener, admission.as_ref(), &cancel, &to, &|rejected| {
                eprintln!("{}", rejected.line)
            });
        });
        scope.spawn(|| meddle(root.path(), &proxy));
        let sending = scope.spawn(|| {
            let run = SourceRun {
                guest: &guest,
                vm: VmId(9),
                session: SessionId(11),
                options: &options,
                recorder: &mut Records(case.signed[0]),
                handle: &SourceHandle::default(),
                progress: &mut |_| {},
            };
            run.run().unwrap()
        });
        let Ok(Incoming::Hello(link, hello)) = incoming.recv_timeout(PATIENCE) else {
            panic!("nobody asks");
        };
        let session = link.trusted().and_then(Trusted::session).cloned();
        let seal = match case.target {
            Key::OfTheSession => session.as_deref().map(super::seal_key),
            Key::Another => Some(SealKey::new([2; 32])),
            Key::Nothing => None,
        };
        let peer = peer_of(link.receiver.stream());
        let run = TargetRun {
            protocol: agree_on_version(&hello.get()).unwrap(),
            hello,
            link,
            incoming: &incoming,
            populate: false,
            tracking: Tracking::Bitmap,
            storage: Some(root.path().into()),
            seal,
            peer,
            bandwidth: None,
            recorder: &mut Records(case.signed[1]),
            handle: &TargetHandle::default(),
            running: &|_: &Arc<AnyGuest>| {},
        };
        let target = run.run();
        (sending.join().unwrap(), target)
    });
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "something is left");
    End { source, target, guest }
}

/// The same; the guest must be whole at the target in the end.
fn migrate(case: Case, meddle: impl FnOnce(&Path, &FaultProxy) + Send) -> SourceResult {
    let End { source, target, .. } = attempt(case, meddle);
    assert_eq!(source.outcome, SourceOutcome::Completed, "{:?}", source.trouble);
    assert!(matches!(target.outcome, TargetOutcome::Completed { .. }));
    let verified = source.target.and_then(|report| report.verified);
    // Without a network nobody can compare.
    assert!(verified.is_none_or(|verified| verified == (PAGES, 0)), "{verified:?}");
    assert_eq!(ended(&target.guest.expect("it runs there")), undisturbed());
    source
}

/// Waits until the session's folder has this file, and the file all that it will have.
fn appears(storage: &Path, name: &str) -> PathBuf {
    let until = Instant::now() + PATIENCE;
    loop {
        let folders = std::fs::read_dir(storage).unwrap().flatten();
        if let Some(found) = folders
            .map(|folder| folder.path().join(name))
            .find(|path| path.exists())
        {
            return found;
        }
        assert!(Instant::now() < until, "{name} never appears");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_static_copy_comes_sealed() {
    for (secured, version) in [(true, 2), (false, 1)] {
        let case = Case {
            bandwidth: Some(8_000_000),
            secured,
            ..Case::right("par-migrate")
        };
        let result = migrate(case, |storage, _| {
            let mut start = [0; 8];
            let path = appears(storage, "static-000000.segment");
            // It may be removed already; then another run sees it.
            if let Ok(mut file) = std::fs::File::open(path) {
                std::io::Read::read_exact(&mut file, &mut start).unwrap();
                assert_eq!(start[7], version);
            }
        });
        assert!(result.storage_bytes > MEMORY.0 / 4, "{}", result.storage_bytes);
        assert!(result.warnings.is_empty(), "{:?}", result.warnings);
    }
}

/// Whatever the directory has that is not this session's, the pages come over the network.
#[test]
fn a_static_copy_of_another_secret_is_none() {
    for (secured, target) in [(true, Key::Another), (true, Key::Nothing), (false, Key::Another)] {
        let case = Case {
            secured,
            target,
            ..Case::right("par-migrate")
        };
        let result = migrate(case, |_, _| {});
        assert!(
            result.warnings.iter().any(|warning| warning.contains("did not merge")),
            "{:?}",
            result.warnings
        );
    }
}

/// What is missing when the network goes comes from the directory, and what somebody has altered there over a network that is back.
#[test]
fn missing_pages_come_sealed_and_altered_ones_over_the_network() {
    for altered in [false, true] {
        let case = Case {
            // Most of it is left when everything is written to the directory.
            bandwidth: Some(1_000_000),
            verify: altered,
            ..Case::right("postcopy,cut=pbdata")
        };
        let result = migrate(case, |storage, proxy| {
            let path = appears(storage, "pbdata-000000.segment");
            if altered {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            } else {
                proxy.refuse(true);
            }
            proxy.cut();
        });
        assert_eq!(result.mode, Some(Mode::PostCopy));
        let report = result.target.expect("it reported");
        assert!(report.stored > 0, "{report:?}");
    }
}

/// Neither side goes on without the signature of the other: the source does not give the guest up, and takes it back from a target that
/// does not take it.
#[test]
fn a_hand_over_that_one_side_does_not_sign_is_none() {
    let undisturbed = undisturbed();
    let wrongly: &[u8] = &[2];
    for (strategy, signed) in [
        ("precopy", [GOOD, wrongly]),
        ("postcopy", [wrongly, GOOD]),
        ("postcopy", [GOOD, &[]]),
        ("precopy", [&[], GOOD]),
    ] {
        let case = Case {
            signed,
            ..Case::right(strategy)
        };
        let End { source, target, guest } = attempt(case, |_, _| {});
        let is_aborted = matches!(source.outcome, SourceOutcome::Aborted { .. });
        assert!(is_aborted, "{strategy} {signed:?}: {:?}", source.outcome);
        let trouble = [source.trouble, target.trouble].into_iter().flatten();
        let trouble: Vec<String> = trouble.collect();
        assert!(
            trouble.iter().any(|words| words.contains("no good signature")),
            "{trouble:?}"
        );
        assert!(target.guest.is_none(), "{strategy} {signed:?}: it runs there, too");
        assert_eq!(ended(&guest), undisturbed);
    }
}
