//! `wye sql`: a query on a running Wye, printed as a table.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use arrow::ipc::reader::StreamReader;
use arrow::util::pretty::pretty_format_batches;

use crate::cli::{Format, Sql};
use crate::client::{Client, body_of};

/// More rows than this are not laid out as a table.
const MOST_TABLE_ROWS: usize = 10_000;

/// Runs the command.
///
/// # Errors
/// When no Wye answers, or with what the server says of the query.
pub(crate) async fn run(arguments: &Sql) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    let mut query = arguments.query.clone();
    if query == "-" {
        query.clear();
        std::io::stdin().read_to_string(&mut query).context("cannot read the query from standard input")?;
    }
    let accept = match arguments.format {
        Format::Table => "application/vnd.apache.arrow.stream",
        Format::Csv => "text/csv",
        Format::Json => "application/json",
    };
    let body = serde_json::to_vec(&serde_json::json!({ "sql": query }))?;
    let headers = [("content-type", "application/json"), ("accept", accept)];
    let answer = body_of(client.post("/v1/sql", &headers, body).await?).await?;
    if arguments.format != Format::Table {
        let mut out = std::io::stdout().lock();
        out.write_all(&answer).context("cannot write the result")?;
        if !answer.ends_with(b"\n") {
            out.write_all(b"\n").context("cannot write the result")?;
        }
        return Ok(());
    }
    let batches = StreamReader::try_new(answer.as_slice(), None)
        .and_then(|reader| {
            let schema = reader.schema();
            let mut batches = reader.collect::<Result<Vec<_>, _>>()?;
            if batches.is_empty() {
                batches.push(arrow::array::RecordBatch::new_empty(schema));
            }
            Ok(batches)
        })
        .context("the answer is no Arrow stream")?;
    let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    let mut shown = Vec::new();
    let mut left = MOST_TABLE_ROWS;
    for batch in &batches {
        let take = batch.num_rows().min(left);
        shown.push(batch.slice(0, take));
        left -= take;
    }
    println!("{}", pretty_format_batches(&shown)?);
    match rows {
        1 => println!("1 row"),
        rows if rows > MOST_TABLE_ROWS => {
            println!("{rows} rows, the first {MOST_TABLE_ROWS} shown; --format csv gives them all");
        }
        rows => println!("{rows} rows"),
    }
    Ok(())
}
