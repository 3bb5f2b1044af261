//! Removes rows with the same key as another row. Only keys and row numbers are sorted, which spills to disk where memory
//! is short; then the rows are copied in their order, without the repeated ones.

use std::path::Path;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::datatypes::UInt64Type;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, ident, lit};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use futures::TryStreamExt;
use tokio::sync::mpsc;

use super::FileJobError;
use super::clean::{Cleaning, cleaned};
use super::query::file_url;
use super::recipe::{Action, Keep};
use super::report::{Example, Rule, RuleReport};
use super::scratch::Scratch;
use super::stage::{ROW, StagedFile, write};

/// The column with the number of a row among those with the same key.
const NUMBER: &str = "number";
/// Batches that wait to be written.
const WAITING: usize = 4;

/// Removes the repeated rows of a table, if its recipe says so. A row without a value in a key column is never repeated.
///
/// # Errors
/// When the temporary files cannot be read or written.
pub(crate) async fn dedupe(
    session: &SessionContext,
    cleaning: &Cleaning,
    staged: StagedFile,
    scratch: &Scratch,
) -> Result<StagedFile, FileJobError> {
    let Some((keys, keep)) = &cleaning.dedupe else { return Ok(staged) };
    let failed = FileJobError::step("find repeated rows");
    let StagedFile { file: staged, mut tally } = staged;
    let names: Vec<&str> = keys.iter().map(|place| cleaning.columns[*place].original.as_str()).collect();
    let mut report = RuleReport {
        column: names.join(", "),
        rule: Rule::Duplicate,
        action: Some(Action::Drop),
        values: 0,
        examples: Vec::new(),
    };
    let repeated = repeated(session, &staged, keys, *keep).await.map_err(&failed)?;
    let mut repeated = Repeated { batches: repeated, rows: Vec::new(), next: 0, report: &mut report };
    let rows = read(session, &staged).await.map_err(&failed)?;
    let mut rows = rows.execute_stream().await.map_err(&failed)?;

    let file = scratch.file();
    let (sender, receiver) = mpsc::channel(WAITING);
    let (path, schema) = (file.clone(), cleaning.schema());
    let writing = SpawnedTask::spawn_blocking(move || write(path, schema, receiver));
    while let Some(batch) = rows.try_next().await.map_err(&failed)? {
        let kept = repeated.without(&batch, cleaning.columns.len()).await.map_err(&failed)?;
        if sender.send(kept).await.is_err() {
            break;
        }
    }
    drop(sender);
    writing.join_unwind().await.map_err(|_| FileJobError::Stopped)??;
    // The disk space may be needed.
    std::fs::remove_file(&staged).map_err(FileJobError::file("remove", &staged))?;
    tally.rows_dropped += report.values;
    tally.rules.push(report);
    Ok(StagedFile { file, tally })
}

/// The rows that are to be removed, in their order: their number and their key.
async fn repeated(
    session: &SessionContext,
    file: &Path,
    keys: &[usize],
    keep: Keep,
) -> Result<SendableRecordBatchStream, DataFusionError> {
    let keys: Vec<Expr> = keys.iter().map(|place| ident(cleaned(*place))).collect();
    let has_key = keys.iter().cloned().map(Expr::is_not_null).reduce(Expr::and).unwrap_or(lit(true));
    let order = ident(ROW).sort(keep == Keep::First, true);
    let number = row_number().partition_by(keys.clone()).order_by(vec![order]).build()?;
    let mut wanted = vec![ident(ROW)];
    wanted.extend(keys);
    let numbered = read(session, file).await?.select(wanted.clone())?.filter(has_key)?;
    let numbered = numbered.window(vec![number.alias(NUMBER)])?;
    let repeated = numbered.filter(ident(NUMBER).gt(lit(1_u64)))?.select(wanted)?;
    repeated.sort(vec![ident(ROW).sort(true, true)])?.execute_stream().await
}

/// The rows of a temporary file, in their order.
async fn read(
    session: &SessionContext,
    file: &Path,
) -> Result<datafusion::dataframe::DataFrame, DataFusionError> {
    session.read_parquet(file_url(file), ParquetReadOptions::default()).await
}

/// The rows that are to be removed.
struct Repeated<'a> {
    batches: SendableRecordBatchStream,
    rows: Vec<u64>,
    /// The next one of `rows`.
    next: usize,
    report: &'a mut RuleReport,
}

impl Repeated<'_> {
    /// The columns of a batch without the rows that are to be removed, and without the row number.
    async fn without(
        &mut self,
        batch: &RecordBatch,
        columns: usize,
    ) -> Result<Vec<ArrayRef>, DataFusionError> {
        let numbers: &UInt64Array = batch.column(columns).as_primitive::<UInt64Type>();
        let mut keep = Vec::with_capacity(batch.num_rows());
        for number in numbers.values() {
            let is_repeated = self.peek().await? == Some(*number);
            self.next += usize::from(is_repeated);
            keep.push(!is_repeated);
        }
        let keep = BooleanArray::from(keep);
        let columns = batch.columns()[..columns].iter();
        columns.map(|column| Ok(arrow::compute::filter(column, &keep)?)).collect()
    }

    /// The next row that is to be removed.
    async fn peek(&mut self) -> Result<Option<u64>, DataFusionError> {
        while self.next >= self.rows.len() {
            let Some(batch) = self.batches.try_next().await? else { return Ok(None) };
            let numbers: &UInt64Array = batch.column(0).as_primitive::<UInt64Type>();
            self.rows = numbers.values().to_vec();
            self.next = 0;
            self.report.values += batch.num_rows() as u64;
            add_examples(self.report, &batch)?;
        }
        Ok(Some(self.rows[self.next]))
    }
}

fn add_examples(report: &mut RuleReport, batch: &RecordBatch) -> Result<(), DataFusionError> {
    let options = FormatOptions::default();
    let keys: Vec<ArrayFormatter<'_>> = batch.columns()[1..]
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<_, _>>()?;
    let numbers: &UInt64Array = batch.column(0).as_primitive::<UInt64Type>();
    for (place, row) in numbers.values().iter().enumerate().take(super::report::EXAMPLES) {
        let key: Vec<String> = keys.iter().map(|key| key.value(place).to_string()).collect();
        let key = key.join(", ");
        if report.wants(Some(&key)) {
            report.examples.push(Example { row: *row, value: Some(key) });
        }
    }
    Ok(())
}
