//! A QEMU that somebody else started: found, asked, and made to keep its dirty log for a while.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use dunlin::qemu::QmpError;
use dunlin::trace::foreign::{DirtyLogging, ForeignError, Qmp, Vmm};
use dunlin_core::units::Pages;
use dunlin_tests::{Capability, require};

const PATIENCE: Duration = Duration::from_secs(60);

/// A QEMU that runs its firmware; ended with this.
struct Qemu {
    child: Child,
    folder: tempfile::TempDir,
}

impl Qemu {
    fn start(accelerator: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", accelerator, "-m", "64", "-display", "none", "-nodefaults"])
            .args(["-name", "foreign,debug-threads=on", "-qmp"])
            .arg(format!("unix:{},server,nowait", socket.display()))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("qmp")
    }

    /// It takes a while until it listens.
    fn connect(&self) -> Qmp {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Qmp::connect(&self.socket()) {
                Ok(qmp) => return qmp,
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_foreign_guest_is_found_by_its_process_and_by_its_socket() {
    if !require(Capability::Kvm) || !require(Capability::Qemu) {
        return;
    }
    let qemu = Qemu::start("kvm");
    let mut qmp = qemu.connect();
    assert_eq!(qmp.process(), qemu.child.id());
    let found = Vmm::find(qemu.child.id()).unwrap();
    assert_eq!((found.machines, found.vcpus), (1, 1), "{found:?}");
    assert_eq!(found.threads, qmp.vcpus().unwrap());
    let memory = qmp.memory().unwrap();
    let pages: u64 = memory.iter().map(|run| run.count.0).sum();
    // The firmware takes some of it for itself and for ROM.
    assert!((16_000..=16_384).contains(&pages), "{memory:?}");
    assert!(memory.iter().all(|run| run.count > Pages(0)) && memory.is_sorted_by_key(|run| run.first));
}

#[test]
fn the_dirty_log_is_on_for_a_recording_and_then_off() {
    if !require(Capability::Kvm) || !require(Capability::Qemu) {
        return;
    }
    let qemu = Qemu::start("kvm");
    let logging = DirtyLogging::start(qemu.connect(), 1).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut begun = logging.begun().unwrap();
    assert_eq!(begun.len(), 1);
    while logging.measured().len() < 2 {
        assert!(Instant::now() < deadline, "no window ends");
        sleep(Duration::from_millis(50));
        begun.extend(logging.begun().unwrap());
    }
    assert!(begun.len() >= 2 && begun.is_sorted(), "{begun:?}");
    drop(logging);
    // QEMU serves one client at a time, and starts no second measurement beside another one.
    let again = DirtyLogging::start(qemu.connect(), 1).unwrap();
    drop(qemu);
    let deadline = Instant::now() + PATIENCE;
    let broken = loop {
        assert!(Instant::now() < deadline, "QEMU has ended, and nobody says so");
        match again.begun() {
            Ok(_) => sleep(Duration::from_millis(20)),
            Err(error) => break error,
        }
    };
    assert!(matches!(broken, ForeignError::Qmp(QmpError::Broken { .. })), "{broken}");
}

/// It would end QEMU.
#[test]
fn no_dirty_log_is_asked_of_a_guest_without_kvm() {
    if !require(Capability::Qemu) {
        return;
    }
    let mut qemu = Qemu::start("tcg");
    let refused = DirtyLogging::start(qemu.connect(), 1).unwrap_err();
    assert!(matches!(refused, ForeignError::NoKvm), "{refused}");
    assert!(qemu.connect().memory().is_ok());
    assert!(qemu.child.try_wait().unwrap().is_none());
}

#[test]
fn what_is_no_qmp_socket_is_refused_by_name() {
    let missing = Qmp::connect(Path::new("/nowhere/qmp")).unwrap_err();
    assert!(
        matches!(missing, ForeignError::Qmp(QmpError::Connect { .. })),
        "{missing}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let speaker = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"220 hello\n").unwrap();
    });
    let other = Qmp::connect(&path).unwrap_err();
    speaker.join().unwrap();
    assert!(matches!(other, ForeignError::Qmp(QmpError::NoQmp(_))), "{other}");
}
