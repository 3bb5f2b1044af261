//! `wye batch run`: starts a batch run on a running Wye and, by default, waits until its result is in the answers.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::BatchRun;
use crate::client::{Client, TryAgain, body_of};
use crate::terminal::{grouped, say, seconds, spinner};

/// How long it may take until the answers have the result.
const SERVED_WITHIN: &str = "60s";

/// Runs the command.
///
/// # Errors
/// When Wye cannot be reached, or the run failed; [`TryAgain`] when another run was first, or the answers do not have the
/// result in time.
pub(crate) async fn run(arguments: &BatchRun) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    let wait = if arguments.no_wait { "0s" } else { SERVED_WITHIN };
    let body = serde_json::to_vec(&json!({ "force": arguments.force, "wait": wait }))?;
    let headers = [("content-type", "application/json")];
    let bar = spinner("batch run");
    let answer = async { body_of(client.post("/v1/batch-runs", &headers, body).await?).await }.await;
    bar.finish_and_clear();
    let report: Value =
        serde_json::from_slice(&answer?).context("the answer is not a report of a batch run")?;
    if arguments.json {
        say(&report)?;
    } else {
        print_report(&report)?;
    }
    if !arguments.no_wait && report.get("served").and_then(Value::as_bool) == Some(false) {
        let message = format!(
            "the run is finished, but its result is not in the answers after {SERVED_WITHIN}; see GET /readyz"
        );
        return Err(TryAgain(message).into());
    }
    Ok(())
}

fn print_report(report: &Value) -> Result<()> {
    let outcome = report.get("outcome").and_then(Value::as_str).unwrap_or_default();
    say(format!("outcome        {:>12}", outcome.replace('_', " ")))?;
    for key in ["readings", "duplicates", "conflicts", "windows", "series"] {
        let number = report.get(key).and_then(Value::as_u64).unwrap_or_default();
        say(format!("{key:<14} {:>12}", grouped(number)))?;
    }
    let duration = report.get("duration_ms").and_then(Value::as_f64).unwrap_or_default();
    say(format!("duration       {:>12}", seconds(Duration::from_secs_f64(duration / 1e3))))?;
    if let Some(version) = report.get("version").and_then(Value::as_u64) {
        let served = match report.get("served").and_then(Value::as_bool) {
            Some(true) => "in the answers",
            _ => "not in the answers yet",
        };
        say(format!("view version   {:>12}   {served}", grouped(version)))?;
    }
    if let Some(horizon) = report.get("horizon").and_then(Value::as_object) {
        let parts: Vec<String> =
            horizon.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
        say(format!("horizon        {} (Kafka partition:offset)", parts.join(",")))?;
    }
    if let Some(silent) =
        report.get("unanswered").and_then(Value::as_array).filter(|silent| !silent.is_empty())
    {
        let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
        say(format!(
            "the speed layer did not answer for Kafka partition {}: the run covers what was archived",
            silent.join(", ")
        ))?;
    }
    let left: i64 = report
        .get("not_covered")
        .and_then(Value::as_object)
        .map_or(0, |left| left.values().filter_map(Value::as_i64).sum());
    if left > 0 {
        say(format!(
            "not covered    {left:>12} messages from before the run: the archiver has not reached them; run it again later"
        ))?;
    }
    Ok(())
}
