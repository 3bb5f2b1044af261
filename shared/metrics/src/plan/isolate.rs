//! Finds the rows of a batch that an expression fails on. Must not know what the expression is for.
//!
//! DataFusion evaluates a batch as a whole: one text that is not a number makes it fail for all rows. Rows with the same
//! texts are evaluated once if the expression uses only texts. The distinct rows are halved until a piece succeeds, and
//! small pieces are evaluated row by row. So `f` bad rows of `n` distinct ones cost about `f · (16 + 2 · log2(n / 16))`
//! evaluations, and never more than about `1.2 · n`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array, new_empty_array, new_null_array};
use arrow::compute::{cast, concat, take, take_record_batch};
use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_plan::PhysicalExpr;
use wye_domain::reading::{TextColumn, text_type};

use super::grouping::number_pairs;
use crate::failures::FailedRow;

/// Pieces of up to this many rows are not halved any more.
const SMALL: usize = 16;
/// An error's text is cut to this many characters.
const LONGEST_MESSAGE: usize = 300;

/// The answers of an expression, row by row.
pub(crate) struct Isolated {
    /// Null where it fails.
    pub(crate) answers: ArrayRef,
    /// Where it fails, in row order.
    pub(crate) failed: Vec<FailedRow>,
}

/// Evaluates an expression on every row of a batch of any schema that has the expression's columns.
pub(crate) fn isolate(expression: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<Isolated> {
    let mut used: Vec<usize> = collect_columns(expression).iter().map(|column| column.index()).collect();
    used.sort_unstable();
    // A batch without columns would have no rows.
    let used = if used.is_empty() { vec![0] } else { used };
    let seen = batch.project(&used)?;
    let expression = reassign_expr_columns(Arc::clone(expression), &seen.schema())?;
    let answer_type = expression.data_type(&seen.schema())?;
    let Alike { first_rows, alike } = Alike::of(&seen)?;
    let distinct = compact(&take_record_batch(&seen, &UInt32Array::from(first_rows))?)?;
    let mut pieces = Pieces { expression, answer_type, answers: Vec::new(), failed: Vec::new() };
    pieces.evaluate(&distinct, 0)?;
    let answers = match pieces.answers.as_slice() {
        [] => new_empty_array(&pieces.answer_type),
        answers => concat(&answers.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?,
    };
    let mut messages: Vec<Option<Arc<str>>> = vec![None; distinct.num_rows()];
    for FailedRow { row, message } in pieces.failed {
        messages[row] = Some(message);
    }
    let failed = alike.iter().enumerate().filter_map(|(row, distinct)| {
        let message = messages[*distinct as usize].clone()?;
        Some(FailedRow { row, message })
    });
    let failed = failed.collect();
    Ok(Isolated { answers: take(&answers, &UInt32Array::from(alike), None)?, failed })
}

/// Which rows are the same.
struct Alike {
    /// The first row of each kind.
    first_rows: Vec<u32>,
    /// By row: its kind.
    alike: Vec<u32>,
}

impl Alike {
    /// Rows with the same texts are the same; with a column of numbers every row is a kind of its own.
    fn of(batch: &RecordBatch) -> Result<Self> {
        let rows =
            u32::try_from(batch.num_rows()).map_err(|error| DataFusionError::External(error.into()))?;
        let texts: Option<Vec<TextColumn<'_>>> = batch.columns().iter().map(TextColumn::of_array).collect();
        let Some(texts) = texts else {
            return Ok(Self { first_rows: (0..rows).collect(), alike: (0..rows).collect() });
        };
        let mut numbers = vec![0; batch.num_rows()];
        let mut count = 1;
        for text in &texts {
            count = number_pairs(&mut numbers, count, text);
        }
        let mut kinds: Vec<Option<u32>> = vec![None; count];
        let mut first_rows = Vec::new();
        let mut alike = Vec::with_capacity(numbers.len());
        for (row, number) in (0..rows).zip(numbers) {
            let kind = *kinds[number as usize].get_or_insert_with(|| {
                first_rows.push(row);
                first_rows.len() as u32 - 1
            });
            alike.push(kind);
        }
        Ok(Self { first_rows, alike })
    }
}

struct Pieces {
    expression: Arc<dyn PhysicalExpr>,
    answer_type: DataType,
    answers: Vec<ArrayRef>,
    failed: Vec<FailedRow>,
}

impl Pieces {
    /// Evaluates on rows of which the first is row `first` of the whole.
    fn evaluate(&mut self, rows: &RecordBatch, first: usize) -> Result<()> {
        let count = rows.num_rows();
        let error = match self.expression.evaluate(rows).and_then(|answer| answer.into_array(count)) {
            Ok(answers) => {
                self.answers.push(answers);
                return Ok(());
            }
            Err(error) => error,
        };
        if count <= 1 {
            self.answers.push(new_null_array(&self.answer_type, count));
            self.failed.push(FailedRow { row: first, message: message(&error) });
            return Ok(());
        }
        let piece = if count > SMALL { count.div_ceil(2) } else { 1 };
        for start in (0..count).step_by(piece) {
            let part = compact(&rows.slice(start, piece.min(count - start)))?;
            self.evaluate(&part, first + start)?;
        }
        Ok(())
    }
}

/// The batch with only the words of its rows in its dictionaries, since an expression is evaluated on all words.
fn compact(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| {
        if column.data_type() == &text_type() {
            cast(&cast(column, &DataType::Utf8)?, &text_type())
        } else {
            Ok(Arc::clone(column))
        }
    });
    Ok(RecordBatch::try_new(batch.schema(), columns.collect::<std::result::Result<_, _>>()?)?)
}

fn message(error: &DataFusionError) -> Arc<str> {
    error.strip_backtrace().chars().take(LONGEST_MESSAGE).collect::<String>().into()
}
