//! Record batches of columns that were built for their schema.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;

/// The record batch of columns that a builder made.
///
/// # Panics
/// When the columns do not have the types of the schema or have different lengths, which is a bug of the builder.
#[must_use]
pub fn of_columns(schema: SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema, columns).expect("the columns were built for this schema, row by row")
}
