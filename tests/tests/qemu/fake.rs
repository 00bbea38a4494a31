//! What no QEMU of this machine's shows: other versions, and things that are no QEMU.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::ensure;
use dunlin_tests::scene::Scene;
use serde_json::{Value, json};

use super::pair::PATIENCE;

/// Somebody at a socket who greets so, and answers each command as he is told.
fn somebody(
    folder: &Path,
    name: &str,
    greeting: String,
    answer: impl Fn(&str) -> Value + Send + Clone + 'static,
) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    let listener = UnixListener::bind(&path)?;
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (greeting, answer) = (greeting.clone(), answer.clone());
            thread::spawn(move || drop(serve(client, &greeting, answer)));
        }
    });
    Ok(path)
}

fn serve(mut client: UnixStream, greeting: &str, answer: impl Fn(&str) -> Value) -> anyhow::Result<()> {
    let reader = BufReader::new(client.try_clone()?);
    client.write_all(greeting.as_bytes())?;
    for line in reader.lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let name = command["execute"].as_str().unwrap_or_default();
        // Before each answer something that nobody has asked for.
        let event = json!({ "event": "SOMETHING_NEW", "data": { "x": [] }, "timestamp": {} });
        let mut said = answer(name);
        said["id"] = command["id"].clone();
        client.write_all(format!("{event}\n{{\"unknown\": 1}}\nno message at all\n{said}\n").as_bytes())?;
    }
    Ok(())
}

fn greeting(major: u32, minor: u32) -> String {
    let version = json!({ "qemu": { "major": major, "minor": minor, "micro": 0 }, "package": "" });
    format!("{}\n", json!({ "QMP": { "version": version, "capabilities": [] } }))
}

/// As a QEMU that waits for a guest, or has one.
fn answers(status: &'static str) -> impl Fn(&str) -> Value + Send + Clone + 'static {
    move |command| {
        let answer = match command {
            "query-status" => json!({ "running": status == "running", "status": status, "never": "heard" }),
            "query-cpus-fast" => json!([{ "cpu-index": 0, "qom-path": "/machine/cpu" }]),
            "query-migrate-capabilities" => json!([
                { "capability": "events", "state": false },
                { "capability": "postcopy-ram", "state": false },
            ]),
            "query-migrate-parameters" => json!({ "downtime-limit": 300 }),
            "qom-get" => json!("pc"),
            _ => json!({}),
        };
        json!({ "return": answer })
    }
}

fn migrate(scene: &Scene, source: &Path, target: &Path) -> anyhow::Result<String> {
    let [source, target] = [source, target].map(|path| path.display().to_string());
    let arguments = [
        "qemu",
        "migrate",
        "--source",
        &source,
        "--target",
        &target,
        "--to",
        "tcp:127.0.0.1:1",
    ];
    let finished = scene.dunlin(arguments)?.wait(PATIENCE)?;
    ensure!(finished.code == Some(2), "{finished}");
    Ok(finished.to_string())
}

#[test]
fn a_qemu_that_is_too_old_is_refused_by_its_version() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let source = somebody(scene.folder(), "old", greeting(6, 2), answers("running"))?;
    let target = somebody(scene.folder(), "new", greeting(10, 0), answers("inmigrate"))?;
    let said = migrate(&scene, &source, &target)?;
    ensure!(said.contains("the source is QEMU 6.2.0: 7.2.0 is the oldest"), "{said}");
    ensure!(!said.contains("the target is QEMU"), "{said}");
    Ok(())
}

#[test]
fn what_is_no_qemu_is_refused_by_what_it_says() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let target = somebody(scene.folder(), "target", greeting(7, 2), answers("inmigrate"))?;
    for (name, text, expected) in [
        ("text", "220 hello\n", "is no QMP (220 hello)"),
        ("json", "{\"hello\": 1}\n", "is no QMP"),
        (
            "monitor",
            "QEMU 7.2.0 monitor - type 'help'\r\n(qemu) \n",
            "human monitor",
        ),
    ] {
        let source = somebody(scene.folder(), name, text.into(), answers("running"))?;
        let said = migrate(&scene, &source, &target)?;
        ensure!(said.contains(expected), "{name}: {said}");
    }
    let missing = migrate(&scene, &scene.folder().join("missing"), &target)?;
    ensure!(
        missing.contains("No QEMU listens") && missing.contains("server=on"),
        "{missing}"
    );
    let silent = somebody(scene.folder(), "silent", String::new(), answers("running"))?;
    let said = migrate(&scene, &silent, &target)?;
    ensure!(said.contains("serves one client at a socket"), "{said}");
    Ok(())
}

/// States, events and fields that this program does not know pass by.
#[test]
fn what_is_not_known_is_borne() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let states = move |command: &str| match command {
        "query-migrate" => {
            let status = match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => "active",
                1 => "quantum-leap",
                _ => "completed",
            };
            json!({ "return": { "status": status, "ram": { "total": 4096, "page-size": 4096, "more": {} } } })
        }
        command => answers("postmigrate")(command),
    };
    let source = somebody(scene.folder(), "source", greeting(99, 0), states)?;
    let source = source.display().to_string();
    let finished = scene.dunlin(["qemu", "watch", "--source", &source])?.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    ensure!(finished.to_string().contains("quantum-leap"), "{finished}");
    Ok(())
}
