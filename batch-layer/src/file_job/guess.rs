//! Guesses the types of columns of CSV files from the first rows. Whether the types fit all rows is checked later, when all
//! rows are read.

use std::sync::Arc;

use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;

use super::FileJobError;
use super::clean::{Cleaning, Kind};
use super::source::Source;
use super::stage::flags;
use super::values::ColumnType;

/// How many rows are looked at.
const SAMPLE_ROWS: usize = 10_000;

/// The types that are tried, in this order. A column without any value has the first, which every wider type can follow.
const CANDIDATES: [ColumnType; 5] =
    [ColumnType::Integer, ColumnType::Float, ColumnType::Boolean, ColumnType::Date, ColumnType::Timestamp];

/// Guesses the types of the columns that have none.
///
/// # Errors
/// When the first rows cannot be read.
pub(crate) async fn guess(
    session: &SessionContext,
    source: &Arc<Source>,
    cleaning: &mut Cleaning,
) -> Result<(), FileJobError> {
    let failed = FileJobError::step(format!("read the table {}", source.name));
    let columns = cleaning.columns.iter().enumerate();
    let mut open: Vec<usize> = columns
        .filter(|(_, column)| matches!(column.kind, Kind::Guessed(_)))
        .map(|(place, _)| place)
        .collect();
    if open.is_empty() {
        return Ok(());
    }
    let table = source.table(None)?;
    let schema = datafusion::catalog::TableProvider::schema(table.as_ref());
    let first =
        session.read_table(table).and_then(|rows| rows.limit(0, Some(SAMPLE_ROWS))).map_err(&failed)?;
    let mut sample = first.collect().await.map_err(&failed)?;
    if sample.is_empty() {
        sample.push(arrow::array::RecordBatch::new_empty(schema));
    }
    for candidate in CANDIDATES {
        let mut tried = cleaning.clone();
        tried.widen(open.iter().map(|place| (*place, candidate)).collect());
        let rows = session.read_batches(sample.clone()).map_err(&failed)?;
        let differ = differing(&tried, rows).await.map_err(&failed)?;
        let (rest, found): (Vec<usize>, Vec<usize>) =
            open.into_iter().partition(|place| differ.contains(place));
        cleaning.widen(found.into_iter().map(|place| (place, candidate)).collect());
        open = rest;
    }
    Ok(())
}

/// The columns with a value that has not the guessed type.
async fn differing(tried: &Cleaning, rows: DataFrame) -> Result<Vec<usize>, DataFusionError> {
    let plan = tried.plan(rows)?;
    let mut differing = Vec::new();
    for batch in plan.frame.collect().await? {
        for guess in &plan.guesses {
            if flags(&batch, &guess.flag)?.true_count() > 0 {
                differing.push(guess.column);
            }
        }
    }
    Ok(differing)
}
