//! `wye load`: CSV files, by a mapping, into a running Wye.
//!
//! A file is cut into the same chunks each time, and each chunk is sent under an idempotency key made of the file's
//! and the mapping's contents, so that loading a file again, or after a kill in mid-load, adds nothing. A load ends when
//! what it loaded is in the answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

use crate::cli::Load;
use crate::client::{Client, TryAgain, body_of};
use crate::terminal::{byte_bar, grouped, say, seconds, spinner, tell};

mod check;

/// Chunks under way at a time: enough to keep the log busy while the next are read.
const UNDER_WAY: usize = 6;
/// How long a Wye that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many bad rows are shown one by one.
const SHOWN: usize = 5;
/// How long the answers may take until they cover what was loaded, and how long one question about that waits.
const COVERED_WITHIN: Duration = Duration::from_secs(600);
const ONE_WAIT: &str = "20s";

#[derive(Debug, Default)]
struct Totals {
    csv_rows: u64,
    accepted: u64,
    loaded_before: u64,
    /// Behind everything that was loaded, now or before.
    position: Position,
    missing: u64,
    rejected: BTreeMap<String, u64>,
    examples: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Receipt {
    accepted: u64,
    rejected: u64,
    duplicate_request: bool,
    position: String,
    errors: Vec<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    reason: String,
    detail: String,
}

/// Runs the command.
///
/// # Errors
/// When the mapping or a file cannot be read, or Wye does not take the readings.
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
    let started = Instant::now();
    let mut totals = Totals::default();
    let outcome = load(arguments, &mapping, &client, &bar, &mut totals).await;
    bar.finish_and_clear();
    print_summary(&totals, arguments.files.len(), bytes, started.elapsed());
    outcome?;
    if !arguments.no_wait && !totals.position.is_empty() {
        wait_until_covered(&client, &totals.position).await?;
    }
    Ok(())
}

/// Waits until the answers cover a position, and says how long that took.
async fn wait_until_covered(client: &Client, position: &Position) -> Result<()> {
    let started = Instant::now();
    let bar = spinner("waiting until the readings are in the answers");
    let after = position.to_string();
    let covered = loop {
        let answer = client.get("/v1/coverage", &[("after", &after), ("wait", ONE_WAIT)]).await?;
        let late = answer.status() == StatusCode::GATEWAY_TIMEOUT;
        match body_of(answer).await {
            Err(_) if late && started.elapsed() < COVERED_WITHIN => {}
            outcome => break outcome,
        }
    };
    bar.finish_and_clear();
    covered
        .context("everything is loaded, but not yet in the answers; ask GET /v1/coverage how far they are")?;
    tell(format!("in the answers after {}", seconds(started.elapsed())));
    Ok(())
}

async fn load(
    arguments: &Load,
    mapping: &Arc<Mapping>,
    client: &Client,
    bar: &ProgressBar,
    totals: &mut Totals,
) -> Result<()> {
    let started = Instant::now();
    let (sender, mut chunks) = mpsc::channel::<Result<(String, u64, Chunk)>>(UNDER_WAY);
    let (files, mapping) = (arguments.files.clone(), Arc::clone(mapping));
    let reading = tokio::task::spawn_blocking(move || read_files(&files, &mapping, &sender));
    let mut under_way: JoinSet<Result<(Receipt, u64)>> = JoinSet::new();
    let mut failure = None;
    loop {
        let chunk = if under_way.len() < UNDER_WAY && failure.is_none() { chunks.recv().await } else { None };
        match chunk {
            Some(Ok((key, done_before, chunk))) => {
                note_rows(totals, &chunk);
                let client = client.clone();
                let bytes_done = done_before + chunk.bytes_read;
                under_way.spawn(async move {
                    let body = wire::encode(&[chunk.batch])[wire::ARROW_PREFIX.len()..].to_vec();
                    Ok((send(&client, &key, body).await?, bytes_done))
                });
            }
            Some(Err(error)) => failure = Some(error),
            None => {
                let Some(finished) = under_way.join_next().await else { break };
                match finished.unwrap_or_else(|error| Err(anyhow!("a task has failed: {error}"))) {
                    Ok((receipt, bytes_done)) => {
                        note_receipt(totals, &receipt);
                        bar.set_position(bytes_done.max(bar.position()));
                        let done = totals.accepted + totals.loaded_before;
                        let rate = done as f64 / started.elapsed().as_secs_f64();
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

/// Reads all files on a thread of its own, and sends what it finds.
fn read_files(files: &[PathBuf], mapping: &Mapping, sender: &mpsc::Sender<Result<(String, u64, Chunk)>>) {
    let mut done_before = 0;
    for file in files {
        let read = || -> Result<u64> {
            let id = file_id(file, mapping)?;
            let source = CsvSource::open(file, mapping)?;
            let size = source.bytes_total();
            for chunk in source {
                let chunk = chunk?;
                let key = format!("{id}/{}", chunk.index);
                if sender.blocking_send(Ok((key, done_before, chunk))).is_err() {
                    bail!("called off");
                }
            }
            Ok(size)
        };
        match read() {
            Ok(size) => done_before += size,
            Err(error) => {
                // The receiver is gone when the load was given up for another reason.
                let _ = sender.blocking_send(Err(error));
                return;
            }
        }
    }
}

/// Sends one chunk until Wye has acknowledged it.
async fn send(client: &Client, key: &str, body: Vec<u8>) -> Result<Receipt> {
    let headers = [("content-type", "application/vnd.apache.arrow.stream"), ("idempotency-key", key)];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match client.post("/v1/readings", &headers, body.clone()).await {
            // All of a chunk refused is an answer too.
            Ok(response) if response.status() == StatusCode::BAD_REQUEST => {
                let body = response.bytes().await.context("the answer broke off")?;
                return serde_json::from_slice(&body)
                    .with_context(|| String::from_utf8_lossy(&body).into_owned());
            }
            Ok(response) => match body_of(response).await {
                Ok(body) => return serde_json::from_slice(&body).context("the answer is no receipt"),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if error.downcast_ref::<TryAgain>().is_none() || Instant::now() >= deadline {
            return Err(error.context("the load has stopped; run it again, and it resumes"));
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

/// A row or cell that gave no reading, for people.
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
    // What cannot be read as a position is not waited for.
    let position: Position = receipt.position.parse().unwrap_or_default();
    for (kafka_partition, next) in position.iter().filter(|(_, next)| *next > Offset::START) {
        totals.position.include(kafka_partition, Offset(next.0 - 1));
    }
    let told = receipt.errors.len() as u64;
    for refusal in &receipt.errors {
        *totals.rejected.entry(refusal.reason.clone()).or_default() += 1;
        if totals.examples.len() < SHOWN {
            totals.examples.push(refusal.detail.clone());
        }
    }
    if receipt.rejected > told {
        *totals.rejected.entry("(reasons not listed)".to_owned()).or_default() += receipt.rejected - told;
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
    tell(format!("missing        {:>12}   cells that hold a word for missing", grouped(totals.missing)));
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
