//! The tables as programs that are not ours read them: the Python package `deltalake`, DuckDB, and Spark. They find the same
//! readings, and the finished columns of the batch views are what they compute themselves.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wye_tests::datasets::project_root;
use wye_tests::site::Site;

const CONFIG: &str = "[batch]\ninterval = \"0s\"\n[registry]\nfile = \"registry.toml\"\n[[metric]]\nname = \"*\"\n\
                      aggregates = [\"avg\", \"sum\", \"stddev\", \"p50\"]\n";
const REGISTRY: &str = "[[device]]\ndevice_id = \"pump-0\"\nreporting_interval = \"5s\"\n";
/// Readings that are sent, one in 7 of them twice.
const READINGS: i64 = 3_000;

#[test]
fn other_programs_read_the_tables() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(CONFIG)?;
    std::fs::write(site.directory().join("registry.toml"), REGISTRY)?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let readings: Vec<Value> = (0..READINGS)
        .flat_map(|place| {
            let time = 1_767_225_600_000 + place / 3 * 7_000;
            let value = (place as f64 * 0.7).sin() * 50.0 + 60.0;
            let reading = json!({
                "device_id": format!("pump-{}", place % 3), "metric": "t", "value": value, "event_time": time,
            });
            std::iter::repeat_n(reading, if place % 7 == 0 { 2 } else { 1 })
        })
        .collect();
    let sent = readings.len();
    for part in readings.chunks(500) {
        let (status, answer) = api.post("/v1/readings", &Value::from(part.to_vec()))?;
        ensure!(status == 200, "{answer}");
    }
    let mut run = Command::new(site.program());
    run.args(["batch", "run", "--json", "--data-dir"]).arg(site.data_dir());
    let Output { status, stdout, stderr } = run.output()?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let report: Value = serde_json::from_slice(&stdout)?;
    let read = Command::new(script("venv.sh", &["open-tables"])?)
        .arg(project_root().join("tests/open_tables/read.py"))
        .arg("--tables")
        .arg(site.data_dir().join("tables"))
        .arg("--jars")
        .arg(script("spark.sh", &[])?)
        .output()?;
    let printed = String::from_utf8_lossy(&read.stdout);
    ensure!(read.status.success(), "{printed}{}", String::from_utf8_lossy(&read.stderr));
    println!("{}", printed.trim_end());
    let found: Value = serde_json::from_str(&printed)?;
    for reader in ["deltalake", "duckdb", "spark"] {
        let numbers = &found[reader];
        ensure!(
            numbers["readings"] == sent && numbers["windows"] == report["windows"],
            "{reader}: {numbers}"
        );
    }
    server.stop()?;
    Ok(())
}

/// What a script of `scripts` prints.
fn script(name: &str, arguments: &[&str]) -> Result<String> {
    let script = project_root().join("scripts").join(name);
    let output = Command::new(&script)
        .args(arguments)
        .output()
        .with_context(|| format!("run {}", script.display()))?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
