//! Executes the cleaning of a table once: counts what each rule found, drops rows, and writes the others to a temporary
//! Parquet file in the order of the files. Must not know what the rules mean.
//!
//! Three threads work at the same time: one reads the files, one computes and counts, one writes.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{not, or, prep_null_mask_filter};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::Compression;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use tokio::sync::mpsc;

use super::FileJobError;
use super::clean::{Check, Cleaning, Guess, Plan, cleaned};
use super::recipe::Action;
use super::report::{EXAMPLES, Example, Rule, RuleReport, Tally};
use super::scratch::Scratch;
use super::source::{ReadProgress, Source, original};
use super::values::ColumnType;

/// The column with the number of a row, where rows are to be found again.
pub(crate) const ROW: &str = "row";
/// Batches that wait to be written.
const WAITING: usize = 4;
/// Rows of a row group: what a thread of a query reads at a time.
const GROUP_ROWS: usize = 128 * 1024;
/// Bytes of a row group.
const GROUP_BYTES: usize = 64 << 20;

/// The outcome of a pass over the rows.
pub(crate) enum Staged {
    /// All rows are in the file.
    Done(StagedFile),
    /// Some columns need other types.
    Widen(Vec<(usize, ColumnType)>),
}

/// A table that was cleaned.
pub(crate) struct StagedFile {
    pub(crate) file: PathBuf,
    pub(crate) tally: Tally,
}

/// Reads and cleans a table.
///
/// # Errors
/// When the files cannot be read, or the temporary file cannot be written.
pub(crate) async fn stage(
    session: &SessionContext,
    source: &Arc<Source>,
    cleaning: &Cleaning,
    progress: &Arc<ReadProgress>,
    scratch: &Scratch,
) -> Result<Staged, FileJobError> {
    let failed = FileJobError::step(format!("read the table {}", source.name));
    let table = source.table(Some(Arc::clone(progress)))?;
    let plan = session.read_table(table).and_then(|frame| cleaning.plan(frame)).map_err(&failed)?;
    let mut count = Count::new(cleaning, &plan);
    let Plan { frame, .. } = plan;
    let mut batches = frame.execute_stream().await.map_err(&failed)?;

    let file = scratch.file();
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut sender = Some(sender);
    let (path, schema) = (file.clone(), staged_schema(cleaning));
    let writing = SpawnedTask::spawn_blocking(move || write(path, schema, receiver));
    while let Some(batch) = batches.try_next().await.map_err(&failed)? {
        let rows = count.add(&batch).map_err(&failed)?;
        if count.has_wrong_guess() {
            // The rest is read to know which types fit all rows.
            sender = None;
        }
        if let Some(open) = &sender
            && open.send(rows).await.is_err()
        {
            // The writer says why it has ended.
            break;
        }
    }
    drop(sender);
    let written = writing.join_unwind().await.map_err(|_| FileJobError::Stopped)?;
    written?;
    if count.has_wrong_guess() {
        return Ok(Staged::Widen(count.wider()));
    }
    Ok(Staged::Done(StagedFile { file, tally: count.tally }))
}

/// The columns of the temporary file. Where repeated rows are removed later, they are named by their place.
fn staged_schema(cleaning: &Cleaning) -> SchemaRef {
    if cleaning.dedupe.is_none() {
        return cleaning.schema();
    }
    let fields = cleaning.columns.iter().enumerate();
    let mut fields: Vec<Field> =
        fields.map(|(place, column)| Field::new(cleaned(place), column.result_type(), true)).collect();
    fields.push(Field::new(ROW, DataType::UInt64, false));
    Arc::new(Schema::new(fields))
}

/// Writes columns to a Parquet file until no more come. Blocks.
pub(crate) fn write(
    path: PathBuf,
    schema: SchemaRef,
    mut batches: mpsc::Receiver<Vec<ArrayRef>>,
) -> Result<(), FileJobError> {
    let file = File::create(&path).map_err(FileJobError::file("write the temporary file", &path))?;
    let failed = FileJobError::step("write a temporary file");
    let properties = WriterProperties::builder()
        .set_compression(Compression::LZ4_RAW)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build();
    let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties));
    let mut writer = writer.map_err(|error| failed(error.into()))?;
    while let Some(columns) = batches.blocking_recv() {
        let batch =
            RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| failed(error.into()))?;
        writer.write(&batch).map_err(|error| failed(error.into()))?;
        if writer.in_progress_size() > GROUP_BYTES {
            writer.flush().map_err(|error| failed(error.into()))?;
        }
    }
    writer.close().map_err(|error| failed(error.into()))?;
    Ok(())
}

/// Counts what the flags of a plan say.
struct Count {
    columns: usize,
    has_rows: bool,
    checks: Vec<Check>,
    guesses: Vec<GuessCount>,
    tally: Tally,
}

/// How many values have not a guessed type.
struct GuessCount {
    guess: Guess,
    differ: usize,
    no_float: usize,
}

impl Count {
    fn new(cleaning: &Cleaning, plan: &Plan) -> Self {
        let mut checks = plan.checks.clone();
        checks.sort_by_key(|check| check.column);
        let rules = checks.iter().map(|check| RuleReport::of(check, &cleaning.columns)).collect();
        let guesses = plan.guesses.iter().cloned();
        Self {
            columns: cleaning.columns.len(),
            has_rows: cleaning.dedupe.is_some(),
            checks,
            guesses: guesses.map(|guess| GuessCount { guess, differ: 0, no_float: 0 }).collect(),
            tally: Tally { rules, ..Tally::default() },
        }
    }

    /// Counts the flags of a batch, and returns the columns of the rows that are kept.
    fn add(&mut self, batch: &RecordBatch) -> Result<Vec<ArrayRef>, DataFusionError> {
        let mut dropped: Option<BooleanArray> = None;
        for (check, report) in self.checks.iter().zip(&mut self.tally.rules) {
            let flags = flags(batch, &check.flag)?;
            let count = flags.true_count();
            if count == 0 {
                continue;
            }
            report.values += count as u64;
            add_examples(report, column(batch, &original(check.column))?, &flags, self.tally.rows_read)?;
            if check.action == Some(Action::Drop) {
                dropped = Some(match dropped {
                    Some(before) => or(&before, &flags)?,
                    None => flags,
                });
            }
        }
        for count in &mut self.guesses {
            count.differ += flags(batch, &count.guess.flag)?.true_count();
            if let Some(no_float) = &count.guess.no_float {
                count.no_float += flags(batch, no_float)?.true_count();
            }
        }
        let mut rows: Vec<ArrayRef> = (0..self.columns)
            .map(|place| column(batch, &cleaned(place)).map(Arc::clone))
            .collect::<Result<_, _>>()?;
        if self.has_rows {
            let first = self.tally.rows_read + 1;
            rows.push(Arc::new(UInt64Array::from_iter_values(first..first + batch.num_rows() as u64)));
        }
        self.tally.rows_read += batch.num_rows() as u64;
        let Some(dropped) = dropped else { return Ok(rows) };
        self.tally.rows_dropped += dropped.true_count() as u64;
        let keep = not(&dropped)?;
        rows.iter().map(|column| Ok(arrow::compute::filter(column, &keep)?)).collect()
    }

    fn has_wrong_guess(&self) -> bool {
        self.guesses.iter().any(|count| count.differ > 0)
    }

    /// The types that fit all values that were counted.
    fn wider(&self) -> Vec<(usize, ColumnType)> {
        let wrong = self.guesses.iter().filter(|count| count.differ > 0);
        wrong
            .map(|count| match count.guess.kind {
                ColumnType::Integer if count.no_float == 0 => (count.guess.column, ColumnType::Float),
                _ => (count.guess.column, ColumnType::Text),
            })
            .collect()
    }
}

/// Adds the first values with a flag to a report.
fn add_examples(
    report: &mut RuleReport,
    originals: &ArrayRef,
    flags: &BooleanArray,
    rows_before: u64,
) -> Result<(), DataFusionError> {
    let options = FormatOptions::default();
    let values = ArrayFormatter::try_new(originals, &options)?;
    for row in flags.values().set_indices() {
        if report.examples.len() >= EXAMPLES {
            break;
        }
        let value = originals.is_valid(row).then(|| values.value(row).to_string());
        // The reader of CSV files has no empty texts.
        let value = value.or_else(|| (report.rule != Rule::Required).then(String::new));
        if report.wants(value.as_deref()) {
            report.examples.push(Example { row: rows_before + row as u64 + 1, value });
        }
    }
    Ok(())
}

/// The flags of a rule, false where they are null.
pub(crate) fn flags(batch: &RecordBatch, name: &str) -> Result<BooleanArray, DataFusionError> {
    let flags = column(batch, name)?.as_boolean();
    Ok(if flags.null_count() == 0 { flags.clone() } else { prep_null_mask_filter(flags) })
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, DataFusionError> {
    let column = batch.column_by_name(name);
    column.ok_or_else(|| DataFusionError::Internal(format!("there is no column {name}")))
}
