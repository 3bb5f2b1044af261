//! Batches of readings from columns. It must not know where the readings come from.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::Int32Type;
use wye_domain::reading;

/// The columns of a batch of readings, all of one length.
pub(crate) struct Columns {
    /// Without nulls.
    pub(crate) device_id: ArrayRef,
    /// Without nulls.
    pub(crate) metric: ArrayRef,
    pub(crate) value: Vec<f64>,
    /// UTC microseconds.
    pub(crate) event_time: Vec<i64>,
    pub(crate) sequence: Int64Array,
    pub(crate) unit: ArrayRef,
    pub(crate) tags: ArrayRef,
}

impl Columns {
    pub(crate) fn into_batch(self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            self.device_id,
            self.metric,
            Arc::new(Float64Array::from(self.value)),
            Arc::new(TimestampMicrosecondArray::from(self.event_time).with_timezone("UTC")),
            Arc::new(self.sequence),
            self.unit,
            self.tags,
        ];
        RecordBatch::try_new(reading::schema(), columns)
            .expect("the columns have the types of the schema and one length")
    }
}

/// A dictionary column. Each code is an index into `words`, or null.
pub(crate) fn dictionary(codes: Int32Array, words: Arc<StringArray>) -> ArrayRef {
    // Some readers look up the word of a null before they check for null, so there must be one.
    let words = if words.is_empty() { Arc::new(StringArray::from(vec![""])) } else { words };
    Arc::new(
        DictionaryArray::<Int32Type>::try_new(codes, words).expect("each code is an index into the words"),
    )
}
