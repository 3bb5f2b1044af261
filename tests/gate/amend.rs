//! Amendments, made by the command beside a running `wye up`: the next batch run applies them to exactly what they are about,
//! and a revocation brings the numbers back.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wye_tests::api::Api;
use wye_tests::site::Site;

const CONFIG: &str =
    "[batch]\ninterval = \"0s\"\n[[metric]]\nname = \"by_line\"\nby = [\"line\"]\naggregates = [\"sum\"]\n";
const DAY: [&str; 4] = ["--from", "2026-01-01T00:00:00Z", "--until", "2026-01-02T00:00:00Z"];

fn wye(site: &Site, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(site.program());
    command.args(words).arg("--data-dir").arg(site.data_dir());
    command.arg("--config").arg(site.directory().join("wye.toml")).env("WYE_LOG__EMBEDDED_PORT", "0");
    Ok(command.output()?)
}

/// Runs a command that must succeed, and returns the JSON that it prints.
fn done(site: &Site, words: &[&str]) -> Result<Value> {
    let Output { status, stdout, stderr } = wye(site, words)?;
    ensure!(status.success(), "wye {words:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).with_context(|| format!("the output of wye {words:?}"))
}

fn amended(site: &Site, words: &[&str]) -> Result<Value> {
    let made = ["--reason", "a test", "--author", "ann", "--json"];
    done(site, &[&["amend"], words, &DAY, &made].concat())
}

/// Runs the batch layer, and returns why it has computed cells.
fn reasons(site: &Site) -> Result<Value> {
    Ok(done(site, &["batch", "run", "--json"])?["computed_cells"].clone())
}

/// By device and by line: the sums of the values of all windows, from the batch view alone.
fn sums(api: &Api) -> Result<[String; 2]> {
    Ok([sums_by(api, "device_id", "t")?, sums_by(api, "line", "by_line")?])
}

fn sums_by(api: &Api, group: &str, metric: &str) -> Result<String> {
    let sql = format!(
        "SELECT {group}, CAST(sum(sum) AS BIGINT) FROM batch_metrics WHERE metric = '{metric}' GROUP BY {group} ORDER BY {group}"
    );
    let rows: Vec<String> = api.sql(&sql)?.rows.iter().map(|row| row.join(",")).collect();
    Ok(rows.join(" "))
}

/// The newest value of each device.
fn newest(api: &Api) -> Result<String> {
    let sql = "SELECT string_agg(CAST(CAST(current_value AS BIGINT) AS VARCHAR), ' ' ORDER BY metric_key) FROM unified_metrics WHERE metric = 't'";
    api.sql(sql)?.value()
}

#[test]
fn amendments_change_what_they_are_about_until_they_are_revoked() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(&format!("{CONFIG}[[metric]]\nname = \"*\"\n"))?;
    let mut server = site.up()?;
    let api = server.ready()?;
    for (device, line, value) in [("a", "1", 1), ("b", "1", 10), ("c", "2", 100)] {
        for minute in 0..2 {
            let event_time = format!("2026-01-01T00:0{minute}:00Z");
            let reading = json!({"device_id": device, "metric": "t", "value": value, "event_time": event_time, "tags": {"line": line}});
            let (status, answer) = api.post("/v1/readings", &reading)?;
            ensure!(status == 200, "{answer}");
        }
    }
    ensure!(reasons(&site)? == json!({"everything": 1}), "the first run");
    let before = ["a,2 b,20 c,200".to_owned(), "1,22 2,200".to_owned()];
    ensure!(sums(&api)? == before, "{:?}", sums(&api)?);
    ensure!(newest(&api)? == "1 10 100", "{}", newest(&api)?);

    // Wrong arguments change nothing.
    for (words, word) in [
        (&["correct", "--value", "no_such", "--all-devices"][..], "no_such"),
        (&["correct", "--value", "value"], "--device"),
        (&["retag", "--tag", "line", "--device", "a"], "line=9"),
    ] {
        let Output { status, stderr, .. } =
            wye(&site, &[&["amend"], words, &DAY, &["--reason", "r"]].concat())?;
        let printed = String::from_utf8_lossy(&stderr);
        ensure!(status.code() == Some(2) && printed.contains(word), "{words:?}: {status}: {printed}");
    }
    let counted = amended(&site, &["drop", "--device", "a", "--device", "c", "--dry-run"])?;
    ensure!(counted["would_affect"]["readings"] == 4 && counted["would_affect"]["devices"] == 2, "{counted}");
    ensure!(done(&site, &["amend", "list", "--json"])? == json!([]), "a dry run has made an amendment");
    ensure!(reasons(&site)? == json!({}), "nothing is new, so no cell is computed");

    let dropped = amended(&site, &["drop", "--device", "c"])?;
    ensure!(dropped["affects"]["readings"] == 2, "{dropped}");
    amended(&site, &["correct", "--device", "b", "--value", "value / 10"])?;
    amended(&site, &["retag", "--device", "b", "--tag", "line=3"])?;
    let dry = done(&site, &["batch", "run", "--dry-run", "--json"])?;
    ensure!(dry["cells"][0]["reason"] == "amended", "{dry}");
    let run = done(&site, &["batch", "run", "--json"])?;
    ensure!(run["computed_cells"] == json!({"amended": 1}) && run["dropped"] == 2, "{run}");
    ensure!(sums(&api)? == ["a,2 b,2", "1,2 3,2"], "{:?}", sums(&api)?);
    ensure!(newest(&api)? == "1 1", "{}", newest(&api)?);
    let stored: i64 =
        api.sql("SELECT count(*) FROM readings WHERE device_id = 'c' AND value = 100")?.value()?;
    ensure!(stored == 2, "the readings stay as they are");

    let id = dropped["id"].as_str().context("an ID")?;
    done(&site, &["amend", "revoke", id, "--reason", "it was right", "--json"])?;
    ensure!(reasons(&site)? == json!({"amended": 1}), "a revocation");
    ensure!(sums(&api)? == ["a,2 b,2 c,200", "1,2 2,200 3,2"], "{:?}", sums(&api)?);
    let force: String = api
        .sql("SELECT string_agg(action || ' ' || in_force, ', ' ORDER BY created_at) FROM amendments")?
        .value()?;
    ensure!(force == "drop false, correct true, retag true, revoke false", "{force}");
    // From nothing, it is the same.
    ensure!(done(&site, &["batch", "run", "--full", "--json"])?["outcome"] == "committed", "a full run");
    ensure!(sums(&api)? == ["a,2 b,2 c,200", "1,2 2,200 3,2"], "{:?}", sums(&api)?);
    server.stop()
}
