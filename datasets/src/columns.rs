//! Dictionary columns from keys and words. It must not know what the words mean.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::datatypes::Int32Type;

/// A dictionary column of `keys` into `words`; the key -1 is null.
pub(crate) fn dictionary(keys: Vec<i32>, words: Arc<StringArray>) -> ArrayRef {
    // A null's key must still point at something for readers that look before they ask.
    let words = if words.is_empty() { Arc::new(StringArray::from(vec![""])) } else { words };
    let keys = if keys.contains(&-1) {
        keys.into_iter().map(|key| (key >= 0).then_some(key)).collect::<Int32Array>()
    } else {
        Int32Array::from(keys)
    };
    Arc::new(
        DictionaryArray::<Int32Type>::try_new(keys, words).expect("every key was handed out with its word"),
    )
}
