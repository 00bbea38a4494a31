//! What the processes that hold guests have given up, and that all of it that migrations need is left to them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, ensure};
use dunlin_tests::oracle::{expect_same_memory, expect_verified};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};

fn guest() -> GuestOptions {
    GuestOptions::new(Kind::best(), "uniform,rate=2000")
        .memory("16MiB")
        .with(["--fill", "random"])
}

fn field(host: &Host, file: &str, name: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{}/{file}", host.process.id());
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| format!("no {name} in {path}"))?.trim().to_owned())
}

/// The mask of capabilities is empty, or has `CAP_SYS_PTRACE` alone, where the host needs that for userfaultfd.
fn expect_few_rights(host: &Host) -> anyhow::Result<()> {
    let capabilities = u64::from_str_radix(&field(host, "status", "CapEff:")?, 16)?;
    ensure!(
        capabilities & !(1 << 19) == 0,
        "capabilities are left: {capabilities:x}"
    );
    ensure!(field(host, "status", "NoNewPrivs:")? == "1");
    ensure!(field(host, "status", "Seccomp:")? == "2", "no filter of system calls");
    let limit = field(host, "limits", "Max core file size")?;
    ensure!(limit.starts_with('1'), "it may dump: {limit}");
    // Threads have what the process has.
    for task in fs::read_dir(format!("/proc/{}/task", host.process.id()))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        ensure!(
            status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"),
            "{status}"
        );
    }
    Ok(())
}

#[test]
fn holders_of_guests_have_few_rights_and_migrations_need_no_more() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let (storage, first_state) = (scene.subfolder("storage")?, scene.subfolder("first-state")?);
    let second_state = scene.subfolder("second-state")?;
    let options = guest().steps(20_000);
    let mut source = scene.guest("vm", &options.clone().with(["--state", &first_state]))?;
    let first = scene.receiver("first", &["--state", &second_state, "--storage", &storage])?;
    let mut second = scene.receiver("second", &["--storage", &storage])?;
    for host in [&source, &first, &second] {
        expect_few_rights(host)?;
    }
    let both = ["--storage", &storage, "--verify"];
    expect_verified(&scene.migrate(&source, &first, "pa-hybrid", &both)?)?;
    source.moved_away()?;
    expect_verified(&scene.migrate(&first, &second, "postcopy", &["--verify"])?)?;
    expect_same_memory(&options, &second.final_report()?)
}

#[test]
fn guest_memory_is_left_out_of_dumps() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let host = scene.guest("vm", &guest())?;
    let maps = fs::read_to_string(format!("/proc/{}/smaps", host.process.id()))?;
    let (mut size, mut found) = (0, 0);
    for line in maps.lines() {
        if let Some(kib) = line.strip_prefix("Size:") {
            size = kib.trim().trim_end_matches(" kB").parse()?;
        }
        if let Some(flags) = line.strip_prefix("VmFlags:")
            && size == 16 * 1024
        {
            found += 1;
            ensure!(
                flags.split(' ').any(|flag| flag == "dd"),
                "a dump would have it: {flags}"
            );
        }
    }
    ensure!(found > 0, "no mapping of the guest's size: {maps}");
    Ok(())
}

#[test]
fn folders_that_nobody_named_are_refused_by_name() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    // Outside the folder of temporary files, wherever the checkout is, and writable for whoever runs this.
    let elsewhere = tempfile::Builder::new().prefix("dunlin-").tempdir_in("/var/tmp")?;
    let elsewhere = elsewhere.path().display().to_string();
    let source = scene.guest("vm", &guest())?;
    let receiver = scene.receiver("target", &["--storage", &elsewhere])?;
    let to = receiver.listening()?.to_owned();
    let storage = ["--storage", &elsewhere];
    let refused = scene
        .start_migration(&source, &to, "par-migrate", &storage)?
        .wait(PATIENCE)?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("--allow"),
        "it should say what to do: {refused}"
    );
    let allowed = scene.guest("allowed", &guest().with(["--allow", &elsewhere]))?;
    let report = scene.migrate(&allowed, &receiver, "par-migrate", &storage)?;
    ensure!(
        report["bytes"]["storage"].as_u64() > Some(0),
        "nothing went there: {report}"
    );
    Ok(())
}

#[test]
fn without_a_sandbox_all_rights_are_kept_and_that_is_said() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let host = scene.guest("vm", &guest().with(["--no-sandbox"]))?;
    ensure!(field(&host, "status", "Seccomp:")? == "0");
    ensure!(host.process.stderr().contains("keeps all its rights"));
    Ok(())
}

#[test]
fn another_user_controls_nothing_even_where_the_socket_is_open() -> anyhow::Result<()> {
    if !require(Capability::Root) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let host = scene.guest("vm", &guest())?;
    let mode = fs::metadata(&host.control)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    fs::set_permissions(scene.folder(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&host.control, fs::Permissions::from_mode(0o666))?;
    let program = scene.folder().join("dunlin-of-nobody");
    fs::copy(dunlin_tests::process::binary()?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&program)
        .args(["status", "--control"])
        .arg(&host.control)
        .output()
        .context("setpriv of util-linux")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.contains("user 65534 may not control this process"),
        "{said}"
    );
    Ok(())
}
