//! Mistakes of users. The program answers each with one line that says what to do.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use serde_json::json;
use wye_tests::site::Site;
use wye_tests::wait;

/// Runs `wye ARGUMENTS`, which must fail, and checks the message.
fn fails_with(site: &Site, arguments: &[&str], words: &[&str]) -> Result<()> {
    let Output { status, stdout, stderr } = Command::new(site.program()).args(arguments).output()?;
    let printed = String::from_utf8_lossy(&stderr);
    ensure!(!status.success(), "wye {arguments:?} succeeded: {}", String::from_utf8_lossy(&stdout));
    for word in words {
        ensure!(printed.contains(word), "wye {arguments:?} does not print {word:?} but: {printed}");
    }
    let last = printed.trim_end().lines().last().unwrap_or_default();
    ensure!(last.starts_with("wye: "), "wye {arguments:?} ends with {last:?}");
    Ok(())
}

#[test]
fn a_mistake_is_answered_with_one_line() -> Result<()> {
    let mut site = Site::new()?;
    let data_dir = site.data_dir().display().to_string();
    let other = site.directory().join("other").display().to_string();
    fails_with(&site, &["sql", "--data-dir", &data_dir, "SELECT 1"], &["start it with `wye up"])?;
    fails_with(&site, &["sql", "--url", "http://127.0.0.1:9", "SELECT 1"], &["cannot reach Wye", "wye up"])?;
    fails_with(
        &site,
        &["up", "--data-dir", "/proc/wye", "--http", "127.0.0.1:0"],
        &["data directory", "--data-dir"],
    )?;
    fails_with(&site, &["up", "--data-dir", &other, "--http", "0.0.0.0:0"], &["allow_remote"])?;
    fails_with(&site, &["up", "--data-dir", &other, "--http", "nowhere"], &["127.0.0.1:8080"])?;
    let missing = ["load", "--data-dir", &data_dir, "--mapping", "/nonexistent.toml", "/nonexistent.csv"];
    fails_with(&site, &missing, &["/nonexistent.toml"])?;

    for (config, words) in [
        ("[sped]\n", &["wrong.toml, line 1", "sped"][..]),
        ("\n[speed]\nflush_interval = \"soon\"\n", &["wrong.toml, line 3", "flush_interval"]),
        ("[[metric]]\nname = \"a\"\nwhere = \"value >\"\n", &["wrong.toml, line 3", "not an SQL expression"]),
        ("[[metric]]\nname = \"a\"\naggregates = [\"median\"]\n", &["line 3", "choose from"]),
    ] {
        let path = site.directory().join("wrong.toml");
        std::fs::write(&path, config)?;
        fails_with(&site, &["up", "--data-dir", &other, "--config", &path.display().to_string()], words)?;
    }

    site.configure("")?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let address = api.url().trim_start_matches("http://").to_owned();
    fails_with(&site, &["up", "--data-dir", &other, "--http", &address], &["cannot listen", "--http"])?;
    fails_with(
        &site,
        &["up", "--data-dir", &data_dir, "--http", "127.0.0.1:0"],
        &["another Wye is running"],
    )?;
    fails_with(&site, &["sql", "--data-dir", &data_dir, "SELECT nothing FROM nowhere"], &["nowhere"])?;
    server.stop()
}

/// A valid reading.
fn good(value: f64) -> serde_json::Value {
    json!({"device_id": "pump", "metric": "pressure", "value": value, "event_time": "2026-01-01T00:00:00Z", "sequence": value as i64})
}

#[test]
fn invalid_readings_become_dead_letters_and_stop_nothing() -> Result<()> {
    let site = Site::new()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let bad = [
        json!({"device_id": "pump", "metric": "pressure", "event_time": "2026-01-01T00:00:00Z"}),
        json!({"device_id": "pump", "metric": "pressure", "value": "high", "event_time": "2026-01-01T00:00:00Z"}),
        json!({"device_id": "pump", "metric": "pressure", "value": 1, "event_time": 0}),
        json!({"device_id": "pump", "metric": "pressure", "value": 1, "event_time": "9999-01-01T00:00:00Z"}),
        json!("not a reading"),
    ];
    let mut body = vec![good(1.0)];
    body.extend(bad.iter().cloned());
    body.push(good(2.0));
    let (status, answer) = api.post("/v1/readings", &json!(body))?;
    ensure!(status == 200, "{answer}");
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    assert_eq!((answer["accepted"].as_u64(), answer["rejected"].as_u64()), (Some(2), Some(5)));
    assert_eq!(answer["errors"][0]["index"], 1);
    let patience = std::time::Duration::from_secs(30);
    wait::until("the good ones in unified_series and the bad ones in dead_letters", patience, || {
        let served =
            api.sql("SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM unified_series")?.value::<u64>()?;
        let letters = api.sql("SELECT count(*) FROM dead_letters")?.value::<u64>()?;
        Ok((served == 2 && letters == 5).then_some(()))
    })?;
    let reasons = api.sql("SELECT reason FROM dead_letters ORDER BY item_index")?;
    let reasons: Vec<&str> = reasons.rows.iter().map(|row| row[0].as_str()).collect();
    let expected =
        ["missing_field", "wrong_type", "event_time_out_of_range", "event_time_out_of_range", "wrong_type"];
    assert_eq!(reasons, expected);
    server.stop()
}

#[test]
fn tables_of_another_log_are_rejected() -> Result<()> {
    let mut site = Site::new()?;
    site.configure("")?;
    let mut server = site.up()?;
    let reading = json!({"device_id": "a", "metric": "t", "value": 1, "event_time": "2026-01-01T00:00:00Z"});
    let (status, answer) = server.ready()?.post("/v1/readings", &reading)?;
    ensure!(status == 200, "{answer}");
    let mut run = Command::new(site.program());
    let ran = run.args(["batch", "run", "--data-dir"]).arg(site.data_dir()).output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    server.stop()?;
    let data_dir = site.data_dir().display().to_string();
    let up = ["up", "--data-dir", &data_dir, "--http", "127.0.0.1:0"];
    let tables = site.data_dir().join("tables");
    std::fs::rename(&tables, site.data_dir().join("elsewhere"))?;
    fails_with(&site, &up, &["do not belong to this log", &tables.display().to_string(), "delete"])?;
    std::fs::remove_dir_all(&tables)?;
    std::fs::rename(site.data_dir().join("elsewhere"), &tables)?;
    // The log is another one: its first offsets are other readings.
    let log = site.data_dir().join("log");
    std::fs::rename(&log, site.data_dir().join("old-log"))?;
    fails_with(&site, &up, &["have readings of another log", &tables.display().to_string(), "Restore it"])?;
    std::fs::remove_dir_all(&log)?;
    std::fs::rename(site.data_dir().join("old-log"), &log)?;
    let mut server = site.up()?;
    server.ready()?;
    server.stop()
}
