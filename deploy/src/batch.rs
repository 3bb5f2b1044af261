//! `wye batch run`: one batch run on a running Wye, now.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cli::BatchRun;
use crate::client::{Client, body_of};
use crate::terminal::{grouped, seconds, spinner};

/// Runs the command.
///
/// # Errors
/// When no Wye answers, or the run failed; as a try-again when another run was first.
pub(crate) async fn run(arguments: &BatchRun) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    let bar = spinner("batch run");
    let answer = async { body_of(client.post("/v1/batch-runs", &[], Vec::new()).await?).await }.await;
    bar.finish_and_clear();
    let report: Value = serde_json::from_slice(&answer?).context("the answer is no report")?;
    if arguments.json {
        println!("{report}");
        return Ok(());
    }
    let number = |key: &str| grouped(report.get(key).and_then(Value::as_u64).unwrap_or_default());
    let text = |key: &str| {
        report.get(key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    println!("outcome        {}", text("outcome").unwrap_or_default());
    for key in ["readings", "duplicates", "conflicts", "windows", "series"] {
        println!("{key:<14} {:>12}", number(key));
    }
    let duration = report.get("duration_ms").and_then(Value::as_f64).unwrap_or_default();
    println!("duration       {:>12}", seconds(Duration::from_secs_f64(duration / 1e3)));
    if let Some(horizon) = report.get("horizon").and_then(Value::as_object) {
        let parts: Vec<String> =
            horizon.iter().map(|(partition, offset)| format!("{partition}: {offset}")).collect();
        println!("horizon        {} (kafka partition: offset)", parts.join(", "));
    }
    if let Some(version) = text("version") {
        println!("view version   {version:>12}");
    }
    Ok(())
}
