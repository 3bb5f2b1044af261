//! What answers of the whole program say about themselves: which readings they lack, and the unit of their values.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wye_tests::api::Api;
use wye_tests::datasets::project_root;
use wye_tests::kafka::Kafka;
use wye_tests::oracle;
use wye_tests::site::Site;
use wye_tests::wait;

const WITHIN: Duration = Duration::from_secs(30);

fn get(api: &Api, path: &str) -> Result<(u16, Value)> {
    let (status, body) = api.get(path)?;
    Ok((status, serde_json::from_str(&body).with_context(|| body.clone())?))
}

/// Writes `count` readings of one device, and returns the position after them.
fn write(api: &Api, from: u32, count: u32) -> Result<String> {
    let readings: Vec<Value> = (from..from + count)
        .map(|number| {
            json!({"device_id": "pump", "metric": "pressure", "value": number, "unit": "bar",
                   "event_time": "2026-01-01T00:00:00Z", "sequence": number})
        })
        .collect();
    let (status, answer) = api.post("/v1/readings", &json!(readings))?;
    ensure!(status == 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["position"].as_str().context("no position")?.to_owned())
}

#[test]
fn a_query_after_a_write_has_what_was_written() -> Result<()> {
    let site = Site::new()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    for round in 1..=20 {
        let position = write(&api, round * 10, 10)?;
        // An answer without them does not say that it is complete.
        let (status, early) = get(&api, "/v1/metrics/pressure/current")?;
        let seen = early["rows"][0]["data_points"].as_u64().unwrap_or(0);
        ensure!(status == 404 || early["complete"] == false || seen == u64::from(round) * 10, "{early}");
        let path = match round % 2 {
            0 => format!("/v1/metrics/pressure/current?after={position}"),
            _ => format!("/v1/metrics/pressure/series?after={position}"),
        };
        let (status, answer) = get(&api, &path)?;
        let row = if round % 2 == 0 { &answer["rows"][0] } else { &answer["series"][0]["points"][0] };
        ensure!(status == 200 && row["data_points"].as_u64() == Some(u64::from(round) * 10), "{answer}");
        let sql = json!({"sql": "SELECT sum(count) AS n FROM unified_series", "after": position});
        let (status, answer) = api.post("/v1/sql", &sql)?;
        ensure!(status == 200 && answer.contains(&format!("{}", round * 10)), "{answer}");
    }
    wait::until("complete answer", WITHIN, || {
        let (_, coverage) = get(&api, "/v1/coverage")?;
        Ok((coverage["complete"] == true && coverage["lacking"] == 0).then_some(()))
    })?;
    let (status, late) = get(&api, "/v1/coverage?after=0:999999&wait=50ms")?;
    ensure!(status == 504 && late["error_code"] == "not_covered", "{late}");
    wait::until("unit that the readings carry", WITHIN, || {
        let (_, answer) = get(&api, "/v1/metrics/pressure/current")?;
        Ok((answer["unit"] == "bar").then_some(()))
    })?;
    server.stop()
}

#[test]
fn payloads_of_dead_letters_can_be_read() -> Result<()> {
    let site = Site::new()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let (status, _) = api.post("/v1/readings", &json!([{"device_id": "pump", "why": "no metric"}]))?;
    ensure!(status == 400);
    wait::until("dead letter", WITHIN, || {
        let letters = api.sql("SELECT payload FROM dead_letters")?;
        Ok(letters.rows.first().map(|row| row[0].clone()))
    })
    .and_then(|payload| {
        ensure!(payload.contains("no metric"), "{payload}");
        Ok(())
    })?;
    server.stop()
}

#[test]
fn offsets_of_transactions_are_not_lacking() -> Result<()> {
    let mut site = Site::new()?;
    let Some(kafka) = Kafka::start(site.directory().join("kafka"))? else { return Ok(()) };
    let servers = kafka.bootstrap_servers()?;
    site.configure(&format!("[log]\nbootstrap_servers = \"{servers}\"\n[batch]\ninterval = \"0s\"\n"))?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let script = project_root().join("tests/clients/transactions.py");
    let status = Command::new(oracle::python()?).arg(script).args([&servers, "6"]).status()?;
    ensure!(status.success(), "transactions.py: {status}");
    wait::until("complete answer", WITHIN, || {
        let (_, coverage) = get(&api, "/v1/coverage")?;
        let (status, answer) = get(&api, "/v1/metrics/pressure/current")?;
        let is_all = status == 200 && answer["rows"][0]["data_points"] == 3;
        Ok((is_all && coverage["complete"] == true && coverage["lacking"] == 0).then_some(()))
    })?;
    // The archiver reaches the end too, so that a run covers everything.
    wait::until("batch run over everything", WITHIN, || {
        let (status, report) = api.post("/v1/batch-runs", &json!({"force": true}))?;
        ensure!(status == 200, "{report}");
        let report: Value = serde_json::from_str(&report)?;
        let left = report["not_covered"].as_object().map_or(0, |left| left.len());
        Ok((report["readings"] == 3 && left == 0).then_some(()))
    })?;
    server.stop()
}
