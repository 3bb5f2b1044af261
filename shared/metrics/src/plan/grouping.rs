//! Which series each row of a batch belongs to. Must not know values.
//!
//! Rows are first numbered by their combination of dictionary codes, so each combination's texts are looked up once per
//! batch.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use hashbrown::HashMap;
use wye_domain::DomainError;
use wye_domain::reading::{ReadingColumns, TextColumn};
use wye_domain::series::{SeriesId, SeriesKey, SeriesTable};

use super::MetricPlan;

impl MetricPlan {
    /// The series of each row; that of rows that are not kept means nothing.
    ///
    /// # Errors
    /// [`DomainError::Shape`] when a dimension is not a dictionary of text.
    pub(super) fn series(
        &self,
        columns: &ReadingColumns<'_>,
        dimensions: &[ArrayRef],
        keep: Option<&BooleanArray>,
        table: &mut SeriesTable,
    ) -> Result<Vec<SeriesId>, DomainError> {
        let rows = columns.value.len();
        let texts = dimensions
            .iter()
            .map(|column| TextColumn::of_array(column).ok_or(DomainError::Shape { column: "of a dimension" }))
            .collect::<Result<Vec<TextColumn<'_>>, _>>()?;
        let mut parts: Vec<TextColumn<'_>> = texts.clone();
        if self.definition.is_family() {
            parts.push(columns.metric);
        }
        let mut combination = vec![0u32; rows];
        let mut combinations = 1usize;
        for part in &parts {
            combinations = number_pairs(&mut combination, combinations, part);
        }
        let mut known: Vec<Option<SeriesId>> = vec![None; combinations];
        let definition: Arc<str> = self.definition.name.as_str().into();
        let mut ids = Vec::with_capacity(rows);
        for (row, combination) in combination.iter().enumerate() {
            let slot = &mut known[*combination as usize];
            let kept = keep.is_none_or(|keep| !keep.is_null(row) && keep.value(row));
            let id = match slot {
                Some(id) => *id,
                None if !kept => SeriesId(0),
                None => {
                    let metric = if self.definition.is_family() {
                        columns.metric.text(row).unwrap_or_default().into()
                    } else {
                        definition.clone()
                    };
                    let group = texts.iter().map(|text| text.text(row).map(Arc::from)).collect();
                    *slot.insert(table.id(SeriesKey { definition: definition.clone(), metric, group }))
                }
            };
            ids.push(id);
        }
        Ok(ids)
    }
}

/// Numbers the pairs (number so far, code of the next column) from 0; returns how many there can be.
pub(super) fn number_pairs(numbers: &mut [u32], count: usize, part: &TextColumn<'_>) -> usize {
    let words = part.words().len() + 1;
    if count.saturating_mul(words) <= 1 << 16 {
        for (row, number) in numbers.iter_mut().enumerate() {
            *number = (*number as usize * words + part.code(row).unwrap_or(words - 1)) as u32;
        }
        return count * words;
    }
    let mut pairs: HashMap<(u32, u32), u32, foldhash::fast::RandomState> = HashMap::default();
    let mut last = ((u32::MAX, u32::MAX), 0);
    for (row, number) in numbers.iter_mut().enumerate() {
        let pair = (*number, part.code(row).unwrap_or(words - 1) as u32);
        if last.0 != pair {
            let next = pairs.len() as u32;
            last = (pair, *pairs.entry(pair).or_insert(next));
        }
        *number = last.1;
    }
    pairs.len().max(1)
}
