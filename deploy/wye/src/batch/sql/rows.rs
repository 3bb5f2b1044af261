//! The rows of a query on standard output: a table on a terminal, else CSV.

use std::io::IsTerminal;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder;
use arrow::util::pretty::pretty_format_batches;
use indicatif::ProgressBar;
use tokio::sync::mpsc::Receiver;
use wye_serving::http::readable;

use crate::client::Misused;
use crate::terminal::{grouped, say, write_all};

/// The most rows that are printed as a table.
const MOST_TABLE_ROWS: usize = 10_000;

/// Prints the rows that come. `querying` is the spinner until the first ones come.
///
/// # Errors
/// When they cannot be written.
pub(super) async fn print(batches: Receiver<RecordBatch>, querying: &OnceLock<ProgressBar>) -> Result<()> {
    if std::io::stdout().is_terminal() {
        print_table(batches, querying).await
    } else {
        print_csv(batches, querying).await
    }
}

async fn print_csv(mut batches: Receiver<RecordBatch>, querying: &OnceLock<ProgressBar>) -> Result<()> {
    let mut is_first = true;
    while let Some(batch) = batches.recv().await {
        if let Some(field) = batch.schema_ref().fields().iter().find(|field| field.data_type().is_nested()) {
            bail!(Misused(format!(
                "the column {} has lists or objects, which CSV cannot have; write to .json or .parquet with --output",
                field.name()
            )));
        }
        let mut bytes = Vec::new();
        let builder = WriterBuilder::new().with_header(std::mem::replace(&mut is_first, false));
        builder.build(&mut bytes).write(&readable(&batch)?).context("the result cannot be printed as CSV")?;
        clear(querying);
        write_all(&bytes)?;
    }
    Ok(())
}

async fn print_table(mut batches: Receiver<RecordBatch>, querying: &OnceLock<ProgressBar>) -> Result<()> {
    let (mut shown, mut left) = (Vec::new(), MOST_TABLE_ROWS);
    let mut has_more = false;
    while let Some(batch) = batches.recv().await {
        let take = batch.num_rows().min(left);
        shown.push(readable(&batch.slice(0, take))?);
        left -= take;
        has_more = take < batch.num_rows();
        if has_more {
            break;
        }
    }
    drop(batches);
    clear(querying);
    if shown.is_empty() {
        // The query was not run.
        return Ok(());
    }
    say(pretty_format_batches(&shown)?)?;
    let rows = MOST_TABLE_ROWS - left;
    match rows {
        1 => say("1 row"),
        rows if has_more => say(format!(
            "the first {} rows of more; add a LIMIT or a condition, or write all rows to a file with --output",
            grouped(rows as u64)
        )),
        rows => say(format!("{} rows", grouped(rows as u64))),
    }
}

fn clear(querying: &OnceLock<ProgressBar>) {
    if let Some(bar) = querying.get() {
        bar.finish_and_clear();
    }
}
