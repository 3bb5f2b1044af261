//! A batch run by a running Wye. By default the command waits until the result is in the answers.

use anyhow::{Context, Result, anyhow};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{ATTEMPTS, report};
use crate::cli::{BatchRun, WhenBusy};
use crate::client::{Client, TryAgain, body_of};
use crate::terminal::spinner;

/// How long it may take until the answers have the result.
const SERVED_WITHIN: &str = "60s";

/// Asks for the run, and prints its report.
///
/// # Errors
/// When Wye cannot be reached, or the run failed; [`TryAgain`] when another run was first, or the answers do not have the
/// result in time.
pub(crate) async fn run(client: &Client, arguments: &BatchRun) -> Result<()> {
    let wait = if arguments.no_wait { "0s" } else { SERVED_WITHIN };
    let body = serde_json::to_vec(&json!({
        "force": arguments.full,
        "from": arguments.from,
        "to": arguments.to,
        "wait": wait,
    }))?;
    let bar = spinner("batch run");
    let answer = ask(client, body, arguments.when_busy).await;
    bar.finish_and_clear();
    let report: Value =
        serde_json::from_slice(&answer?).context("the answer is not a report of a batch run")?;
    report::print(&report, arguments.json)?;
    if !arguments.no_wait && report.get("served").and_then(Value::as_bool) == Some(false) {
        let message = format!(
            "the run is finished, but its result is not in the answers after {SERVED_WITHIN}; see GET /readyz"
        );
        return Err(TryAgain(message).into());
    }
    Ok(())
}

/// The outcome of the command when a signal has ended it first.
pub(super) fn left() -> anyhow::Error {
    anyhow!(TryAgain("stopped by a signal; the running Wye goes through with the batch run".to_owned()))
}

/// Asks for the run; again, where it should wait for another one that was first.
async fn ask(client: &Client, body: Vec<u8>, when_busy: WhenBusy) -> Result<Vec<u8>> {
    let headers = [("content-type", "application/json")];
    let mut attempts = if when_busy == WhenBusy::Wait { ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let response = client.post("/v1/batch-runs", &headers, body.clone()).await?;
        if attempts == 0 || response.status() != StatusCode::CONFLICT {
            return body_of(response).await;
        }
    }
}
