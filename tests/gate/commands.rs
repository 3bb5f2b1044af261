//! The commands as they are used on a terminal: in pipes, and one after the other.

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wye_tests::site::Site;

/// Runs `wye ARGUMENTS | head -c 10`.
fn read_the_beginning_of(site: &Site, arguments: &[&str]) -> Result<()> {
    let data_dir = site.data_dir();
    let mut child = Command::new(site.program())
        .args(arguments)
        .arg("--data-dir")
        .arg(&data_dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("the output is piped")?;
    output.read_exact(&mut [0; 10])?;
    drop(output);
    let ended = child.wait_with_output()?;
    let printed = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success() && printed.is_empty(), "wye {arguments:?}: {}: {printed}", ended.status);
    Ok(())
}

#[test]
fn a_closed_pipe_ends_a_command_without_an_error() -> Result<()> {
    let site = Site::new()?;
    let mut server = site.up()?;
    server.ready()?;
    // More than a pipe buffers.
    let sql = "SELECT value, value * 2 AS twice FROM generate_series(1, 100000)";
    for format in ["table", "csv", "json"] {
        read_the_beginning_of(&site, &["sql", "--format", format, sql]).context(format)?;
    }
    server.stop()
}

#[test]
fn a_batch_run_ends_when_its_result_is_in_the_answers() -> Result<()> {
    let mut site = Site::new()?;
    site.configure("[batch]\ninterval = \"0s\"\n")?;
    let mut server = site.up()?;
    let api = server.ready()?;
    for round in 1..=3 {
        let reading = json!({"device_id": "pump", "metric": "pressure", "value": round, "event_time": "2026-01-01T00:00:00Z", "sequence": round});
        let (status, answer) = api.post("/v1/readings", &reading)?;
        ensure!(status == 200, "{answer}");
        let output = Command::new(site.program())
            .args(["batch", "run", "--json", "--force", "--data-dir"])
            .arg(site.data_dir())
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["served"] == true, "{report}");
        let (_, coverage) = api.get("/v1/coverage")?;
        let coverage: serde_json::Value = serde_json::from_str(&coverage)?;
        ensure!(coverage["version"].as_u64() >= report["version"].as_u64(), "{coverage} after {report}");
    }
    server.stop()
}
