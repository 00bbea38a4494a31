//! Somebody else's migration is followed, and told so that rules can be tried on it.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::pair::{PATIENCE, Pair, can_run, endless};

#[test]
fn somebody_else_s_migration_is_a_log_for_replay() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let socket = pair.sockets[0].display().to_string();
    let mut watch = pair.scene.dunlin(["qemu", "watch", "--source", &socket, "--json"])?;
    let far = json!({ "uri": pair.listen });
    pair.target.qmp.execute("migrate-incoming", &far)?;
    let parameters = json!({ "max-bandwidth": 60_000_000, "downtime-limit": 1 });
    pair.source.qmp.execute("migrate-set-parameters", &parameters)?;
    pair.source.qmp.execute("migrate", &far)?;
    // Until some rounds have ended.
    let mut lines = vec![watch.wait_for_schema("dunlin.qemu-watch.v1", PATIENCE)?];
    while lines.len() < 4 {
        lines.push(watch.next_json(PATIENCE)?);
    }
    pair.source.qmp.execute("migrate_cancel", &json!({}))?;
    let ended = watch.wait(PATIENCE)?;
    ensure!(ended.code == Some(1), "a cancelled migration is no success: {ended}");
    ensure!(lines[1]["round"] == 1 && lines[3]["round"] == 3, "{lines:?}");
    ensure!(
        lines[1]["outlook"] == "unknown" && lines[2]["outlook"].is_object(),
        "where it leads is not said: {lines:?}"
    );
    ensure!(
        lines[1]["rules"].as_array().is_some_and(|rules| rules.len() > 5),
        "{lines:?}"
    );
    let limit = pair.source.qmp.execute("query-migrate-parameters", &json!({}))?;
    ensure!(limit["downtime-limit"] == 1, "watching changed something: {limit}");

    let total = lines[0]["total_pages"].as_u64().context("total")?.to_string();
    let file = pair.scene.folder().join("rounds.jsonl");
    fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    let file = file.display().to_string();
    let arguments = [
        "replay",
        "--rule",
        "libvirt",
        "--total-pages",
        &total,
        "--downtime",
        "1ms",
        "--json",
        &file,
    ];
    let replayed = pair.scene.dunlin(arguments)?.wait(PATIENCE)?;
    ensure!(replayed.code == Some(0), "{replayed}");
    let said: Value = replayed.json()?;
    let in_watch = lines[1]["rules"].as_array().into_iter().flatten();
    let libvirt = in_watch
        .into_iter()
        .find(|rule| rule["rule"] == "rounds:1")
        .context("rounds:1")?;
    ensure!(
        said["decision"] == libvirt["decision"] && said["reason"] == libvirt["reason"],
        "replayed {said}, watched {libvirt}"
    );
    Ok(())
}
