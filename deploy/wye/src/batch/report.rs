//! The report of a batch run on the terminal.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value};
use wye_batch::dry_run::WouldCompute;

use crate::terminal::{grouped, say, seconds};

/// Prints a report, as JSON or as lines.
///
/// # Errors
/// When it cannot be written.
pub(super) fn print(report: &Value, as_json: bool) -> Result<()> {
    if as_json { say(report) } else { print_lines(report) }
}

/// Numbers of cells by reason, in words.
fn counted(reasons: &Map<String, Value>) -> String {
    let each = reasons.iter().map(|(reason, cells)| format!("{}: {cells}", reason.replace('_', " ")));
    each.collect::<Vec<_>>().join(", ")
}

/// How many cells are printed as lines.
const SHOWN: usize = 50;

/// Prints what a run would compute, as JSON or as lines.
///
/// # Errors
/// When it cannot be written.
pub(super) fn print_dry_run(would: &WouldCompute, as_json: bool) -> Result<()> {
    if as_json {
        return say(serde_json::to_value(would)?);
    }
    say(format!("readings         {:>14}", grouped(would.readings)))?;
    say(format!("readings to read {:>14}", grouped(would.readings_to_read)))?;
    say(format!("cells kept       {:>14}", grouped(would.cells_kept)))?;
    say(format!("cells to compute {:>14}", grouped(would.cells.len() as u64)))?;
    if let Some(reason) = would.everything_because {
        say(format!("all cells would be computed: {reason}"))?;
    }
    if would.cells.is_empty() {
        return Ok(());
    }
    say(format!("\n{:<26}{:<26}{:>14}   reason", "from", "until", "readings"))?;
    for cell in would.cells.iter().take(SHOWN) {
        let (start, end) = (&cell.start, &cell.end);
        let reason = cell.reason.replace('_', " ");
        say(format!("{start:<26}{end:<26}{:>14}   {reason}", grouped(cell.readings)))?;
    }
    if would.cells.len() > SHOWN {
        say(format!("and {} more; --json prints all", would.cells.len() - SHOWN))?;
    }
    Ok(())
}

fn print_lines(report: &Value) -> Result<()> {
    let outcome = report.get("outcome").and_then(Value::as_str).unwrap_or_default();
    say(format!("outcome        {:>12}", outcome.replace('_', " ")))?;
    for key in ["readings", "duplicates", "conflicts", "dropped", "windows", "series"] {
        let number = report.get(key).and_then(Value::as_u64).unwrap_or_default();
        say(format!("{key:<14} {:>12}", grouped(number)))?;
    }
    if let Some(cells) = report.get("cells").and_then(Value::as_u64) {
        let computed = report.get("computed_cells").and_then(Value::as_object);
        let count = computed.map_or(0, |computed| computed.values().filter_map(Value::as_u64).sum());
        let reasons = computed.map(counted).unwrap_or_default();
        say(format!("cells          {:>12}", grouped(cells)))?;
        say(format!("computed cells {:>12}   {reasons}", grouped(count)).trim_end())?;
    }
    if let Some(reason) = report.get("everything_because").and_then(Value::as_str) {
        say(format!("all cells were computed: {reason}"))?;
    }
    let restated = report.get("restated").and_then(Value::as_u64).unwrap_or_default();
    if restated > 0 {
        say(format!(
            "restated       {:>12}   settled numbers; SELECT * FROM restatements",
            grouped(restated)
        ))?;
    }
    for (name, failure) in report.get("failures").and_then(Value::as_object).into_iter().flatten() {
        let readings = failure.get("readings").and_then(Value::as_u64).unwrap_or_default();
        let example = |key: &str| failure.pointer(&format!("/example/{key}")).and_then(Value::as_str);
        let (device, message) = (example("device_id"), example("message"));
        say(format!(
            "not computed   {:>12}   readings by {name}, one of {}: {}",
            grouped(readings),
            device.unwrap_or_default(),
            message.unwrap_or_default()
        ))?;
    }
    let duration = report.get("duration_ms").and_then(Value::as_f64).unwrap_or_default();
    say(format!("duration       {:>12}", seconds(Duration::from_secs_f64(duration / 1e3))))?;
    if let Some(version) = report.get("version").and_then(Value::as_u64) {
        let served = match report.get("served").and_then(Value::as_bool) {
            Some(true) => "in the answers",
            Some(false) => "not in the answers yet",
            None => "",
        };
        say(format!("view version   {:>12}   {served}", grouped(version)).trim_end())?;
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
