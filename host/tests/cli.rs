//! The command as a person or a script meets it: texts, exit codes, signals, pipes and terminals. The guest's side is
//! played by this test.

mod play;
mod reports;

use dunlin::{
    journal::{HandOver, Journal, Phase, Role},
    report::{MigrationReport, Outcome, Verification},
};
use dunlin_core::message::{SessionId, VmId};
use play::{Stage, dunlin, interrupt, json, on_terminal, run, until};
use std::{fs, io::Read, process::Stdio};

#[test]
fn wrong_usage_says_what_to_do() {
    let guest = "guest --control c --memory 32MiB --workload seq";
    let migrate = "migrate --control c --to host:1 --strategy precopy";
    let cases = [
        ("".into(), "Usage: dunlin <COMMAND>"),
        ("guest --control c --workload seq --memory 0".into(), "give it at least"),
        (
            "guest --control c --workload seq --memory 16EiB".into(),
            "more than 16 EiB",
        ),
        ("guest --control c --workload seq --memory 64PiB".into(), "at most"),
        (
            "guest --control c --workload seq --memory lots".into(),
            "512MiB for example",
        ),
        (format!("{guest} --vcpus 5"), "5 is not in 1..=4"),
        (format!("{guest} --vcpus 0"), "0 is not in 1..=4"),
        (format!("{guest} --name ../etc"), "letters, digits, dots"),
        (format!("{guest} --dump-ram f"), "--steps"),
        (format!("{guest} --tracking radar"), "possible values: bitmap, ring"),
        (
            "guest --control c --memory 32MiB --workload sequential".into(),
            "unknown pattern: use idle",
        ),
        ("receive --control c --listen :7000".into(), "write 0.0.0.0:7000"),
        (
            "receive --control c --listen host:7000 --max-memory 0".into(),
            "write a larger size",
        ),
        (
            "receive --control c --listen host:7000 --storage /nowhere/d".into(),
            "make or mount it first",
        ),
        ("migrate --control c --to host:1 --strategy teleport".into(), "precopy"),
        (format!("{migrate} --to nowhere"), "cannot be used multiple times"),
        (format!("{migrate} --bandwidth 0"), "no limit"),
        (format!("{migrate} --downtime 300"), "300ms for example"),
        (format!("{migrate} --downtime 0s"), "at least 1ms"),
        (format!("{migrate} --max-rounds 0"), "0 is not in 1.."),
        (format!("{migrate} --goal fast"), "downtime<300ms"),
        ("status".into(), "--control <SOCK>|--state <DIR>"),
        ("status --control c --state d".into(), "cannot be used with"),
        ("resolve --control c".into(), "--run-here|--give-up"),
        ("resolve --control c --run-here".into(), "--other-side-is-dead"),
        (
            "resolve --control c --run-here --give-up --other-side-is-dead".into(),
            "cannot be used with",
        ),
        ("simulate".into(), "--workload <SPEC>"),
        ("simulate --plan p --memory 1GiB".into(), "cannot be used with"),
        (
            "simulate --workload seq --memory 8MiB --bandwidth 9MB/s --strategy precopy --goal time<9s".into(),
            "write --strategy auto",
        ),
        ("record".into(), "--control <SOCK>"),
        ("profile".into(), "--control <SOCK>"),
        ("report".into(), "<FILE>..."),
        ("predict".into(), "--trace <FILE.dtrace>"),
    ];
    for (arguments, hint) in cases {
        let ran = run(arguments.split_whitespace());
        assert_eq!(ran.code, Some(2), "{arguments}: {ran:?}");
        assert!(ran.stderr.contains(hint), "{arguments}: {ran:?}");
        assert_eq!(ran.stdout, "", "{arguments}");
    }
}

#[test]
fn help_and_version_are_results() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["migrate", "--help"],
        &["help", "guest"],
    ] {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(!ran.stdout.is_empty());
    }
    let help = run(["--help"]).stdout;
    assert!(
        help.contains("migrate") && help.contains("audit "),
        "only what there is: {help}"
    );
}

#[test]
fn a_process_that_is_not_there_is_named() {
    let stage = Stage::empty();
    for arguments in [
        "status",
        "cancel",
        "migrate --to 127.0.0.1:1 --strategy precopy",
        "resolve --give-up",
    ] {
        let mut words: Vec<_> = arguments.split_whitespace().collect();
        words.extend(["--control", stage.path()]);
        let ran = run(&words);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(
            ran.stderr.contains(stage.path()) && ran.stderr.contains("start `dunlin guest`"),
            "{ran:?}"
        );
    }
    let long = "x".repeat(200);
    let ran = run(["status", "--control", &long]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("too long for a socket"), "{ran:?}");
}

#[test]
fn status_cancel_and_resolve_print_the_status() {
    let stage = Stage::new();
    for arguments in [
        &["status"][..],
        &["cancel"],
        &["resolve", "--run-here", "--other-side-is-dead"],
    ] {
        let ran = run([arguments, &["--control", stage.path()]].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "web  running\n"), "{ran:?}");
        let ran = run([arguments, &["--json", "--control", stage.path()]].concat());
        let status = json(&ran);
        assert_eq!(
            (&status["schema"], &status["state"]),
            (&"dunlin.status.v1".into(), &"running".into())
        );
    }
    let ran = run(["resolve", "--give-up", "--control", stage.path()]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (Some(2), "error: nothing to give up: the VM runs here\n")
    );
}

#[test]
fn the_outcome_decides_the_exit_code() {
    let differs = MigrationReport {
        verified: Some(Verification {
            pages: 8,
            mismatches: 1,
            time_us: 0,
        }),
        ..MigrationReport::new("precopy", Outcome::Completed)
    };
    let forced = MigrationReport {
        goal_met: false,
        ..MigrationReport::new("precopy", Outcome::Completed)
    };
    for (report, code) in [
        (MigrationReport::new("precopy", Outcome::Completed), 0),
        (forced, 1),
        (MigrationReport::new("precopy", Outcome::Failed), 1),
        (differs, 1),
    ] {
        let stage = Stage::new();
        stage.finish(Ok(report.clone()));
        let ran = stage.migrate(&["--json"]).wait();
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert_eq!(serde_json::from_value::<MigrationReport>(json(&ran)).unwrap(), report);
        assert_eq!(ran.stdout.lines().count(), 1);
        assert!(ran.stderr.contains("pre-copy round 2 · 1,000 pages"), "{ran:?}");

        let stage = Stage::new();
        stage.finish(Ok(report));
        let ran = stage.migrate(&[]).wait();
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.stdout.starts_with("Migration by precopy "), "{ran:?}");
    }
    let stage = Stage::new();
    stage.finish(Err("nobody listens there: start `dunlin receive` first"));
    let ran = stage.migrate(&["--json"]).wait();
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert_eq!(
        ran.stderr.lines().last(),
        Some("error: nobody listens there: start `dunlin receive` first")
    );
}

#[test]
fn an_interrupt_cancels() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let stage = Stage::new();
        let client = stage.migrate(&["--json"]);
        stage.wait_until_migrating();
        interrupt(&client, signal);
        let ran = client.wait();
        assert_eq!(
            (ran.code, json(&ran)["outcome"].as_str()),
            (Some(1), Some("cancelled")),
            "{ran:?}"
        );
        assert!(ran.stderr.contains("cancelling"), "{ran:?}");
    }
}

#[test]
fn a_second_interrupt_leaves_the_migration_to_itself() {
    let stage = Stage::that_cannot_cancel();
    let mut client = stage.migrate(&[]);
    stage.wait_until_migrating();
    interrupt(&client, rustix::process::Signal::INT);
    client.wait_for_message("cancelling");
    interrupt(&client, rustix::process::Signal::INT);
    let ran = client.wait();
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.stderr.contains("left to itself"), "{ran:?}");
    assert!(stage.is_migrating());
}

#[test]
fn a_killed_client_does_not_matter() {
    let stage = Stage::new();
    let client = stage.migrate(&[]);
    stage.wait_until_migrating();
    interrupt(&client, rustix::process::Signal::KILL);
    assert_eq!(client.wait().code, None);
    assert!(stage.is_migrating());
    stage.finish(Ok(MigrationReport::new("precopy", Outcome::Completed)));
    until("the migration has ended", || !stage.is_migrating());
}

#[test]
fn a_process_that_dies_during_a_migration_is_missed() {
    let stage = Stage::new();
    let client = stage.migrate(&[]);
    stage.wait_until_migrating();
    stage.vanish();
    let ran = client.wait();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("ended before it answered"), "{ran:?}");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let stage = Stage::new();
    for arguments in [
        &["doctor"][..],
        &["status", "--json", "--control", stage.path()],
        &["--help"],
    ] {
        let mut child = dunlin(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
    let mut full = dunlin(["status", "--control", stage.path()]);
    let full = full
        .stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped());
    let ran = full.output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert!(
        String::from_utf8(ran.stderr)
            .unwrap()
            .contains("cannot write the result")
    );
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let stage = Stage::new();
    let arguments = ["status", "--control", stage.path()];
    assert!(!run(arguments).stdout.contains('\x1b'), "not into a pipe");
    assert!(on_terminal(dunlin(arguments).env("TERM", "xterm")).contains("\x1b[32mrunning"));
    assert!(!on_terminal(dunlin(arguments).env("TERM", "xterm").env("NO_COLOR", "1")).contains('\x1b'));
    assert!(!on_terminal(dunlin(arguments).env("TERM", "dumb")).contains('\x1b'));
}

#[test]
fn a_terminal_gets_a_bar() {
    let stage = Stage::new();
    stage.finish(Ok(MigrationReport::new("precopy", Outcome::Completed)));
    let seen = on_terminal(&mut stage.command(&[]));
    assert!(
        seen.contains('█') && seen.contains("pre-copy round 2 · 1,000 pages (3.91 MiB) left"),
        "{seen:?}"
    );
    assert!(seen.contains("Migration by"), "{seen:?}");
}

fn record(role: Role, phase: Phase, control: Option<&str>) -> HandOver {
    let control = control.map(str::to_owned);
    HandOver {
        vm_id: VmId(1),
        session: SessionId(2),
        role,
        phase,
        peer: Some("host:7".into()),
        control,
    }
}

#[test]
fn records_speak_for_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let ran = run(["status", "--state", state]);
    assert_eq!(ran.code, Some(2), "no records: {ran:?}");

    Journal::open(dir.path(), "lost")
        .unwrap()
        .write(record(Role::Source, Phase::GivenUp, None))
        .unwrap();
    let ran = run(["status", "--state", state, "--json"]);
    let status = json(&ran);
    assert_eq!(
        (ran.code, &status["state"], &status["name"]),
        (Some(0), &"handover-unknown".into(), &"lost".into())
    );
    assert!(status["reason"].as_str().unwrap().contains("at the target"));

    let ran = run(["resolve", "--state", state, "--run-here", "--other-side-is-dead"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("nothing is left to run here"), "{ran:?}");
    let ran = run(["resolve", "--state", state, "--give-up", "--json"]);
    assert_eq!((ran.code, &json(&ran)["state"]), (Some(0), &"moved-away".into()));

    fs::write(dir.path().join("broken.record"), "noise").unwrap();
    let ran = run(["status", "--state", state, "--json"]);
    assert_eq!(
        (ran.code, ran.stdout.lines().count()),
        (Some(2), 1),
        "the good one is shown all the same: {ran:?}"
    );
    assert!(ran.stderr.contains("broken.record holds no readable record"), "{ran:?}");
    let ran = run(["status", "--state", state, "--name", "lost"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let ran = run(["resolve", "--state", state, "--give-up"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--name"), "{ran:?}");
}

#[test]
fn records_lead_to_the_living() {
    let stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let mut journal = Journal::open(dir.path(), "web").unwrap();
    journal.write(record(Role::Source, Phase::PostCopy, None)).unwrap();
    let status = json(&run(["status", "--state", state, "--json"]));
    assert_eq!(
        (&status["state"], &status["pid"]),
        (&"post-copy".into(), &std::process::id().into())
    );
    let ran = run(["resolve", "--state", state, "--give-up"]);
    let holder = format!("process {} holds \"web\"", std::process::id());
    assert!(
        ran.code == Some(2) && ran.stderr.contains(&holder) && ran.stderr.contains("--control"),
        "{ran:?}"
    );

    journal
        .write(record(Role::Source, Phase::PostCopy, Some(stage.path())))
        .unwrap();
    let status = json(&run(["status", "--state", state, "--json"]));
    assert_eq!(status["state"], "running", "the process itself was asked");
    let ran = run(["resolve", "--state", state, "--give-up"]);
    assert_eq!(ran.stderr, "error: nothing to give up: the VM runs here\n");
}

#[test]
fn the_doctor_names_its_findings() {
    let ran = run(["doctor", "--json"]);
    let report = json(&ran);
    assert_eq!(report["schema"], "dunlin.doctor.v1");
    let guests = report["guests"].as_array().unwrap();
    assert_eq!(ran.code, Some(if guests.is_empty() { 1 } else { 0 }));
    let probes = report["probes"].as_array().unwrap();
    for name in [
        "/dev/kvm",
        "userfaultfd",
        "PAGEMAP_SCAN",
        "lockdown",
        "state directory",
        "QEMU",
    ] {
        assert!(probes.iter().any(|probe| probe["name"] == name), "{name}");
    }
    let ran = run(["doctor", "--state", "/no/such/directory"]);
    assert!(ran.stdout.contains("missing  state directory"), "{ran:?}");
}
