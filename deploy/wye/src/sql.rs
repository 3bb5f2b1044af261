//! `wye sql`: runs a query on a running Wye, and prints the answer as a table, or in the form that the server sends.
//!
//! CSV and JSON are printed as they arrive. When the reader of the output is closed, the connection is closed too, which
//! ends the query.

use std::io::Read;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::util::pretty::pretty_format_batches;
use reqwest::Response;
use serde_json::json;
use wye_serving::http::readable;

use crate::cli::{Format, Sql};
use crate::client::{Client, body_of};
use crate::terminal::{grouped, say, write_all};

/// The most rows that are printed as a table.
const MOST_TABLE_ROWS: usize = 10_000;

/// Readings are usually in the answers within this time (s), so readings that lack for less are not reported.
const USUAL_DELAY: f64 = 0.5;

/// Runs the command.
///
/// # Errors
/// When Wye cannot be reached, or with the error of the query.
pub(crate) async fn run(arguments: &Sql) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    let mut query = arguments.query.clone();
    if query == "-" {
        query.clear();
        std::io::stdin().read_to_string(&mut query).context("cannot read the query from standard input")?;
    }
    let (accept, request) = match arguments.format {
        // One row more than is printed, to find out whether there are more.
        Format::Table => {
            ("application/vnd.apache.arrow.stream", json!({ "sql": query, "limit": MOST_TABLE_ROWS + 1 }))
        }
        Format::Csv => ("text/csv", json!({ "sql": query })),
        Format::Json => ("application/json", json!({ "sql": query })),
    };
    let headers = [("content-type", "application/json"), ("accept", accept)];
    let answer = client.post("/v1/sql", &headers, serde_json::to_vec(&request)?).await?;
    match arguments.format {
        Format::Table => print_table(answer).await,
        Format::Csv | Format::Json => print_as_it_arrives(answer).await,
    }
}

async fn print_as_it_arrives(mut answer: Response) -> Result<()> {
    if !answer.status().is_success() {
        return body_of(answer).await.map(drop);
    }
    let mut last = None;
    while let Some(piece) = answer.chunk().await.context("the answer was cut off; see the server log")? {
        write_all(&piece)?;
        last = piece.last().copied().or(last);
    }
    if last == Some(b'\n') { Ok(()) } else { write_all(b"\n") }
}

async fn print_table(answer: Response) -> Result<()> {
    let note = incomplete(&answer);
    let answer = body_of(answer).await?;
    let batches = StreamReader::try_new(answer.as_slice(), None)
        .and_then(|reader| {
            let schema = reader.schema();
            let mut batches = reader.collect::<Result<Vec<_>, _>>()?;
            if batches.is_empty() {
                batches.push(RecordBatch::new_empty(schema));
            }
            Ok(batches)
        })
        .context("the answer is not an Arrow stream")?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let mut shown = Vec::new();
    let mut left = MOST_TABLE_ROWS;
    for batch in &batches {
        let take = batch.num_rows().min(left);
        shown.push(readable(&batch.slice(0, take))?);
        left -= take;
    }
    say(pretty_format_batches(&shown)?)?;
    match rows {
        1 => say("1 row")?,
        rows if rows > MOST_TABLE_ROWS => {
            let shown = grouped(MOST_TABLE_ROWS as u64);
            say(format!(
                "the first {shown} rows of more; add a LIMIT or a condition, or print all rows with --format csv"
            ))?;
        }
        rows => say(format!("{} rows", grouped(rows as u64)))?,
    }
    note.map_or(Ok(()), say)
}

/// A note about an answer that lacks readings.
fn incomplete(answer: &Response) -> Option<String> {
    if header(answer, "wye-complete")? == "true" {
        return None;
    }
    let seconds: f64 = header(answer, "wye-lacking-seconds")?.parse().ok()?;
    match header(answer, "wye-lacking")?.parse::<u64>() {
        Ok(0) | Err(_) => Some("incomplete: SELECT * FROM coverage shows why".to_owned()),
        Ok(_) if seconds < USUAL_DELAY => None,
        Ok(lacking) => Some(format!(
            "incomplete: {} records of the log are not in the answer yet, the oldest for {seconds:.1} s; SELECT * FROM coverage shows details",
            grouped(lacking)
        )),
    }
}

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}
