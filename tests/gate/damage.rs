//! Acknowledged readings that are damaged on the disk are never skipped silently: `wye up` does not start, and
//! `wye repair-log` lists the lost records and removes them.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use serde_json::json;
use wye_tests::site::Site;
use wye_tests::wait;

/// Runs `wye ARGUMENTS` to its end. Returns whether it succeeds, and all output.
fn run(site: &Site, arguments: &[&str]) -> Result<(bool, String)> {
    let Output { status, stdout, stderr } = Command::new(site.program()).args(arguments).output()?;
    let printed = [stdout, stderr].concat();
    Ok((status.success(), String::from_utf8_lossy(&printed).into_owned()))
}

#[test]
fn a_damaged_log_is_rejected_until_the_loss_is_accepted() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(
        "[log]\nkafka_partitions = 1\n[archive]\ninterval = \"100ms\"\n[batch]\ninterval = \"0s\"\n",
    )?;
    let mut server = site.up()?;
    let api = server.ready()?;
    for sequence in 0..3 {
        let reading = json!({"device_id": "pump", "metric": "pressure", "value": sequence, "event_time": "2026-01-01T00:00:00Z", "sequence": sequence});
        let (status, body) = api.post("/v1/readings", &reading)?;
        ensure!(status < 300, "{status}: {body}");
    }
    server.process.kill()?;

    let data_dir = site.data_dir().display().to_string();
    let segment = site.data_dir().join("log/readings-0/00000000000000000000.log");
    let mut bytes = std::fs::read(&segment)?;
    bytes[70] ^= 1;
    std::fs::write(&segment, bytes)?;

    let up = ["up", "--data-dir", &data_dir, "--http", "127.0.0.1:0"];
    let (started, printed) = run(&site, &up)?;
    let expected = "readings-0/00000000000000000000.log is damaged at byte 0, offset 0";
    ensure!(!started && printed.contains(expected), "{printed}");
    ensure!(printed.contains(&format!("repair-log --data-dir {data_dir}")), "{printed}");
    let (is_sound, printed) = run(&site, &["repair-log", "--data-dir", &data_dir])?;
    ensure!(!is_sound && printed.contains("the records at offsets 0 to 0 are lost"), "{printed}");
    ensure!(!run(&site, &up)?.0, "repair-log without --accept-loss has changed something");
    let (repaired, printed) = run(&site, &["repair-log", "--data-dir", &data_dir, "--accept-loss"])?;
    ensure!(repaired && printed.contains("is kept as"), "{printed}");
    let (is_sound, printed) = run(&site, &["repair-log", "--data-dir", &data_dir])?;
    ensure!(is_sound && printed.contains("has no damage"), "{printed}");

    let mut server = site.up()?;
    let api = server.ready()?;
    let reading = json!({"device_id": "pump", "metric": "pressure", "value": 3, "event_time": "2026-01-01T00:00:00Z", "sequence": 3});
    ensure!(api.post("/v1/readings", &reading)?.0 < 300);
    // The archiver continues after the lost records.
    wait::until("archived readings", std::time::Duration::from_secs(60), || {
        let archived: i64 = api.sql("SELECT count(*) FROM readings WHERE value >= 1")?.value()?;
        Ok((archived == 3).then_some(()))
    })?;
    server.stop()
}
