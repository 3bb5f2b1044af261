//! `wye load`: loads CSV files into a running Wye, by a mapping.
//!
//! A file is split into the same chunks each time. The idempotency key of a chunk comes from the contents of the file and
//! of the mapping, so a second load of a file, or a load after one that was killed, adds nothing twice. A load ends when
//! its readings are in the answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use reqwest::StatusCode;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wye_datasets::csv_source::{Chunk, CsvSource, Rejected};
use wye_datasets::file_id::file_id;
use wye_datasets::guess;
use wye_datasets::mapping::Mapping;
use wye_domain::place::Offset;
use wye_domain::position::Position;
use wye_domain::wire;
use wye_runtime::clock::{Clock, SystemClock};

use crate::cli::Load;
use crate::client::{Client, TryAgain, body_of};
use crate::terminal::{byte_bar, grouped, say, seconds, spinner, tell};

mod check;

/// How many chunks are sent at a time: enough to keep the log busy while the next ones are read.
const IN_FLIGHT: usize = 6;
/// How long sending a chunk is retried.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// How many rejected readings are shown as examples.
const SHOWN: usize = 5;
/// How long it may take until the answers cover what was loaded.
const COVERED_WITHIN: Duration = Duration::from_secs(600);
/// How long each request waits for that.
const ONE_WAIT: &str = "20s";

/// Takes each chunk with its idempotency key and the bytes of the files before.
type ChunkSender = mpsc::Sender<Result<(String, u64, Chunk)>>;

/// What was loaded so far.
#[derive(Debug, Default)]
struct Totals {
    csv_rows: u64,
    accepted: u64,
    loaded_before: u64,
    /// The position after everything that was loaded, now or before.
    position: Position,
    missing: u64,
    rejected: BTreeMap<String, u64>,
    examples: Vec<String>,
}

/// The answer to a chunk.
#[derive(Debug, Deserialize)]
struct Receipt {
    accepted: u64,
    rejected: u64,
    duplicate_request: bool,
    position: String,
    errors: Vec<RejectedReading>,
}

/// A reading that was rejected.
#[derive(Debug, Deserialize)]
struct RejectedReading {
    reason: String,
    detail: String,
}

/// Runs the command.
///
/// # Errors
/// When the mapping or a file cannot be read, or Wye does not accept the readings.
pub(crate) async fn run(arguments: &Load) -> Result<()> {
    let Some(mapping) = &arguments.mapping else {
        for file in &arguments.files {
            say(guess::propose(file)?.trim_end())?;
        }
        return Ok(());
    };
    let mapping = Arc::new(Mapping::load(mapping)?);
    let mut bytes = 0;
    for file in &arguments.files {
        bytes += std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    }
    let bar = byte_bar(bytes);
    if arguments.check {
        return check::run(&arguments.files, &mapping, &bar);
    }
    let client = Client::find(&arguments.target)?;
    let clock = SystemClock::default();
    let mut totals = Totals::default();
    let outcome = load(arguments, &mapping, &client, &bar, &mut totals).await;
    bar.finish_and_clear();
    print_summary(&totals, arguments.files.len(), bytes, clock.monotonic());
    outcome?;
    if !arguments.no_wait && !totals.position.is_empty() {
        wait_until_covered(&client, &totals.position).await?;
    }
    Ok(())
}

/// Waits until the answers cover a position, and prints how long that took.
async fn wait_until_covered(client: &Client, position: &Position) -> Result<()> {
    let clock = SystemClock::default();
    let bar = spinner("waiting until the readings are in the answers");
    let after = position.to_string();
    let covered = loop {
        let answer = client.get("/v1/coverage", &[("after", &after), ("wait", ONE_WAIT)]).await?;
        let late = answer.status() == StatusCode::GATEWAY_TIMEOUT;
        match body_of(answer).await {
            Err(_) if late && clock.monotonic() < COVERED_WITHIN => {}
            outcome => break outcome,
        }
    };
    bar.finish_and_clear();
    covered.context("all readings are loaded, but they are not in the answers yet; see GET /v1/coverage")?;
    tell(format!("in the answers after {}", seconds(clock.monotonic())));
    Ok(())
}

/// Sends the chunks of all files, several at a time.
async fn load(
    arguments: &Load,
    mapping: &Arc<Mapping>,
    client: &Client,
    bar: &ProgressBar,
    totals: &mut Totals,
) -> Result<()> {
    let clock = SystemClock::default();
    let (sender, mut chunks) = mpsc::channel::<Result<(String, u64, Chunk)>>(IN_FLIGHT);
    let (files, mapping) = (arguments.files.clone(), Arc::clone(mapping));
    let reading = tokio::task::spawn_blocking(move || read_files(&files, &mapping, &sender));
    let mut in_flight: JoinSet<Result<(Receipt, u64)>> = JoinSet::new();
    let mut failure = None;
    loop {
        let chunk = if in_flight.len() < IN_FLIGHT && failure.is_none() { chunks.recv().await } else { None };
        match chunk {
            Some(Ok((key, done_before, chunk))) => {
                note_rows(totals, &chunk);
                let client = client.clone();
                let bytes_done = done_before + chunk.bytes_read;
                in_flight.spawn(async move {
                    let body = wire::encode_arrow(&[chunk.batch]);
                    Ok((send(&client, &key, body).await?, bytes_done))
                });
            }
            Some(Err(error)) => failure = Some(error),
            None => {
                let Some(finished) = in_flight.join_next().await else { break };
                match finished.unwrap_or_else(|error| Err(anyhow!("a task has failed: {error}"))) {
                    Ok((receipt, bytes_done)) => {
                        note_receipt(totals, &receipt);
                        bar.set_position(bytes_done.max(bar.position()));
                        let done = totals.accepted + totals.loaded_before;
                        let rate = done as f64 / clock.monotonic().as_secs_f64();
                        bar.set_message(format!("{} readings  {}/s", grouped(done), grouped(rate as u64)));
                    }
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
    }
    drop(chunks);
    let read = reading.await.map_err(|error| anyhow!("the reading thread has failed: {error}"));
    match failure {
        Some(error) => Err(error),
        None => read,
    }
}

/// Reads all files, and sends their chunks. Blocks.
fn read_files(files: &[PathBuf], mapping: &Mapping, sender: &ChunkSender) {
    let mut done_before = 0;
    for file in files {
        match read_file(file, mapping, done_before, sender) {
            Ok(size) => done_before += size,
            Err(error) => {
                // The receiver is closed when the load has failed for another reason.
                let _ = sender.blocking_send(Err(error));
                return;
            }
        }
    }
}

/// Sends the chunks of one file, and returns its size in bytes.
fn read_file(file: &Path, mapping: &Mapping, done_before: u64, sender: &ChunkSender) -> Result<u64> {
    let id = file_id(file, mapping)?;
    let source = CsvSource::open(file, mapping)?;
    let size = source.bytes_total();
    for chunk in source {
        let chunk = chunk?;
        let key = format!("{id}/{}", chunk.index);
        if sender.blocking_send(Ok((key, done_before, chunk))).is_err() {
            bail!("the load was cancelled");
        }
    }
    Ok(size)
}

/// Sends one chunk until Wye has acknowledged it.
async fn send(client: &Client, key: &str, body: Vec<u8>) -> Result<Receipt> {
    let headers = [("content-type", "application/vnd.apache.arrow.stream"), ("idempotency-key", key)];
    let clock = SystemClock::default();
    loop {
        let error = match client.post("/v1/readings", &headers, body.clone()).await {
            // The answer to a chunk whose readings were all rejected.
            Ok(response) if response.status() == StatusCode::BAD_REQUEST => {
                let body = response.bytes().await.context("the connection was lost during the answer")?;
                return serde_json::from_slice(&body)
                    .with_context(|| String::from_utf8_lossy(&body).into_owned());
            }
            Ok(response) => match body_of(response).await {
                Ok(body) => {
                    return serde_json::from_slice(&body).context("the answer to the readings is invalid");
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        if error.downcast_ref::<TryAgain>().is_none() || clock.monotonic() >= RETRY_FOR {
            return Err(error.context("the load has stopped; run the command again to resume it"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn note_rows(totals: &mut Totals, chunk: &Chunk) {
    totals.csv_rows += chunk.csv_rows;
    totals.missing += chunk.missing;
    for rejected in &chunk.rejected {
        *totals.rejected.entry(rejected.reason.label().to_owned()).or_default() += rejected.readings;
        if totals.examples.len() < SHOWN {
            totals.examples.push(example(rejected));
        }
    }
}

/// A row or cell that was rejected, in words.
fn example(rejected: &Rejected) -> String {
    let place = if rejected.column.is_empty() {
        format!("line {}", rejected.row)
    } else {
        format!("line {}, column {:?}", rejected.row, rejected.column)
    };
    format!("{place}: {:?}: {}", rejected.text, rejected.reason)
}

fn note_receipt(totals: &mut Totals, receipt: &Receipt) {
    if receipt.duplicate_request {
        totals.loaded_before += receipt.accepted;
    } else {
        totals.accepted += receipt.accepted;
    }
    // If the position cannot be read, the load does not wait for it.
    let position: Position = receipt.position.parse().unwrap_or_default();
    for (kafka_partition, next) in position.iter().filter(|(_, next)| *next > Offset::START) {
        totals.position.include(kafka_partition, Offset(next.0 - 1));
    }
    let listed = receipt.errors.len() as u64;
    for rejected in &receipt.errors {
        *totals.rejected.entry(rejected.reason.clone()).or_default() += 1;
        if totals.examples.len() < SHOWN {
            totals.examples.push(rejected.detail.clone());
        }
    }
    if receipt.rejected > listed {
        *totals.rejected.entry("(reasons not listed)".to_owned()).or_default() += receipt.rejected - listed;
    }
}

fn print_summary(totals: &Totals, files: usize, bytes: u64, elapsed: Duration) {
    let taken = totals.accepted + totals.loaded_before;
    let rate = taken as f64 / elapsed.as_secs_f64().max(1e-9);
    tell(format!("files          {files:>12}   {:.1} MB", bytes as f64 / 1e6));
    tell(format!("rows read      {:>12}", grouped(totals.csv_rows)));
    tell(format!(
        "accepted       {:>12}   {} readings/s in {}",
        grouped(totals.accepted),
        grouped(rate as u64),
        seconds(elapsed)
    ));
    tell(format!("loaded before  {:>12}", grouped(totals.loaded_before)));
    tell(format!("missing        {:>12}   cells without a value", grouped(totals.missing)));
    print_rejected(&totals.rejected, &totals.examples);
}

fn print_rejected(rejected: &BTreeMap<String, u64>, examples: &[String]) {
    tell(format!("rejected       {:>12}", grouped(rejected.values().sum())));
    for (reason, count) in rejected {
        tell(format!("  {reason:<24} {:>12}", grouped(*count)));
    }
    for example in examples {
        tell(format!("  for example: {example}"));
    }
}
