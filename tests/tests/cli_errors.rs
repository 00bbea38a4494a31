//! Wrong usage and wrong environment: an error that says what to do, exit code 2, nothing on stdout, never a panic.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use dunlin_tests::capability::report_skip;
use dunlin_tests::process::{self, Finished};
use dunlin_tests::scene::{GuestOptions, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};

const GUEST: [&str; 9] = [
    "guest",
    "--kind",
    "thread",
    "--workload",
    "idle",
    "--seed",
    "1",
    "--vcpus",
    "1",
];

fn run(scene: &Scene, args: &[&str]) -> Finished {
    let mut process = scene.dunlin(args).expect("dunlin starts");
    process.wait(PATIENCE).expect("wrong usage ends at once")
}

/// Checks that a run ended as a usage error whose message contains one of `names` each.
fn expect_usage_error(what: &str, finished: &Finished, names: &[&str]) {
    assert_eq!(finished.code, Some(2), "{what}: {finished}");
    assert_eq!(finished.lines, [""; 0], "{what}: an error is no result: {finished}");
    assert!(!finished.stderr.contains("panicked"), "{what}: {finished}");
    for name in names {
        assert!(
            finished.stderr.contains(name),
            "{what}: the message should name `{name}`: {finished}"
        );
    }
}

#[test]
fn values_nobody_can_mean() {
    let scene = Scene::new().expect("a folder");
    let control = scene.control("guest").to_string_lossy().into_owned();
    let table: &[(&[&str], &[&str])] = &[
        (&["--memory", "0"], &["memory"]),
        (&["--memory", "18446744073709551616"], &["memory"]),
        (&["--memory", "99999999999999999999GiB"], &["memory"]),
        (&["--memory", "16EiB"], &["memory"]),
        (&["--memory", "64PiB"], &["memory"]),
        (&["--memory", "4097"], &["memory"]),
        (&["--memory", "much"], &["memory"]),
        (&["--memory", "64KiB"], &["memory"]),
        (&["--memory", "32MiB", "--vcpus", "0"], &["vcpus"]),
        (&["--memory", "32MiB", "--vcpus", "99"], &["vcpus"]),
        (&["--memory", "32MiB", "--workload", "sequential"], &["workload"]),
        (&["--memory", "32MiB", "--workload", "zipf:9"], &["workload"]),
        (&["--memory", "32MiB", "--workload", "seq,ws=1GiB"], &["working set"]),
        (&["--memory", "32MiB", "--workload", "phases:(seq)*0"], &["workload"]),
        (&["--memory", "32MiB", "--fill", "ones"], &["fill"]),
        (&["--memory", "32MiB", "--kind", "xen"], &["kind"]),
        (&["--memory", "32MiB", "--steps", "-1"], &["steps"]),
    ];
    for (arguments, names) in table {
        // The last value of an option wins nowhere: each option is given once.
        let given = |option: &str| arguments.contains(&option);
        let defaults = GUEST[1..].chunks(2).filter(|pair| !given(pair[0])).flatten();
        let args: Vec<&str> = ["guest"].iter().chain(defaults).chain(*arguments).copied().collect();
        let finished = run(&scene, &[args.as_slice(), &["--control", &control]].concat());
        expect_usage_error(&arguments.join(" "), &finished, names);
    }
}

#[test]
fn commands_that_lack_something() {
    let scene = Scene::new().expect("a folder");
    let nobody = scene.control("nobody").to_string_lossy().into_owned();
    let state = scene.folder().join("no-such-folder").to_string_lossy().into_owned();
    let table: &[(&[&str], &[&str])] = &[
        (&[], &["Usage"]),
        (&["migrat"], &["migrate"]),
        (&["guest"], &["--control"]),
        (&["receive"], &["--listen"]),
        (&["migrate", "--to", "127.0.0.1:1"], &["--control"]),
        (&["status"], &["--control"]),
        (&["status", "--control", &nobody], &[&nobody]),
        (&["cancel", "--control", &nobody], &[&nobody]),
        (&["status", "--state", &state], &["no-such-folder"]),
        (&["resolve", "--control", &nobody], &["--give-up"]),
        (
            &["resolve", "--control", &nobody, "--run-here"],
            &["--other-side-is-dead"],
        ),
        (
            &[
                "migrate",
                "--control",
                &nobody,
                "--to",
                "127.0.0.1:1",
                "--strategy",
                "precopy",
            ],
            &[&nobody],
        ),
    ];
    for (args, names) in table {
        expect_usage_error(&args.join(" "), &run(&scene, args), names);
    }
}

#[test]
fn migrations_nobody_can_mean() {
    let scene = Scene::new().expect("a folder");
    let guest = scene
        .guest("guest", &GuestOptions::new(Kind::Thread, "idle"))
        .expect("a guest");
    let control = guest.control.to_string_lossy().into_owned();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let nobody = free.local_addr().expect("bound").to_string();
    drop(free);
    let table: &[(&[&str], &[&str])] = &[
        (&["--strategy", "teleport"], &["teleport", "precopy"]),
        (&["--strategy", "hybrid"], &["hybrid"]),
        (&["--strategy", "pa-hybrid"], &["first=parallel", "--storage"]),
        (&["--strategy", "postcopy,cut=pbdata"], &["cut=pbdata", "--storage"]),
        (&["--strategy", "par-migrate"], &["first=parallel", "--storage"]),
        (
            &["--strategy", "auto", "--bandwidth", "1MB/s", "--goal", "speed<3"],
            &["speed", "downtime", "stall"],
        ),
        (&["--strategy", "auto"], &["--bandwidth"]),
        (&["--strategy", "hybrid:1", "--goal", "time<9s"], &["--goal", "auto"]),
        (&["--strategy", "hybrid:1", "--profile", "2s"], &["--profile", "filter"]),
        (
            &["--strategy", "markov-sdf:0.5", "--profile", "long"],
            &["profile", "300ms"],
        ),
        (&["--strategy", "as-hybrid,clear=late"], &["clear=late", "clear=round"]),
        (&["--strategy", "precopy", "--bandwidth", "0"], &["bandwidth"]),
        (&["--strategy", "precopy", "--bandwidth", "fast"], &["bandwidth"]),
        (&["--strategy", "precopy", "--downtime", "-5ms"], &["downtime"]),
        (&["--strategy", "precopy", "--max-rounds", "0"], &["max-rounds"]),
        (&["--strategy", "precopy", "--to", "nonsense"], &["nonsense"]),
        (&["--strategy", "precopy", "--to", "127.0.0.1:99999"], &["99999"]),
    ];
    for (arguments, names) in table {
        let mut args = vec!["migrate", "--control", &control];
        args.extend(*arguments);
        if !arguments.contains(&"--to") {
            args.extend(["--to", &nobody]);
        }
        expect_usage_error(&arguments.join(" "), &run(&scene, &args), names);
    }
    // Nobody listens there: that is a failed migration, and the guest does not mind.
    let args = [
        "migrate",
        "--control",
        &control,
        "--to",
        &nobody,
        "--strategy",
        "precopy",
    ];
    let finished = run(&scene, &args);
    assert_eq!(finished.code, Some(1), "{finished}");
    assert!(finished.to_string().contains(&nobody), "{finished}");
    let status = scene.status(&guest).expect("the guest still answers");
    assert_eq!(status["state"], "running");
}

#[test]
fn a_port_in_use() {
    let scene = Scene::new().expect("a folder");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let control = scene.control("target").to_string_lossy().into_owned();
    let finished = run(&scene, &["receive", "--listen", &address, "--control", &control]);
    expect_usage_error("a port in use", &finished, &[&address]);
}

#[test]
fn a_control_socket_that_somebody_serves() {
    let scene = Scene::new().expect("a folder");
    let first = scene.receiver("target", &[]).expect("a receiver");
    let control = first.control.to_string_lossy().into_owned();
    let finished = run(&scene, &["receive", "--listen", "127.0.0.1:0", "--control", &control]);
    expect_usage_error("a served control socket", &finished, &[&control]);
    assert_eq!(scene.status(&first).expect("undisturbed")["state"], "waiting");
}

#[test]
fn a_control_socket_that_nobody_serves_any_more() {
    let scene = Scene::new().expect("a folder");
    let control = scene.control("target");
    drop(UnixListener::bind(&control).expect("a socket file"));
    assert!(control.exists(), "the file outlives its listener");
    let control_word = control.to_string_lossy().into_owned();
    let args = [
        "receive",
        "--listen",
        "127.0.0.1:0",
        "--control",
        &control_word,
        "--json",
    ];
    let mut process = scene.dunlin(args).expect("starts");
    match process.next_json(PATIENCE) {
        // Taken over, since nobody serves it.
        Ok(line) => assert_eq!(line["schema"], "dunlin.receive.v1"),
        Err(_) => {
            let finished = process.wait(PATIENCE).expect("ends");
            expect_usage_error("a stale control socket", &finished, &[&control_word, "remove"]);
        }
    }
}

#[test]
fn a_control_path_that_is_another_file() {
    let scene = Scene::new().expect("a folder");
    let control = scene.control("target");
    fs::write(&control, "precious").expect("written");
    let control_word = control.to_string_lossy().into_owned();
    let finished = run(
        &scene,
        &["receive", "--listen", "127.0.0.1:0", "--control", &control_word],
    );
    expect_usage_error("a control path that is a file", &finished, &[&control_word]);
    assert_eq!(fs::read_to_string(&control).expect("still there"), "precious");
}

#[test]
fn a_locked_state_directory() {
    let scene = Scene::new().expect("a folder");
    let state = scene.folder().join("state").to_string_lossy().into_owned();
    fs::create_dir(&state).expect("made");
    let options = GuestOptions::new(Kind::Thread, "idle").with(["--state", &state]);
    let _first = scene.guest("first", &options).expect("a guest");
    let control = scene.control("second").to_string_lossy().into_owned();
    let mut args = options.args();
    // The same name, so the same record.
    args.extend(["--name", "first", "--control", &control].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    expect_usage_error("a locked state directory", &run(&scene, &args), &[&state]);
}

/// Runs `dunlin` as the user nobody, who may do little.
fn run_as_nobody(scene: &Scene, args: &[&str]) -> Finished {
    fs::set_permissions(scene.folder(), fs::Permissions::from_mode(0o777)).expect("our own folder");
    // Where the build lies others may not look, so nobody gets a copy.
    let program = scene.folder().join("dunlin");
    fs::copy(process::binary().expect("built"), &program).expect("copied");
    let program = program.to_string_lossy().into_owned();
    let drop_privileges = ["--reuid", "65534", "--regid", "65534", "--clear-groups", &program];
    let args: Vec<&str> = drop_privileges.iter().chain(args).copied().collect();
    let mut process = process::Dunlin::start_program("setpriv".as_ref(), scene.folder(), args).expect("starts");
    process.wait(Duration::from_secs(60)).expect("ends at once")
}

#[test]
fn no_permission_for_kvm() {
    if !require(Capability::Root) || !require(Capability::Kvm) {
        return;
    }
    let open_to_all = fs::metadata("/dev/kvm").is_ok_and(|device| device.permissions().mode() & 0o006 == 0o006);
    if open_to_all {
        report_skip("no_permission_for_kvm", "everybody may use /dev/kvm on this machine");
        return;
    }
    let scene = Scene::new().expect("a folder");
    let control = scene.control("guest").to_string_lossy().into_owned();
    let args = [
        "guest",
        "--kind",
        "kvm",
        "--memory",
        "32MiB",
        "--vcpus",
        "1",
        "--workload",
        "idle",
        "--seed",
        "1",
    ];
    let finished = run_as_nobody(&scene, &[&args[..], &["--control", &control]].concat());
    expect_usage_error("no permission for /dev/kvm", &finished, &["/dev/kvm"]);
}

#[test]
fn doctor_tells_nobody_what_is_missing() {
    if !require(Capability::Root) {
        return;
    }
    let scene = Scene::new().expect("a folder");
    let finished = run_as_nobody(&scene, &["doctor", "--json"]);
    let report = finished.json().expect("one object");
    assert!(report["schema"].is_string(), "{finished}");
}
